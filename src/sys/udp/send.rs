//! Sending in batches: runs of equal datagrams as one where the kernel cuts them (`UDP_SEGMENT`, udp(7)), one by one
//! where it does not.

use super::{PLAIN, UdpSocket};
use crate::sys::cmsg::Control;
use libc::{c_uint, iovec, mmsghdr, msghdr};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

/// `UDP_MAX_SEGMENTS` of Linux before 6.9.
const FEW_SEGMENTS: usize = 64;

/// The most bytes of one run: what a UDP datagram over IPv4 can carry, for the kernel builds that before it cuts it.
const MAX_RUN: usize = 65_507;

/// Datagrams of one size, one directly after the other in memory; the last may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    bytes: &'a [u8],
    segment: usize,
    /// The socket's own if `None`.
    class: Option<u8>,
}

impl<'a> Run<'a> {
    /// `bytes` as datagrams of `segment` bytes each (at least 1) and a shorter last one, if something is left.
    pub fn new(bytes: &'a [u8], segment: usize) -> Self {
        Run { bytes, segment: segment.max(1), class: None }
    }

    /// One datagram, which may be empty.
    pub fn single(datagram: &'a [u8]) -> Self {
        Run::new(datagram, datagram.len())
    }

    /// The same with this traffic class (TOS in IPv4) in place of the socket's.
    pub fn with_class(self, class: u8) -> Self {
        Run { class: Some(class), ..self }
    }

    /// How many datagrams it has.
    pub fn datagrams(&self) -> usize {
        self.bytes.len().div_ceil(self.segment).max(1)
    }

    /// What is left after the first `datagrams`.
    fn skip(self, datagrams: usize) -> Option<Self> {
        let left = datagrams < self.datagrams();
        left.then(|| Run { bytes: &self.bytes[datagrams * self.segment..], ..self })
    }

    /// As runs that one message can carry, of `most` datagrams each.
    fn cut(self, most: usize) -> impl Iterator<Item = Run<'a>> {
        let most = most.min(MAX_RUN / self.segment).max(1);
        let empty = self.bytes.is_empty().then_some(self);
        self.bytes.chunks(self.segment * most).map(move |bytes| Run { bytes, ..self }).chain(empty)
    }
}

/// Leaves out the first `datagrams` of all runs together.
fn skip<'a>(runs: impl Iterator<Item = Run<'a>>, mut datagrams: usize) -> impl Iterator<Item = Run<'a>> {
    runs.filter_map(move |run| {
        let skipped = datagrams.min(run.datagrams());
        datagrams -= skipped;
        run.skip(skipped)
    })
}

/// Destination and source of what is sent, in the kernel's form.
struct MessageHeader {
    name: SockaddrStorage,
    over_v4: bool,
    control: Control,
    control_length: usize,
}

impl MessageHeader {
    fn new(socket_is_v6: bool, peer: SocketAddr, local: Option<IpAddr>) -> io::Result<Self> {
        let name = match (peer, socket_is_v6) {
            (SocketAddr::V4(peer), true) => SocketAddrV6::new(peer.ip().to_ipv6_mapped(), peer.port(), 0, 0).into(),
            (SocketAddr::V6(_), false) => return Err(Errno::EAFNOSUPPORT.into()),
            (peer, _) => peer,
        };
        // The kernel would read one family's bytes as the other's; what it says to nonsense is what we say.
        if local.is_some_and(|local| local.is_ipv4() != peer.is_ipv4()) {
            return Err(Errno::EINVAL.into());
        }
        let mut control = Control::EMPTY;
        let control_length = local.map_or(0, |local| control.pin(local, socket_is_v6));
        Ok(MessageHeader { name: name.into(), over_v4: peer.is_ipv4(), control, control_length })
    }

    /// The message header, still without the bytes to send. It points into `self`, which must stay where it is.
    fn message(&mut self) -> msghdr {
        // SAFETY: zeros are a valid `msghdr`; it has private padding on some targets, so there is no literal for it.
        let mut message: msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = self.name.as_ptr().cast_mut().cast();
        message.msg_namelen = self.name.len();
        message.msg_iovlen = 1;
        if self.control_length > 0 {
            message.msg_control = self.control.as_mut_ptr();
            message.msg_controllen = self.control_length as _;
        }
        message
    }
}

/// For sending only: the kernel writes nothing there.
fn iovec_of(bytes: &[u8]) -> iovec {
    iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

impl UdpSocket {
    /// Sends one datagram to `peer`, from `local` if that is given.
    ///
    /// # Errors
    /// As sendmsg(2), `WouldBlock` included: nothing was sent. [`unpins`](super::unpins) tells the ones that blame
    /// `local`.
    pub fn send_to(&self, datagram: &[u8], peer: SocketAddr, local: Option<IpAddr>) -> io::Result<()> {
        let mut header = MessageHeader::new(self.is_v6, peer, local)?;
        let mut piece = iovec_of(datagram);
        let mut message = header.message();
        message.msg_iov = &mut piece;
        loop {
            // SAFETY: `message` points to `header` and `piece`, and `piece` to `datagram`, all alive and unmoved until
            // the call returns; sendmsg only reads them.
            let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &message, libc::MSG_DONTWAIT) };
            match Errno::result(sent) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What became of one batch handed to [`SendBatch::send`].
#[derive(Debug, Default)]
pub struct SendReport {
    /// Datagrams the kernel took.
    pub sent: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Datagrams larger than the interface's MTU.
    pub too_big: usize,
    /// Datagrams dropped for any other reason.
    pub failed: usize,
    /// The last of those reasons.
    pub error: Option<io::Error>,
}

impl SendReport {
    /// How many datagrams there is nothing more to do for.
    fn settled(&self) -> usize {
        self.sent + self.too_big + self.failed
    }
}

/// Why a batch was not sent to its end.
enum Stop {
    /// The kernel did not take a run of so many datagrams, perhaps because of the run.
    Refused(usize),
    /// Each further datagram would meet the same.
    Fault(Errno),
}

/// What sendmmsg(2) needs for a batch, allocated once and used over and over by one thread.
pub struct SendBatch {
    /// Whether it waits for room in a full buffer.
    patient: bool,
    messages: Box<[mmsghdr]>,
    pieces: Box<[iovec]>,
    controls: Box<[Control]>,
    /// How many datagrams each message has.
    datagrams: Box<[usize]>,
}

// SAFETY: the pointers in it are written anew by each `send` and not read after it returns; between calls the memory
// is plain data.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// For up to `size` runs in one system call; what is more takes another call.
    pub fn new(size: usize) -> Self {
        // SAFETY: zeros are valid for both, as integers and null pointers.
        let (message, piece) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let size = size.max(1);
        SendBatch {
            patient: true,
            messages: vec![message; size].into(),
            pieces: vec![piece; size].into(),
            controls: vec![Control::EMPTY; size].into(),
            datagrams: vec![0; size].into(),
        }
    }

    /// The same, for what may rather be lost than hold up the loop: it does not wait for room in a full buffer.
    pub fn hasty(size: usize) -> Self {
        SendBatch { patient: false, ..SendBatch::new(size) }
    }

    /// Sends the datagrams of all `runs` to `peer`, in order, from `local` if that is given.
    ///
    /// A run is one message, if `socket` segments ([`UdpSocket::set_offloads`]), or as few as the kernel takes. If it
    /// refuses a run (no checksums in the NIC, a transform on the route) the same bytes go as smaller runs, at last one
    /// by one, and where that helps the socket keeps to it.
    ///
    /// A datagram is sent once or dropped, and each one dropped is in the report. When the socket's buffer is full the
    /// batch waits for it, shortly: that holds up the loop, so the queue grows in front of the interface, where
    /// the kernel manages it, and not as loss behind the encryption. `ENOBUFS` names no moment to wait for:
    /// drop. A fault of the path, not of one datagram, drops the rest with it.
    pub fn send<'a>(
        &mut self,
        socket: &UdpSocket,
        peer: SocketAddr,
        local: Option<IpAddr>,
        runs: impl Iterator<Item = Run<'a>> + Clone,
    ) -> SendReport {
        let mut report = SendReport::default();
        let mut header = match MessageHeader::new(socket.is_v6, peer, local) {
            Ok(header) => header,
            Err(error) => {
                report.failed = runs.map(|run| run.datagrams()).sum();
                report.error = Some(error);
                return report;
            }
        };
        let mut most = socket.run_limit();
        let mut trial = None;
        loop {
            let cut = skip(runs.clone(), report.settled()).flat_map(|run| run.cut(most));
            match self.send_cut(socket, &mut header, cut, trial, &mut report) {
                Ok(()) => return report,
                Err(Stop::Refused(datagrams)) => {
                    most = if datagrams > FEW_SEGMENTS { FEW_SEGMENTS } else { PLAIN };
                    trial = Some(most);
                }
                Err(Stop::Fault(error)) => {
                    report.failed += skip(runs, report.settled()).map(|run| run.datagrams()).sum::<usize>();
                    report.error = Some(error.into());
                    return report;
                }
            }
        }
    }

    /// Sends runs of which each fits one message. `trial` is a limit to keep if it is what lets the first one through.
    fn send_cut<'a>(
        &mut self,
        socket: &UdpSocket,
        header: &mut MessageHeader,
        mut runs: impl Iterator<Item = Run<'a>>,
        mut trial: Option<usize>,
        report: &mut SendReport,
    ) -> Result<(), Stop> {
        loop {
            let count = self.fill(header, &mut runs);
            if count == 0 {
                return Ok(());
            }
            let mut next = 0;
            while next < count {
                match self.send_from(socket, next, count) {
                    Ok(sent) => {
                        if let Some(limit) = trial.take() {
                            socket.limit_runs(limit);
                        }
                        let taken = next..next + sent;
                        report.bytes +=
                            self.messages[taken.clone()].iter().map(|sent| sent.msg_len as usize).sum::<usize>();
                        report.sent += self.datagrams[taken].iter().sum::<usize>();
                        next += sent;
                    }
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) if self.patient && socket.wait_for_room() => {}
                    Err(error) => {
                        drop_one(report, error, self.datagrams[next])?;
                        trial = None;
                        next += 1;
                    }
                }
            }
        }
    }

    /// Writes a message for each of `runs`, as many as there is room for, and gives their number.
    fn fill<'a>(&mut self, header: &mut MessageHeader, runs: &mut impl Iterator<Item = Run<'a>>) -> usize {
        let template = header.message();
        let mut count = 0;
        let places = self.messages.iter_mut().zip(&mut self.pieces).zip(&mut self.controls).zip(&mut self.datagrams);
        for ((((message, piece), control), datagrams), run) in places.zip(runs) {
            *piece = iovec_of(run.bytes);
            *datagrams = run.datagrams();
            message.msg_hdr = template;
            message.msg_hdr.msg_iov = piece;
            if *datagrams > 1 || run.class.is_some() {
                *control = header.control;
                let mut length = header.control_length;
                if let Some(class) = run.class {
                    length = control.class(length, header.over_v4, class);
                }
                if *datagrams > 1 {
                    length = control.segment(length, run.segment as u16);
                }
                message.msg_hdr.msg_controllen = length as _;
                message.msg_hdr.msg_control = control.as_mut_ptr();
            }
            count += 1;
        }
        count
    }

    /// One sendmmsg(2) of the messages from `next` up to `count`; an error is about the first of them.
    fn send_from(&mut self, socket: &UdpSocket, next: usize, count: usize) -> nix::Result<usize> {
        let messages = &mut self.messages[next..count];
        let (fd, length) = (socket.fd.as_raw_fd(), messages.len() as c_uint);
        // SAFETY: `messages` has `length` headers, all written by `fill`. They point to the header, which `send`
        // keeps until it returns, to pieces and controls, which `self` owns, and by the pieces to the runs' bytes, which
        // `send` has borrowed; the kernel writes only the `msg_len` of each.
        let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), length, libc::MSG_DONTWAIT) };
        Errno::result(sent).map(|sent| sent as usize)
    }
}

/// Counts what an error costs of a message of so many datagrams, if that one is all it concerns.
fn drop_one(report: &mut SendReport, error: Errno, datagrams: usize) -> Result<(), Stop> {
    match error {
        Errno::EMSGSIZE => report.too_big += datagrams,
        // These may concern this message alone: a firewall's rate limit, a moment without memory, an ICMP error
        // that some earlier datagram drew and this call only reports.
        Errno::EPERM | Errno::ENOBUFS | Errno::ENOMEM | Errno::ECONNREFUSED => {
            report.failed += datagrams;
            report.error = Some(error.into());
        }
        // EINVAL: too many segments, or a segment beyond the MTU (before Linux 6.14), or a local address that is gone.
        // What it is, smaller runs will show.
        Errno::EIO | Errno::EINVAL if datagrams > 1 => return Err(Stop::Refused(datagrams)),
        // All others, the full buffer included, would meet the next one too.
        _ => return Err(Stop::Fault(error)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The plain list of what a run stands for.
    fn datagrams<'a>(run: &Run<'a>) -> Vec<&'a [u8]> {
        match run.bytes {
            [] => vec![run.bytes],
            bytes => bytes.chunks(run.segment).collect(),
        }
    }

    proptest! {
        /// Whatever is left out and however it is cut, the datagrams are those of the plain list, in order.
        #[test]
        fn cutting_keeps_every_datagram(
            shapes in proptest::collection::vec((0usize..90_000, 1usize..1_500), 0..6),
            most in 1usize..200,
            left_out in 0usize..300,
        ) {
            let bytes: Vec<u8> = (0..90_000u32).map(|n| (n % 251) as u8).collect();
            let runs = shapes.iter().map(|&(length, size)| Run::new(&bytes[90_000 - length..], size));
            let plain: Vec<_> = runs.clone().flat_map(|run| datagrams(&run)).collect();
            prop_assert_eq!(runs.clone().map(|run| run.datagrams()).sum::<usize>(), plain.len());
            let mut got = Vec::new();
            for run in skip(runs, left_out).flat_map(|run| run.cut(most)) {
                prop_assert!(run.datagrams() <= most && run.bytes.len() <= MAX_RUN);
                prop_assert_eq!(run.datagrams(), datagrams(&run).len());
                got.extend(datagrams(&run));
            }
            prop_assert_eq!(&got[..], plain.get(left_out..).unwrap_or_default());
        }
    }
}
