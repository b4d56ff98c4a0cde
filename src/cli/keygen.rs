//! `tieline keygen`: a new secret key, and its public key to hand to the other end.

use std::io::{self, Write};

use super::{Failure, KeygenArgs, print};
use crate::keys::SecretKey;

/// The secret goes to the file or to standard output, never to both.
pub(super) fn run(args: &KeygenArgs) -> Result<(), Failure> {
    let key = SecretKey::generate()?;
    let public = key.public()?;
    if let Some(path) = &args.out {
        key.write_file(path)?;
        return print(&format!("{public}\n"));
    }
    print(&key.encode())?;
    print("\n")?;
    // It can be had again with `pubkey`: no reason to fail.
    let _ = writeln!(io::stderr(), "{public}");
    Ok(())
}
