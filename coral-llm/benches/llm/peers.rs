//! Other client libraries, in a process of their own that `benches/peers` builds.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

pub(crate) const PEERS: [(&str, &str); 2] = [("rig", "rig-core 0.44"), ("genai", "genai 0.7")];

/// The peers' process. It ends when it is dropped.
pub(crate) struct Peers {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peers {
    /// Builds the peers and starts them; `None`, and why, if they can't be had.
    pub(crate) fn start(target: &Path) -> Result<Peers, String> {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/Cargo.toml");
        let target = target.join("llm-peers");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "--manifest-path", manifest, "--target-dir"])
            .arg(&target)
            .status();
        if !built.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Err(format!("they can't be built: {built:?}"));
        }
        let mut process = Command::new(target.join("release/coral-llm-bench-peers"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let (orders, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Ok(Peers { process, orders, answers: BufReader::new(answers) })
    }

    /// The CPU µs of one call by a peer.
    pub(crate) fn measure(&mut self, order: &Value) -> f64 {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().parse().unwrap()
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
