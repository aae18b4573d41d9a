//! The agents, partials and workflows that are known.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::thread;

use coral_core::{AgentSpec, Error, ErrorKind, GraphData, PromptAgent, PromptService, Team};

use crate::builtin;
use crate::definition::Definition;
use crate::workflow::Written;
use crate::yaml::MAX_BYTES;

/// Where something in a [`Registry`] comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// It comes with this crate.
    Builtin,
    /// It was read from this file.
    File(PathBuf),
    /// A program added it.
    Code,
}

/// A file that was left out, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Skipped {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub error: Error,
}

/// What one load brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// Ids of agents, new and replaced.
    pub agents: Vec<String>,
    /// Names of partials.
    pub partials: Vec<String>,
    /// Names of workflows.
    pub workflows: Vec<String>,
    /// Files that were left out.
    pub skipped: Vec<Skipped>,
}

/// What a file defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Agent,
    Partial,
    Workflow,
}

/// A file to load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceFile<'a> {
    pub(crate) kind: Kind,
    pub(crate) file: &'a str,
    pub(crate) text: &'a str,
}

/// Agents, template partials and workflows by name.
///
/// ```
/// use coral_agents::Registry;
///
/// let registry = Registry::builtin();
/// assert_eq!(registry.agent("database_admin")?.id, "database_specialist");
///
/// let error = registry.agent("backend_develper").unwrap_err();
/// assert_eq!(error.to_string(), "no agent is called `backend_develper`; did you mean `backend_developer`?");
/// # Ok::<(), coral_core::Error>(())
/// ```
///
/// A registry of one's own begins with the built-in agents, or empty, and takes in directories:
/// what they define comes on top, and an agent of the same id replaces the one before. A file
/// that is no good is skipped with its reason; the rest loads.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    agents: BTreeMap<String, (Arc<AgentSpec>, Source)>,
    aliases: BTreeMap<String, String>,
    partials: BTreeMap<String, Arc<str>>,
    workflows: BTreeMap<String, (Arc<GraphData>, Source)>,
}

static BUILTIN: LazyLock<(Registry, Loaded)> = LazyLock::new(|| {
    let mut registry = Registry::default();
    let loaded = registry.take_in(builtin::files(), |_| Source::Builtin);
    (registry, loaded)
});

impl Registry {
    /// A registry of nothing.
    pub fn new() -> Self {
        Registry::default()
    }

    /// The agents, partials and workflows that come with this crate. They are read once.
    pub fn builtin() -> Self {
        BUILTIN.0.clone()
    }

    /// The built-in files that did not load: none, as the tests of this crate show.
    #[cfg(test)]
    pub(crate) fn builtin_skipped() -> &'static [Skipped] {
        &BUILTIN.1.skipped
    }

    /// The built-in registry with the files of a directory on top; see [`load_dir`](Self::load_dir).
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage) if the directory can't be read.
    pub fn with_dir(dir: impl AsRef<Path>) -> Result<(Self, Loaded), Error> {
        let mut registry = Registry::builtin();
        let loaded = registry.load_dir(dir)?;
        Ok((registry, loaded))
    }

    /// Takes in the files of a directory: agents from `*.md` and `agents/*.md`, partials from
    /// `partials/*.md`, workflows from `*.yaml` (or `*.yml`) and `workflows/*.yaml`.
    ///
    /// A partial is known by its file's name without the ending. A file that is no good is
    /// skipped with its reason.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage) if the directory can't be read.
    pub fn load_dir(&mut self, dir: impl AsRef<Path>) -> Result<Loaded, Error> {
        let dir = dir.as_ref();
        let (files, mut skipped) = read_dir(dir)?;
        let mut loaded = self
            .take_in(files.iter().map(|(kind, file, text)| SourceFile { kind: *kind, file, text }), |file| {
                Source::File(PathBuf::from(file))
            });
        skipped.append(&mut loaded.skipped);
        skipped.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(Loaded { skipped, ..loaded })
    }

    /// Adds an agent; one of the same id is replaced.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the spec is not valid.
    pub fn insert(&mut self, spec: AgentSpec) -> Result<(), Error> {
        spec.validate()?;
        self.agents.insert(spec.id.clone(), (Arc::new(spec), Source::Code));
        self.index_aliases();
        Ok(())
    }

    /// Adds a partial; one of the same name is replaced.
    pub fn insert_partial(&mut self, name: impl Into<String>, text: impl Into<Arc<str>>) {
        self.partials.insert(name.into(), text.into());
    }

    /// Adds a workflow; one of the same name is replaced.
    pub fn insert_workflow(&mut self, workflow: GraphData) {
        self.workflows.insert(workflow.name.clone(), (Arc::new(workflow), Source::Code));
    }

    /// The agent of an id or alias.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), with the nearest name.
    pub fn agent(&self, name: &str) -> Result<&Arc<AgentSpec>, Error> {
        self.find(name).ok_or_else(|| Error::not_found("agent", name, self.names()))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Arc<AgentSpec>> {
        let id = self.aliases.get(name).map_or(name, String::as_str);
        self.agents.get(id).map(|(spec, _)| spec)
    }

    /// All ids and aliases.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.agents.keys().chain(self.aliases.keys()).map(String::as_str)
    }

    /// Where the agent of this id comes from.
    pub fn source(&self, id: &str) -> Option<&Source> {
        self.agents.get(id).map(|(_, source)| source)
    }

    /// All agents, by id.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<AgentSpec>> {
        self.agents.values().map(|(spec, _)| spec)
    }

    /// The agents that can do something, those first that name it exactly.
    ///
    /// A capability matches if it has all words of `capability`, so that `testing` finds
    /// `load_testing`. Case, blanks and hyphens do not matter.
    ///
    /// ```
    /// let registry = coral_agents::Registry::builtin();
    /// let ids: Vec<_> = registry.with_capability("API implementation").iter().map(|a| a.id.clone()).collect();
    /// assert!(ids.contains(&"backend_developer".to_owned()));
    /// ```
    pub fn with_capability(&self, capability: &str) -> Vec<&Arc<AgentSpec>> {
        let wanted = words(capability);
        if wanted.is_empty() {
            return Vec::new();
        }
        let mut found: Vec<(usize, &Arc<AgentSpec>)> = self
            .agents()
            .filter_map(|spec| {
                let extra = spec
                    .capabilities
                    .iter()
                    .map(|capability| words(capability))
                    .filter(|has| wanted.is_subset(has))
                    .map(|has| has.len() - wanted.len())
                    .min()?;
                Some((extra, spec))
            })
            .collect();
        found.sort_by_key(|(extra, _)| *extra);
        found.into_iter().map(|(_, spec)| spec).collect()
    }

    /// All capabilities with the ids of the agents that have them.
    pub fn capabilities(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut capabilities: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for spec in self.agents() {
            for capability in &spec.capabilities {
                capabilities.entry(capability).or_default().push(&spec.id);
            }
        }
        capabilities
    }

    /// The template partials, as names and texts: what `{% include "name" %}` finds.
    pub fn partials(&self) -> impl Iterator<Item = (&str, &str)> {
        self.partials.iter().map(|(name, text)| (name.as_str(), &**text))
    }

    /// All agents as a team that workflows can be built with, each run by a [`PromptAgent`] with
    /// the partials of this registry.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for the first agent whose templates or schema can't be used.
    ///
    /// ```
    /// use coral_agents::Registry;
    /// use coral_core::Program;
    ///
    /// let registry = Registry::builtin();
    /// let workflow = registry.workflow("documentation_first")?;
    /// let program = Program::from_graph((**workflow).clone(), &registry.team()?)?;
    /// # Ok::<(), coral_core::Error>(())
    /// ```
    pub fn team(&self) -> Result<Team, Error> {
        self.team_with(&PromptService::builder().build()?)
    }

    /// The same with a prompt service of your own: its stages, sections, sources, fitting and versions, and the
    /// partials of this registry.
    ///
    /// # Errors
    /// As [`team`](Self::team).
    pub fn team_with(&self, prompts: &PromptService) -> Result<Team, Error> {
        let prompts = prompts.with_partials(self.partials().collect())?;
        self.agents().try_fold(Team::new(), |team, spec| {
            Ok(team.with_agent(PromptAgent::with_prompts(AgentSpec::clone(spec), &prompts)?))
        })
    }

    /// The workflow of a name.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), with the nearest name.
    pub fn workflow(&self, name: &str) -> Result<&Arc<GraphData>, Error> {
        match self.workflows.get(name) {
            Some((workflow, _)) => Ok(workflow),
            None => Err(Error::not_found("workflow", name, self.workflows.keys().map(String::as_str))),
        }
    }

    /// All workflows, by name.
    pub fn workflows(&self) -> impl Iterator<Item = &Arc<GraphData>> {
        self.workflows.values().map(|(workflow, _)| workflow)
    }

    /// Takes in files. Agents come before workflows, which name them, and an agent after the one
    /// that it extends, in whatever order the files come.
    pub(crate) fn take_in<'a>(
        &mut self,
        files: impl IntoIterator<Item = SourceFile<'a>>,
        source: impl Fn(&str) -> Source,
    ) -> Loaded {
        let mut loaded = Loaded::default();
        let mut agents = Vec::new();
        let mut workflows = Vec::new();
        for file in files {
            match file.kind {
                Kind::Agent => agents.push(file),
                Kind::Partial => {
                    let name =
                        Path::new(file.file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
                    self.partials.insert(name.clone(), file.text.into());
                    loaded.partials.push(name);
                }
                Kind::Workflow => workflows.push(file),
            }
        }
        self.take_in_agents(&agents, &source, &mut loaded);
        self.take_in_workflows(&workflows, &source, &mut loaded);
        loaded
    }

    fn take_in_agents(
        &mut self,
        files: &[SourceFile<'_>],
        source: &impl Fn(&str) -> Source,
        loaded: &mut Loaded,
    ) {
        let mut defined: BTreeMap<String, &str> = BTreeMap::new();
        let mut define = |agents: &mut BTreeMap<_, _>, file, spec: AgentSpec, loaded: &mut Loaded| {
            if let Some(first) = defined.get(&spec.id) {
                let problem = format!("`{first}` defines agent `{}` too", spec.id);
                loaded.skip(file, Error::invalid("agent definition", problem));
                return;
            }
            defined.insert(spec.id.clone(), file);
            loaded.agents.push(spec.id.clone());
            agents.insert(spec.id.clone(), (Arc::new(spec), source(file)));
        };
        let mut waiting = Vec::new();
        for (file, parsed) in files.iter().zip(in_parallel(files, |file| Parsed::of(file.file, file.text))) {
            match parsed {
                Ok(Parsed::Whole(spec)) => define(&mut self.agents, file.file, *spec, loaded),
                Ok(Parsed::Extends(definition)) => waiting.push(definition),
                Err(error) => loaded.skip(file.file, error),
            }
        }
        self.index_aliases();
        while !waiting.is_empty() {
            let (ready, rest) = split_ready(waiting, Definition::id, |d| d.extends().into_iter().collect());
            if ready.is_empty() {
                let names: Vec<&str> = rest.iter().filter_map(Definition::id).collect();
                let problem = format!("these agents extend each other in a circle: {}", names.join(", "));
                for definition in &rest {
                    loaded.skip(definition.file(), Error::invalid("agent definition", problem.clone()));
                }
                break;
            }
            for definition in ready {
                let file = definition.file();
                match definition.resolve(|base| self.find(base).map(|spec| &**spec)) {
                    Ok(spec) => define(&mut self.agents, file, spec, loaded),
                    Err(error) => loaded.skip(file, error),
                }
            }
            self.index_aliases();
            waiting = rest;
        }
        loaded.agents.sort_unstable();
    }

    fn take_in_workflows(
        &mut self,
        files: &[SourceFile<'_>],
        source: &impl Fn(&str) -> Source,
        loaded: &mut Loaded,
    ) {
        let mut waiting = Vec::new();
        for file in files {
            match Written::read(file.file, file.text) {
                Ok(written) => waiting.push(written),
                Err(error) => loaded.skip(file.file, error),
            }
        }
        while !waiting.is_empty() {
            let (ready, rest) = split_ready(waiting, |written| Some(written.name()), Written::uses);
            if ready.is_empty() {
                let names: Vec<&str> = rest.iter().map(Written::name).collect();
                let problem =
                    format!("these workflows run inside of each other in a circle: {}", names.join(", "));
                for written in &rest {
                    loaded.skip(written.file(), Error::invalid("workflow", problem.clone()));
                }
                break;
            }
            for written in ready {
                let file = written.file();
                match written.resolve(self) {
                    Ok(workflow) if loaded.workflows.contains(&workflow.name) => {
                        let problem =
                            format!("another file of the same load defines workflow `{}` too", workflow.name);
                        loaded.skip(file, Error::invalid("workflow", problem));
                    }
                    Ok(workflow) => {
                        loaded.workflows.push(workflow.name.clone());
                        self.workflows.insert(workflow.name.clone(), (Arc::new(workflow), source(file)));
                    }
                    Err(error) => loaded.skip(file, error),
                }
            }
            waiting = rest;
        }
    }

    /// An id comes before an alias, and of two agents with one alias the first by id has it; the
    /// validator reports both cases.
    fn index_aliases(&mut self) {
        self.aliases.clear();
        for (id, (spec, _)) in &self.agents {
            for alias in spec.aliases.iter().filter(|alias| !self.agents.contains_key(*alias)) {
                self.aliases.entry(alias.clone()).or_insert_with(|| id.clone());
            }
        }
    }
}

/// Those that need none of the others, and the rest. One that needs its own name means what was there before.
fn split_ready<T>(
    waiting: Vec<T>,
    name: impl Fn(&T) -> Option<&str>,
    needs: impl Fn(&T) -> Vec<&str>,
) -> (Vec<T>, Vec<T>) {
    let names: BTreeMap<&str, usize> =
        waiting.iter().enumerate().rev().filter_map(|(i, item)| Some((name(item)?, i))).collect();
    let is_ready =
        |i: usize, item: &T| needs(item).into_iter().all(|name| names.get(name).is_none_or(|at| *at == i));
    let ready: Vec<bool> = waiting.iter().enumerate().map(|(i, item)| is_ready(i, item)).collect();
    let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().zip(ready).partition(|(_, ready)| *ready);
    let items = |pairs: Vec<(T, bool)>| pairs.into_iter().map(|(item, _)| item).collect();
    (items(ready), items(rest))
}

/// Files that are worth a thread of their own.
const FILES_PER_THREAD: usize = 64;

/// What an agent's file alone says.
enum Parsed<'a> {
    Whole(Box<AgentSpec>),
    Extends(Definition<'a>),
}

impl<'a> Parsed<'a> {
    fn of(file: &'a str, text: &'a str) -> Result<Self, Error> {
        let definition = Definition::parse(file, text)?;
        Ok(match definition.extends() {
            Some(_) => Parsed::Extends(definition),
            None => Parsed::Whole(Box::new(definition.resolve(|_| None)?)),
        })
    }
}

/// What `work` gives for each of `items`, in their order; many of them are shared out among threads.
fn in_parallel<'a, T: Sync, R: Send>(items: &'a [T], work: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(items.len() / FILES_PER_THREAD);
    if threads < 2 {
        return items.iter().map(work).collect();
    }
    let work = &work;
    thread::scope(|scope| {
        let chunks = items.chunks(items.len().div_ceil(threads));
        let workers: Vec<_> =
            chunks.map(|items| scope.spawn(move || items.iter().map(work).collect::<Vec<R>>())).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Vec<R>>| {
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    })
}

impl Loaded {
    fn skip(&mut self, file: &str, error: Error) {
        // A list of problems names the file in each of them.
        let error = if matches!(error.kind(), ErrorKind::Problems { .. }) { error } else { error.at(file) };
        self.skipped.push(Skipped { file: PathBuf::from(file), error });
    }
}

/// Whether `text` can be an alias: no blanks, nothing that needs quotes.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

fn words(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

pub(crate) type Files = Vec<(Kind, String, String)>;

/// The files of a registry directory in the order of their names.
pub(crate) fn read_dir(dir: &Path) -> Result<(Files, Vec<Skipped>), Error> {
    let paths = paths_in(dir)?;
    let mut files = Files::with_capacity(paths.len());
    let mut skipped = Vec::new();
    for ((kind, path), text) in paths.iter().zip(in_parallel(&paths, |(_, path)| read_text(path))) {
        match text {
            Ok(text) => files.push((*kind, path.to_string_lossy().into_owned(), text)),
            Err(error) => skipped.push(Skipped { file: path.clone(), error }),
        }
    }
    Ok((files, skipped))
}

/// The directories in a directory that hold agents, partials and workflows.
pub(crate) const KIND_DIRS: [&str; 3] = ["agents", "partials", "workflows"];

/// Where the files of a registry directory are, in the order of their names.
pub(crate) fn paths_in(dir: &Path) -> Result<Vec<(Kind, PathBuf)>, Error> {
    let mut paths = Vec::new();
    for path in list(dir)? {
        // By the name first: that asks the file system nothing.
        if let Some(kind) = kind_of(&path) {
            paths.push((kind, path));
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let kind = match KIND_DIRS.iter().position(|dir| Some(*dir) == name) {
            Some(0) => Kind::Agent,
            Some(1) => Kind::Partial,
            Some(_) => Kind::Workflow,
            None => continue,
        };
        if !path.is_dir() {
            continue;
        }
        let of_kind = |path: &Path| match (kind_of(path), kind) {
            (Some(Kind::Agent), Kind::Partial) => Some(Kind::Partial),
            (found, _) => found.filter(|found| *found == kind),
        };
        paths.extend(list(&path)?.into_iter().filter_map(|path| Some((of_kind(&path)?, path))));
    }
    Ok(paths)
}

fn kind_of(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()? {
        "md" => Some(Kind::Agent),
        "yaml" | "yml" => Some(Kind::Workflow),
        _ => None,
    }
}

pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed =
        |problem: std::io::Error| Error::storage(format!("reading directory `{}`", dir.display()), problem);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    // Names compare faster than paths do, which are taken apart each time.
    names.sort_unstable();
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// The text of a file that is not larger than anything that is parsed.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    let failed = |problem: std::io::Error| {
        Error::new(ErrorKind::Storage {
            operation: format!("reading `{}`", path.display()),
            problem: problem.to_string(),
            transient: false,
        })
    };
    let mut file = fs::File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_BYTES as u64 {
        return Err(Error::invalid(
            "file",
            format!("it has {size} bytes, and {MAX_BYTES} is the most that is read"),
        )
        .at(path.to_string_lossy()));
    }
    let mut text = String::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
