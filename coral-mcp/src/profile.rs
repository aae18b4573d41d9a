//! What the tools of known servers do, and which of their arguments name what.

mod selector;

use std::collections::BTreeMap;

use coral_core::{EffectClass, Error};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::access::Operation;
use crate::path::ProjectPath;
use crate::sql::{self, SqlDialect};
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
/// A tool that a profile does not name is classed by its annotations, which may raise its class
/// but never lower it: without a profile every tool counts as `execute` and irreversible.
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
    /// The tools, by their names at the server.
    #[serde(default)]
    pub(crate) tools: BTreeMap<String, ToolProfile>,
}

/// What one tool does.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolProfile {
    pub(crate) operation: Operation,
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
    /// Whether the tool reaches everything under its paths.
    #[serde(default)]
    pub(crate) recursive: bool,
    /// What the tool takes for arguments that are left out.
    #[serde(default)]
    pub(crate) defaults: Map<String, Value>,
}

impl ToolProfile {
    /// For a tool that nothing is known of.
    pub(crate) fn strictest() -> Self {
        ToolProfile {
            operation: Operation::Execute,
            effect: EffectClass::Irreversible,
            paths: Vec::new(),
            sql: Vec::new(),
            dialect: SqlDialect::default(),
            recursive: false,
            defaults: Map::new(),
        }
    }
}

impl Profile {
    /// Reads a profile; `name` stands in messages.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) with the line.
    pub fn from_yaml(text: &str, name: &str) -> Result<Self, Error> {
        yaml::parse(text, "profile", name)
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
    /// What the call does, its arguments considered.
    pub(crate) operation: Operation,
}

impl ToolProfile {
    /// Finds the places that `arguments` names, and rewrites each through `spell`: what the
    /// policy checked is what the server gets.
    pub(crate) fn read(
        &self,
        arguments: &Map<String, Value>,
        spell: &dyn Fn(&ProjectPath) -> Result<String, String>,
    ) -> Result<Reading, String> {
        let mut arguments = arguments.clone();
        for (key, value) in &self.defaults {
            arguments.entry(key).or_insert_with(|| value.clone());
        }
        let mut paths = Vec::new();
        for selector in &self.paths {
            selector.rewrite(&mut arguments, &mut |text| {
                let path = ProjectPath::parse(text)?;
                let spelled = spell(&path)?;
                paths.push(path);
                Ok(spelled)
            })?;
        }
        let mut operation = self.operation;
        for selector in &self.sql {
            selector.rewrite(&mut arguments, &mut |text| {
                operation = operation.max(sql::classify(text, self.dialect)?);
                Ok(text.to_owned())
            })?;
        }
        Ok(Reading { arguments, paths, operation })
    }
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
