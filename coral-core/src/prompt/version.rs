//! Versions of prompts: history, differences, pins, roll back, trials by share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::template::Partials;
use crate::error::Error;
use crate::event::Event;
use crate::hash::{digest, jitter};
use crate::spec::{AgentSpec, PromptTemplate};

/// The texts that make an agent's prompt, with the partials that they include: what a version is a version of.
///
/// All else of an [`AgentSpec`] is its contract with other agents, and belongs to its definition: runs are pinned to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptText {
    /// As [`AgentSpec::role_description`].
    pub role_description: String,
    /// As [`AgentSpec::expertise_areas`].
    #[serde(default)]
    pub expertise_areas: Vec<String>,
    /// As [`AgentSpec::methodologies`].
    #[serde(default)]
    pub methodologies: Vec<String>,
    /// As [`AgentSpec::prompt`].
    pub prompt: PromptTemplate,
    /// The instructions of each phase.
    #[serde(default)]
    pub phases: BTreeMap<String, String>,
    /// The partials that the templates include.
    #[serde(default)]
    pub partials: BTreeMap<String, String>,
}

impl PromptText {
    /// The texts of `spec` and those of `partials` that they include.
    pub fn of(spec: &AgentSpec, partials: &Partials) -> Self {
        let prompt = &spec.prompt;
        let texts = [
            &prompt.system_instructions,
            &prompt.task_template,
            &prompt.context_integration,
            &prompt.output_format,
        ];
        let partials = partials.reached_from(texts.into_iter().map(String::as_str));
        PromptText {
            role_description: spec.role_description.clone(),
            expertise_areas: spec.expertise_areas.clone(),
            methodologies: spec.methodologies.clone(),
            prompt: prompt.clone(),
            phases: spec
                .phases
                .iter()
                .filter(|(_, phase)| !phase.instructions.is_empty())
                .map(|(name, phase)| (name.clone(), phase.instructions.clone()))
                .collect(),
            partials: partials.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect(),
        }
    }

    /// `spec` with these texts in place of its own.
    #[must_use]
    pub fn apply_to(&self, spec: &AgentSpec) -> AgentSpec {
        let mut spec = spec.clone();
        spec.role_description.clone_from(&self.role_description);
        spec.expertise_areas.clone_from(&self.expertise_areas);
        spec.methodologies.clone_from(&self.methodologies);
        spec.prompt.clone_from(&self.prompt);
        for phase in spec.phases.values_mut() {
            phase.instructions.clear();
        }
        for (name, text) in &self.phases {
            spec.phases.entry(name.clone()).or_default().instructions.clone_from(text);
        }
        spec
    }

    /// The id of these texts as a version: 16 hexadecimal digits of their hash.
    pub fn version(&self) -> String {
        // Texts alone always are JSON.
        let hash = digest(self).unwrap_or_default();
        hash.get(..16).unwrap_or(&hash).to_owned()
    }

    /// What differs from here to `to`, in the unified format, each text as a file of its own; empty if nothing does.
    pub fn diff(&self, to: &PromptText) -> String {
        let (old, new) = (self.files(), to.files());
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let mut diff = String::new();
        for name in names {
            let text = |files: &BTreeMap<String, String>| files.get(name).cloned().unwrap_or_default();
            let (old, new) = (text(&old), text(&new));
            if old != new {
                let lines = similar::TextDiff::from_lines(&old, &new);
                diff.push_str(&lines.unified_diff().context_radius(3).header(name, name).to_string());
            }
        }
        diff
    }

    fn files(&self) -> BTreeMap<String, String> {
        let ended = |text: &str| {
            if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
        };
        let mut files: BTreeMap<String, String> = [
            ("role", ended(&self.role_description)),
            ("expertise", ended(&self.expertise_areas.join("\n"))),
            ("methods", ended(&self.methodologies.join("\n"))),
            ("system", ended(&self.prompt.system_instructions)),
            ("task", ended(&self.prompt.task_template)),
            ("context", ended(&self.prompt.context_integration)),
            ("output", ended(&self.prompt.output_format)),
        ]
        .map(|(name, text)| (name.to_owned(), text))
        .into();
        files.extend(self.phases.iter().map(|(name, text)| (format!("phase/{name}"), ended(text))));
        files.extend(self.partials.iter().map(|(name, text)| (format!("partial/{name}"), ended(text))));
        files
    }
}

/// One version of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptVersion {
    /// The texts.
    pub text: Arc<PromptText>,
    /// Why it was made.
    pub note: String,
    /// The version that it came after when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

/// What was done to a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PromptChange {
    /// A version became the current one.
    Committed {
        /// The version.
        version: String,
        /// Why.
        note: String,
    },
    /// An earlier version became the current one again.
    RolledBack {
        /// The version that is current now.
        version: String,
        /// The version that was.
        from: String,
        /// Why.
        note: String,
    },
    /// One version is used, whatever is current.
    Pinned {
        /// The version.
        version: String,
    },
    /// The current version is used again.
    Unpinned,
    /// Some versions get a share of the steps each.
    TrialBegan {
        /// The versions and their shares in percent.
        shares: BTreeMap<String, u8>,
    },
    /// All steps get the current version again.
    TrialEnded,
}

/// Why a step gets the version that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChosenBy {
    /// It stands in the agent's definition.
    Definition,
    /// It is the current one.
    Current,
    /// It is pinned.
    Pin,
    /// It has a share in a trial, and the step fell to it.
    Trial,
}

/// The versions of the prompts of agents.
///
/// A plain value: keep it as JSON where you keep your definitions, change it, and give it to a
/// [`PromptService`](crate::PromptService), which may be done while runs go on. A version's id is the hash of its
/// texts, so it can't change behind its id; a store whose ids do not fit is refused when it is read.
///
/// Which version a step gets follows from the names of its run and its step, so it is the same after a restart; the
/// journal has it as a note of topic `prompt`, see [`PromptUse`].
///
/// ```
/// use coral_core::{AgentSpec, Partials, PromptStore, PromptText};
///
/// let mut spec = AgentSpec::new("greeter", "Greeter");
/// spec.prompt.task_template = "Greet {{ brief.project }}.".into();
/// let mut store = PromptStore::new();
/// let first = store.commit("greeter", PromptText::of(&spec, &Partials::new()), "first")?;
///
/// spec.prompt.task_template = "Greet {{ brief.project }} warmly.".into();
/// let second = store.commit("greeter", PromptText::of(&spec, &Partials::new()), "warmer")?;
/// assert!(store.diff("greeter", &first, &second)?.contains("+Greet {{ brief.project }} warmly."));
///
/// // A tenth of the steps try the first version again.
/// store.begin_trial("greeter", [(first.as_str(), 10)])?;
/// let firsts = (0..1_000).filter(|i| store.choose("greeter", &format!("run-{i}/greet")).unwrap().0 == first).count();
/// assert!((50..150).contains(&firsts));
///
/// store.end_trial("greeter")?;
/// store.roll_back("greeter", "too warm")?;
/// assert_eq!(store.current("greeter"), Some(first.as_str()));
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct PromptStore {
    prompts: BTreeMap<String, Prompt>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prompt {
    current: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    trial: BTreeMap<String, u8>,
    versions: BTreeMap<String, PromptVersion>,
    history: Vec<PromptChange>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    prompts: BTreeMap<String, Prompt>,
}

impl TryFrom<Stored> for PromptStore {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        for (agent, prompt) in &stored.prompts {
            for (id, version) in &prompt.versions {
                let found = version.text.version();
                if found != *id {
                    return Err(format!(
                        "version `{id}` of `{agent}` has the hash `{found}`: its texts were changed"
                    ));
                }
            }
            let named = prompt.pin.iter().chain(prompt.trial.keys()).chain([&prompt.current]);
            if let Some(lost) = named.into_iter().find(|id| !prompt.versions.contains_key(*id)) {
                return Err(format!("version `{lost}` of `{agent}` is in use and not there"));
            }
            check_shares(&prompt.trial)?;
        }
        Ok(PromptStore { prompts: stored.prompts })
    }
}

impl PromptStore {
    /// No versions.
    pub fn new() -> Self {
        PromptStore::default()
    }

    /// The agents whose prompts have versions.
    pub fn agents(&self) -> impl Iterator<Item = &str> {
        self.prompts.keys().map(String::as_str)
    }

    /// Makes `text` the current version of an agent's prompt, and gives its id. Nothing happens if it is that already.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if `agent` is empty.
    pub fn commit(
        &mut self,
        agent: &str,
        text: PromptText,
        note: impl Into<String>,
    ) -> Result<String, Error> {
        if agent.is_empty() {
            return Err(Error::invalid("prompt store", "the agent's id is empty"));
        }
        let id = text.version();
        let prompt = self.prompts.entry(agent.to_owned()).or_default();
        if prompt.current == id {
            return Ok(id);
        }
        let note = note.into();
        let parent = (!prompt.current.is_empty()).then(|| prompt.current.clone());
        prompt.versions.entry(id.clone()).or_insert_with(|| PromptVersion {
            text: Arc::new(text),
            note: note.clone(),
            parent,
        });
        prompt.current.clone_from(&id);
        prompt.history.push(PromptChange::Committed { version: id.clone(), note });
        Ok(id)
    }

    /// The id of the current version.
    pub fn current(&self, agent: &str) -> Option<&str> {
        self.prompts.get(agent).map(|prompt| prompt.current.as_str())
    }

    /// A version by its id, or by the beginning of it.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), or [`Invalid`](crate::ErrorKind::Invalid) if several begin like that.
    pub fn version(&self, agent: &str, id: &str) -> Result<&PromptVersion, Error> {
        let prompt = self.prompt(agent)?;
        let id = prompt.id(agent, id)?;
        prompt.versions.get(&id).ok_or_else(|| Error::not_found("prompt version", &id, []))
    }

    /// All versions of an agent's prompt with their ids.
    pub fn versions(&self, agent: &str) -> impl Iterator<Item = (&str, &PromptVersion)> {
        let prompt = self.prompts.get(agent);
        prompt
            .into_iter()
            .flat_map(|prompt| prompt.versions.iter().map(|(id, version)| (id.as_str(), version)))
    }

    /// What was done to an agent's prompt, oldest first.
    pub fn history(&self, agent: &str) -> &[PromptChange] {
        self.prompts.get(agent).map_or(&[], |prompt| prompt.history.as_slice())
    }

    /// What differs between two versions, in the unified format.
    ///
    /// # Errors
    /// As [`version`](Self::version).
    pub fn diff(&self, agent: &str, from: &str, to: &str) -> Result<String, Error> {
        Ok(self.version(agent, from)?.text.diff(&self.version(agent, to)?.text))
    }

    /// Lets all steps have one version, whatever is current and whatever trial goes on.
    ///
    /// # Errors
    /// As [`version`](Self::version).
    pub fn pin(&mut self, agent: &str, id: &str) -> Result<(), Error> {
        let prompt = self.prompt_mut(agent)?;
        let version = prompt.id(agent, id)?;
        prompt.pin = Some(version.clone());
        prompt.history.push(PromptChange::Pinned { version });
        Ok(())
    }

    /// Ends what [`pin`](Self::pin) began.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if the agent's prompt has no versions.
    pub fn unpin(&mut self, agent: &str) -> Result<(), Error> {
        let prompt = self.prompt_mut(agent)?;
        if prompt.pin.take().is_some() {
            prompt.history.push(PromptChange::Unpinned);
        }
        Ok(())
    }

    /// Makes the version current that was so before the current one, and gives its id.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if the agent's prompt has no versions,
    /// [`Invalid`](crate::ErrorKind::Invalid) if the current one is the first.
    pub fn roll_back(&mut self, agent: &str, note: impl Into<String>) -> Result<String, Error> {
        let prompt = self.prompt(agent)?;
        match prompt.before_current() {
            Some(before) => self.roll_back_to(agent, &before, note),
            None => Err(Error::invalid(
                format!("roll back of `{agent}`"),
                format!("version `{}` is the first", prompt.current),
            )),
        }
    }

    /// Makes an earlier version current, and gives its id.
    ///
    /// # Errors
    /// As [`version`](Self::version).
    pub fn roll_back_to(&mut self, agent: &str, id: &str, note: impl Into<String>) -> Result<String, Error> {
        let prompt = self.prompt_mut(agent)?;
        let version = prompt.id(agent, id)?;
        let from = std::mem::replace(&mut prompt.current, version.clone());
        let change = PromptChange::RolledBack { version: version.clone(), from, note: note.into() };
        prompt.history.push(change);
        Ok(version)
    }

    /// Gives versions a share of the steps each, in percent; the rest gets the current version. It takes the place of
    /// a trial that goes on.
    ///
    /// # Errors
    /// As [`version`](Self::version), and [`Invalid`](crate::ErrorKind::Invalid) if the shares are more than 100.
    pub fn begin_trial<'a>(
        &mut self,
        agent: &str,
        shares: impl IntoIterator<Item = (&'a str, u8)>,
    ) -> Result<(), Error> {
        let prompt = self.prompt_mut(agent)?;
        let mut trial = BTreeMap::new();
        for (id, share) in shares {
            trial.insert(prompt.id(agent, id)?, share);
        }
        check_shares(&trial).map_err(|problem| Error::invalid(format!("trial of `{agent}`"), problem))?;
        prompt.trial.clone_from(&trial);
        prompt.history.push(PromptChange::TrialBegan { shares: trial });
        Ok(())
    }

    /// Ends what [`begin_trial`](Self::begin_trial) began.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if the agent's prompt has no versions.
    pub fn end_trial(&mut self, agent: &str) -> Result<(), Error> {
        let prompt = self.prompt_mut(agent)?;
        if !prompt.trial.is_empty() {
            prompt.trial.clear();
            prompt.history.push(PromptChange::TrialEnded);
        }
        Ok(())
    }

    /// The version that a step gets, and why; `identity` names the step: `RUN/PATH`. Nothing if the agent's prompt has
    /// no versions.
    pub fn choose(&self, agent: &str, identity: &str) -> Option<(&str, ChosenBy)> {
        let prompt = self.prompts.get(agent)?;
        if let Some(pin) = &prompt.pin {
            return Some((pin, ChosenBy::Pin));
        }
        // Ten thousandths, so that taking the rest favours no share.
        let mut place = jitter(&format!("{agent}/{identity}")) % 10_000;
        for (version, share) in &prompt.trial {
            let share = u64::from(*share) * 100;
            if place < share {
                return Some((version, ChosenBy::Trial));
            }
            place -= share;
        }
        Some((&prompt.current, ChosenBy::Current))
    }

    /// Forgets all versions but the last `keep`, the current one, the one before it, the pinned one and those of a trial. A
    /// step that began with a forgotten version can't be resumed.
    pub fn prune(&mut self, agent: &str, keep: usize) {
        let Some(prompt) = self.prompts.get_mut(agent) else { return };
        let mut kept: BTreeSet<String> = prompt.pin.iter().chain(prompt.trial.keys()).cloned().collect();
        kept.insert(prompt.current.clone());
        kept.extend(prompt.before_current());
        let committed = prompt.history.iter().rev().filter_map(|change| match change {
            PromptChange::Committed { version, .. } => Some(version.clone()),
            _ => None,
        });
        kept.extend(committed.take(keep));
        prompt.versions.retain(|id, _| kept.contains(id));
        for version in prompt.versions.values_mut() {
            version.parent = version.parent.take().filter(|parent| kept.contains(parent));
        }
    }

    fn prompt(&self, agent: &str) -> Result<&Prompt, Error> {
        let names = || self.agents();
        self.prompts.get(agent).ok_or_else(|| Error::not_found("prompt with versions", agent, names()))
    }

    fn prompt_mut(&mut self, agent: &str) -> Result<&mut Prompt, Error> {
        self.prompt(agent)?;
        Ok(self.prompts.entry(agent.to_owned()).or_default())
    }
}

impl Prompt {
    /// The version that rolling back leads to. The history tells, and not the parent of the current one: texts that
    /// come back are the same version, and come after another.
    fn before_current(&self) -> Option<String> {
        let mut line: Vec<&String> = Vec::new();
        for change in &self.history {
            match change {
                PromptChange::Committed { version, .. } => line.push(version),
                PromptChange::RolledBack { version, .. } => {
                    match line.iter().rposition(|earlier| *earlier == version) {
                        Some(at) => line.truncate(at + 1),
                        None => line.push(version),
                    }
                }
                _ => {}
            }
        }
        line.pop();
        line.into_iter().rev().find(|version| self.versions.contains_key(*version)).cloned()
    }

    /// The whole id of the version whose id begins with `begin`.
    fn id(&self, agent: &str, begin: &str) -> Result<String, Error> {
        let mut found = self.versions.keys().filter(|id| !begin.is_empty() && id.starts_with(begin));
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(id.clone()),
            (Some(_), Some(_)) => Err(Error::invalid(
                format!("prompt version of `{agent}`"),
                format!("several ids begin with `{begin}`; give more of it"),
            )),
            (None, _) => {
                Err(Error::not_found("prompt version", begin, self.versions.keys().map(String::as_str)))
            }
        }
    }
}

fn check_shares(shares: &BTreeMap<String, u8>) -> Result<(), String> {
    let sum: u32 = shares.values().map(|share| u32::from(*share)).sum();
    if sum > 100 { Err(format!("the shares are {sum} percent, and may be at most 100")) } else { Ok(()) }
}

/// Which version of its prompt a step was given: what the journal's notes of topic `prompt` say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptUse {
    /// The agent.
    pub agent: String,
    /// The version.
    pub version: String,
    /// Why this one.
    pub by: ChosenBy,
    /// Tokens of the model's context, where known: what the prompt was fitted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u64>,
    /// How tokens were counted.
    pub counter: String,
}

impl PromptUse {
    /// The topic of its notes.
    pub const TOPIC: &'static str = "prompt";

    /// The step's path and what it was given, if the event says so.
    pub fn of(event: &Event) -> Option<(Arc<str>, PromptUse)> {
        match event {
            Event::Noted { path, topic, note } if **topic == *Self::TOPIC => {
                Some((path.clone(), PromptUse::deserialize(note).ok()?))
            }
            _ => None,
        }
    }
}
