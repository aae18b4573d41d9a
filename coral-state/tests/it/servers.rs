//! Real servers on free ports, started with the first test that needs one and stopped with the
//! process, however it ends.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A server, and the shell that looks after it: when its standard input closes, as it does
/// whenever this process ends, it stops the server and removes its data.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) dir: PathBuf,
    command: String,
    user: Option<(u32, u32)>,
    keeper: Child,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Who a server runs as: itself, or, where this is root, whom PostgreSQL's package made.
fn servant() -> Option<(u32, u32)> {
    let id = |flag: &str| {
        let output = Command::new("id").args([flag, "postgres"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().ok()
    };
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !root {
        return None;
    }
    let servant = id("-u").zip(id("-g"));
    assert!(servant.is_some(), "there is no user `postgres`: run tests/setup/state.sh");
    servant
}

fn shell(script: &str, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A signal meant for the tests must not reach the server before its keeper does.
    command.process_group(0);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

impl Server {
    /// Starts `command` in a new directory, where `PORT` and `DIR` stand for its own.
    fn start(name: &str, prepare: &str, command: &str) -> Self {
        let user = servant();
        let port = free_port();
        // Both belong to the keeper's user, who must be able to remove the inner one.
        let servers = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers");
        let dir = servers.join(format!("{name}-{port}"));
        std::fs::create_dir_all(&dir).unwrap();
        if let Some((uid, gid)) = user {
            for path in [&servers, &dir] {
                std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
            }
        }
        let fill = |text: &str| text.replace("PORT", &port.to_string()).replace("DIR", dir.to_str().unwrap());
        let prepared = shell(&fill(prepare), user).status().unwrap();
        assert!(prepared.success(), "`{name}` can't be prepared: run tests/setup/state.sh");
        let command = fill(command);
        let keeper = Self::keep(&command, &dir, user);
        let server = Server { port, dir, command, user, keeper };
        assert!(server.wait(), "`{name}` does not start: {}", server.log());
        server
    }

    fn keep(command: &str, dir: &Path, user: Option<(u32, u32)>) -> Child {
        for left in ["pid", "ended"] {
            let _ = std::fs::remove_file(dir.join(left));
        }
        let dir = dir.display();
        // The guard waits for the server at once: one that ended unwaited-for would look alive.
        let script = format!(
            "exec 3<&0; \
             ( {command} </dev/null >{dir}/log 2>&1 3<&- & echo $! > {dir}/pid; wait $!; echo > {dir}/ended ) & \
             read -r word <&3; kill -INT $(cat {dir}/pid) 2>/dev/null; wait; \
             [ \"$word\" = again ] || rm -rf {dir}"
        );
        shell(&script, user).spawn().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn pid(&self) -> Option<String> {
        let pid = std::fs::read_to_string(self.dir.join("pid")).ok()?;
        pid.ends_with('\n').then(|| pid.trim().to_owned())
    }

    /// Waits until the server answers; `false` if it ended instead.
    fn wait(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "the server does not answer: {}", self.log());
            if self.dir.join("ended").exists() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Kills the server as a crash would, and its keeper's interest in it.
    pub(crate) fn crash(&mut self) {
        let killed = Command::new("kill").args(["-9", &self.pid().unwrap()]).status().unwrap();
        assert!(killed.success());
        self.release();
        assert!(TcpStream::connect(("127.0.0.1", self.port)).is_err());
    }

    /// Ends the keeper and leaves the data.
    fn release(&mut self) {
        let stdin = self.keeper.stdin.take().unwrap();
        std::io::Write::write_all(&mut &stdin, b"again\n").unwrap();
        self.keeper.wait().unwrap();
    }

    /// Starts it again where it was. Orphans of the one that crashed may take a moment to end, and
    /// until then it can't.
    pub(crate) fn restart(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            self.keeper = Self::keep(&self.command, &self.dir, self.user);
            if self.wait() {
                return;
            }
            assert!(Instant::now() < deadline, "the server does not start again: {}", self.log());
            self.release();
        }
    }
}

fn postgres_programs() -> PathBuf {
    let debian = Path::new("/usr/lib/postgresql");
    let installed =
        std::fs::read_dir(debian).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    installed.filter(|path| path.join("postgres").exists()).max().unwrap_or_default()
}

/// A PostgreSQL server of its own.
pub(crate) fn postgres() -> Server {
    let programs = postgres_programs();
    let programs = programs.display();
    Server::start(
        "postgres",
        &format!("{programs}/initdb -D DIR/data -U coral -A trust -E UTF8 --locale=C.UTF-8"),
        &format!(
            "{programs}/postgres -D DIR/data -p PORT -h 127.0.0.1 -c unix_socket_directories= -c max_connections=400"
        ),
    )
}

/// The PostgreSQL server that all tests share, as `tokio_postgres` wants to be told.
pub(crate) fn shared_postgres() -> String {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(postgres);
    postgres_config(server)
}

pub(crate) fn postgres_config(server: &Server) -> String {
    format!("host=127.0.0.1 port={} user=coral dbname=postgres", server.port)
}

/// A Redis server of its own.
pub(crate) fn redis() -> Server {
    Server::start(
        "redis",
        "command -v redis-server",
        "redis-server --port PORT --bind 127.0.0.1 --dir DIR --save ''",
    )
}
