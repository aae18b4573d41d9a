//! Traces and metrics of model calls, sent to an OpenTelemetry collector over OTLP (HTTP, protobuf).
//!
//! ```text
//! OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 cargo run --example otlp
//! ```
//! The SDK's other `OTEL_…` variables count too. The variables of `coral_llm::from_env` choose the model: without any the
//! offline model answers. Without an endpoint nothing is sent.

use std::error::Error;
use std::process::ExitCode;

use coral_core::{CallContext, Caller, ChatModel, ChatRequest};
use coral_llm::Traced;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Where spans and metrics go.
struct Telemetry {
    traces: SdkTracerProvider,
    metrics: SdkMeterProvider,
}

impl Telemetry {
    /// Sends to the collector at `endpoint`, if there is one.
    fn start(endpoint: Option<&str>) -> Outcome<Telemetry> {
        let resource = Resource::builder().with_service_name("coral-example").build();
        let (mut traces, mut metrics) = (SdkTracerProvider::builder(), SdkMeterProvider::builder());
        if let Some(endpoint) = endpoint {
            // All HTTP clients of a program share rustls, and it leaves the cryptography to the program.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let of = |signal: &str| format!("{}/v1/{signal}", endpoint.trim_end_matches('/'));
            let spans = SpanExporter::builder().with_http().with_endpoint(of("traces")).build()?;
            traces = traces.with_batch_exporter(spans);
            let figures = MetricExporter::builder().with_http().with_endpoint(of("metrics")).build()?;
            metrics = metrics.with_periodic_exporter(figures);
        }
        Ok(Telemetry {
            traces: traces.with_resource(resource.clone()).build(),
            metrics: metrics.with_resource(resource).build(),
        })
    }

    /// Sends what is left.
    fn end(self) -> Outcome {
        self.traces.shutdown()?;
        self.metrics.shutdown()?;
        Ok(())
    }
}

fn main() -> ExitCode {
    let endpoint = std::env::var(ENDPOINT).ok();
    if endpoint.is_none() {
        eprintln!("nothing is sent: say where your collector is in {ENDPOINT}");
    }
    let outcome = coral_llm::from_env().map_err(Into::into).and_then(|model| run(model, endpoint.as_deref()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(model: impl ChatModel, endpoint: Option<&str>) -> Outcome {
    let telemetry = Telemetry::start(endpoint)?;
    let spans = tracing_opentelemetry::layer().with_tracer(telemetry.traces.tracer("coral"));
    let subscriber = tracing_subscriber::registry().with(spans);
    let model = Traced::new(model).with_meter(&telemetry.metrics.meter("coral"));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cx = CallContext::new(Caller::agent("example")).on_delta(|_| {});
    let request = ChatRequest::new("Be brief.", "Name three corals.");
    let answer =
        tracing::subscriber::with_default(subscriber, || runtime.block_on(model.chat(&request, &cx)));
    telemetry.end()?;
    let answer = answer?;
    println!("{} said {} tokens", answer.model, answer.usage.output_tokens);
    Ok(())
}

#[cfg(test)]
#[allow(dead_code, reason = "not every test that shares this file needs all of it")]
#[path = "../../coral-llm/tests/peers/peer.rs"]
mod peer;

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use coral_core::{ErrorKind, ModelFault, Usage, Usd};
    use coral_llm::{Reply, ScriptedModel};
    use serde_json::Value;

    use super::*;

    /// What a collector got, as it prints it: a span or a metric a line.
    fn collector() -> (String, peer::Peer, Receiver<Value>) {
        let python = peer::INSTALLED.join("oteltap/bin/python");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (sink, items) = channel();
        let mut command = Command::new(python);
        command.args(["-u", "-m", "oteltap", "--port", &port.to_string()]);
        let peer = peer::Peer::listening(&mut command, "Listening", move |line| {
            let _ = serde_json::from_str(&line).map(|item| sink.send(item));
        });
        (format!("http://127.0.0.1:{port}"), peer, items)
    }

    /// The next of `items` that is called `name`.
    fn find(items: &Receiver<Value>, name: &str) -> Value {
        loop {
            let item =
                items.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|_| panic!("no `{name}` came"));
            if item["name"] == name {
                return item;
            }
        }
    }

    fn attribute<'a>(attributes: &'a Value, key: &str) -> &'a Value {
        let found = attributes.as_array().unwrap().iter().find(|attribute| attribute["key"] == key);
        let found = found.unwrap_or_else(|| panic!("no `{key}` in {attributes:#}"));
        found["value"].as_object().unwrap().values().next().unwrap()
    }

    #[test]
    fn a_collector_gets_spans_and_metrics() {
        let (url, _peer, items) = collector();
        let usage = Usage { input_tokens: 9, output_tokens: 4, cache_read_tokens: 5, ..Default::default() };
        let reply = Reply::text("a secret").full_usage(usage).cost(Usd::from_dollars(0.25));
        run(ScriptedModel::new().named("gemini/some-model").reply(reply), Some(&url)).unwrap();
        let span = find(&items, "chat some-model");
        for (key, expected) in [
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "gcp.gemini"),
            ("gen_ai.request.model", "some-model"),
            ("gen_ai.usage.input_tokens", "9"),
            ("gen_ai.usage.cache_read.input_tokens", "5"),
            ("gen_ai.agent.name", "example"),
        ] {
            assert_eq!(attribute(&span["attributes"], key), expected, "{key}");
        }
        assert_eq!(span["kind"], 3, "a client's span");
        assert!(!span.to_string().contains("secret"), "{span}");
        let point = |name: &str, kind: &str| find(&items, name)[kind]["dataPoints"][0].clone();
        let duration = point("gen_ai.client.inference.duration", "histogram");
        assert_eq!(
            (&duration["count"], attribute(&duration["attributes"], "gen_ai.request.model")),
            (&"1".into(), &"some-model".into())
        );
        assert_eq!(point("gen_ai.client.inference.usage.cache_read.input_tokens", "sum")["asInt"], 5);
        assert_eq!(point("coral.cost.usd", "sum")["asDouble"], 0.25);
        assert_eq!(point("gen_ai.client.operation.duration", "histogram")["count"], "1");
        let tokens = find(&items, "gen_ai.client.token.usage")["histogram"]["dataPoints"].clone();
        let tokens = tokens.as_array().unwrap().iter();
        let mut tokens: Vec<(String, String)> = tokens
            .map(|point| {
                (attribute(&point["attributes"], "gen_ai.token.type").to_string(), point["sum"].to_string())
            })
            .collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [("\"input\"".into(), "9.0".into()), ("\"output\"".into(), "4.0".into())]);
    }

    #[test]
    fn a_collector_gets_failures() {
        let (url, _peer, items) = collector();
        let kind = ErrorKind::Model {
            fault: ModelFault::RateLimited,
            model: "m".into(),
            problem: "slow down".into(),
        };
        let failing = ScriptedModel::new().named("openai/m").reply(coral_core::Error::new(kind));
        run(failing, Some(&url)).unwrap_err();
        let span = find(&items, "chat m");
        assert_eq!(attribute(&span["attributes"], "error.type"), "rate_limited");
        assert_eq!(span["status"]["code"], 2);
        let duration = find(&items, "gen_ai.client.inference.duration");
        let attributes = &duration["histogram"]["dataPoints"][0]["attributes"];
        assert_eq!(attribute(attributes, "error.type"), "rate_limited");
    }
}
