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
use crate::permissions::{Isolation, NetworkRule, Permissions, Reach, SecurityPolicy, ServerRules};
use crate::process::Hold;

/// What Git is told about repositories without a working tree, which are nothing but files.
const GIT: [(&str, &str); 3] = [
    ("GIT_CONFIG_COUNT", "1"),
    ("GIT_CONFIG_KEY_0", "safe.bareRepository"),
    ("GIT_CONFIG_VALUE_0", "explicit"),
];

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
    /// What its rules let it read outside of the project, and of the project in any case.
    read: Vec<PathBuf>,
    /// What its rules let it change.
    write: Vec<ProjectPath>,
    /// Whether it was not said how it is kept apart, so that it goes on without where it must.
    is_by_default: bool,
}

enum How {
    Plain,
    Jailed { helper: PathBuf, jail: Jail, cgroup: Option<PathBuf> },
    Contained { helper: PathBuf, container: Container },
}

impl Launch {
    /// By the rules of server `name`: how it is kept apart stands there, and if not, it is kept apart by
    /// the kernel.
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
        let is_by_default = rules.isolation.is_none() && rules.restriction().is_none() && !needed;
        let isolation = match rules.isolation {
            None if is_by_default && jail::helper(setting.helper).is_err() => Isolation::None,
            None => Isolation::Kernel,
            Some(Isolation::None) if needed => {
                let problem = "`isolation: none` contradicts the security policy `no_system_access`";
                return Err(invalid(problem.to_owned()));
            }
            Some(isolation) => isolation,
        };
        let (network, allowed) = match &rules.network {
            None | Some(NetworkRule::All(false)) => (Network::None, None),
            Some(NetworkRule::All(true)) => (Network::Host, None),
            Some(NetworkRule::Only(places)) => {
                (Network::Proxy, Some(AllowList::parse(places).map_err(&invalid)?))
            }
        };
        if allowed.is_some() && matches!(isolation, Isolation::None | Isolation::Container) {
            let problem = "a list in `network` holds only at the isolation levels `kernel` and `strict`";
            return Err(invalid(problem.to_owned()));
        }
        let places = |paths: &[String]| {
            paths.iter().map(|path| path.parse::<ProjectPath>()).collect::<Result<Vec<_>, Error>>()
        };
        let (written, project_read) = (places(&rules.write)?, places(&rules.project_read)?);
        let reach = permissions.reach_of_server(name);
        let below = |places: &[ProjectPath]| below(root, places);
        let write = below(&written);
        let (hidden, frozen) = (below(&reach.hidden), below(&reach.frozen));
        let mut of_project = below(&reach.read);
        of_project.extend(below(&project_read));
        let outside = || rules.read.iter().map(PathBuf::from);
        let read: Vec<PathBuf> = outside().chain(below(&project_read)).collect();
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
                let bwrap = bwrap.transpose()?;
                let readable = of_project.into_iter().chain(outside()).collect();
                let jail = Jail {
                    write,
                    hidden,
                    frozen,
                    network,
                    memory,
                    processes,
                    bwrap,
                    ..Jail::reading(readable)
                };
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
                    read: outside().collect(),
                    project_read: of_project,
                    write,
                    hidden,
                    frozen,
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
        let (name, root) = (name.to_owned(), root.to_owned());
        Ok(Launch { name, root, how, egress, read, write: written, is_by_default })
    }

    /// Tries whether the level can be had here, and tells it for the audit. One that nobody asked for
    /// and that can't be had is done without.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) with what is missing.
    pub(crate) async fn check(&mut self) -> Result<String, Error> {
        match self.try_level().await {
            Err(error) if self.is_by_default => {
                self.how = How::Plain;
                Ok(format!("{}: none ({error})", self.name))
            }
            Ok(_) if self.is_by_default && matches!(self.how, How::Plain) => {
                Ok(format!("{}: none (there is no helper for more, see `sandbox_hook`)", self.name))
            }
            other => other,
        }
    }

    /// Whether a process may bring in content from elsewhere than the project.
    pub(crate) fn reaches_network(&self) -> bool {
        match &self.how {
            How::Plain => true,
            How::Jailed { jail: Jail { network, .. }, .. }
            | How::Contained { container: Container { network, .. }, .. } => *network != Network::None,
        }
    }

    async fn try_level(&self) -> Result<String, Error> {
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

    /// As it is for one who reaches no more than `reach`.
    pub(crate) fn narrowed(&self, reach: &Reach) -> Launch {
        let own = Reach { read: reach.read.clone(), write: self.write.clone(), ..Reach::default() };
        let reach = own.within(reach.clone());
        let below = |places: &[ProjectPath]| below(&self.root, places);
        let how = match &self.how {
            How::Plain => How::Plain,
            How::Jailed { helper, jail, cgroup } => {
                let mut read = below(&reach.read);
                read.extend(self.read.iter().cloned());
                let jail = Jail {
                    read,
                    write: below(&reach.write),
                    hidden: below(&reach.hidden),
                    frozen: below(&reach.frozen),
                    ..jail.clone()
                };
                How::Jailed { helper: helper.clone(), jail, cgroup: cgroup.clone() }
            }
            How::Contained { helper, container } => {
                let container = Container {
                    project_read: below(&reach.read),
                    write: below(&reach.write),
                    hidden: below(&reach.hidden),
                    frozen: below(&reach.frozen),
                    ..container.clone()
                };
                How::Contained { helper: helper.clone(), container }
            }
        };
        Launch {
            name: self.name.clone(),
            root: self.root.clone(),
            how,
            egress: self.egress.clone(),
            read: self.read.clone(),
            write: self.write.clone(),
            is_by_default: self.is_by_default,
        }
    }

    /// A command that starts `program` in `cwd`, a directory of the project, with nothing in its
    /// environment but `PATH`, what keeps Git from what it did not make, and `env`; and what must be held
    /// as long as it runs.
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
        // A directory of the project that merely looks like a repository must not configure Git.
        for (name, value) in GIT {
            command.env(name, value);
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

    /// The image that its program is in, where that is a container's.
    pub(crate) fn image(&self) -> Option<&str> {
        match &self.how {
            How::Contained { container, .. } => Some(&container.image),
            How::Plain | How::Jailed { .. } => None,
        }
    }

    /// How the process spells the directory that is [`VIRTUAL_ROOT`] to agents.
    pub(crate) fn root(&self) -> &Path {
        match &self.how {
            How::Contained { .. } => Path::new(VIRTUAL_ROOT),
            How::Plain | How::Jailed { .. } => &self.root,
        }
    }
}

fn below(root: &Path, places: &[ProjectPath]) -> Vec<PathBuf> {
    let below = |place: &ProjectPath| match place.relative() {
        "" => root.to_owned(),
        relative => root.join(relative),
    };
    places.iter().map(below).collect()
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
