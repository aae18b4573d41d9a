//! Servers in containers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coral_mcp::{Permissions, Sandbox, Servers, Variables};
use serde_json::json;

use crate::desk::Desk;
use crate::programs::{python, script};

fn permissions(engine: &str, image: &str, rules: &str) -> String {
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
    isolation: container
    image: "{image}"
    engine: "{engine}"
    project_read: ["/project"]
    write: ["/project/src"]
    memory_mib: 512
    processes: 64
    read: ["{prefix}", "{servers}"{rules}]
"#
    )
}

async fn desk(engine: &str, image: &str, rules: &str) -> Desk {
    let config = json!({"mcpServers": {"probe": {
        "command": python()[0],
        "args": [script("probe.py")],
        "env": {"API_KEY": "${SECRET}"},
    }}});
    let variables = Variables::new().with("SECRET", "hunter2hunter2");
    let servers = Servers::from_json(&config.to_string(), ".mcp.json", &variables).unwrap();
    let helper = env!("CARGO_BIN_EXE_coral-jail");
    Desk::with(&permissions(engine, image, rules), |b| b.servers(servers).helper(helper)).await
}

async fn attempt(desk: &Desk, what: &str, with: &str) -> Result<String, String> {
    let result = desk.call("dev", "probe__try", json!({"what": what, "with": with})).await.unwrap();
    let said = result.content.lines().nth(1).unwrap_or_default().to_owned();
    if result.is_error { Err(said) } else { Ok(said) }
}

/// Waits until `done`; the deadline ends a wait in vain.
async fn until(mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
}

/// By an engine that writes down what it is told, and starts no container.
#[tokio::test]
async fn an_engine_is_told_the_limits_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let engine = dir.path().join("engine");
    std::fs::copy(script("engine.sh"), &engine).unwrap();
    let engine = engine.display().to_string();
    let desk = desk(&engine, "present", "").await;
    assert!(attempt(&desk, "identity", "").await.is_ok());
    let calls = || std::fs::read_to_string(dir.path().join("calls")).unwrap();
    let (inspects, runs): (Vec<String>, Vec<String>) =
        calls().lines().map(str::to_owned).partition(|line| line.starts_with("image "));
    assert_eq!(inspects, ["image inspect --format {{.Id}} present"]);
    let [run] = runs.as_slice() else { panic!("{runs:?}") };
    let project = desk.project().display().to_string();
    for words in [
        "run --rm --interactive --pull never --name coral-",
        "--network none",
        "--read-only --cap-drop ALL --security-opt no-new-privileges",
        "--memory 536870912 --memory-swap 536870912",
        "--pids-limit 64",
        "--ulimit core=0:0",
        "--user ",
        "--tmpfs /tmp:rw,noexec,nosuid,nodev,size=268435456",
        &format!("--mount type=bind,source={project},target=/project,readonly"),
        &format!("--mount type=bind,source={project}/src,target=/project/src --"),
        "--env API_KEY --workdir /project",
    ] {
        assert!(run.contains(words), "{words}: {run}");
    }
    assert!(!run.contains("hunter2"), "what is in the arguments, all can see");
    let environment = std::fs::read_to_string(dir.path().join("environment")).unwrap();
    assert!(
        environment.contains("API_KEY=hunter2hunter2") && !environment.contains("CARGO"),
        "{environment}"
    );
    // The container goes when its client does, by whatever end.
    let name = run.split(' ').skip_while(|word| *word != "--name").nth(1).unwrap().to_owned();
    drop(desk);
    until(|| calls().contains(&format!("rm --force {name}"))).await;
}

#[tokio::test]
async fn an_image_that_is_not_here_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = dir.path().join("engine");
    std::fs::copy(script("engine.sh"), &engine).unwrap();
    let text = permissions(&engine.display().to_string(), "absent", "");
    let servers = Servers::default().stdio("probe", "x", ["y"]).unwrap();
    let built = Sandbox::builder()
        .permissions(Permissions::from_yaml(&text, "p.yaml").unwrap())
        .servers(servers)
        .helper(env!("CARGO_BIN_EXE_coral-jail"))
        .root(dir.path())
        .build()
        .await;
    let error = built.err().unwrap().to_string();
    assert!(error.contains("can't be had") && error.contains("no such image: absent"), "{error}");
}

#[tokio::test]
async fn variables_that_the_engine_needs_itself_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = dir.path().join("engine");
    std::fs::copy(script("engine.sh"), &engine).unwrap();
    let config = r#"{"mcpServers": {"probe": {"command": "x", "env": {"DOCKER_HOST": "tcp://evil:1"}}}}"#;
    let servers = Servers::from_json(config, ".mcp.json", &Variables::new()).unwrap();
    let helper = env!("CARGO_BIN_EXE_coral-jail");
    let text = permissions(&engine.display().to_string(), "present", "");
    let desk = Desk::with(&text, |b| b.servers(servers).helper(helper)).await;
    let error = desk.call("dev", "probe__try", json!({})).await.unwrap_err().to_string();
    assert!(error.contains("`DOCKER_HOST` can't be set"), "{error}");
}

/// A podman that works here, as a program in `dir`; with the reason if there is none.
fn podman(dir: &Path) -> Result<String, String> {
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let rootfs = dir.join("rootfs");
    for path in ["usr", "lib", "lib64", "etc", "project", "tmp", "proc", "dev", "sys"] {
        std::fs::create_dir_all(rootfs.join(path)).map_err(|error| error.to_string())?;
    }
    let archive = dir.join("rootfs.tar");
    run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&rootfs).arg("."))?;
    let mut problem = String::new();
    // Not each of the runtimes goes with each kind of control groups.
    for runtime in ["crun", "runc"] {
        let engine = dir.join("podman");
        let text = format!("#!/bin/sh\nexec podman --runtime {runtime} \"$@\"\n");
        std::fs::write(&engine, text).map_err(|error| error.to_string())?;
        std::fs::set_permissions(&engine, PermissionsExt::from_mode(0o755))
            .map_err(|error| error.to_string())?;
        let tried =
            run(Command::new(&engine).arg("import").arg(&archive).arg("coral-empty:test")).and_then(|()| {
                run(Command::new(&engine)
                    .args([
                        "run",
                        "--rm",
                        "--pull",
                        "never",
                        "--network",
                        "none",
                        "--pids-limit",
                        "64",
                        "--memory",
                        "64m",
                    ])
                    .args([
                        "--ulimit",
                        "nofile=1024:1024",
                        "--ulimit",
                        "nproc=4096:4096",
                        "-v",
                        "/usr:/usr:ro",
                        "-v",
                        "/lib:/lib:ro",
                    ])
                    .args(["-v", "/lib64:/lib64:ro", "coral-empty:test", "/usr/bin/true"]))
            });
        match tried {
            Ok(()) => return Ok(engine.display().to_string()),
            Err(error) => problem = format!("{problem}{runtime}: {error}\n"),
        }
    }
    Err(problem)
}

/// In a real container, where podman is here and works.
#[tokio::test]
async fn a_server_in_a_container_stays_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = match podman(dir.path()) {
        Ok(engine) => engine,
        Err(why) => {
            // One that is here and does not work is a fault, and not a reason to look away.
            let found = Command::new("podman").arg("--version").output();
            assert!(found.is_err(), "podman is here and does not work: {why}");
            return println!("there is no podman here");
        }
    };
    // The image is empty: what the server runs on comes from outside, to be read only.
    let desk = desk(&engine, "localhost/coral-empty:test", r#", "/usr", "/lib", "/lib64""#).await;
    assert_eq!(attempt(&desk, "variable", "API_KEY").await.unwrap(), "[secret]");
    assert_eq!(attempt(&desk, "read", "/project/docs/plan.md").await.unwrap(), "# Plan");
    assert_eq!(attempt(&desk, "write", "/project/src/new.rs").await.unwrap(), "written");
    assert_eq!(desk.read("src/new.rs"), "pwned");
    for path in ["/project/docs/new.md", "/usr/pwned", "/pwned"] {
        assert!(attempt(&desk, "write", path).await.unwrap_err().contains("Read-only"), "{path}");
    }
    let secret = desk.outside().join("secret.txt").display().to_string();
    assert_eq!(attempt(&desk, "exists", &secret).await.unwrap(), "False");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(attempt(&desk, "connect", &listener.local_addr().unwrap().to_string()).await.is_err());
    assert!(listener.accept().is_err());
    let identity = attempt(&desk, "identity", "").await.unwrap();
    assert!(
        identity.contains("\"CapEff\": \"0000000000000000\"") && identity.contains("\"NoNewPrivs\": \"1\""),
        "{identity}"
    );
    let bomb = attempt(&desk, "fork_bomb", "").await.unwrap();
    assert!(bomb.starts_with("stopped at "), "{bomb}");
    let name = format!("name=^coral-{}-", std::process::id());
    let listed = || {
        let output =
            Command::new(&engine).args(["ps", "--all", "--quiet", "--filter", &name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_ne!(listed(), "");
    drop(desk);
    until(|| listed().is_empty()).await;
}
