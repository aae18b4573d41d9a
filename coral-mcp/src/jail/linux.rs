//! The two stages of the helper.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{
    Resource, Rlimit, Signal, getgid, getppid, getuid, set_parent_process_death_signal, setrlimit,
};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::{FLAG, Jail};

/// Where the server may put what it needs for a while: memory that goes with it.
const SCRATCH: &str = "/dev/shm";

/// How many processes and threads a server may have.
const MAX_PROCESSES: u64 = 1_024;

/// What nearly every program reads: libraries, certificates, names. Nothing of it is secret.
const SYSTEM: [&str; 28] = [
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

/// Becomes the server, or says why it could not.
pub(super) fn run(mut args: impl Iterator<Item = OsString>) -> Result<Infallible, String> {
    let spec = args.next().and_then(|spec| spec.into_string().ok()).ok_or("its description is missing")?;
    let jail: Jail = serde_json::from_str(&spec).or_else(failed("reading its description"))?;
    let command: Vec<OsString> = args.collect();
    set_parent_process_death_signal(Some(Signal::KILL)).or_else(failed("binding to the parent"))?;
    if jail.inner { inner(&jail, &command) } else { outer(jail, &command) }
}

fn outer(mut jail: Jail, command: &[OsString]) -> Result<Infallible, String> {
    // The parent may have died before the signal was set.
    if getppid().is_none_or(|pid| pid.as_raw_nonzero().get().unsigned_abs() != jail.parent) {
        return Err("the program that wanted it is gone".to_owned());
    }
    close_inherited()?;
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let mut flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if !jail.network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).or_else(failed("making namespaces (the system may forbid them to unprivileged users)"))?;
    map_ids(0, uid, 0, gid)?;
    jail.inner = true;
    let spec = serde_json::to_string(&jail).or_else(failed("writing its description"))?;
    let mut child = Command::new("/proc/self/exe");
    child.arg(FLAG).arg(spec).args(command);
    let status =
        child.spawn().and_then(|mut child| child.wait()).or_else(failed("starting the inner stage"))?;
    std::process::exit(status.code().unwrap_or(125));
}

fn inner(jail: &Jail, command: &[OsString]) -> Result<Infallible, String> {
    let [program, args @ ..] = command else { return Err("there is no command".to_owned()) };
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .or_else(failed("keeping mounts to itself"))?;
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", quiet, None).or_else(failed("mounting /proc"))?;
    bound_processes()?;
    mount("tmpfs", SCRATCH, "tmpfs", quiet, Some(c"size=256m,mode=0700"))
        .or_else(failed("mounting a scratch directory"))?;
    // A second user namespace, in which it is nobody: the rights over the first are gone for good
    // once the server runs.
    unshare(CloneFlags::CLONE_NEWUSER).or_else(failed("giving up rights"))?;
    map_ids(1_000, 0, 1_000, 0)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, 4_096)?;
    // Counted within its own user namespace; the kernel does not count for the system's root.
    limit(Resource::Nproc, MAX_PROCESSES)?;
    limit(Resource::Fsize, 1 << 30)?;
    limit(Resource::Data, 4 << 30)?;
    fence_files(jail)?;
    fence_calls()?;
    let error = Command::new(program).args(args).env("HOME", SCRATCH).env("TMPDIR", SCRATCH).exec();
    Err(format!("starting `{}`: {error}", program.to_string_lossy()))
}

/// Bounds the processes of the namespace by their highest number, which holds for root too.
fn bound_processes() -> Result<(), String> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").or_else(failed("reading the kernel's release"))?;
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    // Before that the number was one for the whole system, and must not be touched.
    if (parts.next(), parts.next()) < (Some(6), Some(14)) {
        return Ok(());
    }
    fs::write("/proc/sys/kernel/pid_max", MAX_PROCESSES.to_string()).or_else(failed("bounding processes"))
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

/// System calls that no tool server needs and that widen what can be attacked.
const FORBIDDEN: [libc::c_long; 41] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Kinds of sockets that reach past the network namespace (a container engine's socket is a file)
/// or into the kernel.
const FORBIDDEN_SOCKETS: [i32; 6] =
    [libc::AF_UNIX, libc::AF_VSOCK, libc::AF_PACKET, libc::AF_ALG, libc::AF_KEY, libc::AF_BLUETOOTH];

fn fence_calls() -> Result<(), String> {
    let built = || -> Result<_, seccompiler::BackendError> {
        let arch: TargetArch = std::env::consts::ARCH.try_into()?;
        let is = |arg: u8, op: SeccompCmpOp, value: u64| {
            SeccompRule::new(vec![SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)?])
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            FORBIDDEN.into_iter().map(|call| (call, Vec::new())).collect();
        let sockets = FORBIDDEN_SOCKETS
            .into_iter()
            .map(|kind| is(0, SeccompCmpOp::Eq, u64::from(kind.unsigned_abs())))
            .collect::<Result<_, _>>()?;
        rules.insert(libc::SYS_socket, sockets);
        let new_user = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
        rules.insert(libc::SYS_clone, vec![is(0, SeccompCmpOp::MaskedEq(new_user), new_user)?]);
        let errno = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
        let forbid = SeccompFilter::new(rules, SeccompAction::Allow, errno(libc::EPERM), arch)?;
        // Its flags lie in memory, where a filter can't look; told that it is not there, the C
        // library takes `clone`.
        let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let absent = SeccompFilter::new(absent, SeccompAction::Allow, errno(libc::ENOSYS), arch)?;
        Ok([forbid.try_into()?, absent.try_into()?])
    };
    let programs: [seccompiler::BpfProgram; 2] = built().or_else(failed("fencing system calls"))?;
    for program in &programs {
        seccompiler::apply_filter(program).or_else(failed("fencing system calls"))?;
    }
    Ok(())
}
