//! A key is shown by nothing: no `Debug`, error, log line or journal. (Cassettes: see there.)

use std::fmt;
use std::sync::{Arc, Mutex};

use coral_core::{
    AgentSpec, Brief, CallContext, ChatModel, ChatRequest, GraphData, Program, PromptAgent, PromptTemplate,
    Runner, StepData, StepKind, Team,
};
use coral_llm::{Provider, Traced};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

use crate::server::{Answer, Server};
use crate::wire_faults::VENDORS;

const KEY: &str = "sk-secret-of-the-test";
const HEADER: &str = "secret-in-a-header";

fn provider(vendor: &str, url: &str) -> Provider {
    let builder =
        Provider::vendor(vendor).unwrap().base_url(url).key(KEY).header("x-extra", HEADER).model("m");
    assert_clean(&format!("{builder:?}"));
    builder.build().unwrap()
}

/// A provider that repeats what it was sent.
async fn indiscreet() -> Server {
    let body = json!({"error": {"type": "authentication_error", "message": format!("key {KEY} and {HEADER} are wrong")}});
    Server::start(std::iter::repeat_n(Answer::error("401 Unauthorized", &body), 5)).await
}

#[track_caller]
fn assert_clean(text: &str) {
    assert!(!text.contains(KEY) && !text.contains(HEADER), "{text}");
}

/// Keeps all that is logged, by whatever crate, at any level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.lock().unwrap().push_str(&format!("{field}={value:?}\n"));
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        attributes.record(&mut self.clone());
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut self.clone());
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn neither_debug_nor_errors_nor_logs_show_a_key() {
    for vendor in VENDORS {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.clone());
        let server = indiscreet().await;
        let provider = provider(vendor, &server.url);
        assert_clean(&format!("{provider:?}"));
        let model = Traced::new(provider);
        let error = model.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap_err();
        assert!(error.to_string().contains("key [secret] and [secret] are wrong"), "{error}");
        assert_clean(&format!("{error:?} {error:#?} {}", serde_json::to_string(&error).unwrap()));
        let log = log.0.lock().unwrap();
        assert!(log.contains("authentication"), "{vendor}: nothing was logged: {log}");
        assert_clean(&log);
    }
}

#[tokio::test]
async fn no_journal_shows_a_key() {
    let server = indiscreet().await;
    let prompt = PromptTemplate {
        system_instructions: "Be brief.".into(),
        task_template: "Go.".into(),
        ..Default::default()
    };
    let agent = PromptAgent::new(AgentSpec { prompt, ..AgentSpec::new("writer", "Writer") }).unwrap();
    let graph = GraphData {
        name: "secrets".into(),
        steps: vec![StepData::new("write", StepKind::Agent("writer".into()))],
        ..Default::default()
    };
    let program = Program::from_graph(graph, &Team::new().with_agent(agent)).unwrap();
    let runner = Runner::builder().model(provider("openai", &server.url)).build();
    let brief = Brief { project: "demo".into(), text: "write".into(), ..Default::default() };
    let run = runner.start(&program, brief).await.unwrap();
    let id = run.id().to_owned();
    let error = run.output().await.unwrap_err();
    assert_clean(&error.to_string());
    let records = runner.journal().read(&id, 1, usize::MAX).await.unwrap();
    let text = serde_json::to_string(&records).unwrap();
    assert!(text.contains("[secret]"), "the failure is not in the journal: {text}");
    assert_clean(&text);
}

#[test]
fn a_base_url_with_a_secret_in_it_is_refused_without_showing_it() {
    for url in [format!("https://user:{KEY}@host/v1"), format!("https://host/v1?key={KEY}")] {
        let error = Provider::openai_compatible(url).model("m").build().unwrap_err();
        assert_clean(&error.to_string());
        assert!(error.to_string().contains("a user, a password or a query"), "{error}");
    }
}
