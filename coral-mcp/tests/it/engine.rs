//! Cedar decides as the document says: the plain matcher is the oracle.

use coral_core::{Caller, Category};
use coral_mcp::{Access, Operation, Permissions, Policy, PolicyEngine, ProjectPath, Verdict};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

const SERVERS: [&str; 3] = ["filesystem", "github", "*"];
const OPERATIONS: [&str; 5] = ["read", "write", "execute", "create_pull_request", "manage_issues"];
const PATHS: [&str; 7] = [
    "/project",
    "/project/src",
    "/project/src/api",
    "/project/Src",
    "/project/srcx",
    "/project/docs/a b",
    "/project/größe",
];
const TOOLS: [&str; 7] = [
    "*",
    "read_*",
    "github__*",
    "filesystem__write_file",
    "mcp__git*__create_?",
    "*_file",
    "{read,write}_file",
];
const HOUR: u64 = 3_600_000;

/// One entry of the document: its keys, each there or not.
fn entry(is_grant: bool) -> impl Strategy<Value = Value> {
    let list = |of: &'static [&'static str], least: usize| subsequence(of, least..=of.len().min(3));
    let keys = (
        prop::option::weighted(0.5, list(&TOOLS, 1)),
        prop::option::weighted(0.2, list(&["shop", "bank", "*"], 1)),
        prop::option::weighted(0.2, list(&["build", "test"], 1)),
        prop::option::weighted(0.3, list(&["acme", "acme/*", "main", "7", "true"], 1)),
        prop::option::weighted(0.2, (0..4_u64, 1..4_u64)),
        prop::option::weighted(0.2, select(vec!["00:00-02:00", "01:00-01:30", "23:00-01:00"])),
        prop::option::weighted(0.3, select(vec!["ask", "allow", "deny"])),
    );
    let lists = (
        prop::option::weighted(0.7, list(&SERVERS, 1)),
        prop::option::weighted(0.7, list(&OPERATIONS, 1)),
        prop::option::weighted(0.7, list(&PATHS, 1)),
    );
    (lists, keys).prop_map(move |((servers, operations, paths), keys)| {
        let (tools, projects, phases, owner, window, hours, after) = keys;
        let mut entry = json!({});
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                entry[key] = value;
            }
        };
        let list = |list: Option<Vec<&str>>| list.map(|list| json!(list));
        // A grant has these three, and a rule at least one.
        let always = |list: Option<Vec<&'static str>>, all: &[&'static str]| {
            Some(json!(list.unwrap_or_else(|| all.to_vec())))
        };
        if is_grant {
            set("mcp_servers", always(servers, &SERVERS));
            set("operations", always(operations, &OPERATIONS));
            set("paths", always(paths, &PATHS[..1]));
            set("after_untrusted", after.map(|after| json!(after)));
        } else {
            set("mcp_servers", always(servers, &SERVERS[1..2]));
            set("operations", list(operations));
            set("paths", list(paths));
        }
        // A grant's tool patterns must be of its servers.
        set("tools", list(tools).filter(|_| !is_grant).or_else(|| is_grant.then(|| json!(["*_*", "read*"]))));
        set("projects", list(projects));
        set("phases", list(phases));
        set("arguments", owner.map(|owner| json!({"owner": owner})));
        if let Some((from, long)) = window {
            set("valid_from", Some(json!(coral_core::rfc3339(from * HOUR))));
            set("valid_until", Some(json!(coral_core::rfc3339((from + long) * HOUR))));
        }
        set("hours", hours.map(|hours| json!(hours)));
        entry
    })
}

fn subject() -> impl Strategy<Value = Value> {
    let rules = || prop::collection::vec(entry(false), 0..3);
    (entry(true), rules(), rules()).prop_map(|(mut grant, deny, ask)| {
        grant["deny"] = json!(deny);
        grant["ask"] = json!(ask);
        grant
    })
}

fn document() -> impl Strategy<Value = String> {
    let rules = || prop::collection::vec(entry(false), 0..2);
    (subject(), subject(), subject(), rules(), rules(), select(vec!["ask", "allow", "deny"])).prop_map(
        |(dev, qa, core, deny, ask, after)| {
            let model = json!({
                "agents": {"dev": dev, "qa": qa},
                "categories": {"core": core},
                "deny": deny,
                "ask": ask,
                "after_untrusted": after,
            });
            // JSON is YAML.
            json!({"permission_model": model}).to_string()
        },
    )
}

/// What is asked, free of lifetimes.
#[derive(Clone, Debug)]
struct Call {
    caller: Caller,
    server: &'static str,
    tool: &'static str,
    operation: Operation,
    named: Option<&'static str>,
    raised: bool,
    paths: Vec<ProjectPath>,
    recursive: bool,
    owner: Option<Value>,
    untrusted: bool,
    now_ms: u64,
}

impl Call {
    fn decide(&self, policy: &impl Policy) -> Verdict {
        let arguments = json!({"owner": self.owner});
        let mut access = Access::new(&self.caller, self.server, self.tool, self.operation)
            .on(&self.paths)
            .at_ms(self.now_ms);
        access.named = self.named;
        access.raised = self.raised;
        access.recursive = self.recursive;
        access.arguments = arguments.as_object().filter(|_| self.owner.is_some());
        access.untrusted = self.untrusted.then_some("web__fetch");
        policy.decide(&access).verdict
    }
}

fn call() -> impl Strategy<Value = Call> {
    let who = (
        select(vec!["dev", "qa", "other", ""]),
        select(vec![Category::Core, Category::Specialist]),
        select(vec!["shop", "none", ""]),
        select(vec!["build", "release"]),
    );
    let what = (
        select(vec!["filesystem", "github"]),
        select(vec!["read_file", "write_file", "create_x", "x"]),
        select(Operation::ALL.to_vec()),
        select(vec![None, Some("create_pull_request"), Some("manage_issues")]),
        prop::bool::weighted(0.2),
    );
    let paths = select(vec!["", "src", "src/api/a.rs", "SRC/x", "srcx/y", "docs", "größe/a", "GRÖSSE"]);
    let owner = select(vec![
        json!("acme"),
        json!("acme/x"),
        json!("evil"),
        json!(7),
        json!(true),
        json!(null),
        json!(["acme", "main"]),
        json!(["acme", "evil"]),
        json!([]),
        json!({"login": "acme"}),
    ]);
    let how = (
        prop::collection::vec(paths, 0..3),
        any::<bool>(),
        prop::option::of(owner),
        prop::bool::weighted(0.3),
        (0..6 * HOUR).prop_map(|at| at / 60_000 * 60_000),
    );
    (who, what, how).prop_map(
        |((agent, category, project, phase), (server, tool, operation, named, raised), how)| {
            let (paths, recursive, owner, untrusted, now_ms) = how;
            let caller =
                Caller { category, project: project.into(), phase: phase.into(), ..Caller::agent(agent) };
            let paths = paths.iter().map(|path| path.parse().unwrap()).collect();
            Call {
                caller,
                server,
                tool,
                operation,
                named,
                raised,
                paths,
                recursive,
                owner,
                untrusted,
                now_ms,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Each call is asked twice, the second time at every other call's moment too, so that kept
    /// decisions are tried where they may hold no longer.
    #[test]
    fn the_engine_decides_as_the_matcher(text in document(), calls in prop::collection::vec(call(), 1..24)) {
        let permissions = Permissions::from_yaml(&text, "p.yaml").unwrap();
        let engine = PolicyEngine::new(permissions.clone()).unwrap();
        for moment in calls.iter().map(|call| call.now_ms).take(4) {
            for call in &calls {
                for now_ms in [call.now_ms, moment] {
                    let call = Call { now_ms, ..call.clone() };
                    prop_assert_eq!(call.decide(&engine), call.decide(&permissions), "{:?}", call);
                }
            }
        }
    }
}

/// Verdicts must not all be one, or the property above would say nothing.
#[test]
fn random_documents_give_every_verdict() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::<Verdict, usize>::new();
    for _ in 0..40 {
        let text = document().new_tree(&mut runner).unwrap().current();
        let permissions = Permissions::from_yaml(&text, "p.yaml").unwrap();
        for _ in 0..40 {
            let call = call().new_tree(&mut runner).unwrap().current();
            *seen.entry(call.decide(&permissions)).or_default() += 1;
        }
    }
    assert!(seen.len() == 3 && seen.values().all(|n| *n >= 20), "{seen:?}");
}

fn engine(cedar: &str) -> PolicyEngine {
    let text = "permission_model:\n  agents:\n    dev:\n      mcp_servers: [filesystem]\n      \
                operations: [read, write]\n      paths: [/project/src]\n";
    let permissions = Permissions::from_yaml(text, "p.yaml").unwrap();
    PolicyEngine::new(permissions.with_cedar(cedar, "own.cedar").unwrap()).unwrap()
}

#[test]
fn policies_of_ones_own_refuse_ask_and_grant() {
    let engine = engine(
        r#"// The first line.
forbid (principal, action == Action::"write", resource in Dir::"/project/src/vendored");
@ask("generated code")
forbid (principal, action, resource in Dir::"/project/src/gen");
@note("docs are for all specialists")
permit (principal in Category::"specialist", action == Action::"read", resource in Dir::"/project/docs")
when { context.server == "filesystem" };
permit (principal == Agent::"qa", action == Action::"create_pull_request", resource in Server::"github")
when { context has arguments && context.arguments has owner && context.arguments.owner == "acme" };
forbid (principal, action, resource) when { context.now >= 5000 && principal == Agent::"late" };
permit (principal == Agent::"late", action, resource);
"#,
    );
    let decide = |agent: &str, operation, path: &str, now_ms| {
        let caller = Caller { category: Category::Specialist, ..Caller::agent(agent) };
        let paths = [path.parse().unwrap()];
        engine.decide(&Access::new(&caller, "filesystem", "some_file", operation).on(&paths).at_ms(now_ms))
    };
    let (read, write) = (Operation::Read, Operation::Write);
    assert!(decide("dev", write, "src/a", 0).is_allowed());
    assert_eq!(decide("dev", write, "src/vendored/a", 0).rule, "refused by own.cedar:2");
    assert!(decide("dev", read, "src/vendored/a", 0).is_allowed());
    let asked = decide("dev", read, "src/gen/a", 0);
    assert_eq!(asked.verdict, Verdict::Ask);
    assert_eq!(asked.rule, "a person must agree, by own.cedar:4: generated code");
    assert_eq!(
        decide("other", read, "docs/a", 0).rule,
        "granted at own.cedar:6: docs are for all specialists"
    );
    assert!(!decide("other", write, "docs/a", 0).is_allowed());
    assert!(decide("late", write, "any", 4_999).is_allowed());
    assert!(!decide("late", write, "any", 5_000).is_allowed(), "no decision is kept that looks at the clock");
    let qa = Caller::agent("qa");
    for (owner, allowed) in [(json!("acme"), true), (json!("evil"), false), (json!(["acme"]), false)] {
        let arguments = json!({"owner": owner});
        let mut access =
            Access::new(&qa, "github", "create_pull_request", write).named("create_pull_request");
        access.arguments = arguments.as_object();
        assert_eq!(engine.decide(&access).is_allowed(), allowed, "{arguments}");
    }
    assert!(
        engine
            .may_see(&Access::new(&qa, "github", "create_pull_request", write).named("create_pull_request"))
    );
    assert!(!engine.may_see(&Access::new(&Caller::agent("other"), "github", "create_pull_request", write)));
}

#[test]
fn a_policy_that_fails_refuses() {
    let engine =
        engine("forbid (principal, action, resource) when { context.arguments.branch == \"main\" };");
    let dev = Caller::agent("dev");
    let paths = ["src/a".parse().unwrap()];
    for (arguments, allowed) in
        [(json!({"branch": "topic"}), true), (json!({"branch": "main"}), false), (json!({}), false)]
    {
        let mut access = Access::new(&dev, "filesystem", "read_file", Operation::Read).on(&paths);
        access.arguments = arguments.as_object();
        let decision = engine.decide(&access);
        assert_eq!(decision.is_allowed(), allowed, "{arguments}: {}", decision.rule);
    }
}

#[test]
fn policies_that_can_never_match_are_told_with_their_line() {
    for (text, line, words) in [
        ("permit (principal, action, resource)", 1, "unexpected"),
        (
            "\n\npermit (principal, action, resource) when { context.srver == \"x\" };",
            3,
            "did you mean `server`?",
        ),
        ("permit (principal == User::\"x\", action, resource);", 1, "no type is called `User`"),
        ("// permit;\nforbid (principal, action, resource in Dir::\"/project/src/\");", 2, "can never match"),
        ("forbid (principal, action, resource in Dir::\"/etc\");", 1, "outside"),
        ("@ask(\"x\")\npermit (principal, action, resource);", 2, "`forbid`"),
        ("@Ask(\"x\")\nforbid (principal, action, resource);", 2, "did you mean `ask`?"),
        ("permit (principal == ?principal, action, resource);", 1, "templates"),
    ] {
        let error = Permissions::new().with_cedar(text, "own.cedar").unwrap_err();
        let place = error.place().unwrap();
        assert!(
            place == format!("own.cedar:{line}") || (words == "templates" && place == "own.cedar"),
            "{error}"
        );
        assert!(error.to_string().contains(words), "{error}");
    }
    let yaml = "permission_model:\n  cedar: |\n    permit (principal, action, resource);\n    forbid (principal, action, resource) when { context.nope };\n";
    let error = Permissions::from_yaml(yaml, "p.yaml").unwrap_err();
    assert!(error.to_string().contains("no attribute of `context` is called `nope`"), "{error}");
}

/// What a policy asks for by a path after `has` is shown to it, and decides anew where it differs.
#[test]
fn a_path_after_has_is_looked_at() {
    let decide = |engine: &PolicyEngine, arguments: serde_json::Value| {
        let caller = Caller::agent("dev");
        let paths = ["src/a".parse().unwrap()];
        let mut access = Access::new(&caller, "filesystem", "some_file", Operation::Read).on(&paths);
        access.arguments = arguments.as_object();
        engine.decide(&access)
    };
    let forced = engine("forbid (principal, action, resource) when { context has arguments.force.now };");
    for _ in 0..2 {
        assert!(decide(&forced, json!({"force": {"later": 1}})).is_allowed());
        assert!(!decide(&forced, json!({"force": {"now": 1}})).is_allowed());
    }
    // A set has no fields, so this can't be evaluated, and nothing is allowed.
    let broken = engine("permit (principal, action, resource) unless { context has hosts.internal };");
    assert!(!decide(&broken, json!({})).is_allowed());
}

/// A decision by the clock is kept for as long as it holds, and no longer.
#[test]
fn decisions_by_the_clock_change_with_it() {
    let permissions = |attribute: &str, limit: u64| {
        Permissions::new()
            .with_cedar(
                &format!(
                    "permit (principal == Agent::\"dev\", action, resource);\nforbid (principal, action, resource) when {{ context.{attribute} >= {limit} }};"
                ),
                "clock.cedar",
            )
            .unwrap()
    };
    let caller = Caller::agent("dev");
    let allowed = |engine: &PolicyEngine, now_ms| {
        engine.decide(&Access::new(&caller, "x", "y", Operation::Read).at_ms(now_ms)).is_allowed()
    };
    let by_minute = PolicyEngine::new(permissions("minute", 2)).unwrap();
    let by_now = PolicyEngine::new(permissions("now", 100)).unwrap();
    for _ in 0..2 {
        for (now_ms, expected) in
            [(0, true), (119_999, true), (120_000, false), (179_999, false), (86_400_000, true)]
        {
            assert_eq!(allowed(&by_minute, now_ms), expected, "{now_ms}");
        }
        for (now_ms, expected) in [(99, true), (100, false), (98, true)] {
            assert_eq!(allowed(&by_now, now_ms), expected, "{now_ms}");
        }
    }
}
