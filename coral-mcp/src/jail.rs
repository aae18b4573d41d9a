//! The OS sandbox of server processes on Linux.
//!
//! A server starts through a helper, which is a program of one thread: what must be set up
//! between a fork and an exec can't be done safely in a process of many threads. The helper runs
//! twice. The outer stage makes the namespaces; the inner one is the first process in them, mounts
//! what the server may see of `/proc` and a scratch directory, gives up its rights and becomes the
//! server. When the outer stage dies, everything inside dies with it, whatever it forked.

#[cfg(target_os = "linux")]
mod linux;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use coral_core::Error;
use serde::{Deserialize, Serialize};

/// The first argument that makes a program a helper.
pub(crate) const FLAG: &str = "--coral-jail";

static HOOKED: AtomicBool = AtomicBool::new(false);

/// What a server may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Jail {
    /// What it may read, and run.
    pub(crate) read: Vec<PathBuf>,
    /// What it may change too.
    pub(crate) write: Vec<PathBuf>,
    /// Whether it shares the system's network.
    pub(crate) network: bool,
    /// The process that wants it started.
    pub(crate) parent: u32,
    /// Whether the namespaces are made already.
    pub(crate) inner: bool,
}

/// Makes this program fit to start servers in the OS sandbox: call it first in `main`, before any
/// thread is started.
///
/// In the program itself it does next to nothing. When the program is started again as the
/// sandbox's helper it does not return: it becomes the server. Without it, name another program
/// that calls it, such as the `coral-jail` of this crate, by
/// [`helper`](crate::SandboxBuilder::helper).
///
/// ```
/// coral_mcp::sandbox_hook();
/// // The rest of `main`, its runtime too, begins here.
/// ```
pub fn sandbox_hook() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|flag| flag == FLAG) {
        let problem = become_server(args);
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "the sandbox could not be set up: {problem}");
        std::process::exit(126);
    }
    HOOKED.store(true, Ordering::Relaxed);
}

#[cfg(target_os = "linux")]
fn become_server(args: impl Iterator<Item = std::ffi::OsString>) -> String {
    match linux::run(args) {
        Err(problem) => problem,
        Ok(never) => match never {},
    }
}

#[cfg(not(target_os = "linux"))]
fn become_server(_args: impl Iterator<Item = std::ffi::OsString>) -> String {
    "there is none on this system".to_owned()
}

/// The helper, if there is one.
///
/// # Errors
/// [`Invalid`](coral_core::ErrorKind::Invalid) if there is none: nothing starts unconfined that
/// should be confined.
pub(crate) fn helper(named: Option<&PathBuf>) -> Result<PathBuf, Error> {
    let none = |problem: &str| {
        Err(Error::invalid("sandbox", problem)
            .with_help("see `sandbox_hook`, or say `isolation: none` and leave `no_system_access` out"))
    };
    if cfg!(not(target_os = "linux")) {
        return none("servers can't be isolated on this system");
    }
    match named {
        Some(helper) => Ok(helper.clone()),
        None if HOOKED.load(Ordering::Relaxed) => {
            std::env::current_exe().map_err(|error| Error::storage("finding this program's file", error))
        }
        None => none("servers must be isolated, and this program is not fit to be the helper for that"),
    }
}
