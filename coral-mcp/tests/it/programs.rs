//! The programs that the tests start.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The Python interpreter itself (what is found first may be a script that sets variables), and
/// what it is installed under.
pub(crate) fn python() -> &'static [String; 2] {
    static PYTHON: OnceLock<[String; 2]> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let code = "import os, sys; print(os.path.realpath(sys.executable)); print(sys.base_prefix)";
        let output = Command::new("python3").args(["-c", code]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines().map(str::to_owned);
        [lines.next().unwrap(), lines.next().unwrap()]
    })
}

/// What Node is installed under.
pub(crate) fn node_prefix() -> String {
    let node = Command::new("node").args(["-p", "process.execPath"]).output().unwrap().stdout;
    let node = String::from_utf8(node).unwrap();
    let node = Path::new(node.trim()).parent().unwrap().parent().unwrap().display().to_string();
    // Where the system's own directories hold it, it may be read anyway.
    if node.len() > 1 { node } else { "/usr".to_owned() }
}

/// A script of the tests' own servers.
pub(crate) fn script(name: &str) -> String {
    format!("{}/tests/servers/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Where the public servers are; installs them the first time.
pub(crate) fn public_servers() -> &'static PathBuf {
    static SERVERS: OnceLock<PathBuf> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let status = Command::new("sh").arg(root.join("tests/setup/mcp.sh")).status().unwrap();
        assert!(status.success(), "tests/setup/mcp.sh failed");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        target.join("mcp-servers")
    })
}

/// Whether bubblewrap is here, which the level `strict` needs.
pub(crate) fn bubblewrap() -> bool {
    Command::new("bwrap").arg("--version").output().is_ok_and(|output| output.status.success())
}
