//! A flow of UDP datagrams whose every byte and whose order can be told.

use std::net::{IpAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use tieline::sys::netns::NetNs;

use super::transfer::SplitMix;

/// Bytes on their way at most: what a socket has room for where nothing was configured …
const WINDOW: usize = 100_000;
/// … each datagram with so many more, for queues count packets as well.
const OVERHEAD: usize = 1_000;
/// After so long what is on its way is taken for lost.
const LOST: Duration = Duration::from_millis(50);
/// How long the receiver waits for what is late.
const LATE: Duration = Duration::from_millis(300);

/// Sends `count` datagrams, their sizes random but always the same, `from` one network `to` an address in another, about
/// as fast as they arrive, and gives the number of those that did. Panics if one comes changed, twice or out of turn.
pub fn flow(from: &NetNs, to: &NetNs, address: IpAddr, sizes: RangeInclusive<usize>, count: usize) -> usize {
    let receiver = socket(to, address);
    receiver.set_read_timeout(Some(LATE)).unwrap();
    let sender = socket(from, if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() });
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let (arrived, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&receiver, &sizes, &arrived, &over));
        let (mut on_their_way, mut lost) = (0, 0);
        for number in 0..count as u64 {
            let datagram = datagram(number, &sizes);
            let since = Instant::now();
            let cost = datagram.len() + OVERHEAD;
            while on_their_way + cost > WINDOW + arrived.load(Relaxed) + lost {
                if since.elapsed() > LOST {
                    lost = on_their_way.saturating_sub(arrived.load(Relaxed));
                }
                thread::sleep(Duration::from_micros(100));
            }
            // The kernel refuses what it has just learned to be too large; that one is lost like others.
            let _ = sender.send(&datagram);
            on_their_way += cost;
        }
        over.store(true, Relaxed);
        receiving.join().unwrap()
    })
}

fn socket(network: &NetNs, address: IpAddr) -> UdpSocket {
    let socket = network.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    setsockopt(&socket, RcvBuf, &(4 << 20)).unwrap();
    socket
}

fn receive(socket: &UdpSocket, sizes: &RangeInclusive<usize>, arrived: &AtomicUsize, over: &AtomicBool) -> usize {
    let mut room = vec![0; 1 << 16];
    let (mut count, mut next) = (0, 0);
    loop {
        let was_over = over.load(Relaxed);
        let Ok(length) = socket.recv(&mut room) else {
            if was_over {
                return count;
            }
            continue;
        };
        let number = room.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap();
        assert!(number >= next, "datagram {number} came when {next} was due");
        assert!(room[..length] == datagram(number, sizes), "datagram {number} came changed, with {length} bytes");
        next = number + 1;
        count += 1;
        arrived.fetch_add(length + OVERHEAD, Relaxed);
    }
}

/// The datagram of this number: it begins with it, and its size and every byte follow from it.
pub fn datagram(number: u64, sizes: &RangeInclusive<usize>) -> Vec<u8> {
    let mut numbers = SplitMix(number);
    let size = (sizes.start() + numbers.next().unwrap() as usize % (sizes.end() - sizes.start() + 1)).max(8);
    let mut bytes: Vec<_> = numbers.take(size.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(size);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}
