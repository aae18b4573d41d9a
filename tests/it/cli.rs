//! What goes wrong on the command line is one message and exit code 2, with nothing left behind.

use coral_tests::{Finished, Job};

use crate::deliver::{BRIEF, DELIVER, start};

/// Runs in a fresh directory with `files` in it; `{dir}` in an argument is that directory. The
/// job must fail with one message that contains `expected`, and leave `out` unmade.
async fn check(files: &[(&str, &str)], args: &[&str], env: &[(&'static str, &str)], expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let here = dir.path().to_string_lossy();
    let out = dir.path().join("out");
    let args = args
        .iter()
        .map(|arg| arg.replace("{dir}", &here))
        .chain(["--out".to_owned(), out.to_string_lossy().into()]);
    let finished = Job::new(DELIVER, args).env(env.iter().copied()).finish().await.unwrap();
    is_one_message(&finished, expected);
    assert!(!out.exists(), "{expected}: something is left behind");
}

fn is_one_message(finished: &Finished, expected: &str) {
    let Finished { code, stderr, .. } = finished;
    assert_eq!(*code, Some(2), "{expected}: {stderr}");
    assert!(
        stderr.starts_with("error[CORAL00") && stderr.contains(expected),
        "expected {expected}: {stderr}"
    );
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    check(&[], &["{dir}/no.md"], &[], "no.md").await;
    check(&[], &[], &[], "no brief is given").await;
    check(&[], &[BRIEF, "--workflow", "{dir}/no.yaml"], &[], "reading the workflow").await;
    check(&[], &[BRIEF, "--permissions", "{dir}/no.yaml"], &[], "reading the permissions").await;
    check(&[], &["--resume", "run-7"], &[], "no run is called `run-7`").await;
}

#[tokio::test]
async fn files_that_are_no_good_are_named_with_the_line() {
    check(&[("b.md", "---\nfacts: {a: [}\n---\ntext")], &["{dir}/b.md"], &[], "b.md:2").await;
    check(&[("b.md", "")], &["{dir}/b.md"], &[], "the brief says nothing").await;
    check(&[("w.yaml", "steps: [\n")], &[BRIEF, "--workflow", "{dir}/w.yaml"], &[], "w.yaml:").await;
    let unknown = "name: w\nsteps:\n  - agent: backend_develper\n";
    check(
        &[("w.yaml", unknown)],
        &[BRIEF, "--workflow", "{dir}/w.yaml"],
        &[],
        "did you mean `backend_developer`?",
    )
    .await;
    let circle = "name: w\nsteps:\n  - {name: a, agent: project_architect, inputs: [b]}\n  - {name: b, agent: project_architect, inputs: [a]}\n";
    check(&[("w.yaml", circle)], &[BRIEF, "--workflow", "{dir}/w.yaml"], &[], "a, b").await;
    let bad = "permission_model:\n  agents:\n    qa_testing:\n      operations: [reed]\n";
    check(&[("p.yaml", bad)], &[BRIEF, "--permissions", "{dir}/p.yaml"], &[], "p.yaml:4").await;
}

#[tokio::test]
async fn arguments_that_are_no_good_are_named() {
    check(
        &[],
        &[BRIEF, "--condition", "needs_mobile"],
        &[],
        "`needs_mobile` is not of the form `NAME=VALUE`",
    )
    .await;
    check(&[], &[BRIEF, "--condition", "needs_mobil=true"], &[], "did you mean `needs_mobile`?").await;
    check(&[], &[BRIEF, "--condtion", "a=b"], &[], "--condtion").await;
    check(&[], &[BRIEF, "--resume", "run-7"], &[], "give one of the two").await;
    check(&[], &[BRIEF, "--model", "gpt-x"], &[], "`gpt-x` names no provider").await;
    check(&[], &[BRIEF, "--model", "anthropic/x"], &[], "its key is not set").await;
}

/// Nothing was answered, so nothing is worth going on with.
#[tokio::test]
async fn a_provider_that_nobody_reaches_leaves_nothing() {
    // A port that was free a moment ago and that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/v1");
    let env = [("OPENAI_BASE_URL", url.as_str()), ("OPENAI_API_KEY", "key"), ("CORAL_MODEL", "openai/x")];
    check(&[], &[BRIEF], &env, "model `openai/x` failed (connect)").await;
}

#[tokio::test]
async fn what_was_there_before_an_error_stays() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let finished = start(dir.path(), &["--model", "gpt-x"]).finish().await.unwrap();
    is_one_message(&finished, "names no provider");
    assert_eq!(std::fs::read_to_string(dir.path().join("notes.txt")).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    let finished = start(&dir.path().join("notes.txt"), &[]).finish().await.unwrap();
    is_one_message(&finished, "is not a directory");
}

#[tokio::test]
async fn a_run_that_is_not_there_is_named_with_those_that_are() {
    let dir = tempfile::tempdir().unwrap();
    let finished = start(dir.path(), &[]).finish().await.unwrap();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let out = dir.path().to_string_lossy();
    let finished = Job::new(DELIVER, ["--resume", "run-7", "--out", &out]).finish().await.unwrap();
    is_one_message(&finished, "no run is called `run-7`");
    assert!(finished.stderr.contains("documentation_first-"), "{}", finished.stderr);
}

#[tokio::test]
async fn help_and_agents_are_shown() {
    let finished = Job::new(DELIVER, ["--help"]).finish().await.unwrap();
    assert_eq!(finished.code, Some(0));
    for option in
        ["--out", "--model", "--workflow", "--condition", "--permissions", "--resume", "--list-agents"]
    {
        assert!(finished.stdout.contains(option), "{option}");
    }
    let finished = Job::new(DELIVER, ["--list-agents"]).finish().await.unwrap();
    assert_eq!(finished.code, Some(0));
    assert_eq!(finished.stdout.lines().count(), 20, "{}", finished.stdout);
    assert!(finished.stdout.contains("project_architect"), "{}", finished.stdout);
}

/// The permission file of the documents, as it stands: it lets the architect read, and no more.
const READ_ONLY: &str = r#"permission_model:
  agents:
    project_architect:
      mcp_servers: ["filesystem"]
      operations: ["read"]
      paths: ["/project/docs"]
    backend_developer:
      mcp_servers: ["filesystem", "database", "docker"]
      operations: ["read", "write"]
      paths: ["/project/src", "/project/tests"]
    devops_deployment:
      mcp_servers: ["docker", "github", "monitoring"]
      operations: ["read", "write", "execute"]
      paths: ["/project"]
  security_policies: [no_system_access, audit_all_operations, encrypt_sensitive_data, time_bound_tokens]
"#;

#[tokio::test]
async fn what_is_not_granted_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (permissions, out) = (dir.path().join("permissions.yaml"), dir.path().join("out"));
    std::fs::write(&permissions, READ_ONLY).unwrap();
    let finished = start(&out, &["--permissions", &permissions.to_string_lossy()]).finish().await.unwrap();
    is_one_message(&finished, "agent `project_architect`: the answer does not fit the output format");
    assert!(finished.stderr.contains("go on with: cargo run"), "{}", finished.stderr);
    assert!(coral_tests::files(&out).unwrap().is_empty());
    let run = crate::deliver::run_json(&out);
    assert_eq!(
        (run["status"].as_str(), run["deliverables"].as_array().map(Vec::len)),
        (Some("failed"), Some(0))
    );
}
