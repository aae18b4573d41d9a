//! A registry that follows its directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use coral_core::Error;

#[cfg(feature = "watch")]
pub use self::follow::Following;
use crate::registry::{Kind, Loaded, Registry, Skipped, Source, SourceFile, paths_in, read_dir};

#[cfg(feature = "watch")]
mod follow;

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
/// on a signal. [`poll`](Self::poll) first looks whether any file could have changed, and
/// `follow` (feature `watch`) is told by the operating system when one does. A file that is broken in the
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
    pub(super) dir: PathBuf,
    state: Mutex<State>,
}

type Texts = BTreeMap<String, (Kind, String)>;

/// What was found in the directory.
#[derive(Debug, PartialEq)]
struct Seen {
    texts: Texts,
    /// The files that are there and could not be read.
    unreadable: Vec<Skipped>,
}

#[derive(Debug)]
struct State {
    current: Arc<Registry>,
    /// The files as they were read last.
    seen: Seen,
    /// The last good text of each file.
    good: Texts,
    /// The files as they stood before they were read.
    stamps: Stamps,
}

/// When each file was written and how long it is; nothing for one that tells neither.
#[derive(Debug, Default, PartialEq)]
struct Stamps {
    files: BTreeMap<PathBuf, Option<(SystemTime, u64)>>,
    /// Whether a later change of a file might not show in its stamp, as file systems count time in
    /// steps: some file was written that shortly before it was looked at.
    fresh: bool,
}

/// The longest step in which a file system counts time: two seconds, on FAT.
const STEP: Duration = Duration::from_secs(2);

impl Stamps {
    fn of(dir: &Path) -> Result<Self, Error> {
        let now = SystemTime::now();
        let mut stamps = Stamps::default();
        for (_, path) in paths_in(dir)? {
            let stamp = fs::metadata(&path).and_then(|data| Ok((data.modified()?, data.len()))).ok();
            stamps.fresh |=
                stamp.is_none_or(|(written, _)| now.duration_since(written).map_or(true, |age| age < STEP));
            stamps.files.insert(path, stamp);
        }
        Ok(stamps)
    }
}

impl LiveRegistry {
    /// A registry of `base` with the files of `dir` on top, as
    /// [`load_dir`](Registry::load_dir) reads them.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the directory can't be read.
    pub fn open(base: Registry, dir: impl Into<PathBuf>) -> Result<(Self, Loaded), Error> {
        let dir = dir.into();
        let stamps = Stamps::of(&dir)?;
        let seen = read(&dir)?;
        let (registry, good, loaded) = build(&base, &seen, &Texts::new());
        let state = Mutex::new(State { current: Arc::new(registry), seen, good, stamps });
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
        self.read_again(Stamps::of(&self.dir)?)
    }

    /// As [`refresh`](Self::refresh), but reads nothing where no file was written since, as far as its
    /// time of writing and its length tell. That costs one look at each file: about two milliseconds
    /// for a thousand.
    ///
    /// # Errors
    /// As [`refresh`](Self::refresh).
    pub fn poll(&self) -> Result<Option<Changes>, Error> {
        let stamps = Stamps::of(&self.dir)?;
        let unchanged = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            !state.stamps.fresh && state.stamps.files == stamps.files
        };
        if unchanged { Ok(None) } else { self.read_again(stamps) }
    }

    /// Reads the directory, which stood as `stamps` say just before.
    fn read_again(&self, stamps: Stamps) -> Result<Option<Changes>, Error> {
        let seen = read(&self.dir)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if seen == state.seen {
            state.stamps = stamps;
            return Ok(None);
        }
        let (registry, good, loaded) = build(&self.base, &seen, &state.good);
        let mut changes = differences(&state.current, &registry);
        changes.skipped = loaded.skipped;
        *state = State { current: Arc::new(registry), seen, good, stamps };
        Ok(Some(changes))
    }
}

fn read(dir: &Path) -> Result<Seen, Error> {
    let (files, unreadable) = read_dir(dir)?;
    let texts = files.into_iter().map(|(kind, file, text)| (file, (kind, text))).collect();
    Ok(Seen { texts, unreadable })
}

/// The registry of `seen` on top of `base`. A file that is no good, or can't be read, is taken as `good` has it.
fn build(base: &Registry, seen: &Seen, good: &Texts) -> (Registry, Texts, Loaded) {
    let take = |texts: &Texts| {
        let mut registry = base.clone();
        let files = texts.iter().map(|(file, (kind, text))| SourceFile { kind: *kind, file, text });
        let loaded = registry.take_in(files, |file| Source::File(PathBuf::from(file)));
        (registry, loaded)
    };
    let is_skipped =
        |loaded: &Loaded, file: &str| loaded.skipped.iter().any(|skipped| skipped.file == Path::new(file));
    let (registry, mut loaded) = take(&seen.texts);
    let (mut in_force, bad): (Texts, Texts) = seen
        .texts
        .iter()
        .map(|(file, text)| (file.clone(), text.clone()))
        .partition(|(file, _)| !is_skipped(&loaded, file));
    if bad.is_empty() && seen.unreadable.is_empty() {
        return (registry, in_force, loaded);
    }
    let is_unreadable = |file: &str| seen.unreadable.iter().any(|skipped| skipped.file == Path::new(file));
    let kept = good.iter().filter(|(file, _)| bad.contains_key(*file) || is_unreadable(file));
    in_force.extend(kept.map(|(file, text)| (file.clone(), text.clone())));
    // What was bad only because another file was, such as a workflow whose agent did not load, is
    // good again now.
    for (file, text) in bad {
        let before = in_force.insert(file.clone(), text);
        if !is_skipped(&take(&in_force).1, &file) {
            loaded.skipped.retain(|skipped| skipped.file != Path::new(&file));
        } else if let Some(before) = before {
            in_force.insert(file, before);
        } else {
            in_force.remove(&file);
        }
    }
    let (registry, in_force_loaded) = take(&in_force);
    loaded.skipped.extend(seen.unreadable.iter().cloned());
    (registry, in_force, Loaded { skipped: loaded.skipped, ..in_force_loaded })
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
