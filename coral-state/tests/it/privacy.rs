//! Personal data: found, replaced, turned back, and kept from models and exports.

use std::sync::Mutex;

use async_trait::async_trait;
use coral_core::{
    Blobs, CallContext, Caller, ChatModel, ChatRequest, ChatResponse, Error, Event, Journal, MemoryJournal,
    Message, Outcome, Part, Payload, Role, Spent, ToolCall, Usd,
};
use coral_state::{
    Anonymizer, Detector, MasterKey, PiiFinding, PiiKind, PrivacyPolicy, PrivateModel, ProjectDraft,
    Projects, SqliteStore, Subject, Treatment,
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
        ("pays by 4111 1111 1111 1111 12/27", vec!["card:4111 1111 1111 1111"]),
        ("pays by 4242 4242 4242 4242 123", vec!["card:4242 4242 4242 4242"]),
        ("order 12 4111 1111 1111 1111", vec!["card:4111 1111 1111 1111"]),
        ("order 12 4111111111111111 12", vec!["card:4111111111111111"]),
        // Its first twelve digits are an Aadhaar number too.
        ("card 5105 1051 0510 5100", vec!["card:5105 1051 0510 5100"]),
        ("3782 822463 10005 expires 2027", vec!["card:3782 822463 10005"]),
        ("AB12 GB82 WEST 1234 5698 7654 32", vec!["iban:GB82 WEST 1234 5698 7654 32"]),
        ("::ffff:192.168.1.77 and x:80:192.168.1.78", vec!["ip:::ffff:192.168.1.77", "ip:192.168.1.78"]),
        (
            "555.123.4567, 555 123 4567, 030 12345678 or 0171/1234567",
            vec!["phone:555.123.4567", "phone:555 123 4567", "phone:030 12345678", "phone:0171/1234567"],
        ),
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
        "scores 10 20 30 40 50 60 71, 3 1 4 1 5 9 2 6 5 3 5 8 9 7",
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
    assert!(!hidden.contains("example") && !hidden.contains("192."), "{hidden}");
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

#[test]
fn findings_that_overlap_are_one_and_others_can_be_added() {
    let detector = Detector::new().with_names(["Ada"]).unwrap().with_finder(|text| {
        let hits = text.match_indices("patient ");
        hits.map(|(at, word)| PiiFinding::new(PiiKind::Other, at..at + word.len() + 3)).collect()
    });
    let text = "patient Ada, ada@example.org, patient 042";
    let found: Vec<_> = detector.find(text).into_iter().map(|hit| (hit.kind, &text[hit.range])).collect();
    let expected = [
        (PiiKind::Other, "patient Ada"),
        (PiiKind::Email, "ada@example.org"),
        (PiiKind::Other, "patient 042"),
    ];
    assert_eq!(found, expected);
    assert_eq!(Anonymizer::new(detector).text(text), "[other], [email], [other]");
}

#[test]
fn numbers_and_keys_of_json_are_texts_too() {
    let anonymizer = Anonymizer::new(Detector::new());
    let value = json!({
        "card": 4_111_111_111_111_111u64,
        "seq": 4_096,
        "share": 0.411_111_111_111_111_1,
        "by": {"ada@example.org": 1, "bob@example.org": 2},
    });
    let expected = json!({
        "card": "[card]",
        "seq": 4_096,
        "share": 0.411_111_111_111_111_1,
        "by": {"[email]": 1, "[email] (2)": 2},
    });
    assert_eq!(anonymizer.value(value), expected);
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
async fn a_model_sees_no_personal_data_wherever_a_request_has_it() {
    let echo = std::sync::Arc::new(Echo::default());
    let model = PrivateModel::new(echo.clone(), Anonymizer::new(Detector::new()));
    let call = ToolCall {
        id: "call-1".into(),
        name: "pay".into(),
        arguments: json!({"card": 4_111_111_111_111_111u64, "ada@example.org": true}),
    };
    let image = Part::Image { media_type: "image/png".into(), data: "4111111111111111".into() };
    let signed = Part::Thinking { text: "so".into(), signature: Some("4111111111111111".into()) };
    let opaque = Part::Opaque { provider: "some".into(), item: json!({"id": "4111111111111111"}) };
    let untouched = [image, signed, opaque];
    let mut request = ChatRequest::user("write to ada@example.org");
    let mut parts = vec![
        Part::ToolCall(call),
        Part::ToolResult {
            call_id: "call-1".into(),
            name: "pay".into(),
            content: "ada@example.org paid".into(),
            is_error: false,
        },
    ];
    parts.extend(untouched.iter().cloned());
    request.messages.push(Message { role: Role::Assistant, parts, cache: false });
    let cx = CallContext::new(Caller::agent("a"));
    model.chat(&request, &cx).await.unwrap();
    let asked: Vec<Message> = serde_json::from_str(&echo.0.lock().unwrap()).unwrap();
    assert_eq!(asked[1].parts[2..], untouched);
    let seen = serde_json::to_string(&asked[1].parts[..2]).unwrap();
    assert!(!seen.contains("4111") && !seen.contains("ada@"), "{seen}");
    assert!(seen.contains("[card]") && seen.contains("[email]") && seen.contains("call-1"), "{seen}");
}

#[tokio::test]
async fn what_holds_personal_data_as_numbers_and_keys_goes_out_and_away_like_texts() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("coral.db")).unwrap();
    let projects = Projects::new(store.journal());
    projects.create("reef", Default::default()).await.unwrap();
    let mut records = team_run("reef", "a reef", json!({"ada@example.org": true}));
    let card = 4_111_111_111_111_111u64;
    records[3].event = Event::StepSucceeded {
        path: "design".into(),
        attempt: 1,
        output: Payload::from_json(json!({"card": card, "ada@example.org": ["paid"]})),
    };
    // A number of the format that looks like one of a person.
    records[9].event = Event::EffectDone {
        path: "api".into(),
        attempt: 2,
        index: 0,
        outcome: Outcome::Ok(Payload::null()),
        spent: Box::new(Spent { cost: Some(Usd::from_pico(card)), ..Spent::default() }),
    };
    keep(&store.journal(), "run", &records).await;
    let archive = projects.export("reef").await.unwrap();
    let private = archive.anonymized(&Anonymizer::new(Detector::new())).unwrap();
    let text = serde_json::to_string(&private.journals[1].records[3]).unwrap();
    assert!(text.contains("[card]") && text.contains("[email]") && !text.contains("4111"), "{text}");
    assert!(!private.to_json().unwrap().contains("ada@"));
    assert_eq!(private.journals[1].records[9], records[9], "what was spent stays");

    let subject = Subject::known_by(["ada@example.org", "4111111111111111"]).unwrap();
    let found: Vec<_> = subject.export(&store.journal()).await.unwrap().records;
    assert_eq!(found.iter().map(|found| found.record.seq).collect::<Vec<_>>(), [1, 4]);
    let erasure = store.erase_subject(&subject).await.unwrap();
    assert_eq!(erasure.rewritten, ["run"]);
    assert!(subject.export(&store.journal()).await.unwrap().records.is_empty());
    let kept = store.journal().read("run", 4, 1).await.unwrap();
    let text = serde_json::to_string(&kept).unwrap();
    assert!(text.contains("[erased]") && !text.contains("4111") && !text.contains("ada@"), "{text}");
}

#[tokio::test]
async fn names_that_a_person_has_stay_and_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("coral.db")).unwrap();
    let projects = Projects::new(store.journal());
    projects.create("ada-lovelace", Default::default()).await.unwrap();
    keep(&store.journal(), "run", &team_run("ada-lovelace", "for ada-lovelace", json!({}))).await;
    keep(&store.journal(), "of-ada-lovelace", &team_run("reef", "a reef", json!({}))).await;
    let blob = store.blobs_of("reef").put(b"about ada-lovelace").await.unwrap();
    let subject = Subject::known_by(["ada-lovelace"]).unwrap();
    let named = ["of-ada-lovelace", "project:ada-lovelace", "run"];
    let export = store.export_subject(&subject).await.unwrap();
    assert_eq!(export.named, named);
    let [kept] = &export.blobs[..] else { panic!("{export:?}") };
    assert_eq!((&*kept.project, &kept.blob, &*kept.text), ("reef", &blob, "about ada-lovelace"));
    let erasure = store.erase_subject(&subject).await.unwrap();
    assert_eq!(erasure.named, named);
    let head = store.journal().head("run").await.unwrap().unwrap();
    assert_eq!(head.project, "ada-lovelace");
    assert!(head.revision > 0);
    let archive = projects.export("ada-lovelace").await.unwrap();
    assert!(!archive.journals[1].records.is_empty());
    let text = serde_json::to_string(&archive.journals[1].records[0]).unwrap();
    assert!(text.contains("for [erased]"), "{text}");
    let elsewhere = Projects::new(MemoryJournal::new());
    assert_eq!(elsewhere.import(&archive).await.unwrap().new, 2, "head and records agree");
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
