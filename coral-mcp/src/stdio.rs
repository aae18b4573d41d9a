//! Servers that are processes.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use coral_core::Error;

use crate::config::{ServerSpec, TransportSpec};
use crate::health::Health;
use crate::jail::find_program;
use crate::launch::Launch;
use crate::path::ProjectPath;
use crate::pins;
use crate::pipe::Pipe;
use crate::pool::{Connector, Terms};
use crate::process::Process;
use crate::profile::{Place, holds_git};
use crate::server::{Connection, Opening};

/// Starts a server's process when it is needed.
pub(crate) struct Stdio {
    pub(crate) spec: ServerSpec,
    pub(crate) root: PathBuf,
    pub(crate) launch: Launch,
}

#[async_trait]
impl Connector for Stdio {
    async fn connect(&self, name: &str, terms: &Terms) -> Result<Connection, Error> {
        let TransportSpec::Stdio { command, args, env, cwd } = &self.spec.transport else {
            return Err(Error::invalid(format!("server `{name}`"), "it is not a process"));
        };
        let cwd = cwd.as_ref().map_or_else(|| self.root.clone(), |cwd| self.root.join(cwd));
        let (child, hold) = self.launch.command(command.as_ref(), args, env, &cwd)?;
        let (process, stdin, stdout) = Process::spawn(name, child, hold)?;
        let process = Arc::new(process);
        let health = Arc::new(Health::default());
        let pipe =
            Pipe::new(stdin, stdout, terms.limits.max_line_bytes, Arc::clone(&process), Arc::clone(&health));
        let opening = Opening { process: Some(process), health, ..terms.opening(&self.spec.secrets) };
        Connection::open(name, pipe, opening).await
    }

    fn source(&self) -> Result<Option<String>, String> {
        let TransportSpec::Stdio { command, args, env, cwd } = &self.spec.transport else { return Ok(None) };
        let image = self.launch.image().unwrap_or_default();
        let mut words = vec!["process", command.as_str(), cwd.as_deref().unwrap_or_default(), image];
        words.extend(args.iter().map(String::as_str));
        words.push("");
        words.extend(env.keys().map(String::as_str));
        // In a container it is the image's.
        let program = image.is_empty().then(|| self.program(command, cwd.as_deref()));
        // What is not there is told by the start that fails.
        let program = program.flatten().filter(|program| program.is_file());
        pins::source(&words, program.as_deref()).map(Some)
    }
}

impl Stdio {
    /// The file that a command names.
    fn program(&self, command: &str, cwd: Option<&str>) -> Option<PathBuf> {
        if command.contains('/') {
            let cwd = cwd.map_or_else(|| self.root.clone(), |cwd| self.root.join(cwd));
            return Some(cwd.join(command));
        }
        find_program(command)
    }
}

impl Place for Stdio {
    fn holds_git(&self, path: &ProjectPath) -> bool {
        holds_git(&self.root.join(path.relative()))
    }

    /// The server follows links, so a place that is reached by one is not named to it: what was
    /// granted is where the path leads by its spelling. A link that is put there a moment later
    /// still ends at the walls of the OS sandbox.
    fn spell(&self, path: &ProjectPath) -> Result<String, String> {
        let mut place = self.root.clone();
        let mut spelled = self.launch.root().to_owned();
        for part in path.relative().split('/').filter(|part| !part.is_empty()) {
            place.push(part);
            spelled.push(part);
            if place.symlink_metadata().is_ok_and(|meta| meta.file_type().is_symlink()) {
                return Err(format!("`{part}` in `{path}` is a symbolic link, and links are not followed"));
            }
        }
        Ok(spelled.to_string_lossy().into_owned())
    }
}
