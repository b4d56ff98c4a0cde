//! `tieline up`.

use std::process::ExitCode;

use super::{Failure, UpArgs};

pub(super) fn run(_args: &UpArgs) -> ExitCode {
    Failure::failed("`up` is not built yet", "wait for it").report()
}
