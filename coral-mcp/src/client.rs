//! This side of a connection: what servers are told of us, and what they may ask back.

// Roots and sampling are deprecated in the newest revision and in use in the others.
#![expect(deprecated, reason = "servers of earlier revisions ask for roots and samples")]

use std::sync::Arc;

use coral_core::{ChatRequest, Message, Part, StopReason};
use rmcp::model::{
    ClientCapabilities, ClientConfig, CreateMessageRequestParams, CreateMessageResult, ElicitRequestParams,
    ElicitResult, ElicitationAction, ElicitationCapability, ErrorData, Extensions, FormElicitationCapability,
    Implementation, InputRequest, ListRootsResult, ProgressNotificationParam, ProtocolVersion, Role, Root,
    RootsCapabilities, SamplingCapability, SamplingMessage, SamplingMessageContentBlock,
    UrlElicitationCapability,
};
use rmcp::service::{InboundStreamOrigin, NotificationContext, RequestContext};
use rmcp::{ClientHandler, RoleClient};
use serde_json::Value;

use crate::calls::{Calls, Underway};
use crate::counterpart::{Counterpart, Elicitation, Reply};
use crate::health::Health;
use crate::shape::{Shape, with_defaults};
use crate::text::clean;

/// The longest message, and the longest text for a model, that a server may send.
const MAX_MESSAGE: usize = 4_096;
const MAX_PROMPT: usize = 256 * 1_024;
/// The most tokens that a model may answer a server with.
const MAX_SAMPLE_TOKENS: u32 = 8_192;

/// What a server may ask back for.
#[derive(Clone)]
pub(crate) struct Abilities {
    pub(crate) elicitation: bool,
    pub(crate) sampling: bool,
    /// The directories that it is told of, as `file://` addresses. The option is not the same as an
    /// empty list: some servers give up their own limits for a list.
    pub(crate) roots: Option<Vec<String>>,
    pub(crate) counterpart: Arc<dyn Counterpart>,
}

impl Default for Abilities {
    fn default() -> Self {
        Abilities {
            elicitation: false,
            sampling: false,
            roots: None,
            counterpart: Arc::new(crate::counterpart::ByRun),
        }
    }
}

impl Abilities {
    /// Whether the server may ask for what belongs to one call.
    pub(crate) fn asks(&self) -> bool {
        self.elicitation || self.sampling
    }

    fn declared(&self) -> ClientCapabilities {
        let mut declared = ClientCapabilities::default();
        if self.elicitation {
            let form = FormElicitationCapability::new().with_schema_validation(true);
            let url = UrlElicitationCapability::new();
            declared.elicitation = Some(ElicitationCapability::new().with_form(form).with_url(url));
        }
        if self.sampling {
            declared.sampling = Some(SamplingCapability::default());
        }
        if self.roots.is_some() {
            declared.roots = Some(RootsCapabilities::default());
        }
        declared
    }
}

/// One connection's client.
#[derive(Clone)]
pub(crate) struct Client {
    server: String,
    abilities: Abilities,
    pub(crate) calls: Arc<Calls>,
    health: Arc<Health>,
}

impl Client {
    pub(crate) fn new(server: &str, abilities: Abilities, health: Arc<Health>) -> Self {
        Client { server: server.to_owned(), abilities, calls: Arc::clone(health.calls()), health }
    }

    /// Answers what a server needs to go on with `call`.
    pub(crate) async fn answer(
        &self,
        request: InputRequest,
        call: &Arc<Underway>,
    ) -> Result<Value, ErrorData> {
        let value = match request {
            InputRequest::Elicitation(request) => {
                serde_json::to_value(self.elicit(request.params, call).await?)
            }
            InputRequest::CreateMessage(request) => {
                serde_json::to_value(self.sample(request.params, call).await?)
            }
            InputRequest::ListRoots(_) => serde_json::to_value(self.roots()?),
            _ => return Err(refused("this can't be answered")),
        };
        value.map_err(|error| ErrorData::internal_error(error.to_string(), None))
    }

    fn asking(&self, extensions: &Extensions) -> Result<Arc<Underway>, ErrorData> {
        let origin = match extensions.get::<InboundStreamOrigin>() {
            Some(InboundStreamOrigin::OutboundRequest(id)) => Some(id),
            _ => None,
        };
        self.calls
            .asking(origin)
            .ok_or_else(|| refused("no single call is under way that this could belong to"))
    }

    fn roots(&self) -> Result<ListRootsResult, ErrorData> {
        let roots = self.abilities.roots.as_ref().ok_or_else(|| refused("roots are not declared"))?;
        Ok(ListRootsResult::new(roots.iter().map(Root::new).collect()))
    }

    async fn elicit(
        &self,
        params: ElicitRequestParams,
        call: &Arc<Underway>,
    ) -> Result<ElicitResult, ErrorData> {
        if !self.abilities.elicitation {
            return Err(refused("elicitation is not declared"));
        }
        let declined = || ElicitResult::new(ElicitationAction::Decline);
        let Some(_open) = call.question() else { return Ok(declined()) };
        let question = |message: &str, schema: Value, url: Option<String>| Elicitation {
            server: self.server.clone(),
            tool: call.tool.clone(),
            message: clean(message, MAX_MESSAGE),
            schema,
            url,
        };
        let question = match &params {
            ElicitRequestParams::FormElicitationParams { message, requested_schema, .. } => {
                let schema = serde_json::to_value(requested_schema)
                    .map_err(|error| ErrorData::invalid_params(error.to_string(), None))?;
                if let Some(word) = asks_for_secret(&schema) {
                    tracing::warn!(server = %self.server, word, "a server asked for a secret, and was declined");
                    return Ok(declined());
                }
                question(message, schema, None)
            }
            ElicitRequestParams::UrlElicitationParams { message, url, .. } => {
                if !is_page(url) {
                    tracing::warn!(server = %self.server, "a server named an address that is not opened");
                    return Ok(declined());
                }
                question(message, Value::Object(serde_json::Map::new()), Some(url.clone()))
            }
            _ => return Ok(declined()),
        };
        let reply = match self.abilities.counterpart.elicit(&question, &call.cx).await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::debug!(%error, server = %self.server, "nobody answered a server's question");
                Reply::Cancel
            }
        };
        Ok(match reply {
            Reply::Decline => declined(),
            Reply::Cancel => ElicitResult::new(ElicitationAction::Cancel),
            Reply::Accept(_) if question.url.is_some() => ElicitResult::new(ElicitationAction::Accept),
            Reply::Accept(content) => {
                let content = with_defaults(&question.schema, content);
                let fits = Shape::new(&question.schema).map(|shape| shape.problem(&content));
                match fits {
                    Ok(None) => ElicitResult::new(ElicitationAction::Accept).with_content(content),
                    Ok(Some(problem)) | Err(problem) => {
                        tracing::warn!(problem, server = %self.server, "an answer does not fit what was asked");
                        ElicitResult::new(ElicitationAction::Cancel)
                    }
                }
            }
        })
    }

    async fn sample(
        &self,
        params: CreateMessageRequestParams,
        call: &Arc<Underway>,
    ) -> Result<CreateMessageResult, ErrorData> {
        if !self.abilities.sampling {
            return Err(refused("sampling is not declared"));
        }
        let Some(_open) = call.question() else {
            return Err(refused("the call asked back too often"));
        };
        let request = chat_request(params)?;
        let response = match self.abilities.counterpart.sample(&request, &call.cx).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(%error, server = %self.server, "a server's wish for a sample was refused");
                return Err(refused("the request for a sample was refused"));
            }
        };
        let text = SamplingMessageContentBlock::text(response.message.text());
        let stop = match response.stop {
            StopReason::MaxTokens => CreateMessageResult::STOP_REASON_END_MAX_TOKEN,
            _ => CreateMessageResult::STOP_REASON_END_TURN,
        };
        let message = SamplingMessage::new(Role::Assistant, text);
        Ok(CreateMessageResult::new(message, response.model).with_stop_reason(stop))
    }
}

fn refused(why: &str) -> ErrorData {
    // The code that clients give a request which their user refused.
    ErrorData::new(rmcp::model::ErrorCode(-1), why.to_owned(), None)
}

/// A server's wish, as the model gets it: text and images, no tools, and no more than a bounded answer.
fn chat_request(params: CreateMessageRequestParams) -> Result<ChatRequest, ErrorData> {
    let mut messages = Vec::new();
    let mut bytes = 0_usize;
    if let Some(system) = &params.system_prompt {
        bytes = system.len();
        messages.push(Message::system(clean(system, MAX_PROMPT)));
    }
    for message in params.messages {
        let mut parts = Vec::new();
        for block in message.content.into_vec() {
            let part = match block {
                SamplingMessageContentBlock::Text(text) => Part::Text { text: clean(&text.text, MAX_PROMPT) },
                SamplingMessageContentBlock::Image(image) => {
                    Part::Image { media_type: image.mime_type, data: image.data }
                }
                _ => return Err(ErrorData::invalid_params("only text and images can be sampled from", None)),
            };
            bytes = bytes.saturating_add(match &part {
                Part::Text { text } => text.len(),
                Part::Image { data, .. } => data.len(),
                _ => 0,
            });
            parts.push(part);
        }
        let role = match message.role {
            Role::User => Message::user(""),
            Role::Assistant => Message::assistant(""),
        };
        messages.push(Message { parts, ..role });
    }
    if bytes > MAX_PROMPT {
        return Err(ErrorData::invalid_params(
            format!("a sample takes {MAX_PROMPT} bytes at the most"),
            None,
        ));
    }
    Ok(ChatRequest {
        messages,
        max_output_tokens: Some(params.max_tokens.clamp(1, MAX_SAMPLE_TOKENS)),
        temperature: params.temperature,
        stop: params.stop_sequences.unwrap_or_default(),
        ..ChatRequest::default()
    })
}

/// The word by which a form asks for what the protocol forbids forms to ask for.
fn asks_for_secret(schema: &Value) -> Option<&'static str> {
    const WORDS: [&str; 9] = [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "api key",
        "apikey",
        "access token",
        "credit card",
        "private key",
    ];
    let properties = schema.get("properties")?.as_object()?;
    properties.iter().find_map(|(name, property)| {
        let said = |key: &str| property.get(key).and_then(Value::as_str).unwrap_or_default();
        let all = format!("{name} {} {}", said("title"), said("description"))
            .to_lowercase()
            .replace(['_', '-'], " ");
        WORDS.into_iter().find(|word| all.contains(word))
    })
}

/// Whether a person may be sent to an address: a page of the web, or one on this machine.
fn is_page(address: &str) -> bool {
    if address.len() > 2_000 || address.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return false;
    }
    let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    let ends = |rest: &str| rest.is_empty() || rest.starts_with([':', '/', '?', '#']);
    let here = local.iter().filter_map(|start| address.strip_prefix(start)).any(ends);
    let authority =
        address.split("://").nth(1).unwrap_or_default().split(['/', '?', '#']).next().unwrap_or_default();
    (address.starts_with("https://") || here) && !authority.is_empty() && !authority.contains(['@', '\\'])
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let identity = Implementation::new("coral", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(self.abilities.declared(), identity)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        cx: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let call = self.asking(&cx.extensions)?;
        self.elicit(request, &call).await
    }

    async fn create_message(
        &self,
        params: CreateMessageRequestParams,
        cx: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        let call = self.asking(&cx.extensions)?;
        self.sample(params, &call).await
    }

    async fn list_roots(&self, _cx: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        self.roots()
    }

    async fn on_progress(&self, params: ProgressNotificationParam, _cx: NotificationContext<RoleClient>) {
        self.calls.progress(&params);
    }

    async fn on_tool_list_changed(&self, _cx: NotificationContext<RoleClient>) {
        self.health.tools_changed();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn people_are_sent_to_pages_and_nowhere_else() {
        for good in
            ["https://auth.example/x?y=1", "http://127.0.0.1:3000/cb", "http://localhost/", "http://[::1]:1/"]
        {
            assert!(is_page(good), "{good}");
        }
        for bad in [
            "javascript:alert(1)",
            "http://example.com/",
            "http://localhost.evil.example/",
            "http://127.0.0.1@evil.example/",
            "https://user@evil.example/",
            "https://",
            "file:///etc/passwd",
            "https://a b",
            " https://x",
        ] {
            assert!(!is_page(bad), "{bad}");
        }
    }

    #[test]
    fn a_form_that_asks_for_a_secret_is_known_by_its_words() {
        let form =
            |name: &str, text: &str| json!({"properties": {name: {"type": "string", "description": text}}});
        for (name, text) in
            [("user_password", ""), ("x", "Your API key"), ("apiKey", ""), ("c", "credit-card number")]
        {
            assert!(asks_for_secret(&form(name, text)).is_some(), "{name} {text}");
        }
        assert_eq!(asks_for_secret(&form("city", "Where you live")), None);
    }

    proptest! {
        #[test]
        fn any_address_is_judged(address in ".{0,40}") {
            let judged = is_page(&address);
            prop_assert!(!judged || address.starts_with("https://") || address.starts_with("http://"));
        }
    }
}
