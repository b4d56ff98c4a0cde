//! `tieline status`.

use std::process::ExitCode;

use super::{Failure, StatusArgs};

pub(super) fn run(_args: &StatusArgs) -> ExitCode {
    Failure::failed("`status` is not built yet", "wait for it").report()
}
