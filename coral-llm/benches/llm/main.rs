//! What a call costs over bare reqwest and against other client libraries, on one local server in the same run.
//!
//! ```text
//! cargo bench -p coral-llm --bench llm
//! ```
//! CPU time is that of the client's one thread, as the kernel counts it; the server is a process of its own. The other
//! libraries are in a third process (`benches/peers`, a workspace of its own that is built on the first run). It prints
//! a table and writes `target/bench/llm.json`, a list of `{case, unit, ours, peer, peer_value, ratio}`.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench fails by panicking and reports by printing"
)]

mod bare;
mod peers;
mod report;
mod server;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bare::Bare;
use coral_core::{CallContext, ChatModel, ChatRequest};
use coral_llm::{Cached, Dialect, Framing, Protocol, Provider, ScriptedModel, Timeouts};
use peers::{PEERS, Peers};
use report::{Report, cpu_ns, median};
use serde_json::json;
use server::{ANSWER, CHUNKS, Server, end, event, padded};
use tokio::task::JoinSet;

const SYSTEM: &str = "Be brief.";
const STREAMS: usize = 10_000;

fn user() -> String {
    "x".repeat(1_000)
}

fn request() -> ChatRequest {
    ChatRequest::new(SYSTEM, user())
}

fn provider(url: &str, model: &str) -> Provider {
    Provider::openai_compatible(format!("{url}/v1")).key("k").model(model).build().unwrap()
}

fn bare(url: &str, model: &'static str) -> Bare {
    let client = reqwest::Client::builder().tcp_nodelay(true).build().unwrap();
    Bare { client, url: format!("{url}/v1"), model, system: SYSTEM, user: user(), key: None }
}

/// The same with what no client does without: a key, and limits to how long the server may be silent.
fn sound(url: &str, model: &'static str) -> Bare {
    let Timeouts { connect, idle, .. } = Timeouts::default();
    let client = reqwest::Client::builder().tcp_nodelay(true).connect_timeout(connect).read_timeout(idle);
    Bare { client: client.user_agent("bench").build().unwrap(), key: Some("k"), ..bare(url, model) }
}

/// Whether a case is asked for: words after `--` choose cases by a part of their name.
fn is_wanted(case: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with("--")).peekable();
    words.peek().is_none() || words.any(|word| case.contains(&word))
}

/// Whether only to show that it runs: `--quick`, `CORAL_BENCH_QUICK=1`, or a build that is not optimised. Its figures
/// mean nothing then, and none are written; the other libraries are left out.
fn is_quick() -> bool {
    cfg!(debug_assertions)
        || std::env::args().any(|argument| argument == "--quick")
        || std::env::var("CORAL_BENCH_QUICK").is_ok_and(|value| value == "1")
}

fn turns() -> usize {
    if is_quick() { 1 } else { 15 }
}

fn main() {
    let files = streams::raise_file_limit();
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match &arguments[1..] {
        [serve, ..] if serve == "serve" => server::serve(),
        [what, url, client, streams] if what == "streams" => {
            runtime().block_on(streams::run(url, client, streams.parse().unwrap()));
        }
        _ => {
            let server = Server::start();
            let mut report = Report::default();
            runtime().block_on(calls(&server.url, &mut report));
            runtime().block_on(codec(&mut report));
            let wanted = if is_quick() { 200 } else { STREAMS };
            if is_wanted("streams at once") {
                streams::measure(&mut report, &server.url, wanted.min(files.saturating_sub(100)));
            }
            report.print();
            if is_quick() {
                println!("quick: these figures mean nothing");
            } else {
                report.save(&target());
            }
        }
    }
}

/// Cargo's target directory.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target").into(), PathBuf::from)
}

/// What one call takes: CPU µs of this thread, and calls per second.
struct Cost {
    cpu: f64,
    rate: f64,
}

async fn measure<F>(calls: usize, at_once: usize, call: impl Fn() -> F) -> Cost
where
    F: Future<Output = ()> + Send + 'static,
{
    let (cpu, began) = (cpu_ns(), Instant::now());
    let mut running = JoinSet::new();
    for _ in 0..calls {
        if running.len() >= at_once {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(call());
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    Cost {
        cpu: (cpu_ns() - cpu) as f64 / calls as f64 / 1_000.0,
        rate: calls as f64 / began.elapsed().as_secs_f64(),
    }
}

async fn calls(url: &str, report: &mut Report) {
    let provider = Arc::new(provider(url, "m"));
    let (bare, sound) = (bare(url, "m"), sound(url, "m"));
    let request = Arc::new(request());
    let wanted = |stream: bool, at_once: usize| {
        let kind = if stream { "stream of 100 chunks" } else { "unary" };
        Some(format!("{kind}, {at_once} at once")).filter(|case| is_wanted(case))
    };
    if [(false, 1), (false, 64), (true, 1), (true, 64)]
        .iter()
        .all(|(stream, n)| wanted(*stream, *n).is_none())
    {
        return;
    }
    let mut peers = if is_quick() { Err("this is a quick run".to_owned()) } else { Peers::start(&target()) };
    if let Err(problem) = &peers {
        println!("without the other libraries: {problem}");
    }
    for stream in [false, true] {
        for at_once in [1, 64] {
            let Some(case) = wanted(stream, at_once) else { continue };
            let calls = match (is_quick(), stream) {
                (true, _) => at_once,
                (false, true) => 200,
                (false, false) => 2_000,
            };
            let ours = || {
                let (provider, request) = (provider.clone(), request.clone());
                async move {
                    let cx = CallContext::default();
                    let cx = if stream { cx.on_delta(|_| {}) } else { cx };
                    let answer = provider.chat(&request, &cx).await.unwrap();
                    assert_eq!(answer.message.text().len(), ANSWER);
                }
            };
            let by_hand = |bare: &Bare| {
                let bare = bare.clone();
                async move {
                    let text = if stream { bare.stream(|_| {}).await } else { bare.whole().await };
                    assert_eq!(text.len(), ANSWER);
                }
            };
            let (mut cpu, mut rate, mut bare_cpu, mut bare_rate) = (vec![], vec![], vec![], vec![]);
            let mut sound_cpu = vec![];
            let mut others = [vec![], vec![]];
            for _ in 0..turns() {
                let cost = measure(calls, at_once, ours).await;
                cpu.push(cost.cpu);
                rate.push(cost.rate);
                let cost = measure(calls, at_once, || by_hand(&bare)).await;
                bare_cpu.push(cost.cpu);
                bare_rate.push(cost.rate);
                sound_cpu.push(measure(calls, at_once, || by_hand(&sound)).await.cpu);
                for ((peer, _), costs) in PEERS.iter().zip(&mut others) {
                    if let Ok(peers) = &mut peers {
                        costs.push(peers.measure(&json!({
                            "peer": peer, "url": format!("{url}/v1"), "system": SYSTEM, "user": user(),
                            "answer": ANSWER, "stream": stream, "calls": calls, "at_once": at_once,
                        })));
                    }
                }
            }
            let cpu = median(cpu);
            report.row(&case, "µs CPU per call", cpu, "bare reqwest", Some(median(bare_cpu)));
            report.row(&case, "µs CPU per call", cpu, "reqwest with timeouts", Some(median(sound_cpu)));
            for ((_, name), costs) in PEERS.iter().zip(others).filter(|(_, costs)| !costs.is_empty()) {
                report.row(&case, "µs CPU per call", cpu, name, Some(median(costs)));
            }
            if at_once > 1 {
                report.row(&case, "calls per second", median(rate), "bare reqwest", Some(median(bare_rate)));
            }
            if stream {
                report.row(&case, "µs CPU per stream event", cpu / CHUNKS as f64, "the target", Some(5.0));
            }
        }
    }
}

/// What needs no socket: decoding, and a hit of the cache.
async fn codec(report: &mut Report) {
    if !is_wanted("codec alone, cache hit") {
        return;
    }
    let alike: Vec<String> = (0..CHUNKS).map(|_| event("words")).collect();
    let unlike = (0..CHUNKS).map(|number| padded("words", number)).collect();
    for (case, events) in [("codec alone", alike), ("codec alone, events unlike each other", unlike)] {
        let bytes: Vec<bytes::Bytes> = events.into_iter().chain([end()]).map(Into::into).collect();
        let times = if is_quick() { 1 } else { 200 };
        let decode = |_| {
            let began = cpu_ns();
            for _ in 0..times {
                let mut decoder = Protocol::OpenAiChat.decoder(Framing::Sse, &Dialect::default());
                for piece in &bytes {
                    decoder.feed(piece.clone(), &mut |_| {}).unwrap();
                }
                decoder.finish(&mut |_| {}).unwrap();
            }
            (cpu_ns() - began) as f64 / f64::from(times) / CHUNKS as f64 / 1_000.0
        };
        let per_event = median((0..turns()).map(decode).collect());
        report.row(case, "µs CPU per stream event", per_event, "the target", Some(5.0));
    }

    let request = request();
    let cached = Cached::new(ScriptedModel::new().otherwise(|_| "words".repeat(CHUNKS))).for_all();
    let cx = CallContext::default();
    cached.chat(&request, &cx).await.unwrap();
    let hits = if is_quick() { 100 } else { 20_000 };
    let began = cpu_ns();
    for _ in 0..hits {
        cached.chat(&request, &cx).await.unwrap();
    }
    let per_hit = (cpu_ns() - began) as f64 / f64::from(hits) / 1_000.0;
    report.row("cache hit, 1 KB asked, 500 B answered", "µs CPU", per_hit, "the target", Some(5.0));
}
