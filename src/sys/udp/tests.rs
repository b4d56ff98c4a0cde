use super::*;
use crate::sys::testing::{in_own_network, shell};
use std::net::IpAddr;
use std::time::{Duration, Instant};

const ROOM: usize = 2000;

fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind(address.parse().unwrap()).unwrap()
}

/// `socket`'s port on loopback of the family of `like`.
fn loopback(socket: &UdpSocket, like: IpAddr) -> SocketAddr {
    (like, socket.local_addr().unwrap().port()).into()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn receive(socket: &UdpSocket, want: usize) -> Vec<(Vec<u8>, Datagram)> {
    let (mut batch, mut all) = (ReceiveBatch::new(8), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(5);
    while all.len() < want {
        assert!(Instant::now() < deadline, "{} of {want} datagrams came", all.len());
        let mut rooms = vec![[0u8; ROOM]; 8];
        let count = batch.receive(socket.as_fd(), rooms.iter_mut().map(|room| &mut room[..])).unwrap();
        assert_eq!(batch.datagrams().count(), count);
        all.extend(batch.datagrams().map(|(n, d)| (rooms[n][..d.length].to_vec(), d)));
    }
    all
}

fn send(from: &UdpSocket, to: SocketAddr, local: Option<IpAddr>, datagrams: &[&[u8]]) -> SendReport {
    SendBatch::new(8).send(from, to, local, datagrams.iter().copied().map(Run::single))
}

/// Both directions between two sockets, by batch and by single send, pinned to `pin`.
fn talk(a: &str, b: &str, target: &str, pin: &str) {
    let (a, b) = (bind(a), bind(b));
    let (target, pin) = (ip(target), ip(pin));
    let report = send(&a, loopback(&b, target), Some(pin), &[b"one", b"", b"three"]);
    assert!(report.error.is_none(), "{report:?}");
    assert_eq!((report.sent, report.bytes), (3, 8));
    a.send_to(b"four", loopback(&b, target), Some(pin)).unwrap();

    let got = receive(&b, 4);
    let bytes: Vec<_> = got.iter().map(|(bytes, _)| &bytes[..]).collect();
    assert_eq!(bytes, [&b"one"[..], b"", b"three", b"four"]);
    for (_, datagram) in &got {
        assert_eq!(datagram.peer, loopback(&a, pin));
        assert_eq!(datagram.local, Some(target));
        assert!(!datagram.truncated);
    }
    // The answer goes back on the path the datagram came by.
    let (_, came) = &got[0];
    b.send_to(b"back", came.peer, came.local).unwrap();
    let (bytes, back) = &receive(&a, 1)[0];
    assert_eq!(bytes, b"back");
    assert_eq!((back.peer, back.local), (loopback(&b, target), Some(pin)));
}

#[test]
fn ipv4_keeps_both_addresses() {
    talk("0.0.0.0:0", "0.0.0.0:0", "127.0.0.1", "127.0.0.2");
}

#[test]
fn ipv6_keeps_both_addresses() {
    talk("[::]:0", "[::]:0", "::1", "::1");
    talk("[::1]:0", "[::1]:0", "::1", "::1");
}

#[test]
fn dual_stack_speaks_ipv4_and_never_shows_it_mapped() {
    talk("[::]:0", "0.0.0.0:0", "127.0.0.1", "127.0.0.2");
    talk("0.0.0.0:0", "[::]:0", "127.0.0.3", "127.0.0.1");
    talk("[::]:0", "[::]:0", "127.0.0.3", "127.0.0.2");
}

#[test]
fn an_unpinned_send_leaves_the_choice_to_the_kernel() {
    let (a, b) = (bind("[::]:0"), bind("[::]:0"));
    for target in ["127.0.0.1", "::1"].map(ip) {
        assert_eq!(send(&a, loopback(&b, target), None, &[b"x"]).sent, 1);
        assert_eq!(receive(&b, 1)[0].1.peer, loopback(&a, target));
    }
}

#[test]
fn a_truncated_datagram_says_so() {
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    a.send_to(&[7; ROOM + 1], loopback(&b, ip("127.0.0.1")), None).unwrap();
    let (bytes, datagram) = &receive(&b, 1)[0];
    assert_eq!((bytes.len(), datagram.truncated), (ROOM, true));
}

#[test]
fn an_empty_socket_gives_nothing_at_once() {
    let mut room = [0; ROOM];
    let got = ReceiveBatch::new(1).receive(bind("127.0.0.1:0").as_fd(), std::iter::once(&mut room[..]));
    assert_eq!(got.unwrap(), 0);
}

#[test]
fn a_lost_local_address_is_blamed_and_costs_the_batch() {
    let (a, b) = (bind("[::]:0"), bind("[::]:0"));
    // TEST-NET-1 (RFC 5737) and the documentation prefix (RFC 3849) are no address of this machine.
    for (target, pin) in [("127.0.0.1", "192.0.2.1"), ("::1", "2001:db8::1"), ("::1", "127.0.0.1")] {
        let report = send(&a, loopback(&b, ip(target)), Some(ip(pin)), &[b"x", b"y"]);
        assert_eq!((report.sent, report.failed), (0, 2), "{pin}");
        assert!(unpins(report.error.as_ref().unwrap()), "{pin}: {report:?}");
        let error = a.send_to(b"x", loopback(&b, ip(target)), Some(ip(pin))).unwrap_err();
        assert!(unpins(&error) && !is_fatal(&error), "{pin}: {error}");
    }
}

#[test]
fn one_datagram_too_big_does_not_stop_its_neighbours() {
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let huge = vec![0; 65_600]; // over what UDP can carry, so over any MTU
    let report = send(&a, loopback(&b, ip("127.0.0.1")), None, &[b"x", &huge, b"y"]);
    assert_eq!((report.sent, report.bytes, report.too_big, report.failed), (2, 2, 1, 0));
    assert_eq!(receive(&b, 2).len(), 2);
}

#[test]
fn what_exceeds_the_mtu_is_refused_not_cut_into_fragments() {
    in_own_network(|| {
        shell("ip link set lo mtu 1280 up");
        for target in ["127.0.0.1", "::1"].map(ip) {
            let (a, b) = (bind("[::]:0"), bind("[::]:0"));
            let headers = if target.is_ipv4() { 28 } else { 48 };
            let (fits, exceeds) = (vec![1; 1280 - headers], vec![2; 1281 - headers]);
            let report = send(&a, loopback(&b, target), None, &[&exceeds, &fits]);
            assert_eq!((report.sent, report.too_big, report.failed), (1, 1, 0), "{target}: {report:?}");
            assert_eq!(receive(&b, 1)[0].0, fits);
        }
    });
}

#[test]
fn a_closed_port_at_the_far_end_is_no_evidence() {
    let (a, closed) = (bind("127.0.0.1:0"), loopback(&bind("127.0.0.1:0"), ip("127.0.0.1")));
    for _ in 0..3 {
        assert_eq!(send(&a, closed, None, &[b"x"]).sent, 1);
    }
}

#[test]
fn more_than_the_batch_holds_takes_another_call() {
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let datagrams = [&b"1"[..], b"22", b"", b"4444", b"5"];
    let to = loopback(&b, ip("127.0.0.1"));
    let report = SendBatch::new(2).send(&a, to, None, datagrams.into_iter().map(Run::single));
    assert_eq!((report.sent, report.bytes, report.failed), (5, 8, 0));
    let got: Vec<_> = receive(&b, 5).into_iter().map(|(bytes, _)| bytes).collect();
    assert_eq!(got, datagrams);
}

#[test]
fn the_wrong_family_is_an_error_not_a_wrong_address() {
    let a = bind("127.0.0.1:0");
    let report = send(&a, "[::1]:9".parse().unwrap(), None, &[b"x"]);
    assert_eq!(report.failed, 1);
    assert_eq!(report.error.unwrap().raw_os_error(), Some(libc::EAFNOSUPPORT));
}

#[test]
fn bind_errors_name_the_address_and_the_remedy() {
    let taken = bind("127.0.0.1:0").local_addr().unwrap();
    let _holder = UdpSocket::bind(taken).unwrap();
    let error = UdpSocket::bind(taken).unwrap_err();
    assert!(matches!(error, BindError::InUse(_)), "{error}");
    assert!(error.to_string().contains(&format!("port {} is in use on 127.0.0.1", taken.port())), "{error}");

    let error = UdpSocket::bind("192.0.2.1:7311".parse().unwrap()).unwrap_err();
    assert!(matches!(error, BindError::NoSuchAddress(_)), "{error}");
    assert!(error.to_string().contains("no address 192.0.2.1"), "{error}");
}

#[test]
fn bind_any_takes_ipv4_too() {
    let (a, b) = (UdpSocket::bind_any(&Ties::default()).unwrap(), bind("127.0.0.1:0"));
    a.send_to(b"x", b.local_addr().unwrap(), None).unwrap();
    assert_eq!(receive(&b, 1)[0].1.peer, loopback(&a, ip("127.0.0.1")));
}

/// A sender that segments and a receiver that gets runs whole.
fn fast(a: &str, b: &str) -> (UdpSocket, UdpSocket) {
    let (a, b) = (bind(a), bind(b));
    assert_eq!((a.offloads(), b.offloads()), (UdpOffloads::NONE, UdpOffloads::NONE));
    let (sends, receives) =
        (UdpOffloads { gro: false, ..UdpOffloads::ALL }, UdpOffloads { segment: false, ..UdpOffloads::ALL });
    assert_eq!((a.set_offloads(sends), b.set_offloads(receives)), (sends, receives));
    (a, b)
}

/// `count` datagrams of `size` bytes and one of `last`, no two alike, and none if `last` is 0.
fn run_bytes(size: usize, count: usize, last: usize) -> Vec<u8> {
    (0..size * count + last).map(|n| (n / size) as u8 ^ (n % 251) as u8).collect()
}

/// Receives until `want` datagrams came, as the kernel put them together.
fn receive_runs(socket: &UdpSocket, want: usize) -> Vec<(Vec<Vec<u8>>, Datagram)> {
    let (mut batch, mut all, mut count) = (ReceiveBatch::new(4), Vec::new(), 0);
    let mut rooms = vec![vec![0u8; 65_536]; 4];
    let deadline = Instant::now() + Duration::from_secs(5);
    while count < want {
        assert!(Instant::now() < deadline, "{count} of {want} datagrams came");
        batch.receive(socket.as_fd(), rooms.iter_mut().map(|room| &mut room[..])).unwrap();
        for (n, datagram) in batch.datagrams() {
            let run: Vec<_> = rooms[n][..datagram.length].chunks(datagram.segment).map(<[u8]>::to_vec).collect();
            count += run.len();
            all.push((run, datagram));
        }
    }
    all
}

fn chunks(bytes: &[u8], size: usize) -> Vec<&[u8]> {
    bytes.chunks(size).collect()
}

#[test]
fn runs_cross_whole_with_both_addresses() {
    for (a, b, target, pin) in [
        ("0.0.0.0:0", "0.0.0.0:0", "127.0.0.1", Some("127.0.0.2")),
        ("[::]:0", "[::]:0", "127.0.0.1", Some("127.0.0.2")),
        ("[::]:0", "[::]:0", "::1", Some("::1")),
        ("[::]:0", "[::]:0", "::1", None),
    ] {
        let (a, b) = fast(a, b);
        let (large, small) = (run_bytes(1_453, 40, 7), run_bytes(96, 128, 0));
        let runs = [Run::new(&large, 1_453), Run::single(b"alone"), Run::new(&small, 96)];
        let target = ip(target);
        let report = SendBatch::new(8).send(&a, loopback(&b, target), pin.map(ip), runs.into_iter());
        assert!(report.error.is_none(), "{report:?}");
        assert_eq!((report.sent, report.bytes), (41 + 1 + 128, large.len() + 5 + small.len()));
        assert!(a.offloads().segment, "it fell back");

        let got = receive_runs(&b, report.sent);
        let runs: Vec<_> = got.iter().map(|(run, _)| run).collect();
        assert_eq!(runs[..2], [&chunks(&large, 1_453)[..], &[b"alone"]], "{target}");
        assert_eq!(runs[2..].iter().copied().flatten().collect::<Vec<_>>(), chunks(&small, 96));
        assert_eq!((got[0].1.length, got[0].1.segment), (large.len(), 1_453));
        for (_, datagram) in got {
            assert_eq!(datagram.peer, loopback(&a, pin.map_or(target, ip)));
            assert_eq!((datagram.local, datagram.truncated), (Some(target), false));
        }
    }
}

#[test]
fn runs_are_single_datagrams_to_who_does_not_ask_for_more() {
    let (a, b) = fast("127.0.0.1:0", "127.0.0.1:0");
    assert_eq!(b.set_offloads(UdpOffloads::NONE), UdpOffloads::NONE);
    let bytes = run_bytes(1_000, 9, 1);
    let to = loopback(&b, ip("127.0.0.1"));
    assert_eq!(SendBatch::new(8).send(&a, to, None, std::iter::once(Run::new(&bytes, 1_000))).sent, 10);
    let got = receive(&b, 10);
    assert_eq!(got.iter().map(|(bytes, _)| &bytes[..]).collect::<Vec<_>>(), chunks(&bytes, 1_000));
    assert!(got.iter().all(|(_, datagram)| datagram.segment == datagram.length));
}

#[test]
fn without_offloads_runs_go_one_by_one() {
    let (a, b) = fast("[::]:0", "[::]:0");
    assert_eq!(a.set_offloads(UdpOffloads::NONE), UdpOffloads::NONE);
    let bytes = run_bytes(500, 20, 499);
    // More datagrams than the batch has places.
    let report =
        SendBatch::new(8).send(&a, loopback(&b, ip("::1")), Some(ip("::1")), std::iter::once(Run::new(&bytes, 500)));
    assert_eq!((report.sent, report.bytes), (21, bytes.len()));
    let got = receive_runs(&b, 21);
    assert_eq!(got.into_iter().flat_map(|(run, _)| run).collect::<Vec<_>>(), chunks(&bytes, 500));
}

#[test]
fn a_kernel_that_refuses_to_segment_costs_nothing_and_is_not_asked_again() {
    let (a, b) = fast("127.0.0.1:0", "127.0.0.1:0");
    // The kernel does not segment where it makes no checksums, which stands here for a NIC that cannot.
    set_int(&a.fd, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    let bytes = run_bytes(700, 90, 3);
    let runs = [Run::single(b"first"), Run::new(&bytes, 700), Run::single(b"last")];
    for _ in 0..2 {
        let report = SendBatch::new(8).send(&a, loopback(&b, ip("127.0.0.1")), None, runs.into_iter());
        assert!(report.error.is_none(), "{report:?}");
        assert_eq!((report.sent, report.bytes), (93, bytes.len() + 9));
        let got: Vec<_> = receive_runs(&b, 93).into_iter().flat_map(|(run, _)| run).collect();
        let want = [vec![&b"first"[..]], chunks(&bytes, 700), vec![b"last"]].concat();
        assert_eq!(got, want);
        assert!(!a.offloads().segment);
    }
}

#[test]
fn a_kernel_that_takes_fewer_segments_gets_fewer() {
    let (a, b) = fast("127.0.0.1:0", "127.0.0.1:0");
    // To a limit beyond its own this kernel says what an older one says to 128.
    a.run_limit.store(1_000, Ordering::Relaxed);
    let bytes = run_bytes(50, 300, 20);
    let report = SendBatch::new(2).send(
        &a,
        loopback(&b, ip("127.0.0.1")),
        None,
        [Run::single(b"first"), Run::new(&bytes, 50)].into_iter(),
    );
    assert_eq!((report.sent, report.failed), (302, 0), "{report:?}");
    assert_eq!(a.run_limit(), 64);
    let got: Vec<_> = receive_runs(&b, 302).into_iter().flat_map(|(run, _)| run).collect();
    assert_eq!(got, [vec![&b"first"[..]], chunks(&bytes, 50)].concat());
}

#[test]
fn a_lost_local_address_says_nothing_against_segments() {
    let (a, b) = fast("[::]:0", "[::]:0");
    let bytes = run_bytes(100, 100, 0);
    for (target, pin) in [("127.0.0.1", "192.0.2.1"), ("::1", "2001:db8::1")] {
        let runs = [Run::new(&bytes, 100), Run::single(b"x")];
        let to = loopback(&b, ip(target));
        let report = SendBatch::new(8).send(&a, to, Some(ip(pin)), runs.into_iter());
        assert_eq!((report.sent, report.failed), (0, 101), "{report:?}");
        assert!(unpins(report.error.as_ref().unwrap()), "{report:?}");
        assert_eq!(a.run_limit(), MAX_SEGMENTS);
    }
}

#[test]
fn a_run_beyond_the_mtu_is_counted_and_its_neighbours_go() {
    in_own_network(|| {
        shell("ip link set lo mtu 1280 up");
        for target in ["127.0.0.1", "::1"].map(ip) {
            let (a, b) = fast("[::]:0", "[::]:0");
            let headers = if target.is_ipv4() { 28 } else { 48 };
            let (fit, exceed) = (1280 - headers, 1281 - headers);
            let (fits, exceeds) = (run_bytes(fit, 10, 9), run_bytes(exceed, 3, exceed));
            let runs = [Run::new(&fits, fit), Run::new(&exceeds, exceed), Run::new(&fits, fit)];
            let report = SendBatch::new(8).send(&a, loopback(&b, target), None, runs.into_iter());
            assert_eq!((report.sent, report.too_big, report.failed), (22, 4, 0), "{target}: {report:?}");
            assert_eq!(a.run_limit(), MAX_SEGMENTS);
            let got: Vec<_> = receive_runs(&b, 22).into_iter().flat_map(|(run, _)| run).collect();
            assert_eq!(got, [chunks(&fits, fit), chunks(&fits, fit)].concat());
        }
    });
}

#[test]
fn what_is_hasty_does_not_wait_for_room() {
    in_own_network(|| {
        shell("ip link add near type veth peer name far && ip link set far up && ip link set near up");
        shell("ip addr add 192.0.2.1/24 dev near");
        let socket = bind("0.0.0.0:0");
        set_int(&socket.fd, libc::SOL_SOCKET, libc::SO_SNDBUF, 1).unwrap();
        // Nobody has the address: what is sent waits to learn where, and is in the socket's buffer until then.
        let to = "192.0.2.2:9".parse().unwrap();
        let refused = |mut sends: SendBatch| {
            let started = Instant::now();
            for _ in 0..50 {
                let report = sends.send(&socket, to, None, [Run::single(&[0; 1_000]); 8].into_iter());
                let error = report.error.expect("a full buffer");
                assert_eq!((error.kind(), report.sent + report.failed), (io::ErrorKind::WouldBlock, 8));
            }
            started.elapsed()
        };
        let waits = 50 * Duration::from_millis(SEND_WAIT_MS.into());
        let (hasty, patient) = (refused(SendBatch::hasty(8)), refused(SendBatch::new(8)));
        assert!(hasty < waits && waits <= patient, "{hasty:?}, {patient:?}");
    });
}

#[test]
fn a_run_longer_than_its_room_says_so() {
    let (a, b) = fast("127.0.0.1:0", "127.0.0.1:0");
    let bytes = run_bytes(1_000, 5, 0);
    let to = loopback(&b, ip("127.0.0.1"));
    SendBatch::new(1).send(&a, to, None, std::iter::once(Run::new(&bytes, 1_000)));
    let (got, datagram) = &receive(&b, 1)[0];
    assert_eq!((&got[..], datagram.truncated, datagram.segment), (&bytes[..ROOM], true, 1_000));
}

#[test]
fn the_longest_runs_go_and_longer_ones_in_two() {
    for target in ["127.0.0.1", "::1"].map(ip) {
        let (a, b) = fast("[::]:0", "[::]:0");
        let longest = run_bytes(1_000, 65, 507);
        let longer = run_bytes(9_000, 14, 8_999);
        let runs = [Run::new(&longest, 1_000), Run::new(&longer, 9_000)];
        let report = SendBatch::new(8).send(&a, loopback(&b, target), None, runs.into_iter());
        assert_eq!((report.sent, a.run_limit()), (66 + 15, MAX_SEGMENTS), "{report:?}");
        let got: Vec<_> = receive_runs(&b, 81).into_iter().flat_map(|(run, _)| run).collect();
        assert_eq!(got, [chunks(&longest, 1_000), chunks(&longer, 9_000)].concat());
    }
}

fn behind_a_door(address: &str) -> UdpSocket {
    let mut socket = bind(address);
    socket.open_door().unwrap();
    socket
}

/// The datagrams that lie in a queue.
fn lying(queue: BorrowedFd<'_>) -> Vec<Vec<u8>> {
    let (mut batch, mut rooms) = (ReceiveBatch::new(8), vec![[0u8; ROOM]; 8]);
    batch.receive(queue, rooms.iter_mut().map(|room| &mut room[..])).unwrap();
    batch.datagrams().map(|(n, datagram)| rooms[n][..datagram.length].to_vec()).collect()
}

#[test]
fn only_the_peer_comes_by_the_socket_itself_and_all_others_by_the_door() {
    for (listen, target) in
        [("[::]:0", "127.0.0.1"), ("[::]:0", "::1"), ("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")]
    {
        let (socket, target) = (behind_a_door(listen), ip(target));
        let local = SocketAddr::new(target, 0);
        let [peer, other_port] = [(); 2].map(|()| UdpSocket::bind(local).unwrap());
        let others_address = target
            .is_ipv4()
            .then(|| UdpSocket::bind((ip("127.0.0.2"), peer.local_addr().unwrap().port()).into()).unwrap());
        let send_all = || {
            for (bytes, from) in
                [(&b"peer"[..], Some(&peer)), (b"port", Some(&other_port)), (b"address", others_address.as_ref())]
            {
                if let Some(from) = from {
                    from.send_to(bytes, loopback(&socket, target), None).unwrap();
                }
            }
        };
        let strangers = if target.is_ipv4() { vec![&b"port"[..], b"address"] } else { vec![&b"port"[..]] };
        let door = socket.door().unwrap();

        send_all();
        assert!(lying(socket.as_fd()).is_empty(), "{listen}: nobody was admitted");
        assert_eq!(lying(door), [&[&b"peer"[..]], &strangers[..]].concat(), "{listen}");

        socket.admit(&[peer.local_addr().unwrap()], &ANY).unwrap();
        send_all();
        assert_eq!(lying(socket.as_fd()), [b"peer"], "{listen}");
        assert_eq!(lying(door), strangers, "{listen}");

        socket.admit(&[other_port.local_addr().unwrap()], &ANY).unwrap();
        send_all();
        assert_eq!(lying(socket.as_fd()), [b"port"], "{listen}: the peer has moved");
    }
}

/// Datagrams of any length are not for the door.
const ANY: Looks = Looks { length: 0, words: &[] };

#[test]
fn each_of_several_guests_comes_by_the_socket_itself_whatever_its_family() {
    let v4 = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"].map(ip);
    let v6 = [ip("::1"); 5];
    for sources in [v4, v6, [v4[0], v6[0], v4[1], v6[0], v4[2]], [v6[0], v4[0], v6[0], v4[1], v6[0]]] {
        let socket = behind_a_door("[::]:0");
        let peers = sources.map(|source| UdpSocket::bind(SocketAddr::new(source, 0)).unwrap());
        let addresses = peers.each_ref().map(|peer| peer.local_addr().unwrap());
        let target = |source: IpAddr| loopback(&socket, if source.is_ipv4() { v4[0] } else { v6[0] });
        for admitted in 0..=addresses.len() {
            socket.admit(&addresses[..admitted], &ANY).unwrap();
            for (n, (peer, source)) in peers.iter().zip(sources).enumerate() {
                peer.send_to(&[n as u8], target(source), None).unwrap();
            }
            let (inside, door) = (lying(socket.as_fd()).concat(), lying(socket.door().unwrap()).concat());
            let guests = admitted.min(MAX_GUESTS) as u8;
            assert_eq!((inside, door), ((0..guests).collect(), (guests..5).collect()), "{sources:?}");
        }
    }
}

#[test]
fn what_does_not_look_like_the_peers_comes_by_the_door_whoever_it_is_from() {
    const LOOKS: Looks = Looks {
        length: 12,
        words: &[Word { at: 0, mask: 0xFC00_0000, value: 0x0400_0000 }, Word { at: 8, mask: u32::MAX, value: 7 }],
    };
    let counted = |first, last| [&[first, 0xFF, 0xFF, 0xFF][..], &[0xFF; 4], &[0, 0, 0, last]].concat();
    let [short, long] = [counted(5, 7)[..11].to_vec(), [counted(5, 7), vec![0xFF; 1_000]].concat()];
    let others = [vec![], vec![5], short, counted(3, 7), counted(8, 7), counted(5, 8), counted(0x85, 7)];
    let peers = [counted(4, 7), counted(7, 7), long];
    for (listen, target) in [("[::]:0", "127.0.0.1"), ("[::]:0", "::1")] {
        let (socket, target) = (behind_a_door(listen), ip(target));
        let peer = UdpSocket::bind(SocketAddr::new(target, 0)).unwrap();
        // What it looks like counts for each guest, and an address nobody has among them is no harm.
        let nobody = "[2001:db8::1]:9".parse().unwrap();
        socket.admit(&[nobody, peer.local_addr().unwrap(), "192.0.2.1:9".parse().unwrap()], &LOOKS).unwrap();
        for datagram in others.iter().chain(&peers) {
            peer.send_to(datagram, loopback(&socket, target), None).unwrap();
        }
        assert_eq!(lying(socket.as_fd()), peers);
        assert_eq!(lying(socket.door().unwrap()), others);
    }
}

#[test]
fn a_port_with_a_door_is_taken_and_free_again_after_it() {
    let socket = behind_a_door("127.0.0.1:0");
    let address = socket.local_addr().unwrap();
    assert!(matches!(UdpSocket::bind(address), Err(BindError::InUse(_))));
    drop(socket);
    UdpSocket::bind(address).unwrap();
}

#[test]
fn runs_come_whole_at_the_door_too() {
    let (a, mut b) = fast("127.0.0.1:0", "[::]:0");
    b.open_door().unwrap();
    let bytes = run_bytes(1_400, 30, 0);
    let report =
        SendBatch::new(8).send(&a, loopback(&b, ip("127.0.0.1")), None, std::iter::once(Run::new(&bytes, 1_400)));
    assert_eq!(report.sent, 30);
    let mut room = vec![0; 65_536];
    let mut batch = ReceiveBatch::new(1);
    assert_eq!(batch.receive(b.door().unwrap(), std::iter::once(&mut room[..])).unwrap(), 1);
    let (_, run) = batch.datagrams().next().unwrap();
    assert_eq!((run.length, run.segment), (bytes.len(), 1_400));
}

#[test]
fn the_traffic_class_crosses_alone_and_in_runs() {
    for (listen, target) in [("[::]:0", "127.0.0.1"), ("[::]:0", "::1"), ("127.0.0.1:0", "127.0.0.1")] {
        let (a, b) = fast(listen, listen);
        a.set_class(0xB8).unwrap();
        let bytes = run_bytes(1_000, 20, 0);
        let (own, other) = (Run::new(&bytes, 1_000), Run::new(&bytes, 1_000).with_class(0xBB));
        let runs = [own, other, Run::single(b"alone").with_class(1), Run::single(b"own")];
        // With a pinned source too: then there are three messages to the kernel.
        let report = SendBatch::new(8).send(&a, loopback(&b, ip(target)), Some(ip(target)), runs.into_iter());
        assert_eq!(report.sent, 42, "{report:?}");
        let got: Vec<_> = receive_runs(&b, 42)
            .into_iter()
            .map(|(run, datagram)| (run.len(), datagram.class, datagram.local))
            .collect();
        let local = Some(ip(target));
        assert_eq!(got, [(20, 0xB8, local), (20, 0xBB, local), (1, 1, local), (1, 0xB8, local)], "{listen} {target}");
        a.send_to(b"x", loopback(&b, ip(target)), None).unwrap();
        assert_eq!(receive(&b, 1)[0].1.class, 0xB8);
    }
}
