//! A server that tries to get out of the OS sandbox.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use coral_mcp::{AuditEvent, Permissions, Sandbox, Servers};
use serde_json::json;

use crate::desk::Desk;
use crate::programs::{python, script};

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
    read: ["{prefix}", "{servers}"]
    {rules}
"#
    )
}

async fn desk(rules: &str) -> Desk {
    let servers = Servers::default().stdio("probe", &python()[0], [script("probe.py")]).unwrap();
    let helper = env!("CARGO_BIN_EXE_coral-jail");
    Desk::with(&permissions(rules), |b| b.servers(servers).helper(helper)).await
}

/// What the server says, if its try succeeded.
async fn attempt(desk: &Desk, what: &str, with: &str) -> Result<String, String> {
    let result = desk.call("dev", "probe__try", json!({"what": what, "with": with})).await.unwrap();
    let said = result.content.lines().nth(1).unwrap_or_default().to_owned();
    if result.is_error { Err(said) } else { Ok(said) }
}

#[tokio::test]
async fn files_outside_of_the_project_are_out_of_reach() {
    let desk = desk("write: [/project/src]").await;
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
    ] {
        let said = attempt(&desk, "read", path).await.unwrap_err();
        assert!(said.contains("Error"), "{path}: {said}");
    }
    let src = desk.project().join("docs/new.md");
    for path in [&secret, &src.display().to_string(), "/usr/pwned", "/tmp/pwned", "/etc/pwned"] {
        assert!(attempt(&desk, "write", path).await.unwrap_err().contains("ermission"), "{path}");
    }
    assert!(attempt(&desk, "link", &secret).await.unwrap_err().contains("ermission"));
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "TOP SECRET");
    assert_eq!(attempt(&desk, "write", "/dev/shm/scratch").await.unwrap(), "written");
    assert!(!std::path::Path::new("/dev/shm/scratch").exists(), "the scratch directory is its own");
}

#[tokio::test]
async fn nothing_leaves_through_the_network() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    let (to_tcp, to_udp) = (tcp.local_addr().unwrap().to_string(), udp.local_addr().unwrap().to_string());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let unix = UnixListener::bind(&socket).unwrap();
    unix.set_nonblocking(true).unwrap();
    let desk = desk("").await;
    assert!(attempt(&desk, "connect", &to_tcp).await.is_err());
    assert!(attempt(&desk, "datagram", &to_udp).await.is_err());
    assert!(
        attempt(&desk, "unix", &socket.display().to_string()).await.unwrap_err().contains("not permitted")
    );
    assert!(attempt(&desk, "abstract", "x").await.unwrap_err().contains("not permitted"));
    assert!(tcp.accept().is_err() && unix.accept().is_err());
    assert!(udp.recv(&mut [0; 16]).is_err());
}

#[tokio::test]
async fn the_network_is_there_where_it_is_granted() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap().to_string();
    let desk = desk("network: true").await;
    assert_eq!(attempt(&desk, "connect", &address).await.unwrap(), "sent");
    let mut said = String::new();
    tcp.accept().unwrap().0.read_to_string(&mut said).unwrap();
    assert_eq!(said, "secret");
}

#[tokio::test]
async fn rights_are_gone() {
    let desk = desk("").await;
    let identity = attempt(&desk, "identity", "").await.unwrap();
    let identity: serde_json::Value = serde_json::from_str(&identity).unwrap();
    assert_eq!(identity["Uid"], "1000\t1000\t1000\t1000");
    assert_eq!(identity["CapEff"], "0000000000000000");
    assert_eq!(identity["CapPrm"], "0000000000000000");
    assert_eq!(identity["NoNewPrivs"], "1");
    assert_eq!(identity["Seccomp"], "2");
    assert_eq!(attempt(&desk, "descriptors", "").await.unwrap(), "0 1 2 3", "3 is the listing itself");
    let new_user = 0x1000_0000;
    assert!(attempt(&desk, "unshare", &new_user.to_string()).await.unwrap_err().contains("not permitted"));
    for call in [libc::SYS_ptrace, libc::SYS_io_uring_setup, libc::SYS_keyctl, libc::SYS_bpf, libc::SYS_mount]
    {
        let said = attempt(&desk, "syscall", &call.to_string()).await.unwrap_err();
        assert!(said.contains("not permitted"), "{call}: {said}");
    }
}

#[tokio::test]
async fn other_processes_are_neither_seen_nor_reached() {
    let desk = desk("").await;
    let seen = attempt(&desk, "processes", "").await.unwrap();
    assert_eq!(seen, "1", "it is the only process that there is");
    let me = std::process::id().to_string();
    assert!(attempt(&desk, "kill", &me).await.is_err());
    assert!(attempt(&desk, "read", &format!("/proc/{me}/environ")).await.is_err());
}

#[tokio::test]
async fn a_fork_bomb_and_a_memory_hog_end_at_their_limits() {
    let bomb = desk("").await;
    let said = attempt(&bomb, "fork_bomb", "").await.unwrap();
    assert!(said.starts_with("stopped at "), "{said}");
    let count: u32 = said.split([' ', ':']).nth(2).unwrap().parse().unwrap();
    assert!(count <= 1_024, "{said}");
    let hog = desk("").await;
    let said = attempt(&hog, "memory", "").await.unwrap_err();
    assert!(said.contains("allocate memory"), "{said}");
}

#[tokio::test]
async fn a_process_that_left_its_group_ends_with_the_sandbox() {
    let desk = desk("").await;
    attempt(&desk, "daemon", "").await.unwrap();
    let sleeping = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path().join("cmdline")).ok())
            .any(|line| line == "sleep\x00597\x00")
    };
    assert!(sleeping());
    drop(desk);
    let gone = async {
        while sleeping() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
}

#[tokio::test]
async fn the_level_is_in_the_audit_and_none_is_refused() {
    let desk = desk("").await;
    let first = desk.audit.records().remove(0);
    let AuditEvent::Noted { note } = first.entry.event else { panic!() };
    let stated = "isolation of probe: kernel, memory 4096 MiB for each ";
    assert!(note.contains(stated) && note.contains(", network none, profile "), "{note}");
    let servers = Servers::default().stdio("probe", "x", ["y"]).unwrap();
    let permissions = Permissions::from_yaml(&permissions(""), "p.yaml").unwrap();
    let built =
        Sandbox::builder().permissions(permissions).servers(servers).root(desk.project()).build().await;
    let error = built.err().unwrap();
    assert!(error.to_string().contains("not fit to be the helper"), "{error}");
}

#[tokio::test]
async fn a_helper_that_fails_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let servers = Servers::default().stdio("probe", &python()[0], [script("probe.py")]).unwrap();
    let permissions = Permissions::from_yaml(&permissions(""), "p.yaml").unwrap();
    let builder = Sandbox::builder().permissions(permissions).servers(servers).root(dir.path());
    let error = builder.helper("/bin/false").build().await.err().unwrap();
    assert!(error.to_string().contains("`isolation: kernel` can't be had: exit status: 1"), "{error}");
    assert!(!error.is_transient(), "{error}");
}
