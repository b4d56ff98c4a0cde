//! `tieline release`: removes what a link that was killed has left in the kernel's tables.

use super::{Failure, ReleaseArgs, print, status};
use crate::control;
use std::fmt::Write as _;

pub(super) fn run(args: &ReleaseArgs) -> Result<(), Failure> {
    let interface = status::interface_of(&args.link)?;
    let removed = control::release(&interface)?;
    let mut text = String::new();
    for thing in &removed {
        let _ = writeln!(text, "removed {thing}");
    }
    if removed.is_empty() {
        let _ = writeln!(text, "nothing is left of a link on interface {interface}");
    }
    print(&text)
}
