//! `tieline pubkey`: the public key of a secret key, from a file or standard input.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use zeroize::Zeroizing;

use super::{Failure, PubkeyArgs, print};
use crate::keys::SecretKey;

/// More than this is not a key: bytes.
const MAX_INPUT: usize = 16 * 1024;

pub(super) fn run(args: &PubkeyArgs) -> Result<(), Failure> {
    let key = match args.file.as_deref() {
        Some(path) if SecretKey::parse(&path.to_string_lossy()).is_ok() => {
            return Err(Failure::usage(
                "this is a secret key itself; here the name of its file belongs",
                "everyone on this machine can see a command's words: put the key in a file, or into standard input",
            ));
        }
        Some(path) if path != Path::new("-") => SecretKey::read_file(path)?,
        _ => from_stdin()?,
    };
    print(&format!("{}\n", key.public()?))
}

fn from_stdin() -> Result<SecretKey, Failure> {
    let mut stdin = io::stdin().lock();
    if stdin.is_terminal() {
        let _ = writeln!(io::stderr(), "paste the secret key (TLSECRET1…) and end with Ctrl-D:");
    }
    // Room for all there may be from the start: a buffer that grows leaves copies of the secret behind.
    let mut buffer = Zeroizing::new(vec![0; MAX_INPUT]);
    let mut len = 0;
    while len < buffer.len() {
        match stdin.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(&error)),
        }
    }
    Ok(SecretKey::parse_file_bytes(&buffer[..len], Path::new("standard input"))?)
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::failed(
        format!("cannot read standard input: {}", crate::os_error::in_words(error)),
        "name the key file: `tieline pubkey FILE`",
    )
}
