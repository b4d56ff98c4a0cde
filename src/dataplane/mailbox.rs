//! How the loops reach the control side: bounded boxes, written without waiting.
//!
//! A full box drops what comes, and the protocol lives with that as with any loss. Each kind has a box of its own, so
//! that a flood of one displaces nothing of another; the death of a loop has room kept for it and is never dropped.

use super::Open;
use crate::protocol::constants::COLD_BURST;
use crate::protocol::{Input, Notice, Path, Small};
use std::fmt;
use std::future::pending;
use std::io;
use std::net::IpAddr;
use tokio::sync::mpsc;

/// Cold-open datagrams waiting at most: as many as may come at once, of each of the four types.
const COLD: usize = 4 * COLD_BURST as usize;
/// Control messages and notices waiting at most.
const CONTROL: usize = 256;
/// Failed sends waiting at most: one says it all.
const FAILED: usize = 4;
/// Remarks on packets that were dropped, waiting at most: none is made often.
const REMARKS: usize = 16;
/// Loops there are to die.
const LOOPS: usize = 2;

/// One of the two packet loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// From the interface to the wire.
    Egress,
    /// From the wire to the interface.
    Ingress,
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loop::Egress => "egress",
            Loop::Ingress => "ingress",
        })
    }
}

/// What the loops tell the control side.
#[derive(Debug)]
// The large one is the usual one, and boxing it would allocate for each.
#[allow(clippy::large_enum_variant)]
pub enum Message {
    /// For the engine.
    Input(Input),
    /// User data could not leave from the path's local address, which is no longer good ([`crate::sys::udp::unpins`]).
    SendFailed {
        /// The path, with that address.
        path: Path,
        /// What the system said.
        error: io::Error,
    },
    /// This machine did not take user data because of its size (EMSGSIZE).
    TooBig {
        /// The path it was for.
        path: Path,
    },
    /// A packet from the peer was dropped because of its source ([`crate::packet::source_filter`]). Said of each prefix once, and not of
    /// many at a time.
    ForeignSource {
        /// The packet's.
        source: IpAddr,
        /// The network it is taken to be of, and the length of its prefix.
        prefix: (IpAddr, u8),
    },
    /// A packet came out of the link and was about to be sent back into it ([`crate::packet::returns`]): dropped, and said once a minute
    /// at most.
    Returned {
        /// Whom it was for.
        destination: IpAddr,
    },
    /// A route sends the link's own datagrams into the link ([`crate::packet::own_datagrams`]): they are dropped, and it is said once a
    /// second at most.
    Looped {
        /// The path they were for.
        path: Path,
    },
    /// A packet from the peer was dropped because its datagram was marked CE and the packet's sender does not know of such marks
    /// (RFC 6040, section 4.2): said once a second at most.
    Congested {
        /// The path its datagram came by.
        path: Path,
    },
    /// A loop ended by an error: the device is gone, say. The link is of no more use.
    LoopDied {
        /// Which of them.
        which: Loop,
        /// Why.
        error: io::Error,
    },
}

/// The control side's end.
#[derive(Debug)]
pub struct Mailbox {
    died: mpsc::Receiver<Message>,
    failed: mpsc::Receiver<Message>,
    remarks: mpsc::Receiver<Message>,
    control: mpsc::Receiver<Input>,
    cold: mpsc::Receiver<Input>,
}

impl Mailbox {
    /// The next message, the graver boxes first. Cancel-safe: nothing is lost when the future is dropped.
    ///
    /// After [`super::Dataplane::stop`] and when all is read it waits for ever, as nobody is left to write.
    pub async fn recv(&mut self) -> Message {
        tokio::select! {
            biased;
            Some(message) = self.died.recv() => message,
            Some(message) = self.failed.recv() => message,
            Some(message) = self.remarks.recv() => message,
            Some(input) = self.control.recv() => Message::Input(input),
            Some(input) = self.cold.recv() => Message::Input(input),
            else => pending().await,
        }
    }
}

/// A loop's end.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    died: mpsc::Sender<Message>,
    failed: mpsc::Sender<Message>,
    remarks: mpsc::Sender<Message>,
    control: mpsc::Sender<Input>,
    cold: mpsc::Sender<Input>,
}

/// A mailbox and the way into it.
pub(super) fn open() -> (Outbox, Mailbox) {
    let (died, died_rx) = mpsc::channel(LOOPS);
    let (failed, failed_rx) = mpsc::channel(FAILED);
    let (remarks, remarks_rx) = mpsc::channel(REMARKS);
    let (control, control_rx) = mpsc::channel(CONTROL);
    let (cold, cold_rx) = mpsc::channel(COLD);
    let mailbox = Mailbox { died: died_rx, failed: failed_rx, remarks: remarks_rx, control: control_rx, cold: cold_rx };
    (Outbox { died, failed, remarks, control, cold }, mailbox)
}

impl Outbox {
    /// A cold-open datagram whose MAC is right; says whether there was room for it.
    pub(super) fn cold(&self, path: Path, datagram: &[u8]) -> bool {
        self.cold.try_send(Input::Cold { path, datagram: Small::new(datagram) }).is_ok()
    }

    /// An opened control message.
    pub(super) fn control(&self, path: Path, session: u32, counter: u64, message: &[u8]) {
        let message = Small::new(message);
        let _ = self.control.try_send(Input::Control { path, session, counter, message });
    }

    /// User data was refused for its size; should there be no room it will be again.
    pub(super) fn too_big(&self, path: Path) {
        let _ = self.failed.try_send(Message::TooBig { path });
    }

    /// What people may want to know of packets that were dropped; no state hangs on it.
    pub(super) fn remark(&self, message: Message) {
        let _ = self.remarks.try_send(message);
    }

    /// Whatever `receiver` wants noticed; it keeps what the box has no room for.
    pub(super) fn notices(&self, receiver: &mut impl Open) {
        self.notices_from(|| receiver.poll_notice());
    }

    fn notices_from(&self, mut next: impl FnMut() -> Option<Notice>) {
        while let Ok(place) = self.control.try_reserve() {
            let Some(notice) = next() else { return };
            place.send(Input::Notice(notice));
        }
    }

    /// A failed send; says whether there was room for it.
    pub(super) fn send_failed(&self, path: Path, error: io::Error) -> bool {
        self.failed.try_send(Message::SendFailed { path, error }).is_ok()
    }

    /// The end of a loop: each says this once at most, and there is room for all of them.
    pub(super) fn died(&self, which: Loop, error: io::Error) {
        let _ = self.died.try_send(Message::LoopDied { which, error });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::SocketId;

    const PEER: std::net::SocketAddr =
        std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 7311);
    const PATH: Path = Path { socket: SocketId(0), local: None, peer: PEER };

    fn everything(mailbox: &mut Mailbox) -> Vec<Message> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut all = Vec::new();
        runtime.block_on(async {
            let next = async |mailbox: &mut Mailbox| {
                tokio::select! { biased; message = mailbox.recv() => Some(message), () = async {} => None }
            };
            while let Some(message) = next(mailbox).await {
                all.push(message);
            }
        });
        all
    }

    #[test]
    fn a_flood_of_one_kind_displaces_no_other() {
        let (outbox, mut mailbox) = open();
        assert_eq!((0..1_000).filter(|_| outbox.cold(PATH, b"junk")).count(), COLD);
        (0..1_000).for_each(|n| outbox.control(PATH, 7, n, b"report"));
        while outbox.send_failed(PATH, io::ErrorKind::AddrNotAvailable.into()) {}
        outbox.died(Loop::Ingress, io::ErrorKind::BrokenPipe.into());
        outbox.died(Loop::Egress, io::ErrorKind::BrokenPipe.into());

        let all = everything(&mut mailbox);
        assert!(matches!(all[0], Message::LoopDied { which: Loop::Ingress, .. }));
        assert!(matches!(all[1], Message::LoopDied { which: Loop::Egress, .. }));
        let count = |wanted: fn(&Message) -> bool| all.iter().filter(|message| wanted(message)).count();
        assert_eq!(count(|m| matches!(m, Message::SendFailed { .. })), FAILED);
        assert_eq!(count(|m| matches!(m, Message::Input(Input::Control { .. }))), CONTROL);
        assert_eq!(count(|m| matches!(m, Message::Input(Input::Cold { .. }))), COLD);
    }

    #[test]
    fn notices_wait_where_they_are_while_the_box_is_full() {
        let (outbox, mut mailbox) = open();
        (0..CONTROL as u64).for_each(|n| outbox.control(PATH, 7, n, b"report"));
        let mut notices = vec![Notice::Stranger { source: PEER }];
        outbox.notices_from(|| notices.pop());
        assert_eq!(notices.len(), 1);
        assert_eq!(everything(&mut mailbox).len(), CONTROL);
        outbox.notices_from(|| notices.pop());
        assert!(notices.is_empty());
        assert!(matches!(everything(&mut mailbox)[..], [Message::Input(Input::Notice(Notice::Stranger { .. }))]));
    }
}
