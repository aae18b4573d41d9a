//! The helper that starts MCP servers in the OS sandbox, for programs that can't call the hook.

use std::io::Write;

fn main() {
    coral_mcp::sandbox_hook();
    let _ = writeln!(std::io::stderr(), "coral-jail is started by coral-mcp, not by hand");
    std::process::exit(2);
}
