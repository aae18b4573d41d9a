//! Agent files of other tools: what people already have, and what others can take from us.
//!
//! Three formats are read and written: sub-agents (`.claude/agents/*.md`, front matter with
//! `name` and `description`), skill folders (`NAME/SKILL.md`), and `AGENTS.md`, the instructions
//! for whoever works in a project. Each import says what became of every field.

mod export;
mod import;
mod tools;

use std::fmt;
use std::path::{Path, PathBuf};

use coral_core::{AgentSpec, Error, ErrorKind};

pub use self::export::{Exported, Format, export_agent, export_team};
pub use self::import::{import_instructions, import_skill, import_subagent};
use crate::registry::{Registry, Skipped, list, read_text};

/// What became of a part of a foreign file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It went here.
    Mapped(String),
    /// It was left out, for this reason.
    Dropped(String),
    /// It was missing, and this was taken instead.
    Assumed(String),
}

/// A part of a foreign file and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Its line; 0 if it is about the file as a whole.
    pub line: usize,
    /// The part, as the file has it.
    pub part: String,
    /// What became of it.
    pub fate: Fate,
}

impl Note {
    pub(crate) fn new(line: usize, part: impl Into<String>, fate: Fate) -> Self {
        Note { line, part: part.into(), fate }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        match &self.fate {
            Fate::Mapped(to) => write!(f, "{} → {to}", self.part),
            Fate::Dropped(why) => write!(f, "{}: left out: {why}", self.part),
            Fate::Assumed(what) => write!(f, "{}: missing: {what}", self.part),
        }
    }
}

/// What a foreign file became.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Imported {
    /// An agent.
    Agent {
        /// The agent.
        spec: Box<AgentSpec>,
        /// What became of each part of the file.
        notes: Vec<Note>,
    },
    /// Instructions for every agent, as a partial to include.
    Partial {
        /// The partial's name.
        name: String,
        /// Its text, safe to include in a template.
        text: String,
        /// What became of each part of the file.
        notes: Vec<Note>,
    },
}

impl Imported {
    /// What became of each part of the file.
    pub fn notes(&self) -> &[Note] {
        match self {
            Imported::Agent { notes, .. } | Imported::Partial { notes, .. } => notes,
        }
    }

    /// The agent's id or the partial's name.
    pub fn name(&self) -> &str {
        match self {
            Imported::Agent { spec, .. } => &spec.id,
            Imported::Partial { name, .. } => name,
        }
    }
}

/// What an import of a directory brought. As text, it is a report for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Import {
    /// The files that were taken, in the order of their paths.
    pub files: Vec<(PathBuf, Imported)>,
    /// The files that were left out.
    pub skipped: Vec<Skipped>,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, imported) in &self.files {
            let what = match imported {
                Imported::Agent { .. } => "agent",
                Imported::Partial { .. } => "partial",
            };
            writeln!(f, "{}: {what} `{}`", path.display(), imported.name())?;
            for note in imported.notes() {
                writeln!(f, "  {note}")?;
            }
        }
        for skipped in &self.skipped {
            writeln!(f, "{}: skipped: {}", skipped.file.display(), skipped.error)?;
        }
        Ok(())
    }
}

impl Registry {
    /// Takes in the agent files of other tools that are below `dir`, a project or a directory of
    /// such files: `AGENTS.md` and `CLAUDE.md` (also in `.claude`), folders with a `SKILL.md`, and other `*.md`
    /// as sub-agents, in `dir`, `.claude/agents`, `.claude/skills` and `.agents/skills`. Outside of `.claude` and
    /// `.agents`, where most Markdown is something else, a sub-agent must have both a `name` and a `description`, and a text
    /// without front matter is not looked at.
    ///
    /// The instructions of the project itself become part of the context of every agent that comes with them. Those of
    /// a directory in it hold for that directory only: they become a partial named after their path
    /// (`web_agents_md` of `web/AGENTS.md`), to include in the agents that work there.
    ///
    /// An agent whose id is taken, by another file or in this registry, is skipped: nothing that
    /// is imported replaces what is there.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage) if `dir` can't be read.
    pub fn import_dir(&mut self, dir: impl AsRef<Path>) -> Result<Import, Error> {
        let dir = dir.as_ref();
        let mut import = Import::default();
        let mut read_files = Vec::new();
        for (path, kind) in find(dir)? {
            match read(dir, &path, kind) {
                Ok(Some(imported)) => read_files.push((path, imported)),
                Ok(None) => {}
                Err(error) => import.skipped.push(Skipped { file: path, error }),
            }
        }
        // Instructions first: the agents include them.
        read_files.sort_by_key(|(_, imported)| matches!(imported, Imported::Agent { .. }));
        let mut of_project = Vec::new();
        for (path, mut imported) in read_files {
            match &mut imported {
                Imported::Agent { spec, .. } => include(spec, &of_project),
                Imported::Partial { name, notes, .. } => match below(dir, &path) {
                    Some(place) => notes.push(Note::new(
                        0,
                        "the text as a whole",
                        Fate::Dropped(format!(
                            "it holds for `{place}` only; include `{name}` in the agents that work there"
                        )),
                    )),
                    None => notes.push(Note::new(
                        0,
                        "the text as a whole",
                        Fate::Mapped("the context of each agent that is imported with it".to_owned()),
                    )),
                },
            }
            match self.take(&imported) {
                Ok(()) => {
                    if matches!(imported, Imported::Partial { .. }) && below(dir, &path).is_none() {
                        of_project.push(imported.name().to_owned());
                    }
                    import.files.push((path, imported));
                }
                Err(error) => import.skipped.push(Skipped { file: path, error }),
            }
        }
        import.files.sort_by(|a, b| a.0.cmp(&b.0));
        import.skipped.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(import)
    }

    fn take(&mut self, imported: &Imported) -> Result<(), Error> {
        let taken = |what: &str, name: &str| {
            Error::invalid(what, format!("`{name}` is there already"))
                .with_help("rename it in its file, or take it in with a registry of its own")
        };
        match imported {
            Imported::Agent { spec, .. } => {
                if self.find(&spec.id).is_some() {
                    return Err(taken("imported agent", &spec.id));
                }
                self.insert(AgentSpec::clone(spec))
            }
            Imported::Partial { name, text, .. } => {
                if self.partials().any(|(other, _)| other == name) {
                    return Err(taken("imported partial", name));
                }
                self.insert_partial(name.clone(), text.as_str());
                Ok(())
            }
        }
    }
}

/// Lets an agent see the instructions of its project.
fn include(spec: &mut AgentSpec, instructions: &[String]) {
    if instructions.is_empty() {
        return;
    }
    let includes: Vec<String> =
        instructions.iter().map(|name| format!("{{% include \"{name}\" %}}")).collect();
    spec.prompt
        .context_integration
        .push_str(&format!("\n\n## Instructions of the project\n\n{}", includes.join("\n\n")));
}

/// The directory of the project `dir` that the instructions at `path` hold for; nothing if it is all of it.
fn below(dir: &Path, path: &Path) -> Option<String> {
    let place = path.strip_prefix(dir).ok()?.parent()?;
    let is_own = place.as_os_str().is_empty() || AGENT_HOMES.iter().any(|home| place == Path::new(home));
    (!is_own).then(|| place.to_string_lossy().into_owned())
}

/// Directories in which other tools keep what is theirs.
const AGENT_HOMES: [&str; 2] = [".claude", ".agents"];

#[derive(Clone, Copy)]
enum Kind {
    Subagent,
    /// A Markdown file that may be anything.
    Stray,
    Skill,
    Instructions,
}

/// What a file is, unless it is a text like any other.
fn read(dir: &Path, path: &Path, kind: Kind) -> Result<Option<Imported>, Error> {
    let text = read_text(path)?;
    let file = path.to_string_lossy();
    let imported = match kind {
        Kind::Subagent => import_subagent(&file, &text),
        Kind::Stray => return import::import_stray(&file, &text),
        Kind::Instructions => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match below(dir, path) {
                Some(place) => import::instructions(&file, &format!("{place}/{name}"), &text),
                None => import_instructions(&file, &text),
            }
        }
        Kind::Skill => {
            let folder = path.parent().unwrap_or(Path::new(""));
            let mut resources = Vec::new();
            collect(folder, folder, 0, &mut resources);
            import_skill(&file, &text, &resources)
        }
    };
    imported.map(Some)
}

/// The files beside a `SKILL.md`, relative to its folder.
fn collect(root: &Path, dir: &Path, depth: usize, into: &mut Vec<String>) {
    for path in list(dir).unwrap_or_default() {
        if path.is_dir() && !path.is_symlink() {
            if depth < 8 {
                collect(root, &path, depth + 1, into);
            }
        } else if path != root.join("SKILL.md")
            && let Ok(relative) = path.strip_prefix(root)
        {
            into.push(relative.to_string_lossy().into_owned());
        }
    }
}

/// The foreign files below a directory, in the order of their paths.
fn find(dir: &Path) -> Result<Vec<(PathBuf, Kind)>, Error> {
    let mut found = Vec::new();
    // The directory itself may be such a home, or one within it.
    let is_home = |path: &Path| AGENT_HOMES.iter().any(|home| path.ends_with(home));
    let markdown = match is_home(dir) || dir.parent().is_some_and(is_home) {
        true => Kind::Subagent,
        false => Kind::Stray,
    };
    scan(dir, 0, markdown, &mut found)?;
    for sub in [".claude/agents", ".claude/skills", ".agents/skills"] {
        let sub = dir.join(sub);
        if sub.is_dir() {
            scan(&sub, 0, Kind::Subagent, &mut found)?;
        }
    }
    let own = dir.join(".claude/CLAUDE.md");
    if own.is_file() {
        found.push((own, Kind::Instructions));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.dedup_by(|a, b| a.0 == b.0);
    Ok(found)
}

/// Finds files below `dir`, where any other Markdown is of the kind `markdown`.
fn scan(dir: &Path, depth: usize, markdown: Kind, found: &mut Vec<(PathBuf, Kind)>) -> Result<(), Error> {
    for path in list(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            let skill = path.join("SKILL.md");
            if skill.is_file() {
                found.push((skill, Kind::Skill));
            } else if depth < 4 && !name.starts_with('.') && !path.is_symlink() {
                scan(&path, depth + 1, markdown, found)?;
            }
            continue;
        }
        match name.as_str() {
            "AGENTS.md" | "CLAUDE.md" => found.push((path, Kind::Instructions)),
            "SKILL.md" => found.push((path, Kind::Skill)),
            // What every directory has and no agent is.
            "README.md" | "CHANGELOG.md" | "CONTRIBUTING.md" | "LICENSE.md" => {}
            _ if name.ends_with(".md") => found.push((path, markdown)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether an error only says that a file is no agent file at all.
pub(crate) fn not_one(file: &str, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid { what: "foreign agent file".to_owned(), problem: problem.into() }).at(file)
}

#[cfg(test)]
mod tests;
