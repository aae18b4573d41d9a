//! What of the project processes may reach: as much as those who use them.

use coral_core::Caller;
use serde::{Deserialize, Serialize};

use super::rule::{Rule, Subject};
use super::{Grant, Permissions};
use crate::access::Operation;
use crate::path::ProjectPath;

/// Places of the project, each with everything under it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reach {
    pub(crate) read: Vec<ProjectPath>,
    pub(crate) write: Vec<ProjectPath>,
    /// Places that are refused whatever lies around them.
    pub(crate) hidden: Vec<ProjectPath>,
    /// Places that may not be changed whatever lies around them.
    pub(crate) frozen: Vec<ProjectPath>,
}

fn add(places: &mut Vec<ProjectPath>, more: &[ProjectPath]) {
    for place in more {
        if !places.iter().any(|known| place.is_within(known)) {
            places.retain(|known| !known.is_within(place));
            places.push(place.clone());
        }
    }
}

/// What lies in both.
fn common(one: &[ProjectPath], other: &[ProjectPath]) -> Vec<ProjectPath> {
    let mut both = Vec::new();
    for a in one {
        for b in other {
            if a.is_within(b) {
                add(&mut both, std::slice::from_ref(a));
            } else if b.is_within(a) {
                add(&mut both, std::slice::from_ref(b));
            }
        }
    }
    both
}

impl Reach {
    /// What both reach.
    pub(crate) fn within(mut self, other: Reach) -> Reach {
        add(&mut self.hidden, &other.hidden);
        add(&mut self.frozen, &other.frozen);
        Reach {
            read: common(&self.read, &other.read),
            write: common(&self.write, &other.write),
            hidden: self.hidden,
            frozen: self.frozen,
        }
    }

    fn grant(&mut self, grant: &Grant) {
        add(&mut self.read, &grant.paths);
        let classes = &grant.operations.classes;
        if classes.contains(&Operation::Write) || classes.contains(&Operation::Execute) {
            add(&mut self.write, &grant.paths);
        }
    }

    /// Takes out what a refusal of places alone speaks of.
    fn deny(&mut self, rule: &Rule, server: &str) {
        let Some(places) = rule.paths.as_ref().filter(|_| rule.is_of_places(server)) else { return };
        let operations = rule.operations.as_ref().map(|operations| operations.classes.as_slice());
        match operations {
            None => add(&mut self.hidden, places),
            Some(classes) if classes.contains(&Operation::Read) => add(&mut self.hidden, places),
            Some(classes) if classes.contains(&Operation::Write) => add(&mut self.frozen, places),
            Some(_) => {}
        }
    }
}

impl Permissions {
    /// What a process may reach that `caller` has started by `server`, now.
    pub(crate) fn reach_of_caller(&self, caller: &Caller, server: &str, now_ms: u64) -> Reach {
        let mut reach = Reach::default();
        for subject in self.subjects(caller) {
            let grants = subject.grants.iter();
            grants.filter(|grant| grant.holds(caller, now_ms)).for_each(|grant| reach.grant(grant));
            subject.deny.iter().for_each(|rule| reach.deny(rule, server));
        }
        if !self.cedar.is_empty() {
            // What policies grant is not known before they are asked.
            reach.read = vec![ProjectPath::root()];
            reach.write = vec![ProjectPath::root()];
        }
        reach
    }

    /// What the process of a server may reach that several agents share: what any of them may, but for
    /// what is refused to all of them.
    pub(crate) fn reach_of_server(&self, server: &str) -> Reach {
        let mut reach = Reach::default();
        let mut users: Vec<&Subject> = Vec::new();
        for subject in self.agents.values().chain(self.categories.values()) {
            let mut grants = subject.grants.iter().filter(|grant| grant.names_server(server)).peekable();
            if grants.peek().is_some() {
                users.push(subject);
            }
            grants.for_each(|grant| reach.grant(grant));
        }
        self.everyone.deny.iter().for_each(|rule| reach.deny(rule, server));
        if let [only] = users.as_slice() {
            only.deny.iter().for_each(|rule| reach.deny(rule, server));
        }
        if !self.cedar.is_empty() {
            reach.read = vec![ProjectPath::root()];
            reach.write = vec![ProjectPath::root()];
        }
        reach
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> Vec<ProjectPath> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_common_is_the_deeper_of_two() {
        assert_eq!(
            common(&paths(&["src", "docs/a"]), &paths(&["src/x", "docs"])),
            paths(&["src/x", "docs/a"])
        );
        assert_eq!(common(&paths(&["src"]), &paths(&["srcx"])), paths(&[]));
        let mut places = paths(&["src/a", "src/b"]);
        add(&mut places, &paths(&["src"]));
        assert_eq!(places, paths(&["src"]));
    }
}
