use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

/// A server in a process of its own.
pub(crate) struct Peer {
    /// Where it listens, such as `http://127.0.0.1:4000`.
    pub(crate) url: String,
    /// The server ends when the pipe to it closes, which the end of the tests does too.
    process: Child,
}

/// The workspace.
static ROOT: LazyLock<PathBuf> =
    LazyLock::new(|| Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned());

/// Where the tests of coral-llm keep the files of their servers.
pub(crate) fn here() -> PathBuf {
    ROOT.join("coral-llm/tests/peers")
}

/// Where the servers are installed.
pub(crate) static INSTALLED: LazyLock<PathBuf> = LazyLock::new(|| {
    let done = Command::new(ROOT.join("tests/setup/llm.sh")).status().unwrap();
    assert!(done.success(), "tests/setup/llm.sh failed: it needs npm and python3 with venv");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| ROOT.join("target"), PathBuf::from);
    target.join("setup/llm")
});

impl Peer {
    /// Starts `command`, and waits until it prints an address.
    pub(crate) fn start(command: &mut Command) -> Peer {
        Peer::listening(command, "http://127.0.0.1:", drop)
    }

    /// Starts `command`, and waits until it prints a line with `sign`. What it prints later is for `reader`.
    pub(crate) fn listening(
        command: &mut Command,
        sign: &str,
        reader: impl Fn(String) + Send + 'static,
    ) -> Peer {
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let url = lines
            .by_ref()
            .find_map(|line| line.find(sign).map(|at| line[at..].trim().to_owned()))
            .unwrap_or_else(|| panic!("{command:?} printed no `{sign}`"));
        // What it prints later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(reader));
        Peer { url, process }
    }
}

/// Starts `aimock` with the fixtures of coral-llm.
pub(crate) fn aimock() -> Peer {
    let cli = INSTALLED.join("aimock/node_modules/@copilotkit/aimock/dist/cli.js");
    let start = format!(
        "process.stdin.on('end', () => process.exit()).resume(); import({:?})",
        cli.to_str().unwrap()
    );
    let fixtures = here().join("fixtures.json");
    Peer::start(
        Command::new("node").args(["-e", &start, "--", "-p", "0", "--validate-on-load", "-f"]).arg(fixtures),
    )
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
