//! `tieline up`: one link in the foreground, until a signal ends it.

use std::process::ExitCode;
use std::time::Duration;

use super::{FAILED, Failure, UpArgs, check};
use crate::config::Config;
use crate::control::{self, Options, RunError};
use crate::protocol::link::RekeyTimes;
use crate::sys::offloads::{Offloads, TunOffloads, UdpOffloads};

pub(super) fn run(args: &UpArgs) -> ExitCode {
    match up(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn up(args: &UpArgs) -> Result<(), Failure> {
    let (config, warnings) = Config::load(&args.file)?;
    check::show_warnings(&warnings);
    let rekey = args.rekey_after.map(|seconds| RekeyTimes {
        initiator: Duration::from_secs(seconds.into()),
        responder: Duration::from_secs(seconds.into()) * 5 / 4,
    });
    Ok(control::run(config, Options { rekey, offloads: offloads(&args.without) })?)
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
