//! Giving up every privilege: credentials, capabilities, seccomp.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::check;

/// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`: two words of 32 capabilities each.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Header of `capget` and `capset`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// One word of the three capability sets.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Number of threads of this process.
///
/// # Errors
///
/// If `/proc` is not mounted.
pub fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Drops the supplementary groups and becomes `gid` and `uid`, real, effective and saved.
///
/// # Errors
///
/// EPERM without CAP_SETGID or CAP_SETUID.
pub fn drop_credentials(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: No group is given, so the pointer is not read.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: Takes no pointer.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: Takes no pointer.
    check(unsafe { libc::setresuid(uid, uid, uid) })?;
    Ok(())
}

/// Empties the ambient set and, while CAP_SETPCAP is held, the bounding set.
///
/// # Errors
///
/// EPERM without CAP_SETPCAP.
pub fn drop_capability_bounds() -> io::Result<()> {
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
    )?;
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // The kernel knows no capability of this number, and none above it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Empties the effective, permitted and inheritable sets of the calling thread.
///
/// # Errors
///
/// What `capset` reports; EPERM if, against all expectation, one is still held afterwards.
pub fn drop_capabilities() -> io::Result<()> {
    let mut header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: The kernel reads one header and, for this version, two words of data.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    check(result as libc::c_int)?;
    // SAFETY: The kernel writes, for this version, two words to `data`.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    check(result as libc::c_int)?;
    if data == [CapabilityData::default(); 2] {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Makes exec unable to gain anything, and the process neither traceable nor dumped by its equals.
///
/// # Errors
///
/// What prctl reports.
pub fn forbid_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// Installs the list of system calls that remain; all others fail with EPERM from here on.
///
/// # Errors
///
/// If the kernel has no seccomp, or there is no filter for this architecture.
pub fn restrict_system_calls() -> io::Result<()> {
    // glibc tries clone3 first, whose flags a filter cannot see, and falls back on ENOSYS alone.
    let hidden = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let first = program(
        hidden,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
    );
    let second = program(
        allowed().map_err(io::Error::other)?,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
    );
    for filter in [first?, second?] {
        seccompiler::apply_filter_all_threads(&filter).map_err(io::Error::other)?;
    }
    Ok(())
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> io::Result<BpfProgram> {
    let architecture = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    SeccompFilter::new(rules, otherwise, matched, architecture)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)
}

/// What an interpreter with an event loop, and the workers, need on descriptors that are open.
const PLAIN: &[libc::c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Sockets that are open already.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_listen,
    libc::SYS_shutdown,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Memory; mmap and mprotect stand in `allowed`.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads and signals.
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Hidden by the filter before this one.
    libc::SYS_clone3,
    // Time, randomness and who we are.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Older calls of the same kinds, which only this architecture has.
#[cfg(target_arch = "x86_64")]
const PLAIN_OLD: &[libc::c_long] = &[
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const PLAIN_OLD: &[libc::c_long] = &[];

/// Requests of ioctl: blocking mode, bytes waiting, close-on-exec, "is it a terminal".
const IOCTLS: &[libc::Ioctl] = &[
    libc::FIONBIO,
    libc::FIONREAD,
    libc::FIOCLEX,
    libc::FIONCLEX,
    libc::TCGETS,
];

/// Commands of fcntl: flags and duplicates, no locks, leases, owners or notifications.
const FCNTLS: &[libc::c_int] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
];

type Rules = Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError>;

/// The whole list, with conditions on arguments.
fn allowed() -> Rules {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let rule = |argument, length, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(
            argument, length, operator, value,
        )?])
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = PLAIN
        .iter()
        .chain(PLAIN_OLD)
        .map(|&call| (call, Vec::new()))
        .collect();
    for &request in IOCTLS {
        let request = rule(1, Dword, Eq, request)?;
        rules.entry(libc::SYS_ioctl).or_default().push(request);
    }
    for &command in FCNTLS {
        let command = rule(1, Dword, Eq, command as u64)?;
        rules.entry(libc::SYS_fcntl).or_default().push(command);
    }
    // Threads, but no processes.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(
        libc::SYS_clone,
        vec![rule(0, Dword, MaskedEq(thread), thread)?],
    );
    // No memory that can be executed.
    let executable = MaskedEq(libc::PROT_EXEC as u64);
    rules.insert(libc::SYS_mmap, vec![rule(2, Dword, executable.clone(), 0)?]);
    rules.insert(libc::SYS_mprotect, vec![rule(2, Dword, executable, 0)?]);
    // fstat, as newer C libraries call it.
    let empty_path = libc::AT_EMPTY_PATH as u64;
    rules.insert(
        libc::SYS_newfstatat,
        vec![rule(3, Dword, MaskedEq(empty_path), empty_path)?],
    );
    // Limits may be read.
    rules.insert(libc::SYS_prlimit64, vec![rule(2, Qword, Eq, 0)?]);
    // Threads may be named.
    rules.insert(
        libc::SYS_prctl,
        vec![rule(0, Dword, Eq, libc::PR_SET_NAME as u64)?],
    );
    // A process may abort itself.
    rules.insert(
        libc::SYS_tgkill,
        vec![rule(0, Dword, Eq, u64::from(std::process::id()))?],
    );
    Ok(rules)
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: None of the options used here takes a pointer.
    check(unsafe { libc::prctl(option, value, zero, zero, zero) })?;
    Ok(())
}
