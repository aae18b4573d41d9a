//! Capability tokens: whatever is done with one, it never allows more than before.

use std::sync::Arc;

use coral_core::{Caller, ManualClock, ToolCall, Toolbox};
use coral_mcp::{Access, BiscuitTokens, Operation, Token, TokenRight, TokenTerms, Tokens};
use proptest::prelude::*;
use serde_json::json;

use crate::desk::{Desk, PERMISSIONS};

fn caller(agent: &str, run: &str) -> Caller {
    Caller { run: run.into(), ..Caller::agent(agent) }
}

fn terms(of: &str, servers: &[&str], operations: &[Operation], paths: &[&str], until_ms: u64) -> TokenTerms {
    let right = TokenRight {
        servers: servers.iter().map(|s| (*s).to_owned()).collect(),
        operations: operations.to_vec(),
        named: Vec::new(),
        paths: paths.iter().map(|path| path.parse().unwrap()).collect(),
    };
    TokenTerms { of: of.to_owned(), rights: vec![right], from_ms: 0, until_ms }
}

/// What the token says to `agent` in `run` at `now_ms`.
fn check(
    tokens: &impl Tokens,
    token: &Token,
    who: &Caller,
    call: (&str, Operation, Option<&str>),
    now_ms: u64,
) -> Result<(), String> {
    let (server, operation, path) = call;
    let paths: Vec<_> = path.iter().map(|path| path.parse().unwrap()).collect();
    tokens.check(token, &Access::new(who, server, "tool", operation).on(&paths).at_ms(now_ms))
}

const READ: Operation = Operation::Read;
const WRITE: Operation = Operation::Write;

#[test]
fn a_token_is_of_its_holder_its_run_its_time_and_its_key() {
    let tokens = BiscuitTokens::generate();
    let dev = caller("dev", "run-1");
    let token = tokens.issue(&dev, &terms("dev", &["filesystem"], &[READ], &["src"], 1_000)).unwrap();
    let call = ("filesystem", READ, Some("src/a"));
    for _ in 0..2 {
        // The second time the answer is one that was kept.
        assert_eq!(check(&tokens, &token, &dev, call, 0), Ok(()));
        assert_eq!(check(&tokens, &token, &dev, call, 999), Ok(()));
        assert!(
            check(&tokens, &token, &dev, call, 1_000).unwrap_err().contains("ended at 1970-01-01T00:00:01")
        );
        assert!(
            check(&tokens, &token, &caller("qa", "run-1"), call, 0).unwrap_err().contains("in the hand of")
        );
        assert!(check(&tokens, &token, &caller("dev", "run-2"), call, 0).is_err());
        assert!(check(&tokens, &token, &dev, ("github", READ, None), 0).is_err());
        assert!(check(&tokens, &token, &dev, ("filesystem", WRITE, Some("src/a")), 0).is_err());
        assert!(check(&tokens, &token, &dev, ("filesystem", READ, Some("docs/a")), 0).is_err());
        assert!(check(&tokens, &token, &dev, ("filesystem", READ, Some("srcx/a")), 0).is_err());
    }
    let other = BiscuitTokens::generate();
    assert!(check(&other, &token, &dev, call, 0).unwrap_err().contains("not one of this key"));
    assert!(other.narrow(&token, &dev, &terms("dev", &["*"], &[READ], &[""], 1)).is_err());
    let elsewhere = BiscuitTokens::verifier(&tokens.public_key()).unwrap();
    assert_eq!(check(&elsewhere, &token, &dev, call, 0), Ok(()));
    assert!(elsewhere.issue(&dev, &terms("dev", &["*"], &[READ], &[""], 1)).is_err());
    assert!(!format!("{token:?} {tokens:?}").contains(token.expose()));
}

#[test]
fn a_token_that_was_tampered_with_is_refused() {
    let tokens = BiscuitTokens::generate();
    let dev = caller("dev", "run-1");
    let wide = tokens.issue(&dev, &terms("dev", &["*"], &[READ, WRITE], &["/project"], 1_000)).unwrap();
    let narrow = tokens.narrow(&wide, &dev, &terms("qa", &["*"], &[READ], &["src"], 500)).unwrap();
    let call = ("filesystem", READ, Some("src/a"));
    assert_eq!(check(&tokens, &narrow, &dev, call, 0), Ok(()));
    let text = narrow.expose();
    for at in (0..text.len()).step_by(7) {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = Token::new(String::from_utf8(bytes).unwrap());
        let widened = check(&tokens, &changed, &dev, ("filesystem", WRITE, Some("docs/a")), 600);
        assert!(widened.is_err(), "byte {at}");
    }
    for cut in [0, 1, text.len() / 2, text.len() - 4] {
        assert!(check(&tokens, &Token::new(&text[..cut]), &dev, call, 0).is_err());
    }
    assert!(check(&tokens, &Token::new("x".repeat(1_000_000)), &dev, call, 0).is_err());
}

#[test]
fn names_are_no_code() {
    let tokens = BiscuitTokens::generate();
    let evil = "x\"); allow if true; check if true; //";
    let who = caller(evil, evil);
    let token = tokens.issue(&who, &terms(evil, &[evil], &[READ], &["src"], 1_000)).unwrap();
    assert_eq!(check(&tokens, &token, &who, (evil, READ, Some("src/a")), 0), Ok(()));
    assert!(check(&tokens, &token, &who, ("filesystem", READ, Some("src/a")), 0).is_err());
    assert!(check(&tokens, &token, &who, (evil, WRITE, Some("src/a")), 0).is_err());
}

const PATHS: [&str; 5] = ["/project", "/project/a", "/project/a/b", "/project/a/c", "/project/d"];

fn some_terms() -> impl Strategy<Value = (Vec<&'static str>, Vec<Operation>, Vec<&'static str>, u64)> {
    (
        proptest::sample::subsequence(vec!["filesystem", "github", "*"], 0..=2),
        proptest::sample::subsequence(Operation::ALL.to_vec(), 0..=3),
        proptest::sample::subsequence(PATHS.to_vec(), 0..=3),
        1..1_000_u64,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Node `i` of a random tree narrows the token of an earlier node: what it may, that one may.
    #[test]
    fn a_descendants_token_allows_a_part_of_its_ancestors(
        all in prop::collection::vec(some_terms(), 2..6),
        parents in prop::collection::vec(any::<prop::sample::Index>(), 6),
        now_ms in 0..1_000_u64,
    ) {
        let tokens = BiscuitTokens::generate();
        let name = |i: usize| format!("agent{i}");
        let terms = |i: usize| {
            let (servers, operations, paths, until_ms) = &all[i];
            terms(&name(i), servers, operations, paths, *until_ms)
        };
        let mut held = vec![tokens.issue(&caller(&name(0), "r"), &terms(0)).unwrap()];
        let mut parent_of = vec![0];
        for i in 1..all.len() {
            let parent = parents[i - 1].index(i);
            held.push(tokens.narrow(&held[parent], &caller(&name(i), "r"), &terms(i)).unwrap());
            parent_of.push(parent);
        }
        for server in ["filesystem", "github"] {
            for operation in Operation::ALL {
                for path in PATHS.map(Some).into_iter().chain([None]) {
                    let may: Vec<bool> = (0..all.len())
                        .map(|i| check(&tokens, &held[i], &caller(&name(i), "r"), (server, operation, path), now_ms).is_ok())
                        .collect();
                    for i in 1..all.len() {
                        prop_assert!(!may[i] || may[parent_of[i]], "{} {} {:?}: {} of {}", server, operation, path, i, parent_of[i]);
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_breaks_the_reader(text in "[A-Za-z0-9_=-]{0,200}") {
        let tokens = BiscuitTokens::generate();
        prop_assert!(check(&tokens, &Token::new(text), &caller("dev", "r"), ("s", READ, None), 0).is_err());
    }
}

struct Shared(Arc<ManualClock>);

impl coral_core::Clock for Shared {
    fn now_ms(&self) -> u64 {
        self.0.now_ms()
    }
    fn random(&self) -> u64 {
        self.0.random()
    }
}

/// A desk whose tokens are made elsewhere too.
async fn desk(tokens: &Arc<BiscuitTokens>, clock: &Arc<ManualClock>) -> Desk {
    struct Of(Arc<BiscuitTokens>);
    impl Tokens for Of {
        fn issue(&self, holder: &Caller, terms: &TokenTerms) -> Result<Token, coral_core::Error> {
            self.0.issue(holder, terms)
        }
        fn narrow(
            &self,
            token: &Token,
            holder: &Caller,
            terms: &TokenTerms,
        ) -> Result<Token, coral_core::Error> {
            self.0.narrow(token, holder, terms)
        }
        fn holds_rights_of(&self, token: &Token) -> Result<Vec<String>, coral_core::Error> {
            self.0.holds_rights_of(token)
        }
        fn holder(&self, token: &Token) -> Result<String, coral_core::Error> {
            self.0.holder(token)
        }
        fn until_ms(&self, token: &Token) -> Result<u64, coral_core::Error> {
            self.0.until_ms(token)
        }
        fn check(&self, token: &Token, access: &Access<'_>) -> Result<(), String> {
            self.0.check(token, access)
        }
    }
    let (tokens, clock) = (Arc::clone(tokens), Arc::clone(clock));
    Desk::with(PERMISSIONS, |b| b.tokens(Of(tokens)).clock(Shared(clock))).await
}

async fn may(desk: &Desk, who: &Caller, path: &str) -> Result<(), String> {
    let arguments = json!({"path": path});
    let call = ToolCall { id: "1".into(), name: "filesystem__read_file".into(), arguments };
    let decision = desk.tools.explain(&call, who).await.unwrap();
    if decision.is_allowed() { Ok(()) } else { Err(decision.rule) }
}

#[tokio::test]
async fn what_an_agent_may_is_what_policy_and_token_allow() {
    let (tokens, clock) = (Arc::new(BiscuitTokens::generate()), Arc::new(ManualClock::at_ms(1_000)));
    let desk = desk(&tokens, &clock).await;
    let dev = Caller::agent("backend_developer");
    assert_eq!(may(&desk, &dev, "src/main.rs").await, Ok(()));
    // A token that allows more than the permissions gains nothing.
    let wide = tokens.issue(&dev, &terms("x", &["*"], &Operation::ALL, &["/project"], u64::MAX / 4)).unwrap();
    desk.tools.present(&dev, wide).unwrap();
    assert_eq!(may(&desk, &dev, "src/main.rs").await, Ok(()));
    assert!(may(&desk, &dev, "docs/plan.md").await.unwrap_err().contains("not among the paths granted"));
    // One that allows less takes away, until it ends.
    let narrow = tokens.issue(&dev, &terms("x", &["filesystem"], &[READ], &["tests"], 5_000)).unwrap();
    desk.tools.present(&dev, narrow.clone()).unwrap();
    assert_eq!(may(&desk, &dev, "tests/it.rs").await, Ok(()));
    assert!(may(&desk, &dev, "src/main.rs").await.unwrap_err().contains("token does not allow"));
    // It goes with the work: the one who acts for the holder is bound by it too.
    let helper = Caller::agent("project_architect");
    desk.tools.delegate(&dev, &helper).unwrap();
    assert!(may(&desk, &helper, "docs/plan.md").await.is_err());
    clock.advance_ms(4_000);
    let denied =
        desk.call("backend_developer", "filesystem__read_file", json!({"path": "tests/it.rs"})).await;
    assert!(Desk::denied(denied).contains("the token ended at 1970-01-01T00:00:05"));
    // A token of another is none of the caller's.
    let of_other = tokens.issue(&helper, &terms("x", &["*"], &[READ], &["/project"], u64::MAX / 4)).unwrap();
    let error = desk.tools.present(&dev, of_other).unwrap_err();
    assert!(error.to_string().contains("in the hand of `project_architect`"), "{error}");
    let forged = BiscuitTokens::generate();
    let forged = forged.issue(&dev, &terms("x", &["*"], &[READ], &["/project"], u64::MAX / 4)).unwrap();
    assert!(desk.tools.present(&dev, forged).is_err());
}

#[tokio::test]
async fn a_handed_on_token_is_narrowed_and_checked_elsewhere() {
    let (tokens, clock) = (Arc::new(BiscuitTokens::generate()), Arc::new(ManualClock::at_ms(1_000)));
    let desk = desk(&tokens, &clock).await;
    let dev = caller("backend_developer", "run-1");
    let architect = caller("project_architect", "run-1");
    desk.tools.delegate(&dev, &architect).unwrap();
    desk.tools.delegate(&dev, &architect).unwrap();
    let token = desk.tools.token(&architect).unwrap().unwrap();
    let elsewhere = BiscuitTokens::verifier(&tokens.public_key()).unwrap();
    assert_eq!(elsewhere.holds_rights_of(&token).unwrap(), ["backend_developer", "project_architect"]);
    // One may read `docs` and the other `src`: together they may read nothing.
    for path in ["docs/a", "src/a"] {
        assert!(check(&elsewhere, &token, &architect, ("filesystem", READ, Some(path)), 1_000).is_err());
    }
    let own = desk.tools.token(&dev).unwrap().unwrap();
    assert_eq!(check(&elsewhere, &own, &dev, ("filesystem", READ, Some("src/a")), 1_000), Ok(()));
    // Renewed tokens are others, bound by the same.
    desk.tools.renew();
    let again = desk.tools.token(&architect).unwrap().unwrap();
    assert!(check(&elsewhere, &again, &architect, ("filesystem", READ, Some("src/a")), 1_000).is_err());
    let names: std::collections::BTreeSet<_> =
        elsewhere.holds_rights_of(&again).unwrap().into_iter().collect();
    assert_eq!(names.len(), 2);
}

#[tokio::test]
async fn agents_in_a_circle_keep_what_they_share() {
    let (tokens, clock) = (Arc::new(BiscuitTokens::generate()), Arc::new(ManualClock::at_ms(1_000)));
    let desk = desk(&tokens, &clock).await;
    let (a, b) = (caller("backend_developer", "r"), caller("project_architect", "r"));
    for _ in 0..5 {
        desk.tools.delegate(&a, &b).unwrap();
        desk.tools.delegate(&b, &a).unwrap();
    }
    assert!(may(&desk, &a, "src/main.rs").await.is_err());
    let token = desk.tools.token(&a).unwrap().unwrap();
    assert!(token.expose().len() < 4_000, "a loop does not make tokens grow");
    desk.tools.forget("r");
    assert_eq!(may(&desk, &a, "src/main.rs").await, Ok(()));
}

#[tokio::test]
async fn a_run_that_waits_goes_on_with_the_token_that_it_had() {
    let tokens = BiscuitTokens::generate();
    let agent = Caller { run: "r".into(), ..Caller::agent("backend_developer") };
    let look = terms("backend_developer", &["filesystem"], &[Operation::Read], &["/project"], u64::MAX / 2);
    let token = tokens.issue(&agent, &look).unwrap();
    let desk = Desk::with(PERMISSIONS, |b| b.tokens(tokens)).await;
    desk.tools.present(&agent, token).unwrap();
    let call = coral_core::ToolCall {
        id: "1".into(),
        name: "filesystem__write_file".into(),
        arguments: json!({"path": "src/x", "content": "x"}),
    };
    let cx = coral_core::CallContext::new(agent);
    let write = async || desk.tools.call(&call, &cx).await;
    assert!(Desk::denied(write().await).contains("the token does not allow"));
    desk.tools.forget("r");
    assert!(Desk::denied(write().await).contains("the token does not allow"), "it did not widen");
}

#[tokio::test]
async fn nobody_acts_without_a_token_where_one_is_required() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let tokens = || BiscuitTokens::open(&key).unwrap();
    let developer = Caller::agent("backend_developer");
    let all = terms("backend_developer", &["*"], &Operation::ALL, &["/project"], u64::MAX / 2);
    let token = tokens().issue(&developer, &all).unwrap();
    // As after a restart: the key is the same, and what was presented is not known any more.
    let desk = Desk::with(PERMISSIONS, |b| b.tokens(tokens()).require_tokens()).await;
    let read = async || {
        desk.call("backend_developer", "filesystem__read_file", json!({"path": "src/main.rs"})).await
    };
    assert!(Desk::denied(read().await).contains("nobody acts without one"));
    desk.tools.present(&developer, token).unwrap();
    Desk::ok(read().await);
}

#[test]
fn tokens_that_do_not_hold_yet_or_were_revoked_are_refused() {
    let tokens = BiscuitTokens::generate();
    let (parent, child) = (Caller::agent("a"), Caller::agent("b"));
    let all = |of: &str, from_ms| TokenTerms {
        from_ms,
        ..terms(of, &["*"], &Operation::ALL, &["/project"], 9_000)
    };
    let token = tokens.issue(&parent, &all("a", 1_000)).unwrap();
    let narrowed = tokens.narrow(&token, &child, &all("b", 0)).unwrap();
    let check = |tokens: &BiscuitTokens, token, caller, now_ms| {
        tokens.check(token, &Access::new(caller, "s", "t", Operation::Read).at_ms(now_ms))
    };
    assert!(check(&tokens, &token, &parent, 999).unwrap_err().contains("does not hold before"));
    assert!(check(&tokens, &narrowed, &child, 999).is_err());
    assert!(
        check(&tokens, &token, &parent, 1_000).is_ok() && check(&tokens, &narrowed, &child, 1_000).is_ok()
    );
    // What is narrowed goes with what it was made from, and not the other way.
    let elsewhere = BiscuitTokens::verifier(&tokens.public_key()).unwrap();
    elsewhere.revoke(tokens.revocation_id(&narrowed).unwrap());
    assert!(check(&elsewhere, &narrowed, &child, 1_000).unwrap_err().contains("revoked"));
    assert!(check(&elsewhere, &token, &parent, 1_000).is_ok());
    tokens.revoke(tokens.revocation_id(&token).unwrap());
    assert!(
        check(&tokens, &narrowed, &child, 1_000).is_err() && check(&tokens, &token, &parent, 1_000).is_err()
    );
}

/// An answer that is kept for one file of a directory serves no other directory.
#[test]
fn answers_are_kept_by_directory_and_no_further() {
    let tokens = BiscuitTokens::generate();
    let caller = Caller::agent("a");
    let token = tokens
        .issue(
            &caller,
            &terms("a", &["files"], &[Operation::Read], &["/project/src", "/project/src/deep"], 9_000),
        )
        .unwrap();
    let check = |server: &str, operation, path: &str| {
        let paths = [path.parse().unwrap()];
        tokens.check(&token, &Access::new(&caller, server, "t", operation).on(&paths)).is_ok()
    };
    for _ in 0..2 {
        for path in ["src/a", "src/b", "src/deep/c", "src"] {
            assert!(check("files", Operation::Read, path), "{path}");
        }
        for path in ["docs/a", "srcx/a", ""] {
            assert!(!check("files", Operation::Read, path), "{path}");
        }
        assert!(!check("files", Operation::Write, "src/a") && !check("other", Operation::Read, "src/a"));
    }
}
