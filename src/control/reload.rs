//! The config, read again on SIGHUP: keys may change while a link runs, and nothing else does.

use crate::config::Config;
use crate::keys::PresharedKey;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tracing::{error, info, warn};

/// What the sandbox leaves to be read.
pub(super) enum Reads {
    /// There is none.
    Everything,
    /// What is in these folders.
    Folders(Vec<PathBuf>),
    /// No file at all, for this reason.
    Nothing(&'static str),
}

impl Reads {
    pub(super) const WITHOUT_LANDLOCK: Reads =
        Reads::Nothing("this kernel has no landlock, so that the sandbox leaves no file open at all");
    pub(super) const WITHOUT_A_FOLDER: Reads = Reads::Nothing(
        "the config is in a folder that has more in it than the link's own files, which the sandbox does not leave open; \
         move it and its keys to one such as /etc/tieline",
    );
}

/// What the link runs with, and how to find out what it should.
pub(super) struct Reload {
    running: Config,
    /// What was read last, until it is taken.
    read: Option<Config>,
    reads: Reads,
}

impl Reload {
    pub(super) fn new(running: Config, reads: Reads) -> Reload {
        Reload { running, read: None, reads }
    }

    /// Reads the config again. What is wrong is said in the log.
    pub(super) fn read(&mut self) -> Option<&Config> {
        self.read = None;
        if let Reads::Nothing(why) = self.reads {
            error!("SIGHUP: the config cannot be read while the link runs: {why}; a restart reads it");
            return None;
        }
        match Config::load(&self.running.path) {
            Ok((config, warnings)) => {
                warnings.iter().for_each(|warning| warn!("{warning}"));
                self.read = Some(config);
            }
            Err(error) => {
                error!("SIGHUP: the config was not taken, and the link goes on as it was: {error}{}", self.limits())
            }
        }
        self.read.as_ref()
    }

    /// The link runs with the keys that were read.
    pub(super) fn take(&mut self) {
        let Some(read) = self.read.take() else { return };
        let news = news(&self.running, &read);
        if news.is_empty() {
            info!("SIGHUP: the config was read again; its keys are the same");
        }
        news.iter().for_each(|line| info!("SIGHUP: {line}"));
        let restart = self.running.differences(&read);
        if !restart.is_empty() {
            warn!("SIGHUP: {} changed too, which takes a restart: the link goes on as it was", restart.join(", "));
        }
        let (local, peer) = (&mut self.running.local, &mut self.running.peer);
        (local.private_key, local.private_key_file) = (read.local.private_key, read.local.private_key_file);
        peer.public_keys = read.peer.public_keys;
        (peer.preshared_keys, peer.preshared_key_files) = (read.peer.preshared_keys, read.peer.preshared_key_files);
    }

    /// What may be the cause that a file cannot be read, where the file itself does not show it.
    fn limits(&self) -> String {
        let Reads::Folders(folders) = &self.reads else { return String::new() };
        let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let user = self.running.local.user.as_ref().map(|user| format!(" as user {user}")).unwrap_or_default();
        format!("\nnote: a running link reads files in {} alone{user}", folders.join(" and "))
    }
}

/// The folders of the config and of its key files: editors put a new file in the place of the old one. A folder that holds more
/// than a link's own, such as /etc itself, is left out: it would be too much to leave open.
pub(super) fn folders(config: &Config) -> Vec<PathBuf> {
    let mut folders = BTreeSet::new();
    let files = [&config.path, &config.local.private_key_file].into_iter().chain(&config.peer.preshared_key_files);
    for file in files {
        // Where the file is said to be, and where it is.
        for path in [std::path::absolute(file), fs::canonicalize(file)].into_iter().flatten() {
            let folder = path.parent().and_then(|folder| fs::canonicalize(folder).ok());
            folders.extend(folder.filter(|folder| is_own(folder)));
        }
    }
    folders.into_iter().collect()
}

/// Whether a folder may be a link's own: it is neither the root nor directly in it.
fn is_own(folder: &Path) -> bool {
    folder.components().count() > 2
}

/// What the new keys are, in lines for the log.
fn news(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Ok(before), Ok(now)) = (old.local.private_key.public(), new.local.private_key.public())
        && before != now
    {
        lines.push(format!("this end's key is {now} now; the link moves to it as soon as the peer takes it"));
    }
    let (before, now) = (&old.peer.public_keys, &new.peer.public_keys);
    for key in now.iter().filter(|key| !before.contains(key)) {
        lines.push(format!("the peer may use the key {key} too"));
    }
    for key in before.iter().filter(|key| !now.contains(key)) {
        lines.push(format!("the peer's key {key} is taken no more"));
    }
    let (before, now) = (&old.peer.preshared_keys, &new.peer.preshared_keys);
    if !before.iter().map(PresharedKey::as_bytes).eq(now.iter().map(PresharedKey::as_bytes)) {
        lines.push(format!("other preshared keys: there are {} now", now.len()));
    }
    lines
}
