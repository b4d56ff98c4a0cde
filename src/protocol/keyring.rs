//! Which keys an end may be met under. Usually that is one pair, its own key and the peer's; while either end changes its
//! key there are more, and each session knows the one it was made with (`docs/PROTOCOL.md` §3.1).

use super::{
    constants::MAX_LISTED_KEYS,
    crypto::{CryptoFailure, OpenKeys, Secret},
    handshake::Statics,
    link::SetupError,
    wire::{ColdCheck, check_cold},
};
use crate::keys::{PresharedKey, PublicKey, SecretKey};
use std::sync::Arc;

/// The keys an end is given, at its start and whenever they change.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// Its own.
    pub own: &'a SecretKey,
    /// The peer's: one, or two while the peer changes its own.
    pub peers: &'a [PublicKey],
    /// None, one, or two while both ends change it. The first is answered under.
    pub preshared: &'a [PresharedKey],
}

/// Which pair: both public keys, the lower first, so that both ends say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PairId(pub [PublicKey; 2]);

/// One of this end's keys with one of the peer's, and all that follows from the two. Wiped when nobody refers to it any more.
pub struct Pair {
    pub own: PublicKey,
    pub peer: PublicKey,
    pub statics: Statics,
    pub keys: OpenKeys,
}

impl Pair {
    fn new(secret: &SecretKey, own: PublicKey, peer: PublicKey) -> Result<Pair, SetupError> {
        if own == peer {
            return Err(SetupError::OwnKey);
        }
        let keys = OpenKeys::derive(secret, &own, &peer).map_err(|_| SetupError::PeerKey)?;
        Ok(Pair { own, peer, statics: Statics::new(secret, peer), keys })
    }

    pub fn id(&self) -> PairId {
        PairId(if self.own < self.peer { [self.own, self.peer] } else { [self.peer, self.own] })
    }

    /// Whether this end's key is the lower of the two.
    pub fn lower_key(&self) -> bool {
        self.own < self.peer
    }

    /// Whether the peer has made this cold-open datagram with this pair.
    pub fn made(&self, datagram: &[u8]) -> bool {
        check_cold(datagram, &self.keys.receiving) == ColdCheck::Authentic
    }
}

/// A preshared key, or the zeros that stand for none. All who refer to it share the one copy.
#[derive(Clone)]
pub struct Psk(Arc<Secret>);

impl Psk {
    fn new(bytes: &[u8; 32]) -> Psk {
        Psk(Arc::new(Secret::copy_of(bytes)))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn same(&self, other: &Psk) -> bool {
        self.0 == other.0
    }
}

/// What an end is set up with.
pub struct Keyring {
    /// Its own key with each of the peer's, in the order given; never empty.
    pub pairs: Vec<Arc<Pair>>,
    /// In the order given; never empty.
    pub psks: Vec<Psk>,
    /// Whether there is a preshared key at all.
    pub has_psk: bool,
}

impl Keyring {
    /// Derives what follows from the keys.
    ///
    /// # Errors
    /// [`SetupError`] where they cannot make a link.
    pub fn new(keys: Keys<'_>) -> Result<Keyring, SetupError> {
        if !(1..=MAX_LISTED_KEYS).contains(&keys.peers.len()) || keys.preshared.len() > MAX_LISTED_KEYS {
            return Err(SetupError::Count);
        }
        let own = keys.own.public().map_err(|_| CryptoFailure)?;
        let pairs: Result<Vec<Arc<Pair>>, SetupError> =
            keys.peers.iter().map(|peer| Pair::new(keys.own, own, *peer).map(Arc::new)).collect();
        let mut psks: Vec<Psk> = keys.preshared.iter().map(|psk| Psk::new(psk.as_bytes())).collect();
        let has_psk = !psks.is_empty();
        if !has_psk {
            psks.push(Psk::new(&[0; 32]));
        }
        Ok(Keyring { pairs: pairs?, psks, has_psk })
    }

    /// The preshared key that this end answers under.
    pub fn psk(&self) -> &Psk {
        &self.psks[0]
    }

    /// Where in the list a preshared key is.
    pub fn position(&self, psk: &Psk) -> Option<usize> {
        self.psks.iter().position(|listed| listed.same(psk))
    }

    pub fn lists(&self, pair: &Pair) -> bool {
        self.pairs.iter().any(|listed| listed.id() == pair.id())
    }

    /// Whether what was made with these keys may go on: the peer's key and the preshared key are still listed. This end's own
    /// may have been changed since.
    pub fn allows(&self, pair: &Pair, psk: &Psk) -> bool {
        self.pairs.iter().any(|listed| listed.peer == pair.peer) && self.position(psk).is_some()
    }

    /// Whether a new session would be made with these.
    pub fn prefers(&self, pair: &Pair, psk: &Psk) -> bool {
        self.lists(pair) && self.psk().same(psk)
    }
}
