//! The built-in server that runs programs, without a shell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use coral_core::Error;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool, ToolAnnotations,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::jail::find_program;
use crate::launch::Launch;
use crate::permissions::Reach;
use crate::process::{Group, Hold};

/// The name of the built-in server that runs programs.
pub(crate) const NAME: &str = "commands";

/// The argument by which the sandbox says what the caller reaches.
pub(crate) const REACH: &str = "reach";

/// How much of each output is kept.
const MAX_OUTPUT: usize = 64 * 1_024;

/// The programs that agents may run, each found when the sandbox is built.
///
/// A program is run as it is named, with its arguments as they are: there is no shell, so nothing
/// in an argument is expanded, substituted or chained. Where programs are isolated, one reads what of
/// the project its caller may, and writes where its caller may and the rules of `commands` say. Which
/// agent may run which program is said
/// by the `arguments` of a grant (`program: ["cargo"]`); a program that itself runs others, such as
/// a shell or `env`, is as good as all of them.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    programs: BTreeMap<String, PathBuf>,
}

impl Commands {
    /// Nothing may be run.
    pub fn new() -> Self {
        Commands::default()
    }

    /// Adds a program by its name, to be found in `PATH`.
    ///
    /// # Errors
    /// [`NotFound`](coral_core::ErrorKind::NotFound) if it is not there.
    pub fn allow(self, name: &str) -> Result<Self, Error> {
        match find_program(name) {
            Some(file) if !name.contains('/') => Ok(self.allow_at(name, file)),
            _ => Err(Error::not_found("program", name, [])
                .with_help("name a program that is in `PATH`, or say where it is with `allow_at`")),
        }
    }

    /// Adds a program that agents know as `name`.
    #[must_use]
    pub fn allow_at(mut self, name: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        self.programs.insert(name.into(), file.into());
        self
    }
}

/// The server.
#[derive(Clone)]
pub(crate) struct Runner {
    pub(crate) commands: Arc<Commands>,
    pub(crate) root: PathBuf,
    pub(crate) launch: Arc<Launch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    program: String,
    #[serde(default)]
    args: Vec<String>,
    cwd: String,
    /// What the caller reaches, from the sandbox: no caller can name it, as the tool's schema does not.
    reach: Reach,
}

impl Runner {
    fn tool(&self) -> Tool {
        let programs: Vec<&String> = self.commands.programs.keys().collect();
        let mut schema = Map::new();
        schema.insert("type".to_owned(), json!("object"));
        schema.insert(
            "properties".to_owned(),
            json!({
                "program": {"type": "string", "enum": programs},
                "args": {"type": "array", "items": {"type": "string"}, "default": []},
                "cwd": {"type": "string", "description": "Directory in the project; `.` is its root.", "default": "."},
            }),
        );
        schema.insert("required".to_owned(), json!(["program"]));
        schema.insert("additionalProperties".to_owned(), Value::Bool(false));
        let description = "Runs a program with arguments, and tells its exit code and what it wrote. There is no \
                           shell: no pipes, no redirection, no variables, no patterns.";
        Tool::new("run", description, Arc::new(schema))
            .with_annotations(ToolAnnotations::new().read_only(false).destructive(true).idempotent(false))
    }

    fn command(&self, call: &Call) -> Result<(Command, Hold), String> {
        let Some(program) = self.commands.programs.get(&call.program) else {
            let known: Vec<&str> = self.commands.programs.keys().map(String::as_str).collect();
            return Err(format!(
                "`{}` is not among the programs that may be run: {}",
                call.program,
                known.join(", ")
            ));
        };
        if let Some(arg) = call.args.iter().find(|arg| arg.contains('\0')) {
            return Err(format!("the argument {arg:?} holds a NUL character"));
        }
        let cwd = self.directory(&call.cwd)?;
        let (mut command, hold) = self
            .launch
            .narrowed(&call.reach)
            .command(program.as_os_str(), &call.args, &BTreeMap::new(), &cwd)
            .map_err(|error| error.to_string())?;
        if !hold.has_input() {
            command.stdin(Stdio::null());
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        Ok((command, hold))
    }

    /// The directory, which must be the one that it is spelled as: no link on the way.
    fn directory(&self, cwd: &str) -> Result<PathBuf, String> {
        let wanted = if cwd == "." { self.root.clone() } else { self.root.join(cwd) };
        let found =
            wanted.canonicalize().map_err(|_| format!("`{cwd}` is not a directory of the project"))?;
        if found != wanted || !found.is_dir() || !found.starts_with(&self.root) {
            return Err(format!("`{cwd}` is not a directory of the project, or is reached by a link"));
        }
        Ok(found)
    }

    async fn run(&self, call: &Call) -> Result<CallToolResult, String> {
        let (mut command, mut hold) = self.command(call)?;
        let mut child =
            command.spawn().map_err(|e| format!("`{}` could not be started: {e}", call.program))?;
        drop(command);
        // Its input is empty.
        hold.close_input();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // Dropped when the call is given up, which ends everything that was started.
        let mut group = Group::of(child, hold);
        let (out, err, status) = tokio::join!(collect(stdout), collect(stderr), group.wait());
        let status = status.map_err(|error| error.to_string())?;
        let code =
            status.code().map_or_else(|| "killed by a signal".to_owned(), |code| format!("exit code {code}"));
        let mut text = code;
        for (name, output) in [("stdout", out), ("stderr", err)] {
            if !output.is_empty() {
                text.push_str(&format!("\n--- {name}\n{output}"));
            }
        }
        let content = vec![ContentBlock::text(text)];
        Ok(if status.success() { CallToolResult::success(content) } else { CallToolResult::error(content) })
    }
}

/// What a program writes: all of it is read, so that it never waits, and the beginning is kept.
async fn collect(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; 8_192];
    let mut missing = 0_usize;
    while let Ok(n) = pipe.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        let room = MAX_OUTPUT.saturating_sub(kept.len()).min(n);
        kept.extend(buffer.iter().take(room));
        missing = missing.saturating_add(n - room);
    }
    let mut text = String::from_utf8_lossy(&kept).into_owned();
    if missing > 0 {
        text.push_str(&format!("\n[cut off: {missing} more bytes]"));
    }
    text
}

impl ServerHandler for Runner {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("coral-commands", env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(vec![self.tool()]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if request.name != "run" {
            return Err(ErrorData::invalid_params("there is no such tool", None));
        }
        let call: Call = serde_json::from_value(Value::Object(request.arguments.unwrap_or_default()))
            .map_err(|error| ErrorData::invalid_params(error.to_string(), None))?;
        let done = tokio::select! {
            done = self.run(&call) => done,
            () = context.ct.cancelled() => Err("the call was given up".to_owned()),
        };
        Ok(done.unwrap_or_else(|problem| CallToolResult::error(vec![ContentBlock::text(problem)])).into())
    }
}

/// A server for programs that run in the directory `root`.
pub(crate) fn runner(commands: Commands, root: &Path, launch: Launch) -> Runner {
    Runner { commands: Arc::new(commands), root: root.to_owned(), launch: Arc::new(launch) }
}
