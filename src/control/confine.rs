//! The sandbox: what the process gives up, step by step as its set-up gets done, and the words for what the kernel lacks.
//!
//! ```text
//!   prepare ▸ helper ▸ … set-up as root … ▸ close_process ▸ loops, each closes itself ▸ close (control)
//! ```
//!
//! Which thread keeps what is [`crate::sys::sandbox`]'s business.

use super::RunError;
use super::names::{Helper, Lookup};
use super::reload::{self, Reads};
use super::status;
use crate::config::{Config, Endpoint, LocalConfig};
use crate::dataplane::Loop;
use crate::sys::sandbox::{self, Reach, Role, User};
use std::io;
use std::path::Path;
use std::sync::mpsc;
use tracing::{debug, warn};

/// How a process that is there for its link alone is confined. It holds for the whole process or the calling thread, and cannot be
/// undone: a program that does anything else beside is better confined from outside.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox {
    /// The first argument by which this very program (`/proc/self/exe`) comes to call [`super::serve_names`], with the two arguments
    /// after it, a user's and a group's number.
    pub names: &'static str,
    /// The only argument by which it comes to call [`super::serve_hooks`].
    pub hooks: &'static str,
}

/// The sandbox, closed.
pub(super) struct Closed {
    /// What holds; `None` if nothing was asked for.
    pub(super) state: Option<status::Sandbox>,
    pub(super) reads: Reads,
}

/// The confinement while it closes.
pub(super) struct Confinement {
    sandbox: Option<Sandbox>,
    user: Option<User>,
    state: status::Sandbox,
    reads: Reads,
    /// What came of the loops' own.
    loops: Option<mpsc::Receiver<io::Result<()>>>,
}

impl Confinement {
    /// Finds the user that config names.
    pub(super) fn prepare(sandbox: Option<Sandbox>, config: &LocalConfig) -> Result<Confinement, RunError> {
        let (state, reads) = (status::Sandbox::default(), Reads::Everything);
        let mut confinement = Confinement { sandbox, user: None, state, reads, loops: None };
        match (&config.user, sandbox) {
            (Some(name), Some(_)) => {
                let found = User::find(name).map_err(RunError::system("cannot read the machine's users"))?;
                confinement.user = Some(found.ok_or_else(|| RunError::NoSuchUser { user: name.clone() })?);
                confinement.state.user = Some(name.clone());
            }
            (Some(name), None) => warn!("without the sandbox the link does not become user `{name}`"),
            (None, _) => {}
        }
        Ok(confinement)
    }

    /// The user the link will run as, if that is another than now.
    pub(super) fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// How names are looked up: by a helper if the process is to be confined, which is started here.
    pub(super) fn lookup<'a>(&self, endpoints: impl IntoIterator<Item = &'a Endpoint>) -> Result<Lookup, RunError> {
        let is_name = |endpoint: &Endpoint| endpoint.address().is_none();
        match self.sandbox {
            Some(sandbox) if endpoints.into_iter().any(is_name) => {
                let user = self.user.clone().unwrap_or(User::NOBODY);
                let helper = Helper::start(sandbox.names, &user);
                Ok(Lookup::by(helper.map_err(RunError::system("cannot start the helper that looks names up"))?))
            }
            _ => Ok(Lookup::Here),
        }
    }

    /// Closes what the threads to come inherit: another user, no files but the status socket to take away, and those to be read
    /// again when the config has changed.
    pub(super) fn close_process(&mut self, socket: &Path, config: &Config) -> Result<(), RunError> {
        if self.sandbox.is_none() {
            return Ok(());
        }
        if let (Some(user), Some(name)) = (&self.user, &self.state.user) {
            user.assume().map_err(|source| RunError::User { user: name.clone(), source })?;
            // A new user is a new start for the kernel.
            sandbox::keep_memory_private().map_err(RunError::system("cannot keep memory out of core dumps"))?;
        }
        self.state.no_new_privs = held("no_new_privs", sandbox::gain_no_privileges()).is_some();
        let remove = socket.parent().unwrap_or(Path::new("/"));
        let folders = reload::folders(config);
        self.state.landlock = match sandbox::restrict_files(Reach::Link { remove, read: &folders }) {
            Ok(None) => held("landlock", Err(io::Error::other("this kernel has none, or it is not switched on"))),
            other => held("landlock", other).flatten(),
        };
        self.reads = match self.state.landlock {
            None => Reads::WITHOUT_LANDLOCK,
            Some(_) if folders.is_empty() => Reads::WITHOUT_A_FOLDER,
            Some(_) => Reads::Folders(folders),
        };
        Ok(())
    }

    /// What each loop begins with.
    pub(super) fn close_loops(&mut self) -> impl FnOnce(Loop) + Clone + Send + 'static {
        let (tell, told) = mpsc::channel();
        let tell = self.sandbox.map(|_| tell);
        self.loops = self.sandbox.map(|_| told);
        move |which| {
            let role = match which {
                Loop::Egress => Role::Egress,
                Loop::Ingress => Role::Ingress,
            };
            if let Some(tell) = tell {
                // There is nobody to tell if the other loop could not be started.
                let _ = tell.send(close_thread(role));
            }
        }
    }

    /// Closes the calling thread, the control side's, and tells what holds the process now.
    pub(super) fn close(mut self) -> Result<Closed, RunError> {
        if self.sandbox.is_none() {
            return Ok(Closed { state: None, reads: self.reads });
        }
        let mut calls = Ok(());
        // It ends when both have told.
        for told in self.loops.take().into_iter().flatten() {
            calls = calls.and(told);
        }
        let role = Role::Control { reads: matches!(self.reads, Reads::Folders(_)) };
        let kept = sandbox::keep_capabilities(role).map_err(RunError::system("cannot give up capabilities"))?;
        self.state.capabilities = kept.into_iter().map(str::to_owned).collect();
        self.state.seccomp = held("seccomp", calls.and_then(|()| sandbox::restrict_calls(role))).is_some();
        debug!("confined: {:?}", self.state);
        Ok(Closed { state: Some(self.state), reads: self.reads })
    }
}

/// Takes from the calling thread what its role does not need.
fn close_thread(role: Role) -> io::Result<()> {
    sandbox::keep_capabilities(role)?;
    sandbox::restrict_calls(role)
}

/// What was asked of the kernel, or a word that the link goes on without.
fn held<T>(what: &str, result: io::Result<T>) -> Option<T> {
    result.inspect_err(|error| warn!("the sandbox goes without {what}: {}", crate::os_error::in_words(error))).ok()
}
