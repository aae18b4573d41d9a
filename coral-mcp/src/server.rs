//! One MCP server as the sandbox sees it: a connection, its tools, calls with a deadline.

use std::sync::Arc;
use std::time::Duration;

use coral_core::{Error, ErrorKind, ToolFault, ToolOutput};
use rmcp::model::{
    CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, ContentBlock, Implementation,
    JsonObject, PaginatedRequestParams, ProtocolVersion, ResourceContents, Tool,
};
use rmcp::service::{ClientCacheConfig, ClientLifecycleMode, RunningService, serve_client_with_lifecycle};
use rmcp::transport::IntoTransport;
use rmcp::{ErrorData, RoleClient, ServiceError};

use crate::health::Health;
use crate::process::Process;

/// How long a server that let a call time out may take to show that it still answers.
const STILL_THERE: Duration = Duration::from_secs(3);

/// How much a server may cost.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    pub(crate) list: Duration,
    pub(crate) call: Duration,
    pub(crate) max_pages: usize,
    pub(crate) max_tools: usize,
    pub(crate) max_result_bytes: usize,
    pub(crate) max_line_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(30),
            list: Duration::from_secs(30),
            call: Duration::from_secs(60),
            max_pages: 100,
            max_tools: 1_000,
            max_result_bytes: 256 * 1_024,
            max_line_bytes: 8 * 1_024 * 1_024,
        }
    }
}

/// Checks a server's name: it is the first part of its tools' names.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let fits = !name.is_empty()
        && name.len() <= 32
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        && !name.contains("__")
        && !name.starts_with('_')
        && !name.ends_with('_');
    if fits {
        return Ok(());
    }
    Err(format!(
        "`{name}` is not a server's name: letters, digits, `-` and single `_` inside, at most 32 characters"
    ))
}

/// A live connection to a server.
pub(crate) struct Connection {
    name: String,
    service: RunningService<RoleClient, ClientConfig>,
    limits: Limits,
    health: Arc<Health>,
    process: Option<Arc<Process>>,
    /// Values that must not be shown.
    secrets: Vec<String>,
}

impl Connection {
    /// Shakes hands over `transport`, in whichever generation of the protocol the server speaks.
    pub(crate) async fn open<T, E, A>(
        name: &str,
        transport: T,
        limits: Limits,
        health: Arc<Health>,
        process: Option<Arc<Process>>,
        secrets: Vec<String>,
    ) -> Result<Self, Error>
    where
        T: IntoTransport<RoleClient, E, A>,
        E: std::error::Error + Send + Sync + 'static,
    {
        let identity = Implementation::new("coral", env!("CARGO_PKG_VERSION"));
        let client = ClientConfig::new(ClientCapabilities::default(), identity)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE);
        let lifecycle = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::LATEST, ProtocolVersion::LATEST_WITH_INITIALIZE],
            legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
        };
        let handshake = serve_client_with_lifecycle(client, transport, lifecycle);
        let problem = match tokio::time::timeout(limits.connect, handshake).await {
            Ok(Ok(service)) => {
                // What the server says may be kept decides nothing here.
                service.peer().set_response_cache_config(ClientCacheConfig::disabled()).await;
                return Ok(Connection { name: name.to_owned(), service, limits, health, process, secrets });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer to the handshake within {} ms", limits.connect.as_millis()),
        };
        let mut problem = health.problem().unwrap_or(problem);
        if let Some(process) = &process {
            process.kill();
            let last = process.stderr();
            if !last.is_empty() {
                problem = format!("{problem}; its last words: {last}");
            }
        }
        Err(fault(name, ToolFault::Unavailable, redact(&problem, &secrets)))
    }

    /// Every tool of the server, in its order.
    pub(crate) async fn tools(&self) -> Result<Vec<Tool>, Error> {
        let pages = async {
            let mut tools = Vec::new();
            let mut cursors: Vec<String> = Vec::new();
            for _ in 0..self.limits.max_pages {
                let params = cursors
                    .last()
                    .map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor.clone())));
                let page =
                    self.service.peer().list_tools(params).await.map_err(|e| self.failure(&self.name, &e))?;
                tools.extend(page.tools);
                if tools.len() > self.limits.max_tools {
                    let many = format!("it lists more than {} tools", self.limits.max_tools);
                    return Err(fault(&self.name, ToolFault::Protocol, many));
                }
                match page.next_cursor {
                    None => return Ok(tools),
                    Some(cursor) if cursors.contains(&cursor) => {
                        return Err(fault(
                            &self.name,
                            ToolFault::Protocol,
                            "its list of tools runs in a circle",
                        ));
                    }
                    Some(cursor) => cursors.push(cursor),
                }
            }
            let many = format!("its list of tools has more than {} pages", self.limits.max_pages);
            Err(fault(&self.name, ToolFault::Protocol, many))
        };
        match tokio::time::timeout(self.limits.list, pages).await {
            Ok(result) => result,
            Err(_) => {
                let waited = format!("no list of tools within {} ms", self.limits.list.as_millis());
                Err(fault(&self.name, ToolFault::Timeout, waited))
            }
        }
    }

    /// Calls a tool. When the future is dropped the server is told to stop.
    pub(crate) async fn call(
        &self,
        tool: &str,
        arguments: JsonObject,
        timeout: Option<Duration>,
    ) -> Result<ToolOutput, Error> {
        let full = format!("{}__{tool}", self.name);
        let limit = timeout.map_or(self.limits.call, |t| t.min(self.limits.call));
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        match tokio::time::timeout(limit, self.service.call_tool(params)).await {
            Ok(Ok(result)) => Ok(self.output(&result)),
            Ok(Err(error)) => Err(self.failure(&full, &error)),
            Err(_) => {
                Err(fault(&full, ToolFault::Timeout, format!("no answer within {} ms", limit.as_millis())))
            }
        }
    }

    /// Whether the other side went away.
    pub(crate) fn is_closed(&self) -> bool {
        self.service.is_closed()
            || self.service.peer().is_transport_closed()
            || self.health.problem().is_some()
    }

    /// What the transport saw beside the messages.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Ends the server, with everything that it started, unless it still answers: a call that was
    /// given up must not go on behind our back, and others must not wait for it.
    pub(crate) async fn kill_if_stuck(&self) {
        let Some(process) = &self.process else { return };
        let answer = tokio::time::timeout(STILL_THERE, self.service.peer().list_tools(None)).await;
        if !matches!(answer, Ok(Ok(_))) {
            self.health.broke("the server did not answer any more");
            process.kill();
        }
    }

    fn output(&self, result: &CallToolResult) -> ToolOutput {
        let mut output = output(result, self.limits.max_result_bytes);
        output.content = redact(&output.content, &self.secrets);
        // A value is text with structure: it is shown as a whole or not at all.
        output.structured = output.structured.filter(|value| {
            let text = value.to_string();
            !self.secrets.iter().any(|secret| text.contains(secret))
        });
        output
    }

    fn failure(&self, what: &str, error: &ServiceError) -> Error {
        let clean = |text: &str| redact(&crate::text::clean(text, 2_000), &self.secrets);
        match error {
            ServiceError::McpError(ErrorData { code, message, .. }) if code.0 == -32602 => {
                fault(what, ToolFault::InvalidArguments, clean(message))
            }
            ServiceError::McpError(ErrorData { message, .. }) => {
                fault(what, ToolFault::Protocol, clean(message))
            }
            ServiceError::Timeout { .. } => fault(what, ToolFault::Timeout, error),
            // Whether a call that was under way took effect is not known, so this is not `Unavailable`.
            _ => {
                let problem = self.health.problem().unwrap_or_else(|| error.to_string());
                fault(what, ToolFault::Protocol, clean(&problem))
            }
        }
    }
}

pub(crate) fn fault(tool: &str, fault: ToolFault, problem: impl ToString) -> Error {
    Error::new(ErrorKind::Tool { fault, tool: tool.to_owned(), problem: problem.to_string() })
}

/// `text` without secrets.
fn redact(text: &str, secrets: &[String]) -> String {
    let found = secrets.iter().filter(|secret| text.contains(secret.as_str()));
    found.fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "[secret]"))
}

/// A result as agents see it: text, with what is not text described.
fn output(result: &CallToolResult, max_bytes: usize) -> ToolOutput {
    let mut content = String::new();
    for block in &result.content {
        if !content.is_empty() {
            content.push('\n');
        }
        match block {
            ContentBlock::Text(text) => content.push_str(&text.text),
            ContentBlock::Image(image) => {
                content.push_str(&format!(
                    "[image, {}, {} bytes as base64]",
                    image.mime_type,
                    image.data.len()
                ));
            }
            ContentBlock::Audio(audio) => {
                content.push_str(&format!(
                    "[audio, {}, {} bytes as base64]",
                    audio.mime_type,
                    audio.data.len()
                ));
            }
            ContentBlock::Resource(embedded) => match &embedded.resource {
                ResourceContents::TextResourceContents { uri, text, .. } => {
                    content.push_str(&format!("[resource {uri}]\n{text}"));
                }
                ResourceContents::BlobResourceContents { uri, blob, .. } => {
                    content.push_str(&format!("[resource {uri}, {} bytes as base64]", blob.len()));
                }
                _ => content.push_str("[resource of an unknown kind]"),
            },
            ContentBlock::ResourceLink(link) => content.push_str(&format!("[link to {}]", link.uri)),
            _ => content.push_str("[content of an unknown kind]"),
        }
    }
    let structured = result.structured_content.clone().filter(|value| {
        // A result is capped as a whole; half a JSON value is none.
        serde_json::to_string(value).is_ok_and(|text| text.len() <= max_bytes)
    });
    if content.is_empty()
        && let Some(value) = &structured
    {
        content = value.to_string();
    }
    ToolOutput {
        content: crate::text::clean(&content, max_bytes),
        structured,
        is_error: result.is_error == Some(true),
    }
}

/// A server in this process, spoken to like any other.
pub(crate) async fn in_process<H: rmcp::ServerHandler>(
    name: &str,
    handler: H,
    limits: Limits,
) -> Result<Connection, Error> {
    let (ours, theirs) = tokio::io::duplex(64 * 1_024);
    let serve = tokio::spawn(async move {
        match rmcp::serve_server(handler, theirs).await {
            Ok(running) => {
                let _ = running.waiting().await;
            }
            Err(error) => tracing::debug!(%error, "an in-process server did not start"),
        }
    });
    match Connection::open(name, ours, limits, Arc::default(), None, Vec::new()).await {
        Ok(connection) => Ok(connection),
        Err(error) => {
            serve.abort();
            Err(error)
        }
    }
}
