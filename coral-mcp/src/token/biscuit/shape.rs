//! Conditions of the shape of those made here: what they allow can be told without running the engine.
//!
//! Anything else is left to the engine. A block that were taken for less than it says would allow what the
//! token without it does, and whoever added it had that: a holder gains nothing by what it writes.

use std::collections::HashSet;

use biscuit_auth::Biscuit;
use biscuit_auth::builder::{AuthorizerBuilder, Binary, Check, CheckKind, Op, Rule, Term};

use super::{NOWHERE, dirs, named};
use crate::access::Access;
use crate::path::ProjectPath;

/// All conditions of a token: each must hold.
pub(super) struct Conditions(Vec<Vec<Query>>);

/// One of the alternatives of a condition. Each part is of another variable, so they hold or do not by
/// themselves.
struct Query(Vec<Part>);

enum Part {
    Never,
    Now { from_ms: u64, until_ms: u64 },
    Text { of: Of, among: HashSet<String> },
}

/// What a text is of.
#[derive(Clone, Copy)]
enum Of {
    Run,
    Server,
    Operation,
    Dir,
}

/// The conditions of a token that holds nothing else, and none of another shape.
pub(super) fn read(biscuit: &Biscuit) -> Option<Conditions> {
    let (facts, rules, checks, policies) = AuthorizerBuilder::new().build(biscuit).ok()?.dump();
    if !(facts.is_empty() && rules.is_empty() && policies.is_empty()) {
        return None;
    }
    checks.iter().map(condition).collect::<Option<_>>().map(Conditions)
}

fn condition(check: &Check) -> Option<Vec<Query>> {
    if check.kind != CheckKind::One {
        return None;
    }
    check.queries.iter().map(query).collect()
}

fn query(rule: &Rule) -> Option<Query> {
    let Rule { body, expressions, scopes, .. } = rule;
    if !scopes.is_empty() {
        return None;
    }
    let mut parts = Vec::new();
    let mut left: Vec<&[Op]> = expressions.iter().map(|expression| expression.ops.as_slice()).collect();
    if body.is_empty() {
        return matches!(left[..], [[Op::Value(Term::Bool(false))]]).then(|| Query(vec![Part::Never]));
    }
    let mut variables = HashSet::new();
    for predicate in body {
        let [term] = &predicate.terms[..] else { return None };
        let of = match predicate.name.as_str() {
            "now" => None,
            "run" => Some(Of::Run),
            "server" => Some(Of::Server),
            "operation" => Some(Of::Operation),
            "dir" => Some(Of::Dir),
            _ => return None,
        };
        let variable = match (of, term) {
            (Some(of), Term::Str(text)) => {
                parts.push(Part::Text { of, among: HashSet::from([text.clone()]) });
                continue;
            }
            (_, Term::Variable(variable)) if variables.insert(variable) => variable,
            _ => return None,
        };
        let (mine, others): (Vec<&[Op]>, Vec<&[Op]>) = left.into_iter().partition(|ops| {
            ops.iter().any(|op| matches!(op, Op::Value(Term::Variable(v)) if v == variable))
        });
        left = others;
        parts.push(match (of, &mine[..]) {
            (
                Some(of),
                [[Op::Value(Term::Set(set)), Op::Value(Term::Variable(_)), Op::Binary(Binary::Contains)]],
            ) => {
                let text = |term: &Term| match term {
                    Term::Str(text) => Some(text.clone()),
                    _ => None,
                };
                Part::Text { of, among: set.iter().map(text).collect::<Option<_>>()? }
            }
            (
                None,
                [
                    [
                        Op::Value(Term::Variable(_)),
                        Op::Value(Term::Integer(from)),
                        Op::Binary(Binary::GreaterOrEqual),
                    ],
                    [
                        Op::Value(Term::Variable(_)),
                        Op::Value(Term::Integer(until)),
                        Op::Binary(Binary::LessThan),
                    ],
                ],
            ) => Part::Now { from_ms: u64::try_from(*from).ok()?, until_ms: u64::try_from(*until).ok()? },
            _ => return None,
        });
    }
    left.is_empty().then_some(Query(parts))
}

impl Conditions {
    /// Whether they hold for the call as far as it concerns `path`.
    pub(super) fn allow(&self, access: &Access<'_>, path: Option<&ProjectPath>) -> bool {
        let whole = path.map_or_else(|| NOWHERE.to_owned(), ToString::to_string);
        let name = access.named.filter(|_| !access.raised).map(named);
        let holds = |part: &Part| match part {
            Part::Never => false,
            Part::Now { from_ms, until_ms } => (*from_ms..*until_ms).contains(&access.now_ms),
            Part::Text { of: Of::Run, among } => among.contains(access.caller.run.as_ref()),
            Part::Text { of: Of::Server, among } => among.contains(access.server),
            Part::Text { of: Of::Operation, among } => {
                among.contains(access.operation.as_str())
                    || name.as_ref().is_some_and(|name| among.contains(name))
            }
            Part::Text { of: Of::Dir, among } => dirs(&whole).any(|dir| among.contains(dir)),
        };
        self.0.iter().all(|condition| condition.iter().any(|query| query.0.iter().all(holds)))
    }
}
