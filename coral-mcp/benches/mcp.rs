//! What the sandbox costs: a decision, a token's check, a call over bare rmcp, a start in the OS sandbox, a
//! start from a large process.
//!
//! ```text
//! cargo bench -p coral-mcp --bench mcp
//! ```
//! What is compared takes turns, and the median of the turns counts. It prints a table and writes
//! `target/bench/mcp.json`, a list of `{case, unit, ours, peer, peer_value, ratio}`. With `--quick` or
//! `CORAL_BENCH_QUICK=1` everything is done a few times only, and the figures mean little.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench measures time, prints and fails by panicking"
)]

use std::hint::black_box;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::time::{Duration, Instant};

use coral_core::{CallContext, Caller, ToolCall, Toolbox};
use coral_mcp::{
    Access, Commands, Operation, Permissions, Policy, PolicyEngine, ProjectPath, Sandbox, Servers,
};
use rmcp::ServiceExt;
use rmcp::model::{CallToolRequestParams, ProtocolVersion};
use rmcp::service::{ClientLifecycleMode, serve_client_with_lifecycle};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

struct Row {
    case: String,
    unit: &'static str,
    ours: f64,
    /// What it is compared with, and that one's value.
    peer: Option<(&'static str, f64)>,
}

impl Row {
    fn new(
        case: impl Into<String>,
        unit: &'static str,
        ours: f64,
        peer: Option<(&'static str, f64)>,
    ) -> Self {
        Row { case: case.into(), unit, ours, peer }
    }
}

fn quick() -> bool {
    std::env::args().any(|arg| arg == "--quick") || std::env::var("CORAL_BENCH_QUICK").is_ok_and(|v| v == "1")
}

/// Whether a part is to be measured: all are, if no word of a name is given.
fn wanted(name: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).peekable();
    words.peek().is_none() || words.any(|word| name.contains(&*word))
}

fn times(usual: u32) -> u32 {
    if quick() { usual.min(3) } else { usual }
}

/// CPU time of all threads of this process, in microseconds.
fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of this process for each time that `work` is done, in microseconds: the median of turns.
fn cpu_of(turns: u32, times: u32, mut work: impl FnMut()) -> f64 {
    let turn = |_| {
        let began = cpu_us();
        (0..times).for_each(|_| work());
        (cpu_us() - began) / f64::from(times)
    };
    median((0..turns).map(turn).collect())
}

/// An agent with `rules` refusals and questions beside its grant, by places, tools, arguments and hours,
/// of which some concern every call.
fn mixed(rules: usize, cedar: &str) -> Permissions {
    let mut text = "permission_model:\n  agents:\n    dev:\n      mcp_servers: [filesystem]\n      operations: [read, write]\n      \
                    paths: [/project]\n      deny:\n"
        .to_owned();
    for i in 0..rules / 2 {
        text += &match i % 4 {
            0 => format!("        - paths: [/project/src/area{i}/private]\n"),
            1 => format!("        - tools: [\"*_secret{i}\"]\n"),
            2 => format!("        - arguments: {{ content: [\"*forbidden{i}*\"] }}\n"),
            _ => format!(
                "        - operations: [execute]\n          hours: \"0{}:00-0{}:30\"\n",
                i % 10,
                i % 10
            ),
        };
    }
    text += "      ask:\n";
    for i in rules / 2..rules {
        text += &format!(
            "        - paths: [/project/src/area{}/generated{i}]\n          operations: [write]\n",
            i % 20
        );
    }
    if !cedar.is_empty() {
        text += &format!("  cedar: |\n    {cedar}\n");
    }
    Permissions::from_yaml(&text, "bench.yaml").unwrap()
}

/// An agent with `rules` refusals beside its grant, each of a place of its own.
fn permissions(rules: usize) -> Permissions {
    let mut text = "permission_model:\n  agents:\n    dev:\n      mcp_servers: [filesystem, everything, commands]\n      \
                    operations: [read, write, execute]\n      paths: [/project]\n      after_untrusted: allow\n      deny:\n"
        .to_owned();
    for i in 0..rules {
        text += &format!("        - paths: [/project/src/area{i}/private]\n");
    }
    Permissions::from_yaml(&text, "bench.yaml").unwrap()
}

fn decisions(rows: &mut Vec<Row>) {
    let dev = Caller::agent("dev");
    for rules in [1, 200] {
        let engine = PolicyEngine::new(permissions(rules)).unwrap();
        let decide = |paths: &[ProjectPath]| {
            let access = Access::new(&dev, "filesystem", "write_file", Operation::Write).on(paths);
            assert!(black_box(engine.decide(black_box(&access))).is_allowed());
        };
        let mut n = 0;
        let new = cpu_of(7, times(2_000), || {
            n += 1;
            let path = format!("src/area{}/file{n}.rs", n % 200);
            decide(&[path.parse().unwrap()]);
        });
        rows.push(Row::new(format!("decision, {rules} rules, never asked before"), "µs CPU", new, None));
        let same = ["src/area7/users.rs".parse().unwrap()];
        let repeated = cpu_of(7, times(20_000), || decide(&same));
        rows.push(Row::new(format!("decision, {rules} rules, asked again"), "µs CPU", repeated, None));
    }
    let clock =
        r#"forbid (principal, action == Action::"execute", resource) when { context.minute > 1200 };"#;
    for (what, cedar) in [("200 mixed rules", ""), ("200 mixed rules and a policy by the clock", clock)] {
        let engine = PolicyEngine::new(mixed(200, cedar)).unwrap();
        let decide = |paths: &[ProjectPath], content: &str, now_ms: u64| {
            let arguments = json!({"path": "x", "content": content});
            let mut access =
                Access::new(&dev, "filesystem", "write_file", Operation::Write).on(paths).at_ms(now_ms);
            access.arguments = arguments.as_object();
            assert!(black_box(engine.decide(black_box(&access))).is_allowed());
        };
        let mut n = 0;
        let new = cpu_of(7, times(1_000), || {
            n += 1;
            let path = format!("src/area{}/file{n}.rs", n % 200);
            decide(&[path.parse().unwrap()], "fn main() {}", 0);
        });
        rows.push(Row::new(format!("decision, {what}, never asked before"), "µs CPU", new, None));
        let same = ["src/area7/users.rs".parse().unwrap()];
        let mut now_ms = 0;
        let repeated = cpu_of(7, times(5_000), || {
            now_ms += 10;
            decide(&same, "fn main() {}", now_ms);
        });
        rows.push(Row::new(format!("decision, {what}, asked again"), "µs CPU", repeated, None));
    }
}

/// A token's check: of its first call in a directory, of another file there, and of the same again.
#[cfg(feature = "tokens")]
fn tokens(rows: &mut Vec<Row>) {
    use coral_mcp::{BiscuitTokens, TokenRight, TokenTerms, Tokens};
    let tokens = BiscuitTokens::generate();
    let dev = Caller::agent("dev");
    let paths: Vec<ProjectPath> = (0..2_000).map(|i| format!("src/area{i}").parse().unwrap()).collect();
    let terms = TokenTerms {
        of: "dev".into(),
        rights: vec![TokenRight { paths, ..TokenRight::everything() }],
        from_ms: 0,
        until_ms: u64::MAX / 2,
    };
    let token = tokens.issue(&dev, &terms).unwrap();
    let check = |path: String| {
        let paths = [path.parse().unwrap()];
        let access = Access::new(&dev, "filesystem", "write_file", Operation::Write).on(&paths);
        assert!(black_box(tokens.check(&token, black_box(&access))).is_ok());
    };
    let mut n = 0;
    let mut next = || {
        n += 1;
        n
    };
    let first = cpu_of(5, times(20), || check(format!("src/area{}/a.rs", next())));
    rows.push(Row::new("token, first call in a directory", "µs CPU", first, None));
    let other = cpu_of(7, times(2_000), || check(format!("src/area1/file{}.rs", next())));
    rows.push(Row::new("token, another file there", "µs CPU", other, None));
    let same = cpu_of(7, times(2_000), || check("src/area1/a.rs".to_owned()));
    rows.push(Row::new("token, asked again", "µs CPU", same, None));
}

#[cfg(not(feature = "tokens"))]
fn tokens(_rows: &mut Vec<Row>) {}

/// The server that in-process calls are measured by: it answers at once.
#[derive(Clone)]
struct Echo;

impl rmcp::ServerHandler for Echo {
    fn get_info(&self) -> rmcp::model::ServerConfig {
        rmcp::model::ServerConfig::new(rmcp::model::ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _request: Option<rmcp::model::PaginatedRequestParams>,
        _context: rmcp::service::RequestContext<rmcp::RoleServer>,
    ) -> Result<rmcp::model::ListToolsResult, rmcp::ErrorData> {
        let schema = json!({"type": "object", "properties": {"message": {"type": "string"}}, "additionalProperties": false});
        let schema = std::sync::Arc::new(schema.as_object().unwrap().clone());
        Ok(rmcp::model::ListToolsResult::with_all_items(vec![rmcp::model::Tool::new(
            "echo",
            "Says it again.",
            schema,
        )]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _context: rmcp::service::RequestContext<rmcp::RoleServer>,
    ) -> Result<rmcp::model::CallToolResponse, rmcp::ErrorData> {
        let said =
            request.arguments.and_then(|a| a.get("message")?.as_str().map(str::to_owned)).unwrap_or_default();
        Ok(rmcp::model::CallToolResult::success(vec![rmcp::model::ContentBlock::text(said)]).into())
    }
}

fn echo_server() -> tokio::io::DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 * 1_024);
    tokio::spawn(async move {
        if let Ok(running) = Echo.serve(theirs).await {
            let _ = running.waiting().await;
        }
    });
    ours
}

/// A call of a server in this process, through the sandbox and by bare rmcp, in turns.
async fn over_memory() -> Vec<Row> {
    let text = "permission_model:\n  agents:\n    dev:\n      mcp_servers: [echo]\n      operations: [execute]\n      \
                after_untrusted: allow\n";
    let ours = Sandbox::builder()
        .permissions(Permissions::from_yaml(text, "bench.yaml").unwrap())
        .in_process("echo", echo_server)
        .build()
        .await
        .unwrap();
    let newest = ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::LATEST] };
    let bare = serve_client_with_lifecycle((), echo_server(), newest).await.unwrap();
    let call = call("echo__echo", json!({"message": "hello"}));
    compare("call in memory", &ours, &call, &bare).await
}

fn call(name: &str, arguments: Value) -> ToolCall {
    ToolCall { id: "1".into(), name: name.into(), arguments }
}

/// A call of the built-in file server, both ends in this process, and of it the check.
fn in_memory(runtime: &tokio::runtime::Runtime, rows: &mut Vec<Row>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.rs"), "fn main() {}\n").unwrap();
    let builder = Sandbox::builder().permissions(permissions(200)).root(dir.path()).filesystem();
    let tools = runtime.block_on(builder.build()).unwrap();
    let call = call("filesystem__get_file_info", json!({"path": "a.rs"}));
    let dev = Caller::agent("dev");
    let cx = CallContext::new(dev.clone());
    runtime.block_on(tools.call(&call, &cx)).unwrap();
    let check = cpu_of(7, times(2_000), || {
        assert!(runtime.block_on(tools.explain(&call, &dev)).unwrap().is_allowed());
    });
    rows.push(Row::new("whole check, 200 rules", "µs CPU", check, None));
    let whole = cpu_of(7, times(500), || drop(runtime.block_on(tools.call(&call, &cx)).unwrap()));
    rows.push(Row::new(
        "call of the built-in files",
        "µs CPU",
        whole,
        Some(("without the check", whole - check)),
    ));
}

/// Where the public servers are installed.
fn installed() -> Option<PathBuf> {
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent()?.join("target/mcp-servers");
    let there =
        target.join("node/node_modules/@modelcontextprotocol/server-everything/dist/index.js").exists();
    if !there {
        println!("run tests/setup/mcp.sh to measure public servers");
    }
    there.then_some(target)
}

fn everything(target: &std::path::Path) -> String {
    target
        .join("node/node_modules/@modelcontextprotocol/server-everything/dist/index.js")
        .display()
        .to_string()
}

/// A sandbox with the public server `everything` at a level of isolation.
async fn sandbox(target: &std::path::Path, isolation: &str, root: &std::path::Path) -> Sandbox {
    let text = format!(
        "permission_model:\n  agents:\n    dev:\n      mcp_servers: [everything]\n      operations: [execute]\n      \
         after_untrusted: allow\nservers:\n  everything: {{ isolation: {isolation}{} }}\n",
        if isolation == "none" { String::new() } else { format!(", read: [\"{}\"]", target.display()) }
    );
    let servers = Servers::default().stdio("everything", "node", [everything(target)]).unwrap();
    Sandbox::builder()
        .permissions(Permissions::from_yaml(&text, "bench.yaml").unwrap())
        .servers(servers)
        .helper(env!("CARGO_BIN_EXE_coral-jail"))
        .root(root)
        .build()
        .await
        .unwrap()
}

/// A call of a public server over its pipes, through the sandbox and by bare rmcp, in turns.
async fn over_stdio(target: PathBuf) -> Vec<Row> {
    let mut rows = Vec::new();
    let dir = tempfile::tempdir().unwrap();
    let call = call("everything__echo", json!({"message": "hello"}));
    for level in ["none", "kernel"] {
        let (_child, bare) = plain(&target, dir.path()).await;
        let ours = sandbox(&target, level, dir.path()).await;
        rows.append(&mut compare(&format!("call over stdio, {level}"), &ours, &call, &bare).await);
    }
    rows
}

/// The server `everything` in a plain process, and bare rmcp that talks to it.
async fn plain(
    target: &std::path::Path,
    dir: &std::path::Path,
) -> (tokio::process::Child, rmcp::service::RunningService<rmcp::RoleClient, ()>) {
    let mut child = tokio::process::Command::new("node")
        .arg(everything(target))
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pipes = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    (child, ().serve(pipes).await.unwrap())
}

/// The tool `echo` by both ways, in turns.
async fn compare(
    what: &str,
    ours: &Sandbox,
    call: &ToolCall,
    bare: &rmcp::service::RunningService<rmcp::RoleClient, ()>,
) -> Vec<Row> {
    let cx = CallContext::new(Caller::agent("dev"));
    let params = || {
        let arguments = call.arguments.as_object().unwrap().clone();
        CallToolRequestParams::new("echo").with_arguments(arguments)
    };
    // A server becomes faster for thousands of calls: both are to have had as many.
    for _ in 0..times(4_000) {
        drop(ours.call(call, &cx).await.unwrap());
        drop(bare.call_tool(params()).await.unwrap());
    }
    let count = times(200);
    let mut spent: [Vec<[f64; 2]>; 2] = [Vec::new(), Vec::new()];
    for turn in 0..times(40) {
        // Who goes first changes from turn to turn.
        for which in [turn % 2, 1 - turn % 2] {
            let (cpu, wall) = (cpu_us(), Instant::now());
            for _ in 0..count {
                if which == 0 {
                    drop(ours.call(call, &cx).await.unwrap());
                } else {
                    drop(bare.call_tool(params()).await.unwrap());
                }
            }
            let per = |spent: f64| spent / f64::from(count);
            spent[which as usize].push([per(wall.elapsed().as_secs_f64() * 1e6), per(cpu_us() - cpu)]);
        }
    }
    let row = |(at, unit): (usize, &str)| {
        let of = |which: usize| median(spent[which].iter().map(|both| both[at]).collect());
        Row::new(format!("{what}, {unit}"), "µs", of(0), Some(("bare rmcp", of(1))))
    };
    ["wall", "this process's CPU"].into_iter().enumerate().map(row).collect()
}

/// A Node server from nothing to its list of tools, in turns: by bare rmcp over a plain process, and by
/// the sandbox at each level. Building the sandbox, which tries its level, is told apart.
async fn starts(target: &std::path::Path, rows: &mut Vec<Row>) {
    let dir = tempfile::tempdir().unwrap();
    let strict =
        std::process::Command::new("bwrap").arg("--version").output().is_ok_and(|o| o.status.success());
    let levels: &[&str] = if strict { &["none", "kernel", "strict"] } else { &["none", "kernel"] };
    let mut bare_ms = Vec::new();
    let mut spent: Vec<[Vec<f64>; 2]> = vec![Default::default(); levels.len()];
    let pause = async || {
        // What is dropped ends in the background, and should not weigh on the next.
        tokio::time::sleep(Duration::from_millis(if quick() { 1 } else { 100 })).await;
    };
    for _ in 0..times(15) {
        let began = Instant::now();
        let (child, bare) = plain(target, dir.path()).await;
        assert!(!bare.list_all_tools().await.unwrap().is_empty());
        bare_ms.push(began.elapsed().as_secs_f64() * 1e3);
        drop((bare, child));
        pause().await;
        for (level, spent) in levels.iter().zip(&mut spent) {
            let began = Instant::now();
            let tools = sandbox(target, level, dir.path()).await;
            spent[0].push(began.elapsed().as_secs_f64() * 1e3);
            let began = Instant::now();
            assert!(!tools.list(&Caller::agent("dev")).await.unwrap().is_empty());
            spent[1].push(began.elapsed().as_secs_f64() * 1e3);
            drop(tools);
            pause().await;
        }
    }
    let plain = median(bare_ms);
    for (level, [build, start]) in levels.iter().zip(spent) {
        let case = format!("start of a Node server, {level}");
        rows.push(Row::new(case, "ms", median(start), Some(("bare rmcp over a plain process", plain))));
        rows.push(Row::new(format!("building the sandbox before, {level}"), "ms", median(build), None));
    }
}

/// A program that does nothing, run from this process while it is small and while it is large.
async fn spawns(rows: &mut Vec<Row>) {
    let dir = tempfile::tempdir().unwrap();
    let bytes: usize = if quick() { 64 << 20 } else { 2 << 30 };
    for isolation in ["none", "kernel"] {
        let text = format!(
            "permission_model:\n  agents:\n    dev:\n      mcp_servers: [commands]\n      operations: [execute]\n      \
             paths: [/project]\n      after_untrusted: allow\nservers:\n  commands: {{ isolation: {isolation} }}\n"
        );
        let tools = Sandbox::builder()
            .permissions(Permissions::from_yaml(&text, "bench.yaml").unwrap())
            .commands(Commands::new().allow("true").unwrap())
            .helper(env!("CARGO_BIN_EXE_coral-jail"))
            .root(dir.path())
            .build()
            .await
            .unwrap();
        let call = call("commands__run", json!({"program": "true"}));
        let cx = CallContext::new(Caller::agent("dev"));
        let mut spent = [Vec::new(), Vec::new()];
        for _ in 0..times(7) {
            for (size, spent) in [0, bytes].into_iter().zip(&mut spent) {
                // Every page is written to, so that it is really there.
                let held = black_box(vec![1_u8; size]);
                for _ in 0..times(10) {
                    let began = Instant::now();
                    assert!(!tools.call(&call, &cx).await.unwrap().is_error);
                    spent.push(began.elapsed().as_secs_f64() * 1e3);
                }
                drop(held);
            }
        }
        let [small, large] = spent.map(median);
        let size = bytes >> 20;
        let case = format!("run of `true` from {size} MiB, {isolation}");
        rows.push(Row::new(case, "ms", large, Some(("from a small process", small))));
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut rows = Vec::new();
    println!("{:<60} {:>16} {:>48} {:>8}", "case", "ours", "peer", "ratio");
    let mut all = Vec::new();
    let mut part = |name: &str, measure: &mut dyn FnMut(&mut Vec<Row>)| {
        if wanted(name) {
            measure(&mut rows);
            all.append(&mut show(&mut rows));
        }
    };
    part("decision", &mut decisions);
    part("token", &mut tokens);
    part("whole check, call of the built-in files", &mut |rows| in_memory(&runtime, rows));
    // From a task, as the engine makes its calls.
    let in_task = |work: Pin<Box<dyn Future<Output = Vec<Row>> + Send>>| {
        runtime.block_on(async { tokio::spawn(work).await.unwrap() })
    };
    part("call in memory", &mut |rows| rows.append(&mut in_task(Box::pin(over_memory()))));
    if let Some(target) = installed() {
        part("call over stdio", &mut |rows| {
            rows.append(&mut in_task(Box::pin(over_stdio(target.clone()))));
        });
        part("start of a Node server", &mut |rows| runtime.block_on(starts(&target, rows)));
    }
    part("run from a large process", &mut |rows| runtime.block_on(spawns(rows)));
    let out = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("mcp.json"), Value::Array(all).to_string()).unwrap();
}

/// Prints rows as soon as they are there, and gives them as JSON.
fn show(rows: &mut Vec<Row>) -> Vec<Value> {
    let shown = |Row { case, unit, ours, peer }: Row| {
        let (beside, ratio) = match peer {
            Some((name, value)) => (format!("{name} {value:.2} {unit}"), format!("{:.2}", ours / value)),
            None => (String::new(), String::new()),
        };
        println!("{case:<60} {:>16} {beside:>48} {ratio:>8}", format!("{ours:.2} {unit}"));
        json!({
            "case": case,
            "unit": unit,
            "ours": ours,
            "peer": peer.map(|(name, _)| name),
            "peer_value": peer.map(|(_, value)| value),
            "ratio": peer.map(|(_, value)| ours / value),
        })
    };
    rows.drain(..).map(shown).collect()
}
