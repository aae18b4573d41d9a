//! Real servers on free ports, started with the first test that needs one and stopped with the
//! process, however it ends.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

/// A server, and the shell that looks after it: when its standard input closes, as it does
/// whenever this process ends, it stops the server and removes its data.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) dir: PathBuf,
    command: String,
    user: Option<(u32, u32)>,
    keeper: Child,
    output: Output,
}

/// What a server says: all of it so far, and whether it says that it is ready.
struct Output {
    log: Arc<Mutex<String>>,
    ready: Mutex<mpsc::Receiver<bool>>,
}

impl Output {
    fn of(stdout: impl std::io::Read + Send + 'static) -> Self {
        let log: Arc<Mutex<String>> = Arc::default();
        let (tell, ready) = mpsc::channel();
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let is_ready = line.contains("eady to accept connections");
                *kept.lock().unwrap() += &format!("{line}\n");
                if is_ready {
                    let _ = tell.send(true);
                }
            }
            let _ = tell.send(false);
        });
        Output { log, ready: Mutex::new(ready) }
    }
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
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
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
        let prepared = shell(&fill(prepare), user).stdout(Stdio::null()).status().unwrap();
        assert!(prepared.success(), "`{name}` can't be prepared: run tests/setup/state.sh");
        let command = fill(command);
        let (keeper, output) = Self::keep(&command, &dir, user);
        let server = Server { port, dir, command, user, keeper, output };
        assert!(server.wait(), "`{name}` does not start: {}", server.log());
        server
    }

    fn keep(command: &str, dir: &Path, user: Option<(u32, u32)>) -> (Child, Output) {
        let _ = std::fs::remove_file(dir.join("pid"));
        let dir = dir.display();
        // The guard waits for the server at once: one that ended unwaited-for would look alive. The
        // server alone holds the output, so that its end shows there.
        let script = format!(
            "exec 3<&0; \
             ( {command} </dev/null 2>&1 3<&- & echo $! > {dir}/pid; exec >/dev/null; wait $! ) & \
             exec >/dev/null; \
             read -r word <&3; kill -INT $(cat {dir}/pid) 2>/dev/null; wait; \
             [ \"$word\" = again ] || rm -rf {dir}"
        );
        let mut keeper = shell(&script, user).spawn().unwrap();
        let output = Output::of(keeper.stdout.take().unwrap());
        (keeper, output)
    }

    fn log(&self) -> String {
        self.output.log.lock().unwrap().clone()
    }

    fn pid(&self) -> Option<String> {
        let pid = std::fs::read_to_string(self.dir.join("pid")).ok()?;
        pid.ends_with('\n').then(|| pid.trim().to_owned())
    }

    /// Waits until the server says that it is ready; `false` if it ended instead.
    fn wait(&self) -> bool {
        let ready = self.output.ready.lock().unwrap().recv_timeout(Duration::from_secs(60));
        assert!(ready.is_ok(), "the server does not answer: {}", self.log());
        ready.unwrap()
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
        (&stdin).write_all(b"again\n").unwrap();
        self.keeper.wait().unwrap();
    }

    /// Starts it again where it was. Orphans of the one that crashed may take a moment to end, and
    /// until then it can't.
    pub(crate) fn restart(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            (self.keeper, self.output) = Self::keep(&self.command, &self.dir, self.user);
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

/// The certificate of the PostgreSQL servers, and its key, as PEM.
pub(crate) static CERTIFICATE: LazyLock<(String, String)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
});

/// A PostgreSQL server of its own.
pub(crate) fn postgres() -> Server {
    let programs = postgres_programs();
    let programs = programs.display();
    let (certificate, key) = &*CERTIFICATE;
    Server::start(
        "postgres",
        &format!(
            "umask 077; echo '{certificate}' > DIR/server.crt; echo '{key}' > DIR/server.key
             {programs}/initdb -D DIR/data -U coral -A trust -E UTF8 --locale=C.UTF-8"
        ),
        &format!(
            "{programs}/postgres -D DIR/data -p PORT -h 127.0.0.1 -c unix_socket_directories= \
             -c autovacuum=off -c max_connections=400 -c ssl=on -c ssl_cert_file=DIR/server.crt -c ssl_key_file=DIR/server.key"
        ),
    )
}

fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(postgres)
}

/// The PostgreSQL server that all tests share, as `tokio_postgres` wants to be told.
pub(crate) fn shared_postgres() -> String {
    postgres_config(shared())
}

/// Where that server keeps everything.
pub(crate) fn shared_postgres_dir() -> PathBuf {
    shared().dir.join("data")
}

pub(crate) fn postgres_config(server: &Server) -> String {
    format!("host=127.0.0.1 port={} user=coral dbname=postgres", server.port)
}

/// A Redis server of its own that speaks TLS alone.
#[cfg(feature = "redis-tls")]
pub(crate) fn redis_tls() -> Server {
    let (certificate, key) = &*CERTIFICATE;
    Server::start(
        "redis-tls",
        &format!("umask 077; echo '{certificate}' > DIR/server.crt; echo '{key}' > DIR/server.key"),
        "redis-server --port 0 --tls-port PORT --bind 127.0.0.1 --dir DIR --save '' \
         --tls-cert-file DIR/server.crt --tls-key-file DIR/server.key --tls-auth-clients no",
    )
}

/// A Redis server of its own.
pub(crate) fn redis() -> Server {
    Server::start(
        "redis",
        "command -v redis-server",
        "redis-server --port PORT --bind 127.0.0.1 --dir DIR --save ''",
    )
}

/// The same, where what it acknowledged outlives a crash.
pub(crate) fn lasting_redis() -> Server {
    Server::start(
        "redis-lasting",
        "command -v redis-server",
        "redis-server --port PORT --bind 127.0.0.1 --dir DIR --save '' --appendonly yes --appendfsync always",
    )
}
