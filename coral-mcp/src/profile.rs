//! What the tools of known servers do, and which of their arguments name what.

mod selector;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use coral_core::{EffectClass, Error};
use rmcp::model::ToolAnnotations;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::access::Operation;
use crate::command;
use crate::path::ProjectPath;
use crate::sql::{self, SqlDialect};
use crate::url_guard;
use crate::yaml;

use self::selector::Selector;

const BUILT_IN: [(&str, &str); 13] = [
    ("commands", include_str!("../profiles/commands.yaml")),
    ("database", include_str!("../profiles/database.yaml")),
    ("docker", include_str!("../profiles/docker.yaml")),
    ("e2b", include_str!("../profiles/e2b.yaml")),
    ("fetch", include_str!("../profiles/fetch.yaml")),
    ("filesystem", include_str!("../profiles/filesystem.yaml")),
    ("git", include_str!("../profiles/git.yaml")),
    ("github", include_str!("../profiles/github.yaml")),
    ("memory", include_str!("../profiles/memory.yaml")),
    ("search", include_str!("../profiles/search.yaml")),
    ("sqlite", include_str!("../profiles/sqlite.yaml")),
    ("thinking", include_str!("../profiles/thinking.yaml")),
    ("time", include_str!("../profiles/time.yaml")),
];

/// What a server's tools do: data, one file per kind of server.
///
/// A tool that a profile does not name counts as one that executes and can't be taken back. What a
/// server says of it in annotations is taken only from one that the permission file calls
/// `trusted`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The kind of server, such as `filesystem`.
    pub name: String,
    /// One sentence on what it is for.
    #[serde(default)]
    pub summary: String,
    /// The packages that implement it, such as `npm:@modelcontextprotocol/server-filesystem`.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Places in a repository whose content is run once it is there: patterns for `repo_paths`.
    #[serde(default)]
    executes: Vec<String>,
    /// The tools, by their names at the server.
    #[serde(default)]
    pub(crate) tools: BTreeMap<String, ToolProfile>,
}

/// What one tool does.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolProfile {
    pub(crate) operation: Operation,
    /// The name that permissions know the operation by, such as `create_pull_request`.
    pub(crate) named: Option<String>,
    #[serde(default)]
    pub(crate) effect: EffectClass,
    /// The arguments that name places in the project.
    #[serde(default)]
    pub(crate) paths: Vec<Selector>,
    /// The arguments that are SQL: it may raise the operation, never lower it.
    #[serde(default)]
    pub(crate) sql: Vec<Selector>,
    #[serde(default)]
    pub(crate) dialect: SqlDialect,
    /// The arguments that are commands: a command line, or a list of words.
    #[serde(default)]
    pub(crate) commands: Vec<Selector>,
    /// The arguments that make up one command, word by word.
    #[serde(default)]
    pub(crate) argv: Vec<Selector>,
    /// Names of operations by the first words of that command.
    #[serde(default)]
    pub(crate) named_commands: BTreeMap<String, String>,
    /// The arguments that are addresses of the web.
    #[serde(default)]
    pub(crate) urls: Vec<Selector>,
    /// The arguments that name places in a repository elsewhere.
    #[serde(default)]
    pub(crate) repo_paths: Vec<Selector>,
    /// Values of arguments that are refused whatever is granted.
    #[serde(default)]
    pub(crate) refused: BTreeMap<String, Vec<String>>,
    /// The argument that says what the tool does, where it does several things.
    pub(crate) methods: Option<Methods>,
    /// Whether the tool reaches everything under its paths.
    #[serde(default)]
    pub(crate) recursive: bool,
    /// What the tool takes for arguments that are left out.
    #[serde(default)]
    pub(crate) defaults: Map<String, Value>,
    /// How often an agent may call the tool in a minute.
    pub(crate) calls_per_minute: Option<u32>,
    /// The patterns of `repo_paths` that are run, from the profile.
    #[serde(skip)]
    executes: Vec<String>,
    /// Whether addresses may lead into the own network, from the server's rules.
    #[serde(skip)]
    pub(crate) private_hosts: bool,
}

/// What a tool does by the value of one of its arguments; what is not listed is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Methods {
    argument: String,
    values: BTreeMap<String, Operation>,
}

impl ToolProfile {
    /// For a tool that nothing is known of.
    pub(crate) fn strictest() -> Self {
        ToolProfile {
            operation: Operation::Execute,
            named: None,
            effect: EffectClass::Irreversible,
            paths: Vec::new(),
            sql: Vec::new(),
            dialect: SqlDialect::default(),
            commands: Vec::new(),
            argv: Vec::new(),
            named_commands: BTreeMap::new(),
            urls: Vec::new(),
            repo_paths: Vec::new(),
            refused: BTreeMap::new(),
            methods: None,
            recursive: false,
            defaults: Map::new(),
            calls_per_minute: None,
            executes: Vec::new(),
            private_hosts: false,
        }
    }

    /// For a tool that no profile names, at a server whose own word is taken: by its annotations,
    /// where they say something.
    pub(crate) fn annotated(annotations: Option<&ToolAnnotations>) -> Self {
        let strictest = ToolProfile::strictest();
        let Some(said) = annotations else { return strictest };
        let (operation, effect) = match (said.read_only_hint, said.destructive_hint, said.idempotent_hint) {
            (Some(true), ..) => (Operation::Read, EffectClass::Pure),
            (_, Some(false), Some(true)) => (Operation::Write, EffectClass::Idempotent),
            (_, Some(false), _) => (Operation::Write, EffectClass::Irreversible),
            _ => return strictest,
        };
        ToolProfile { operation, effect, ..strictest }
    }
}

impl Profile {
    /// Reads a profile; `name` stands in messages.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) with the line.
    pub fn from_yaml(text: &str, name: &str) -> Result<Self, Error> {
        let mut profile: Profile = yaml::parse(text, "profile", name)?;
        for tool in profile.tools.values_mut() {
            tool.executes.clone_from(&profile.executes);
        }
        Ok(profile)
    }

    /// A profile that comes with this crate.
    ///
    /// # Errors
    /// [`NotFound`](coral_core::ErrorKind::NotFound) for a name that none has.
    pub fn built_in(name: &str) -> Result<Self, Error> {
        let known = BUILT_IN.iter().map(|(name, _)| *name);
        let Some((name, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) else {
            return Err(Error::not_found("profile", name, known));
        };
        Profile::from_yaml(text, &format!("profiles/{name}.yaml"))
    }

    /// The names of the profiles that come with this crate.
    pub fn built_in_names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The names that the profiles of this crate give to operations.
    pub(crate) fn operation_names() -> impl Iterator<Item = &'static str> {
        static NAMES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
            let profiles = BUILT_IN.iter().filter_map(|(name, text)| Profile::from_yaml(text, name).ok());
            let mut names: BTreeSet<String> = sql::OPERATIONS.map(str::to_owned).into();
            for profile in profiles {
                names.extend(profile.operations().map(str::to_owned));
            }
            names
        });
        NAMES.iter().map(String::as_str)
    }

    /// The names that this profile gives to operations.
    pub(crate) fn operations(&self) -> impl Iterator<Item = &str> {
        self.tools
            .values()
            .flat_map(|tool| tool.named.iter().chain(tool.named_commands.values()))
            .map(String::as_str)
    }

    /// The operation that a tool counts as, where the profile knows the tool.
    pub fn operation(&self, tool: &str) -> Option<Operation> {
        self.tools.get(tool).map(|t| t.operation)
    }
}

/// A call's arguments, understood.
#[derive(Debug, PartialEq)]
pub(crate) struct Reading {
    /// The arguments with their defaults, paths in canonical form.
    pub(crate) arguments: Map<String, Value>,
    /// The places that they name.
    pub(crate) paths: Vec<ProjectPath>,
    /// The programs that they run.
    pub(crate) programs: Vec<String>,
    /// The hosts of the addresses that they name.
    pub(crate) hosts: Vec<String>,
    /// What the call does, its arguments considered.
    pub(crate) operation: Operation,
    /// The profile's name for that.
    pub(crate) named: Option<String>,
    /// Whether the arguments make it stricter than what is named.
    pub(crate) raised: bool,
}

impl ToolProfile {
    /// Finds the places that `arguments` names, and rewrites each through `spell`: what the
    /// policy checked is what the server gets.
    pub(crate) fn read(&self, arguments: &Map<String, Value>, place: &dyn Place) -> Result<Reading, String> {
        let mut arguments = arguments.clone();
        for (key, value) in &self.defaults {
            arguments.entry(key).or_insert_with(|| value.clone());
        }
        self.check_refused(&arguments)?;
        let (mut base, mut named) = (self.operation, self.named.clone());
        if let Some(methods) = &self.methods {
            base = methods.operation(&arguments)?;
        }
        let mut operation = base;
        let mut paths = Vec::new();
        for selector in &self.paths {
            selector.rewrite(&mut arguments, &mut |text| {
                let path = ProjectPath::parse(text)?;
                let spelled = place.spell(&path)?;
                let changes = operation != Operation::Read;
                if changes && (is_run_by_git(&path) || (self.recursive && place.holds_git(&path))) {
                    operation = Operation::Execute;
                }
                paths.push(path);
                Ok(spelled)
            })?;
        }
        for selector in &self.sql {
            selector.rewrite(&mut arguments, &mut |text| {
                let meaning = sql::understand(text, self.dialect)?;
                operation = operation.max(meaning.operation);
                if let Some(name) = meaning.named {
                    (named, base) = (Some(name.to_owned()), base.max(Operation::Write));
                }
                Ok(text.to_owned())
            })?;
        }
        for selector in &self.repo_paths {
            selector.rewrite(&mut arguments, &mut |text| {
                let path = ProjectPath::parse(text)?;
                let lower = path.relative().to_lowercase();
                if self.executes.iter().any(|pattern| fast_glob::glob_match(pattern, &lower)) {
                    operation = Operation::Execute;
                }
                Ok(path.relative().to_owned())
            })?;
        }
        let mut hosts = Vec::new();
        for selector in &self.urls {
            selector.rewrite(&mut arguments, &mut |text| {
                hosts.push(url_guard::host(text, self.private_hosts)?);
                Ok(text.to_owned())
            })?;
        }
        let mut programs = Vec::new();
        for selector in &self.commands {
            selector.visit(&arguments, &mut |value| {
                programs.extend(programs_of(value)?);
                Ok(())
            })?;
        }
        let mut argv = Vec::new();
        for selector in &self.argv {
            selector.visit(&arguments, &mut |value| {
                argv.extend(words_of(value)?);
                Ok(())
            })?;
        }
        if !argv.is_empty() {
            programs.extend(command::programs(&argv)?);
            let name = self.named_commands.iter().find(|(words, _)| begins_with(&argv, words));
            named = name.map(|(_, name)| name.clone()).or(named);
        }
        Ok(Reading { arguments, paths, programs, hosts, operation, named, raised: operation > base })
    }

    fn check_refused(&self, arguments: &Map<String, Value>) -> Result<(), String> {
        for (name, patterns) in &self.refused {
            let text = match arguments.get(name) {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => text.to_lowercase(),
                Some(Value::Bool(truth)) => truth.to_string(),
                Some(_) => return Err(format!("argument `{name}` must be text")),
            };
            if patterns.iter().any(|pattern| fast_glob::glob_match(pattern, &text)) {
                return Err(format!("`{text}` as argument `{name}` is refused whatever is granted"));
            }
        }
        Ok(())
    }
}

impl Methods {
    fn operation(&self, arguments: &Map<String, Value>) -> Result<Operation, String> {
        let name = &self.argument;
        match arguments.get(name) {
            Some(Value::String(method)) => self.values.get(method).copied().ok_or_else(|| {
                let known: Vec<&str> = self.values.keys().map(String::as_str).collect();
                format!("`{method}` as argument `{name}` is not among {}", known.join(", "))
            }),
            _ => Err(format!("argument `{name}` must be text: it says what the tool does")),
        }
    }
}

/// Where a server's paths lead.
pub(crate) trait Place {
    /// How the server spells a place in the project.
    ///
    /// # Errors
    /// Why the place can't be named to it.
    fn spell(&self, path: &ProjectPath) -> Result<String, String>;

    /// Whether something under the place is Git's, as far as that can be seen.
    fn holds_git(&self, path: &ProjectPath) -> bool;
}

/// Whether a change at the place is one of what Git runs: its hooks, and its configuration, which names
/// programs that even a look at the repository starts.
fn is_run_by_git(path: &ProjectPath) -> bool {
    path.relative().split('/').any(is_git)
}

/// Whether a name is that of Git's directory, on any file system.
fn is_git(name: &str) -> bool {
    let name = name.trim_end_matches([' ', '.']);
    name.eq_ignore_ascii_case(".git") || name.eq_ignore_ascii_case("git~1")
}

/// As many places as are looked at before it is taken for granted that one is Git's.
const MAX_LOOK: usize = 20_000;

/// Whether a directory holds one of Git's at any depth. What can't be looked at does.
pub(crate) fn holds_git(dir: &std::path::Path) -> bool {
    let mut left = vec![dir.to_owned()];
    let mut seen = 0;
    while let Some(dir) = left.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            // A file, or nothing at all, holds nothing.
            Err(error) => {
                use std::io::ErrorKind::{NotADirectory, NotFound};
                if matches!(error.kind(), NotADirectory | NotFound) {
                    continue;
                }
                return true;
            }
        };
        for entry in entries {
            seen += 1;
            let Ok(entry) = entry else { return true };
            if seen > MAX_LOOK || entry.file_name().to_str().is_some_and(is_git) {
                return true;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
        }
    }
    false
}

/// Whether a command begins with these words; its program by its name alone.
fn begins_with(argv: &[String], words: &str) -> bool {
    let mut argv = argv.iter();
    words.split(' ').enumerate().all(|(i, word)| {
        let said =
            argv.next().map(|said| if i == 0 { said.rsplit('/').next().unwrap_or(said) } else { said });
        said == Some(word)
    })
}

/// The programs of a command: of a line as a shell would read it, or of words as they are.
fn programs_of(value: &Value) -> Result<Vec<String>, String> {
    command::programs(&match value {
        Value::String(line) => command::words(line)?,
        _ => words_of(value)?,
    })
}

/// Words as they are: of a list, or one.
fn words_of(value: &Value) -> Result<Vec<String>, String> {
    let text = |item: &Value| item.as_str().map(str::to_owned);
    let words = match value {
        Value::String(word) => Some(vec![word.clone()]),
        Value::Array(items) => items.iter().map(text).collect(),
        _ => None,
    };
    words.ok_or_else(|| "a command must be text or a list of texts".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_read_and_says_what_it_is() {
        for (name, text) in BUILT_IN {
            let profile = Profile::from_yaml(text, name).unwrap();
            assert_eq!(profile.name, name);
            assert!(
                !profile.summary.is_empty() && !profile.packages.is_empty() && !profile.tools.is_empty(),
                "{name}"
            );
            for (tool, what) in &profile.tools {
                assert!(
                    what.operation == Operation::Read || what.effect != EffectClass::Pure,
                    "{name}: {tool} changes something and so is not pure"
                );
            }
        }
        assert!(Profile::built_in("githb").unwrap_err().to_string().contains("did you mean `github`?"));
    }
}
