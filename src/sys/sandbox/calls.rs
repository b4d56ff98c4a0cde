//! Which system calls a thread can make (seccomp(2)).

use super::policy::{self, Call, Calls, Role};
use libc::{c_int, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;

/// What an unlisted call comes to. A C library that tries a newer call first takes this for an older kernel and goes on to the
/// call it used before, which is listed: a link must not die in the night because of an update. Killing would be the
/// alternative; see docs/ARCHITECTURE.md.
const UNLISTED: SeccompAction = SeccompAction::Errno(libc::ENOSYS as u32);
const FORBIDDEN: SeccompAction = SeccompAction::Errno(libc::EPERM as u32);

pub(super) fn restrict(role: Role) -> io::Result<()> {
    let program = program(role).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

fn program(role: Role) -> Result<BpfProgram, BackendError> {
    let (calls, named, others) = match policy::calls(role) {
        Calls::Only(calls) => (calls, SeccompAction::Allow, UNLISTED),
        Calls::AllBut(calls) => (calls, FORBIDDEN, SeccompAction::Allow),
    };
    let rules = calls.into_iter().map(rule).collect::<Result<BTreeMap<_, _>, _>>()?;
    SeccompFilter::new(rules, others, named, ARCH.try_into()?)?.try_into()
}

/// A call's number, and the arguments it may have: one of the rules, where there are any.
fn rule(call: Call) -> Result<(c_long, Vec<SeccompRule>), BackendError> {
    let masked = |argument, mask: c_int, value| equal(argument, SeccompCmpOp::MaskedEq(mask as u64), value);
    let only = |condition| Ok(vec![SeccompRule::new(vec![condition])?]);
    let (number, rules) = match call {
        Call::Any(number) => (number, Vec::new()),
        Call::Memory(number) => (number, only(masked(2, libc::PROT_EXEC, 0)?)?),
        Call::Own(number) => (number, only(equal(0, SeccompCmpOp::Eq, std::process::id() as c_int)?)?),
        Call::Read(number, flags) => {
            let changes = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
            (number, only(masked(flags, changes, libc::O_RDONLY)?)?)
        }
        Call::Request(number, request) => (number, only(equal(1, SeccompCmpOp::Eq, request as c_int)?)?),
        Call::IsOpen(number) => (number, only(equal(1, SeccompCmpOp::Eq, libc::F_GETFD)?)?),
        Call::Udp(number) => {
            // The bits above are SOCK_NONBLOCK and SOCK_CLOEXEC.
            let datagram = masked(1, 0xf, libc::SOCK_DGRAM)?;
            let of = |family| SeccompRule::new(vec![equal(0, SeccompCmpOp::Eq, family)?, datagram.clone()]);
            (number, vec![of(libc::AF_INET)?, of(libc::AF_INET6)?])
        }
    };
    Ok((number, rules))
}

fn equal(argument: u8, how: SeccompCmpOp, value: c_int) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value as u64)
}
