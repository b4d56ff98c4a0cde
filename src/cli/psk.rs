//! `tieline psk`: a new preshared key.

use super::{Failure, PskArgs, print};
use crate::keys::PresharedKey;

pub(super) fn run(args: &PskArgs) -> Result<(), Failure> {
    let key = PresharedKey::generate()?;
    match &args.out {
        Some(path) => Ok(key.write_file(path)?),
        None => {
            print(&key.encode())?;
            print("\n")
        }
    }
}
