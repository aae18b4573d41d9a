//! Waiting for the end of one of two: the owner, or what was started for it.
//!
//! `PR_SET_PDEATHSIG` would not do for the owner: it fires when the *thread* that started the
//! helper ends, and runtimes end threads as they like.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};

use super::{FLAG, Jail, Stage};

/// A hold on the process that wanted a server. Its number can go to nobody else meanwhile.
pub(super) fn owner(parent: u32) -> Result<OwnedFd, String> {
    let owner = open(parent)?;
    // It may have died, and its number be another's, before it was opened.
    if getppid().is_none_or(|pid| pid.as_raw_nonzero().get().unsigned_abs() != parent) {
        return Err("the program that wanted it is gone".to_owned());
    }
    Ok(owner)
}

fn open(pid: u32) -> Result<OwnedFd, String> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("there is no such process")?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|error| format!("holding on to a process: {error}"))
}

fn wait(processes: &[&OwnedFd]) -> Result<Vec<bool>, String> {
    let mut polled: Vec<PollFd<'_>> = processes.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)).collect();
    rustix::io::retry_on_intr(|| poll(&mut polled, None))
        .map_err(|error| format!("waiting for a process: {error}"))?;
    Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// Ends with `child`, or ends it with the owner.
pub(super) fn until_either_ends(mut child: Child, owner: &OwnedFd) -> Result<Infallible, String> {
    let started = open(child.id())?;
    if wait(&[owner, &started])?.first() == Some(&true) {
        let _ = pidfd_send_signal(&started, Signal::KILL);
    }
    let status = child.wait().map_err(|error| format!("waiting for the server: {error}"))?;
    std::process::exit(status.code().unwrap_or(125));
}

/// Starts a container engine's client and sees to it that the container ends with the client, with
/// its owner, and with this process.
pub(super) fn contain(
    jail: Jail,
    engine: &Path,
    name: &str,
    command: &[OsString],
) -> Result<Infallible, String> {
    let owner = owner(jail.parent)?;
    let [program, args @ ..] = command else { return Err("there is no command".to_owned()) };
    let reaper = Stage::Reaper { engine: engine.to_owned(), name: name.to_owned() };
    let spec = Jail { parent: std::process::id(), stage: reaper, ..jail };
    let spec = serde_json::to_string(&spec).map_err(|error| error.to_string())?;
    // In a group of its own: it must be there when this group is killed.
    let mut watcher = Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::process_group(&mut watcher, 0);
    watcher.arg(FLAG).arg(spec).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    watcher.spawn().map_err(|error| format!("starting the watcher: {error}"))?;
    let client = Command::new(program).args(args).spawn();
    until_either_ends(
        client.map_err(|error| format!("starting `{}`: {error}", program.to_string_lossy()))?,
        &owner,
    )
}

/// Removes a container once the process that started this one is gone.
pub(super) fn reap(parent: u32, engine: &Path, name: &str) -> Result<Infallible, String> {
    if let Ok(owner) = owner(parent) {
        wait(&[&owner])?;
    }
    // The container may not be there yet, if its client was killed in the midst of making it.
    for attempt in 0..20_u32 {
        let status = Command::new(engine).args(["rm", "--force", name]).status();
        let listed = Command::new(engine)
            .args(["ps", "--all", "--quiet", "--filter"])
            .arg(format!("name=^{name}$"))
            .output();
        let gone = listed.is_ok_and(|listed| listed.status.success() && listed.stdout.is_empty());
        if status.is_ok_and(|status| status.success()) && gone && attempt > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    std::process::exit(0);
}
