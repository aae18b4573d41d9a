//! The transport to a server's process: JSON lines with bounds on both ways.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{ClientRequest, ErrorData, JsonRpcError, JsonRpcMessage, RequestId, ServerNotification};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::ChildStdout;
use tokio::sync::Mutex;

use crate::health::{Health, is_mere_answer};
use crate::process::{Input, Process};
use crate::tool_call;

/// How long a server may leave its input unread.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a server may take to end by itself once its input is closed.
const GRACE: Duration = Duration::from_secs(2);

/// Reads and writes a process's pipes.
///
/// A line above the bound ends the connection: its end can't be told from the next message's
/// beginning without reading all of it. So does a server that stops reading.
pub(crate) struct Pipe {
    stdout: BufReader<ChildStdout>,
    /// What was read of a line so far: `receive` may be cancelled between two reads.
    line: Vec<u8>,
    max_line: usize,
    /// Taken out while a message is written, so that after half of one nothing follows.
    input: Arc<Mutex<Option<Input>>>,
    process: Arc<Process>,
    health: Arc<Health>,
}

impl Pipe {
    pub(crate) fn new(
        stdin: Input,
        stdout: ChildStdout,
        max_line: usize,
        process: Arc<Process>,
        health: Arc<Health>,
    ) -> Self {
        Pipe {
            stdout: BufReader::new(stdout),
            line: Vec::new(),
            max_line,
            input: Arc::new(Mutex::new(Some(stdin))),
            process,
            health,
        }
    }

    /// The next line, without its end; `None` when there is none any more.
    async fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let read = self.stdout.fill_buf().await;
            let available = match read {
                Ok(available) if !available.is_empty() => available,
                Ok(_) => {
                    self.health.broke("the server ended");
                    return None;
                }
                Err(error) => {
                    self.health.broke(format!("reading from the server failed: {error}"));
                    return None;
                }
            };
            let end = available.iter().position(|b| *b == b'\n');
            let take = end.map_or(available.len(), |at| at + 1);
            if self.line.len() + take > self.max_line {
                self.health.broke(format!("the server sent a line of more than {} bytes", self.max_line));
                self.process.kill();
                return None;
            }
            self.line.extend(available.iter().take(end.unwrap_or(take)));
            self.stdout.consume(take);
            if end.is_some() {
                return Some(std::mem::take(&mut self.line));
            }
        }
    }
}

/// What a line means for the client; `None` for what is passed over.
fn understand(line: &[u8], health: &Health) -> Option<RxJsonRpcMessage<RoleClient>> {
    let line = std::str::from_utf8(line).unwrap_or_default();
    let answer = || is_mere_answer(line).then(|| serde_json::from_str(line).ok()).flatten();
    if let Some(message) = tool_call::answer(line).or_else(answer) {
        let late = match &message {
            JsonRpcMessage::Response(answer) => is_late(&answer.id, health),
            JsonRpcMessage::Error(answer) => answer.id.as_ref().is_some_and(|id| is_late(id, health)),
            _ => false,
        };
        return (!late).then_some(message);
    }
    let Ok(value) = serde_json::from_str::<Value>(line) else {
        tracing::debug!(bytes = line.len(), "a line that is not JSON was passed over");
        return None;
    };
    match value.get("method").and_then(Value::as_str) {
        // A flood of these would be handled one task each.
        Some("notifications/message") => return None,
        Some("notifications/progress") => {
            let report = value.get("params").and_then(|params| serde_json::from_value(params.clone()).ok());
            if let Some(report) = report {
                health.calls().progress(&report);
            }
            return None;
        }
        Some("notifications/tools/list_changed") => health.tools_changed(),
        _ => {}
    }
    health.saw_tools(&value);
    let id = value.get("id").cloned();
    let is_answer = value.get("method").is_none();
    if is_answer && id.as_ref().is_some_and(|id| health.is_late(id)) {
        return None;
    }
    match serde_json::from_value(value) {
        Ok(message) => is_new(&message, health).then_some(message),
        // The call that waits for it must not wait for ever.
        Err(error) if is_answer => {
            let id: RequestId = serde_json::from_value(id?).ok()?;
            let problem = format!("the server's answer does not fit the protocol: {error}");
            Some(JsonRpcMessage::Error(JsonRpcError::new(Some(id), ErrorData::internal_error(problem, None))))
        }
        Err(_) => None,
    }
}

/// Whether a message is not a question that is open already, which it then is.
pub(crate) fn is_new(message: &RxJsonRpcMessage<RoleClient>, health: &Health) -> bool {
    match message {
        JsonRpcMessage::Request(request) => health.asked().begin(request.id.clone()),
        JsonRpcMessage::Notification(told) => {
            if let ServerNotification::CancelledNotification(cancelled) = &told.notification
                && let Some(id) = &cancelled.params.request_id
            {
                health.asked().end(id);
            }
            true
        }
        _ => true,
    }
}

/// The question that a message to the server answers.
pub(crate) fn answered(message: &TxJsonRpcMessage<RoleClient>) -> Option<RequestId> {
    match message {
        JsonRpcMessage::Response(answer) => Some(answer.id.clone()),
        JsonRpcMessage::Error(answer) => answer.id.clone(),
        _ => None,
    }
}

fn is_late(id: &RequestId, health: &Health) -> bool {
    match id {
        RequestId::Number(id) => health.is_late(&Value::from(*id)),
        RequestId::String(_) => false,
    }
}

impl Transport<RoleClient> for Pipe {
    type Error = io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        let (input, health) = (Arc::clone(&self.input), Arc::clone(&self.health));
        let process = Arc::clone(&self.process);
        if let JsonRpcMessage::Request(request) = &item
            && let (ClientRequest::InitializeRequest(_), RequestId::Number(id)) =
                (&request.request, &request.id)
        {
            self.health.began_again(*id);
        }
        async move {
            let mut line = match tool_call::written(&item) {
                Some(line) => line,
                None => serde_json::to_vec(&item)?,
            };
            line.push(b'\n');
            let mut input = input.lock().await;
            let mut open = input.take().ok_or(io::ErrorKind::BrokenPipe)?;
            let write = async {
                open.write_all(&line).await?;
                open.flush().await
            };
            let written = match tokio::time::timeout(WRITE_DEADLINE, write).await {
                Ok(written) => written,
                Err(_) => {
                    let waited = WRITE_DEADLINE.as_secs();
                    health.broke(format!("the server has not read its input for {waited} s"));
                    process.kill();
                    Err(io::ErrorKind::TimedOut.into())
                }
            };
            if written.is_ok() {
                *input = Some(open);
            }
            if let Some(id) = answered(&item) {
                health.asked().end(&id);
            }
            written
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            // What is above it stays in the pipe.
            self.health.asked().room().await;
            let line = self.next_line().await?;
            if let Some(message) = understand(&line, &self.health) {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        // Closing its input asks the server to end; its output ends when it did.
        if let Ok(mut input) = self.input.try_lock() {
            *input = None;
        }
        let mut rest = [0; 4_096];
        let ended = async { while self.stdout.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
        let _ = tokio::time::timeout(GRACE, ended).await;
        self.process.kill();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_to_the_newer_handshake_is_passed_over() {
        let health = Health::default();
        let answer = |id: i64| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
        assert!(understand(answer(0).as_bytes(), &health).is_some());
        health.began_again(1);
        assert!(understand(answer(0).as_bytes(), &health).is_none());
        assert!(understand(answer(1).as_bytes(), &health).is_some());
        let request = br#"{"jsonrpc":"2.0","id":0,"method":"ping"}"#;
        assert!(understand(request, &health).is_some(), "the server counts its own requests");
    }
}
