//! `tieline demo`.

use std::process::ExitCode;

use super::{DemoArgs, Failure};

pub(super) fn run(_args: &DemoArgs) -> ExitCode {
    Failure::failed("`demo` is not built yet", "wait for it").report()
}
