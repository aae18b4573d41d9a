//! The tools: what they take, what they do.

use std::fmt::Write;
use std::sync::Arc;

use cap_std::fs::Dir;
use coral_core::rfc3339;
use rmcp::model::{Tool, ToolAnnotations};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::disk::{Disk, Kind, open_part};

const MAX_ENTRIES: usize = 5_000;
const MAX_DEPTH: usize = 32;
const MAX_MATCHES: usize = 500;
/// Files above this size are not searched for text.
const MAX_SEARCHED: u64 = 1_024 * 1_024;

/// One call, its arguments read.
#[derive(Debug, Deserialize)]
#[serde(tag = "tool", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Call {
    ReadFile { path: String, head: Option<usize>, tail: Option<usize> },
    ReadMultipleFiles { paths: Vec<String> },
    WriteFile { path: String, content: String },
    EditFile { path: String, edits: Vec<Edit> },
    CreateDirectory { path: String },
    ListDirectory { path: String },
    DirectoryTree { path: String, depth: Option<usize> },
    SearchFiles { path: String, pattern: Option<String>, text: Option<String> },
    GetFileInfo { path: String },
    MoveFile { source: String, destination: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Edit {
    old_text: String,
    new_text: String,
}

pub(super) fn all() -> Vec<Tool> {
    let path = json!({"type": "string", "description": "Path in the project, such as `docs/api.md`."});
    let dir = json!({"type": "string", "description": "Directory in the project; `.` is its root.", "default": "."});
    let read = || ToolAnnotations::new().read_only(true).open_world(false);
    let write = |destructive: bool, idempotent: bool| {
        ToolAnnotations::new()
            .read_only(false)
            .destructive(destructive)
            .idempotent(idempotent)
            .open_world(false)
    };
    vec![
        tool(
            "read_file",
            "Reads a text file, whole or its first (`head`) or last (`tail`) lines.",
            &["path"],
            json!({"path": path, "head": {"type": "integer", "minimum": 1}, "tail": {"type": "integer", "minimum": 1}}),
            read(),
        ),
        tool(
            "read_multiple_files",
            "Reads several text files; one that can't be read does not keep the others back.",
            &["paths"],
            json!({"paths": {"type": "array", "items": path, "minItems": 1, "maxItems": 50}}),
            read(),
        ),
        tool(
            "write_file",
            "Writes a text file at once, in the place of one that is there; makes the directories on the way.",
            &["path", "content"],
            json!({"path": path, "content": {"type": "string"}}),
            write(true, true),
        ),
        tool(
            "edit_file",
            "Replaces pieces of a text file. Each `oldText` must occur exactly once; all edits are made, or none.",
            &["path", "edits"],
            json!({"path": path, "edits": {"type": "array", "minItems": 1, "items": {
                "type": "object",
                "properties": {"oldText": {"type": "string"}, "newText": {"type": "string"}},
                "required": ["oldText", "newText"],
                "additionalProperties": false,
            }}}),
            write(true, false),
        ),
        tool(
            "create_directory",
            "Makes a directory and those on the way; one that is there already is fine.",
            &["path"],
            json!({"path": path}),
            write(false, true),
        ),
        tool("list_directory", "Lists a directory, one level.", &[], json!({"path": dir}), read()),
        tool(
            "directory_tree",
            "Lists a directory and everything under it, indented.",
            &[],
            json!({"path": dir, "depth": {"type": "integer", "minimum": 1, "maximum": MAX_DEPTH}}),
            read(),
        ),
        tool(
            "search_files",
            "Finds files under a directory by a glob `pattern` on their path or name (`**/*.rs`), by the `text` \
             that they hold, or both; shows the lines with the text.",
            &[],
            json!({"path": dir, "pattern": {"type": "string"}, "text": {"type": "string", "minLength": 1}}),
            read(),
        ),
        tool(
            "get_file_info",
            "Tells the kind, size and time of change of a file or directory.",
            &["path"],
            json!({"path": path}),
            read(),
        ),
        tool(
            "move_file",
            "Moves or renames a file or directory; nothing may be at the destination.",
            &["source", "destination"],
            json!({"source": path, "destination": path}),
            write(true, false),
        ),
    ]
}

fn tool(
    name: &'static str,
    description: &'static str,
    required: &[&str],
    properties: Value,
    annotations: ToolAnnotations,
) -> Tool {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), properties);
    schema.insert("required".to_owned(), json!(required));
    schema.insert("additionalProperties".to_owned(), json!(false));
    Tool::new(name, description, Arc::new(schema)).with_annotations(annotations)
}

impl Call {
    pub(super) fn parse(tool: &str, mut arguments: Map<String, Value>) -> Result<Self, String> {
        if arguments.insert("tool".to_owned(), json!(tool)).is_some() {
            return Err("there is no argument called `tool`".to_owned());
        }
        serde_json::from_value(Value::Object(arguments)).map_err(|error| error.to_string())
    }

    pub(super) fn run(self, disk: &Disk) -> Result<String, String> {
        match self {
            Call::ReadFile { path, head, tail } => read(disk, &at(&path), head, tail),
            Call::ReadMultipleFiles { paths } => {
                if paths.len() > 50 {
                    return Err("at most 50 files are read at once".to_owned());
                }
                let mut out = String::new();
                for path in paths {
                    let path = at(&path);
                    let _ = match disk.read_text(&path) {
                        Ok(text) => writeln!(out, "==> {path} <==\n{text}"),
                        Err(problem) => writeln!(out, "==> {path} <==\nerror: {problem}"),
                    };
                }
                Ok(out)
            }
            Call::WriteFile { path, content } => {
                let path = at(&path);
                disk.write(&path, content.as_bytes())?;
                Ok(format!("wrote {} bytes to {path}", content.len()))
            }
            Call::EditFile { path, edits } => {
                let path = at(&path);
                disk.edit(&path, |text| apply(text, &edits, &path))?;
                Ok(format!("made {} edit{} in {path}", edits.len(), if edits.len() == 1 { "" } else { "s" }))
            }
            Call::CreateDirectory { path } => {
                let path = at(&path);
                disk.make_dir(&path)?;
                Ok(format!("{path} is there"))
            }
            Call::ListDirectory { path } => list(disk, &at(&path)),
            Call::DirectoryTree { path, depth } => {
                let path = at(&path);
                let mut tree = Tree { disk, out: String::new(), left: MAX_ENTRIES };
                tree.walk(&path, &disk.dir(&path)?, 0, depth.unwrap_or(MAX_DEPTH).min(MAX_DEPTH))?;
                if tree.left == 0 {
                    let _ = writeln!(tree.out, "[cut off after {MAX_ENTRIES} entries; ask for a part]");
                }
                Ok(tree.out)
            }
            Call::SearchFiles { path, pattern, text } => {
                if pattern.is_none() && text.is_none() {
                    return Err("give a `pattern`, a `text` or both".to_owned());
                }
                let path = at(&path);
                let mut search =
                    Search { disk, pattern, text, out: String::new(), left: MAX_ENTRIES, matches: 0 };
                search.walk(&path, &disk.dir(&path)?, 0)?;
                Ok(match search.matches {
                    0 => "nothing found".to_owned(),
                    MAX_MATCHES.. => search.out + "[cut off; narrow the search]\n",
                    _ => search.out,
                })
            }
            Call::GetFileInfo { path } => {
                let path = at(&path);
                let meta = disk.metadata(&path)?;
                let changed = meta
                    .modified()
                    .ok()
                    .and_then(|t| t.into_std().duration_since(std::time::UNIX_EPOCH).ok())
                    .and_then(|d| u64::try_from(d.as_millis()).ok())
                    .map_or_else(|| "unknown".to_owned(), rfc3339);
                Ok(format!("kind: {}\nsize: {}\nchanged: {changed}", Kind::of(&meta).as_str(), meta.len()))
            }
            Call::MoveFile { source, destination } => {
                let (source, destination) = (at(&source), at(&destination));
                disk.rename(&source, &destination)?;
                Ok(format!("moved {source} to {destination}"))
            }
        }
    }
}

/// The path below the root: `.` is the root itself.
fn at(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

fn read(disk: &Disk, path: &str, head: Option<usize>, tail: Option<usize>) -> Result<String, String> {
    let text = disk.read_text(path)?;
    Ok(match (head, tail) {
        (None, None) => text,
        (Some(_), Some(_)) => return Err("give `head` or `tail`, not both".to_owned()),
        (Some(n), None) => text.split_inclusive('\n').take(n).collect(),
        (None, Some(n)) => {
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            lines.iter().skip(lines.len().saturating_sub(n)).copied().collect()
        }
    })
}

fn apply(text: &str, edits: &[Edit], path: &str) -> Result<String, String> {
    let mut text = text.to_owned();
    for (i, edit) in edits.iter().enumerate() {
        let number = i + 1;
        match text.matches(edit.old_text.as_str()).take(2).count() {
            _ if edit.old_text.is_empty() => return Err(format!("edit {number} has an empty `oldText`")),
            0 => {
                return Err(format!(
                    "edit {number}: its `oldText` does not occur in `{path}`; read the file first"
                ));
            }
            1 => text = text.replacen(&edit.old_text, &edit.new_text, 1),
            _ => {
                return Err(format!(
                    "edit {number}: its `oldText` occurs more than once in `{path}`; give more of what is around it"
                ));
            }
        }
    }
    Ok(text)
}

fn list(disk: &Disk, path: &str) -> Result<String, String> {
    let mut out = String::new();
    let entries = disk.entries(path, &disk.dir(path)?, MAX_ENTRIES)?;
    for entry in &entries {
        let _ = match entry.kind {
            Kind::Directory => writeln!(out, "{}/", entry.name),
            Kind::File => writeln!(out, "{} ({} bytes)", entry.name, entry.size),
            Kind::Link | Kind::Other => writeln!(out, "{} ({})", entry.name, entry.kind.as_str()),
        };
    }
    if entries.is_empty() {
        out.push_str("the directory is empty\n");
    }
    Ok(out)
}

struct Tree<'a> {
    disk: &'a Disk,
    out: String,
    left: usize,
}

impl Tree<'_> {
    fn walk(&mut self, path: &str, dir: &Dir, level: usize, depth: usize) -> Result<(), String> {
        for entry in self.disk.entries(path, dir, self.left)? {
            self.left = self.left.saturating_sub(1);
            let slash = if entry.kind == Kind::Directory { "/" } else { "" };
            let _ = writeln!(self.out, "{}{}{slash}", "  ".repeat(level), entry.name);
            if entry.kind == Kind::Directory && level + 1 < depth && self.left > 0 {
                let inner = join(path, &entry.name);
                // A directory that can't be opened is shown without what it holds.
                if let Ok(dir) = open_part(dir, &entry.name, &inner) {
                    self.walk(&inner, &dir, level + 1, depth)?;
                }
            }
        }
        Ok(())
    }
}

struct Search<'a> {
    disk: &'a Disk,
    pattern: Option<String>,
    text: Option<String>,
    out: String,
    left: usize,
    matches: usize,
}

impl Search<'_> {
    fn walk(&mut self, path: &str, dir: &Dir, level: usize) -> Result<(), String> {
        for entry in self.disk.entries(path, dir, MAX_ENTRIES)? {
            if self.matches >= MAX_MATCHES || self.left == 0 {
                return Ok(());
            }
            let place = join(path, &entry.name);
            match entry.kind {
                Kind::Directory if level < MAX_DEPTH => {
                    if let Ok(dir) = open_part(dir, &entry.name, &place) {
                        self.walk(&place, &dir, level + 1)?;
                    }
                }
                Kind::File => {
                    self.left -= 1;
                    let named = self.pattern.as_ref().is_none_or(|pattern| {
                        fast_glob::glob_match(pattern, &place) || fast_glob::glob_match(pattern, &entry.name)
                    });
                    if named {
                        self.file(&place, entry.size);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, place: &str, size: u64) {
        let Some(wanted) = &self.text else {
            self.matches += 1;
            let _ = writeln!(self.out, "{place}");
            return;
        };
        if size > MAX_SEARCHED {
            return;
        }
        let Ok(text) = self.disk.read_text(place) else { return };
        for (i, line) in text.lines().enumerate().filter(|(_, line)| line.contains(wanted.as_str())) {
            if self.matches >= MAX_MATCHES {
                return;
            }
            self.matches += 1;
            let shown: String = line.trim().chars().take(200).collect();
            let _ = writeln!(self.out, "{place}:{}: {shown}", i + 1);
        }
    }
}
