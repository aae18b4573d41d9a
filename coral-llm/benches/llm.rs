//! What a call costs over bare reqwest, on one local server in the same run.
//!
//! ```text
//! cargo bench -p coral-llm --bench llm
//! ```
//! CPU time is that of the client's one thread, as the kernel counts it; the server runs in another. It prints a table
//! and writes `target/bench/llm.json`, a list of `{case, unit, ours, peer, peer_value, ratio}`.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench fails by panicking and reports by printing"
)]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use coral_core::{CallContext, ChatModel, ChatRequest};
use coral_llm::{Cached, Dialect, Framing, Protocol, Provider, ScriptedModel};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const CHUNKS: usize = 100;

fn whole() -> String {
    json!({"id": "c", "model": "m", "choices": [{"index": 0, "finish_reason": "stop",
        "message": {"role": "assistant", "content": "word ".repeat(CHUNKS)}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 100}})
    .to_string()
}

fn event(text: &str) -> String {
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]});
    format!("data: {chunk}\n\n")
}

fn end() -> String {
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"
        .to_owned()
}

/// A server that answers by what it is asked: whole, or a stream in as many writes as it has events.
async fn serve(mut socket: TcpStream, unary: Arc<[u8]>, stream: Arc<[Vec<u8>]>) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(head) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
                let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
                let end = head + 4 + length.map_or(0, |length| length.trim().parse::<usize>().unwrap());
                if buffer.len() >= end {
                    break end;
                }
            }
            let mut bytes = [0; 8192];
            match socket.read(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(n) => buffer.extend_from_slice(&bytes[..n]),
            }
        };
        let streams = buffer[..end].windows(13).any(|bytes| bytes == b"\"stream\":true");
        buffer.drain(..end);
        let pieces: &[Vec<u8>] = if streams { &stream } else { &[] };
        if !streams && socket.write_all(&unary).await.is_err() {
            return;
        }
        for piece in pieces {
            if socket.write_all(piece).await.is_err() {
                return;
            }
        }
    }
}

fn start_server() -> String {
    let body = whole();
    let unary = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = vec![
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
    ];
    for text in (0..CHUNKS).map(|_| event("word ")).chain([end()]) {
        stream.push(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes());
    }
    stream.push(b"0\r\n\r\n".to_vec());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let (unary, stream): (Arc<[u8]>, Arc<[Vec<u8>]>) = (unary.into_bytes().into(), stream.into());
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                tokio::spawn(serve(socket, unary.clone(), stream.clone()));
            }
        });
    });
    url
}

/// Nanoseconds for which this thread ran.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[derive(Default)]
struct Table {
    rows: Vec<serde_json::Value>,
    text: String,
}

impl Table {
    fn row(&mut self, case: &str, unit: &str, ours: f64, peer: &str, theirs: Option<f64>) {
        let ratio = theirs.map(|theirs| ours / theirs);
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let _ = writeln!(
            self.text,
            "{case:44} {ours:>10.2} {:>10} {:>6}  {unit}, against {peer}",
            shown(theirs),
            shown(ratio)
        );
        self.rows.push(json!({"case": case, "unit": unit, "ours": ours, "peer": peer, "peer_value": theirs, "ratio": ratio}));
    }
}

/// Whether only to show that it runs: `--quick`, `CORAL_BENCH_QUICK=1`, or a build that is not optimised. Its figures
/// mean nothing then, and none are written.
fn is_quick() -> bool {
    cfg!(debug_assertions)
        || std::env::args().any(|argument| argument == "--quick")
        || std::env::var("CORAL_BENCH_QUICK").is_ok_and(|value| value == "1")
}

fn turns() -> usize {
    if is_quick() { 1 } else { 7 }
}

/// The median of several measures of CPU microseconds per call, for two ways to make it, taken in turn.
async fn compare<A, B>(
    calls: usize,
    at_once: usize,
    ours: impl Fn() -> A,
    theirs: impl Fn() -> B,
) -> (f64, f64)
where
    A: Future<Output = ()> + Send + 'static,
    B: Future<Output = ()> + Send + 'static,
{
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..turns() {
        a.push(measure(calls, at_once, &ours).await);
        b.push(measure(calls, at_once, &theirs).await);
    }
    (median(a), median(b))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn measure<F>(calls: usize, at_once: usize, call: &impl Fn() -> F) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let began = cpu_ns();
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
    (cpu_ns() - began) as f64 / calls as f64 / 1_000.0
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let url = start_server();
    let mut table = Table::default();
    let provider = Arc::new(Provider::openai_compatible(format!("{url}/v1")).model("m").build().unwrap());
    let client = reqwest::Client::builder().tcp_nodelay(true).build().unwrap();
    let request = Arc::new(ChatRequest::new("Be brief.", "x".repeat(1_000)));
    let body = |stream: bool| {
        let dialect = Dialect::default();
        Protocol::OpenAiChat.encode(&request, "m", stream, &dialect).unwrap().body
    };
    for stream in [false, true] {
        let body = body(stream);
        for at_once in [1, 64] {
            let calls = if is_quick() {
                at_once
            } else if stream {
                400
            } else {
                2_000
            };
            let ours = || {
                let (provider, request) = (provider.clone(), request.clone());
                async move {
                    let cx =
                        if stream { CallContext::default().on_delta(|_| {}) } else { CallContext::default() };
                    let answer = provider.chat(&request, &cx).await.unwrap();
                    assert_eq!(answer.message.text().len(), 5 * CHUNKS);
                }
            };
            let theirs = || {
                let (client, body, url) =
                    (client.clone(), body.clone(), format!("{url}/v1/chat/completions"));
                async move {
                    let mut answer = client
                        .post(url)
                        .header("content-type", "application/json")
                        .body(body)
                        .send()
                        .await
                        .unwrap();
                    let mut bytes = 0;
                    while let Some(piece) = answer.chunk().await.unwrap() {
                        bytes += piece.len();
                    }
                    assert!(bytes > 5 * CHUNKS);
                }
            };
            let (ours, theirs) = compare(calls, at_once, ours, theirs).await;
            let kind = if stream { "stream of 100 chunks" } else { "unary" };
            table.row(
                &format!("{kind}, {at_once} at once"),
                "µs CPU per call",
                ours,
                "bare reqwest, undecoded",
                Some(theirs),
            );
            if stream {
                let per_event = (ours - theirs) / CHUNKS as f64;
                table.row(
                    &format!("decoding, {at_once} at once"),
                    "µs CPU per stream event",
                    per_event,
                    "the target",
                    Some(5.0),
                );
            }
        }
    }

    let bytes: Vec<bytes::Bytes> =
        (0..CHUNKS).map(|_| event("word ")).chain([end()]).map(Into::into).collect();
    let per_event = median(
        (0..turns())
            .map(|_| {
                let began = cpu_ns();
                for _ in 0..200 {
                    let mut decoder = Protocol::OpenAiChat.decoder(Framing::Sse, &Dialect::default());
                    for piece in &bytes {
                        decoder.feed(piece.clone(), &mut |_| {}).unwrap();
                    }
                    decoder.finish().unwrap();
                }
                (cpu_ns() - began) as f64 / 200.0 / CHUNKS as f64 / 1_000.0
            })
            .collect(),
    );
    table.row("codec alone", "µs CPU per stream event", per_event, "the target", Some(5.0));

    let cached = Cached::new(ScriptedModel::new().otherwise(|_| "word ".repeat(CHUNKS))).for_all();
    let cx = CallContext::default();
    cached.chat(&request, &cx).await.unwrap();
    let began = (cpu_ns(), Instant::now());
    let hits = if is_quick() { 100 } else { 20_000 };
    for _ in 0..hits {
        cached.chat(&request, &cx).await.unwrap();
    }
    let per_hit = (cpu_ns() - began.0) as f64 / f64::from(hits) / 1_000.0;
    table.row("cache hit, 1 KB asked, 500 B answered", "µs CPU", per_hit, "the target", Some(5.0));

    println!("{:44} {:>10} {:>10} {:>6}", "case", "ours", "peer", "ratio");
    println!("{}", table.text);
    if is_quick() {
        println!("quick: these figures mean nothing");
        return;
    }
    let target = std::env::var("CARGO_TARGET_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../target").to_owned());
    let directory = std::path::Path::new(&target).join("bench");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("llm.json"), serde_json::to_string_pretty(&table.rows).unwrap() + "\n")
        .unwrap();
}
