//! One MCP server as the sandbox sees it: a connection, its tools, calls with a deadline.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coral_core::resilience::Timers;
use coral_core::{CallContext, Error, ErrorKind, ToolFault, ToolOutput};
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, ClientRequest, ErrorCode, GetPromptRequest,
    GetPromptRequestParams, InputRequiredResult, InputResponses, JsonObject, PaginatedRequestParams, Prompt,
    ProtocolVersion, ReadResourceRequest, ReadResourceRequestParams, Resource, ResourceTemplate,
    ServerResult, SubscriptionFilter, Tool,
};
use rmcp::service::{
    ClientCacheConfig, ClientLifecycleMode, PeerRequestOptions, RequestHandle, RunningService,
    serve_client_with_lifecycle,
};
use rmcp::transport::IntoTransport;
use rmcp::{ErrorData, RoleClient, ServiceError};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::calls::Underway;
use crate::client::{Abilities, Client};
use crate::config::Generation;
use crate::health::Health;
use crate::process::Process;
use crate::results::{self, redact};
use crate::shape::Shape;

/// How often a server may answer that it needs more before it answers.
const MAX_ROUNDS: u32 = 10;
/// How long after a server ended the stream of its changes it is listened to again, the first time.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
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

/// A page of a list that is on its way, with where the next begins.
type Page<'a, T> = Pin<Box<dyn Future<Output = Result<(Vec<T>, Option<String>), ServiceError>> + Send + 'a>>;

/// What a connection is made with, beside its transport.
pub(crate) struct Opening {
    pub(crate) limits: Limits,
    pub(crate) health: Arc<Health>,
    pub(crate) process: Option<Arc<Process>>,
    /// Values that must not be shown.
    pub(crate) secrets: Vec<String>,
    pub(crate) abilities: Abilities,
    pub(crate) generation: Generation,
}

/// A live connection to a server.
pub(crate) struct Connection {
    name: String,
    service: RunningService<RoleClient, Client>,
    limits: Limits,
    health: Arc<Health>,
    process: Option<Arc<Process>>,
    secrets: Vec<String>,
    /// Listens for changes, where the protocol has no pushes.
    listener: Option<AbortHandle>,
    used: Mutex<Instant>,
    timers: Timers,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

impl Connection {
    /// Shakes hands over `transport`, in whichever generation of the protocol the server speaks.
    pub(crate) async fn open<T, E, A>(name: &str, transport: T, opening: Opening) -> Result<Self, Error>
    where
        T: IntoTransport<RoleClient, E, A>,
        E: std::error::Error + Send + Sync + 'static,
    {
        let Opening { limits, health, process, secrets, abilities, generation } = opening;
        let client = Client::new(name, abilities, Arc::clone(&health));
        let preferred_versions = vec![ProtocolVersion::LATEST, ProtocolVersion::LATEST_WITH_INITIALIZE];
        let lifecycle = match generation {
            Generation::Any => ClientLifecycleMode::Auto {
                preferred_versions,
                legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
            },
            Generation::WithHandshake => ClientLifecycleMode::Initialize,
            Generation::WithoutHandshake => ClientLifecycleMode::Discover { preferred_versions },
        };
        let handshake = serve_client_with_lifecycle(client, transport, lifecycle);
        let problem = match tokio::time::timeout(limits.connect, handshake).await {
            Ok(Ok(service)) => {
                // What the server says may be kept decides nothing here.
                service.peer().set_response_cache_config(ClientCacheConfig::disabled()).await;
                let listener = listen(&service, &health);
                let used = Mutex::new(Instant::now());
                return Ok(Connection {
                    name: name.to_owned(),
                    service,
                    limits,
                    health,
                    process,
                    secrets,
                    listener,
                    used,
                    timers: Timers::default(),
                });
            }
            Ok(Err(error)) => chain(&error),
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
        let problem = crate::text::clean(redact(problem, &health.secrets(&secrets)), 2_000);
        Err(fault(name, ToolFault::Unavailable, problem))
    }

    /// Every tool of the server, in its order.
    pub(crate) async fn tools(&self) -> Result<Vec<Tool>, Error> {
        let peer = self.service.peer();
        self.pages("tools", |cursor| {
            Box::pin(async move {
                let page = peer.list_tools(cursor).await?;
                Ok((page.tools, page.next_cursor))
            })
        })
        .await
    }

    /// What can be read, and the patterns of what else can.
    pub(crate) async fn resources(&self) -> Result<(Vec<Resource>, Vec<ResourceTemplate>), Error> {
        let peer = self.service.peer();
        let resources = self.pages("resources", |cursor| {
            Box::pin(async move {
                let page = peer.list_resources(cursor).await?;
                Ok((page.resources, page.next_cursor))
            })
        });
        let resources = resources.await?;
        let templates = self.pages("resource templates", |cursor| {
            Box::pin(async move {
                match peer.list_resource_templates(cursor).await {
                    Ok(page) => Ok((page.resource_templates, page.next_cursor)),
                    // Servers without patterns need not know the method.
                    Err(ServiceError::McpError(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                        Ok((Vec::new(), None))
                    }
                    Err(error) => Err(error),
                }
            })
        });
        Ok((resources, templates.await?))
    }

    pub(crate) async fn prompts(&self) -> Result<Vec<Prompt>, Error> {
        let peer = self.service.peer();
        self.pages("prompts", |cursor| {
            Box::pin(async move {
                let page = peer.list_prompts(cursor).await?;
                Ok((page.prompts, page.next_cursor))
            })
        })
        .await
    }

    /// A whole list, page by page: with an end in time, pages and length.
    async fn pages<'a, T>(
        &self,
        what: &str,
        page: impl Fn(Option<PaginatedRequestParams>) -> Page<'a, T> + Send + Sync,
    ) -> Result<Vec<T>, Error> {
        let protocol = |problem: String| fault(&self.name, ToolFault::Protocol, problem);
        let all = async {
            let mut items = Vec::new();
            let mut cursors: Vec<String> = Vec::new();
            for _ in 0..self.limits.max_pages {
                let params = cursors
                    .last()
                    .map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor.clone())));
                let (more, next) = page(params).await.map_err(|e| self.failure(&self.name, &e))?;
                items.extend(more);
                if items.len() > self.limits.max_tools {
                    return Err(protocol(format!("it lists more than {} {what}", self.limits.max_tools)));
                }
                match next {
                    None => return Ok(items),
                    Some(cursor) if cursors.contains(&cursor) => {
                        return Err(protocol(format!("its list of {what} runs in a circle")));
                    }
                    Some(cursor) => cursors.push(cursor),
                }
            }
            Err(protocol(format!("its list of {what} has more than {} pages", self.limits.max_pages)))
        };
        match tokio::time::timeout(self.limits.list, all).await {
            Ok(result) => result,
            Err(_) => {
                let waited = format!("no list of {what} within {} ms", self.limits.list.as_millis());
                Err(fault(&self.name, ToolFault::Timeout, waited))
            }
        }
    }

    /// Calls a tool. When the future is dropped the server is told to stop.
    pub(crate) async fn call(
        &self,
        tool: &str,
        arguments: JsonObject,
        shape: Option<&Shape>,
        cx: &CallContext,
        deadline: Instant,
    ) -> Result<ToolOutput, Error> {
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let request = |responses, state| {
            let mut params = params.clone();
            (params.input_responses, params.request_state) = (responses, state);
            ClientRequest::CallToolRequest(CallToolRequest::new(params))
        };
        let full = || format!("{}__{tool}", self.name);
        let result = match self.drive(tool, (cx, deadline), request).await? {
            ServerResult::CallToolResult(result) => result,
            ServerResult::EmptyResult(_) | ServerResult::TaskAckResult(_) => CallToolResult::default(),
            _ => return Err(fault(&full(), ToolFault::Protocol, "the answer is not a tool's result")),
        };
        let output = results::of_tool(&result, shape, self.limits.max_result_bytes)
            .map_err(|problem| fault(&full(), ToolFault::Protocol, redact(problem, &self.hidden())))?;
        Ok(results::without(output, &self.hidden()))
    }

    /// Reads a resource, as a call by the name of `tool`.
    pub(crate) async fn read(
        &self,
        tool: &str,
        uri: &str,
        cx: &CallContext,
        deadline: Instant,
    ) -> Result<ToolOutput, Error> {
        let request = |responses, state| {
            let mut params = ReadResourceRequestParams::new(uri);
            (params.input_responses, params.request_state) = (responses, state);
            ClientRequest::ReadResourceRequest(ReadResourceRequest::new(params))
        };
        match self.drive(tool, (cx, deadline), request).await? {
            ServerResult::ReadResourceResult(result) => {
                let output = results::of_resource(&result, self.limits.max_result_bytes);
                Ok(results::without(output, &self.hidden()))
            }
            _ => Err(fault(
                &format!("{}__{tool}", self.name),
                ToolFault::Protocol,
                "the answer is not a resource",
            )),
        }
    }

    /// Has a prompt filled in, as a call by the name of `tool`.
    pub(crate) async fn prompt(
        &self,
        tool: &str,
        name: &str,
        arguments: Option<JsonObject>,
        cx: &CallContext,
        deadline: Instant,
    ) -> Result<ToolOutput, Error> {
        let request = |responses, state| {
            let mut params = GetPromptRequestParams::new(name);
            (params.input_responses, params.request_state) = (responses, state);
            params.arguments.clone_from(&arguments);
            ClientRequest::GetPromptRequest(GetPromptRequest::new(params))
        };
        match self.drive(tool, (cx, deadline), request).await? {
            ServerResult::GetPromptResult(result) => {
                let output = results::of_prompt(&result, self.limits.max_result_bytes);
                Ok(results::without(output, &self.hidden()))
            }
            _ => Err(fault(
                &format!("{}__{tool}", self.name),
                ToolFault::Protocol,
                "the answer is not a prompt",
            )),
        }
    }

    /// Makes a request, and answers what the server needs to go on with it, in either generation of
    /// the protocol.
    async fn drive(
        &self,
        tool: &str,
        (cx, deadline): (&CallContext, Instant),
        request: impl FnMut(Option<InputResponses>, Option<String>) -> ClientRequest,
    ) -> Result<ServerResult, Error> {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let limit = deadline.saturating_duration_since(Instant::now()).min(self.limits.call);
        let full = || format!("{}__{tool}", self.name);
        if limit.is_zero() {
            return Err(fault(&full(), ToolFault::Timeout, "its time was over before it was made"));
        }
        let call = Underway::new(cx, tool);
        // In one place, wherever it is waited for.
        let rounds = pin!(self.rounds(&call, request));
        let result = call.within(limit, &self.timers, rounds).await;
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        match result {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(self.failure(&full(), &error)),
            Err(()) => {
                Err(fault(&full(), ToolFault::Timeout, format!("no answer within {} ms", limit.as_millis())))
            }
        }
    }

    async fn rounds(
        &self,
        call: &Arc<Underway>,
        mut request: impl FnMut(Option<InputResponses>, Option<String>) -> ClientRequest,
    ) -> Result<ServerResult, ServiceError> {
        let (mut responses, mut state) = (None, None);
        for round in 0..MAX_ROUNDS {
            match self.send(call, request(responses.take(), state.take())).await? {
                ServerResult::InputRequiredResult(needed) => {
                    // Few calls come to it, and it takes room in the future of each.
                    (responses, state) = Box::pin(self.answer(call, needed, round)).await?;
                }
                result => return Ok(result),
            }
        }
        let max_rounds = usize::try_from(MAX_ROUNDS).unwrap_or(0);
        Err(ServiceError::InputRequiredRoundsExceeded { max_rounds })
    }

    /// What a server needs to go on with `call`, and what it wants to be told again with that.
    async fn answer(
        &self,
        call: &Arc<Underway>,
        needed: InputRequiredResult,
        round: u32,
    ) -> Result<(Option<InputResponses>, Option<String>), ServiceError> {
        let (wanted, state) = (needed.input_requests.unwrap_or_default(), needed.request_state);
        if wanted.is_empty() {
            if state.is_none() {
                return Err(ServiceError::UnexpectedResponse);
            }
            tokio::time::sleep(Duration::from_millis(50) * (round + 1)).await;
        }
        let mut answers = InputResponses::new();
        for (key, request) in wanted {
            let answer = self.service.service().answer(request, call).await;
            answers.insert(key, answer.map_err(ServiceError::McpError)?);
        }
        Ok(((!answers.is_empty()).then_some(answers), state))
    }

    async fn send(&self, call: &Arc<Underway>, request: ClientRequest) -> Result<ServerResult, ServiceError> {
        let entered = self.health.calls().enter(call);
        let options = PeerRequestOptions::no_options();
        let handle = self.service.peer().send_request_with_option(request, options).await?;
        entered.sent(handle.id.clone(), handle.progress_token.clone());
        Sent(Some(handle)).answer().await
    }

    fn hidden(&self) -> Vec<String> {
        self.health.secrets(&self.secrets)
    }

    /// The timers of its calls.
    pub(crate) fn timers(&self) -> &Timers {
        &self.timers
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

    /// How long nobody has used it; zero while somebody does.
    pub(crate) fn idle(&self) -> Duration {
        if self.health.calls().count() > 0 {
            return Duration::ZERO;
        }
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Whether it still answers.
    pub(crate) async fn answers(&self) -> bool {
        let answer = tokio::time::timeout(STILL_THERE, self.service.peer().list_tools(None)).await;
        let answers = matches!(answer, Ok(Ok(_)));
        if answers {
            *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        answers
    }

    /// Ends the server, with everything that it started, unless it still answers: a call that was
    /// given up must not go on behind our back, and others must not wait for it.
    pub(crate) async fn kill_if_stuck(&self) {
        if self.answers().await {
            return;
        }
        self.health.broke("the server did not answer any more");
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// What the server says of itself: the revision of the protocol, and whether it has resources and
    /// prompts.
    pub(crate) fn about(&self) -> About {
        let peer = self.service.peer();
        let Some(info) = peer.peer_info() else { return About::default() };
        About {
            revision: info.protocol_version.to_string(),
            resources: info.capabilities.resources.is_some(),
            prompts: info.capabilities.prompts.is_some(),
        }
    }

    fn failure(&self, what: &str, error: &ServiceError) -> Error {
        let clean = |text: &str| redact(crate::text::clean(text, 2_000), &self.hidden());
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
                let problem = self.health.problem().unwrap_or_else(|| chain(error));
                fault(what, ToolFault::Protocol, clean(&problem))
            }
        }
    }
}

/// What a server says of itself.
#[derive(Default)]
pub(crate) struct About {
    pub(crate) revision: String,
    pub(crate) resources: bool,
    pub(crate) prompts: bool,
}

/// A request whose server is told to stop when nobody waits for its answer any more.
struct Sent(Option<RequestHandle<RoleClient>>);

impl Sent {
    async fn answer(mut self) -> Result<ServerResult, ServiceError> {
        let Some(handle) = &mut self.0 else { return Err(ServiceError::TransportClosed) };
        let answer = (&mut handle.rx).await;
        self.0 = None;
        answer.unwrap_or(Err(ServiceError::TransportClosed))
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { handle.cancel(Some("the caller gave the call up".to_owned())).await });
        }
    }
}

/// Listens for changes where servers do not push them: from 2026-07-28 on they must be subscribed to.
fn listen(service: &RunningService<RoleClient, Client>, health: &Arc<Health>) -> Option<AbortHandle> {
    let peer = service.peer();
    let info = peer.peer_info()?;
    let changes = info.capabilities.tools.as_ref().and_then(|tools| tools.list_changed);
    if info.protocol_version.has_initialize() || changes != Some(true) {
        return None;
    }
    let (peer, health) = (peer.clone(), Arc::downgrade(health));
    let listening = tokio::spawn(async move {
        let wanted = SubscriptionFilter::builder().tools_list_changed().build();
        let mut wait = LISTEN_AGAIN;
        while !peer.is_transport_closed() {
            match peer.listen(wanted.clone()).await {
                Ok(mut subscription) => {
                    while let Ok(Some(_)) = subscription.next().await {
                        wait = LISTEN_AGAIN;
                        match health.upgrade() {
                            Some(health) => health.tools_changed(),
                            None => return,
                        }
                    }
                    tracing::debug!("a server ended the stream of its changes");
                }
                Err(ServiceError::McpError(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                    tracing::warn!("a server says that its tools change, and can't be listened to");
                    return;
                }
                Err(error) => tracing::warn!(%error, "a server's changes can't be listened for"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LISTEN_AGAIN * 64);
            // What changed meanwhile was not told.
            match health.upgrade() {
                Some(health) => health.tools_changed(),
                None => return,
            }
        }
    });
    Some(listening.abort_handle())
}

/// An error with what lies beneath it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = error.source();
    }
    text
}

pub(crate) fn fault(tool: &str, fault: ToolFault, problem: impl ToString) -> Error {
    Error::new(ErrorKind::Tool { fault, tool: tool.to_owned(), problem: problem.to_string() })
}

/// A server in this process, spoken to like any other.
pub(crate) async fn in_process<H: rmcp::ServerHandler>(
    name: &str,
    handler: H,
    opening: Opening,
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
    match Connection::open(name, ours, opening).await {
        Ok(connection) => Ok(connection),
        Err(error) => {
            serve.abort();
            Err(error)
        }
    }
}
