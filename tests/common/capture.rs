//! Everything that arrives in a network, IP header and all (`man 7 packet`).

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc::{PACKET_HOST, suseconds_t};
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket};
use nix::sys::time::TimeVal;
use tieline::sys::netns::NetNs;

use super::nic;

/// How long after the last packet a capture goes on.
const QUIET: suseconds_t = 100_000;
const BUFFER: usize = 64 << 20;

/// A packet from its IP header on.
pub type Packet = Box<[u8]>;

/// A running capture.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Packet>>,
}

impl Capture {
    /// Records what arrives at any interface of `network` for itself, from now on.
    pub fn start(network: &NetNs) -> Self {
        let open = || socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
        let fd = network.run(open).unwrap().unwrap();
        // Only the machine's own root gets a buffer large enough to be sure that nothing is missed.
        let roomy = setsockopt(&fd, RcvBufForce, &BUFFER).is_ok() || {
            setsockopt(&fd, RcvBuf, &BUFFER).unwrap();
            false
        };
        setsockopt(&fd, ReceiveTimeout, &TimeVal::new(0, QUIET)).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        Self {
            stop,
            thread: thread::spawn(move || {
                let packets = record(&fd, &stopped);
                assert!(!roomy || nic::lost(&fd) == 0, "the capture missed packets");
                packets
            }),
        }
    }

    /// Ends when nothing more comes.
    pub fn finish(self) -> Vec<Packet> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

fn record(fd: &OwnedFd, stop: &AtomicBool) -> Vec<Packet> {
    let mut room = vec![0; 1 << 17];
    let mut packets = Vec::new();
    loop {
        match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut room) {
            Ok((length, Some(from))) if from.pkttype() == PACKET_HOST => {
                // Not ARP.
                if matches!(room[0] >> 4, 4 | 6) && matches!(u16::from_be(from.protocol()), 0x0800 | 0x86DD) {
                    packets.push(room[..length].into());
                }
            }
            Ok(_) => {}
            Err(Errno::EAGAIN) if stop.load(Relaxed) => return packets,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => panic!("capturing: {e}"),
        }
    }
}
