//! Permissions decided by Cedar: the document compiled to policies, sliced for each call.

mod cache;
mod compile;
mod custom;
mod request;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use cedar_policy::{
    Authorizer, Decision as Answer, Effect, Policy as CedarRule, PolicyId, PolicySet, Response,
};
use coral_core::{Caller, Category, Error};

use crate::access::{Access, Decision, Policy, Verdict};
use crate::path::ProjectPath;
use crate::permissions::{Permissions, Subject, Window, places};

use self::cache::Decisions;
use self::compile::{Looks, Slot, Source};
pub(crate) use self::custom::check;
use self::custom::{Custom, Uses};
use self::request::{Names, Requests};

/// Slices that are kept ready; above that they are made anew.
const MAX_SLICES: usize = 4_096;

/// [`Permissions`] compiled to [Cedar](https://www.cedarpolicy.com) policies.
///
/// Each rule of the document is one policy; for a call only those are looked at that can concern
/// its agent, server, operation, tool and path. A decision is kept until a window of time opens or
/// closes that could change it; where a policy of one's own looks at `minute`, until the minute is over,
/// and where it looks at `now`, for the millisecond.
///
/// # Cedar policies of one's own
/// Under `cedar` in the permission file, or by
/// [`with_cedar`](crate::Permissions::with_cedar). A `permit` grants, a `forbid` refuses, and a
/// `forbid` annotated `@ask("why")` wants a person's agreement. A call with several paths is
/// decided once for each, and all must be allowed. A policy that can't be evaluated, for instance
/// since an argument is not there, refuses the call: ask with `has` first.
///
/// - `principal`: `Agent::"backend_developer"`, in `Category::"core"` or `Category::"specialist"`.
/// - `action`: `Action::"read"`, `"write"` or `"execute"`, or `in` one of these under the name that
///   a profile gives the operation: `Action::"create_pull_request"`.
/// - `resource`: `Path::"/project/src/main.rs"` in every `Dir` above it (`Dir::"/project/src"`), or
///   `Tool::"github__create_issue"` for a call that names no path; both in
///   `Server::"github"`, a path also in its `Tool`.
/// - `context`: `server`, `tool`, `project`, `phase`, `now` (milliseconds since 1970), `minute` (of
///   the day, UTC), `recursive`, `raised`, `untrusted` (content from outside came into the run),
///   `programs` and `hosts` (sets of what commands and addresses in the arguments name, programs
///   with and without their directories), and
///   `arguments`: a record of texts, whole numbers, truth values, sets and records.
///
/// ```
/// use coral_core::Caller;
/// use coral_mcp::{Access, Operation, Permissions, Policy, PolicyEngine};
///
/// let engine = PolicyEngine::new(Permissions::new().with_cedar(
///     r#"
/// permit (principal == Agent::"qa_testing", action == Action::"read", resource in Dir::"/project/src");
/// @ask("the tests of others")
/// forbid (principal, action, resource in Dir::"/project/src/tests");
/// "#,
///     "qa.cedar",
/// )?)?;
/// let caller = Caller::agent("qa_testing");
/// let decide = |path: &str| {
///     let paths = [path.parse().unwrap()];
///     engine.decide(&Access::new(&caller, "filesystem", "read_file", Operation::Read).on(&paths))
/// };
/// assert!(decide("src/main.rs").is_allowed());
/// assert_eq!(decide("src/tests/a.rs").rule, "a person must agree, by qa.cedar:4: the tests of others");
/// assert!(!decide("docs/plan.md").is_allowed());
/// # Ok::<(), coral_core::Error>(())
/// ```
pub struct PolicyEngine {
    permissions: Arc<Permissions>,
    slots: Vec<Slot>,
    agents: BTreeMap<String, Index>,
    categories: BTreeMap<Category, Index>,
    everyone: Index,
    custom: Vec<Custom>,
    names: Names,
    /// Directories that policies name, as they are spelled there.
    dirs: BTreeSet<String>,
    authorizer: Authorizer,
    slices: Mutex<HashMap<Box<[usize]>, Arc<Slice>>>,
    decisions: Decisions,
}

impl fmt::Debug for PolicyEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyEngine").field("source", &self.permissions.source()).finish_non_exhaustive()
    }
}

/// Where the rules of one subject are found.
#[derive(Default)]
struct Index {
    /// By the directories that they speak of, in lower case.
    by_place: BTreeMap<String, Vec<usize>>,
    /// Those that speak of every place.
    anywhere: Vec<usize>,
    grants: Vec<usize>,
    windows: Vec<Window>,
    /// Whether a rule looks at arguments.
    arguments: bool,
}

/// The policies of one kind of call.
#[derive(Default)]
struct Slice {
    main: PolicySet,
    ask: PolicySet,
    asks: bool,
}

impl PolicyEngine {
    /// Compiles a document.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for a document that Cedar does not take.
    pub fn new(permissions: Permissions) -> Result<Self, Error> {
        PolicyEngine::shared(Arc::new(permissions))
    }

    pub(crate) fn shared(permissions: Arc<Permissions>) -> Result<Self, Error> {
        let mut engine = PolicyEngine {
            slots: Vec::new(),
            agents: BTreeMap::new(),
            categories: BTreeMap::new(),
            everyone: Index::default(),
            custom: Vec::new(),
            names: Names::new()?,
            dirs: BTreeSet::new(),
            authorizer: Authorizer::new(),
            slices: Mutex::default(),
            decisions: Decisions::default(),
            permissions: Arc::clone(&permissions),
        };
        for (agent, subject) in &permissions.agents {
            let index = engine.index(subject, compile::agent(agent))?;
            engine.agents.insert(agent.clone(), index);
        }
        for (category, subject) in &permissions.categories {
            let index = engine.index(subject, compile::category(*category))?;
            engine.categories.insert(*category, index);
        }
        engine.everyone = engine.index(&permissions.everyone, compile::anyone())?;
        for (text, name) in &permissions.cedar {
            engine.custom.extend(custom::parse(text, name)?);
        }
        for custom in &engine.custom {
            engine.dirs.extend(custom.dirs.iter().cloned());
        }
        Ok(engine)
    }

    /// The document that it enforces.
    pub fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    fn index(&mut self, subject: &Subject, principal: serde_json::Value) -> Result<Index, Error> {
        let mut index = Index::default();
        let grants = subject.grants.iter().cloned().map(Source::Grant);
        let deny = subject.deny.iter().cloned().map(Source::Deny);
        let ask = subject.ask.iter().cloned().map(Source::Ask);
        for source in grants.chain(deny).chain(ask) {
            let at = self.slots.len();
            let places = source.places();
            match (&source, places) {
                (Source::Grant(_), places) => {
                    index.grants.push(at);
                    self.dirs.extend(places.iter().flat_map(|p| p.iter().map(|p| p.relative().to_owned())));
                }
                (_, None) => index.anywhere.push(at),
                (_, Some(places)) => {
                    for place in places {
                        index.by_place.entry(place.relative().to_lowercase()).or_default().push(at);
                    }
                }
            }
            index.windows.push(source.window());
            index.arguments |= source.looks_at_arguments();
            self.slots.push(Slot::compile(at, source, &principal)?);
        }
        Ok(index)
    }

    fn indexes<'a>(&'a self, caller: &Caller) -> impl Iterator<Item = &'a Index> + use<'a> {
        self.agents
            .get(caller.agent.as_ref())
            .into_iter()
            .chain(self.categories.get(&caller.category))
            .chain([&self.everyone])
    }

    /// Decides without looking at earlier decisions.
    fn evaluate(&self, access: &Access<'_>) -> Decision {
        let mut asked: Option<Decision> = None;
        let mut said = Vec::new();
        let mut first: Option<String> = None;
        let requests = Requests::new(self, access);
        // A refusal of any path comes before what is missing for another.
        let mut missing = None;
        for path in places(access) {
            match self.evaluate_at(access, path, &requests) {
                Outcome::Denied(rule) => return Decision::deny(rule),
                Outcome::Missing => missing = missing.or(Some(path)),
                Outcome::Granted { by, ask } => {
                    asked = asked.or(ask);
                    for id in by {
                        let (place, after) = self.grant(&id);
                        said.push(after);
                        first.get_or_insert(place);
                    }
                }
            }
        }
        if let Some(path) = missing {
            return Decision::deny(self.permissions.missing(access, path));
        }
        let after = self.permissions.after_untrusted(access, said.into_iter());
        match (after, asked) {
            (Some(after), _) if after.verdict == Verdict::Deny => after,
            (_, Some(asked)) | (Some(asked), None) => asked,
            (None, None) => Decision::allow(format!("granted at {}", first.unwrap_or_default())),
        }
    }

    fn evaluate_at(
        &self,
        access: &Access<'_>,
        path: Option<&ProjectPath>,
        requests: &Requests<'_>,
    ) -> Outcome {
        let found = self.candidates(access, path);
        let slice = match self.slice(&found.slots) {
            Ok(slice) => slice,
            Err(problem) => return Outcome::Denied(format!("the policies can't be put together: {problem}")),
        };
        let (request, entities) = match requests.at(path, &found) {
            Ok(request) => request,
            Err(problem) => {
                return Outcome::Denied(format!("the call can't be put to the policies: {problem}"));
            }
        };
        let response = self.authorizer.is_authorized(&request, &slice.main, &entities);
        if let Some(problem) = broken(&response) {
            return Outcome::Denied(problem);
        }
        let mut by: Vec<PolicyId> = response.diagnostics().reason().cloned().collect();
        by.sort();
        if response.decision() == Answer::Deny {
            return by.first().map_or(Outcome::Missing, |id| Outcome::Denied(self.refusal(id)));
        }
        if !slice.asks {
            return Outcome::Granted { by, ask: None };
        }
        let response = self.authorizer.is_authorized(&request, &slice.ask, &entities);
        if let Some(problem) = broken(&response) {
            return Outcome::Denied(problem);
        }
        let ask = (response.decision() == Answer::Deny)
            .then(|| response.diagnostics().reason().min().map(|id| self.question(id)))
            .flatten();
        Outcome::Granted { by, ask }
    }

    /// The rules that can concern the call as far as it concerns `path`.
    fn candidates(&self, access: &Access<'_>, path: Option<&ProjectPath>) -> Found {
        let mut found = Found::default();
        let lower = path.map(|path| path.relative().to_lowercase());
        for index in self.indexes(access.caller) {
            found.slots.extend(&index.grants);
            found.slots.extend(&index.anywhere);
            let Some(lower) = &lower else { continue };
            for above in ancestors(lower) {
                if let Some(at) = index.by_place.get(above) {
                    found.slots.extend(at);
                    found.reached.insert(above.to_owned());
                }
            }
            if access.recursive {
                let below =
                    index.by_place.range::<str, _>((Bound::Included(lower.as_str()), Bound::Unbounded));
                // What begins with the same letters lies together; not all of it is below.
                for (place, at) in below.take_while(|(place, _)| place.starts_with(lower.as_str())) {
                    if compile::lies_within(place, lower) {
                        found.slots.extend(at);
                        found.reached.insert(place.clone());
                    }
                }
            }
        }
        found.slots.retain(|at| self.slots.get(*at).is_some_and(|slot| slot.source.can_concern(access)));
        found.slots.sort_unstable();
        found.slots.dedup();
        for at in &found.slots {
            if let Some(slot) = self.slots.get(*at) {
                slot.facts(&mut found.facts);
                found.looks.add(slot.looks);
            }
        }
        let beyond = self.slots.len();
        let customs = self.custom.iter().enumerate().filter(|(_, custom)| custom.concerns(access.caller));
        for (i, custom) in customs {
            found.slots.push(beyond + i);
            found.shows(&custom.uses);
        }
        found.category |= self.categories.contains_key(&access.caller.category);
        if let Some(path) = path {
            let known = ancestors(path.relative()).filter(|above| self.dirs.contains(*above));
            found.dirs = known.map(str::to_owned).collect();
        }
        found
    }

    fn policy(&self, at: usize) -> Option<(&CedarRule, bool)> {
        match self.slots.get(at) {
            Some(slot) => Some((&slot.policy, matches!(slot.source, Source::Ask(_)))),
            None => {
                self.custom.get(at - self.slots.len()).map(|custom| (&custom.policy, custom.ask.is_some()))
            }
        }
    }

    fn slice(&self, at: &[usize]) -> Result<Arc<Slice>, String> {
        let mut slices = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = slices.get(at) {
            return Ok(Arc::clone(slice));
        }
        let mut slice = Slice::default();
        for (policy, asks) in at.iter().filter_map(|at| self.policy(*at)) {
            let set = if asks { &mut slice.ask } else { &mut slice.main };
            set.add(policy.clone()).map_err(|error| error.to_string())?;
            slice.asks |= asks;
        }
        if slice.asks {
            slice.ask.add(self.names.baseline.clone()).map_err(|error| error.to_string())?;
        }
        if slices.len() >= MAX_SLICES {
            slices.clear();
        }
        let slice = Arc::new(slice);
        slices.insert(at.into(), Arc::clone(&slice));
        Ok(slice)
    }

    fn slot(&self, id: &PolicyId) -> Option<&Slot> {
        let text: &str = id.as_ref();
        self.slots.get(text.parse::<usize>().ok()?)
    }

    fn custom(&self, id: &PolicyId) -> Option<&Custom> {
        self.custom.iter().find(|custom| custom.policy.id() == id)
    }

    fn refusal(&self, id: &PolicyId) -> String {
        match (self.slot(id), self.custom(id)) {
            (Some(slot), _) => format!("refused by the `deny` rule at {}", slot.source.place()),
            (None, Some(custom)) => format!("refused by {}", custom.title()),
            (None, None) => "refused".to_owned(),
        }
    }

    fn question(&self, id: &PolicyId) -> Decision {
        Decision::ask(match (self.slot(id), self.custom(id)) {
            (Some(slot), _) => format!("a person must agree, by the `ask` rule at {}", slot.source.place()),
            (None, Some(custom)) => format!("a person must agree, by {}", custom.title()),
            (None, None) => "a person must agree".to_owned(),
        })
    }

    fn grant(&self, id: &PolicyId) -> (String, Option<crate::permissions::AfterUntrusted>) {
        match (self.slot(id), self.custom(id)) {
            (Some(slot), _) => (slot.source.place().to_owned(), slot.source.after_untrusted()),
            (None, Some(custom)) => (custom.title(), custom.after_untrusted),
            (None, None) => (String::new(), None),
        }
    }

    fn customs(&self, caller: &Caller, effect: Effect) -> impl Iterator<Item = &Custom> {
        self.custom
            .iter()
            .filter(move |c| c.policy.effect() == effect && c.ask.is_none() && c.concerns(caller))
    }

    /// Whether a policy of the embedder's own holds for any call of the tool.
    fn holds(&self, custom: &Custom, access: &Access<'_>) -> Option<bool> {
        let requests = Requests::new(self, access);
        let mut found = Found::default();
        found.shows(&custom.uses);
        let (request, entities) = requests.at(None, &found).ok()?;
        let mut alone = PolicySet::new();
        alone.add(custom.policy.clone()).ok()?;
        let response = self.authorizer.is_authorized(&request, &alone, &entities);
        let failed = response.diagnostics().errors().next().is_some();
        (!failed).then(|| response.diagnostics().reason().next().is_some())
    }
}

/// What concerns a call.
#[derive(Default)]
struct Found {
    slots: Vec<usize>,
    /// What rules about arguments and patterns of names find, for Cedar to combine.
    facts: Vec<String>,
    /// The directories of refusals and questions that the call touches, in lower case.
    reached: BTreeSet<String>,
    /// The directories of grants that the path lies in.
    dirs: Vec<String>,
    /// What its policies look at.
    looks: Looks,
    /// Whether one may look at what the resource is in beside directories.
    surroundings: bool,
    /// Whether one may look at the caller's category.
    category: bool,
}

impl Found {
    /// Shows what a policy of the embedder's own looks at.
    fn shows(&mut self, uses: &Uses) {
        self.looks.add(uses.looks);
        self.surroundings |= uses.surroundings;
        self.category |= uses.category;
    }
}

enum Outcome {
    Denied(String),
    Missing,
    Granted { by: Vec<PolicyId>, ask: Option<Decision> },
}

/// What went wrong in a policy: Cedar passes over such a one, and so would pass over a refusal.
fn broken(response: &Response) -> Option<String> {
    let error = response.diagnostics().errors().next()?;
    Some(format!("a policy could not be evaluated, so nothing is allowed: {error}"))
}

/// A path and everything above it, to the root.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let mut next = Some(path);
    std::iter::from_fn(move || {
        let now = next?;
        next = match now.rsplit_once('/') {
            Some((above, _)) => Some(above),
            None if now.is_empty() => None,
            None => Some(""),
        };
        Some(now)
    })
}

impl Policy for PolicyEngine {
    fn decide(&self, access: &Access<'_>) -> Decision {
        if access.caller.agent.is_empty() {
            return Decision::deny("a caller without an agent's id has no rights");
        }
        let customs = || self.custom.iter().filter(|custom| custom.concerns(access.caller));
        let arguments = self.indexes(access.caller).any(|index| index.arguments)
            || customs().any(|custom| custom.uses.looks.has("arguments"));
        let Some(key) = cache::key(access, arguments) else { return self.evaluate(access) };
        if let Some(known) = self.decisions.get(&key, access.now_ms) {
            return known;
        }
        let decision = self.evaluate(access);
        let windows = self.indexes(access.caller).flat_map(|index| &index.windows);
        let of_windows = windows.map(|window| window.next_change(access.now_ms));
        let of_customs = customs().map(|custom| custom.uses.next_change(access.now_ms));
        let until_ms = of_windows.chain(of_customs).min().unwrap_or(u64::MAX);
        self.decisions.put(key, decision.clone(), access.now_ms, until_ms);
        decision
    }

    fn may_reach(&self, caller: &Caller, server: &str, now_ms: u64) -> bool {
        let granted = self.permissions.may_reach(caller, server, now_ms);
        granted || (!caller.agent.is_empty() && self.customs(caller, Effect::Permit).next().is_some())
    }

    fn may_see(&self, access: &Access<'_>) -> bool {
        let caller = access.caller;
        if caller.agent.is_empty() {
            return false;
        }
        let hidden =
            |custom: &Custom| custom.uses.is_of_tools_alone() && self.holds(custom, access) == Some(true);
        if self.customs(caller, Effect::Forbid).any(hidden) || !self.permissions.may_not_be_refused(access) {
            return false;
        }
        // What a policy says of paths and arguments is not known before the call.
        let shown = |custom: &Custom| {
            custom.admits(access)
                && (!custom.uses.is_of_tools_alone() || self.holds(custom, access) != Some(false))
        };
        self.permissions.may_be_granted(access) || self.customs(caller, Effect::Permit).any(shown)
    }
}
