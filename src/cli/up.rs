//! `tieline up`: one link in the foreground, until a signal ends it.

use std::process::ExitCode;
use std::time::Duration;

use super::{FAILED, Failure, UpArgs, check};
use crate::config::Config;
use crate::control::{self, Options, RunError};
use crate::protocol::link::RekeyTimes;

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
    Ok(control::run(config, Options { rekey })?)
}

impl From<RunError> for Failure {
    /// What to do is part of these errors' own words.
    fn from(error: RunError) -> Self {
        Self { code: FAILED, text: error.to_string() }
    }
}
