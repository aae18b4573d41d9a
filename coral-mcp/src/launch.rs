//! How a server's process is started, at each level of isolation.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coral_core::{Clock, Error, digest};
use tokio::process::Command;

use crate::audit::Audit;
use crate::container::{self, Container};
use crate::egress::{AllowList, Egress};
use crate::jail::{self, FLAG, Jail, Network, Stage, find_program};
use crate::path::{ProjectPath, VIRTUAL_ROOT};
use crate::permissions::{Isolation, NetworkRule, Permissions, SecurityPolicy, ServerRules};
use crate::process::Hold;

/// How long the helper may take to show that a level can be had.
const PROBE: Duration = Duration::from_secs(20);

/// What all servers of a sandbox share.
pub(crate) struct Setting<'a> {
    pub(crate) permissions: &'a Permissions,
    pub(crate) helper: Option<&'a PathBuf>,
    /// Where control groups may be made.
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) audit: Arc<dyn Audit>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Starts the processes of one server.
pub(crate) struct Launch {
    name: String,
    root: PathBuf,
    how: How,
    egress: Option<Arc<Egress>>,
}

enum How {
    Plain,
    Jailed { helper: PathBuf, jail: Jail, cgroup: Option<PathBuf> },
    Contained { helper: PathBuf, container: Container },
}

impl Launch {
    /// By the rules of server `name`: how it is kept apart stands there, and under
    /// `no_system_access` it is kept apart by the kernel at least.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the rules contradict one another or a policy,
    /// and if something that the level needs is not there.
    pub(crate) fn of(
        name: &str,
        rules: &ServerRules,
        root: &Path,
        setting: &Setting<'_>,
    ) -> Result<Self, Error> {
        let permissions = setting.permissions;
        let invalid = |problem: String| {
            Error::invalid(format!("server `{name}`"), problem).at(permissions.source().to_owned())
        };
        let needed = permissions.enforces(SecurityPolicy::NoSystemAccess);
        let isolation = match rules.isolation {
            None if needed => Isolation::Kernel,
            None => Isolation::None,
            Some(Isolation::None) if needed => {
                let problem = "`isolation: none` contradicts the security policy `no_system_access`";
                return Err(invalid(problem.to_owned()));
            }
            Some(isolation) => isolation,
        };
        let (network, allowed) = match &rules.network {
            NetworkRule::All(false) => (Network::None, None),
            NetworkRule::All(true) => (Network::Host, None),
            NetworkRule::Only(places) => (Network::Proxy, Some(AllowList::parse(places).map_err(&invalid)?)),
        };
        if allowed.is_some() && matches!(isolation, Isolation::None | Isolation::Container) {
            let problem = "a list in `network` holds only at the isolation levels `kernel` and `strict`";
            return Err(invalid(problem.to_owned()));
        }
        let below = |path: &String| Ok(root.join(path.parse::<ProjectPath>()?.relative()));
        let write: Vec<PathBuf> = rules.write.iter().map(below).collect::<Result<_, Error>>()?;
        let read = || rules.read.iter().map(PathBuf::from);
        let memory = rules.memory_mib.map_or(jail::MEMORY, |mib| mib.saturating_mul(1 << 20));
        let processes = rules.processes.unwrap_or(jail::PROCESSES);
        let how = match isolation {
            Isolation::None => How::Plain,
            Isolation::Kernel | Isolation::Strict => {
                let bwrap = (isolation == Isolation::Strict).then(|| {
                    find_program("bwrap").ok_or_else(|| {
                        invalid(
                            "`isolation: strict` needs bubblewrap, and there is no `bwrap` in `PATH`"
                                .to_owned(),
                        )
                        .with_help("install the package `bubblewrap`, or say `isolation: kernel`")
                    })
                });
                let read = std::iter::once(root.to_owned()).chain(read()).collect();
                let bwrap = bwrap.transpose()?;
                let jail = Jail { write, network, memory, processes, bwrap, ..Jail::reading(read) };
                How::Jailed { helper: jail::helper(setting.helper)?, jail, cgroup: setting.cgroup.clone() }
            }
            Isolation::Container => {
                let image = rules.image.clone().ok_or_else(|| invalid("`image` is missing".to_owned()))?;
                let engine = container::engine(rules.engine.as_deref()).map_err(&invalid)?;
                let root = root.to_owned();
                let container = Container {
                    engine,
                    image,
                    root,
                    read: read().collect(),
                    write,
                    network,
                    memory,
                    processes,
                };
                How::Contained { helper: jail::helper(setting.helper)?, container }
            }
        };
        let egress = allowed.map(|allowed| {
            let (audit, clock) = (Arc::clone(&setting.audit), Arc::clone(&setting.clock));
            Arc::new(Egress { server: name.to_owned(), allowed, audit, clock })
        });
        Ok(Launch { name: name.to_owned(), root: root.to_owned(), how, egress })
    }

    /// Tries whether the level can be had here, and tells it for the audit.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) with what is missing.
    pub(crate) async fn check(&self) -> Result<String, Error> {
        let invalid = |problem: String| {
            Error::invalid(format!("server `{}`", self.name), problem)
                .with_help("a level that can't be had starts nothing; choose another by `isolation`")
        };
        let run = async |mut command: Command| {
            let output = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output();
            match tokio::time::timeout(PROBE, output).await {
                Ok(Ok(output)) if output.status.success() => Ok(()),
                Ok(Ok(output)) => {
                    let said = crate::text::clean(String::from_utf8_lossy(&output.stderr).trim(), 500);
                    Err(if said.is_empty() { output.status.to_string() } else { said })
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no end within {} s", PROBE.as_secs())),
            }
        };
        let shown = match &self.how {
            How::Plain => return Ok(format!("{}: none", self.name)),
            How::Jailed { helper, jail, cgroup } => {
                // All but the listener, for which there is no socket to hand it out.
                let network = if jail.network == Network::Host { Network::Host } else { Network::None };
                let (command, _) = prepare(helper, &Jail { network, ..jail.clone() }, cgroup.as_deref())
                    .map_err(&invalid)?;
                let level = if jail.bwrap.is_some() { Isolation::Strict } else { Isolation::Kernel };
                run(command)
                    .await
                    .map_err(|why| invalid(format!("`isolation: {}` can't be had: {why}", level.as_str())))?;
                let memory = if cgroup.is_some() { "control group" } else { "process" };
                format!("{}, memory {} MiB for each {memory}", level.as_str(), jail.memory >> 20)
            }
            How::Contained { container, .. } => {
                let mut command = Command::new(&container.engine);
                command.args(["image", "inspect", "--format", "{{.Id}}", &container.image]);
                run(command).await.map_err(|why| {
                    let engine = container.engine.display();
                    invalid(format!(
                        "`isolation: container` can't be had: {engine} with image `{}`: {why}",
                        container.image
                    ))
                })?;
                format!("container, memory {} MiB for all of it", container.memory >> 20)
            }
        };
        Ok(format!("{}: {shown}, network {}, profile {}", self.name, self.network(), self.profile()?))
    }

    fn network(&self) -> &'static str {
        match &self.how {
            How::Plain => "host",
            How::Jailed { jail: Jail { network, .. }, .. }
            | How::Contained { container: Container { network, .. }, .. } => match network {
                Network::None => "none",
                Network::Proxy => "by list",
                Network::Host => "host",
            },
        }
    }

    /// The beginning of a hash of all that the process may do.
    fn profile(&self) -> Result<String, Error> {
        let whole = match &self.how {
            How::Plain => return Ok(String::new()),
            How::Jailed { jail, .. } => digest(jail)?,
            How::Contained { container, .. } => digest(&format!("{container:?}"))?,
        };
        Ok(whole.chars().take(12).collect())
    }

    /// A command that starts `program` in `cwd`, a directory of the project, with nothing in its
    /// environment but `PATH` and `env`; and what must be held as long as it runs.
    pub(crate) fn command(
        &self,
        program: &OsStr,
        args: &[String],
        env: &BTreeMap<String, String>,
        cwd: &Path,
    ) -> Result<(Command, Hold), Error> {
        let invalid = |problem: String| Error::invalid(format!("server `{}`", self.name), problem);
        let mut hold = Hold::default();
        let mut command = match &self.how {
            How::Plain => {
                let mut command = Command::new(program);
                command.args(args).env_clear();
                command
            }
            How::Jailed { helper, jail, cgroup } => {
                let (mut command, held) = prepare(helper, jail, cgroup.as_deref()).map_err(invalid)?;
                command.arg(program).args(args);
                hold = held;
                command
            }
            How::Contained { helper, container } => {
                let name = container.name();
                let program =
                    program.to_str().ok_or_else(|| invalid("its command is not text".to_owned()))?;
                let words = container.arguments(&name, program, args, env, cwd)?;
                let stage = Stage::Container { engine: container.engine.clone(), name };
                let jail = Jail { stage, ..Jail::reading(Vec::new()) };
                let (mut command, held) = prepare(helper, &jail, None).map_err(invalid)?;
                command.arg(&container.engine).args(words).envs(Container::client_environment());
                hold = held;
                command
            }
        };
        // Programs are found by it, also by the servers themselves; it holds no secret.
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.envs(env).current_dir(cwd);
        if let Some(egress) = &self.egress {
            let egress = Arc::clone(egress);
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()
                .and_then(|(ours, theirs)| ours.set_nonblocking(true).map(|()| (ours, theirs)))
                .map_err(|error| invalid(format!("no way to its proxy could be made: {error}")))?;
            command.stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(theirs)));
            hold.proxied(ours, egress).map_err(|error| invalid(error.to_string()))?;
        }
        Ok((command, hold))
    }

    /// How the process spells the directory that is [`VIRTUAL_ROOT`] to agents.
    pub(crate) fn root(&self) -> &Path {
        match &self.how {
            How::Contained { .. } => Path::new(VIRTUAL_ROOT),
            How::Plain | How::Jailed { .. } => &self.root,
        }
    }
}

/// The helper's command up to the server's own.
fn prepare(helper: &Path, jail: &Jail, cgroup: Option<&Path>) -> Result<(Command, Hold), String> {
    let mut hold = Hold::default();
    let mut jail = Jail { parent: std::process::id(), ..jail.clone() };
    #[cfg(target_os = "linux")]
    if let Some(parent) = cgroup {
        let group = jail::Cgroup::make(parent, jail.memory, jail.processes)
            .map_err(|error| format!("making a control group in `{}`: {error}", parent.display()))?;
        jail.cgroup = Some(group.path().to_owned());
        hold.cgroup = Some(group);
    }
    let spec = serde_json::to_string(&jail).map_err(|error| error.to_string())?;
    let mut command = Command::new(helper);
    command.args([OsString::from(FLAG), spec.into()]).env_clear();
    Ok((command, hold))
}
