//! How long agents take to load: the built-in ones at the start of a process, and a thousand from
//! a directory. Prints a table and writes `target/bench/agents.json`.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use coral_agents::Registry;
use serde_json::json;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const DEFINITIONS: usize = 1_000;

fn main() -> Outcome {
    if std::env::args().any(|arg| arg == "--start-up") {
        let watch = Instant::now();
        let registry = Registry::builtin();
        let spent = watch.elapsed();
        println!("{} {}", registry.agents().count(), spent.as_nanos());
        return Ok(());
    }
    let quick = std::env::args().any(|arg| arg == "--quick" || arg == "--test")
        || std::env::var("CORAL_BENCH_QUICK").is_ok_and(|value| !value.is_empty() && value != "0");
    let rounds = if quick { 3 } else { 31 };
    let target = target_dir();
    let dir = target.join("bench/agents-1000");
    let texts = write_definitions(&dir)?;
    let bytes: usize = texts.iter().map(String::len).sum();

    let start_up = median(rounds, start_up)?;
    let cpu_before = cpu_time();
    let load = median(rounds, || {
        let mut registry = Registry::new();
        let watch = Instant::now();
        let loaded = registry.load_dir(&dir)?;
        let spent = watch.elapsed();
        if loaded.agents.len() != DEFINITIONS || !loaded.skipped.is_empty() {
            return Err(format!(
                "{} agents loaded, skipped: {:?}",
                loaded.agents.len(),
                loaded.skipped.first()
            )
            .into());
        }
        Ok(spent)
    })?;
    let cpu = cpu_time()
        .zip(cpu_before)
        .map(|(after, before)| (after - before) / u32::try_from(rounds).unwrap_or(1));
    // The floor: the files read and their front matter parsed into events of YAML, nothing else.
    let floor = median(rounds, || {
        let watch = Instant::now();
        for entry in fs::read_dir(&dir)? {
            let text = fs::read_to_string(entry?.path())?;
            let front = text.split("---\n").nth(1).ok_or("no front matter")?;
            for event in granit_parser::Parser::new_from_str(front) {
                std::hint::black_box(event?);
            }
        }
        Ok(watch.elapsed())
    })?;

    let (start_up, load, floor) = (milliseconds(start_up), milliseconds(load), milliseconds(floor));
    let mut rows = vec![
        ("start-up of the built-in registry", start_up, "target", 5.0),
        ("1,000 definitions from a directory", load, "target", 150.0),
        ("1,000 definitions from a directory", load, "YAML alone", floor),
    ];
    if let Some(cpu) = cpu {
        rows.push(("1,000 definitions, CPU of all threads", milliseconds(cpu), "target", 150.0));
    }
    println!("{:<37} {:>10} {:<12} {:>10} {:>7}", "case", "coral, ms", "against", "ms", "ratio");
    let mut json_rows = Vec::new();
    for (case, ours, peer, peer_value) in rows {
        let ratio = ours / peer_value;
        println!("{case:<37} {ours:>10.2} {peer:<12} {peer_value:>10.2} {ratio:>6.2}x");
        json_rows.push(json!({
            "case": case, "unit": "ms", "ours": ours, "peer": peer, "peer_value": peer_value, "ratio": ratio,
        }));
    }
    println!("{DEFINITIONS} definitions have {} KiB in all; medians of {rounds} rounds", bytes / 1024);
    fs::write(target.join("bench/agents.json"), serde_json::to_string_pretty(&json_rows)?)?;
    Ok(())
}

/// The time of the first `Registry::builtin()` of a fresh process.
fn start_up() -> Outcome<Duration> {
    let output = Command::new(std::env::current_exe()?).arg("--start-up").output()?;
    let text = String::from_utf8(output.stdout)?;
    let nanoseconds = text.split_whitespace().nth(1).ok_or("the fresh process printed nothing")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

/// A thousand definitions made of the built-in ones, whose text is what real ones are like.
fn write_definitions(dir: &Path) -> Outcome<Vec<String>> {
    fs::create_dir_all(dir)?;
    let agents = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents");
    let mut originals = Vec::new();
    for entry in fs::read_dir(agents)? {
        originals.push(fs::read_to_string(entry?.path())?);
    }
    originals.sort();
    let mut texts = Vec::new();
    for (i, text) in originals.iter().cycle().take(DEFINITIONS).enumerate() {
        let (before, rest) = text.split_once("id: ").ok_or("no id")?;
        let (_, rest) = rest.split_once('\n').ok_or("no line behind the id")?;
        // An alias belongs to one agent.
        let rest: String = rest.split_inclusive('\n').filter(|line| !line.starts_with("aliases:")).collect();
        let text = format!("{before}id: agent_{i}\n{rest}");
        fs::write(dir.join(format!("agent_{i}.md")), &text)?;
        texts.push(text);
    }
    Ok(texts)
}

fn median(rounds: usize, mut measure: impl FnMut() -> Outcome<Duration>) -> Outcome<Duration> {
    let mut times = (0..rounds).map(|_| measure()).collect::<Outcome<Vec<_>>>()?;
    times.sort();
    times.get(rounds / 2).copied().ok_or_else(|| "no rounds".into())
}

/// CPU time of this process, where the system tells: on a busy machine it says more than a clock.
fn cpu_time() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The fields behind the name in parentheses: user and system time are the 12th and 13th, in
    // hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}
