//! Key files: one key on one line, for their owner's eyes only. Not a key store, and never a way to change a key.
//!
//! A key file is a regular file of mode 0600 with one key; blank lines and lines that begin with `#` are skipped.
//! Writing never overwrites: a key lost is a link lost. The keys published in the project's `keys/` folder are read
//! whatever the file's mode: a version control checkout cannot keep 0600, and there is nothing in them to protect.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{KeyError, KeyKind, PresharedKey, PublicKey, SecretKey};
use crate::text::{self, NotText};

/// Largest key file that is read, in bytes: room for a key and a page of comments.
const MAX_BYTES: usize = 16 * 1024;

/// The public keys of `keys/hq.key` and `keys/branch.key`.
const PUBLISHED: [&str; 2] = [
    "tlpub1sc7agqxn47zj35xg045dtfhzczmwa78wexvdqnlqykywsr4hsatqhqtaw9",
    "tlpub1v94maarg2m464rz2ympxnux74yapf7539t06a8ljwuyhzz4r4geqxgw8ta",
];

/// `keys/hq-branch.psk`, which is no secret.
const PUBLISHED_PSK: &str = include_str!("../../keys/hq-branch.psk");

/// Why a key file could not be read or written; each names the file, and none holds any of its content.
///
/// `Display` says what is wrong and [`KeyFileError::help`] what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// There is no such file.
    #[error("{}: there is no such file", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What was to be in it.
        kind: KeyKind,
    },
    /// The operating system would not open or read it.
    #[error("{}: cannot read it: {}", path.display(), crate::os_error::in_words(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A folder, device or pipe.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Group or others may read or write it.
    #[error("{}: others than its owner can open this key file (mode {mode:04o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// More than 16 KiB.
    #[error("{}: too large for a key file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not text in UTF-8.
    #[error("{}: not text (UTF-8)", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// Text in UTF-16.
    #[error("{}: this is UTF-16 text, and a key file is UTF-8", path.display())]
    Utf16 {
        /// The file.
        path: PathBuf,
        /// What iconv(1) calls it.
        encoding: &'static str,
    },
    /// More than one key.
    #[error("{}:{line}: a second key; a key file holds one", path.display())]
    SecondKey {
        /// The file.
        path: PathBuf,
        /// Line of the second key, from 1.
        line: usize,
    },
    /// What is in it is not the key that belongs there.
    #[error("{}:{line}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Line of the key, from 1.
        line: usize,
        /// What is wrong with it.
        source: KeyError,
    },
    /// There is a file of that name already.
    #[error("{}: exists already; key files are never overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The operating system would not create or write it.
    #[error("{}: cannot write it: {}", path.display(), crate::os_error::in_words(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl KeyFileError {
    /// What to do about it, as one line.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Missing { path, kind: KeyKind::Preshared } => {
                format!("copy it from the other end, or make it with `tieline psk --out {}`", path.display())
            }
            Self::Missing { path, .. } => format!("make it with `tieline keygen --out {}`", path.display()),
            Self::Read { .. } => "check who may read the file and its folders".into(),
            Self::NotAFile { .. } | Self::TooLarge { .. } | Self::NotText { .. } => {
                "name a file that `tieline keygen --out FILE` or `tieline psk --out FILE` has written".into()
            }
            Self::Utf16 { encoding, .. } => {
                format!("save it as UTF-8, for example with `(umask 077; iconv -f {encoding} -t UTF-8 OLD > NEW)`")
            }
            Self::Exposed { path, .. } => {
                format!("run `chmod 600 {}`; if others may have read it, make a new key", path.display())
            }
            Self::SecondKey { .. } => "keep one key in it; put `#` before the others or remove them".into(),
            Self::Content { source, .. } => source.help().into(),
            Self::Exists { .. } => "name another file, or move the old one away first".into(),
            Self::Write { .. } => "check that the folder exists and that you may write to it".into(),
        }
    }
}

impl PublicKey {
    /// Whether this is one of the example keys whose secret the project publishes. No link with it is private.
    #[must_use]
    pub fn is_published(&self) -> bool {
        PUBLISHED.iter().any(|text| text.parse() == Ok(*self))
    }
}

impl SecretKey {
    /// Whether this is one of the example keys that the project publishes. No link with it is private.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.public().is_ok_and(|key| key.is_published())
    }

    /// Reads what is in a key file and came another way, such as by standard input; `name` stands for the path.
    ///
    /// # Errors
    /// [`KeyFileError::Content`] and [`KeyFileError::SecondKey`], and those of what is no text.
    pub fn parse_file_bytes(bytes: &[u8], name: &Path) -> Result<Self, KeyFileError> {
        parse_text(text_of(bytes, name)?, name, KeyKind::Secret, Self::parse)
    }
}

impl PresharedKey {
    /// Whether this is the example key that the project publishes. It protects nothing.
    #[must_use]
    pub fn is_published(&self) -> bool {
        Self::parse(PUBLISHED_PSK).is_ok_and(|key| key.as_bytes() == self.as_bytes())
    }
}

/// Opens, looks at and parses a key file. The mode is judged last, so that a published key may have any.
pub(super) fn read<K>(
    path: &Path,
    kind: KeyKind,
    parse: fn(&str) -> Result<K, KeyError>,
    is_published: fn(&K) -> bool,
) -> Result<K, KeyFileError> {
    let (path_buf, failed) = (|| path.to_owned(), |source| KeyFileError::Read { path: path.to_owned(), source });
    // O_NONBLOCK: opening a pipe must not wait for a writer.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(KeyFileError::Missing { path: path_buf(), kind });
        }
        Err(source) => return Err(failed(source)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile { path: path_buf() });
    }
    let mut buffer = Zeroizing::new(vec![0; MAX_BYTES + 1]);
    let len = read_up_to(&mut file, &mut buffer).map_err(failed)?;
    if len > MAX_BYTES {
        return Err(KeyFileError::TooLarge { path: path_buf() });
    }
    let text = text_of(&buffer[..len], path)?;
    let key = parse_text(text, path, kind, parse)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 && !is_published(&key) {
        return Err(KeyFileError::Exposed { path: path_buf(), mode });
    }
    Ok(key)
}

/// The text of a key file, without a byte order mark.
fn text_of<'a>(bytes: &'a [u8], path: &Path) -> Result<&'a str, KeyFileError> {
    text::utf8(bytes).map_err(|wrong| match wrong {
        NotText::Utf16(encoding) => KeyFileError::Utf16 { path: path.to_owned(), encoding },
        NotText::Unknown => KeyFileError::NotText { path: path.to_owned() },
    })
}

/// Fills `buffer` until it is full or the file ends, without a growing buffer that would leave copies behind.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

fn parse_text<K>(
    text: &str,
    path: &Path,
    kind: KeyKind,
    parse: fn(&str) -> Result<K, KeyError>,
) -> Result<K, KeyFileError> {
    let content = |line, source| KeyFileError::Content { path: path.to_owned(), line, source };
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let mut keys = numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let (line, only) = keys.next().ok_or_else(|| content(1, KeyError::Empty { expected: kind }))?;
    let key = parse(only).map_err(|source| content(line, source))?;
    match keys.next() {
        Some((line, _)) => Err(KeyFileError::SecondKey { path: path.to_owned(), line }),
        None => Ok(key),
    }
}

/// Creates the file with its mode from the first moment on, and does not return before it is on the disk.
pub(super) fn write_new(path: &Path, secret: &Zeroizing<String>) -> Result<(), KeyFileError> {
    let failed = |source| KeyFileError::Write { path: path.to_owned(), source };
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = created.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists { path: path.to_owned() },
        _ => failed(source),
    })?;
    fill(&file, secret).and_then(|()| sync_folder_of(path)).map_err(|source| {
        // Half a key is worse than none. The file is ours: `create_new` has just made it.
        let _ = fs::remove_file(path);
        failed(source)
    })
}

fn fill(mut file: &File, secret: &str) -> io::Result<()> {
    file.write_all(secret.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// The file's name is on the disk only once its folder is.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
