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

/// Where this crate's tests keep their files.
pub(crate) fn here() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers"))
}

/// Where the servers are installed.
pub(crate) static INSTALLED: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let done = Command::new(root.join("tests/setup/llm.sh")).status().unwrap();
    assert!(done.success(), "tests/setup/llm.sh failed: it needs npm and python3 with venv");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("setup/llm")
});

impl Peer {
    /// Starts `command`, and waits until it prints an address.
    pub(crate) fn start(command: &mut Command) -> Peer {
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.find("http://127.0.0.1:").map(|at| line[at..].trim().to_owned()))
            .unwrap_or_else(|| panic!("{command:?} printed no address"));
        // What it prints later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Peer { url, process }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
