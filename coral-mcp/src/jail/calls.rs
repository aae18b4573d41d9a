//! The system calls that a server may make.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// System calls that no tool server needs and that widen what can be attacked.
const FORBIDDEN: [libc::c_long; 42] = [
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
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Kinds of sockets that reach past the network namespace (a container engine's socket is a file)
/// or into the kernel.
const FORBIDDEN_SOCKETS: [i32; 6] =
    [libc::AF_UNIX, libc::AF_VSOCK, libc::AF_PACKET, libc::AF_ALG, libc::AF_KEY, libc::AF_BLUETOOTH];

/// Memory that belongs to no process, which only a control group counts.
const SHARED_MEMORY: [libc::c_long; 3] = [libc::SYS_memfd_create, libc::SYS_memfd_secret, libc::SYS_shmget];

/// `is_counted` tells that a control group counts all memory; else what no limit of a process counts is
/// refused.
pub(super) fn fence(is_counted: bool) -> Result<(), String> {
    let programs = programs(is_counted).map_err(|error| format!("fencing system calls: {error}"))?;
    for program in &programs {
        seccompiler::apply_filter(program).map_err(|error| format!("fencing system calls: {error}"))?;
    }
    Ok(())
}

fn programs(is_counted: bool) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let is = |arg: u8, op: SeccompCmpOp, value: u64| {
        SeccompRule::new(vec![SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)?])
    };
    let errno = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    let filter = |rules: BTreeMap<i64, Vec<SeccompRule>>, action: SeccompAction| {
        SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()
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
    // Its flags lie in memory, where a filter can't look; told that it is not there, the C
    // library takes `clone`.
    let mut absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let mut without_room = BTreeMap::new();
    if !is_counted {
        absent.extend(SHARED_MEMORY.map(|call| (call, Vec::new())));
        let shared = u64::from((libc::MAP_SHARED | libc::MAP_ANONYMOUS).unsigned_abs());
        without_room.insert(libc::SYS_mmap, vec![is(3, SeccompCmpOp::MaskedEq(shared), shared)?]);
    }
    // A server that unbinds itself from its owner would outlive it. It is told that it did.
    let bound = u64::from(libc::PR_SET_PDEATHSIG.unsigned_abs());
    let ignored = BTreeMap::from([(libc::SYS_prctl, vec![is(0, SeccompCmpOp::Eq, bound)?])]);
    let mut programs = vec![
        filter(rules, errno(libc::EPERM))?,
        filter(absent, errno(libc::ENOSYS))?,
        filter(ignored, errno(0))?,
    ];
    if !without_room.is_empty() {
        programs.push(filter(without_room, errno(libc::ENOMEM))?);
    }
    if matches!(arch, TargetArch::x86_64) {
        programs.push(no_x32());
    }
    Ok(programs)
}

/// The same calls have second numbers on x86-64, from the x32 interface, which rules by number
/// would miss.
fn no_x32() -> BpfProgram {
    const X32_BIT: u32 = 0x4000_0000;
    /// Load a word, jump if greater or equal, return: Linux' `BPF_LD | BPF_W | BPF_ABS`,
    /// `BPF_JMP | BPF_JGE | BPF_K` and `BPF_RET | BPF_K`.
    const LOAD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let instruction = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    vec![
        // The call's number is the first word of what a filter sees.
        instruction(LOAD, 0, 0),
        instruction(JUMP_IF_AT_LEAST, 1, X32_BIT),
        instruction(RETURN, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
        instruction(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
