//! `tieline up`: one link in the foreground, until a signal ends it.

use std::process::ExitCode;
use std::time::Duration;

use super::{FAILED, Failure, NamesArgs, UpArgs, check};
use crate::config::Config;
use crate::control::{self, Options, RunError, Sandbox};
use crate::keys::secret::leaving_no_trace;
use crate::protocol::link::RekeyTimes;
use crate::sys::memory;
use crate::sys::offloads::{Offloads, TunOffloads, UdpOffloads};
use crate::sys::sandbox::{self, User};
use tracing::warn;

pub(super) fn run(args: &UpArgs) -> ExitCode {
    match up(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The command by which `up` starts the helper that looks names up.
pub(super) const NAMES: &str = "resolve-names";

/// The command by which it starts the helper that runs the hooks.
pub(super) const HOOKS: &str = "run-hooks";

/// That helper: it ends when the `up` that started it does, and what was to be run then has run.
pub(super) fn run_hooks() -> ExitCode {
    match control::serve_hooks() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::failed(
            format!("running hooks: {}", crate::os_error::in_words(&error)),
            "`tieline up` starts this by itself",
        )
        .report(),
    }
}

/// The helper that looks names up: it ends when the `up` that started it does.
pub(super) fn resolve_names(args: &NamesArgs) -> ExitCode {
    match control::serve_names(&User::of(args.uid, args.gid)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::failed(
            format!("looking names up: {}", crate::os_error::in_words(&error)),
            "`tieline up` starts this by itself",
        )
        .report(),
    }
}

fn up(args: &UpArgs) -> Result<(), Failure> {
    // Before there is a key in it.
    if let Err(error) = sandbox::keep_memory_private() {
        warn!("a crash may leave keys in a core dump: {}", crate::os_error::in_words(&error));
    }
    if let Err(error) = memory::lock() {
        let error = crate::os_error::in_words(&error);
        warn!("keys may be swapped to disk: {error}; 64 KB of locked memory would do (ulimit -l, LimitMEMLOCK=)");
    }
    let (config, warnings) = leaving_no_trace(|| Config::load(&args.file))?;
    check::show_warnings(&warnings);
    let rekey = args.rekey_after.map(|seconds| RekeyTimes {
        initiator: Duration::from_secs(seconds.into()),
        responder: Duration::from_secs(seconds.into()) * 5 / 4,
    });
    let sandbox = (!args.no_sandbox).then_some(Sandbox { names: NAMES, hooks: HOOKS });
    if sandbox.is_none() {
        warn!("--no-sandbox: the link keeps all rights it was started with; do not leave it so");
    }
    Ok(control::run(config, Options { rekey, offloads: offloads(&args.without), sandbox })?)
}

/// All offloads but those named. Without the header there can be no super-packets.
fn offloads(without: &[String]) -> Offloads {
    let with = |name: &str| !without.iter().any(|other| other == name);
    let vnet_hdr = with("vnet_hdr");
    Offloads {
        tun: TunOffloads { vnet_hdr, tso: vnet_hdr && with("tso"), uso: vnet_hdr && with("tso") && with("uso") },
        udp: UdpOffloads { segment: with("udp_segment"), gro: with("udp_gro") },
    }
}

impl From<RunError> for Failure {
    /// What to do is part of these errors' own words.
    fn from(error: RunError) -> Self {
        Self { code: FAILED, text: error.to_string() }
    }
}
