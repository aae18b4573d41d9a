//! The main job as a process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

/// Longer than any job here takes on a loaded machine: a hang must fail, not wait for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// A command line of the main job with an environment of its own: nothing of ours comes through.
#[derive(Clone, Debug)]
pub struct Job {
    program: PathBuf,
    dir: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
}

/// A job that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A job that goes on.
#[derive(Debug)]
pub struct Running(Child);

impl Job {
    pub fn new<A: Into<OsString>>(program: &str, args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Job { program: program.into(), dir: crate::root(), args, env: Vec::new() }
    }

    #[must_use]
    pub fn env<V: Into<String>>(mut self, vars: impl IntoIterator<Item = (&'static str, V)>) -> Self {
        self.env.extend(vars.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        self
    }

    /// Starts it.
    pub fn start(&self) -> io::Result<Running> {
        Command::new(&self.program)
            .args(&self.args)
            .current_dir(&self.dir)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map(Running)
    }

    /// Runs it to its end.
    pub async fn finish(&self) -> io::Result<Finished> {
        self.start()?.finish().await
    }
}

impl Running {
    /// Waits for its end.
    pub async fn finish(self) -> io::Result<Finished> {
        let output = tokio::time::timeout(LIMIT, self.0.wait_with_output())
            .await
            .map_err(|_| io::Error::other(format!("the job did not end within {} s", LIMIT.as_secs())))??;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Finished {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    /// Asks it to end, as Ctrl-C does.
    pub fn interrupt(&self) -> io::Result<()> {
        let pid = self.0.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.ok_or_else(|| io::Error::other("the job is over"))?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT).map_err(io::Error::from)
    }

    /// Ends it as `kill -9` does, and gives what the system says of its end.
    pub async fn kill(mut self) -> io::Result<ExitStatus> {
        self.0.kill().await?;
        self.0.wait().await
    }
}

/// What the agents delivered below `out`, by path: all but the engine's own files.
pub fn files(out: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![out.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.strip_prefix(out).unwrap_or(&path).to_string_lossy().into_owned();
            if [".coral", "report.html", "run.json"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.insert(name, std::fs::read_to_string(&path)?);
            }
        }
    }
    Ok(files)
}
