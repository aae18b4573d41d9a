//! The public Postgres server before a real PostgreSQL. Its own guard can be talked out of reading alone
//! (`COMMIT; DELETE …`); ours must not be.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coral_mcp::{Servers, Variables};
use serde_json::json;

use crate::desk::Desk;
use crate::programs::public_servers;

const PERMISSIONS: &str = r#"
permission_model:
  agents:
    dev:
      mcp_servers: [db]
      operations: [read, write]
      paths: ["/project"]
      after_untrusted: allow
    reader:
      mcp_servers: [db]
      operations: [read]
      paths: ["/project"]
servers:
  db: { profile: database }
"#;

/// A PostgreSQL with data of its own.
struct Postgres {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its fast way to stop, so that its own children go too.
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The user and group to run it as: it does not run as root.
fn servant() -> Option<(u32, u32)> {
    let id = |args: &[&str]| {
        let output = Command::new("id").args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse::<u32>().ok()
    };
    (id(&["-u"]) == Some(0)).then(|| {
        let (user, group) = (id(&["-u", "postgres"]), id(&["-g", "postgres"]));
        assert!(user.is_some(), "there is no user `postgres`: run tests/setup/mcp.sh");
        (user.unwrap(), group.unwrap())
    })
}

fn program(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists());
    let mut command = Command::new(programs.max().unwrap_or_else(|| PathBuf::from(name)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some((user, group)) = servant() {
        command.uid(user).gid(group);
    }
    command
}

impl Postgres {
    fn start() -> Self {
        public_servers();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mcp-postgres-{port}"));
        std::fs::create_dir_all(&dir).unwrap();
        if let Some((user, group)) = servant() {
            chown(&dir, Some(user), Some(group)).unwrap();
        }
        let data = dir.join("data");
        let made = program("initdb")
            .args(["-U", "coral", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(&data)
            .status()
            .unwrap();
        assert!(made.success(), "initdb failed");
        let mut child = program("postgres")
            .stderr(Stdio::piped())
            .args([
                "-p",
                &port.to_string(),
                "-h",
                "127.0.0.1",
                "-c",
                "unix_socket_directories=",
                "-c",
                "fsync=off",
                "-D",
            ])
            .arg(&data)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let server = Postgres { child, port, dir };
        let said: Vec<String> = log.by_ref().take_while(|line| !line.contains("ready to accept")).collect();
        let ready = TcpStream::connect(("127.0.0.1", port)).is_ok();
        assert!(ready, "PostgreSQL does not start: {said:#?}");
        // Whoever stops reading stops the server.
        std::thread::spawn(move || log.for_each(drop));
        server
    }
}

#[tokio::test]
async fn what_reads_is_let_through_and_what_hides_a_write_is_not() {
    let postgres = Postgres::start();
    let index =
        public_servers().join("node/node_modules/@modelcontextprotocol/server-postgres/dist/index.js");
    let config = json!({"mcpServers": {"db": {"command": "node", "args": [index, "${DATABASE}"]}}});
    let address = format!("postgresql://coral@127.0.0.1:{}/postgres", postgres.port);
    let variables = Variables::new().with("DATABASE", address);
    let servers = Servers::from_json(&config.to_string(), ".mcp.json", &variables).unwrap();
    let desk = Desk::with(PERMISSIONS, |b| b.servers(servers)).await;
    let query = |agent, sql: &str| desk.call(agent, "db__query", json!({"sql": sql}));

    let names = Desk::ok(query("reader", "SELECT datname FROM pg_database ORDER BY datname").await);
    assert!(names.contains("template1"), "{names}");
    // The server wraps what it is given in a transaction that only reads; this ends that.
    let create = "COMMIT; CREATE TABLE t (n int); INSERT INTO t VALUES (1), (2)";
    Desk::denied(query("reader", create).await);
    Desk::denied(query("dev", create).await);
    let missing = query("reader", "SELECT count(*) FROM t").await;
    assert!(missing.is_err() || missing.unwrap().is_error, "there is no table: nothing was let through");
    for sql in [
        "DELETE FROM pg_class",
        "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
        "EXPLAIN ANALYZE DELETE FROM t",
        "SELECT * INTO u FROM pg_class",
        "SELECT setval('s', 1)",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY t FROM PROGRAM 'id'",
        "SELECT 1; DROP TABLE t",
    ] {
        Desk::denied(query("reader", sql).await);
    }
}
