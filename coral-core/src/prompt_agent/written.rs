//! Which files are there because a tool wrote them.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::task::Task;
use crate::tool::ToolCall;

/// The files that the tools of an agent wrote, by their paths from the project's root.
#[derive(Debug, Default)]
pub(super) struct Written(BTreeSet<String>);

impl Written {
    /// Those of the rounds before: what was accepted then is still there, and need not be written again.
    pub(super) fn before(task: &Task) -> Self {
        let previous = task.previous.iter().flat_map(|report| &report.deliverables);
        Written(previous.map(|deliverable| normal(&deliverable.path).to_owned()).collect())
    }

    /// Takes in a call of a tool that changes something, and succeeded.
    pub(super) fn by(&mut self, call: &ToolCall) {
        let argument = |name: &str| call.arguments.get(name).and_then(Value::as_str).map(normal);
        if let (Some(source), Some(destination)) = (argument("source"), argument("destination")) {
            self.moved(source, destination);
        } else if let Some(path) = argument("path") {
            self.0.insert(path.to_owned());
        }
    }

    /// A file, or a directory with all that is in it, is elsewhere now.
    fn moved(&mut self, source: &str, destination: &str) {
        let inside = |path: &str| path.strip_prefix(source).is_some_and(|rest| rest.starts_with('/'));
        let (gone, stay) = std::mem::take(&mut self.0)
            .into_iter()
            .partition::<BTreeSet<String>, _>(|path| path == source || inside(path));
        self.0 = stay;
        self.0.extend(
            gone.iter()
                .filter_map(|path| path.strip_prefix(source))
                .map(|rest| format!("{destination}{rest}")),
        );
        self.0.insert(destination.to_owned());
    }

    pub(super) fn holds(&self, path: &str) -> bool {
        self.0.contains(normal(path))
    }
}

/// A path as deliverables name it: relative to the project's root.
fn normal(path: &str) -> &str {
    let path = path.strip_prefix("/project/").unwrap_or(path);
    path.strip_prefix("./").unwrap_or(path).trim_matches('/')
}
