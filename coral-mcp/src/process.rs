//! A server's process: started with an empty environment in a group of its own, and ended with
//! everything that it started.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coral_core::Error;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::text::clean;

const STDERR_LINES: usize = 20;
const STDERR_LINE: usize = 500;

/// A process and everything in its group. Dropping it kills them all.
#[derive(Debug)]
pub(crate) struct Group {
    /// Held so that the process is reaped, and not before its group is killed: its number can't
    /// go to another process meanwhile.
    child: Child,
    id: Option<Pid>,
    killed: AtomicBool,
}

impl Group {
    /// Of a child that leads a group of its own.
    pub(crate) fn of(child: Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Group { child, id, killed: AtomicBool::new(false) }
    }

    /// Ends every process of the group, at once.
    pub(crate) fn kill(&self) {
        if self.killed.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(id) = self.id
            && let Err(error) = kill_process_group(id, Signal::KILL)
        {
            tracing::debug!(%error, "a process group was gone already");
        }
    }

    /// Waits until the leader ended, and ends what is left of its group.
    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        if let Some(id) = self.id {
            // Noticed but not reaped, so that the group's number is still its own when it is
            // killed.
            let ended = move || {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                rustix::io::retry_on_intr(|| waitid(WaitId::Pid(id), options))
            };
            let _ = tokio::task::spawn_blocking(ended).await;
        }
        self.kill();
        self.child.wait().await
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running server. Dropping it kills its whole group.
#[derive(Debug)]
pub(crate) struct Process {
    group: Group,
    stderr: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    pub(crate) fn spawn(name: &str, mut command: Command) -> Result<(Self, ChildStdin, ChildStdout), Error> {
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            Error::invalid(format!("server `{name}`"), format!("`{program}` could not be started: {error}"))
                .with_help("check `command` and `cwd` in the servers file")
        })?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::invalid(format!("server `{name}`"), "its pipes could not be opened"));
        };
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(pipe) = child.stderr.take() {
            tokio::spawn(keep_last(pipe, Arc::clone(&stderr)));
        }
        Ok((Process { group: Group::of(child), stderr }, stdin, stdout))
    }

    /// Ends the process and everything in its group, at once.
    pub(crate) fn kill(&self) {
        self.group.kill();
    }

    /// The last lines that the process wrote to its error output.
    pub(crate) fn stderr(&self) -> String {
        let lines = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

/// Reads for ever, so that the process never waits for us, and keeps the last lines.
async fn keep_last(mut pipe: impl AsyncRead + Unpin, kept: Arc<Mutex<VecDeque<String>>>) {
    let mut buffer = [0; 4_096];
    let mut line = Vec::new();
    while let Ok(n) = pipe.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        for byte in buffer.iter().take(n) {
            if *byte != b'\n' {
                if line.len() < STDERR_LINE {
                    line.push(*byte);
                }
                continue;
            }
            let text = clean(&String::from_utf8_lossy(&line), STDERR_LINE);
            line.clear();
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == STDERR_LINES {
                kept.pop_front();
            }
            kept.push_back(text);
        }
    }
}
