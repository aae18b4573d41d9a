//! Metrics by the OpenTelemetry conventions for generative AI.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coral_core::{ChatResponse, Usd};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use tokio::time::Instant;

/// The conventions' bounds for times, in seconds.
const SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// The conventions' bounds for tokens.
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// The instruments of one meter.
pub(crate) struct Metrics {
    duration: Histogram<f64>,
    first_chunk: Histogram<f64>,
    per_chunk: Histogram<f64>,
    /// Input and output tokens of one call.
    tokens: [Histogram<u64>; 2],
    /// All tokens by kind: input, output, read from a cache, written to one, reasoning.
    used: [Counter<u64>; 5],
    cost: Counter<f64>,
    /// What the conventions said up to version 1.41, and what most dashboards still draw.
    old_duration: Histogram<f64>,
    old_tokens: Histogram<u64>,
}

impl Metrics {
    pub(crate) fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, description: &'static str| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_boundaries(SECONDS.to_vec());
            histogram.with_description(description).build()
        };
        let tokens = |name: &'static str, description: &'static str| {
            let histogram = meter.u64_histogram(name).with_unit("{token}").with_boundaries(TOKENS.to_vec());
            histogram.with_description(description).build()
        };
        let used = |name: &'static str| meter.u64_counter(name).with_unit("{token}").build();
        Metrics {
            duration: seconds("gen_ai.client.inference.duration", "how long a call of a model took"),
            first_chunk: seconds(
                "gen_ai.client.inference.time_to_first_chunk",
                "how long the first piece of an answer took",
            ),
            per_chunk: seconds(
                "gen_ai.client.inference.time_per_output_chunk",
                "how long each further piece of an answer took",
            ),
            tokens: [
                tokens("gen_ai.client.inference.operation.input_tokens", "input tokens of a call"),
                tokens("gen_ai.client.inference.operation.output_tokens", "output tokens of a call"),
            ],
            used: [
                used("gen_ai.client.inference.usage.input_tokens"),
                used("gen_ai.client.inference.usage.output_tokens"),
                used("gen_ai.client.inference.usage.cache_read.input_tokens"),
                used("gen_ai.client.inference.usage.cache_write.input_tokens"),
                used("gen_ai.client.inference.usage.reasoning.output_tokens"),
            ],
            cost: meter
                .f64_counter("coral.cost.usd")
                .with_unit("USD")
                .with_description("what calls of models cost, where the price is known")
                .build(),
            old_duration: seconds("gen_ai.client.operation.duration", "how long a call of a model took"),
            old_tokens: tokens("gen_ai.client.token.usage", "input and output tokens of a call"),
        }
    }

    /// What is true of a call before its answer is there.
    pub(crate) fn labels(provider: &str, model: &str) -> Vec<KeyValue> {
        vec![
            KeyValue::new("gen_ai.operation.name", "chat"),
            KeyValue::new("gen_ai.provider.name", provider.to_owned()),
            KeyValue::new("gen_ai.request.model", model.to_owned()),
        ]
    }

    pub(crate) fn answered(&self, mut labels: Vec<KeyValue>, took: Duration, response: &ChatResponse) {
        labels.push(KeyValue::new("gen_ai.response.model", response.model.clone()));
        self.took(took, &labels);
        let usage = response.usage;
        let (input, output) = (usage.input_tokens, usage.output_tokens);
        for (histogram, tokens) in self.tokens.iter().zip([input, output]) {
            histogram.record(tokens, &labels);
        }
        let all = [input, output, usage.cache_read_tokens, usage.cache_write_tokens, usage.reasoning_tokens];
        for (counter, tokens) in self.used.iter().zip(all).filter(|(_, tokens)| *tokens > 0) {
            counter.add(tokens, &labels);
        }
        if let Some(cost) = response.cost {
            self.cost.add(Usd::as_dollars(cost), &labels);
        }
        for (kind, tokens) in [("input", input), ("output", output)] {
            let mut labels = labels.clone();
            labels.push(KeyValue::new("gen_ai.token.type", kind));
            self.old_tokens.record(tokens, &labels);
        }
    }

    pub(crate) fn failed(&self, mut labels: Vec<KeyValue>, took: Duration, error: String) {
        labels.push(KeyValue::new("error.type", error));
        self.took(took, &labels);
    }

    fn took(&self, took: Duration, labels: &[KeyValue]) {
        self.duration.record(took.as_secs_f64(), labels);
        self.old_duration.record(took.as_secs_f64(), labels);
    }
}

/// Times the pieces of one answer.
pub(crate) struct Pieces {
    metrics: Arc<Metrics>,
    labels: Vec<KeyValue>,
    /// When the call began or the last piece came, and whether one came.
    last: Mutex<(Instant, bool)>,
}

impl Pieces {
    pub(crate) fn new(metrics: Arc<Metrics>, labels: Vec<KeyValue>, began: Instant) -> Self {
        Pieces { metrics, labels, last: Mutex::new((began, false)) }
    }

    pub(crate) fn came(&self) {
        let now = Instant::now();
        let (last, had_one) =
            std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), (now, true));
        let histogram = if had_one { &self.metrics.per_chunk } else { &self.metrics.first_chunk };
        histogram.record((now - last).as_secs_f64(), &self.labels);
    }
}
