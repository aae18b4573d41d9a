//! A server's process: started with an empty environment in a group of its own, and ended with
//! everything that it started.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coral_core::Error;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest};
use tokio::net::TcpListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;

use crate::egress::Egress;
use crate::text::clean;

const STDERR_LINES: usize = 20;
const STDERR_LINE: usize = 500;

/// A process's input.
pub(crate) type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// What must be held as long as a process runs, and ends with it.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    #[cfg(target_os = "linux")]
    pub(crate) cgroup: Option<crate::jail::Cgroup>,
    /// The input, where it is a socket by which the helper hands out its listener.
    input: Option<OwnedWriteHalf>,
    proxy: JoinSet<()>,
}

impl Hold {
    /// Whether the process's input is set already.
    pub(crate) fn has_input(&self) -> bool {
        self.input.is_some()
    }

    /// Ends the process's input, if it was set.
    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// Serves the listener that comes from the other end of `ours`.
    pub(crate) fn proxied(
        &mut self,
        ours: std::os::unix::net::UnixStream,
        egress: Arc<Egress>,
    ) -> io::Result<()> {
        let (reads, writes) = tokio::net::UnixStream::from_std(ours)?.into_split();
        self.input = Some(writes);
        self.proxy.spawn(async move {
            match receive(&reads).await {
                Ok(listener) => egress.serve(listener).await,
                Err(error) => tracing::debug!(%error, "a server's way to its proxy was not made"),
            }
        });
        Ok(())
    }
}

/// A listener in the process's network namespace, handed out by the helper before the server runs.
async fn receive(from: &OwnedReadHalf) -> io::Result<TcpListener> {
    let socket: &tokio::net::UnixStream = from.as_ref();
    let listener = socket
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            let handed = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            handed.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "nothing was handed out"))
        })
        .await?;
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// A process and everything in its group. Dropping it kills them all.
#[derive(Debug)]
pub(crate) struct Group {
    /// Held so that the process is reaped, and not before its group is killed: its number can't
    /// go to another process meanwhile.
    child: Child,
    id: Option<Pid>,
    killed: AtomicBool,
    hold: Hold,
}

impl Group {
    /// Of a child that leads a group of its own.
    pub(crate) fn of(child: Child, hold: Hold) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Group { child, id, killed: AtomicBool::new(false), hold }
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
        #[cfg(target_os = "linux")]
        if let Some(group) = &self.hold.cgroup {
            group.kill();
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
    pub(crate) fn spawn(
        name: &str,
        mut command: Command,
        mut hold: Hold,
    ) -> Result<(Self, Input, ChildStdout), Error> {
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let input = hold.input.take();
        if input.is_none() {
            command.stdin(Stdio::piped());
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            Error::invalid(format!("server `{name}`"), format!("`{program}` could not be started: {error}"))
                .with_help("check `command` and `cwd` in the servers file")
        })?;
        // The other end of the input must not stay open here.
        drop(command);
        let stdin: Option<Input> = match input {
            Some(socket) => Some(Box::new(socket)),
            None => child.stdin.take().map(|pipe| Box::new(pipe) as Input),
        };
        let (Some(stdin), Some(stdout)) = (stdin, child.stdout.take()) else {
            return Err(Error::invalid(format!("server `{name}`"), "its pipes could not be opened"));
        };
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(pipe) = child.stderr.take() {
            tokio::spawn(keep_last(pipe, Arc::clone(&stderr)));
        }
        Ok((Process { group: Group::of(child, hold), stderr }, stdin, stdout))
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
            let text = clean(String::from_utf8_lossy(&line), STDERR_LINE);
            line.clear();
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == STDERR_LINES {
                kept.pop_front();
            }
            kept.push_back(text);
        }
    }
}
