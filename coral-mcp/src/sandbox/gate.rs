//! The way of one call through the checks, and its traces in the audit.

use coral_core::{CallContext, Error, ErrorKind, ToolCall, ToolFault, ToolOutput, digest};
use serde_json::{Map, Value};

use super::Sandbox;
use crate::access::{Access, Decision, Operation, Verdict};
use crate::audit::{AuditEntry, AuditEvent};
use crate::catalog::KnownTool;
use crate::path::ProjectPath;
use crate::permissions::SecurityPolicy;
use crate::profile::Reading;
use crate::secret;
use crate::server::fault;

/// One call on its way.
pub(super) struct Gate<'a> {
    sandbox: &'a Sandbox,
    call: &'a ToolCall,
    cx: &'a CallContext,
}

impl<'a> Gate<'a> {
    pub(super) fn new(sandbox: &'a Sandbox, call: &'a ToolCall, cx: &'a CallContext) -> Self {
        Gate { sandbox, call, cx }
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
        fault(&self.name(), ToolFault::UnknownTool, "no server offers it")
            .with_help("call one of the tools that are listed, by its full name")
    }

    /// Refuses arguments that do not fit the tool.
    pub(super) async fn unfit(&self, operation: Operation, problem: String) -> Error {
        if let Err(error) = self.record(&Decision::deny(&problem), Some(operation), &[]).await {
            return error;
        }
        fault(&self.name(), ToolFault::InvalidArguments, problem)
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
        if decision.verdict == Verdict::Ask
            && let Some(approval) = self.cx.approval().filter(|approval| approval.covers(self.call))
        {
            decision = Decision::allow(format!(
                "a person agreed by the answer to question {}; {}",
                approval.question(),
                decision.rule
            ));
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
            Verdict::Ask => {
                let reason = decision.rule;
                return Err(Error::new(ErrorKind::NeedsApproval { tool: self.name(), reason }));
            }
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

    /// What the policies say of the call.
    pub(super) fn decision(
        &self,
        server: &str,
        tool: &str,
        known: &KnownTool,
        reading: &Reading,
    ) -> Decision {
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

    fn decide(&self, access: &Access<'_>, arguments: &Map<String, Value>) -> Decision {
        let sandbox = self.sandbox;
        if sandbox.is_expired(access.now_ms) {
            return Decision::deny("the grants have run out, by the security policy `time_bound_tokens`");
        }
        if access.operation != Operation::Read
            && sandbox.permissions.enforces(SecurityPolicy::EncryptSensitiveData)
            && let Some(what) = arguments.values().find_map(secret::find_in)
        {
            return Decision::deny(format!(
                "the arguments hold {what} in the clear, against the security policy `encrypt_sensitive_data`"
            ));
        }
        // The strictest of all decides, over the agent and everyone for whom it acts; among equals
        // the first, which is the document's verdict on the agent itself.
        let mut strictest: Option<Decision> = None;
        for principal in sandbox.delegations.principals(access.caller) {
            let access = Access { caller: &principal, ..*access };
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
        for principal in sandbox.delegations.principals(access.caller) {
            if let Err(why) = sandbox.check_token(&Access { caller: &principal, ..*access }) {
                return Decision::deny(match principal.agent == access.caller.agent {
                    true => why,
                    false => format!("for `{}`, on whose behalf this is: {why}", principal.agent),
                });
            }
        }
        decision
    }

    /// The tool's name, fit to be shown and stored.
    fn name(&self) -> String {
        let name = crate::text::clean(&self.call.name, 200);
        // A model may put anything into a name, right behind the server's too.
        let parts: Vec<String> = name.split("__").map(secret::redacted).collect();
        secret::redacted(&parts.join("__"))
    }

    fn entry(&self) -> AuditEntry {
        let caller = self.cx.caller();
        let tool = self.name();
        AuditEntry {
            run: caller.run.to_string(),
            path: caller.path.to_string(),
            agent: caller.agent.to_string(),
            server: tool.split_once("__").map_or("", |(server, _)| server).to_owned(),
            tool,
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
        let event = AuditEvent::Decided {
            verdict: decision.verdict,
            rule: secret::redacted(&decision.rule),
            operation,
            paths: paths.iter().map(|path| secret::redacted(&path.to_string())).collect(),
            arguments: digest(&self.call.arguments)?,
            policy: self.sandbox.policy.clone(),
        };
        self.sandbox.append(AuditEntry { event, ..self.entry() }).await
    }

    fn denied(&self, operation: Option<Operation>, paths: &[ProjectPath], reason: String) -> Error {
        let caller = self.cx.caller();
        let mut action = self.name();
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
        // The call was made: that its end could not be recorded does not undo it.
        if let Err(error) = self.sandbox.audit.append(entry) {
            tracing::error!(%error, "the end of a call could not be recorded");
        }
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        self.record("cancelled", 0, false);
    }
}

impl Sandbox {
    /// Appends a decision. It fails the call only where the security policy says so.
    async fn append(&self, entry: AuditEntry) -> Result<(), Error> {
        let result = if entry.must_last() {
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
