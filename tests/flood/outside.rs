//! Where floods come from: a network with a wire of its own to the right site, in which a stranger lives and anybody's address
//! can be used; and the sending of as many datagrams a second as are wanted.

use std::fs;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};
use tieline::sys::netns::NetNs;
use tieline::sys::priority::set_nice;

use crate::common::lab::{Lab, netlink};

/// The right site's end of the wire.
pub const GATE: &str = "gate";
/// The other.
const HOST: &str = "host";
/// Datagrams a system call at most.
const BATCH: u64 = 64;
/// How long the sender rests when it is ahead of its time.
const REST: Duration = Duration::from_micros(200);
/// What a sender that did not run for longer has missed, it has missed.
const CATCH_UP: Duration = Duration::from_millis(20);

/// After the last was sent: when so long no answer has come, none will.
const LATE: Duration = Duration::from_millis(500);

/// The network, and the address in it that nobody knows.
pub struct Outside {
    pub network: NetNs,
    pub stranger: SocketAddr,
    /// The left site's, which a flood may use too.
    pub peer: SocketAddr,
    /// The right site's, where all goes.
    pub target: SocketAddr,
}

/// A part of a flood: from one address to one, the datagrams over and over, so many a second.
pub struct Flow<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub datagrams: &'a [Vec<u8>],
    pub per_second: u64,
}

impl Outside {
    /// Lays the wire to the right site, which from now on takes what claims to come from the left one by it too.
    pub fn of(lab: &Lab, port: u16) -> Self {
        let at = |ip: IpAddr| SocketAddr::new(ip, port);
        let [stranger, gate] = [9, 2].map(|host| IpAddr::from(Ipv4Addr::new(198, 51, 100, host)));
        let network = NetNs::create().unwrap();
        lab.right.netlink(async |netlink| {
            netlink.create_veth(GATE, HOST).await.unwrap();
            let host = netlink.index(HOST).await.unwrap();
            netlink.set_netns(host, &network).await.unwrap();
            let index = netlink.index(GATE).await.unwrap();
            netlink.add_address(index, gate, 24).await.unwrap();
            netlink.set_up(index).await.unwrap();
            for interface in ["all", GATE] {
                fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
            }
        });
        netlink(&network, async |netlink| {
            let host = netlink.index(HOST).await.unwrap();
            for address in [stranger, lab.left.outer[0]] {
                netlink.add_address(host, address, 24).await.unwrap();
            }
            netlink.set_up(host).await.unwrap();
        });
        Self { network, stranger: at(stranger), peer: at(lab.left.outer[0]), target: at(lab.right.outer[0]) }
    }

    /// A socket here that sends to the right site.
    pub fn socket(&self, from: SocketAddr, to: SocketAddr) -> UdpSocket {
        let open = || {
            let socket = UdpSocket::bind(from)?;
            socket.connect(to)?;
            Ok::<_, std::io::Error>(socket)
        };
        self.network.run(open).unwrap().unwrap()
    }

    /// Sends `flows` until told to stop, and gives the number of datagrams the kernel took; `sent` has it meanwhile.
    pub fn flood(&self, flows: &[Flow<'_>], stop: &AtomicBool, sent: &AtomicU64) {
        thread::scope(|scope| {
            for flow in flows {
                let socket = self.socket(flow.from, flow.to);
                scope.spawn(move || {
                    // What comes over a wire asks nobody for the processor; where this is not allowed it does.
                    let _ = set_nice(-20);
                    send(&socket, flow, stop, sent);
                });
            }
        });
    }

    /// Sends each of them once, so slowly that none need be lost, and gives the number of answers.
    pub fn send_all(&self, flow: &Flow<'_>) -> u64 {
        let socket = self.socket(flow.from, flow.to);
        let started = Instant::now();
        for (n, datagram) in flow.datagrams.iter().enumerate() {
            let due = Duration::from_secs_f64(n as f64 / flow.per_second as f64);
            if let Some(early) = due.checked_sub(started.elapsed()).filter(|early| *early > REST) {
                thread::sleep(early);
            }
            while let Err(error) = socket.send(datagram) {
                // An answer to an earlier one: nobody listens there.
                assert_eq!(error.raw_os_error(), Some(Errno::ECONNREFUSED as i32), "{error}");
            }
        }
        socket.set_read_timeout(Some(LATE)).unwrap();
        std::iter::repeat_with(|| socket.recv(&mut [0; 256])).take_while(Result::is_ok).count() as u64
    }
}

fn send(socket: &UdpSocket, flow: &Flow<'_>, stop: &AtomicBool, sent: &AtomicU64) {
    let pieces: Vec<_> = flow.datagrams.iter().cycle().take(flow.datagrams.len() + BATCH as usize).collect();
    let pieces: Vec<_> = pieces.into_iter().map(|datagram| [IoSlice::new(datagram)]).collect();
    let mut headers = MultiHeaders::<()>::preallocate(BATCH as usize, None);
    let (started, mut dealt_with, mut next) = (Instant::now(), 0, 0);
    let most = (CATCH_UP.as_secs_f64() * flow.per_second as f64) as u64;
    while !stop.load(Relaxed) {
        let due = (started.elapsed().as_secs_f64() * flow.per_second as f64) as u64;
        if due <= dealt_with {
            thread::sleep(REST);
            continue;
        }
        dealt_with = dealt_with.max(due.saturating_sub(most));
        let count = BATCH.min(due - dealt_with) as usize;
        let batch = &pieces[next..next + count];
        let addresses = [None; BATCH as usize];
        let taken = sendmmsg(socket.as_raw_fd(), &mut headers, batch, &addresses[..count], [], MsgFlags::empty());
        match taken.map(Iterator::count) {
            Ok(taken) => {
                dealt_with += taken as u64;
                next = (next + taken) % flow.datagrams.len();
                sent.fetch_add(taken as u64, Relaxed);
            }
            // An answer to an earlier one: nobody listens there.
            Err(Errno::ECONNREFUSED | Errno::EINTR) => {}
            Err(error) => panic!("flooding: {error}"),
        }
    }
}
