//! What the engine hands out: updates for the loops, datagrams, and news for people.

use super::KeysInUse;
use crate::protocol::{
    control::State,
    halves::{EgressUpdate, IngressUpdate, Path, SocketId},
    same_key::SameKey,
    session::Cipher,
    wire::{Kind, Verdict},
};
use std::{net::SocketAddr, time::Duration};

/// What the driver carries out, in order.
pub enum Output {
    /// For the ingress loop.
    Ingress(IngressUpdate),
    /// For the egress loop.
    Egress(EgressUpdate),
    /// A datagram of the engine's own.
    Send(Transmit),
    /// For people, and for what follows the link's state.
    Event(Event),
}

/// A datagram to be sent.
#[derive(Clone, Debug)]
pub struct Transmit {
    /// Where to.
    pub path: Path,
    /// The whole datagram.
    pub datagram: Vec<u8>,
}

/// Why the link left Up, or never came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownCause {
    /// Nothing was opened for the detection time.
    Silence(Duration),
    /// The peer said goodbye.
    Goodbye,
    /// The peer says that it does not hear us, or started anew.
    PeerDown,
    /// A key that its session was made with is listed no longer.
    KeyRemoved,
    /// The operator took this end's interface down.
    AdminDown,
    /// The operator took the peer's interface down, as the peer says.
    PeerAdminDown,
}

/// What became of a cold-open datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColdStep {
    /// This end sent it.
    Sent,
    /// It came, and its MAC is the peer's.
    Taken,
    /// It came, its MAC is the peer's, and it is not of this moment: a copy, late, or nothing this end asked for.
    Replayed,
    /// It came and its MAC is the peer's, but not what is in it: it is not for this address, or was made with another key.
    Unauthentic,
    /// It came, its MAC is the peer's, and what is in it is not of this protocol.
    Malformed,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A cold open begins, at these addresses.
    Connecting {
        /// Whom it knocks at.
        addresses: Vec<SocketAddr>,
    },
    /// The line is Up and suspiciously quiet: a cold open begins beside it. The peer may be elsewhere by now.
    Quiet,
    /// An attempt ended without an answer: the likely causes are the driver's to name.
    NoAnswer {
        /// Whom it knocked at.
        addresses: Vec<SocketAddr>,
        /// How many Knocks were sent since something last answered.
        knocks: u32,
        /// Whether anyone answered the Knock: then it was the Init that got no answer.
        challenged: bool,
    },
    /// A new local port is wanted: [`super::Link::handle_socket`] gives it.
    WantSocket,
    /// The line uses this socket now: others that were opened for the purpose can go.
    UsesSocket(SocketId),
    /// A session became the one in use.
    Session {
        /// The higher epoch of both ends.
        epoch: u32,
        /// Its AEAD.
        cipher: Cipher,
        /// Whether ML-KEM went into its keys.
        post_quantum: bool,
        /// Whether it was rekeyed under the session before, or opened cold.
        rekeyed: bool,
        /// Where the peer is.
        peer: Option<SocketAddr>,
    },
    /// The liveness state changed.
    State {
        /// The state now.
        state: State,
        /// Why it is not Up any more.
        cause: Option<DownCause>,
    },
    /// The peer says that its interface is administratively down, or is no more.
    PeerInterface {
        /// Whether it is up.
        up: bool,
    },
    /// The line goes to another address of the peer's, or from another of its own.
    Path(Path),
    /// The peer answers on a way where it did not, or does no more.
    Way {
        /// Which of [`super::Params::ways`].
        way: usize,
        /// Whether it answers.
        up: bool,
    },
    /// User data goes by this way now.
    UsesWay {
        /// Which of [`super::Params::ways`].
        way: usize,
    },
    /// A way has been silent for long, and will say so again: its socket may be of no more use.
    SilentWay {
        /// Which of [`super::Params::ways`].
        way: usize,
    },
    /// The way to the peer was found to carry datagrams of another size than before.
    Size {
        /// Bytes of the largest.
        size: u16,
    },
    /// The session in use was made with other keys than the one before.
    Keys(KeysInUse),
    /// The peer does not take the key that this end has changed to: the link goes on with the one before.
    NotMoved {
        /// Whether that is its own key; else it is the preshared key.
        own: bool,
    },
    /// The Response's MAC is right and it does not open: the preshared keys differ.
    PresharedKeysDiffer,
    /// The peer refuses the link.
    Refused(Verdict),
    /// This end refuses the link the peer asks for.
    Refusing(Verdict),
    /// Cold-open datagrams come that are not from our peer: the public keys may differ.
    Stranger(SocketAddr),
    /// Nothing of the peer's has come for so long, and this end has nobody to call: said after 10 s, and then once a minute.
    NothingArrives {
        /// Since the start, or what came of the peer's last.
        silence: Duration,
        /// Whether anything came that is not the peer's.
        others: bool,
    },
    /// Somebody with the peer's key has called for 10 s, was answered, and gets no further: what this end sends does not arrive.
    AnswersLost {
        /// Where it calls from.
        peer: SocketAddr,
        /// Whether it got as far as an Init, so that a Challenge did arrive once.
        responded: bool,
    },
    /// A cold-open datagram, for those who look for what goes wrong.
    Cold {
        /// Knock, Challenge, Init or Response.
        kind: Kind,
        /// Where the other end of it is.
        peer: SocketAddr,
        /// What became of it.
        step: ColdStep,
    },
    /// One key is on two machines, or is no more as far as that can be seen.
    SameKey(Option<SameKey>),
    /// The peer speaks another version of the protocol.
    OtherVersion {
        /// Its version.
        version: u8,
        /// Where it is.
        peer: SocketAddr,
    },
    /// The bootstrap session ended before a hybrid rekey came through.
    HybridUnfinished,
    /// A rekey failed under an authentic session: not a network event.
    RekeyFailed(&'static str),
    /// A primitive or the entropy source failed.
    CryptoFailed,
}
