//! The OS sandbox of server processes on Linux.
//!
//! A server starts through a helper, which is a program of one thread: what must be set up
//! between a fork and an exec can't be done safely in a process of many threads. The helper runs
//! twice. The outer stage makes the namespaces, by itself or by bubblewrap, and then waits for the
//! end of its owner or of the server; the inner stage is in them, closes what the server must not
//! reach, gives up its rights and becomes the server. When the outer stage ends, everything inside
//! ends with it, whatever it forked.

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod loopback;
#[cfg(target_os = "linux")]
mod strict;
#[cfg(target_os = "linux")]
mod watch;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use coral_core::Error;
use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
pub(crate) use self::cgroup::{Cgroup, delegated, hands_on};

/// The first argument that makes a program a helper.
pub(crate) const FLAG: &str = "--coral-jail";

static HOOKED: AtomicBool = AtomicBool::new(false);

/// What a server can reach of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Network {
    /// Nothing, not even this machine.
    None,
    /// A proxy in this process, and nothing else.
    Proxy,
    /// What this process reaches.
    Host,
}

/// Which of its stages a helper is in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// It makes the namespaces and waits.
    Outer,
    /// It is in namespaces of its own making.
    Inner {
        /// The reading end of a pipe that the outer stage holds the other end of.
        lifeline: i32,
    },
    /// It is in namespaces that bubblewrap made.
    Wrapped {
        /// As above.
        lifeline: i32,
    },
    /// It watches over a container.
    Container {
        /// The container engine's program.
        engine: PathBuf,
        /// The container's name.
        name: String,
    },
    /// It removes a container when the process that started it is gone.
    Reaper {
        /// The container engine's program.
        engine: PathBuf,
        /// The container's name.
        name: String,
    },
}

/// What a server may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Jail {
    /// What it may read, and run.
    pub(crate) read: Vec<PathBuf>,
    /// What it may change too.
    pub(crate) write: Vec<PathBuf>,
    /// What is not there for it, whatever lies around.
    #[serde(default)]
    pub(crate) hidden: Vec<PathBuf>,
    /// What it may not change, whatever lies around.
    #[serde(default)]
    pub(crate) frozen: Vec<PathBuf>,
    pub(crate) network: Network,
    /// The most memory that it may take, in bytes: all of its processes together where there is a
    /// control group, else each of them.
    pub(crate) memory: u64,
    /// The most processes and threads that it may have.
    pub(crate) processes: u64,
    /// bubblewrap's program, for the level `strict`.
    pub(crate) bwrap: Option<PathBuf>,
    /// The control group that the server goes into.
    pub(crate) cgroup: Option<PathBuf>,
    /// The process that wants it started.
    pub(crate) parent: u32,
    pub(crate) stage: Stage,
}

impl Jail {
    /// One that reads `read` and nothing else, with the usual limits.
    pub(crate) fn reading(read: Vec<PathBuf>) -> Self {
        Jail {
            read,
            write: Vec::new(),
            hidden: Vec::new(),
            frozen: Vec::new(),
            network: Network::None,
            memory: MEMORY,
            processes: PROCESSES,
            bwrap: None,
            cgroup: None,
            parent: 0,
            stage: Stage::Outer,
        }
    }
}

/// How much memory a server may take if its rules do not say, in bytes.
pub(crate) const MEMORY: u64 = 4 << 30;

/// How many processes and threads a server may have if its rules do not say.
pub(crate) const PROCESSES: u64 = 1_024;

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

/// A program in `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| is_program(file))
}

#[cfg(unix)]
fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(file: &Path) -> bool {
    file.is_file()
}
