//! Personal data: found, replaced, turned back, and kept from models and exports.

use std::sync::Mutex;

use async_trait::async_trait;
use coral_core::{CallContext, Caller, ChatModel, ChatRequest, ChatResponse, Error, MemoryJournal};
use coral_state::{
    Anonymizer, Detector, MasterKey, PiiKind, PrivacyPolicy, PrivateModel, ProjectDraft, Projects, Treatment,
};
use serde_json::json;

use crate::support::{keep, team_run};

/// What is found, as `kind:text` in order.
fn found(text: &str) -> Vec<String> {
    let detector = Detector::new().with_names(["Ada Lovelace", "Ada", "Müller"]).unwrap();
    detector.find(text).into_iter().map(|hit| format!("{}:{}", hit.kind.as_str(), &text[hit.range])).collect()
}

#[test]
fn what_has_a_form_is_found() {
    for (text, expected) in [
        ("mail Ada.L+x@sub.example.co.uk.", vec!["email:Ada.L+x@sub.example.co.uk"]),
        (
            "card 4111-1111-1111-1111, 378282246310005",
            vec!["card:4111-1111-1111-1111", "card:378282246310005"],
        ),
        ("IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFF", vec!["iban:DE89 3704 0044 0532 0130 00"]),
        ("GB82WEST12345698765432", vec!["iban:GB82WEST12345698765432"]),
        (
            "SSN 123-45-6789; NINO QQ123456C, AB 12 34 56 D",
            vec!["national_id:123-45-6789", "national_id:AB 12 34 56 D"],
        ),
        ("DNI 12345678Z, NIE X1234567L", vec!["national_id:12345678Z", "national_id:X1234567L"]),
        (
            "RSSMRA85T10A562S, 756.9217.0769.85, 811218-9876, 19811218-9876",
            vec![
                "national_id:RSSMRA85T10A562S",
                "national_id:756.9217.0769.85",
                "national_id:811218-9876",
                "national_id:19811218-9876",
            ],
        ),
        (
            "CPF 529.982.247-25, SIN 046 454 286, 9999 4105 7058, PESEL 44051401359, 36 574 261 809",
            vec![
                "national_id:529.982.247-25",
                "national_id:046 454 286",
                "national_id:9999 4105 7058",
                "national_id:44051401359",
                "national_id:36 574 261 809",
            ],
        ),
        ("NIR 2 55 08 14 168 025 38", vec!["national_id:2 55 08 14 168 025 38"]),
        (
            "from 192.168.1.77 and 2001:db8::8a2e:370:7334",
            vec!["ip:192.168.1.77", "ip:2001:db8::8a2e:370:7334"],
        ),
        (
            "call +49 (30) 1234-5678, (555) 123-4567 or 555-123-4567",
            vec!["phone:+49 (30) 1234-5678", "phone:(555) 123-4567", "phone:555-123-4567"],
        ),
        ("ADA LOVELACE met ada and Frau Müller", vec!["name:ADA LOVELACE", "name:ada", "name:Müller"]),
    ] {
        assert_eq!(found(text), expected, "{text}");
    }
}

#[test]
fn what_only_looks_like_it_is_left() {
    for text in [
        "card 4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "GB83WEST12345698765432",
        "000-12-3456, 666-12-3456, 123-00-6789",
        "12345678A",
        "RSSMRA85T10A562T, 756.9217.0769.86, 811218-9877, 529.982.247-26, 111.111.111-11",
        "046 454 287, 9999 4105 7059, 44051401358, 36 574 261 808, 1738922400123",
        "256.1.1.1 at 12:30:45, std::fmt, version 1.2.3",
        "adamant Adas",
        "me@localhost @handle",
        "run-20250207-0001, seq 4096, 2025-02-07T10:00:00.123Z",
        "",
    ] {
        assert_eq!(found(text), [""; 0], "{text}");
    }
}

#[test]
fn pseudonyms_are_consistent_and_only_the_key_turns_them_back() {
    let key = MasterKey::generate().unwrap();
    let anonymizer = Anonymizer::new(Detector::new()).with_key(&key);
    let text = "é ada@example.org, then 192.168.1.77, then ada@example.org and bob@example.org";
    let hidden = anonymizer.text(text);
    assert!(!hidden.contains("example") && !hidden.contains("192"), "{hidden}");
    let parts: Vec<_> = hidden.split([' ', ',']).filter(|part| part.starts_with('[')).collect();
    assert_eq!(parts.len(), 4);
    assert_eq!(parts[0], parts[2]);
    assert_ne!(parts[0], parts[3]);
    assert_eq!(anonymizer.text(text), hidden);
    assert_eq!(anonymizer.text(&hidden), hidden, "once is enough");
    assert_eq!(Anonymizer::new(Detector::new()).with_key(&key).restore(&hidden), text);
    let other = Anonymizer::new(Detector::new()).with_key(&MasterKey::generate().unwrap());
    assert_eq!(other.restore(&hidden), hidden);
    let forged = hidden.replace("[email~", "[phone~");
    assert!(!anonymizer.restore(&forged).contains("ada@"), "a pseudonym keeps its kind");
}

/// A model that remembers what it was asked and repeats it.
#[derive(Default)]
struct Echo(Mutex<String>);

#[async_trait]
impl ChatModel for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    async fn chat(&self, request: &ChatRequest, _: &CallContext) -> Result<ChatResponse, Error> {
        let asked = serde_json::to_string(&request.messages).unwrap();
        let said = request.messages.last().unwrap().text();
        *self.0.lock().unwrap() = asked;
        Ok(ChatResponse::text("echo", said))
    }
}

#[tokio::test]
async fn a_model_sees_pseudonyms_and_the_caller_does_not() {
    let echo = std::sync::Arc::new(Echo::default());
    let anonymizer = Anonymizer::new(Detector::new()).with_key(&MasterKey::generate().unwrap());
    let model = PrivateModel::new(echo.clone(), anonymizer);
    let request = ChatRequest::user("Write to ada@example.org");
    let cx = CallContext::new(Caller::agent("a"));
    let response = model.chat(&request, &cx).await.unwrap();
    let asked = echo.0.lock().unwrap().clone();
    assert!(asked.contains("[email~") && !asked.contains("ada@"), "{asked}");
    assert_eq!(response.message.text(), "Write to ada@example.org");
}

#[tokio::test]
async fn an_export_can_go_out_without_personal_data() {
    let journal = std::sync::Arc::new(MemoryJournal::new());
    let projects = Projects::new(journal.clone());
    let draft = ProjectDraft { description: Some("for ada@example.org".into()), ..Default::default() };
    projects.create("reef", draft).await.unwrap();
    keep(&journal, "run", &team_run("reef", "call +49 30 12345678", json!({}))).await;
    let archive = projects.export("reef").await.unwrap();
    let private = archive.anonymized(&Anonymizer::new(Detector::new())).unwrap();
    let text = private.to_json().unwrap();
    assert!(text.contains("[email]") && text.contains("[phone]"));
    assert!(!text.contains("ada@") && !text.contains("12345678"));
    assert!(private.to_html().unwrap().contains("for [email]"));
    assert_eq!(private.journals.len(), archive.journals.len());
}

#[tokio::test]
async fn a_policy_rules_prompts_logs_and_exports_each_by_itself() {
    let key = MasterKey::generate().unwrap();
    let policy = PrivacyPolicy::new(Detector::new())
        .with_key(&key)
        .prompts(Treatment::Pseudonymise)
        .logs(Treatment::Remove)
        .exports(Treatment::Keep);
    let echo = std::sync::Arc::new(Echo::default());
    let cx = CallContext::new(Caller::agent("a"));
    let request = ChatRequest::user("Write to ada@example.org");
    policy.model(echo.clone()).chat(&request, &cx).await.unwrap();
    assert!(echo.0.lock().unwrap().contains("[email~"));
    policy.clone().prompts(Treatment::Keep).model(echo.clone()).chat(&request, &cx).await.unwrap();
    assert!(echo.0.lock().unwrap().contains("ada@example.org"));

    let journal = std::sync::Arc::new(MemoryJournal::new());
    let projects = Projects::new(journal.clone());
    projects.create("reef", Default::default()).await.unwrap();
    keep(&journal, "run", &team_run("reef", "call +49 30 12345678", json!({}))).await;
    let archive = projects.export("reef").await.unwrap();
    assert_eq!(policy.archive(&archive).unwrap(), archive);
    let removed = policy.clone().exports(Treatment::Remove).archive(&archive).unwrap().to_json().unwrap();
    assert!(removed.contains("[phone]") && !removed.contains("12345678"));
    let without_phones = PrivacyPolicy::new(Detector::new().without(PiiKind::Phone));
    assert_eq!(without_phones.archive(&archive).unwrap(), archive);
}

/// A log that several writers write to.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_log_holds_no_personal_data_however_it_comes_in() {
    let policy = PrivacyPolicy::new(Detector::new());
    let log = Log::default();
    let to = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || policy.writer(to.clone())).finish();
    tracing::subscriber::with_default(subscriber, || {
        let span = tracing::info_span!("call", caller = "+49 30 12345678");
        let _in = span.enter();
        tracing::info!(to = "ada@example.org", card = %"4111 1111 1111 1111", "sent from 192.168.1.77");
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for kind in ["[email]", "[card]", "[ip]", "[phone]"] {
        assert!(text.contains(kind), "{text}");
    }
    for secret in ["ada@", "4111", "192.168", "12345678"] {
        assert!(!text.contains(secret), "{text}");
    }

    use std::io::Write;
    let pieces = Log::default();
    let mut writer = PrivacyPolicy::new(Detector::new()).writer(pieces.clone());
    for piece in ["one ada@exa", "mple.org\ntwo bob@", "example.org"] {
        writer.write_all(piece.as_bytes()).unwrap();
    }
    assert_eq!(*pieces.0.lock().unwrap(), b"one [email]\n");
    drop(writer);
    assert_eq!(*pieces.0.lock().unwrap(), b"one [email]\ntwo [email]");
}
