//! Both loops of two ends, with a pair of local sockets in the place of each device and real UDP between them.

use super::turns::{Turn, Turns};
use super::*;
use crate::keys::SecretKey;
use crate::packet::Layer;
use crate::protocol::crypto::{CryptoFailure, Entropy, KEM_CT, KEM_EK, KemKey, MacKey, Secret};
use crate::protocol::handshake::{Root, Statics};
use crate::protocol::session::{Cipher, Halves, Shape, lane_set};
use crate::protocol::{Input, Notice, Receiver, Sender, wire};
use crate::sys::offloads::TunOffloads;
use crate::sys::testing::{in_own_network, shell};
use crate::sys::udp;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough for what must not happen to happen.
const MOMENT: Duration = Duration::from_millis(100);

/// One end: what stands for its interface's kernel side, its loops, its mailbox.
struct End {
    interface: UnixDatagram,
    dataplane: Dataplane,
    mailbox: Mailbox,
    levels: Arc<Levels>,
    address: SocketAddr,
}

impl End {
    /// With a socket on `address`; cold-open datagrams to it are MAC'd with a key of all nines.
    fn start(address: &str) -> End {
        End::start_with(address, Treatment::default())
    }

    fn start_with(address: &str, treatment: Treatment) -> End {
        let (device, interface) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        fcntl(&device, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).unwrap();
        let interface = UnixDatagram::from(interface);
        interface.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = bind(address);
        let address = socket.local_addr().unwrap();
        let levels: Arc<Levels> = Arc::default();
        let (sender, receiver) = (Sender::new(levels.clone()), Receiver::new(vec![mac_key()], levels.clone()));
        let device = Device::new(device, Layer::Ip, TunOffloads::NONE);
        let sockets = vec![(SocketId(0), socket)];
        let (dataplane, mailbox) =
            Dataplane::start_with(device, sockets, treatment, sender, receiver, levels.clone(), |_| {}).unwrap();
        End { interface, dataplane, mailbox, levels, address }
    }

    fn path_to(&self, peer: SocketAddr) -> Path {
        Path { socket: SocketId(0), local: Some(self.address.ip()), peer }
    }

    /// Gives both loops a session: the sealing half for `peer`, the opening half.
    fn install(&self, halves: &mut Halves, opening: Option<Box<crate::protocol::session::Opening>>, peer: SocketAddr) {
        if let Some(opening) = opening {
            self.dataplane.ingress(IngressUpdate::Install(opening));
        }
        self.dataplane.egress(EgressUpdate::Path(Some(self.path_to(peer))));
        self.dataplane.egress(EgressUpdate::Session(halves.sealers.pop().map(Box::new)));
        // Taken when it shows: a frame sent before would be dropped, and rightly.
        eventually("updates taken", || !self.dataplane.egress.is_waiting() && !self.dataplane.ingress.is_waiting());
    }

    /// Gives it a frame of 100 bytes with each of these numbers.
    fn send(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.interface.send(&v4(100, number)).unwrap();
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut room = vec![0; 10_000];
        let length = self.interface.recv(&mut room).expect("a frame within the time");
        room.truncate(length);
        room
    }

    fn no_frame(&self) {
        self.interface.set_read_timeout(Some(MOMENT)).unwrap();
        assert!(self.interface.recv(&mut [0; 100]).is_err(), "a frame that should not be");
        self.interface.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    fn message(&mut self) -> Message {
        self.message_within(PATIENCE).expect("a message within the time")
    }

    /// What the loops had to say of packets they dropped, until nothing more comes.
    fn remarks(&mut self) -> Vec<Message> {
        let all = std::iter::from_fn(|| self.message_within(MOMENT));
        all.filter(|message| !matches!(message, Message::Input(_))).collect()
    }

    fn message_within(&mut self, time: Duration) -> Option<Message> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(time, self.mailbox.recv()).await.ok() })
    }
}

/// Two ends with a session between them.
struct Line {
    a: End,
    b: End,
    a_halves: Halves,
    b_halves: Halves,
}

impl Line {
    fn up(a: &str, b: &str) -> Line {
        Line::between(End::start(a), End::start(b))
    }

    fn between(a: End, b: End) -> Line {
        let (mut a_halves, mut b_halves) = session(Cipher::Aes256Gcm);
        let (a_opening, b_opening) = (take_opening(&mut a_halves), take_opening(&mut b_halves));
        a.install(&mut a_halves, Some(a_opening), b.address);
        b.install(&mut b_halves, Some(b_opening), a.address);
        Line { a, b, a_halves, b_halves }
    }

    fn local() -> Line {
        Line::up("127.0.0.1:0", "127.0.0.1:0")
    }
}

fn take_opening(halves: &mut Halves) -> Box<crate::protocol::session::Opening> {
    // Something to leave in its place.
    let (mut other, _) = session(Cipher::Aes256Gcm);
    std::mem::swap(&mut halves.opening, &mut other.opening);
    other.opening
}

/// As in a real link it has a door, by which all comes until the peer is admitted.
fn bind(address: &str) -> UdpSocket {
    let mut socket = UdpSocket::bind(address.parse().unwrap()).unwrap();
    socket.open_door().unwrap();
    socket
}

fn mac_key() -> MacKey {
    MacKey::new(&[9; 32])
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within the time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The handshake's ephemeral keys; no KEM is asked for.
struct Fixed(u8);

impl Entropy for Fixed {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoFailure> {
        out.fill(self.0);
        Ok(())
    }
    fn kem_generate(&mut self) -> Result<(Box<dyn KemKey>, Box<[u8; KEM_EK]>), CryptoFailure> {
        Err(CryptoFailure)
    }
    fn kem_encapsulate(&mut self, _: &[u8; KEM_EK]) -> Result<(Box<[u8; KEM_CT]>, Secret), CryptoFailure> {
        Err(CryptoFailure)
    }
}

/// Both ends' halves of a fresh session, out of a real handshake.
fn session(cipher: Cipher) -> (Halves, Halves) {
    let (a, b) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let a_statics = Statics::new(&a, b.public().unwrap());
    let b_statics = Statics::new(&b, a.public().unwrap());
    let mut initiator = a_statics.initiate(b"test", &[0; 32], &mut Fixed(1)).unwrap();
    let mut responder = b_statics.respond(b"test", &[0; 32], &mut Fixed(2)).unwrap();
    let noise1: [u8; 64] = initiator.write(&[0; 16]).unwrap();
    responder.read::<16>(&noise1).unwrap();
    let noise2: [u8; 64] = responder.write(&[0; 16]).unwrap();
    initiator.read::<16>(&noise2).unwrap();
    let halves = |root: Root, initiator: bool| {
        let (own_index, peer_index) = if initiator { (11, 22) } else { (22, 11) };
        let shape = Shape {
            cipher,
            initiator,
            own_index,
            peer_index,
            lanes: Some(lane_set(1)),
            partial_checksum: true,
            cut_frames: true,
        };
        Halves::derive(&root, &shape).unwrap()
    };
    (halves(initiator.split().unwrap(), true), halves(responder.split().unwrap(), false))
}

/// An IPv4 packet of `length` bytes with `number` in it.
fn v4(length: usize, number: u32) -> Vec<u8> {
    let mut frame = vec![0xC3; length];
    frame[0] = 0x45;
    frame[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    frame[20..24].copy_from_slice(&number.to_be_bytes());
    frame
}

/// An IPv6 packet of `length` bytes.
fn v6(length: usize) -> Vec<u8> {
    let mut frame = vec![0x3C; length];
    frame[0] = 0x60;
    frame[4..6].copy_from_slice(&(length as u16 - 40).to_be_bytes());
    frame
}

#[test]
fn frames_cross_both_ways_and_are_counted() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let line = Line::up(address, address);
        let frames = [v4(24, 1), v6(40), v4(1_500, 2), v6(9_000)];
        for (from, to) in [(&line.a, &line.b), (&line.b, &line.a)] {
            for frame in &frames {
                from.interface.send(frame).unwrap();
            }
            for frame in &frames {
                assert_eq!(to.frame(), *frame);
            }
        }
        let bytes = frames.iter().map(Vec::len).sum::<usize>() as u64;
        let all = Counters { tx_packets: 4, tx_bytes: bytes, rx_packets: 4, rx_bytes: bytes, ..Counters::default() };
        for end in [&line.a, &line.b] {
            // The frame is out before its batch is counted.
            eventually("counters", || end.dataplane.counters() == all);
        }
    }
}

#[test]
fn order_and_number_hold_over_many_batches() {
    let line = Line::local();
    for base in (0..20_000).step_by(40) {
        for n in base..base + 40 {
            line.a.interface.send(&v4(24 + n as usize % 1_400, n)).unwrap();
        }
        for n in base..base + 40 {
            assert_eq!(line.b.frame(), v4(24 + n as usize % 1_400, n));
        }
    }
    assert_eq!(line.a_halves.levels.sealed.get(), 20_000);
    assert_eq!(line.b_halves.levels.opened.get(), 20_000);
}

#[test]
fn without_a_session_frames_are_dropped_and_counted() {
    let (a, b) = (End::start("127.0.0.1:0"), End::start("127.0.0.1:0"));
    a.interface.send(&v4(100, 0)).unwrap();
    eventually("counted", || a.levels.drops.no_session.get() == 1);
    // However many: the loop goes on.
    for n in 2..=1000 {
        a.interface.send(&v4(1000, 0)).unwrap();
        eventually("counted", || a.levels.drops.no_session.get() == n);
    }

    // Sealed under a session the other end does not know.
    let (mut halves, _) = session(Cipher::ChaCha20Poly1305);
    a.install(&mut halves, None, b.address);
    a.interface.send(&v4(100, 0)).unwrap();
    eventually("counted", || b.levels.drops.no_session.get() == 1);
    b.no_frame();
}

#[test]
fn an_idle_loop_lets_go_of_old_keys() {
    let line = Line::local();
    let holders = |halves: &Halves| Arc::strong_count(&halves.levels);
    let (a, b) = (holders(&line.a_halves), holders(&line.b_halves));
    line.a.dataplane.egress(EgressUpdate::Session(None));
    line.b.dataplane.ingress(IngressUpdate::Remove(22));
    eventually("sealing half dropped", || holders(&line.a_halves) == a - 1);
    eventually("opening half dropped", || holders(&line.b_halves) == b - 1);
}

#[test]
fn what_cannot_be_a_packet_is_dropped_on_either_side() {
    let line = Line::local();
    line.a.interface.send(&[0x45; 19]).unwrap();
    line.a.interface.send(b"not IP at all, but long enough to look like it").unwrap();
    eventually("counted", || line.a.levels.drops.malformed.get() == 2);
    line.a.interface.send(&v4(FRAME + 1, 0)).unwrap();
    line.a.interface.send(&v4(FRAME + 500, 0)).unwrap();
    eventually("counted", || line.a.levels.drops.too_big.get() == 2);

    // A datagram longer than any of ours, and one of no kind.
    let stranger = bind("127.0.0.1:0");
    stranger.send_to(&[5; 20_000], line.b.address, None).unwrap();
    stranger.send_to(&[0; 50], line.b.address, None).unwrap();
    stranger.send_to(&[], line.b.address, None).unwrap();
    eventually("counted", || line.b.levels.drops.malformed.get() == 3);

    // And the line goes on.
    line.a.interface.send(&v4(100, 7)).unwrap();
    assert_eq!(line.b.frame(), v4(100, 7));
}

#[test]
fn a_peer_that_seals_nonsense_cannot_write_it_to_the_interface() {
    let mut line = Line::local();
    let (mut fresh, mut theirs) = session(Cipher::Aes256Gcm);
    line.b.dataplane.ingress(IngressUpdate::Install(take_opening(&mut theirs)));
    let nonsense = fresh.sealers[0].seal_message(b"this is no IP packet").unwrap();
    line.a.dataplane.send(line.a.path_to(line.b.address), &nonsense).unwrap();
    eventually("counted", || line.b.levels.drops.malformed.get() == 1);
    line.b.no_frame();
    assert_eq!(line.b.dataplane.counters().rx_packets, 0);
    assert!(matches!(line.b.message(), Message::Input(Input::Notice(Notice::Opened { session: 22 }))));
}

#[test]
fn replays_and_damage_are_counted_and_go_no_further() {
    let line = Line::local();
    let (mut fresh, mut theirs) = session(Cipher::Aes256Gcm);
    line.b.dataplane.ingress(IngressUpdate::Install(take_opening(&mut theirs)));
    let good = fresh.sealers[0].seal_message(&v4(60, 5)).unwrap();
    let mut damaged = fresh.sealers[0].seal_message(&v4(60, 6)).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    let path = line.a.path_to(line.b.address);
    for datagram in [&good, &good, &damaged] {
        line.a.dataplane.send(path, datagram).unwrap();
    }
    assert_eq!(line.b.frame(), v4(60, 5));
    eventually("counted", || line.b.levels.drops.replayed.get() == 1 && line.b.levels.drops.unauthentic.get() == 1);
    line.b.no_frame();
}

#[test]
fn the_engine_gets_its_share_with_the_path_it_came_by() {
    let mut line = Line::local();
    let path = line.a.path_to(line.b.address);
    let back = Path { peer: line.a.address, ..line.b.path_to(line.a.address) };

    let knock = wire::knock(&[3; 16], &mac_key());
    line.a.dataplane.send(path, &knock).unwrap();
    match line.b.message() {
        Message::Input(Input::Cold { path, datagram }) => assert_eq!((path, &datagram[..]), (back, &knock[..])),
        other => panic!("{other:?}"),
    }

    let report = line.a_halves.control.seal_message(b"report").unwrap();
    line.a.dataplane.send(path, &report).unwrap();
    match line.b.message() {
        Message::Input(Input::Control { path, session, counter, message }) => {
            assert_eq!((path, session, counter, &message[..]), (back, 22, 0, &b"report"[..]));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(line.b.message(), Message::Input(Input::Notice(Notice::Opened { session: 22 }))));

    let forged = wire::knock(&[3; 16], &MacKey::new(&[8; 32]));
    line.a.dataplane.send(path, &forged).unwrap();
    match line.b.message() {
        Message::Input(Input::Notice(Notice::Stranger { source })) => assert_eq!(source, line.a.address),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_keepalive_is_heard_but_is_no_user_packet() {
    let line = Line::local();
    line.a.dataplane.egress(EgressUpdate::Keepalive);
    eventually("heard", || line.b_halves.levels.opened.get() == 1);
    line.b.no_frame();
    for end in [&line.a, &line.b] {
        assert_eq!(end.dataplane.counters(), Counters::default());
    }
}

#[test]
fn a_lost_local_address_is_told_once_for_each_path() {
    let mut line = Line::local();
    // TEST-NET-1 (RFC 5737) is no address of this machine.
    let lost = Path { local: Some(IpAddr::from([192, 0, 2, 1])), ..line.a.path_to(line.b.address) };
    for _ in 0..2 {
        line.a.dataplane.egress(EgressUpdate::Path(Some(lost)));
        for _ in 0..3 {
            let errors = line.a.dataplane.counters().tx_errors;
            line.a.interface.send(&v4(100, 0)).unwrap();
            eventually("tried", || line.a.dataplane.counters().tx_errors > errors);
        }
        match line.a.message() {
            Message::SendFailed { path, error } => assert!(path == lost && udp::unpins(&error), "{error}"),
            other => panic!("{other:?}"),
        }
        assert!(line.a.message_within(MOMENT).is_none());
    }
    // Unpinned, it goes.
    line.a.dataplane.egress(EgressUpdate::Path(Some(Path { local: None, ..lost })));
    eventually("updates taken", || !line.a.dataplane.egress.is_waiting());
    line.a.interface.send(&v4(100, 1)).unwrap();
    assert_eq!(line.b.frame(), v4(100, 1));
}

#[test]
fn a_second_socket_is_used_and_closed_at_run_time() {
    let mut line = Line::local();
    let second = bind("127.0.0.1:0");
    let address = second.local_addr().unwrap();
    line.a.dataplane.add_socket(SocketId(1), second).unwrap();
    let path = Path { socket: SocketId(1), ..line.a.path_to(line.b.address) };
    line.a.dataplane.egress(EgressUpdate::Path(Some(path)));
    eventually("updates taken", || !line.a.dataplane.egress.is_waiting());

    // Out of it, by both ways to send.
    line.a.interface.send(&v4(100, 1)).unwrap();
    assert_eq!(line.b.frame(), v4(100, 1));
    let knock = wire::knock(&[3; 16], &mac_key());
    line.a.dataplane.send(path, &knock).unwrap();
    let source = loop {
        if let Message::Input(Input::Cold { path, .. }) = line.b.message() {
            break path.peer;
        }
    };
    assert_eq!(source, address);

    // Into it and into the first one.
    for (to, id) in [(address, SocketId(1)), (line.a.address, SocketId(0))] {
        line.b.dataplane.send(line.b.path_to(to), &knock).unwrap();
        match line.a.message() {
            Message::Input(Input::Cold { path, .. }) => assert_eq!((path.socket, path.peer), (id, line.b.address)),
            other => panic!("{other:?}"),
        }
    }

    line.a.dataplane.remove_socket(SocketId(1));
    let error = line.a.dataplane.send(path, &knock).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    // The port is free again once the loops have let go of it.
    eventually("closed", || UdpSocket::bind(address).is_ok());
    // What still has that path is lost, and counted.
    line.a.interface.send(&v4(100, 2)).unwrap();
    eventually("counted", || line.a.dataplane.counters().tx_errors == 1);
}

/// Hands the egress loop updates and waits until it has taken them.
fn tell(end: &End, updates: impl IntoIterator<Item = EgressUpdate>) {
    updates.into_iter().for_each(|update| end.dataplane.egress(update));
    eventually("updates taken", || !end.dataplane.egress.is_waiting());
}

/// Frames that lie unread in the device of an end that is held: not one more is taken.
fn send_held(end: &End, numbers: std::ops::Range<u32>) {
    tell(end, [EgressUpdate::Hold]);
    end.send(numbers);
    std::thread::sleep(MOMENT);
}

#[test]
fn a_held_loop_leaves_frames_in_the_device_and_a_path_lets_them_go_in_order() {
    let line = Line::local();
    let path = line.a.path_to(line.b.address);
    for base in (0..400).step_by(20) {
        // In mid-stream: what was read before goes, what was not waits.
        line.a.send(base..base + 10);
        tell(&line.a, [EgressUpdate::Hold]);
        line.a.send(base + 10..base + 20);
        tell(&line.a, [EgressUpdate::Path(Some(path))]);
        (base..base + 20).for_each(|n| assert_eq!(line.b.frame(), v4(100, n)));
    }
    send_held(&line.a, 400..450);
    assert_eq!((line.a_halves.levels.sealed.get(), line.a.dataplane.counters().tx_packets), (400, 400));
    // What is no path lets nothing go, and what need not wait does not.
    tell(&line.a, [EgressUpdate::Limit(1_400), EgressUpdate::Second(None), EgressUpdate::Keepalive]);
    eventually("a keepalive", || line.b_halves.levels.opened.get() == 401);
    line.b.no_frame();
    tell(&line.a, [EgressUpdate::Path(Some(path))]);
    (400..450).for_each(|n| assert_eq!(line.b.frame(), v4(100, n)));
    assert_eq!(line.a.levels.drops.no_session.get(), 0);
}

#[test]
fn what_waited_goes_by_the_new_path() {
    let line = Line::local();
    let elsewhere = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    elsewhere.set_read_timeout(Some(PATIENCE)).unwrap();
    send_held(&line.a, 0..50);
    let path = line.a.path_to(elsewhere.local_addr().unwrap());
    tell(&line.a, [EgressUpdate::Path(Some(path))]);
    for counter in 0..50u64 {
        let mut datagram = [0; 200];
        assert_eq!(elsewhere.recv(&mut datagram).unwrap(), 100 + constants::MIN_TRANSPORT);
        assert_eq!(datagram[8..16], counter.to_be_bytes());
    }
    line.b.no_frame();
}

#[test]
fn a_held_loop_sleeps_and_stops_when_told() {
    let (device, interface) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK).unwrap();
    let device = Arc::new(Device::new(device, Layer::Ip, TunOffloads::NONE));
    let handoff: Arc<Handoff<EgressUpdate>> = Arc::new(Handoff::new().unwrap());
    let (levels, (outbox, _mailbox)) = (Arc::<Levels>::default(), mailbox::open());
    let sender = Sender::new(levels.clone());
    let treatment = Treatment::default();
    let mut egress = egress::Egress::new(device, treatment, sender, handoff.clone(), levels, Arc::default(), outbox);
    let interface = UnixDatagram::from(interface);
    interface.send(&v4(100, 0)).unwrap();
    handoff.push(Command::Update(EgressUpdate::Hold));
    // It looks at commands alone in this turn, as if the frame had come after them.
    egress.wait().unwrap();
    assert_eq!(egress.turn(0b10).unwrap(), Turn::Idle);
    // In the middle of its turns it goes by what it found ready before.
    assert_eq!(egress.turn(0b11).unwrap(), Turn::Idle, "a frame was read");
    let (slept, woken) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let ready = egress.wait().unwrap();
        slept.send(ready).unwrap();
        egress.turn(ready).unwrap()
    });
    assert!(woken.recv_timeout(MOMENT).is_err(), "the device woke it");
    handoff.push(Command::Stop);
    assert_eq!(woken.recv_timeout(PATIENCE), Ok(0b10));
    assert_eq!(thread.join().unwrap(), Turn::Stop);
}

/// What comes to a socket, until it has been `count` datagrams.
fn datagrams(socket: &std::net::UdpSocket, count: usize) -> Vec<Vec<u8>> {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let receive = |_| {
        let mut datagram = vec![0; 10_000];
        let length = socket.recv(&mut datagram).expect("a datagram within the time");
        datagram.truncate(length);
        datagram
    };
    (0..count).map(receive).collect()
}

/// Sends frames and a keepalive by two paths, of which the n-th may be `dead`, and says what came by which.
fn by_two_paths(dead: [bool; 2]) -> [Vec<Vec<u8>>; 2] {
    const COUNT: usize = 100;
    let mut line = Line::local();
    let ends = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    line.a.dataplane.add_socket(SocketId(1), bind("127.0.0.1:0")).unwrap();
    let mut paths =
        [0, 1].map(|n| Path { socket: SocketId(n), ..line.a.path_to(ends[usize::from(n)].local_addr().unwrap()) });
    for (path, _) in paths.iter_mut().zip(dead).filter(|(_, dead)| *dead) {
        path.local = Some(IpAddr::from([192, 0, 2, 1])); // TEST-NET-1 (RFC 5737), no address of this machine
    }
    tell(&line.a, [EgressUpdate::Path(Some(paths[0])), EgressUpdate::Second(Some(paths[1]))]);
    line.a.send(0..COUNT as u32);
    eventually("all sealed", || line.a_halves.levels.sealed.get() == COUNT as u64);
    tell(&line.a, [EgressUpdate::Keepalive]);
    let mut came = [Vec::new(), Vec::new()];
    for (n, _) in dead.iter().enumerate().filter(|(_, dead)| !**dead) {
        came[n] = datagrams(&ends[n], COUNT + 1);
    }
    let counted = match dead[0] {
        false => Counters { tx_packets: COUNT as u64, tx_bytes: 100 * COUNT as u64, ..Counters::default() },
        true => Counters { tx_errors: COUNT as u64, ..Counters::default() },
    };
    eventually("what the first path took is counted", || line.a.dataplane.counters() == counted);
    let mut blamed = Vec::new();
    while let Some(Message::SendFailed { path, .. }) = line.a.message_within(MOMENT) {
        blamed.push(path);
    }
    let lost: Vec<_> = paths.into_iter().zip(dead).filter_map(|(path, dead)| dead.then_some(path)).collect();
    assert!(
        lost.iter().all(|path| blamed.contains(path)) && blamed.iter().all(|path| lost.contains(path)),
        "{blamed:?}"
    );
    came
}

#[test]
fn both_paths_get_the_same_bytes_and_the_first_is_counted() {
    let [first, second] = by_two_paths([false, false]);
    assert_eq!(first, second);
}

#[test]
fn a_dead_path_takes_nothing_from_the_other_and_is_told_by_its_name() {
    let [_, second] = by_two_paths([true, false]);
    let [first, _] = by_two_paths([false, true]);
    assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), second.iter().map(Vec::len).collect::<Vec<_>>());
    by_two_paths([true, true]);
}

#[test]
fn a_path_whose_socket_is_closed_takes_nothing_from_the_other() {
    let mut line = Line::local();
    let gone = Path { socket: SocketId(3), ..line.a.path_to(line.b.address) };
    let open = line.a.path_to(line.b.address);
    tell(&line.a, [EgressUpdate::Path(Some(gone)), EgressUpdate::Second(Some(open))]);
    line.a.interface.send(&v4(100, 1)).unwrap();
    assert_eq!(line.b.frame(), v4(100, 1));
    eventually("counted", || line.a.dataplane.counters().tx_errors == 1);
    tell(&line.a, [EgressUpdate::Path(Some(open)), EgressUpdate::Second(Some(gone))]);
    line.a.interface.send(&v4(100, 2)).unwrap();
    assert_eq!(line.b.frame(), v4(100, 2));
    eventually("counted", || line.a.dataplane.counters().tx_packets == 1);
    assert!(line.a.message_within(MOMENT).is_none());
}

#[test]
fn what_is_too_big_for_one_of_two_paths_names_it_and_is_lost_only_by_the_first() {
    in_own_network(|| {
        shell("ip link set lo mtu 1280 up");
        shell("ip link add narrow mtu 1400 type veth peer name wide");
        shell("ip addr add 192.0.2.1/24 dev narrow && ip link set wide up && ip link set narrow up");
        let mut end = End::start("0.0.0.0:0");
        let (mut halves, _) = session(Cipher::Aes256Gcm);
        let to = |peer: &str| Path { socket: SocketId(0), local: None, peer: peer.parse().unwrap() };
        let (small, large) = (to("127.0.0.1:9"), to("192.0.2.2:9"));
        tell(&end, [EgressUpdate::Session(halves.sealers.pop().map(Box::new))]);
        for (first, second, lost) in [(large, small, 0), (small, large, 1)] {
            tell(&end, [EgressUpdate::Path(Some(first)), EgressUpdate::Second(Some(second))]);
            end.interface.send(&v4(1_300, 0)).unwrap();
            match end.message() {
                Message::TooBig { path } => assert_eq!(path, small),
                other => panic!("{other:?}"),
            }
            // Counted after it was told.
            let counts = || (end.levels.drops.too_big.get(), end.dataplane.counters().tx_packets);
            eventually("counted", || counts() == (lost, 1));
        }
    });
}

#[test]
fn of_two_copies_one_is_written_and_the_other_counted() {
    const COUNT: u32 = 2_000;
    let mut line = Line::local();
    let second = bind("127.0.0.1:0");
    let guests = [line.b.address, second.local_addr().unwrap()].map(|address| (SocketId(0), address));
    line.b.dataplane.add_socket(SocketId(1), second).unwrap();
    line.a.dataplane.admit(&guests).unwrap();
    let path = line.b.path_to(line.a.address);
    let second = Path { socket: SocketId(1), ..path };
    tell(&line.b, [EgressUpdate::Path(Some(path)), EgressUpdate::Second(Some(second))]);
    for base in (0..COUNT).step_by(20) {
        line.b.send(base..base + 20);
        (base..base + 20).for_each(|n| assert_eq!(line.a.frame(), v4(100, n)));
    }
    eventually("copies", || line.a.levels.drops.replayed.get() == u64::from(COUNT));
    line.a.no_frame();
    let counted = Counters { rx_packets: COUNT.into(), rx_bytes: u64::from(COUNT) * 100, ..Counters::default() };
    assert_eq!(line.a.dataplane.counters(), counted);
}

/// A UDP packet over IPv4 between these, with `number` in it.
fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16), number: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend([from.0, to.0].concat());
    packet.extend([from.1, to.1, 12, 0].map(u16::to_be_bytes).as_flattened());
    packet.extend(number.to_be_bytes());
    packet
}

/// The treatment at an end with 10.99.0.1, which keeps in mind what came out of the link.
fn guarded() -> Treatment {
    let addresses = [(IpAddr::from([10, 99, 0, 1]), 30)];
    Treatment {
        own: OwnAddresses::new(addresses),
        sources: Some(SourceFilter::new(&addresses, &[(IpAddr::from([10, 2, 0, 0]), 16)])),
        returns: Some(Arc::new(Returns::new([1, 2, 3, 4]))),
        ..Treatment::default()
    }
}

#[test]
fn the_links_own_datagrams_do_not_go_into_the_link_and_that_is_told_once_a_second() {
    let mut line = Line::local();
    let local = [127, 0, 0, 1];
    let [a, b] = [&line.a, &line.b].map(|end| end.address.port());
    for (n, (from, to)) in
        [((local, a + 1), (local, b)), ((local, a), (local, b + 1)), ((local, a), ([127, 0, 0, 2], b))]
            .into_iter()
            .enumerate()
    {
        let other = udp(from, to, n as u32);
        line.a.interface.send(&other).unwrap();
        assert_eq!(line.b.frame(), other);
    }
    let started = Instant::now();
    for n in 1..=200 {
        line.a.interface.send(&udp((local, a), (local, b), n)).unwrap();
        eventually("counted", || line.a.levels.drops.looped.get() == u64::from(n));
    }
    line.b.no_frame();
    let told = line.a.path_to(line.b.address);
    let mut times = 0;
    while let Some(message) = line.a.message_within(MOMENT) {
        assert!(matches!(message, Message::Looped { path } if path == told), "{message:?}");
        times += 1;
    }
    assert!((1..=1 + started.elapsed().as_secs()).contains(&times), "told {times} times");
    // On the second path too, and where there is none nothing is refused.
    let paths = [EgressUpdate::Path(Some(line.a.path_to(line.b.address))), EgressUpdate::Second(Some(told))];
    tell(&line.a, paths);
    line.a.interface.send(&udp((local, a), (local, b), 0)).unwrap();
    eventually("counted", || line.a.levels.drops.looped.get() == 201);
}

#[test]
fn what_came_out_of_the_link_is_not_sent_back_into_it() {
    let mut line = Line::between(End::start("127.0.0.1:0"), End::start_with("127.0.0.1:0", guarded()));
    let (host, peer, own, nobody) = (([10, 2, 0, 9], 5), ([10, 99, 0, 2], 5), ([10, 99, 0, 1], 7), ([10, 99, 0, 0], 7));
    let back_and_forth = |line: &Line, packet: &[u8]| {
        line.a.interface.send(packet).unwrap();
        assert_eq!(line.b.frame(), packet);
        line.b.interface.send(packet).unwrap();
    };
    for (n, from) in [host, peer].into_iter().enumerate() {
        back_and_forth(&line, &udp(from, nobody, 0));
        eventually("counted", || line.b.levels.drops.returned.get() == n as u64 + 1);
    }
    let told = line.b.remarks();
    assert!(
        matches!(told[..], [Message::Returned { destination }] if destination == IpAddr::from(nobody.0)),
        "once a minute: {told:?}"
    );
    // What was for this end, for many, or is an answer is not what came out.
    for (out, back) in [
        (udp(host, own, 1), udp(host, own, 1)),
        (udp(host, ([239, 1, 1, 1], 7), 1), udp(host, ([239, 1, 1, 1], 7), 1)),
        (udp(host, ([10, 99, 0, 3], 7), 1), udp(host, ([10, 99, 0, 3], 7), 1)),
        (udp(host, nobody, 1), udp(nobody, host, 1)),
        (udp(host, nobody, 1), udp(own, nobody, 1)),
    ] {
        line.a.interface.send(&out).unwrap();
        assert_eq!(line.b.frame(), out);
        line.b.interface.send(&back).unwrap();
        assert_eq!(line.a.frame(), back);
    }
    // And one that came out long enough ago.
    line.a.interface.send(&udp(host, nobody, 2)).unwrap();
    line.b.frame();
    thread::sleep(Duration::from_millis(1_100));
    line.b.interface.send(&udp(host, nobody, 2)).unwrap();
    assert_eq!(line.a.frame(), udp(host, nobody, 2));
}

#[test]
fn a_foreign_source_is_dropped_and_its_prefix_told_once() {
    let mut line = Line::between(End::start("127.0.0.1:0"), End::start_with("127.0.0.1:0", guarded()));
    let to = ([10, 99, 0, 1], 7);
    for n in 0..100 {
        line.a.interface.send(&udp(([203, 0, 113, n as u8], 5), to, n)).unwrap();
        line.a.interface.send(&udp(([10, 2, 0, 9], 5), to, n)).unwrap();
        assert_eq!(line.b.frame(), udp(([10, 2, 0, 9], 5), to, n));
    }
    assert_eq!(line.b.levels.drops.source.get(), 100);
    let told = line.b.remarks();
    assert!(
        matches!(told[..], [Message::ForeignSource { prefix, .. }] if prefix == ([203, 0, 113, 0].into(), 24)),
        "{told:?}"
    );
}

#[test]
fn guests_are_of_one_socket_and_of_those_opened_later() {
    let peers = [1, 2, 3].map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
    let guests = [(SocketId(0), peers[0]), (SocketId(1), peers[1]), (SocketId(0), peers[2]), (SocketId(0), peers[0])];
    assert_eq!(at(&guests, SocketId(0)), [peers[0], peers[2]]);
    assert_eq!(at(&guests, SocketId(1)), [peers[1]]);
    assert_eq!(at(&guests, SocketId(2)), []);
}

#[test]
fn an_admitted_peer_is_heard_on_every_socket_and_so_are_others() {
    let mut line = Line::local();
    let b = line.b.address;
    for (frame, admitted) in [(1, None), (2, Some(b)), (3, Some("192.0.2.1:9".parse().unwrap())), (4, Some(b))] {
        let admitted: Vec<_> = admitted.map(|peer| (SocketId(0), peer)).into_iter().collect();
        line.a.dataplane.admit(&admitted).unwrap();
        line.b.interface.send(&v4(100, frame)).unwrap();
        assert_eq!(line.a.frame(), v4(100, frame), "{admitted:?}");
    }
    // Also on one that was opened since.
    let second = bind("127.0.0.1:0");
    let path = line.b.path_to(second.local_addr().unwrap());
    line.a.dataplane.add_socket(SocketId(1), second).unwrap();
    line.b.dataplane.egress(EgressUpdate::Path(Some(path)));
    eventually("updates taken", || !line.b.dataplane.egress.is_waiting());
    line.b.interface.send(&v4(100, 5)).unwrap();
    assert_eq!(line.a.frame(), v4(100, 5));
}

#[test]
fn what_floods_the_door_is_taken_no_faster_than_the_loop_wants() {
    const BATCHES: u32 = 100;
    let mut line = Line::local();
    line.a.dataplane.admit(&[(SocketId(0), line.b.address)]).unwrap();
    let (stranger, to) = (bind("127.0.0.1:0"), line.a.address);
    let junk = u64::from(BATCHES) * ingress::ROOMS as u64;
    let started = Instant::now();
    let use_line = || line.b.interface.send(&v4(100, 0)).unwrap();
    use_line();
    line.a.frame();
    for n in 0..junk {
        stranger.send_to(&[0; 40], to, None).unwrap();
        if n % 16 == 0 {
            use_line();
        }
    }
    let taken = || line.a.levels.drops.malformed.get();
    let all = || {
        use_line();
        taken() == junk
    };
    eventually("all taken, as there is room for that many", all);
    // It does not rest before the first batch.
    assert!(started.elapsed() >= ingress::REST * (BATCHES - 1), "{:?}", started.elapsed());
}

#[test]
fn a_peer_from_an_address_nobody_knows_yet_comes_by_the_door_with_junk_beside_him() {
    let line = Line::local();
    let (stranger, to) = (bind("127.0.0.1:0"), line.a.address);
    for n in 0..200 {
        stranger.send_to(&[0; 40], to, None).unwrap();
        line.b.interface.send(&v4(100, n)).unwrap();
        assert_eq!(line.a.frame(), v4(100, n));
    }
}

#[test]
fn there_is_a_limit_to_open_sockets() {
    let mut end = End::start("127.0.0.1:0");
    for id in 1..sockets::MAX as u8 {
        end.dataplane.add_socket(SocketId(id), bind("127.0.0.1:0")).unwrap();
    }
    let error = end.dataplane.add_socket(SocketId(9), bind("127.0.0.1:0")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    // Another in the place of one is no more than before.
    end.dataplane.add_socket(SocketId(1), bind("127.0.0.1:0")).unwrap();
}

#[test]
fn a_lost_device_reaches_the_control_side() {
    let mut line = Line::local();
    line.b.interface.shutdown(std::net::Shutdown::Both).unwrap();
    match line.b.message() {
        Message::LoopDied { which, error } => {
            assert_eq!((which, error.kind()), (Loop::Egress, io::ErrorKind::UnexpectedEof));
        }
        other => panic!("{other:?}"),
    }
    // The frame opens, which is told too, and then cannot be written.
    line.a.interface.send(&v4(100, 0)).unwrap();
    loop {
        match line.b.message() {
            Message::Input(Input::Notice(Notice::Opened { .. })) => {}
            Message::LoopDied { which, .. } => return assert_eq!(which, Loop::Ingress),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_panic_is_told_as_a_death() {
    let (outbox, mut mailbox) = mailbox::open();
    spawn(Loop::Ingress, outbox, || panic!("on purpose")).unwrap().join().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    match runtime.block_on(mailbox.recv()) {
        Message::LoopDied { which: Loop::Ingress, error } => assert!(error.to_string().contains("panicked")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn stop_ends_both_threads_and_closes_device_and_port() {
    let Line { a, b, a_halves, .. } = Line::local();
    a.interface.send(&v4(100, 0)).unwrap();
    b.frame();
    a.dataplane.stop();
    // A loop that still ran would hold the device, and reading would wait.
    assert_eq!(a.interface.recv(&mut [0; 100]).unwrap(), 0);
    UdpSocket::bind(a.address).unwrap();
    assert_eq!(Arc::strong_count(&a_halves.levels), 2, "the test's own and its control sealer's");
}

#[test]
fn an_update_handed_over_before_a_datagram_was_drawn_is_there_for_it() {
    // PROTOCOL §2: opening keys are installed BEFORE the Response that lets the peer use them is sent.
    let (a, b) = (End::start("127.0.0.1:0"), End::start("127.0.0.1:0"));
    let path = a.path_to(b.address);
    for number in 0..300 {
        let (mut ours, mut theirs) = session(Cipher::Aes256Gcm);
        b.dataplane.ingress(IngressUpdate::Remove(22));
        b.dataplane.ingress(IngressUpdate::Install(take_opening(&mut theirs)));
        a.dataplane.send(path, &ours.sealers[0].seal_message(&v4(60, number)).unwrap()).unwrap();
        assert_eq!(b.frame(), v4(60, number));
    }
    assert_eq!(b.levels.drops.no_session.get() + b.levels.drops.unauthentic.get(), 0);
}

/// A host of its own with one TUN device, on a thread of its own: hands over the device, then runs `program`.
fn host(
    address: &'static str,
    wish: TunOffloads,
    devices: mpsc::Sender<Device>,
    program: impl FnOnce() + Send + 'static,
) -> JoinHandle<()> {
    let body = move || {
        let (device, granted) = crate::sys::tun::create("tl0", crate::sys::tun::Kind::Tun, wish).unwrap();
        shell(&format!("ip addr add 10.99.0.{address}/30 dev tl0"));
        shell(&format!("ip addr add fd99::{address}/126 dev tl0 nodad && ip link set tl0 up"));
        devices.send(Device::new(device, Layer::Ip, granted)).unwrap();
        program();
    };
    thread::spawn(move || in_own_network(body))
}

#[test]
fn datagrams_cross_between_two_hosts_over_real_devices() {
    for wish in [TunOffloads::NONE, TunOffloads::ALL] {
        datagrams_cross(wish);
    }
}

fn datagrams_cross(wish: TunOffloads) {
    let done = Arc::new(AtomicBool::new(false));
    let open = |address: &str| {
        let socket = std::net::UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(MOMENT)).unwrap();
        socket
    };
    // The far host sends back what it gets.
    let (devices, far_device) = mpsc::channel();
    let far = host("2", wish, devices, {
        let done = done.clone();
        move || {
            let mut room = [0; 2_000];
            let sockets = [open("10.99.0.2:7"), open("[fd99::2]:7")];
            while !done.load(Ordering::Relaxed) {
                for socket in &sockets {
                    if let Ok((length, from)) = socket.recv_from(&mut room) {
                        socket.send_to(&room[..length], from).unwrap();
                    }
                }
            }
        }
    });
    let (devices, near_device) = mpsc::channel();
    let near = host("1", wish, devices, {
        let done = done.clone();
        move || {
            let pairs = [("10.99.0.1:0", "10.99.0.2:7"), ("[fd99::1]:0", "[fd99::2]:7")];
            let outcome = pairs.map(|(own, far)| {
                let socket = open(own);
                let answered = |_| {
                    socket.send_to(&[0x5A; 1_400], far).unwrap();
                    let mut room = [0; 2_000];
                    matches!(socket.recv(&mut room), Ok(1_400)) && room[..1_400] == [0x5A; 1_400]
                };
                (0..100).any(answered)
            });
            done.store(true, Ordering::Relaxed);
            assert_eq!(outcome, [true, true], "IPv4, IPv6");
        }
    });
    // Where namespaces are not allowed both hosts are skipped, and there is no device.
    if let (Ok(near_device), Ok(far_device)) = (near_device.recv(), far_device.recv()) {
        let (mut near_halves, mut far_halves) = session(Cipher::ChaCha20Poly1305);
        // The sockets are this thread's, so the two hosts share nothing but the line.
        let (near_socket, far_socket) = (bind("[::]:0"), bind("[::]:0"));
        let loopback = |socket: &UdpSocket| ([127, 0, 0, 1], socket.local_addr().unwrap().port()).into();
        let (near_address, far_address): (SocketAddr, SocketAddr) = (loopback(&near_socket), loopback(&far_socket));
        let start = |device, socket, halves: &mut Halves, peer| {
            let levels: Arc<Levels> = Arc::default();
            let (sender, receiver) = (Sender::new(levels.clone()), Receiver::new(vec![mac_key()], levels.clone()));
            let (dataplane, _) = Dataplane::start(device, socket, sender, receiver, levels).unwrap();
            dataplane.ingress(IngressUpdate::Install(take_opening(halves)));
            dataplane.egress(EgressUpdate::Path(Some(Path { socket: SocketId(0), local: None, peer })));
            dataplane.egress(EgressUpdate::Session(halves.sealers.pop().map(Box::new)));
            dataplane
        };
        let line = (
            start(near_device, near_socket, &mut near_halves, far_address),
            start(far_device, far_socket, &mut far_halves, near_address),
        );
        near.join().unwrap();
        far.join().unwrap();
        assert!(line.0.counters().tx_bytes >= 2 * 1_428 && line.1.counters().tx_bytes >= 2 * 1_428);
    }
}
