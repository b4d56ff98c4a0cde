use super::*;
use crate::sys::netlink::Netlink;
use crate::sys::offloads::UdpOffloads;
use crate::sys::testing::{in_own_network, shell};
use crate::sys::udp::{Run, SendBatch, UdpSocket};
use crate::sys::wake::{Wake, wait_readable};
use nix::poll::{PollFd, PollFlags, poll};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

fn plain(name: &str) -> OwnedFd {
    let (fd, granted) = create(name, Kind::Tun, TunOffloads::NONE).unwrap();
    assert_eq!(granted, TunOffloads::NONE);
    fd
}

fn ping_frame(fd: &OwnedFd) -> Vec<u8> {
    let socket = std::net::UdpSocket::bind("10.9.9.1:0").unwrap();
    socket.send_to(b"hello", "10.9.9.2:9").unwrap();
    let mut room = [0; 2000];
    loop {
        match read(fd.as_fd(), &mut [IoSliceMut::new(&mut room)]) {
            Ok(length) if room[0] >> 4 == 4 => return room[..length].to_vec(),
            Ok(_) => {} // the interface's own IPv6 chatter
            Err(Refused::WouldBlock) => {
                wait_readable([Some(fd.as_fd())], None).unwrap();
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn frames_go_in_and_out_and_the_device_ends_with_its_descriptor() {
    in_own_network(|| {
        let fd = plain("tltest0");
        assert!(matches!(write(fd.as_fd(), &[IoSlice::new(&[0x45; 20])]), Err(Refused::Frame(_))), "taken while down");
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, 20u8).unwrap(), 0, "a loop would spin while it is down");
        shell("ip addr add 10.9.9.1/30 dev tltest0 && ip link set tltest0 up && ip link set lo up");

        let mut frame = ping_frame(&fd);
        assert_eq!(frame.len(), 20 + 8 + 5, "no header before the frame");
        assert!(frame.ends_with(b"hello"));

        // The same datagram, as if its receiver had sent it back: addresses swapped, so the sums still hold.
        let (source, destination) = (frame[12..16].to_vec(), frame[16..20].to_vec());
        frame[12..16].copy_from_slice(&destination);
        frame[16..20].copy_from_slice(&source);
        let socket = std::net::UdpSocket::bind("10.9.9.1:9").unwrap();
        let timeout = Some(std::time::Duration::from_secs(5));
        socket.set_read_timeout(timeout).unwrap();
        write(fd.as_fd(), &[IoSlice::new(&frame)]).unwrap();
        assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 5);
        assert!(matches!(write(fd.as_fd(), &[IoSlice::new(&[0x15; 20])]), Err(Refused::Frame(_))), "not IP");

        assert!(if_nametoindex("tltest0").is_ok());
        drop(fd);
        assert!(if_nametoindex("tltest0").is_err());
    });
}

#[test]
fn a_deleted_device_is_gone_not_silent() {
    in_own_network(|| {
        let fd = plain("tltest1");
        shell("ip link set tltest1 up && ip link del tltest1");
        assert_eq!(wait_readable([Some(fd.as_fd())], None).unwrap(), 1, "a sleeping loop would not learn of it");
        assert!(matches!(read(fd.as_fd(), &mut [IoSliceMut::new(&mut [0; 100])]), Err(Refused::Gone(_))));
        assert!(matches!(write(fd.as_fd(), &[IoSlice::new(&[0x45; 20])]), Err(Refused::Gone(_))));
    });
}

#[test]
fn what_exists_is_not_taken_over() {
    in_own_network(|| {
        shell("ip tuntap add tltest2 mode tun && ip link add tltest3 type veth peer name tltest7");
        let _held = plain("tltest4");
        for name in ["tltest2", "tltest3", "tltest4", "lo"] {
            let error = create(name, Kind::Tun, TunOffloads::ALL).unwrap_err();
            assert!(matches!(error, TunError::Exists(_)), "{name}: {error}");
            assert!(if_nametoindex(name).is_ok());
        }
    });
}

#[test]
fn a_persistent_device_is_known_as_such() {
    in_own_network(|| {
        shell("ip tuntap add tltest5 mode tun");
        let mut config = tun::Configuration::default();
        config.tun_name("tltest5").platform_config(|platform| {
            platform.ensure_root_privileges(false);
        });
        let taken = tun::create(&config).unwrap();
        // SAFETY: as in `create`.
        let taken = unsafe { OwnedFd::from_raw_fd(taken.into_raw_fd()) };
        assert!(is_persistent(&taken).unwrap());
        assert!(!is_persistent(&plain("tltest6")).unwrap());
    });
}

#[test]
fn names_no_interface_can_have_are_refused_before_anything_is_opened() {
    for name in ["", ".", "..", "a/b", "a b", "tl%d", "a:b", "sixteen-letters-", "tl\n0"] {
        assert!(matches!(create(name, Kind::Tun, TunOffloads::ALL), Err(TunError::Name(_))), "{name:?}");
    }
    assert!(is_name("fifteen-letters"));
}

#[test]
fn each_refusal_says_what_to_do() {
    let text = |code| named("tl0", io::Error::from_raw_os_error(code)).to_string();
    assert!(text(libc::EPERM).contains("CAP_NET_ADMIN"));
    assert!(text(libc::EACCES).contains("/dev/net/tun"));
    assert!(text(libc::ENOENT).contains("modprobe tun"));
    assert!(text(libc::EBUSY).contains("exists already"));
    assert!(text(libc::EIO).contains("cannot make interface tl0"));
}

#[test]
fn what_the_kernel_refuses_is_not_granted() {
    const TSO: c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    const USO: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let kernel = |unknown: c_uint| move |flags| if flags & unknown == 0 { Ok(()) } else { Err(Errno::EINVAL) };
    let (tso, uso) = (TunOffloads { uso: false, ..TunOffloads::ALL }, TunOffloads { tso: false, ..TunOffloads::ALL });
    let sums = TunOffloads { uso: false, ..uso };
    assert_eq!(grant(TunOffloads::ALL, kernel(0)), TunOffloads::ALL);
    assert_eq!(grant(TunOffloads::ALL, kernel(USO)), tso);
    assert_eq!(grant(TunOffloads::ALL, kernel(USO | TSO)), sums);
    assert_eq!(grant(TunOffloads::ALL, kernel(!0)), sums);
    for wish in [tso, uso, sums] {
        assert_eq!(grant(wish, kernel(0)), wish, "more than was wished for");
    }
    assert_eq!(grant(uso, kernel(USO)), sums);
}

#[test]
fn without_a_header_there_is_no_offload() {
    in_own_network(|| {
        let wish = TunOffloads { vnet_hdr: false, ..TunOffloads::ALL };
        assert_eq!(create("tltest0", Kind::Tun, wish).unwrap().1, TunOffloads::NONE);
    });
}

/// What a [`mirror`] saw.
#[derive(Debug, Default)]
struct Seen {
    /// The longest frame of each gso_type, in bytes.
    longest: BTreeMap<u8, usize>,
    /// Whether some frame's checksum was left to be completed.
    partial: bool,
}

const NEEDS_CSUM: u8 = 1;
const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;

/// Sends each frame back with its addresses swapped, so that the far end is this one and no sum changes; until `done`.
fn mirror(tun: BorrowedFd<'_>, done: &Wake) -> Seen {
    let (mut header, mut frame) = ([0; VNET_HEADER], vec![0; 65_535]);
    let mut seen = Seen::default();
    loop {
        match read(tun, &mut [IoSliceMut::new(&mut header), IoSliceMut::new(&mut frame)]) {
            Ok(length) => {
                let frame = &mut frame[..length - VNET_HEADER];
                let longest = seen.longest.entry(header[1] & 0x7f).or_default();
                *longest = frame.len().max(*longest);
                seen.partial |= header[0] & NEEDS_CSUM != 0;
                let (at, size) = if frame[0] >> 4 == 4 { (12, 4) } else { (8, 16) };
                let (source, destination) = frame[at..at + 2 * size].split_at_mut(size);
                source.swap_with_slice(destination);
                // In three pieces, as merged segments would be.
                let (first, rest) = frame.split_at(at);
                let (second, third) = rest.split_at(rest.len() / 2);
                let pieces = [&header[..], first, second, third].map(IoSlice::new);
                match write(tun, &pieces) {
                    Ok(()) | Err(Refused::WouldBlock) => {}
                    // Router solicitations, sent back, are not welcome; the test's own packets are missed if refused.
                    Err(Refused::Frame(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            Err(Refused::WouldBlock) => {
                if wait_readable([Some(tun), Some(done.as_fd())], None).unwrap() & 0b10 != 0 {
                    return seen;
                }
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Makes a device with `wish`, behind which the far end is this one, runs `traffic` and says what crossed the device.
fn with_mirror(wish: TunOffloads, traffic: impl FnOnce() + Send) -> Seen {
    let (tun, granted) = create("tltest8", Kind::Tun, wish).unwrap();
    assert_eq!(granted, wish, "this kernel lacks an offload");
    shell("ip addr add 10.9.9.1/30 dev tltest8 && ip addr add fd99::1/126 dev tltest8 nodad");
    shell("ip link set tltest8 mtu 1400 up && ip link set lo up");
    let done = Wake::new().unwrap();
    thread::scope(|scope| {
        let mirror = scope.spawn(|| mirror(tun.as_fd(), &done));
        traffic();
        done.ring();
        mirror.join().unwrap()
    })
}

/// A megabyte by TCP to the far end of the mirror.
fn stream(own: &str, far: &str) {
    let listener = TcpListener::bind((own, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| TcpStream::connect((far, port)).unwrap().write_all(&sent).unwrap());
        let (mut stream, from) = listener.accept().unwrap();
        assert_eq!(from.ip().to_string(), far);
        stream.set_read_timeout(Some(MOMENT)).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} bytes of {} came, or others", got.len(), sent.len());
    });
}

/// A run of datagrams by UDP to the far end of the mirror.
fn run_of_datagrams(own: &str, far: &str) {
    let near = UdpSocket::bind((own.parse::<IpAddr>().unwrap(), 0).into()).unwrap();
    let there = std::net::UdpSocket::bind((own, 0)).unwrap();
    there.set_read_timeout(Some(MOMENT)).unwrap();
    assert!(near.set_offloads(UdpOffloads::ALL).segment);
    let bytes: Vec<u8> = (0..20_500u32).map(|n| (n % 249) as u8).collect();
    let to = (far.parse::<IpAddr>().unwrap(), there.local_addr().unwrap().port()).into();
    let report = SendBatch::new(1).send(&near, to, None, std::iter::once(Run::new(&bytes, 1_000)));
    assert_eq!(report.sent, 21, "{report:?}");
    let mut room = [0; 2_000];
    for datagram in bytes.chunks(1_000) {
        let length = there.recv(&mut room).unwrap();
        assert!(room[..length] == *datagram);
    }
}

const MOMENT: Duration = Duration::from_secs(5);

#[test]
fn super_packets_go_out_and_come_in_whole() {
    in_own_network(|| {
        let seen = with_mirror(TunOffloads::ALL, || {
            stream("10.9.9.1", "10.9.9.2");
            stream("fd99::1", "fd99::2");
            run_of_datagrams("10.9.9.1", "10.9.9.2");
            run_of_datagrams("fd99::1", "fd99::2");
        });
        for kind in [TCPV4, TCPV6, UDP_L4] {
            let longest = seen.longest.get(&kind).copied().unwrap_or_default();
            assert!(longest > 10_000, "gso_type {kind}: {longest} bytes: {seen:?}");
        }
        assert!(seen.partial);
    });
}

#[test]
fn without_tso_and_uso_frames_keep_to_the_mtu() {
    in_own_network(|| {
        let seen = with_mirror(TunOffloads { vnet_hdr: true, ..TunOffloads::NONE }, || {
            stream("10.9.9.1", "10.9.9.2");
            run_of_datagrams("fd99::1", "fd99::2");
        });
        assert_eq!(seen.longest.keys().copied().collect::<Vec<_>>(), [0], "{seen:?}");
        assert!(seen.longest[&0] <= 1_400 && seen.partial, "{seen:?}");
    });
}

#[test]
fn a_super_packet_is_as_large_as_the_interface_may_be_given() {
    in_own_network(|| {
        let seen = with_mirror(TunOffloads::ALL, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let netlink = Netlink::open().unwrap();
                let index = netlink.index("tltest8").await.unwrap();
                netlink.set_gso_max(index, 12_000, 16).await.unwrap();
            });
            stream("10.9.9.1", "10.9.9.2");
            stream("fd99::1", "fd99::2");
            run_of_datagrams("fd99::1", "fd99::2");
        });
        for kind in [TCPV4, TCPV6] {
            assert!((3_000..=12_000).contains(&seen.longest[&kind]), "{seen:?}");
        }
        assert_eq!(seen.longest.get(&UDP_L4), None, "21 segments where 16 are allowed: {seen:?}");
    });
}

#[test]
fn a_header_the_kernel_does_not_know_costs_its_frame_only() {
    in_own_network(|| {
        let (tun, _) = create("tltest9", Kind::Tun, TunOffloads::ALL).unwrap();
        shell("ip link set tltest9 up");
        let mut header = [0; VNET_HEADER];
        let frame = [0x45; 40];
        header[1] = 0x7f;
        let pieces = [&header[..], &frame].map(IoSlice::new);
        let refused = write(tun.as_fd(), &pieces);
        assert!(matches!(&refused, Err(Refused::Frame(e)) if e.raw_os_error() == Some(libc::EINVAL)), "{refused:?}");
        let pieces = [&[0; VNET_HEADER][..], &frame].map(IoSlice::new);
        write(tun.as_fd(), &pieces).unwrap();
        let many = vec![IoSlice::new(&[0]); 1_025];
        assert!(matches!(write(tun.as_fd(), &many), Err(Refused::Frame(_))));
    });
}
