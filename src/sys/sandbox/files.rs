//! Which files a thread can reach (landlock(7)).

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::io;
use std::path::Path;

/// The rights that are taken: all of this version of landlock. A later one's are for another look.
const RIGHTS: ABI = ABI::V6;

/// What is left within reach.
#[derive(Clone, Copy, Debug)]
pub enum Reach<'a> {
    /// Files may be taken away from this folder; none can be opened or made anywhere. No TCP port can be opened or reached.
    Remove(&'a Path),
    /// All files can be read that the user may read; none can be written, made, taken away or run.
    Read,
}

pub(super) fn restrict(reach: Reach<'_>) -> io::Result<Option<i32>> {
    let (folder, rights) = match reach {
        Reach::Remove(folder) => (folder, AccessFs::RemoveFile.into()),
        Reach::Read => (Path::new("/"), AccessFs::ReadFile | AccessFs::ReadDir),
    };
    let folder = PathFd::new(folder).map_err(io::Error::other)?;
    let status = enforce(reach, PathBeneath::new(folder, rights)).map_err(io::Error::other)?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi as i32),
        _ => None,
    })
}

/// Best effort is the crate's default: what the kernel does not know is left away.
fn enforce(reach: Reach<'_>, rule: PathBeneath<PathFd>) -> Result<RestrictionStatus, RulesetError> {
    let files = Ruleset::default().handle_access(AccessFs::from_all(RIGHTS))?;
    let all = match reach {
        Reach::Remove(_) => files.handle_access(AccessNet::from_all(RIGHTS))?.scope(Scope::from_all(RIGHTS))?,
        // Who looks names up speaks TCP with name servers, and with others on this machine.
        Reach::Read => files.scope(Scope::Signal)?,
    };
    all.create()?.add_rule(rule)?.restrict_self()
}
