//! A server's process in a container, with limits like those of the other levels.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use coral_core::Error;

use crate::jail::{Network, find_program};
use crate::path::VIRTUAL_ROOT;

/// The engines that are looked for if none is named, in this order.
const ENGINES: [&str; 2] = ["docker", "podman"];

/// What the engine's client needs of the environment. A server can't have variables of these names:
/// it gets its own through the client's.
const CLIENTS: [&str; 10] = [
    "PATH",
    "HOME",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "CONTAINER_HOST",
    "CONTAINERS_CONF",
];

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Starts containers of one image.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) engine: PathBuf,
    pub(crate) image: String,
    /// The project's directory, which is [`VIRTUAL_ROOT`] in the container.
    pub(crate) root: PathBuf,
    /// What else it reads, under its own name.
    pub(crate) read: Vec<PathBuf>,
    /// What of the project it reads.
    pub(crate) project_read: Vec<PathBuf>,
    /// The directories of the project that it writes to, below the root.
    pub(crate) write: Vec<PathBuf>,
    /// What is not there for it, and what it may not change, whatever lies around.
    pub(crate) hidden: Vec<PathBuf>,
    pub(crate) frozen: Vec<PathBuf>,
    pub(crate) network: Network,
    pub(crate) memory: u64,
    pub(crate) processes: u64,
}

/// The engine that is named, or the first that is there.
pub(crate) fn engine(named: Option<&str>) -> Result<PathBuf, String> {
    match named {
        Some(path) if path.contains('/') => Ok(PathBuf::from(path)),
        Some(name) => {
            find_program(name).ok_or_else(|| format!("the container engine `{name}` is not in `PATH`"))
        }
        None => ENGINES.iter().find_map(|name| find_program(name)).ok_or_else(|| {
            format!(
                "there is no container engine: neither of {} is in `PATH`",
                ENGINES.map(|e| format!("`{e}`")).join(", ")
            )
        }),
    }
}

impl Container {
    /// A name for the next container.
    pub(crate) fn name(&self) -> String {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("coral-{}-{n}", std::process::id())
    }

    /// The engine's arguments for a command that runs in `cwd`, a directory below the root.
    pub(crate) fn arguments(
        &self,
        name: &str,
        program: &str,
        args: &[String],
        env: &BTreeMap<String, String>,
        cwd: &Path,
    ) -> Result<Vec<OsString>, Error> {
        if let Some(name) = env.keys().find(|name| CLIENTS.contains(&name.as_str())) {
            return Err(Error::invalid(
                "server",
                format!("`{name}` can't be set for a server in a container"),
            )
            .with_help("set it in the image, or start the server through `env` in its command"));
        }
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |list: &[&str]| words.extend(list.iter().map(OsString::from));
        // Nothing is fetched that was not looked at.
        add(&["run", "--rm", "--interactive", "--pull", "never", "--name", name]);
        add(&["--network", if self.network == Network::Host { "bridge" } else { "none" }]);
        add(&["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]);
        let memory = self.memory.to_string();
        // As much with swap as without: none of it is swap.
        add(&["--memory", &memory, "--memory-swap", &memory]);
        add(&["--pids-limit", &self.processes.to_string()]);
        add(&["--ulimit", "core=0:0", "--ulimit", "nofile=4096:4096"]);
        #[cfg(unix)]
        {
            use rustix::process::{getgid, getuid};
            // Files that it makes are the user's, as they are without a container.
            let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
            if self.engine.file_name().is_some_and(|name| name == "podman") {
                // Its usual bound is above what root without `CAP_SYS_RESOURCE` may set.
                add(&["--ulimit", "nproc=4096:4096"]);
                if uid != 0 {
                    add(&["--userns", "keep-id"]);
                }
            }
            add(&["--user", &format!("{uid}:{gid}")]);
        }
        add(&["--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=268435456", "--env", "HOME=/tmp"]);
        let mount = |from: &Path, to: &Path, mode: &str| -> Result<OsString, Error> {
            let text =
                |path: &Path| path.to_str().filter(|text| !text.contains([',', '"'])).map(str::to_owned);
            match (text(from), text(to)) {
                (Some(from), Some(to)) => Ok(format!("type=bind,source={from},target={to}{mode}").into()),
                _ => Err(Error::invalid(
                    "server",
                    format!("`{}` can't be mounted under its name", from.display()),
                )),
            }
        };
        let inside = |path: &Path| {
            let below = path.strip_prefix(&self.root).unwrap_or(Path::new(""));
            if below.as_os_str().is_empty() {
                PathBuf::from(VIRTUAL_ROOT)
            } else {
                Path::new(VIRTUAL_ROOT).join(below)
            }
        };
        let mut mounts = Vec::new();
        for path in self.project_read.iter().filter(|path| path.exists()) {
            mounts.push(mount(path, &inside(path), ",readonly")?);
        }
        for path in self.read.iter().filter(|path| path.exists()) {
            mounts.push(mount(path, path, ",readonly")?);
        }
        for path in self.write.iter().filter(|path| path.exists()) {
            mounts.push(mount(path, &inside(path), "")?);
        }
        for path in self.frozen.iter().filter(|path| path.exists()) {
            mounts.push(mount(path, &inside(path), ",readonly")?);
        }
        for path in self.hidden.iter().filter(|path| path.exists()) {
            if path.is_dir() {
                mounts.push(format!("type=tmpfs,target={},readonly", inside(path).display()).into());
            } else {
                mounts.push(mount(Path::new("/dev/null"), &inside(path), ",readonly")?);
            }
        }
        for mount in mounts {
            words.extend([OsString::from("--mount"), mount]);
        }
        for name in env.keys() {
            // Its value comes from the client's environment: what is in the arguments, all can see.
            words.extend(["--env".into(), OsString::from(name)]);
        }
        words.extend([
            "--workdir".into(),
            inside(cwd).into(),
            "--entrypoint".into(),
            OsString::from(program),
        ]);
        words.push(OsString::from(&self.image));
        words.extend(args.iter().map(OsString::from));
        Ok(words)
    }

    /// The environment of the engine's client, but for the server's own variables.
    pub(crate) fn client_environment() -> impl Iterator<Item = (&'static str, OsString)> {
        CLIENTS.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
    }
}
