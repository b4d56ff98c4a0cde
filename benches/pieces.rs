//! The pieces of the packet path, each alone on one core: cut and seal, open and join, the replay window, a look at addresses.
//!
//! ```text
//! cargo bench --bench pieces
//! ```
//!
//! Keys, batches and calls are those of the packet loops, and every result is looked at: a datagram that is refused ends the
//! bench, for refusing is quicker.

#![allow(clippy::unwrap_used, clippy::expect_used)] // that is how it ends

mod line;

use criterion::{Criterion, Throughput};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tieline::packet::checksum::{self, Sum};
use tieline::packet::merge::{Limits, Merger};
use tieline::packet::pieces::{Bounds, Joined, Name, Part, Piece, Pieces};
use tieline::packet::returns::Returns;
use tieline::packet::source_filter::SourceFilter;
use tieline::packet::split::{self, Checksums, Taken};
use tieline::packet::transport::{Protocol, Transport};
use tieline::packet::virtio::{Gso, Header, Kind};
use tieline::packet::{Addresses, Batch, Layer, Layout};
use tieline::protocol::replay::Window;
use tieline::protocol::session::Cipher;
use tieline::protocol::wire::data_flags::{FIRST_PIECE, LAST_PIECE, PARTIAL_CHECKSUM};
use tieline::protocol::{HEADER, Path, Received, Receiver, Sender, SocketId, TAG, Time};

/// As in the egress loop.
const LAYOUT: Layout = Layout { header: HEADER, frame: 9_216, tag: TAG, slots: 64 };
/// Payload of a TCP segment with timestamps, at the MTU of a link over Ethernet: 1440 − 20 − 32.
const SEGMENT: usize = 1_388;
/// As many of them as one frame has room for.
const SEGMENTS: usize = 46;
const CIPHERS: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];
const PATH: Path =
    Path { socket: SocketId(0), local: None, peer: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7311) };

fn main() {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    for mut load in [Load::super_packet(), Load::in_pieces(), Load::small_packets()] {
        seal(&mut criterion, &mut load);
        open(&mut criterion, &mut load);
    }
    replay(&mut criterion);
    addresses(&mut criterion);
    criterion.final_summary();
}

/// What the interface gives: frames, each with what the kernel says of it.
struct Load {
    name: &'static str,
    frames: Vec<(Header, Vec<u8>)>,
    /// Packets they are cut into, and the datagrams those go in.
    packets: usize,
    datagrams: usize,
    /// What fits one datagram.
    longest: usize,
    throughput: Throughput,
}

impl Load {
    /// One frame of nearly 64 KB.
    fn super_packet() -> Load {
        let frame = packet(Protocol::Tcp, SEGMENT * SEGMENTS);
        let bytes = frame.1.len() as u64;
        let gso = Some(Gso { kind: Kind::Tcp4, ecn: false, size: SEGMENT as u16 });
        let frames = vec![(Header { gso, ..frame.0 }, frame.1)];
        let (packets, datagrams) = (SEGMENTS, SEGMENTS);
        Load {
            name: "super-packet",
            frames,
            packets,
            datagrams,
            longest: usize::MAX,
            throughput: Throughput::Bytes(bytes),
        }
    }

    /// One frame of nearly 48 KB, of segments for an MTU of 1500: each goes in two datagrams.
    fn in_pieces() -> Load {
        const SEGMENT: usize = 1_448;
        let packets = LAYOUT.slots / 2;
        let frame = packet(Protocol::Tcp, SEGMENT * packets);
        let bytes = frame.1.len() as u64;
        let gso = Some(Gso { kind: Kind::Tcp4, ecn: false, size: SEGMENT as u16 });
        Load {
            name: "super-packet in pieces",
            frames: vec![(Header { gso, ..frame.0 }, frame.1)],
            packets,
            datagrams: 2 * packets,
            longest: 1_440,
            throughput: Throughput::Bytes(bytes),
        }
    }

    /// A batch of UDP packets with 64 bytes each.
    fn small_packets() -> Load {
        let frames = (0..LAYOUT.slots).map(|_| packet(Protocol::Udp, 64)).collect();
        Load {
            name: "small packets",
            frames,
            packets: LAYOUT.slots,
            datagrams: LAYOUT.slots,
            longest: usize::MAX,
            throughput: Throughput::Elements(LAYOUT.slots as u64),
        }
    }

    /// Cuts the frames into `batch`, as the egress loop does.
    fn cut(&mut self, batch: &mut Batch<u8>) {
        for (header, frame) in &mut self.frames {
            match split::take(Layer::Ip, header, frame, Checksums::Partial, LAYOUT.frame).expect("a frame") {
                Taken::Run(plan) => {
                    assert!(plan.is_partial());
                    let next = if plan.length(0) <= self.longest {
                        plan.fill(0, frame, batch, &PARTIAL_CHECKSUM)
                    } else {
                        plan.fill_cut(0, frame, batch, self.longest, |part| {
                            PARTIAL_CHECKSUM | if part.first { FIRST_PIECE } else { LAST_PIECE }
                        })
                    };
                    assert_eq!(next, plan.count());
                }
                Taken::Whole { partial } => {
                    assert!(partial);
                    batch.room().expect("room")[..frame.len()].copy_from_slice(frame);
                    batch.push(frame.len(), PARTIAL_CHECKSUM);
                }
            }
        }
        assert_eq!(batch.len(), self.datagrams);
    }
}

/// A packet with `payload` bytes as the kernel gives it to the interface, its checksum partial.
fn packet(protocol: Protocol, payload: usize) -> (Header, Vec<u8>) {
    let transport: &[u8] = match protocol {
        // Ports, sequence, acknowledgement; eight words, ACK; window, checksum, urgent; two NOPs and timestamps.
        Protocol::Tcp => &[
            0x14, 0x51, 0x9C, 0x40, 0, 0, 1, 0, 0, 0, 2, 0, 0x80, 0x10, 1, 0xF5, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 3, 0,
            0, 0, 4, 0,
        ],
        // Ports, length, checksum.
        Protocol::Udp => &[0x14, 0x51, 0x9C, 0x40, 0, 8 + payload as u8, 0, 0],
    };
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol.number(), 0, 0, 10, 99, 0, 1, 10, 99, 0, 2];
    packet.extend(transport);
    packet.extend((0..payload).map(|n| (n * 7) as u8));
    let length = packet.len() as u16;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    checksum::complete(&mut packet[..20], 10);
    let found = Transport::find(Layer::Ip, &packet).expect("a packet");
    let sum = found.pseudo(&packet) + Sum::word(found.length());
    let at = found.start + protocol.checksum_offset();
    packet[at..at + 2].copy_from_slice(&sum.partial().to_be_bytes());
    (Header { checksum: Some(found.place()), gso: None, header_length: found.payload as u16 }, packet)
}

/// From the interface's frames to datagrams that can be sent.
fn seal(criterion: &mut Criterion, load: &mut Load) {
    let mut group = criterion.benchmark_group(format!("cut and seal, {}", load.name));
    group.throughput(load.throughput.clone());
    for cipher in CIPHERS {
        let [(mut sender, ..), _] = line::up(cipher);
        let mut batch = Batch::new(LAYOUT);
        group.bench_function(cipher.name(), |bencher| bencher.iter(|| cut_and_seal(load, &mut sender, &mut batch)));
    }
}

fn cut_and_seal(load: &mut Load, sender: &mut Sender, batch: &mut Batch<u8>) {
    batch.clear();
    load.cut(batch);
    batch.retain(|datagram, flags| sender.seal(*flags, datagram).is_ok());
    sender.handed_over();
    assert_eq!(batch.len(), load.datagrams);
}

/// From the datagrams of one receive to what is written to the interface. They can be opened but once, so each time others
/// are sealed before, while the watch stands.
fn open(criterion: &mut Criterion, load: &mut Load) {
    let mut group = criterion.benchmark_group(format!("open and join, {}", load.name));
    group.throughput(load.throughput.clone());
    for cipher in CIPHERS {
        let [(mut sender, ..), (_, mut receiver, _)] = line::up(cipher);
        let mut batch = Batch::new(LAYOUT);
        let waiting = Bounds { pieces: 1_024, bytes: 1 << 20, time: 1_000_000_000, frame: LAYOUT.frame };
        let mut inlet = Inlet {
            buffer: vec![0; 1 << 17],
            pieces: Pieces::new(waiting),
            merger: Merger::new(Layer::Ip, Limits::default(), load.packets),
        };
        group.bench_function(cipher.name(), |bencher| {
            bencher.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    cut_and_seal(load, &mut sender, &mut batch);
                    let (end, size) = inlet.receive(&batch);
                    let started = Instant::now();
                    inlet.open_and_join(&mut receiver, end, size);
                    spent += started.elapsed();
                    inlet.check_and_clear(load.packets);
                }
                spent
            });
        });
    }
}

/// The ingress loop's buffer, and what joins the packets in it.
struct Inlet {
    buffer: Vec<u8>,
    pieces: Pieces,
    merger: Merger,
}

impl Inlet {
    /// Stands for the kernel, which hands over a run of datagrams as one message: its length, and theirs.
    fn receive(&mut self, batch: &Batch<u8>) -> (usize, usize) {
        let mut runs = batch.runs(|_| ());
        let (bytes, size, ()) = runs.next().expect("a run");
        assert!(runs.next().is_none(), "all are of one size");
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        (bytes.len(), size)
    }

    fn open_and_join(&mut self, receiver: &mut Receiver, end: usize, size: usize) {
        for start in (0..end).step_by(size) {
            let datagram = start..end.min(start + size);
            let received = receiver.receive(Time(1), PATH, &mut self.buffer[datagram.clone()]);
            let mut text = datagram.start + HEADER..datagram.end - TAG;
            match received {
                Received::Frame { flags: PARTIAL_CHECKSUM } => {}
                Received::Piece { flags, session, counter } => {
                    let piece = flags & !PARTIAL_CHECKSUM;
                    let part = Part { first: piece == FIRST_PIECE, last: piece == LAST_PIECE };
                    let name = Name { origin: session, number: counter };
                    let batch = self.buffer.len();
                    match self.pieces.push(
                        &mut self.buffer,
                        batch,
                        datagram,
                        text,
                        Piece { name, part, congested: false },
                        1,
                    ) {
                        Joined::Waits => continue,
                        Joined::Whole { frame, .. } => text = frame,
                        other => panic!("{other:?}"),
                    }
                }
                other => panic!("{other:?}"),
            }
            self.merger.push(&self.buffer, text, true).expect("a packet");
        }
        while receiver.poll_notice().is_some() {}
        self.merger.finish(&mut self.buffer);
    }

    /// All are of one flow, so one frame is to be written.
    fn check_and_clear(&mut self, packets: usize) {
        let written: Vec<_> = self.merger.writes().map(|write| write.packets()).collect();
        assert_eq!(written, [packets]);
        self.merger.clear();
    }
}

/// The replay window of a data lane: asking it and marking it, for each counter.
fn replay(criterion: &mut Criterion) {
    /// Counters are out of order within so many of them.
    const BLOCK: u64 = 1_024;
    let mut group = criterion.benchmark_group("replay window");
    group.throughput(Throughput::Elements(BLOCK));
    // An odd factor takes each number below a power of two to another one.
    for (name, factor) in [("in order", 1), ("reordered", 421)] {
        let (mut window, mut base) = (Window::data(), 0);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for counter in (0..BLOCK).map(|n| base + black_box(n) * factor % BLOCK) {
                    window.check(counter).expect("a fresh counter");
                    window.mark(counter);
                }
                base += BLOCK;
            });
        });
    }
}

/// What a batch of packets between as many hosts costs an end that forwards them: sources looked for among some prefixes and
/// addresses remembered, on the way in; and looked for, on the way out.
fn addresses(criterion: &mut Criterion) {
    const PREFIXES: u8 = 16;
    let network = |n| (IpAddr::from([172, 16, n, 0]), 24);
    let filter = SourceFilter::new(&[], &(0..PREFIXES).map(network).collect::<Vec<_>>());
    let returns = Returns::new([3, 5, 7, 11]);
    let packets: Vec<_> = (0..LAYOUT.slots as u8)
        .map(|host| {
            let mut bytes = packet(Protocol::Udp, 64).1;
            bytes[12..20].copy_from_slice(&[172, 16, PREFIXES - 1, host, 192, 168, 1, host]);
            bytes
        })
        .collect();
    let of = |packet: &[u8]| Addresses::of(Layer::Ip.network(packet).ok().flatten()?, packet);
    let mut group = criterion.benchmark_group("addresses");
    group.throughput(Throughput::Elements(LAYOUT.slots as u64));
    group.bench_function("filtered and remembered", |bencher| {
        bencher.iter(|| {
            for packet in black_box(&packets) {
                let addresses = of(packet).expect("an IP packet");
                assert!(filter.admits(&addresses));
                returns.goes_out(&addresses, 1);
            }
        });
    });
    group.bench_function("looked for", |bencher| {
        bencher.iter(|| {
            for packet in black_box(&packets) {
                assert!(!returns.comes_back(&of(packet).expect("an IP packet"), u64::MAX / 2));
            }
        });
    });
}
