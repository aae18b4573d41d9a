//! The stages of the helper.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::StatVfsMountFlags;
use rustix::io::FdFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
use rustix::pipe::PipeFlags;
use rustix::process::{
    Resource, Rlimit, Signal, getgid, getuid, set_parent_process_death_signal, setrlimit, setsid,
};

use super::{FLAG, Jail, Network, Stage, calls, cgroup, loopback, strict, watch};

/// Where the server may put what it needs for a while: memory that goes with it.
pub(super) const SCRATCH: &str = "/dev/shm";

/// How much that may be.
pub(super) const SCRATCH_BYTES: u64 = 256 << 20;

/// Reads as `/dev/zero` does, and can't be mapped: mapped, that is memory which only a control group counts.
pub(super) const ZEROES: &str = "/dev/full";

/// What nearly every program reads: libraries, certificates, names. Nothing of it is secret.
pub(super) const SYSTEM: [&str; 28] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/opt",
    "/proc",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/os-release",
    "/etc/gitconfig",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/dev/urandom",
    "/dev/random",
];

fn failed<T, E: Display>(what: &'static str) -> impl FnOnce(E) -> Result<T, String> {
    move |error| Err(format!("{what}: {error}"))
}

/// Becomes the server, or says why it could not. Without a command it does everything but that.
pub(super) fn run(mut args: impl Iterator<Item = OsString>) -> Result<Infallible, String> {
    let spec = args.next().and_then(|spec| spec.into_string().ok()).ok_or("its description is missing")?;
    let jail: Jail = serde_json::from_str(&spec).or_else(failed("reading its description"))?;
    let command: Vec<OsString> = args.collect();
    match jail.stage.clone() {
        Stage::Outer => outer(jail, &command),
        Stage::Inner { lifeline } => {
            set_parent_process_death_signal(Some(Signal::KILL)).or_else(failed("binding to the parent"))?;
            check_lifeline(lifeline)?;
            mount_own(&jail)?;
            mask(&jail)?;
            inner(&jail, &command)
        }
        Stage::Wrapped { lifeline } => {
            check_lifeline(lifeline)?;
            inner(&jail, &command)
        }
        Stage::Container { engine, name } => watch::contain(jail, &engine, &name, &command),
        Stage::Reaper { engine, name } => watch::reap(jail.parent, &engine, &name),
    }
}

fn outer(mut jail: Jail, command: &[OsString]) -> Result<Infallible, String> {
    close_inherited()?;
    let owner = watch::owner(jail.parent)?;
    if let Some(group) = &jail.cgroup {
        cgroup::join(group)?;
    }
    let (reads, _writes) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).or_else(failed("making a pipe"))?;
    // The reading end goes on to the inner stage, which sees by it whether this one still lives.
    rustix::io::fcntl_setfd(&reads, FdFlags::empty()).or_else(failed("making a pipe"))?;
    let lifeline = std::os::fd::AsRawFd::as_raw_fd(&reads);
    let mut child = match jail.bwrap.take() {
        Some(bwrap) => {
            let helper = std::env::current_exe().or_else(failed("finding the helper"))?;
            let cwd = std::env::current_dir().or_else(failed("finding the directory"))?;
            jail.stage = Stage::Wrapped { lifeline };
            let mut child = Command::new(bwrap);
            child.args(strict::arguments(&jail, &helper, &cwd));
            child
        }
        None => {
            make_namespaces(jail.network)?;
            jail.stage = Stage::Inner { lifeline };
            Command::new("/proc/self/exe")
        }
    };
    let spec = serde_json::to_string(&jail).or_else(failed("writing its description"))?;
    let child =
        child.arg(FLAG).arg(spec).args(command).spawn().or_else(failed("starting the inner stage"))?;
    drop(reads);
    watch::until_either_ends(child, &owner)
}

fn make_namespaces(network: Network) -> Result<(), String> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let mut flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if network != Network::Host {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).or_else(failed("making namespaces (the system may forbid them to unprivileged users)"))?;
    map_ids(0, uid, 0, gid)?;
    if network == Network::Proxy { loopback::up() } else { Ok(()) }
}

/// The outer stage may have been killed before this one was bound to it.
fn check_lifeline(lifeline: i32) -> Result<(), String> {
    let nonblock =
        i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).or_else(failed("watching its parent"))?;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(format!("/proc/self/fd/{lifeline}"))
        .and_then(|mut pipe| pipe.read(&mut [0]));
    match file {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => close_inherited(),
        Ok(_) => Err("the program that wanted it is gone".to_owned()),
        Err(error) => Err(format!("watching its parent: {error}")),
    }
}

/// What the server may see of processes, and a scratch directory.
fn mount_own(jail: &Jail) -> Result<(), String> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .or_else(failed("keeping mounts to itself"))?;
    if jail.cgroup.is_none() {
        mount_bind(ZEROES, "/dev/zero").or_else(failed("covering /dev/zero"))?;
    }
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", quiet, None).or_else(failed("mounting /proc"))?;
    let options = CString::new(format!("size={SCRATCH_BYTES},mode=0700"))
        .or_else(failed("mounting a scratch directory"))?;
    mount("tmpfs", SCRATCH, "tmpfs", quiet, Some(&*options)).or_else(failed("mounting a scratch directory"))
}

/// Covers what must not be seen, and what must not be changed. What is not there can't be covered.
fn mask(jail: &Jail) -> Result<(), String> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for path in jail.frozen.iter().filter(|path| path.exists()) {
        mount_bind(path, path).or_else(failed("covering a place"))?;
        // What the system has set on the file system can't be unset, and must be said again.
        let flags = rustix::fs::statvfs(path).or_else(failed("covering a place"))?.f_flag;
        let mut again = MountFlags::BIND | MountFlags::RDONLY;
        for (set, flag) in [
            (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
            (StatVfsMountFlags::NODEV, MountFlags::NODEV),
            (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
            (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
            (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
            (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
        ] {
            if flags.contains(set) {
                again |= flag;
            }
        }
        mount_remount(path, again, "").or_else(failed("covering a place"))?;
    }
    for path in &jail.hidden {
        if path.is_dir() {
            mount("tmpfs", path, "tmpfs", quiet | MountFlags::RDONLY, Some(c"size=4k,mode=0000"))
                .or_else(failed("covering a place"))?;
        } else if path.exists() {
            mount_bind("/dev/null", path).or_else(failed("covering a place"))?;
        }
    }
    Ok(())
}

fn inner(jail: &Jail, command: &[OsString]) -> Result<Infallible, String> {
    let bounded = bound_processes(jail.processes)?;
    let proxy = (jail.network == Network::Proxy).then(loopback::hand_out).transpose()?;
    // A second user namespace, in which it is nobody: the rights over the first are gone for good
    // once the server runs.
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let is_root = is_root();
    unshare(CloneFlags::CLONE_NEWUSER).or_else(failed("giving up rights"))?;
    map_ids(1_000, uid, 1_000, gid)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, 4_096)?;
    // Counted within its own user namespace; the kernel does not count for the system's root.
    limit(Resource::Nproc, jail.processes)?;
    if !bounded && is_root && jail.cgroup.is_none() {
        return Err("the number of processes can't be bounded: before Linux 6.14 root's are not counted \
                    without a control group; run it as another user"
            .to_owned());
    }
    limit(Resource::Fsize, 1 << 30)?;
    limit(Resource::Data, jail.memory)?;
    // Of no terminal, and in no group that others share.
    let _ = setsid();
    if matches!(jail.stage, Stage::Inner { .. }) {
        // A change of rights may have unbound it.
        set_parent_process_death_signal(Some(Signal::KILL)).or_else(failed("binding to the parent"))?;
    }
    fence_files(jail)?;
    calls::fence(jail.cgroup.is_some())?;
    let [program, args @ ..] = command else { std::process::exit(0) };
    let mut server = Command::new(program);
    server.args(args).env("HOME", SCRATCH).env("TMPDIR", SCRATCH);
    if let Some(port) = proxy {
        let proxy = format!("http://127.0.0.1:{port}");
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            server.env(name, &proxy);
        }
        // Node looks at them only when it is told to.
        server.env("NODE_USE_ENV_PROXY", "1");
    }
    Err(format!("starting `{}`: {}", program.to_string_lossy(), server.exec()))
}

/// Whether it may be the system's root that started it all, whatever it is called in here: that is
/// whom the kernel does not count for.
fn is_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(1).is_none_or(|outside| outside == "0")
}

/// Bounds the processes of the namespace by their highest number, which holds for root too. Tells
/// whether the kernel could.
fn bound_processes(most: u64) -> Result<bool, String> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").or_else(failed("reading the kernel's release"))?;
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    // Before that the number was one for the whole system, and must not be touched.
    if (parts.next(), parts.next()) < (Some(6), Some(14)) {
        return Ok(false);
    }
    // The kernel takes no smaller number than this.
    let most = most.max(301).to_string();
    fs::write("/proc/sys/kernel/pid_max", most).or_else(failed("bounding processes"))?;
    Ok(true)
}

fn close_inherited() -> Result<(), String> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .or_else(failed("listing open files"))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The one that listed them is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

fn map_ids(uid: u32, outer_uid: u32, gid: u32, outer_gid: u32) -> Result<(), String> {
    let write = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text);
    write("setgroups", "deny".to_owned())
        .and_then(|()| write("uid_map", format!("{uid} {outer_uid} 1")))
        .and_then(|()| write("gid_map", format!("{gid} {outer_gid} 1")))
        .or_else(failed("mapping users"))
}

fn limit(resource: Resource, wanted: u64) -> Result<(), String> {
    let now = rustix::process::getrlimit(resource);
    let most = now.maximum.map_or(wanted, |most| most.min(wanted));
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).or_else(failed("setting limits"))
}

/// Landlock: files can be reached under the given directories alone, abstract sockets and
/// processes outside of it not at all.
fn fence_files(jail: &Jail) -> Result<(), String> {
    let read = AccessFs::from_read(ABI::V5);
    let all = AccessFs::from_all(ABI::V5);
    let there = |paths: &[PathBuf]| paths.iter().filter(|p| p.exists()).cloned().collect::<Vec<_>>();
    let system: Vec<&Path> = SYSTEM.iter().map(Path::new).filter(|path| path.exists()).collect();
    let mut writable = there(&jail.write);
    writable.extend([SCRATCH, "/dev/null", "/dev/zero", "/dev/full"].map(PathBuf::from));
    let build = || -> Result<_, landlock::RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V3))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rules(path_beneath_rules(system, read))?
            .add_rules(path_beneath_rules(there(&jail.read), read))?
            .add_rules(path_beneath_rules(writable, all))?
            .restrict_self()
    };
    let status = build().or_else(failed("fencing files (Landlock)"))?;
    if status.ruleset == RulesetStatus::NotEnforced || !status.no_new_privs {
        return Err("fencing files (Landlock): the kernel does not enforce it".to_owned());
    }
    Ok(())
}
