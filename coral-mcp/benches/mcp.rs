//! What the sandbox costs: a decision, a whole check, a call in memory, a start in the OS sandbox.
//!
//! `cargo bench -p coral-mcp` prints a table and writes `target/bench/mcp.json`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench measures time, prints and fails by panicking"
)]

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coral_core::{CallContext, Caller, ToolCall, Toolbox};
use coral_mcp::{Access, Operation, Permissions, Policy, Sandbox, Servers};
use serde_json::{Value, json};

struct Row {
    case: &'static str,
    unit: &'static str,
    ours: f64,
    /// What it is compared with, and that one's value.
    peer: Option<(&'static str, f64)>,
}

/// The shortest of five runs: the one that others disturbed least.
fn best(mut run: impl FnMut() -> Duration) -> Duration {
    (0..5).map(|_| run()).min().unwrap()
}

fn per(times: u32, mut work: impl FnMut()) -> f64 {
    let spent = best(|| {
        let began = Instant::now();
        (0..times).for_each(|_| work());
        began.elapsed()
    });
    spent.as_secs_f64() * 1e6 / f64::from(times)
}

/// An agent with `rules` refusals beside its grant.
fn permissions(rules: usize) -> Permissions {
    let mut text = "permission_model:\n  agents:\n    dev:\n      mcp_servers: [filesystem]\n      \
                    operations: [read, write]\n      paths: [/project/src]\n      deny:\n"
        .to_owned();
    for i in 0..rules {
        text += &format!("        - paths: [/project/src/private{i}]\n");
    }
    Permissions::from_yaml(&text, "bench.yaml").unwrap()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut rows = Vec::new();
    let dev = Caller::agent("dev");
    for (case, rules) in [("decision, 1 rule", 1), ("decision, 200 rules", 200)] {
        let permissions = permissions(rules);
        let paths = ["src/api/users.rs".parse().unwrap()];
        let access = Access::new(&dev, "filesystem", "write_file", Operation::Write).on(&paths);
        let ours = per(20_000, || assert!(black_box(permissions.decide(black_box(&access))).is_allowed()));
        rows.push(Row { case, unit: "µs", ours, peer: None });
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    std::fs::write(dir.path().join("src/a.rs"), "fn main() {}\n").unwrap();
    let tools = runtime
        .block_on(Sandbox::builder().permissions(permissions(200)).root(dir.path()).filesystem().build())
        .unwrap();
    let call = ToolCall {
        id: "1".into(),
        name: "filesystem__get_file_info".into(),
        arguments: json!({"path": "src/a.rs"}),
    };
    let cx = CallContext::new(dev.clone());
    runtime.block_on(tools.call(&call, &cx)).unwrap();
    let check = per(5_000, || assert!(runtime.block_on(tools.explain(&call, &dev)).unwrap().is_allowed()));
    rows.push(Row { case: "whole check, 200 rules", unit: "µs", ours: check, peer: None });
    let whole = per(2_000, || drop(runtime.block_on(tools.call(&call, &cx)).unwrap()));
    // What is left when the check is taken away: rmcp, both ends in this process, and the file.
    rows.push(Row {
        case: "call in memory",
        unit: "µs",
        ours: whole,
        peer: Some(("without the check", whole - check)),
    });
    rows.extend(start(&runtime));
    report(&rows);
}

/// A Node server from its start to its list of tools, with and without the OS sandbox.
fn start(runtime: &tokio::runtime::Runtime) -> Option<Row> {
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent()?.join("target/mcp-servers");
    let script = target.join("node/node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    if !script.exists() {
        println!("run tests/setup/mcp.sh to measure the start of a public server");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let spent = |isolation: &str| {
        let text = format!(
            "permission_model:\n  agents:\n    dev:\n      mcp_servers: [everything]\n      operations: [execute]\n\
             servers:\n  everything: {{ isolation: {isolation}, read: [\"{}\"] }}\n",
            target.display()
        );
        let run = || {
            let servers =
                Servers::default().stdio("everything", "node", [script.display().to_string()]).unwrap();
            let builder = Sandbox::builder()
                .permissions(Permissions::from_yaml(&text, "bench.yaml").unwrap())
                .servers(servers)
                .helper(env!("CARGO_BIN_EXE_coral-jail"))
                .root(dir.path());
            runtime.block_on(async {
                let tools = builder.build().await.unwrap();
                let began = Instant::now();
                assert!(!tools.list(&Caller::agent("dev")).await.unwrap().is_empty());
                began.elapsed()
            })
        };
        best(run).as_secs_f64() * 1e3
    };
    let (plain, kernel) = (spent("none"), spent("kernel"));
    Some(Row {
        case: "start of a Node server, isolated",
        unit: "ms",
        ours: kernel,
        peer: Some(("plain", plain)),
    })
}

fn report(rows: &[Row]) {
    println!("{:<36} {:>12} {:>26} {:>8}", "case", "ours", "peer", "ratio");
    let mut json = Vec::new();
    for Row { case, unit, ours, peer } in rows {
        let (shown, ratio) = match peer {
            Some((name, value)) => (format!("{name} {value:.2} {unit}"), format!("{:.2}", ours / value)),
            None => (String::new(), String::new()),
        };
        println!("{case:<36} {ours:>9.2} {unit} {shown:>26} {ratio:>8}");
        json.push(json!({
            "case": case,
            "unit": unit,
            "ours": ours,
            "peer": peer.map(|(name, _)| name),
            "peer_value": peer.map(|(_, value)| value),
            "ratio": peer.map(|(_, value)| ours / value),
        }));
    }
    let out = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("mcp.json"), Value::Array(json).to_string()).unwrap();
}
