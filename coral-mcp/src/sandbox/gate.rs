//! The way of one call through the checks, and its traces in the audit.

use std::borrow::Cow;
use std::sync::OnceLock;

use coral_core::{CallContext, Caller, Error, ErrorKind, ToolCall, ToolFault, ToolOutput};
use serde_json::{Map, Value};

use super::{Change, Sandbox, label_error};
use crate::access::{Access, Decision, Operation, Verdict};
use crate::audit::{AuditEntry, AuditEvent, keyed_hash};
use crate::catalog::KnownTool;
use crate::path::ProjectPath;
use crate::permissions::SecurityPolicy;
use crate::profile::Reading;
use crate::server::fault;

/// One call on its way.
pub(super) struct Gate<'a> {
    sandbox: &'a Sandbox,
    call: &'a ToolCall,
    cx: &'a CallContext,
    /// The caller and all for whom it acts.
    principals: Cow<'a, [Caller]>,
    /// The tool's name, fit to be shown and stored.
    name: OnceLock<String>,
}

impl<'a> Gate<'a> {
    pub(super) fn new(sandbox: &'a Sandbox, call: &'a ToolCall, cx: &'a CallContext) -> Self {
        let principals = sandbox.delegations.principals(cx.caller());
        Gate { sandbox, call, cx, principals, name: OnceLock::new() }
    }

    /// The caller and all for whom it acts.
    pub(super) fn principals(&self) -> &[Caller] {
        &self.principals
    }

    /// Whether all for whom the call is made may use some tool of the server.
    pub(super) fn may_reach(&self, server: &str) -> bool {
        self.sandbox.may_reach(&self.principals, server, self.sandbox.clock.now_ms())
    }

    /// Refuses the call and records that.
    pub(super) async fn deny(&self, operation: Option<Operation>, reason: String) -> Error {
        match self.record(&Decision::deny(&reason), operation, &[]).await {
            Ok(()) => self.denied(operation, &[], reason),
            Err(error) => error,
        }
    }

    /// Refuses a call of a tool that no server offers.
    pub(super) async fn unknown(&self) -> Error {
        if let Err(error) = self.record(&Decision::deny("no server offers the tool"), None, &[]).await {
            return error;
        }
        fault(self.name(), ToolFault::UnknownTool, "no server offers it")
            .with_help("call one of the tools that are listed, by its full name")
    }

    /// Refuses arguments that do not fit the tool.
    pub(super) async fn unfit(&self, operation: Operation, problem: String) -> Error {
        if let Err(error) = self.record(&Decision::deny(&problem), Some(operation), &[]).await {
            return error;
        }
        fault(self.name(), ToolFault::InvalidArguments, problem)
    }

    /// Decides on the call and records the decision.
    pub(super) async fn pass(
        &self,
        server: &str,
        tool: &str,
        known: &KnownTool,
        reading: &Reading,
    ) -> Result<Passed<'a>, Error> {
        let operation = reading.operation;
        let mut retry_after_ms = None;
        let mut decision = self.decision(server, tool, known, reading);
        if let Some(block) = known.blocked.as_ref().filter(|_| decision.verdict != Verdict::Deny) {
            let question = block.question(&known.hash);
            decision = match self.agreed_to(&known.hash, &question) {
                true => {
                    self.sandbox.pin(server, tool, known)?;
                    self.agreed(decision)
                }
                false => Decision::ask(question),
            };
        } else if decision.verdict == Verdict::Ask {
            decision = self.agreed(decision);
        }
        if decision.is_allowed() {
            let sandbox = self.sandbox;
            let of_tool = known.profile.calls_per_minute;
            let limits = sandbox.permissions.limits(self.cx.caller(), server, tool, of_tool);
            if let Err(over) = sandbox.quota.take(&limits, sandbox.clock.now_ms()) {
                retry_after_ms = over.wait_ms;
                decision = Decision::deny(over.why);
            }
        }
        self.record(&decision, Some(operation), &reading.paths).await?;
        match decision.verdict {
            Verdict::Allow => {}
            Verdict::Ask => return Err(self.asked(decision.rule)),
            Verdict::Deny => {
                let error = self.denied(Some(operation), &reading.paths, decision.rule);
                return Err(match retry_after_ms {
                    Some(wait) => error.with_retry_after_ms(wait),
                    None => error,
                });
            }
        }
        let entry = Some(self.entry());
        Ok(Passed { sandbox: self.sandbox, entry, began_ms: self.sandbox.clock.now_ms() })
    }

    /// Lets the call on if a person agreed to it, where `decision` wants that.
    fn agreed(&self, decision: Decision) -> Decision {
        match self.cx.approval().filter(|approval| approval.covers(self.call)) {
            Some(approval) => Decision::allow(format!(
                "a person agreed by the answer to question {}; {}",
                approval.question(),
                decision.rule
            )),
            None => decision,
        }
    }

    /// Whether a person agreed to the call when they were asked about `hash`. If not, it is noted that
    /// they are asked now.
    fn agreed_to(&self, hash: &str, question: &str) -> bool {
        let caller = self.cx.caller();
        // An answer is to one question: the same call with other words about it is another.
        let call = format!("{}\n{}\n{}\n{question}", caller.run, caller.path, self.call.name);
        let approved = self.cx.approval().is_some_and(|approval| approval.covers(self.call));
        if approved && self.sandbox.pins.take_asked(&call, hash) {
            return true;
        }
        self.sandbox.pins.ask(call, hash);
        false
    }

    /// Asks a person about a server that is started otherwise than it was.
    pub(super) async fn ask_about(&self, server: &str, change: &Change) -> Result<(), Error> {
        let question = format!(
            "server `{server}` is started otherwise, or from another program, than when it was pinned (now {}, before {})",
            change.now.get(..12).unwrap_or(&change.now),
            change.was.get(..12).unwrap_or(&change.was),
        );
        if self.agreed_to(&change.now, &question) {
            return self.sandbox.approve_server(server, &change.now).await;
        }
        self.record(&Decision::ask(&question), None, &[]).await?;
        Err(self.asked(question))
    }

    /// Takes in what an untrusted server said when it could not be reached.
    pub(super) fn taken_in(&self, error: Error) -> Error {
        let sandbox = self.sandbox;
        sandbox.taint.mark(&self.cx.caller().run, &self.call.name);
        let outcome = error.code().to_owned();
        let event = AuditEvent::Ended { outcome, took_ms: 0, bytes: 0, untrusted: true };
        sandbox.append_end(AuditEntry { event, ..self.entry() });
        label_error(&self.call.name, error)
    }

    fn asked(&self, reason: String) -> Error {
        Error::new(ErrorKind::NeedsApproval { tool: self.name().to_owned(), reason })
    }

    /// What the policies say of the call.
    fn decision(&self, server: &str, tool: &str, known: &KnownTool, reading: &Reading) -> Decision {
        let caller = self.cx.caller();
        let untrusted = self.sandbox.taint.source(&caller.run);
        let access = Access {
            named: reading.named.as_deref(),
            raised: reading.raised,
            paths: &reading.paths,
            programs: &reading.programs,
            hosts: &reading.hosts,
            recursive: known.profile.recursive,
            arguments: Some(&reading.arguments),
            untrusted: untrusted.as_deref(),
            now_ms: self.sandbox.clock.now_ms(),
            ..Access::new(caller, server, tool, reading.operation)
        };
        self.decide(&access, &reading.arguments)
    }

    /// How the call would be decided on now, limits included; nothing is taken from them.
    pub(super) fn foresee(&self, server: &str, tool: &str, known: &KnownTool, reading: &Reading) -> Decision {
        let decision = self.decision(server, tool, known, reading);
        match &known.blocked {
            Some(block) if decision.verdict != Verdict::Deny => {
                return Decision::ask(block.question(&known.hash));
            }
            _ if decision.verdict == Verdict::Deny => return decision,
            _ => {}
        }
        let sandbox = self.sandbox;
        let of_tool = known.profile.calls_per_minute;
        let limits = sandbox.permissions.limits(self.cx.caller(), server, tool, of_tool);
        match sandbox.quota.check(&limits, sandbox.clock.now_ms()) {
            Ok(()) => decision,
            Err(over) => Decision::deny(over.why),
        }
    }

    fn decide(&self, access: &Access<'_>, arguments: &Map<String, Value>) -> Decision {
        let sandbox = self.sandbox;
        if sandbox.is_expired(access.now_ms) {
            return Decision::deny("the grants have run out, by the security policy `time_bound_tokens`");
        }
        if access.operation != Operation::Read
            && sandbox.permissions.enforces(SecurityPolicy::EncryptSensitiveData)
            && let Some(what) = arguments.values().find_map(|value| sandbox.secrets.find_in(value))
        {
            return Decision::deny(format!(
                "the arguments hold {what} in the clear, against the security policy `encrypt_sensitive_data`"
            ));
        }
        // The strictest of all decides, over the agent and everyone for whom it acts; among equals
        // the first, which is the document's verdict on the agent itself.
        let mut strictest: Option<Decision> = None;
        for principal in &*self.principals {
            let access = Access { caller: principal, ..*access };
            for policy in &sandbox.policies {
                let mut decision = policy.decide(&access);
                if strictest.as_ref().is_none_or(|s| decision.verdict > s.verdict) {
                    if principal.agent != self.cx.caller().agent {
                        decision.rule =
                            format!("for `{}`, on whose behalf this is: {}", principal.agent, decision.rule);
                    }
                    strictest = Some(decision);
                }
            }
        }
        let decision = strictest.unwrap_or_else(|| Decision::deny("there is no policy"));
        if decision.verdict == Verdict::Deny {
            return decision;
        }
        // What the policies allow must be in the hand of each too.
        for principal in &*self.principals {
            if let Err(why) = sandbox.check_token(&Access { caller: principal, ..*access }) {
                return Decision::deny(match principal.agent == access.caller.agent {
                    true => why,
                    false => format!("for `{}`, on whose behalf this is: {why}", principal.agent),
                });
            }
        }
        decision
    }

    /// The tool's name, fit to be shown and stored.
    fn name(&self) -> &str {
        self.name.get_or_init(|| {
            // A model may put anything into a name, right behind the server's too.
            self.sandbox.secrets.redacted_name(crate::text::clean(&self.call.name, 200))
        })
    }

    fn entry(&self) -> AuditEntry {
        let caller = self.cx.caller();
        let tool = self.name();
        AuditEntry {
            run: caller.run.to_string(),
            path: caller.path.to_string(),
            project: caller.project.to_string(),
            agent: caller.agent.to_string(),
            server: tool.split_once("__").map_or("", |(server, _)| server).to_owned(),
            tool: tool.to_owned(),
            key: self.cx.key().to_owned(),
            ..AuditEntry::note(self.sandbox.clock.now_ms(), "")
        }
    }

    async fn record(
        &self,
        decision: &Decision,
        operation: Option<Operation>,
        paths: &[ProjectPath],
    ) -> Result<(), Error> {
        let secrets = &self.sandbox.secrets;
        let token = self.sandbox.token_id(self.cx.caller());
        let event = AuditEvent::Decided {
            verdict: decision.verdict,
            rule: secrets.redacted(decision.rule.clone()),
            operation,
            paths: paths.iter().map(|path| secrets.redacted(path.to_string())).collect(),
            arguments: keyed_hash(&self.sandbox.hash_key, &self.call.arguments)?,
            policy: self.sandbox.policy.clone(),
            on_behalf: self.principals.iter().skip(1).map(|of| of.agent.to_string()).collect(),
            token,
        };
        self.sandbox.append(AuditEntry { event, ..self.entry() }).await
    }

    fn denied(&self, operation: Option<Operation>, paths: &[ProjectPath], reason: String) -> Error {
        let caller = self.cx.caller();
        let mut action = self.name().to_owned();
        if let Some(operation) = operation {
            action = format!("{operation} with {action}");
        }
        if let Some(path) = paths.first() {
            action = format!("{action} on {path}");
        }
        let agent = if caller.agent.is_empty() { "a step without an agent" } else { &caller.agent };
        Error::new(ErrorKind::Denied { agent: agent.to_owned(), action, reason })
    }
}

/// A call that may be made. Its end is recorded even if nobody waits for it any more.
pub(super) struct Passed<'a> {
    sandbox: &'a Sandbox,
    entry: Option<AuditEntry>,
    began_ms: u64,
}

impl Passed<'_> {
    pub(super) fn end(mut self, result: &Result<ToolOutput, Error>, untrusted: bool) {
        let (outcome, bytes) = match result {
            Ok(output) if output.is_error => ("tool_error", output.content.len()),
            Ok(output) => ("ok", output.content.len()),
            Err(error) => (error.code(), 0),
        };
        self.record(outcome, bytes, untrusted);
    }

    fn record(&mut self, outcome: &str, bytes: usize, untrusted: bool) {
        let Some(mut entry) = self.entry.take() else { return };
        entry.at_ms = self.sandbox.clock.now_ms();
        entry.event = AuditEvent::Ended {
            outcome: outcome.to_owned(),
            took_ms: entry.at_ms.saturating_sub(self.began_ms),
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
            untrusted,
        };
        self.sandbox.append_end(entry);
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        self.record("cancelled", 0, false);
    }
}

impl Sandbox {
    /// Appends the end of a call. The call was made: that its end could not be recorded does not undo it.
    fn append_end(&self, entry: AuditEntry) {
        if let Err(error) = self.audit.append(entry) {
            tracing::error!(%error, "the end of a call could not be recorded");
        }
    }

    /// Appends a decision. It fails the call only where the security policy says so.
    async fn append(&self, entry: AuditEntry) -> Result<(), Error> {
        let result = if entry.must_last() && self.audit.waits() {
            // Waiting for the disk would hold up everything else on this thread.
            let audit = self.audit.clone();
            tokio::task::spawn_blocking(move || audit.append(entry))
                .await
                .unwrap_or_else(|error| Err(Error::storage("writing the audit", error)))
        } else {
            self.audit.append(entry)
        };
        match result {
            Err(error) if self.permissions.enforces(SecurityPolicy::AuditAllOperations) => {
                Err(error
                    .with_help("no call is made unrecorded, by the security policy `audit_all_operations`"))
            }
            Err(error) => {
                tracing::error!(%error, "a decision could not be recorded");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
