//! Spans by the OpenTelemetry conventions for generative AI.

use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Effort, Error, ErrorKind, StopReason, Usd,
};
use serde_json::Value;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

#[cfg(feature = "otel")]
use crate::metrics::{Metrics, Pieces};
use crate::pool::Probe;

/// A model whose every call is a `tracing` span with the attribute names of the OpenTelemetry conventions for generative
/// AI (repository `semantic-conventions-genai`, as of November 2026, in development there).
///
/// `tracing-opentelemetry` turns the spans into traces. What was said is in no span, only how much and how it ended: a
/// prompt may hold anything. What a call cost is in `coral.cost.usd`, for which the conventions have no name.
///
/// ```
/// use coral_llm::{OfflineModel, Traced};
///
/// let model = Traced::new(OfflineModel::new());
/// ```
///
/// # What to listen to
/// All spans have the target `coral_llm` and the level `INFO`: `RUST_LOG=coral_llm=info` shows them with
/// `tracing-subscriber`'s filter, `coral_llm=off` silences them, and `coral_llm=info,hyper_util=debug` adds what
/// happens to connections. Nothing in them holds a key, a prompt or an answer.
///
/// # Metrics
/// With the crate's feature `otel`, `Traced::with_meter` counts calls by the same conventions.
pub struct Traced<M> {
    model: M,
    #[cfg(feature = "otel")]
    metrics: Option<Arc<Metrics>>,
}

impl<M: ChatModel> Traced<M> {
    /// Makes each call of `model` a span.
    pub fn new(model: M) -> Self {
        Traced {
            model,
            #[cfg(feature = "otel")]
            metrics: None,
        }
    }

    /// Counts and times the calls by `meter` as well.
    ///
    /// The instruments are those of the conventions: histograms `gen_ai.client.inference.duration`,
    /// `….time_to_first_chunk`, `….time_per_output_chunk` (seconds), `….operation.input_tokens` and `….output_tokens`,
    /// and counters `….usage.*`. Beside them stand `gen_ai.client.operation.duration` and `gen_ai.client.token.usage`,
    /// their names up to version 1.41, which most dashboards draw, and the counter `coral.cost.usd`.
    #[cfg(feature = "otel")]
    #[must_use]
    pub fn with_meter(mut self, meter: &opentelemetry::metrics::Meter) -> Self {
        self.metrics = Some(Arc::new(Metrics::new(meter)));
        self
    }

    /// The provider in the conventions' words, and the model that is asked.
    fn asked<'a>(&'a self, request: &'a ChatRequest) -> (&'a str, &'a str) {
        let name = self.model.name();
        let (provider, own) = name.split_once('/').unwrap_or((name, name));
        (provider_name(provider), request.model.as_deref().unwrap_or(own))
    }

    /// What times the pieces of an answer, if somebody counts.
    #[cfg(feature = "otel")]
    fn pieces(&self, request: &ChatRequest, began: Instant) -> Option<Pieces> {
        let (provider, model) = self.asked(request);
        self.metrics.clone().map(|metrics| Pieces::new(metrics, Metrics::labels(provider, model), began))
    }

    #[cfg(feature = "otel")]
    fn measure(&self, request: &ChatRequest, began: Instant, outcome: &Result<ChatResponse, Error>) {
        let Some(metrics) = &self.metrics else { return };
        let (provider, model) = self.asked(request);
        let labels = Metrics::labels(provider, model);
        match outcome {
            Ok(response) => metrics.answered(labels, began.elapsed(), response),
            Err(error) => metrics.failed(labels, began.elapsed(), error_type(error)),
        }
    }

    fn span(&self, request: &ChatRequest, cx: &CallContext) -> Span {
        let (provider, model) = self.asked(request);
        let caller = cx.caller();
        let span = tracing::info_span!(
            target: "coral_llm",
            "chat",
            otel.name = format!("chat {model}"),
            otel.kind = if self.model.info().offline { "internal" } else { "client" },
            gen_ai.operation.name = "chat",
            gen_ai.provider.name = provider,
            gen_ai.request.model = model,
            gen_ai.request.stream = cx.streams(),
            gen_ai.request.max_tokens = request.max_output_tokens,
            gen_ai.request.temperature = request.temperature.map(f64::from),
            gen_ai.request.reasoning.level = request.effort.map(effort_name),
            gen_ai.output.r#type = if request.output.is_some() { "json" } else { "text" },
            gen_ai.conversation.id = Empty,
            gen_ai.agent.name = Empty,
            gen_ai.response.id = Empty,
            gen_ai.response.model = Empty,
            gen_ai.response.finish_reasons = Empty,
            gen_ai.response.time_to_first_chunk = Empty,
            gen_ai.usage.input_tokens = Empty,
            gen_ai.usage.output_tokens = Empty,
            gen_ai.usage.cache_read.input_tokens = Empty,
            gen_ai.usage.cache_write.input_tokens = Empty,
            gen_ai.usage.reasoning.output_tokens = Empty,
            server.address = Empty,
            server.port = Empty,
            coral.step.path = Empty,
            coral.cost.usd = Empty,
            error.r#type = Empty,
            otel.status_code = Empty,
        );
        for (field, value) in [
            ("gen_ai.conversation.id", &caller.run),
            ("gen_ai.agent.name", &caller.agent),
            ("coral.step.path", &caller.path),
        ] {
            if !value.is_empty() {
                span.record(field, &**value);
            }
        }
        span
    }
}

#[async_trait]
impl<M: ChatModel> ChatModel for Traced<M> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.model)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let span = self.span(request, cx);
        let began = Instant::now();
        let first = Arc::new(OnceLock::new());
        let outcome = if cx.streams() {
            let (listener, first) = (cx.clone(), first.clone());
            #[cfg(feature = "otel")]
            let pieces = self.pieces(request, began);
            let cx = cx.clone().on_delta(move |delta| {
                first.get_or_init(Instant::now);
                #[cfg(feature = "otel")]
                if let Some(pieces) = &pieces {
                    pieces.came();
                }
                listener.emit(delta);
            });
            self.model.chat(request, &cx).instrument(span.clone()).await
        } else {
            self.model.chat(request, cx).instrument(span.clone()).await
        };
        if let Some(first) = first.get() {
            span.record("gen_ai.response.time_to_first_chunk", (*first - began).as_secs_f64());
        }
        #[cfg(feature = "otel")]
        self.measure(request, began, &outcome);
        match &outcome {
            Ok(response) => record(&span, response),
            Err(error) => {
                span.record("error.type", error_type(error).as_str());
                span.record("otel.status_code", "ERROR");
            }
        }
        outcome
    }
}

fn record(span: &Span, response: &ChatResponse) {
    let usage = response.usage;
    if let Some(id) = &response.id {
        span.record("gen_ai.response.id", id.as_str());
    }
    span.record("gen_ai.response.model", response.model.as_str());
    // A list by the conventions, which spans of `tracing` have no form for but text.
    let reasons = serde_json::json!([finish_reason(&response.stop)]).to_string();
    span.record("gen_ai.response.finish_reasons", reasons.as_str());
    span.record("gen_ai.usage.input_tokens", usage.input_tokens);
    span.record("gen_ai.usage.output_tokens", usage.output_tokens);
    for (field, tokens) in [
        ("gen_ai.usage.cache_read.input_tokens", usage.cache_read_tokens),
        ("gen_ai.usage.cache_write.input_tokens", usage.cache_write_tokens),
        ("gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens),
    ] {
        if tokens > 0 {
            span.record(field, tokens);
        }
    }
    if let Some(cost) = response.cost {
        span.record("coral.cost.usd", Usd::as_dollars(cost));
    }
}

/// The conventions' name for a provider.
fn provider_name(provider: &str) -> &str {
    match provider {
        "gemini" => "gcp.gemini",
        "mistral" => "mistral_ai",
        "xai" => "x_ai",
        "openai_responses" => "openai",
        other => other,
    }
}

fn effort_name(effort: Effort) -> &'static str {
    match effort {
        Effort::Minimal => "minimal",
        Effort::Low => "low",
        Effort::High => "high",
        Effort::ExtraHigh => "xhigh",
        Effort::Max => "max",
        _ => "medium",
    }
}

fn finish_reason(stop: &StopReason) -> &str {
    match stop {
        StopReason::End | StopReason::StopText => "stop",
        StopReason::ToolCalls => "tool_calls",
        StopReason::MaxTokens => "length",
        StopReason::Refusal => "refusal",
        StopReason::ContentFilter => "content_filter",
        StopReason::Pause => "pause",
        StopReason::Other(other) => other,
        _ => "unknown",
    }
}

/// The fault in the words of the error's data form, or the error's code.
fn error_type(error: &Error) -> String {
    let fault = match error.kind() {
        ErrorKind::Model { fault, .. } => serde_json::to_value(fault).ok(),
        _ => None,
    };
    match fault {
        Some(Value::String(fault)) => fault,
        _ => error.code().to_owned(),
    }
}

#[async_trait]
impl<M: Probe> Probe for Traced<M> {
    async fn probe(&self) -> Result<(), Error> {
        self.model.probe().await
    }
}

impl<M: ChatModel> fmt::Debug for Traced<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traced").field("model", &self.model.name()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use coral_core::{Caller, ModelFault, Usage};
    use tracing::field::{Field, Visit};
    use tracing::span;
    use tracing::{Event, Metadata, Subscriber};

    use super::*;
    use crate::scripted::{Reply, ScriptedModel};

    /// Keeps the fields of all spans.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<BTreeMap<String, String>>>);

    impl Visit for Seen {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0
                .lock()
                .unwrap()
                .insert(field.name().to_owned(), format!("{value:?}").trim_matches('"').to_owned());
        }
    }

    impl Subscriber for Seen {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.is_span()
        }

        fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
            attributes.record(&mut self.clone());
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, values: &span::Record<'_>) {
            values.record(&mut self.clone());
        }

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &Event<'_>) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    async fn fields(reply: impl Into<Reply>) -> BTreeMap<String, String> {
        let seen = Seen::default();
        let _guard = tracing::subscriber::set_default(seen.clone());
        let model = Traced::new(ScriptedModel::new().named("gemini/some-model").reply(reply));
        let caller = Caller { run: "run-1".into(), path: "build".into(), ..Caller::agent("writer") };
        let cx = CallContext::new(caller).on_delta(|_| {});
        let mut request = ChatRequest::user("a secret");
        request.max_output_tokens = Some(100);
        let _ = model.chat(&request, &cx).await;
        std::mem::take(&mut *seen.0.lock().unwrap())
    }

    #[tokio::test]
    async fn a_call_is_a_span_by_the_conventions() {
        let usage = Usage { input_tokens: 9, output_tokens: 4, cache_read_tokens: 5, ..Default::default() };
        let fields = fields(Reply::text("a secret").full_usage(usage).cost(Usd::from_dollars(0.25))).await;
        for (field, expected) in [
            ("otel.name", "chat some-model"),
            ("otel.kind", "client"),
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "gcp.gemini"),
            ("gen_ai.request.model", "some-model"),
            ("gen_ai.request.max_tokens", "100"),
            ("gen_ai.request.stream", "true"),
            ("gen_ai.output.type", "text"),
            ("gen_ai.conversation.id", "run-1"),
            ("gen_ai.agent.name", "writer"),
            ("gen_ai.response.model", "gemini/some-model"),
            ("gen_ai.response.finish_reasons", r#"[\"stop\"]"#),
            ("gen_ai.usage.input_tokens", "9"),
            ("gen_ai.usage.output_tokens", "4"),
            ("gen_ai.usage.cache_read.input_tokens", "5"),
            ("coral.step.path", "build"),
            ("coral.cost.usd", "0.25"),
        ] {
            assert_eq!(fields.get(field).map(String::as_str), Some(expected), "{field} in {fields:#?}");
        }
        assert!(fields.contains_key("gen_ai.response.time_to_first_chunk"), "{fields:#?}");
        assert!(
            !fields.contains_key("gen_ai.usage.reasoning.output_tokens")
                && !fields.contains_key("error.type")
        );
        assert!(!fields.values().any(|value| value.contains("secret")), "{fields:#?}");
    }

    #[tokio::test]
    async fn a_failure_names_its_fault() {
        let kind =
            ErrorKind::Model { fault: ModelFault::RateLimited, model: "m".into(), problem: "x".into() };
        let fields = fields(Error::new(kind)).await;
        assert_eq!(fields["error.type"], "rate_limited");
        assert_eq!(fields["otel.status_code"], "ERROR");
    }
}
