//! The `tieline` command: words in, exit code out. One file per subcommand; what they do is in the rooms below.
//!
//! Exit codes: 0 fine, 1 failed, 2 usage or config error; `status` has 3 for a link that is not up.

mod check;
mod demo;
mod init;
mod keygen;
mod log;
mod psk;
mod pubkey;
mod release;
mod rotate;
mod status;
mod up;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::ConfigError;
use crate::keys::{KeyError, KeyFileError, mask_secrets};

/// Something failed.
pub const FAILED: u8 = 1;
/// The command line or the config file is wrong.
pub const USAGE: u8 = 2;

/// An encrypted virtual wire between exactly two sites
#[derive(Debug, Parser)]
#[command(
    name = "tieline",
    version,
    max_term_width = 100,
    after_help = "\
Example: two ends, ready to copy, and one of them started
  tieline init --out link hq=hq.example.net branch
  sudo tieline up link/hq/hq.toml

See it work on this machine alone:
  tieline demo"
)]
struct Cli {
    #[command(flatten)]
    log: log::LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(InitArgs),
    Check(CheckArgs),
    Up(UpArgs),
    Status(StatusArgs),
    Demo(DemoArgs),
    Keygen(KeygenArgs),
    Pubkey(PubkeyArgs),
    Psk(PskArgs),
    Rotate(RotateArgs),
    Release(ReleaseArgs),
    #[command(hide = true, name = up::NAMES)]
    ResolveNames(NamesArgs),
    #[command(hide = true, name = up::HOOKS)]
    RunHooks,
}

/// Make the folders of both ends of a new link: config, keys, ready to copy
///
/// Nothing is asked and nothing is overwritten. The interface names, the addresses inside the link and the port (where
/// none is given) are drawn at random, so that several links on one machine do not get in each other's way: an
/// interface like tl-branch-k7x, a /31 in 10.64.0.0-10.254.255.255 and a /127 in fd00::/8, a port from 10240 to 32767.
/// Change them in the two files as you like; the ends must agree.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: hq can be reached from outside, branch is behind a NAT
  tieline init --out link hq=hq.example.net:7311 branch --psk")]
pub struct InitArgs {
    /// Folder to make the two folders in; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// One end: its name, and where the other finds it. One of the two may do without an address
    #[arg(value_name = "NAME[=HOST[:PORT]]")]
    pub site: String,
    /// The other end
    #[arg(value_name = "NAME[=HOST[:PORT]]")]
    pub other_site: String,
    /// Make a preshared key as well, which both ends then mix into every handshake
    #[arg(long)]
    pub psk: bool,
}

/// Check a config file, just as `up` does before it touches anything
///
/// Needs no root, looks no name up and opens no socket. Exit code 0 if `up` would take the file, 2 if not.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  tieline check /etc/tieline/hq.toml")]
pub struct CheckArgs {
    /// The config file
    pub file: PathBuf,
}

/// Bring the link up and stay in the foreground until SIGINT or SIGTERM; then undo everything
///
/// On SIGHUP it reads the file again and takes changed keys, see `tieline rotate`; all else takes a restart.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  sudo tieline up /etc/tieline/hq.toml")]
pub struct UpArgs {
    /// The config file: one file is one link
    pub file: PathBuf,
    /// Rekey after so many seconds: the tests cannot wait for the protocol's own time
    #[arg(long, hide = true, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub rekey_after: Option<u32>,
    /// Do without an offload: the tests try each path
    #[arg(long, hide = true, value_name = "OFFLOAD", value_parser = ["vnet_hdr", "tso", "uso", "udp_segment", "udp_gro"])]
    pub without: Vec<String>,
    /// Keep all rights and do not become `user`, to find out whether the sandbox is what stands in the way
    #[arg(long)]
    pub no_sandbox: bool,
}

/// Look names up for the `up` that started this, until it ends
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// Become the user of this number first
    pub uid: u32,
    /// And the group of this one
    pub gid: u32,
}

/// Show the links of this machine, or one of them
///
/// Exit code 0 if the link is up, 3 if it is not up or not running.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: one link, for a script
  tieline status tl0 --json")]
pub struct StatusArgs {
    /// The link's interface or its config file; without it, every link of this machine
    #[arg(value_name = "NAME|FILE")]
    pub link: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Run a link between two network namespaces on this machine, measure it, and remove everything again
///
/// Two real `up` processes with fresh keys; ping and TCP through the link. Needs no config and changes nothing on the
/// machine. Needs no root where user namespaces are allowed.
///
/// With --bench, figures of what the link can do: TCP each way with 1 stream and with 4, the processor time both ends
/// take for it, a flood of small UDP packets, and round-trip times on the idle link and under load. Measuring shares the
/// machine with both ends.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  tieline demo --seconds 10")]
pub struct DemoArgs {
    /// How long TCP runs in each direction, in seconds; with --bench, how long each of its parts takes (3 by default)
    #[arg(long, value_name = "N", default_value_t = 5, default_value_if("bench", "true", "3"),
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Measure what the link can do, in about 25 s
    #[arg(long)]
    pub bench: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Make a secret key, and print the public key that belongs to it
///
/// With --out the secret goes to a new file that only its owner can read (mode 0600) and the public key to standard
/// output. Without it the secret goes to standard output and the public key to standard error.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  tieline keygen --out hq.key")]
pub struct KeygenArgs {
    /// File to write the secret key to; a file that is there already is never overwritten
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Print the public key that belongs to a secret key
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  tieline pubkey hq.key")]
pub struct PubkeyArgs {
    /// File with the secret key; without it, or with `-`, it is read from standard input
    pub file: Option<PathBuf>,
}

/// Make a preshared key, which both ends must have
///
/// With --out it goes to a new file that only its owner can read (mode 0600), without it to standard output.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  tieline psk --out hq-branch.psk")]
pub struct PskArgs {
    /// File to write the key to; a file that is there already is never overwritten
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Change a link's key without a cut: write the new key and say the steps
///
/// The new secret key goes to a new file beside the present one (mode 0600): hq.key is followed by hq.2.key. The config stays as
/// it is, and no secret is printed. While a link runs it takes changed keys on SIGHUP, and nothing else of its config.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  tieline rotate /etc/tieline/hq.toml")]
pub struct RotateArgs {
    /// The config file of this end
    pub file: PathBuf,
    /// Change the preshared key, which both ends have, instead of this end's own
    #[arg(long)]
    pub psk: bool,
}

/// Remove what a link that crashed or was killed has left on this machine
///
/// While a link is down, and also after its process was killed, the networks behind it are unreachable, so that nothing leaves
/// in plain text. SIGTERM ends that; after kill -9 this command does. It removes routes and rules that carry tieline's protocol number
/// (115) and belong to this link, and nothing else, and prints what it removed. A link that runs is left alone.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  sudo tieline release /etc/tieline/hq.toml")]
pub struct ReleaseArgs {
    /// The link's interface or its config file
    #[arg(value_name = "NAME|FILE")]
    pub link: PathBuf,
}

/// Why a command ended otherwise than well: what it prints after `error: `, and its exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// A failure with exit code [`FAILED`].
    pub fn failed(what: impl Display, help: impl Display) -> Self {
        Self { code: FAILED, text: format!("{what}\nhelp: {help}") }
    }

    /// A wrong command line: exit code [`USAGE`].
    pub fn usage(what: impl Display, help: impl Display) -> Self {
        Self { code: USAGE, text: format!("{what}\nhelp: {help}") }
    }

    /// Says it on standard error.
    pub fn report(&self) -> ExitCode {
        // If standard error is gone there is nobody left to tell.
        let _ = writeln!(io::stderr(), "error: {}", mask_secrets(&self.text));
        ExitCode::from(self.code)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self { code: USAGE, text: error.to_string() }
    }
}

impl From<KeyFileError> for Failure {
    fn from(error: KeyFileError) -> Self {
        Self::failed(&error, error.help())
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::failed(&error, error.help())
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_words(&error),
    };
    if let Err(failure) = log::init(&cli.log) {
        return failure.report();
    }
    let done = match &cli.command {
        Command::Init(args) => init::run(args),
        Command::Check(args) => check::run(args),
        Command::Keygen(args) => keygen::run(args),
        Command::Pubkey(args) => pubkey::run(args),
        Command::Psk(args) => psk::run(args),
        Command::Rotate(args) => rotate::run(args),
        Command::Release(args) => release::run(args),
        Command::Up(args) => return up::run(args),
        Command::ResolveNames(args) => return up::resolve_names(args),
        Command::RunHooks => return up::run_hooks(),
        Command::Status(args) => return status::run(args),
        Command::Demo(args) => return demo::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Help and version are "errors" of clap's too, and it knows where each is printed.
fn wrong_words(error: &clap::Error) -> ExitCode {
    let plain = error.render().to_string();
    let masked = mask_secrets(&plain);
    // Only a masked text is printed without clap's colours.
    let _ = if masked == plain { error.print() } else { io::stderr().write_all(masked.as_bytes()) };
    ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
}

/// Prints to standard output. Unlike `println!` it does not panic when nobody reads any more.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| {
        Failure::failed(format!("cannot write the output: {}", crate::os_error::in_words(&error)), "see where it goes")
    })
}

/// A path as one word of a shell command, for commands that are shown to be copied.
pub(crate) fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
