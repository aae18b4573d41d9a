//! Thousands of streams at once: what one costs while it is open, and whether any is lost.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use coral_core::{CallContext, ChatModel};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::report::{Report, cpu_ns};
use crate::server::{ANSWER, HELD, RELEASE};
use crate::{bare, provider, request};

/// Streams that may wait for their first chunk at once, so that no queue of the kernel overflows.
const OPENING: usize = 512;

/// Lets this process, and those that it starts, open as many files as it may. Returns how many.
pub(crate) fn raise_file_limit() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// Measures in a process for each client, so that memory is that of nothing else.
pub(crate) fn measure(report: &mut Report, url: &str, streams: usize) {
    let ask = |client: &str| -> Value {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["streams", url, client, &streams.to_string()])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (ours, bare) = (ask("coral"), ask("bare"));
    for (what, unit) in [
        ("kb", "KB of memory per open stream"),
        ("cpu_us", "µs CPU per stream"),
        ("wall_s", "s for all"),
        ("lost", "streams lost"),
    ] {
        let of = |measured: &Value| measured[what].as_f64().unwrap();
        report.row(&format!("{streams} streams at once"), unit, of(&ours), "bare reqwest", Some(of(&bare)));
    }
}

/// What the process for one client does: opens all streams, measures, lets them go on, and counts.
pub(crate) async fn run(url: &str, client: &str, streams: usize) {
    let provider = Arc::new(provider(url, HELD));
    let bare = Arc::new(bare(url, HELD));
    let release = crate::bare(url, RELEASE);
    let is_ours = client == "coral";
    // The first call loads what all share.
    if is_ours {
        crate::provider(url, RELEASE).chat(&request(), &CallContext::default()).await.unwrap();
    }
    release.whole().await;

    let (open, all_open) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let opening = Arc::new(Semaphore::new(OPENING));
    let request = Arc::new(request());
    let (began, cpu, memory) = (Instant::now(), cpu_ns(), resident());
    let mut running = JoinSet::new();
    for _ in 0..streams {
        let permit = opening.clone().acquire_owned().await.unwrap();
        let (open, all_open) = (open.clone(), all_open.clone());
        let mut permit = Some(permit);
        let mut first = move || {
            if permit.take().is_some() && open.fetch_add(1, Ordering::Relaxed) + 1 == streams {
                all_open.notify_one();
            }
        };
        if is_ours {
            let (provider, request) = (provider.clone(), request.clone());
            running.spawn(async move {
                let first = std::sync::Mutex::new(first);
                let cx = CallContext::default().on_delta(move |_| first.lock().unwrap()());
                provider.chat(&request, &cx).await.map_or(0, |answer| answer.message.text().len())
            });
        } else {
            let bare = bare.clone();
            running.spawn(async move { bare.stream(|_| first()).await.len() });
        }
    }
    all_open.notified().await;
    let kb = resident().saturating_sub(memory) as f64 / 1_024.0 / streams as f64;
    release.whole().await;
    let mut lost = 0;
    while let Some(length) = running.join_next().await {
        lost += usize::from(!length.is_ok_and(|length| length == ANSWER));
    }
    let cpu_us = (cpu_ns() - cpu) as f64 / streams as f64 / 1_000.0;
    println!(
        "{}",
        json!({"kb": kb, "cpu_us": cpu_us, "wall_s": began.elapsed().as_secs_f64(), "lost": lost})
    );
}

/// Bytes of memory that this process holds.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}
