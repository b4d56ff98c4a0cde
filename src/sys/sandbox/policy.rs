//! Which thread may do what: the one place where that is decided.
//!
//! | thread | capabilities | system calls beyond memory, locks, time, read, write and its own end |
//! |---|---|---|
//! | control | `CAP_NET_ADMIN` | waiting, UDP sockets, datagrams, the interface's carrier, answering on the status socket and taking it away, opening files to read them where landlock says which |
//! | egress loop | none | waiting, `readv` from the interface, sending |
//! | ingress loop | none | waiting, `writev` to the interface, receiving |
//! | helper that looks names up | none | all but those that run programs, look into others or reach deep into the kernel |
//!
//! No thread of the link can write or make a file, start a thread, a process or a program, make memory executable, connect a
//! socket or send a signal to anyone but itself. Each list is what Linux needs for what the code does, with glibc and musl.

use caps::Capability;
use libc::{
    SYS_accept4, SYS_bind, SYS_bpf, SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group, SYS_fcntl, SYS_fstat, SYS_futex, SYS_getpid,
    SYS_getrandom, SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_io_uring_enter, SYS_io_uring_register,
    SYS_io_uring_setup, SYS_ioctl, SYS_keyctl, SYS_kill, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap,
    SYS_nanosleep, SYS_newfstatat, SYS_openat, SYS_perf_event_open, SYS_pidfd_getfd, SYS_pidfd_send_signal, SYS_ppoll,
    SYS_process_vm_readv, SYS_process_vm_writev, SYS_ptrace, SYS_read, SYS_readv, SYS_recvfrom, SYS_recvmmsg,
    SYS_recvmsg, SYS_restart_syscall, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity,
    SYS_sched_yield, SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_set_robust_list, SYS_setns, SYS_setsockopt,
    SYS_shutdown, SYS_sigaltstack, SYS_socket, SYS_statx, SYS_tgkill, SYS_timerfd_settime, SYS_unlinkat, SYS_unshare,
    SYS_userfaultfd, SYS_wait4, SYS_waitid, SYS_write, SYS_writev, c_long,
};

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything of a link that waits.
    Control {
        /// Whether it reads its config again. Only where landlock holds: else it could read whatever its user can.
        reads: bool,
    },
    /// From the interface to the wire.
    Egress,
    /// From the wire to the interface.
    Ingress,
    /// The helper process that looks names up.
    Names,
}

pub(super) fn capabilities(role: Role) -> &'static [Capability] {
    match role {
        // For addresses, routes, rules and the MTU, whenever another program has changed them, and for marks of later sockets.
        Role::Control { .. } => &[Capability::CAP_NET_ADMIN],
        _ => &[],
    }
}

/// A system call, and with which arguments.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// With any.
    Any(c_long),
    /// For memory that is not executable (mmap(2), mprotect(2)).
    Memory(c_long),
    /// For a UDP socket (socket(2)).
    Udp(c_long),
    /// To the process itself (tgkill(2)).
    Own(c_long),
    /// To read a file only (openat(2)); the number says which argument has the flags.
    Read(c_long, u8),
    /// For this request alone (ioctl(2)).
    Request(c_long, u32),
    /// For whether a descriptor is open (fcntl(2)): what the standard library asks before it closes one, in debug builds.
    IsOpen(c_long),
}

/// What a filter says of the calls it names.
pub(super) enum Calls {
    /// There are no others.
    Only(Vec<Call>),
    /// All but these may be called.
    AllBut(Vec<Call>),
}

pub(super) fn calls(role: Role) -> Calls {
    let link = |own: &[c_long], own_if: &[Call]| {
        let any = COMMON.iter().chain(OLDER).chain(own).copied().map(Call::Any);
        Calls::Only(any.chain(COMMON_IF).chain(own_if.iter().copied()).collect())
    };
    match role {
        Role::Control { reads: true, .. } => link(&[CONTROL, LOOKING].concat(), &[&CONTROL_IF[..], READING].concat()),
        Role::Control { .. } => link(CONTROL, &CONTROL_IF),
        Role::Egress => link(EGRESS, &[]),
        Role::Ingress => link(INGRESS, &[]),
        Role::Names => Calls::AllBut(DANGEROUS.iter().copied().map(Call::Any).collect()),
    }
}

/// Memory, locks, time, randomness, waking another thread, a line to the log, the end.
const COMMON: &[c_long] = &[
    SYS_brk,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_madvise,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_ppoll,
    SYS_read,
    SYS_restart_syscall,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_write,
    SYS_writev,
];

/// What of that depends on the arguments.
const COMMON_IF: [Call; 4] =
    [Call::Memory(SYS_mmap), Call::Memory(SYS_mprotect), Call::Own(SYS_tgkill), Call::IsOpen(SYS_fcntl)];

/// What newer processors have only under another name.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

const EGRESS: &[c_long] = &[SYS_readv, SYS_sendmsg, SYS_sendmmsg];

/// `writev` is common.
const INGRESS: &[c_long] = &[SYS_recvmmsg];

const CONTROL: &[c_long] = &[
    // Waiting.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_timerfd_settime,
    // The engine's datagrams, netlink, the helper, who asks for the status.
    SYS_accept4,
    SYS_getsockopt,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_shutdown,
    // Another UDP port.
    SYS_bind,
    SYS_getsockname,
    SYS_setsockopt,
    // The end: the status socket, and the helper.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    SYS_unlinkat,
    SYS_wait4,
    SYS_waitid,
];

const CONTROL_IF: [Call; 2] = [Call::Udp(SYS_socket), Call::Request(SYS_ioctl, libc::TUNSETCARRIER as u32)];

/// To read the config again: what a file is …
const LOOKING: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
];

/// … and what is in it.
const READING: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    Call::Read(libc::SYS_open, 1),
    Call::Read(SYS_openat, 2),
];

/// getaddrinfo(3) does what the machine's name services are made of, so there is no list of what it needs.
const DANGEROUS: &[c_long] = &[
    SYS_bpf,
    SYS_execve,
    SYS_execveat,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_io_uring_setup,
    SYS_keyctl,
    SYS_kill,
    SYS_perf_event_open,
    SYS_pidfd_getfd,
    SYS_pidfd_send_signal,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_ptrace,
    SYS_setns,
    SYS_unshare,
    SYS_userfaultfd,
];
