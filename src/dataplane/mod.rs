//! The packet loops: frames from the interface to the wire, and back. One thread each way, one straight loop each.
//!
//! ```text
//!            ┌──────────────── tieline-egress ────────────────┐
//!   TUN ───▶ │ read until empty ▸ updates ▸ seal ▸ one send    │ ───▶ UDP
//!            └────────────────────────────────────────────────┘
//!            ┌──────────────── tieline-ingress ───────────────┐
//!   TUN ◀─── │ write frames ◂ open ◂ updates ◂ one receive     │ ◀─── UDP
//!            └───────┬────────────────────────────────────────┘
//!                    └─▶ Mailbox: cold open, control, notices
//! ```
//!
//! Nothing waits here but in poll(2), and nothing is decided: what to seal with, where to send and what a control
//! message means is the engine's business. Each loop owns its half of the session and its batch; no lock, allocation or
//! channel is touched for a user packet. `handoff` brings updates in, [`mailbox`] takes messages out.

mod device;
mod egress;
mod guard;
mod halves;
mod handoff;
mod ingress;
pub mod mailbox;
mod sockets;
mod turns;

pub use device::Device;
pub use halves::{Open, Seal};
pub use mailbox::{Loop, Mailbox, Message};
pub use sockets::MAX as MAX_SOCKETS;

use crate::packet::Layout;
use crate::packet::marks::Dscp;
use crate::packet::returns::Returns;
use crate::packet::source_filter::SourceFilter;
use crate::packet::{Layer, OwnAddresses, mss};
use crate::protocol::levels::{Counter, Levels};
use crate::protocol::wire::Kind;
use crate::protocol::{EgressUpdate, IngressUpdate, Path, SocketId, constants};
use crate::sys::offloads::Offloads;
use crate::sys::priority::set_nice;
use crate::sys::udp::{Looks, UdpSocket, Word};
use handoff::{Command, Handoff};
use mailbox::Outbox;
use sockets::Sockets;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// The most datagrams a loop moves in one go: enough to share out the cost of a system call, and few enough to stay in
/// the second-level cache at common sizes and to look at updates within a millisecond.
const BATCH: usize = 64;

/// Room for the largest MTU the config takes, 9,000 bytes, an Ethernet header, and some more: a longer frame fills it and so
/// is known.
const FRAME: usize = 9_216;

/// The loops come before what makes the traffic: a queue that is not emptied in time is loss and delay.
const NICE: i8 = -15;

const LAYOUT: Layout = Layout { header: constants::HEADER, frame: FRAME, tag: constants::TAG, slots: BATCH };

/// What all datagrams of a session look like: the kinds 4 to 7, of which two are its, and counters that no key lasts beyond.
const SESSION: Looks = Looks {
    length: constants::MIN_TRANSPORT as u32,
    words: &[Word { at: 0, mask: 0xFC00_0000, value: 0x0400_0000 }, Word { at: 8, mask: u32::MAX, value: 0 }],
};

const _: () = assert!(Kind::Data as u8 & 0xFC == 0x04 && Kind::Control as u8 & 0xFC == 0x04);
const _: () = assert!(constants::SEAL_DATAGRAMS <= 1 << 32);

/// The guests at one socket, each once.
fn at(guests: &[(SocketId, SocketAddr)], socket: SocketId) -> Vec<SocketAddr> {
    let mut known = Vec::new();
    for (_, address) in guests.iter().filter(|(id, _)| *id == socket) {
        if !known.contains(address) {
            known.push(*address);
        }
    }
    known
}

/// What config says of user traffic, beside that it is sealed.
#[derive(Clone, Debug, Default)]
pub struct Treatment {
    /// DSCP of the datagrams it leaves in.
    pub dscp: Dscp,
    /// The longest IP packet that TCP connections through the link are to make, where they are told: what fits one datagram, and
    /// no more than this. `None`: they are not.
    pub clamp: Option<u16>,
    /// Whether UDP datagrams from the peer to one of this end's own addresses are joined for the interface.
    pub coalesce_udp: bool,
    /// This end's addresses inside the link.
    pub own: OwnAddresses,
    /// The sources that packets from the peer may have. `None`: any.
    pub sources: Option<SourceFilter>,
    /// Where both loops see what came out of the link, so that it is not sent back into it. `None`: nothing is held to be.
    pub returns: Option<Arc<Returns>>,
}

impl Treatment {
    /// Tells the connection that begins with this frame, if one does; `partial` as in [`mss::clamp`].
    fn clamp(&self, layer: Layer, frame: &mut [u8], levels: &Levels, partial: bool) {
        let Some(most) = self.clamp else { return };
        let largest = levels.largest.get() as usize;
        let fits = largest.saturating_sub(constants::MIN_TRANSPORT + layer.overhead());
        let mtu = if largest == 0 { most.into() } else { fits.min(most.into()) };
        mss::clamp(layer, frame, mtu, partial);
    }
}

/// User traffic of one direction, written by its loop alone.
#[derive(Debug, Default)]
struct Traffic {
    packets: Counter,
    bytes: Counter,
    errors: Counter,
}

/// User traffic inside the link since [`Dataplane::start`], and what the system calls lost of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames sent.
    pub tx_packets: u64,
    /// Their bytes, as the interface sees them.
    pub tx_bytes: u64,
    /// Sealed datagrams the socket did not take, for another reason than their size.
    pub tx_errors: u64,
    /// Frames written to the interface.
    pub rx_packets: u64,
    /// Their bytes, as the interface sees them.
    pub rx_bytes: u64,
    /// Opened frames the interface did not take (it is down, say), and failed receive calls.
    pub rx_errors: u64,
}

/// The running packet loops, held by the control side. Dropping it stops them.
pub struct Dataplane {
    egress: Arc<Handoff<EgressUpdate>>,
    ingress: Arc<Handoff<IngressUpdate>>,
    sockets: Sockets,
    /// Whose datagrams do not come by the door of which socket.
    guests: Vec<(SocketId, SocketAddr)>,
    device: Arc<Device>,
    tx: Arc<Traffic>,
    rx: Arc<Traffic>,
    threads: Vec<JoinHandle<()>>,
}

impl Dataplane {
    /// Starts both loops on `device`, which must be non-blocking, and `socket`, which becomes
    /// [`SocketId`] 0. The interface lives as long as this does.
    ///
    /// # Errors
    /// When the process is out of descriptors or threads.
    pub fn start(
        device: Device,
        socket: UdpSocket,
        sender: impl Seal,
        receiver: impl Open,
        levels: Arc<Levels>,
    ) -> io::Result<(Dataplane, Mailbox)> {
        Dataplane::start_with(
            device,
            vec![(SocketId(0), socket)],
            Treatment::default(),
            sender,
            receiver,
            levels,
            |_| {},
        )
    }

    /// As [`start`](Self::start), on up to [`MAX_SOCKETS`] sockets; user data gets its `treatment`, and each loop's thread calls `begin` before it touches a packet.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        device: Device,
        sockets: Vec<(SocketId, UdpSocket)>,
        treatment: Treatment,
        sender: impl Seal,
        receiver: impl Open,
        levels: Arc<Levels>,
        begin: impl FnOnce(Loop) + Clone + Send + 'static,
    ) -> io::Result<(Dataplane, Mailbox)> {
        let (outbox, mailbox) = mailbox::open();
        let device = Arc::new(device);
        let mut dataplane = Dataplane {
            egress: Arc::new(Handoff::new()?),
            ingress: Arc::new(Handoff::new()?),
            sockets: Sockets::default(),
            guests: Vec::new(),
            device: device.clone(),
            tx: Arc::default(),
            rx: Arc::default(),
            threads: Vec::with_capacity(2),
        };
        let egress = egress::Egress::new(
            device.clone(),
            treatment.clone(),
            sender,
            dataplane.egress.clone(),
            levels.clone(),
            dataplane.tx.clone(),
            outbox.clone(),
        );
        let ingress = ingress::Ingress::new(
            device,
            treatment,
            receiver,
            dataplane.ingress.clone(),
            levels,
            dataplane.rx.clone(),
            outbox.clone(),
        );
        for (id, socket) in sockets {
            dataplane.add_socket(id, socket)?;
        }
        let first = begin.clone();
        let run = move || {
            first(Loop::Egress);
            turns::run(egress)
        };
        dataplane.threads.push(spawn(Loop::Egress, outbox.clone(), run)?);
        let run = move || {
            begin(Loop::Ingress);
            turns::run(ingress)
        };
        dataplane.threads.push(spawn(Loop::Ingress, outbox, run)?);
        Ok((dataplane, mailbox))
    }

    /// Hands an update to the ingress loop, which takes it before it opens anything that arrives after this call.
    pub fn ingress(&self, update: IngressUpdate) {
        self.ingress.push(Command::Update(update));
    }

    /// Hands an update to the egress loop, which takes it before it seals anything more.
    pub fn egress(&self, update: EgressUpdate) {
        self.egress.push(Command::Update(update));
    }

    /// Receives on `socket` too, and sends on it what has a path with `id`. It takes the place of one with that id.
    ///
    /// # Errors
    /// `QuotaExceeded` when [`MAX_SOCKETS`] are open already; `OutOfMemory` when the kernel says so.
    pub fn add_socket(&mut self, id: SocketId, socket: UdpSocket) -> io::Result<()> {
        let socket = Arc::new(socket);
        socket.admit(&at(&self.guests, id), &SESSION)?;
        self.sockets.open(id, socket.clone())?;
        self.egress.push(Command::Open(id, socket.clone()));
        self.ingress.push(Command::Open(id, socket));
        Ok(())
    }

    /// Tells the peer's addresses, and at which socket each is expected, also of sockets still to be opened: what may be of a session
    /// and comes from there comes first, and all else is looked at only so often. All of it is, while nobody floods. Of the addresses at
    /// one socket the first [`udp::MAX_GUESTS`](crate::sys::udp::MAX_GUESTS) count.
    ///
    /// # Errors
    /// `OutOfMemory` when the kernel says so: some sockets go by the addresses before.
    pub fn admit(&mut self, peers: &[(SocketId, SocketAddr)]) -> io::Result<()> {
        if self.guests == peers {
            return Ok(());
        }
        let before = mem::replace(&mut self.guests, peers.to_vec());
        let mut changed = self.sockets.iter().filter(|(id, _)| at(&before, *id) != at(peers, *id));
        changed.try_for_each(|(id, socket)| socket.admit(&at(peers, *id), &SESSION))
    }

    /// The sockets that are open.
    pub fn sockets(&self) -> impl Iterator<Item = SocketId> {
        self.sockets.iter().map(|(id, _)| *id)
    }

    /// The UDP ports they are bound to.
    pub fn local_ports(&self) -> std::collections::BTreeSet<u16> {
        self.sockets.iter().filter_map(|(_, socket)| Some(socket.local_addr().ok()?.port())).collect()
    }

    /// Closes a socket, as soon as both loops have let go of it.
    pub fn remove_socket(&mut self, id: SocketId) {
        self.sockets.close(id);
        self.egress.push(Command::Close(id));
        self.ingress.push(Command::Close(id));
    }

    /// Sends one of the engine's own datagrams, from the calling thread and at once.
    ///
    /// # Errors
    /// `NotFound` for a path on a socket that is not open, else as [`UdpSocket::send_to`]: nothing was sent. Where
    /// [`crate::sys::udp::unpins`] says so of the error, the path's local address is to blame.
    pub fn send(&self, path: Path, datagram: &[u8]) -> io::Result<()> {
        let socket = self.sockets.get(path.socket).ok_or(io::ErrorKind::NotFound)?;
        socket.send_to(datagram, path.peer, path.local)
    }

    /// Whether the interface has a carrier.
    ///
    /// # Errors
    /// As [`tun::set_carrier`](crate::sys::tun::set_carrier).
    pub fn set_carrier(&self, on: bool) -> io::Result<()> {
        self.device.set_carrier(on)
    }

    /// What the kernel takes off the loops' hands, as of now.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        let udp = self.sockets.at(0).map(|(_, socket)| socket.offloads()).unwrap_or_default();
        Offloads { tun: self.device.offloads(), udp }
    }

    /// The traffic so far.
    pub fn counters(&self) -> Counters {
        Counters {
            tx_packets: self.tx.packets.get(),
            tx_bytes: self.tx.bytes.get(),
            tx_errors: self.tx.errors.get(),
            rx_packets: self.rx.packets.get(),
            rx_bytes: self.rx.bytes.get(),
            rx_errors: self.rx.errors.get(),
        }
    }

    /// Stops both loops and waits for them: at most a few batches. Their keys are wiped, and the interface is gone
    /// when this returns. A loop that had died before has said so in the mailbox.
    pub fn stop(self) {}
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.egress.push(Command::Stop);
        self.ingress.push(Command::Stop);
        for thread in self.threads.drain(..) {
            // It cannot fail: a panic is caught and told inside the thread.
            let _ = thread.join();
        }
    }
}

/// Runs a loop on a thread of its own; however it ends other than by [`Command::Stop`], the mailbox is told.
fn spawn(
    which: Loop,
    outbox: Outbox,
    run: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let body = move || {
        // Without the right to it the loop runs like any other thread, and loses a little more under load.
        let _ = set_nice(NICE);
        // Nothing the loop owned is looked at after a panic.
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => outbox.died(which, error),
            Err(_) => outbox.died(which, io::Error::other("it panicked; this is a fault in tieline")),
        }
    };
    thread::Builder::new().name(format!("tieline-{which}")).spawn(body)
}

#[cfg(test)]
mod tests;
