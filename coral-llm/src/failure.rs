//! What went wrong with one call, before it is known which model was asked.

use coral_core::{Error, ErrorKind, ModelFault};
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::retry_after;

/// How a call failed, in the terms of [`ModelFault`], without the model's name.
///
/// Codecs and transports speak of failures; [`Failure::into_error`] makes the error that callers see.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// How it failed.
    pub fault: ModelFault,
    /// What the other side said, or what was found in place of what was expected.
    pub problem: String,
    /// What to do next, where that is known.
    pub help: Option<String>,
    /// Milliseconds after which the same call may be made again, where the provider said so.
    pub retry_after_ms: Option<u64>,
}

impl Failure {
    /// A failure of kind `fault`.
    pub fn new(fault: ModelFault, problem: impl Into<String>) -> Self {
        Failure { fault, problem: problem.into(), help: None, retry_after_ms: None }
    }

    /// Says what to do next.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The error that a caller of `model` sees.
    pub fn into_error(self, model: &str) -> Error {
        let mut error = Error::new(ErrorKind::Model {
            fault: self.fault,
            model: model.to_owned(),
            problem: one_line(&self.problem),
        });
        if let Some(help) = self.help {
            error = error.with_help(help);
        }
        if let Some(ms) = self.retry_after_ms {
            error = error.with_retry_after_ms(ms);
        }
        error
    }

    /// The failure of an answer of which something had come, or nothing yet.
    ///
    /// What came was heard and is paid for: it is not bought again unasked, whatever ended it. A provider that ended its
    /// answer before it began has failed like one that answers with an error.
    pub(crate) fn in_answer(mut self, has_begun: bool) -> Self {
        self.fault = match (has_begun, self.fault) {
            (true, ModelFault::RateLimited | ModelFault::Overloaded | ModelFault::Provider) => {
                ModelFault::Truncated
            }
            (false, ModelFault::Truncated) => ModelFault::Provider,
            (_, fault) => fault,
        };
        self
    }

    pub(crate) fn malformed(problem: impl Into<String>) -> Self {
        Failure::new(ModelFault::Malformed, problem)
    }

    pub(crate) fn truncated(problem: impl Into<String>) -> Self {
        Failure::new(ModelFault::Truncated, problem)
    }
}

/// Longest text of a provider that an error repeats, in characters.
const MAX_PROBLEM: usize = 600;

fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > MAX_PROBLEM {
            line = line.chars().take(MAX_PROBLEM).collect();
            line.push('…');
            break;
        }
    }
    line
}

/// The parts of an error body that providers agree on, wherever they put them.
#[derive(Debug, Default)]
struct Told {
    /// Machine-readable words: `type`, `code`, `status`, `reason`.
    codes: Vec<String>,
    message: String,
    retry_after_ms: Option<u64>,
}

impl Told {
    fn read(body: &Value) -> Told {
        let mut told = Told::default();
        // Gemini wraps the object in a list when it streams.
        let body = body.get(0).unwrap_or(body);
        let error = body.get("error").unwrap_or(body);
        if let Some(text) = error.as_str() {
            text.clone_into(&mut told.message);
        }
        for key in ["type", "code", "status"] {
            match error.get(key) {
                Some(Value::String(code)) => told.codes.push(code.to_ascii_lowercase()),
                Some(Value::Number(code)) => told.codes.push(code.to_string()),
                _ => {}
            }
        }
        if let Some(text) = ["message", "detail"].iter().find_map(|key| error.get(key)?.as_str()) {
            text.clone_into(&mut told.message);
        }
        for detail in error.get("details").and_then(Value::as_array).into_iter().flatten() {
            if let Some(reason) = detail.get("reason").and_then(Value::as_str) {
                told.codes.push(reason.to_ascii_lowercase());
            }
            if let Some(delay) = detail.get("retryDelay").and_then(Value::as_str) {
                told.retry_after_ms = retry_after::duration_ms(delay);
            }
        }
        // OpenRouter and other gateways repeat the provider's words inside.
        if let Some(raw) = error.pointer("/metadata/raw").and_then(Value::as_str) {
            told.message.push_str(": ");
            told.message.push_str(raw);
        }
        told.retry_after_ms = told.retry_after_ms.or_else(|| retry_after::from_text(&told.message));
        told
    }

    fn has(&self, codes: &[&str]) -> bool {
        self.codes.iter().any(|code| codes.contains(&code.as_str()))
    }

    fn says(&self, phrases: &[&str]) -> bool {
        let message = self.message.to_ascii_lowercase();
        phrases.iter().any(|phrase| message.contains(phrase))
    }

    /// The fault that the words alone decide, whatever the status.
    fn fault(&self) -> Option<ModelFault> {
        // Providers that give these no code of their own are recognised by their documented sentence.
        if self.has(&["context_length_exceeded", "exceed_context_size_error", "request_too_large"])
            || self.says(&[
                "prompt is too long",
                "maximum context length",
                "context length exceeded",
                "exceeds the available context size",
                "exceeds the maximum number of tokens",
                "exceed context limit",
                "input length exceeds the context length",
            ])
        {
            Some(ModelFault::ContextTooLong)
        } else if self.has(&[
            "insufficient_quota",
            "billing_error",
            "billing_hard_limit_reached",
            "billing_not_active",
            "credit_balance_too_low",
            "spend_limit_reached",
        ]) || self.says(&["credit balance is too low"])
        {
            Some(ModelFault::QuotaExhausted)
        } else if self.has(&["content_filter", "content_policy_violation", "responsibleaipolicyviolation"]) {
            Some(ModelFault::ContentFiltered)
        } else if self.has(&["model_not_found"]) {
            Some(ModelFault::UnknownModel)
        } else if self.has(&[
            "authentication_error",
            "permission_error",
            "invalid_api_key",
            "api_key_invalid",
            "unauthenticated",
            "permission_denied",
        ]) {
            Some(ModelFault::Authentication)
        } else if self.has(&[
            "overloaded_error",
            "overloaded",
            "server_is_overloaded",
            "slow_down",
            "unavailable",
            "503",
            "529",
        ]) || self.says(&["server busy", "maximum pending requests"])
        {
            Some(ModelFault::Overloaded)
        } else if self.has(&["rate_limit_error", "rate_limit_exceeded", "resource_exhausted", "429"]) {
            Some(ModelFault::RateLimited)
        } else if self.has(&[
            "timeout_error",
            "api_error",
            "server_error",
            "internal_server_error",
            "internal",
            "500",
        ]) {
            Some(ModelFault::Provider)
        } else if self.has(&["invalid_request_error", "invalid_argument", "400"]) {
            Some(ModelFault::InvalidRequest)
        } else {
            None
        }
    }
}

/// The failure that an HTTP answer other than success stands for.
///
/// The official client libraries repeat 408, 409, 429 and everything from 500 on, and obey
/// `x-should-retry` before the status: the faults chosen here are classed to the same effect.
pub(crate) fn of_http(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let parsed = serde_json::from_slice::<Value>(body);
    let told = parsed.as_ref().map(Told::read).unwrap_or_default();
    let words = told.fault();
    let mut fault = match status.as_u16() {
        401 | 403 => words
            .filter(|w| matches!(w, ModelFault::QuotaExhausted | ModelFault::ContentFiltered))
            .unwrap_or(ModelFault::Authentication),
        402 => ModelFault::QuotaExhausted,
        404 => ModelFault::UnknownModel,
        408 | 409 => ModelFault::Provider,
        413 => ModelFault::ContextTooLong,
        429 => words.filter(|w| *w == ModelFault::QuotaExhausted).unwrap_or(ModelFault::RateLimited),
        503 | 529 => ModelFault::Overloaded,
        500.. => words
            .filter(|w| matches!(w, ModelFault::Overloaded | ModelFault::ContextTooLong))
            .unwrap_or(ModelFault::Provider),
        _ => words
            .filter(|w| !matches!(w, ModelFault::Overloaded | ModelFault::RateLimited | ModelFault::Provider))
            .unwrap_or(ModelFault::InvalidRequest),
    };
    let transient = matches!(fault, ModelFault::RateLimited | ModelFault::Overloaded | ModelFault::Provider);
    match headers.get("x-should-retry").map(http::HeaderValue::as_bytes) {
        Some(b"true") if !transient => fault = ModelFault::Provider,
        Some(b"false") if fault == ModelFault::RateLimited => fault = ModelFault::QuotaExhausted,
        Some(b"false") if transient => fault = ModelFault::InvalidRequest,
        _ => {}
    }
    let said =
        if told.message.is_empty() { String::from_utf8_lossy(body).into_owned() } else { told.message };
    let mut problem = format!("HTTP {status}");
    // What a provider's support asks for first.
    let id = ["request-id", "x-request-id"].iter().find_map(|name| headers.get(*name)?.to_str().ok());
    if let Some(id) = id.filter(|id| !id.is_empty()) {
        problem.push_str(&format!(" (request {id})"));
    }
    if !said.trim().is_empty() {
        problem.push_str(&format!(": {said}"));
    }
    Failure {
        fault,
        problem,
        help: help_for(fault).map(str::to_owned),
        retry_after_ms: retry_after::from_headers(headers).or(told.retry_after_ms),
    }
}

/// The failure that an error object inside of an answer stands for.
pub(crate) fn in_stream(body: &Value) -> Failure {
    let told = Told::read(body);
    let fault = told.fault().unwrap_or(ModelFault::Provider);
    let problem = if told.message.is_empty() { body.to_string() } else { told.message };
    Failure {
        fault,
        problem: format!("the provider ended its answer with an error: {problem}"),
        help: help_for(fault).map(str::to_owned),
        retry_after_ms: told.retry_after_ms,
    }
}

fn help_for(fault: ModelFault) -> Option<&'static str> {
    match fault {
        ModelFault::Authentication => Some("check that the API key is right and may use this model"),
        ModelFault::QuotaExhausted => Some("add credit or raise the spending limit at the provider"),
        ModelFault::UnknownModel => Some("check the model's name and the base URL"),
        ModelFault::ContextTooLong => Some("send less, or choose a model with a larger context"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use coral_core::ErrorClass;

    use super::*;

    #[track_caller]
    fn check(
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &str,
        fault: ModelFault,
    ) -> Failure {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect();
        let failure = of_http(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes());
        assert_eq!(failure.fault, fault, "{failure:?}");
        failure
    }

    #[test]
    fn statuses_are_classed_as_the_official_clients_class_them() {
        for status in [408, 409, 429, 500, 502, 503, 504, 529] {
            let failure = of_http(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), b"");
            assert_eq!(failure.into_error("m").class(), ErrorClass::Transient, "{status}");
        }
        for status in [400, 401, 402, 403, 404, 413, 422, 425] {
            let failure = of_http(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), b"");
            assert_eq!(failure.into_error("m").class(), ErrorClass::User, "{status}");
        }
    }

    #[test]
    fn should_retry_is_obeyed_before_the_status() {
        check(400, &[("x-should-retry", "true")], "", ModelFault::Provider);
        check(429, &[("x-should-retry", "false")], "", ModelFault::QuotaExhausted);
        check(500, &[("x-should-retry", "false")], "", ModelFault::InvalidRequest);
    }

    #[test]
    fn bodies_refine_the_status() {
        let openai = r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#;
        check(429, &[], openai, ModelFault::QuotaExhausted);
        let anthropic = r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#;
        check(400, &[], anthropic, ModelFault::ContextTooLong);
        let llama = r#"{"error":{"code":400,"message":"x","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":4}}"#;
        check(400, &[], llama, ModelFault::ContextTooLong);
        let gemini = r#"[{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"API key not valid","details":[{"reason":"API_KEY_INVALID"}]}}]"#;
        check(400, &[], gemini, ModelFault::Authentication);
        let azure = r#"{"error":{"code":"content_filter","message":"filtered"}}"#;
        check(400, &[], azure, ModelFault::ContentFiltered);
        let delay = r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"@type":"t","retryDelay":"7.5s"}]}}"#;
        assert_eq!(check(429, &[], delay, ModelFault::RateLimited).retry_after_ms, Some(7_500));
    }

    #[test]
    fn an_error_inside_a_stream_is_the_error_of_its_status() {
        let body: Value = serde_json::from_str(
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
        )
        .unwrap();
        assert_eq!(in_stream(&body).fault, ModelFault::Overloaded);
        assert_eq!(in_stream(&Value::String("boom".into())).fault, ModelFault::Provider);
    }

    #[test]
    fn what_the_provider_says_becomes_one_short_line() {
        let text = one_line(&"a\n b".repeat(1_000));
        assert!(text.len() < 2 * MAX_PROBLEM && !text.contains('\n'), "{text}");
    }
}
