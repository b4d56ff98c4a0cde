//! `tieline rotate`: a new key beside the present one, and the steps by which the link moves to it. The config stays as it is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Failure, RotateArgs, print, shell_word};
use crate::config::Config;
use crate::keys::{KeyFileError, PresharedKey, SecretKey};

pub(super) fn run(args: &RotateArgs) -> Result<(), Failure> {
    let (config, _) = Config::load(&args.file)?;
    print(&if args.psk { preshared(&config)? } else { own(&config)? })
}

fn own(config: &Config) -> Result<String, Failure> {
    let old = &config.local.private_key_file;
    let new = next(old);
    let key = SecretKey::generate()?;
    key.write_file(&new).map_err(|error| begun(error, &new))?;
    let (before, now) = (config.local.private_key.public()?, key.public()?);
    let mut text = format!("{}: this end's new key, which nothing uses yet\n", new.display());
    text += &owner(config, &new);
    let _ = write!(
        text,
        "
Step 1, at the other end: list both keys in [peer] of its config, the new one second, and reload it.
  public_key = [\"{before}\", \"{now}\"]

Step 2, here: name the new file in [local] of {file}, and reload it.
  private_key = \"{name}\"

{RELOAD}
The link moves at once and loses nothing. It has moved when `tieline status {word}` shows this end as
  {now}
Then take the old key out of the list at the other end, reload there, and delete {old} here.
",
        file = config.path.display(),
        name = name(config, &new),
        word = shell_word(&config.path),
        old = old.display(),
    );
    Ok(text)
}

fn preshared(config: &Config) -> Result<String, Failure> {
    let old = match &config.peer.preshared_key_files[..] {
        [only] => only,
        [] => {
            return Err(Failure::failed(
                "this link has no preshared key to change",
                "`tieline psk --out FILE` makes one; a link gets its first one at both ends with a restart",
            ));
        }
        _ => {
            return Err(Failure::failed(
                "two preshared keys are listed: a change is under way already",
                "end that one first: keep the new one alone, at both ends",
            ));
        }
    };
    let new = next(old);
    PresharedKey::generate()?.write_file(&new).map_err(|error| begun(error, &new))?;
    let mut text = format!("{}: the new preshared key, which nothing uses yet\n", new.display());
    text += &owner(config, &new);
    let (old_name, new_name) = (name(config, old), name(config, &new));
    let _ = write!(
        text,
        "
Step 1: carry this file to the other end in a way that nobody can read, such as scp, and keep its mode 0600. There, list it
second in [peer], and reload.
  preshared_key = [\"{old_name}\", \"{new_name}\"]

Step 2, here: list it first in [peer] of {file}, and reload.
  preshared_key = [\"{new_name}\", \"{old_name}\"]

Step 3, at the other end: list it first there too, and reload.
  preshared_key = [\"{new_name}\", \"{old_name}\"]

{RELOAD}
The link moves at once and loses nothing. It has moved when `tieline status {word}` says that it uses preshared key 1.
Then list the new file alone at both ends, reload, and delete the old one.
",
        file = config.path.display(),
        word = shell_word(&config.path),
    );
    Ok(text)
}

const RELOAD: &str = "\
To reload: `tieline check FILE`, then kill -HUP to its `tieline up`, or systemctl reload where a unit does that.";

/// `hq.key` → `hq.2.key` → `hq.3.key`: it says which is the newer without trusting a clock.
fn next(path: &Path) -> PathBuf {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, extension) = (text(path.file_stem()), text(path.extension()));
    let (stem, number) = match stem.rsplit_once('.').map(|(stem, number)| (stem, number.parse::<u32>())) {
        Some((stem, Ok(number))) => (stem.to_owned(), number.saturating_add(1)),
        _ => (stem, 2),
    };
    let dot = if extension.is_empty() { "" } else { "." };
    path.with_file_name(format!("{stem}.{number}{dot}{extension}"))
}

/// As the config would name a file beside it.
fn name(config: &Config, file: &Path) -> String {
    let folder = config.path.parent().unwrap_or(Path::new(""));
    file.strip_prefix(folder).unwrap_or(file).display().to_string()
}

/// A running link reads the file as the user it became.
fn owner(config: &Config, file: &Path) -> String {
    let command = |user| {
        format!("The link runs as another user, who must be able to read it: chown {user} {}\n", shell_word(file))
    };
    config.local.user.as_ref().map(command).unwrap_or_default()
}

fn begun(error: KeyFileError, new: &Path) -> Failure {
    match error {
        KeyFileError::Exists { .. } => Failure::failed(
            &error,
            format!(
                "a change of keys seems to be under way: end that first; if {} is not in use anywhere, take it away",
                new.display()
            ),
        ),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_file_is_numbered() {
        let names = [
            ("hq.key", "hq.2.key"),
            ("hq.2.key", "hq.3.key"),
            ("keys/hq.9.key", "keys/hq.10.key"),
            ("/etc/tieline/key", "/etc/tieline/key.2"),
            ("hq.example.key", "hq.example.2.key"),
        ];
        for (old, new) in names {
            assert_eq!(next(old.as_ref()), Path::new(new));
        }
    }
}
