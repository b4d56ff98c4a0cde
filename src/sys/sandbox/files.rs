//! Which files a thread can reach (landlock(7)).

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::io;
use std::path::{Path, PathBuf};

/// The rights that are taken: all of this version of landlock. A later one's are for another look.
const RIGHTS: ABI = ABI::V6;

/// What is left within reach.
#[derive(Clone, Copy, Debug)]
pub enum Reach<'a> {
    /// What a link needs; nothing else can be opened or made anywhere. No TCP port can be opened or reached.
    Link {
        /// Files may be taken away from this folder.
        remove: &'a Path,
        /// Files in these folders, and in those within them, can be read.
        read: &'a [PathBuf],
    },
    /// All files can be read that the user may read; none can be written, made, taken away or run.
    Read,
}

pub(super) fn restrict(reach: Reach<'_>) -> io::Result<Option<i32>> {
    let mut rules = Vec::new();
    let mut allow = |folder: &Path, rights: BitFlags<AccessFs>| -> io::Result<()> {
        let folder = PathFd::new(folder).map_err(io::Error::other)?;
        rules.push(Ok(PathBeneath::new(folder, rights)));
        Ok(())
    };
    match reach {
        Reach::Link { remove, read } => {
            allow(remove, AccessFs::RemoveFile.into())?;
            read.iter().try_for_each(|folder| allow(folder, AccessFs::ReadFile.into()))?;
        }
        Reach::Read => allow(Path::new("/"), AccessFs::ReadFile | AccessFs::ReadDir)?,
    }
    let status = enforce(reach, rules).map_err(io::Error::other)?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi as i32),
        _ => None,
    })
}

type Rule = Result<PathBeneath<PathFd>, RulesetError>;

/// Best effort is the crate's default: what the kernel does not know is left away.
fn enforce(reach: Reach<'_>, rules: Vec<Rule>) -> Result<RestrictionStatus, RulesetError> {
    let files = Ruleset::default().handle_access(AccessFs::from_all(RIGHTS))?;
    let all = match reach {
        Reach::Link { .. } => files.handle_access(AccessNet::from_all(RIGHTS))?.scope(Scope::from_all(RIGHTS))?,
        // Who looks names up speaks TCP with name servers, and with others on this machine.
        Reach::Read => files.scope(Scope::Signal)?,
    };
    all.create()?.add_rules(rules)?.restrict_self()
}
