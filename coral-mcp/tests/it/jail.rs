//! A server that tries to get out of the OS sandbox, at each level.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use coral_mcp::{AuditEvent, Permissions, Sandbox, Servers, Verdict};
use serde_json::json;

use crate::desk::Desk;
use crate::programs::{bubblewrap, python, script};

/// The levels that can be had here.
fn levels() -> &'static [&'static str] {
    if bubblewrap() { &["kernel", "strict"] } else { &["kernel"] }
}

fn permissions(rules: &str) -> String {
    let [_, prefix] = python();
    let servers = script("");
    format!(
        r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["probe"]
      operations: ["execute"]
      after_untrusted: allow
  security_policies: [no_system_access]
servers:
  probe:
    project_read: ["/project"]
    read: ["{prefix}", "{servers}"]
    {rules}
"#
    )
}

async fn desk(level: &str, rules: &str) -> Desk {
    let servers = Servers::default().stdio("probe", &python()[0], [script("probe.py")]).unwrap();
    let helper = env!("CARGO_BIN_EXE_coral-jail");
    let rules = format!("isolation: {level}\n    {rules}");
    Desk::with(&permissions(&rules), |b| b.servers(servers).helper(helper)).await
}

/// What the server says, if its try succeeded.
async fn attempt(desk: &Desk, what: &str, with: &str) -> Result<String, String> {
    let result = desk.call("dev", "probe__try", json!({"what": what, "with": with})).await.unwrap();
    let said = result.content.lines().nth(1).unwrap_or_default().to_owned();
    if result.is_error { Err(said) } else { Ok(said) }
}

#[tokio::test]
async fn files_outside_of_the_project_are_out_of_reach() {
    for level in levels() {
        let desk = desk(level, "write: [/project/src]").await;
        let secret = desk.outside().join("secret.txt").display().to_string();
        let project = desk.project().display().to_string();
        assert_eq!(attempt(&desk, "read", &format!("{project}/docs/plan.md")).await.unwrap(), "# Plan");
        assert_eq!(attempt(&desk, "write", &format!("{project}/src/new.rs")).await.unwrap(), "written");
        for path in [
            secret.as_str(),
            "/etc/shadow",
            "/root/.bashrc",
            "/proc/1/root/etc/shadow",
            "/dev/mem",
            "/proc/kcore",
            "/proc/self/mem",
        ] {
            let said = attempt(&desk, "read", path).await.unwrap_err();
            assert!(said.contains("Error"), "{level} {path}: {said}");
        }
        let docs = desk.project().join("docs/new.md");
        for path in [&secret, &docs.display().to_string(), "/usr/pwned", "/tmp/pwned", "/etc/pwned", "/pwned"]
        {
            let said = attempt(&desk, "write", path).await.unwrap_err();
            assert!(
                said.contains("ermission") || said.contains("Read-only") || said.contains("No such"),
                "{said}"
            );
        }
        assert!(attempt(&desk, "link", &secret).await.is_err());
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "TOP SECRET");
        assert!(!docs.exists());
        assert_eq!(attempt(&desk, "write", "/dev/shm/scratch").await.unwrap(), "written");
        assert!(!std::path::Path::new("/dev/shm/scratch").exists(), "the scratch directory is its own");
        // Whether a file exists is seen at the level `kernel`, and not at `strict`.
        let seen = if *level == "strict" { "False" } else { "True" };
        assert_eq!(attempt(&desk, "exists", &secret).await.unwrap(), seen, "{level}");
    }
}

#[tokio::test]
async fn nothing_leaves_through_the_network() {
    for level in levels() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        let (to_tcp, to_udp) = (tcp.local_addr().unwrap().to_string(), udp.local_addr().unwrap().to_string());
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let unix = UnixListener::bind(&socket).unwrap();
        unix.set_nonblocking(true).unwrap();
        let desk = desk(level, "").await;
        assert!(attempt(&desk, "connect", &to_tcp).await.is_err());
        // A loopback that is up takes what nobody is there to receive.
        let _ = attempt(&desk, "datagram", &to_udp).await;
        let said = attempt(&desk, "unix", &socket.display().to_string()).await.unwrap_err();
        assert!(said.contains("not permitted"), "{said}");
        assert!(attempt(&desk, "abstract", "x").await.unwrap_err().contains("not permitted"));
        assert!(tcp.accept().is_err() && unix.accept().is_err());
        assert!(udp.recv(&mut [0; 16]).is_err());
    }
}

#[tokio::test]
async fn the_network_is_there_where_it_is_granted() {
    for level in levels() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        let desk = desk(level, "network: true").await;
        assert_eq!(attempt(&desk, "connect", &address).await.unwrap(), "sent");
        let mut said = String::new();
        tcp.accept().unwrap().0.read_to_string(&mut said).unwrap();
        assert_eq!(said, "secret");
    }
}

/// The connections that the audit tells of.
fn connections(desk: &Desk) -> Vec<(String, Verdict, String)> {
    let connected = |event| match event {
        AuditEvent::Connected { to, verdict, rule } => Some((to, verdict, rule)),
        _ => None,
    };
    desk.audit.records().into_iter().filter_map(|record| connected(record.entry.event)).collect()
}

#[tokio::test]
async fn the_network_of_a_list_is_that_list() {
    for level in levels() {
        let listed = TcpListener::bind("127.0.0.1:0").unwrap();
        // Not at the address of the proxy's listener: that is in the server's own namespace, where it
        // may well have the number of a port out here.
        let [aside, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.2:0").unwrap());
        let address = listed.local_addr().unwrap();
        let [listed_too, unlisted] = [&aside, &other].map(|listener| {
            listener.set_nonblocking(true).unwrap();
            listener.local_addr().unwrap()
        });
        let echo = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listed.accept().unwrap();
                let mut said = String::new();
                stream.read_to_string(&mut said).unwrap();
                stream.write_all(format!("got {said}").as_bytes()).unwrap();
            }
        });
        let port = address.port();
        let inwards = format!("localhost:{}", unlisted.port());
        let rules = format!(r#"network: ["{address}", "{listed_too}", "localhost:{port}", "{inwards}"]"#);
        let desk = desk(level, &rules).await;
        assert_eq!(attempt(&desk, "tunnel", &address.to_string()).await.unwrap(), "got secret");
        // A name that leads to an address that is on the list itself.
        assert_eq!(attempt(&desk, "tunnel", &format!("localhost:{port}")).await.unwrap(), "got secret");
        echo.join().unwrap();
        // A name that is on the list, and leads inwards to what is not.
        assert!(attempt(&desk, "tunnel", &inwards).await.unwrap_err().contains("not a public address"));
        for (target, words) in [
            (unlisted.to_string(), "not on the list"),
            ("example.com:443".to_owned(), "not on the list"),
            ("169.254.169.254:80".to_owned(), "not on the list"),
            (format!("2130706433:{port}"), "not a host"),
            (format!("0x7f.1:{port}"), "not a host"),
            (format!("localhost:{port} x"), "only CONNECT"),
        ] {
            let said = attempt(&desk, "tunnel", &target).await.unwrap_err();
            assert!(said.contains(words), "{level} {target}: {said}");
        }
        // Past the proxy there is nothing.
        for target in [listed_too, unlisted] {
            let said = attempt(&desk, "connect", &target.to_string()).await.unwrap_err();
            assert!(said.contains("refused"), "{level} {target}: {said}");
        }
        assert!(aside.accept().is_err() && other.accept().is_err());
        let verdicts: Vec<Verdict> = connections(&desk).iter().map(|(_, verdict, _)| *verdict).collect();
        assert_eq!(verdicts, [vec![Verdict::Allow; 2], vec![Verdict::Deny; 7]].concat());
        assert_eq!(connections(&desk)[0].0, address.to_string());
        assert_eq!(attempt(&desk, "variable", "NODE_USE_ENV_PROXY").await.unwrap(), "1");
    }
}

#[tokio::test]
async fn rights_are_gone() {
    for level in levels() {
        let desk = desk(level, "").await;
        let identity = attempt(&desk, "identity", "").await.unwrap();
        let identity: serde_json::Value = serde_json::from_str(&identity).unwrap();
        assert_eq!(identity["Uid"], "1000\t1000\t1000\t1000");
        assert_eq!(identity["CapEff"], "0000000000000000");
        assert_eq!(identity["CapPrm"], "0000000000000000");
        assert_eq!(identity["NoNewPrivs"], "1");
        assert_eq!(identity["Seccomp"], "2");
        assert_eq!(attempt(&desk, "descriptors", "").await.unwrap(), "0 1 2 3", "3 is the listing itself");
        let new_user = 0x1000_0000;
        let said = attempt(&desk, "unshare", &new_user.to_string()).await.unwrap_err();
        assert!(said.contains("not permitted"), "{said}");
        for call in
            [libc::SYS_ptrace, libc::SYS_io_uring_setup, libc::SYS_keyctl, libc::SYS_bpf, libc::SYS_mount]
        {
            let said = attempt(&desk, "syscall", &call.to_string()).await.unwrap_err();
            assert!(said.contains("not permitted"), "{call}: {said}");
            if cfg!(target_arch = "x86_64") {
                // The same call by the number of the x32 interface.
                let said = attempt(&desk, "syscall", &(call | 0x4000_0000).to_string()).await.unwrap_err();
                assert!(said.contains("not implemented"), "{call}: {said}");
            }
        }
    }
}

#[tokio::test]
async fn other_processes_are_neither_seen_nor_reached() {
    for level in levels() {
        let desk = desk(level, "").await;
        let seen = attempt(&desk, "processes", "").await.unwrap();
        // At `strict` there are bubblewrap's first process and the server.
        assert!(seen.split(' ').count() <= 2 && seen.starts_with('1'), "{level}: {seen}");
        let me = std::process::id().to_string();
        assert!(attempt(&desk, "kill", &me).await.is_err());
        assert!(attempt(&desk, "read", &format!("/proc/{me}/environ")).await.is_err());
    }
}

#[tokio::test]
async fn a_fork_bomb_and_a_memory_hog_end_at_their_limits() {
    for level in levels() {
        let bomb = desk(level, "processes: 400").await;
        let said = attempt(&bomb, "fork_bomb", "").await.unwrap();
        assert!(said.starts_with("stopped at "), "{said}");
        let count: u32 = said.split([' ', ':']).nth(2).unwrap().parse().unwrap();
        assert!(count <= 400, "{said}");
        let hog = desk(level, "memory_mib: 1024").await;
        let said = attempt(&hog, "memory", "").await.unwrap_err();
        assert!(said.contains("allocate memory"), "{said}");
    }
}

fn sleeping(seconds: &str) -> bool {
    let line = format!("sleep\x00{seconds}\x00");
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path().join("cmdline")).ok())
        .any(|found| found == line)
}

/// Waits until nobody sleeps for so long any more.
async fn gone(seconds: &str) {
    let gone = async {
        while sleeping(seconds) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
}

#[tokio::test]
async fn a_process_that_left_its_group_ends_with_the_sandbox() {
    for (level, seconds) in levels().iter().zip(["597", "596"]) {
        let desk = desk(level, "").await;
        attempt(&desk, "daemon", seconds).await.unwrap();
        assert!(sleeping(seconds));
        drop(desk);
        gone(seconds).await;
    }
}

const OWNER: &str = "CORAL_TEST_OWNER";

/// The owner that [`everything_ends_with_an_owner_that_is_killed`] starts and kills; without being
/// started by it, it checks nothing.
#[tokio::test]
async fn the_owner() {
    let Ok(started) = std::env::var(OWNER) else { return };
    let (level, seconds) = started.split_once(' ').unwrap();
    let desk = desk(level, "").await;
    attempt(&desk, "daemon", seconds).await.unwrap();
    println!("ready");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn everything_ends_with_an_owner_that_is_killed() {
    for (level, seconds) in levels().iter().zip(["595", "594"]) {
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "jail::the_owner", "--nocapture"])
            .env(OWNER, format!("{level} {seconds}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("ready")));
        assert!(sleeping(seconds));
        // With SIGKILL: it has no time to clean up.
        owner.kill().unwrap();
        owner.wait().unwrap();
        gone(seconds).await;
    }
}

#[tokio::test]
async fn a_server_does_not_end_with_the_thread_that_started_it() {
    let dir = std::sync::Arc::new(desk("kernel", "").await);
    let started = std::sync::Arc::clone(&dir);
    let identity = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // The runtime that drives the pipes lives on; the thread that forked does not.
        let first = runtime.block_on(attempt(&started, "identity", ""));
        (runtime, first)
    })
    .join()
    .unwrap();
    let (runtime, first) = identity;
    first.unwrap();
    let again = std::thread::spawn(move || runtime.block_on(attempt(&dir, "processes", ""))).join().unwrap();
    assert_eq!(again.unwrap(), "1", "the same server, and not a second");
}

#[tokio::test]
async fn the_level_is_in_the_audit_and_none_is_refused() {
    for level in levels() {
        let desk = desk(level, "").await;
        let first = desk.audit.records().remove(0);
        let AuditEvent::Noted { note } = first.entry.event else { panic!() };
        let stated = format!("isolation of probe: {level}, memory 4096 MiB for each ");
        assert!(note.contains(&stated) && note.contains(", network none, profile "), "{note}");
    }
    let dir = tempfile::tempdir().unwrap();
    let build = async |rules: &str, helper: Option<&str>| {
        let servers = Servers::default().stdio("probe", &python()[0], [script("probe.py")]).unwrap();
        let permissions = permissions(rules);
        let permissions = match rules {
            // What narrows a process can't stand beside it.
            "isolation: none" => {
                permissions.lines().filter(|line| !line.contains("read:")).collect::<Vec<_>>().join("\n")
            }
            _ => permissions,
        };
        let permissions = Permissions::from_yaml(&permissions, "p.yaml").unwrap();
        let builder = Sandbox::builder().permissions(permissions).servers(servers).root(dir.path());
        let builder = match helper {
            Some(helper) => builder.helper(helper),
            None => builder,
        };
        builder.build().await.err().unwrap()
    };
    let helper = Some(env!("CARGO_BIN_EXE_coral-jail"));
    for (rules, helper, words) in [
        ("", None, "not fit to be the helper"),
        ("", Some("/bin/false"), "`isolation: kernel` can't be had: exit status: 1"),
        ("isolation: none", helper, "contradicts the security policy `no_system_access`"),
        (
            r#"isolation: container
    image: x
    engine: /nowhere/engine"#,
            helper,
            "`isolation: container` can't be had",
        ),
        (
            r#"isolation: container
    image: x
    engine: no-such-engine"#,
            helper,
            "`no-such-engine` is not in `PATH`",
        ),
    ] {
        let error = build(rules, helper).await;
        assert!(error.to_string().contains(words) && !error.is_transient(), "{rules}: {error}");
    }
    if !bubblewrap() {
        let error = build("isolation: strict", helper).await;
        assert!(error.to_string().contains("needs bubblewrap"), "{error}");
    }
}

/// Where nothing is said of a server, it is kept apart if that can be had; where something is, it must be.
#[tokio::test]
async fn a_server_of_which_nothing_is_said_is_kept_apart_where_that_can_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let build = async |rules: &str, helper: Option<&str>| {
        let servers = Servers::default().stdio("probe", &python()[0], [script("probe.py")]).unwrap();
        let permissions = Permissions::from_yaml(rules, "p.yaml").unwrap();
        let audit = std::sync::Arc::new(coral_mcp::MemoryAudit::new());
        let builder = Sandbox::builder().permissions(permissions).servers(servers).root(dir.path());
        let builder = builder.audit(std::sync::Arc::clone(&audit));
        let built = match helper {
            Some(helper) => builder.helper(helper).build().await,
            None => builder.build().await,
        };
        built.map(|_| audit.records().remove(0).entry.event)
    };
    let nothing = "permission_model:\n  agents: {}\n";
    let bounded = "permission_model:\n  agents: {}\nservers:\n  probe: { memory_mib: 512 }\n";
    let helper = Some(env!("CARGO_BIN_EXE_coral-jail"));
    for (rules, helper, words) in [
        (nothing, helper, "isolation of probe: kernel, memory 4096 MiB"),
        (nothing, None, "isolation of probe: none (there is no helper for more"),
        (nothing, Some("/bin/false"), "isolation of probe: none ("),
        (bounded, helper, "isolation of probe: kernel, memory 512 MiB"),
    ] {
        let event = build(rules, helper).await.unwrap();
        assert!(matches!(&event, AuditEvent::Noted { note } if note.contains(words)), "{words}: {event:?}");
    }
    assert!(build(bounded, None).await.unwrap_err().to_string().contains("not fit to be the helper"));
}
