//! A registry that follows its directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use coral_core::Error;

use crate::registry::{Kind, Loaded, Registry, Skipped, Source, SourceFile, read_dir};

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Ids of agents that are new or differ.
    pub agents: Vec<String>,
    /// Ids of agents that are gone.
    pub removed_agents: Vec<String>,
    /// Names of partials that are new, differ or are gone.
    pub partials: Vec<String>,
    /// Names of workflows that are new or differ.
    pub workflows: Vec<String>,
    /// Names of workflows that are gone.
    pub removed_workflows: Vec<String>,
    /// Files that are no good. A file that was good before stays in force as it was.
    pub skipped: Vec<Skipped>,
}

/// A registry over a directory that may change while a program runs.
///
/// [`current`](Self::current) is a snapshot: a run that was started with it keeps it.
/// [`refresh`](Self::refresh) reads the directory again; call it before each run, on a timer or
/// on a signal. It starts no thread and watches nothing by itself. A file that is broken in the
/// middle of an edit does no harm: its last good version stays in force until it is mended or
/// deleted.
///
/// ```no_run
/// use coral_agents::{LiveRegistry, Registry};
///
/// let (agents, loaded) = LiveRegistry::open(Registry::builtin(), "my-agents")?;
/// println!("{} agents, {} files skipped", loaded.agents.len(), loaded.skipped.len());
/// if let Some(changes) = agents.refresh()? {
///     println!("changed: {:?}", changes.agents);
/// }
/// let architect = agents.current().agent("project_architect")?.clone();
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Debug)]
pub struct LiveRegistry {
    base: Registry,
    dir: PathBuf,
    state: Mutex<State>,
}

type Texts = BTreeMap<String, (Kind, String)>;

#[derive(Debug)]
struct State {
    current: Arc<Registry>,
    /// The files as they were read last.
    seen: Texts,
    /// The last good text of each file.
    good: Texts,
}

impl LiveRegistry {
    /// A registry of `base` with the files of `dir` on top, as
    /// [`load_dir`](Registry::load_dir) reads them.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the directory can't be read.
    pub fn open(base: Registry, dir: impl Into<PathBuf>) -> Result<(Self, Loaded), Error> {
        let dir = dir.into();
        let (seen, unreadable) = read(&dir)?;
        let (registry, good, mut loaded) = build(&base, &seen, &Texts::new());
        loaded.skipped.extend(unreadable);
        let state = Mutex::new(State { current: Arc::new(registry), seen, good });
        Ok((LiveRegistry { base, dir, state }, loaded))
    }

    /// The registry as it stands.
    pub fn current(&self) -> Arc<Registry> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    /// Reads the directory again, and says what changed; nothing if no file did.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the directory can't be read; the registry
    /// stays as it was.
    pub fn refresh(&self) -> Result<Option<Changes>, Error> {
        let (seen, unreadable) = read(&self.dir)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if seen == state.seen {
            return Ok(None);
        }
        let (registry, good, loaded) = build(&self.base, &seen, &state.good);
        let mut changes = differences(&state.current, &registry);
        changes.skipped = loaded.skipped;
        changes.skipped.extend(unreadable);
        *state = State { current: Arc::new(registry), seen, good };
        Ok(Some(changes))
    }
}

fn read(dir: &Path) -> Result<(Texts, Vec<Skipped>), Error> {
    let (files, skipped) = read_dir(dir)?;
    Ok((files.into_iter().map(|(kind, file, text)| (file, (kind, text))).collect(), skipped))
}

/// The registry of `seen` on top of `base`. A file that is no good is taken as `good` has it.
fn build(base: &Registry, seen: &Texts, good: &Texts) -> (Registry, Texts, Loaded) {
    let take = |texts: &Texts| {
        let mut registry = base.clone();
        let files = texts.iter().map(|(file, (kind, text))| SourceFile { kind: *kind, file, text });
        let loaded = registry.take_in(files, |file| Source::File(PathBuf::from(file)));
        (registry, loaded)
    };
    let (mut registry, loaded) = take(seen);
    let bad: BTreeSet<String> =
        loaded.skipped.iter().map(|skipped| skipped.file.to_string_lossy().into_owned()).collect();
    let mut in_force = seen.clone();
    in_force.retain(|file, _| !bad.contains(file));
    let fallback: Texts = good
        .iter()
        .filter(|(file, _)| bad.contains(*file))
        .map(|(file, text)| (file.clone(), text.clone()))
        .collect();
    if !fallback.is_empty() {
        in_force.extend(fallback);
        registry = take(&in_force).0;
    }
    (registry, in_force, loaded)
}

fn differences(old: &Registry, new: &Registry) -> Changes {
    fn changed<'a, T: PartialEq>(
        old: impl Iterator<Item = (&'a str, T)>,
        new: impl Iterator<Item = (&'a str, T)>,
    ) -> (Vec<String>, Vec<String>) {
        let (old, new): (BTreeMap<&str, T>, BTreeMap<&str, T>) = (old.collect(), new.collect());
        let differ = new
            .iter()
            .filter(|(name, value)| old.get(*name) != Some(value))
            .map(|(name, _)| (*name).to_owned());
        let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (*name).to_owned());
        (differ.collect(), gone.collect())
    }
    let (agents, removed_agents) = changed(
        old.agents().map(|spec| (spec.id.as_str(), spec)),
        new.agents().map(|spec| (spec.id.as_str(), spec)),
    );
    let (mut partials, gone) = changed(old.partials(), new.partials());
    partials.extend(gone);
    let (workflows, removed_workflows) = changed(
        old.workflows().map(|workflow| (workflow.name.as_str(), workflow)),
        new.workflows().map(|workflow| (workflow.name.as_str(), workflow)),
    );
    Changes { agents, removed_agents, partials, workflows, removed_workflows, skipped: Vec::new() }
}
