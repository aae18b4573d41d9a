//! Servers that were configured: connected when they are first needed, kept while they are used and
//! well, and connected again when they went away.

mod states;

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{CallContext, Caller, Clock, Error, ErrorKind, ToolFault, ToolOutput};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::client::Abilities;
use crate::commands;
use crate::config::{ConnectionRules, Generation};
use crate::extras::Extra;
use crate::permissions::{Reach, ServerRules};
use crate::pins::Pins;
use crate::profile::{Place, Profile};
use crate::sandbox::Change;
use crate::server::{Connection, Limits, Opening, fault};
use crate::text::sha256_hex;

use self::states::Holder;
pub(crate) use self::states::States;

/// The longest wait between two tries to connect.
const MAX_BACKOFF_MS: u64 = 60_000;
/// How often in a row a server may end before it answered a call until it is left alone for a while.
const MAX_CRASHES: u32 = 3;
/// A connection that was not used for as long must show that it still answers.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// How often a server may make us look at its tools again.
const BETWEEN_LISTS_MS: u64 = 250;

/// The terms on which a server is connected.
pub(crate) struct Terms {
    pub(crate) limits: Limits,
    pub(crate) abilities: Abilities,
    pub(crate) generation: Generation,
}

impl Terms {
    /// What a connection is made with.
    pub(crate) fn opening(&self, secrets: &[String]) -> Opening {
        Opening {
            limits: self.limits.clone(),
            health: Arc::default(),
            process: None,
            secrets: secrets.to_vec(),
            abilities: self.abilities.clone(),
            generation: self.generation,
        }
    }
}

/// Makes connections to one server.
#[async_trait]
pub(crate) trait Connector: Place + Send + Sync {
    async fn connect(&self, name: &str, terms: &Terms) -> Result<Connection, Error>;

    /// The hash of how the server is started or where it is; `None` for one that is part of this
    /// program. It may read files.
    ///
    /// # Errors
    /// Why it can't be told.
    fn source(&self) -> Result<Option<String>, String>;
}

/// On what terms one call is made.
pub(crate) struct Within<'a> {
    pub(crate) cx: &'a CallContext,
    /// When the caller stops waiting.
    pub(crate) deadline: Instant,
    /// When its rights end, and the call with them, whatever else goes on in it.
    pub(crate) rights_end: Option<Instant>,
    /// What of the project a program may reach that the call starts.
    pub(crate) reach: Option<Reach>,
}

/// A server that was configured.
pub(crate) struct Server {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) profile: Profile,
    pub(crate) terms: Terms,
    pub(crate) rules: ServerRules,
    /// Whether it is another's program: its tools are pinned, its words are not the project's.
    pub(crate) foreign: bool,
    /// Whether content from elsewhere than the project may come in through it, though it is our own.
    pub(crate) open: bool,
    /// Whether its calls start programs, which reach what their caller does.
    pub(crate) starts_programs: bool,
    pub(crate) permits: Semaphore,
    pub(crate) states: States,
}

#[derive(Default)]
pub(crate) struct State {
    live: Vec<Arc<Live>>,
    /// How often in a row it could not be connected, why, and when it may be tried again.
    failures: u32,
    problem: Option<String>,
    retry_at_ms: u64,
    listed_at_ms: u64,
}

/// A connected server and its tools.
pub(crate) struct Live {
    connection: Arc<Connection>,
    /// Whether a call was answered by it: a connection that ends before was of no use.
    answered: Arc<AtomicBool>,
    pub(crate) catalog: Catalog,
    /// The turn to call, where the server may ask back: whom it asks must be beyond doubt.
    turn: Arc<Semaphore>,
}

/// How a server is doing: see [`Sandbox::status`](crate::Sandbox::status).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// How many connections to it are open.
    pub connections: usize,
    /// The revision of the protocol that it speaks, once it was connected.
    pub protocol: Option<String>,
    /// How often in a row it could not be connected; the most of any run or agent, where each has
    /// connections of its own.
    pub failures: u32,
    /// Why it could not be connected the last time.
    pub problem: Option<String>,
}

impl State {
    /// Whether there is something to keep it for.
    fn is_in_use(&self) -> bool {
        !self.live.is_empty()
    }

    /// Drops connections that ended. A server that ends again and again before it answered a call is
    /// left alone for a while, like one that can't be started.
    fn drop_ended(&mut self, name: &str, now_ms: u64) {
        let mut ended = Vec::new();
        self.live.retain(|live| {
            let is_closed = live.connection.is_closed();
            if is_closed {
                ended.push(Arc::clone(live));
            }
            !is_closed
        });
        for live in ended {
            if live.answered.load(Ordering::Relaxed) {
                self.failures = 0;
                continue;
            }
            self.failures = self.failures.saturating_add(1);
            self.problem = live.connection.health().problem().or(self.problem.take());
            if self.failures >= MAX_CRASHES {
                self.retry_at_ms = now_ms.saturating_add(backoff_ms(name, self.failures));
            }
        }
    }
}

/// How long nobody tries after so many failures in a row: longer from one to the next, and not the same in
/// each process, so that many of them do not come back at once.
fn backoff_ms(name: &str, failures: u32) -> u64 {
    let whole = 500_u64.saturating_mul(1 << failures.min(7)).min(MAX_BACKOFF_MS);
    let seed = sha256_hex(format!("{name} {failures} {}", std::process::id()).as_bytes());
    let spread = seed.get(..4).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default();
    whole - whole / 2 * spread / 0xFFFF
}

impl Server {
    /// Whether what it says may come from elsewhere than the project.
    pub(crate) fn brings_untrusted(&self) -> bool {
        (self.foreign || self.open) && !self.rules.trusted
    }

    /// Where its paths lead.
    pub(crate) fn place(&self) -> &dyn Place {
        &*self.connector
    }

    /// When a call that begins now must have ended.
    pub(crate) fn deadline(&self, cx: &CallContext) -> Instant {
        let limit =
            cx.timeout_ms().map_or(self.terms.limits.connect + self.terms.limits.call, Duration::from_millis);
        Instant::now() + limit
    }

    /// Whom the connections are for that `caller` uses.
    fn holder(&self, caller: &Caller) -> Holder {
        Holder::of(self.rules.connection.per, caller)
    }

    /// A connection for `caller` that can be called as it is: it is open, was used lately, and nobody said that its
    /// tools are others now.
    pub(crate) fn ready(&self, name: &str, caller: &Caller) -> Option<Arc<Live>> {
        let state = self.states.of(name, &self.holder(caller)).ok()?;
        let state = state.try_lock().ok()?;
        let is_ready = |live: &&Arc<Live>| {
            let connection = &live.connection;
            !connection.is_closed() && !connection.health().is_changed() && connection.idle() <= PROBE_AFTER
        };
        state.live.first().filter(is_ready).cloned()
    }

    /// How the server is started now, if that is not how it was when it was pinned. One that runs for
    /// `caller` was looked at when it was started.
    async fn change(&self, name: &str, caller: &Caller, pins: &Pins) -> Result<Option<Change>, Error> {
        let state = self.states.of(name, &self.holder(caller))?;
        if state.lock().await.live.iter().any(|live| !live.connection.is_closed()) {
            return Ok(None);
        }
        Box::pin(self.changed_source(name, pins)).await
    }

    /// As [`change`](Self::change), by a deadline.
    pub(crate) async fn change_by(
        &self,
        deadline: Instant,
        name: &str,
        caller: &Caller,
        pins: &Pins,
    ) -> Result<Option<Change>, Error> {
        timely(deadline, self.change(name, caller, pins)).await.unwrap_or_else(|| Err(not_there(name)))
    }

    /// As [`change`](Self::change), whether it runs or not.
    pub(crate) async fn changed_source(&self, name: &str, pins: &Pins) -> Result<Option<Change>, Error> {
        if !self.foreign {
            return Ok(None);
        }
        let connector = Arc::clone(&self.connector);
        // A program may be large.
        let source = tokio::task::spawn_blocking(move || connector.source())
            .await
            .unwrap_or_else(|error| Err(error.to_string()));
        let source = source.map_err(|problem| fault(name, ToolFault::Unavailable, problem))?;
        let Some(now) = source else { return Ok(None) };
        let was = pins.check_source(name, &now)?;
        Ok(was.map(|was| Change { was, now }))
    }

    /// As [`live`](Self::live), by a deadline.
    pub(crate) async fn live_by(
        &self,
        deadline: Instant,
        name: &str,
        caller: &Caller,
        (clock, pins): (&dyn Clock, &Pins),
    ) -> Result<Arc<Live>, Error> {
        timely(deadline, self.live(name, caller, clock, pins)).await.unwrap_or_else(|| Err(not_there(name)))
    }

    /// How many connections there may be for one holder.
    fn most(&self) -> usize {
        self.connection_rules().connections.unwrap_or(1)
    }

    fn connection_rules(&self) -> &ConnectionRules {
        &self.rules.connection
    }

    /// A connection to look at the server's tools by.
    pub(crate) async fn live(
        &self,
        name: &str,
        caller: &Caller,
        clock: &dyn Clock,
        pins: &Pins,
    ) -> Result<Arc<Live>, Error> {
        let shared = self.states.of(name, &self.holder(caller))?;
        let mut state = shared.lock().await;
        let now_ms = clock.now_ms();
        state.drop_ended(name, now_ms);
        if let Some(live) = state.live.first().cloned() {
            if live.connection.idle() > PROBE_AFTER && !Box::pin(live.connection.answers()).await {
                state.live.clear();
            } else if !live.connection.health().take_changed() {
                return Ok(live);
            } else if let Ok(catalog) =
                Box::pin(self.list_again(name, &live.connection, pins, state.listed_at_ms, now_ms)).await
            {
                // The tools are said to be others now, so they are looked at again.
                let again = Arc::new(Live {
                    connection: Arc::clone(&live.connection),
                    answered: Arc::clone(&live.answered),
                    catalog,
                    turn: Arc::clone(&live.turn),
                });
                state.listed_at_ms = now_ms;
                // Other connections are of the same server and have the same to say.
                state.live = vec![Arc::clone(&again)];
                return Ok(again);
            } else {
                state.live.clear();
            }
        }
        // Few calls have to wait for it, and it takes room in the future of each.
        Box::pin(self.connect(name, (&shared, &mut state), clock, pins)).await
    }

    /// Lists the tools of a server that said that they are others now: not too soon after the last time,
    /// however often it says so, and before any other call is let through.
    async fn list_again(
        &self,
        name: &str,
        connection: &Connection,
        pins: &Pins,
        listed_at_ms: u64,
        now_ms: u64,
    ) -> Result<Catalog, Error> {
        let early_ms = BETWEEN_LISTS_MS.saturating_sub(now_ms.saturating_sub(listed_at_ms));
        if early_ms > 0 {
            tokio::time::sleep(Duration::from_millis(early_ms)).await;
        }
        self.list(name, connection, pins).await
    }

    /// Another connection, unless it is too early for another try.
    async fn connect(
        &self,
        name: &str,
        (shared, state): (&Arc<Mutex<State>>, &mut State),
        clock: &dyn Clock,
        pins: &Pins,
    ) -> Result<Arc<Live>, Error> {
        let now_ms = clock.now_ms();
        if now_ms < state.retry_at_ms {
            let wait = state.retry_at_ms - now_ms;
            let problem =
                format!("it failed {} times in a row, the next try is in {wait} ms", state.failures);
            return Err(fault(name, ToolFault::Unavailable, problem).with_retry_after_ms(wait));
        }
        if let Some(change) = self.changed_source(name, pins).await? {
            let problem = format!("it is started otherwise than when it was pinned ({})", change.now);
            return Err(fault(name, ToolFault::Unavailable, problem)
                .with_help("look at it, and then call `approve_server`"));
        }
        let connected = async {
            let connection = Arc::new(self.connector.connect(name, &self.terms).await?);
            let catalog = self.list(name, &connection, pins).await?;
            let (answered, turn) = (Arc::default(), Arc::new(Semaphore::new(1)));
            Ok(Arc::new(Live { connection, answered, catalog, turn }))
        };
        match connected.await {
            Ok(live) => {
                state.retry_at_ms = 0;
                state.listed_at_ms = now_ms;
                state.live.push(Arc::clone(&live));
                self.close_when_idle(shared, &live);
                Ok(live)
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                state.problem = Some(Error::to_string(&error));
                // From now on, and not from when the try began: it may have taken long.
                state.retry_at_ms = clock.now_ms().saturating_add(backoff_ms(name, state.failures));
                Err(error)
            }
        }
    }

    async fn list(&self, name: &str, connection: &Connection, pins: &Pins) -> Result<Catalog, Error> {
        let tools = connection.tools().await?;
        let raw = connection.health().take_tools();
        let extras = Extra::of(connection, self.connection_rules());
        let trusted = self.rules.trusted || !self.foreign;
        let pins = self.foreign.then_some(pins);
        Catalog::new(name, tools, &raw, &self.profile, trusted, &extras, pins)
    }

    /// Lets the next call look at the server's tools anew.
    pub(crate) async fn look_again(&self) {
        for state in self.states.all() {
            for live in &state.lock().await.live {
                live.connection.health().tools_changed();
            }
        }
    }

    pub(crate) async fn status(&self, name: &str) -> ServerStatus {
        let (connections, protocol, failures, problem) = (0, None, 0, None);
        let mut status = ServerStatus { name: name.to_owned(), connections, protocol, failures, problem };
        for state in self.states.all() {
            let state = state.lock().await;
            let live: Vec<_> = state.live.iter().filter(|live| !live.connection.is_closed()).collect();
            status.connections += live.len();
            status.protocol = status.protocol.or(live.first().map(|live| live.connection.about().revision));
            if state.failures > status.failures {
                (status.failures, status.problem) = (state.failures, state.problem.clone());
            }
        }
        status
    }

    /// Closes the connections that were for a run alone, with all that their servers keep of it.
    pub(crate) fn forget(&self, run: &str) {
        self.states.forget(run);
    }

    /// Calls a tool that was found on `live` and may be called.
    pub(crate) async fn call(
        &self,
        name: &str,
        live: &Arc<Live>,
        tool: &str,
        mut arguments: Map<String, Value>,
        within: &Within<'_>,
        (clock, pins): (&dyn Clock, &Pins),
    ) -> Result<ToolOutput, Error> {
        let full = || format!("{name}__{tool}");
        let alone = self.terms.abilities.asks();
        let busy = || fault(&full(), ToolFault::Timeout, "other calls took all the time that it had");
        let (cx, deadline) = (within.cx, within.deadline);
        let _permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => timely(deadline, self.permits.acquire()).await.and_then(Result::ok).ok_or_else(busy)?,
        };
        let shared = || self.states.of(name, &self.holder(cx.caller()));
        let mut live = Cow::Borrowed(live);
        if self.most() > 1 {
            let shared = shared()?;
            let chosen = self.least_busy(name, (&shared, &live), tool, alone, (clock, pins));
            live = Cow::Owned(timely(deadline, chosen).await.ok_or_else(busy)??);
        }
        let _turn = match alone {
            true => timely(deadline, live.turn.acquire()).await.ok_or_else(busy)?.ok(),
            false => None,
        };
        if let Some(reach) = &within.reach {
            let reach = serde_json::to_value(reach).unwrap_or_default();
            arguments.insert(commands::REACH.to_owned(), reach);
        }
        let Some(known) = live.catalog.get(tool) else {
            return Err(fault(&full(), ToolFault::UnknownTool, "the server does not offer it any more"));
        };
        let result = {
            let mut called = pin!(async {
                match known.extra {
                    Some(extra) => extra.call(&full(), &live.connection, arguments, cx, deadline).await,
                    None => live.connection.call(tool, arguments, known.shape.as_ref(), cx, deadline).await,
                }
            });
            match within.rights_end {
                Some(end) => {
                    let mut rights = live.connection.timers().timer();
                    tokio::select! {
                        biased;
                        result = &mut called => result,
                        () = rights.until(end) => {
                            let ended = "the rights that it was made by ended before it did";
                            Err(fault(&full(), ToolFault::Timeout, ended))
                        }
                    }
                }
                None => called.await,
            }
        };
        if result.is_ok()
            && !live.answered.swap(true, Ordering::Relaxed)
            && let Ok(shared) = shared()
        {
            let mut state = shared.lock().await;
            (state.failures, state.problem) = (0, None);
        }
        if result.as_ref().is_err_and(is_timeout) {
            let connection = Arc::clone(&live.connection);
            tokio::spawn(async move { connection.kill_if_stuck().await });
        }
        result
    }

    /// A connection with room: `live`, or another of as many as there may be. The tool is the same on
    /// each, or it is not called.
    async fn least_busy(
        &self,
        name: &str,
        (shared, live): (&Arc<Mutex<State>>, &Arc<Live>),
        tool: &str,
        alone: bool,
        (clock, pins): (&dyn Clock, &Pins),
    ) -> Result<Arc<Live>, Error> {
        let most = self.most();
        let load = |live: &Arc<Live>| {
            if alone {
                1 - live.turn.available_permits().min(1)
            } else {
                live.connection.health().calls().count()
            }
        };
        let mut state = shared.lock().await;
        state.drop_ended(name, clock.now_ms());
        let best = state.live.iter().min_by_key(|live| load(live)).cloned();
        let chosen = match best {
            Some(best) if load(&best) == 0 || state.live.len() >= most => best,
            // Another connection is a convenience: without it this one has to do.
            Some(best) => {
                let another = Box::pin(self.connect(name, (shared, &mut state), clock, pins));
                another.await.unwrap_or(best)
            }
            None => Box::pin(self.connect(name, (shared, &mut state), clock, pins)).await?,
        };
        if chosen.catalog.is_same(tool, &live.catalog) {
            return Ok(chosen);
        }
        let differs = "it is not the same on each connection to its server";
        Err(fault(&format!("{name}__{tool}"), ToolFault::Protocol, differs))
    }

    /// Closes a connection when it was not used for as long as its rules say.
    fn close_when_idle(&self, shared: &Arc<Mutex<State>>, live: &Arc<Live>) {
        let Some(idle) = self.connection_rules().idle() else { return };
        let (state, connection) = (Arc::downgrade(shared), Arc::downgrade(&live.connection));
        tokio::spawn(async move {
            loop {
                let left = match connection.upgrade() {
                    Some(connection) => idle.saturating_sub(connection.idle()),
                    None => return,
                };
                if !left.is_zero() {
                    tokio::time::sleep(left).await;
                    continue;
                }
                let (Some(state), Some(connection)) = (state.upgrade(), connection.upgrade()) else { return };
                let mut state = state.lock().await;
                if connection.idle() >= idle {
                    state.live.retain(|live| !Arc::ptr_eq(&live.connection, &connection));
                    return;
                }
            }
        });
    }
}

fn not_there(name: &str) -> Error {
    fault(name, ToolFault::Timeout, "it was not there before the call's time was over")
}

/// What `work` gives, if it does so before `deadline`. It takes no room in the future of who waits for it.
async fn timely<T>(deadline: Instant, work: impl Future<Output = T> + Send) -> Option<T> {
    Box::pin(tokio::time::timeout_at(deadline, work)).await.ok()
}

fn is_timeout(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Tool { fault: ToolFault::Timeout, .. })
}
