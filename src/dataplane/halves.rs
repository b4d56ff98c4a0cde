//! What the loops ask of the two halves of a link, so that they run as well with a half that a bench brings along.
//!
//! [`Sender`] and [`Receiver`] are the only ones in this crate, and the only ones that a link is made of.

use crate::protocol::session::SealError;
use crate::protocol::{EgressUpdate, IngressUpdate, Notice, Path, Received, Receiver, Sender, Time};

/// The egress loop's half: see [`Sender`], which has the same methods.
pub trait Seal: Send + 'static {
    /// [`Sender::apply`].
    fn apply(&mut self, update: EgressUpdate);
    /// [`Sender::path`].
    fn path(&self) -> Option<Path>;
    /// [`Sender::second`].
    fn second(&self) -> Option<Path>;
    /// [`Sender::is_held`].
    fn is_held(&self) -> bool;
    /// [`Sender::take_keepalive`].
    fn take_keepalive(&mut self) -> bool;
    /// [`Sender::partial_checksum`].
    fn partial_checksum(&self) -> bool;
    /// [`Sender::longest`].
    fn longest(&self) -> usize;
    /// [`Sender::seal`].
    ///
    /// # Errors
    /// As there: the datagram must not be sent.
    fn seal(&mut self, flags: u8, datagram: &mut [u8]) -> Result<(), SealError>;
    /// [`Sender::handed_over`].
    fn handed_over(&mut self);
}

/// The ingress loop's half: see [`Receiver`], which has the same methods.
pub trait Open: Send + 'static {
    /// [`Receiver::apply`].
    fn apply(&mut self, update: IngressUpdate);
    /// [`Receiver::receive`].
    fn receive(&mut self, now: Time, path: Path, datagram: &mut [u8]) -> Received;
    /// [`Receiver::poll_notice`].
    fn poll_notice(&mut self) -> Option<Notice>;
}

impl Seal for Sender {
    fn apply(&mut self, update: EgressUpdate) {
        Sender::apply(self, update);
    }
    fn path(&self) -> Option<Path> {
        Sender::path(self)
    }
    fn second(&self) -> Option<Path> {
        Sender::second(self)
    }
    fn is_held(&self) -> bool {
        Sender::is_held(self)
    }
    fn take_keepalive(&mut self) -> bool {
        Sender::take_keepalive(self)
    }
    fn partial_checksum(&self) -> bool {
        Sender::partial_checksum(self)
    }
    fn longest(&self) -> usize {
        Sender::longest(self)
    }
    fn seal(&mut self, flags: u8, datagram: &mut [u8]) -> Result<(), SealError> {
        Sender::seal(self, flags, datagram)
    }
    fn handed_over(&mut self) {
        Sender::handed_over(self);
    }
}

impl Open for Receiver {
    fn apply(&mut self, update: IngressUpdate) {
        Receiver::apply(self, update);
    }
    fn receive(&mut self, now: Time, path: Path, datagram: &mut [u8]) -> Received {
        Receiver::receive(self, now, path, datagram)
    }
    fn poll_notice(&mut self) -> Option<Notice> {
        Receiver::poll_notice(self)
    }
}
