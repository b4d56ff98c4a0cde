//! Path MTU, found and kept found: two real ends over a way that drops what is too large without a word, as a router does whose
//! ICMP is blocked.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::capture::{Capture, Packet};
use common::flow::flow;
use common::lab::{End, Lab, PATIENCE, PORT, Site, transfer};
use common::nic::disable_offloads;
use common::yard::{Wire, Yard};
use common::{nft, wait_until};
use tieline::sys::netns::NetNs;

/// What the issue allows.
const STALL: Duration = Duration::from_secs(3);
/// A search upward comes after 10 s.
const GROWTH: Duration = Duration::from_secs(25);
/// And what it finds has to hold before the interfaces grow: for 30 s, and twice as long the second time.
const HOLD: Duration = Duration::from_secs(60);
const MB: u64 = 1_000_000;

/// Sites whose cable shows the packet filter each packet by itself.
fn lab() -> Lab {
    let lab = Lab::new();
    for site in [&lab.left, &lab.right] {
        site.network.run(|| disable_offloads(site.name)).unwrap();
    }
    lab
}

/// From now on packets of the link longer than this are dropped before they reach a site.
fn narrow(site: &Site, longest: usize) {
    nft::load(
        &site.network,
        &format!(
            "table inet narrow {{
                counter dropped {{ }}
                chain way {{
                    type filter hook prerouting priority -300
                    udp dport {PORT} meta length > {longest} counter name dropped drop
                }}
            }}"
        ),
    );
}

/// No longer.
fn widen(site: &Site) {
    nft::load(&site.network, "delete table inet narrow");
}

/// Waits until an end says that packets of so many bytes pass to its peer, and such from it.
fn wait_for(end: &End<'_>, tx: u64, rx: u64, patience: Duration) {
    wait_until(&format!("{} seeing {tx} and {rx}", end.site.name), patience, || {
        let path = &end.status()["path"];
        path["tx"]["mtu"] == tx && path["rx"]["mtu"] == rx && path["mtu"] == tx
    });
}

/// A TCP connection that never rests, and is looked at.
struct Transfer<'a> {
    received: &'a AtomicU64,
    longest: &'a Mutex<Duration>,
}

impl Transfer<'_> {
    /// How long at most nothing came since this was last asked.
    fn stall(&self) -> Duration {
        std::mem::take(&mut *self.longest.lock().unwrap())
    }

    fn wait_for_more(&self, bytes: u64) {
        let before = self.received.load(Relaxed);
        wait_until("the transfer going on", PATIENCE, || self.received.load(Relaxed) >= before + bytes);
    }
}

/// Has a connection run `from` one network `to` an address in another while `story` is told. Panics if a byte is wrong.
fn while_transferring(from: &NetNs, to: &NetNs, address: IpAddr, story: impl FnOnce(&Transfer<'_>)) {
    let listener = to.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let mut out = from.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap().unwrap();
    out.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut come = listener.accept().unwrap().0;
    let (received, longest, over) = (AtomicU64::new(0), Mutex::new(Duration::ZERO), AtomicBool::new(false));
    // Of every 251 bytes no two are the same, and no power of two is a multiple.
    let pattern: Vec<u8> = (0..251 * 512).map(|n| (n % 251) as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                out.write_all(&pattern).unwrap();
            }
            out.shutdown(std::net::Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            come.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut room, mut at, mut last) = (vec![0; 1 << 16], 0, Instant::now());
            loop {
                let length = come.read(&mut room).expect("the transfer to go on");
                if length == 0 {
                    return;
                }
                let mut stall = longest.lock().unwrap();
                *stall = stall.max(last.elapsed());
                last = Instant::now();
                assert!(room[..length] == pattern[at % 251..][..length], "wrong bytes at {at}");
                at += length;
                received.fetch_add(length as u64, Relaxed);
            }
        });
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            story(&Transfer { received: &received, longest: &longest });
        }));
        over.store(true, Relaxed);
        told.unwrap();
    });
    println!("{} MB came", received.load(Relaxed) / MB);
}

scenario!(
    /// 1500, then 1300, then 1500 again, for a host behind one end and one behind the other, over IPv4 and IPv6.
    a_way_that_shrinks_and_grows_is_followed_in_mid_transfer,
    300,
    {
        if nft::is_there() {
            let mut lab = lab();
            let yards = [Yard::behind(&lab.left, 1, Wire::Plain), Yard::behind(&lab.right, 2, Wire::Plain)];
            (lab.left.link, lab.right.link) = (yards[1].routes.clone(), yards[0].routes.clone());
            let (left, right) = lab.up();
            for end in [&left, &right] {
                wait_for(end, 1440, 1440, PATIENCE);
                assert_eq!(end.site.interface_mtu(), 1440);
            }
            for family in [0, 1] {
                shrink_and_grow(&lab, [&left, &right], &yards[0].network, &yards[1], family);
            }
        }
    }
);

fn shrink_and_grow(lab: &Lab, ends: [&End<'_>; 2], from: &NetNs, to: &Yard, family: usize) {
    while_transferring(from, &to.network, to.address[family], |transfer| {
        transfer.wait_for_more(20 * MB);
        println!("before: {:?}", transfer.stall());
        [&lab.left, &lab.right].into_iter().for_each(|site| narrow(site, 1300));
        transfer.wait_for_more(20 * MB);
        let stall = transfer.stall();
        println!("1500 to 1300: {stall:?}");
        assert!(stall < STALL, "{stall:?}");
        // 1300 − 20 − 8 − 32
        ends.into_iter().for_each(|end| wait_for(end, 1240, 1240, PATIENCE));
        // No less, or the kernel takes IPv6 off it.
        wait_until("the interfaces following", PATIENCE, || ends.iter().all(|end| end.site.interface_mtu() == 1280));
        // Meanwhile nothing that fits is lost: a new connection of a host that learned nothing goes as well.
        common::lab::stream(from, &to.network, to.address[1 - family], 5 * MB, |_| {});
        [&lab.left, &lab.right].into_iter().for_each(widen);
        let grown = Instant::now();
        ends.into_iter().for_each(|end| wait_for(end, 1440, 1440, GROWTH));
        println!("1300 to 1500: found after {:?}", grown.elapsed());
        let follow = || ends.iter().all(|end| end.site.interface_mtu() == 1440);
        wait_until("the interfaces following", HOLD + PATIENCE, follow);
        transfer.wait_for_more(20 * MB);
        let stall = transfer.stall();
        assert!(stall < STALL, "{stall:?}");
    });
}

scenario!(
    /// One way narrows, the other does not: each end knows its own, and sees the other's. Both interfaces have what fits both.
    each_direction_has_a_size_of_its_own,
    60,
    {
        if nft::is_there() {
            let lab = lab();
            narrow(&lab.right, 1400);
            let (left, right) = lab.up();
            wait_for(&left, 1340, 1440, PATIENCE);
            wait_for(&right, 1440, 1340, PATIENCE);
            let both = || [&lab.left, &lab.right].map(Site::interface_mtu) == [1340; 2];
            wait_until("the interfaces following", PATIENCE, both);
            let since = left.status()["path"]["tx"]["mtu_since"].as_str().map(str::to_owned);
            assert!(since.is_some_and(|since| since.ends_with('Z')));
        }
    }
);

scenario!(
    /// One direction shrinks and grows in mid-transfer: both interfaces change once each time, and within a second of each other.
    both_interfaces_follow_the_direction_that_carries_less,
    150,
    {
        if nft::is_there() {
            let lab = lab();
            let (left, right) = lab.up();
            let sites = [&lab.left, &lab.right];
            [&left, &right].into_iter().for_each(|end| wait_for(end, 1440, 1440, PATIENCE));
            wait_until("the first MTU", PATIENCE, || sites.map(Site::interface_mtu) == [1440; 2]);
            let (since, over) = (Instant::now(), AtomicBool::new(false));
            let changes = thread::scope(|scope| {
                let watches = sites.map(|site| scope.spawn(|| site.watch_interface_mtu(since, &over)));
                let ending = Ending(&over);
                let address = lab.right.inner[0];
                while_transferring(&lab.left.network, &lab.right.network, address, |transfer| {
                    transfer.wait_for_more(MB);
                    narrow(&lab.right, 1400);
                    wait_for(&left, 1340, 1440, PATIENCE);
                    wait_until("both shrinking", PATIENCE, || sites.map(Site::interface_mtu) == [1340; 2]);
                    transfer.wait_for_more(5 * MB);
                    widen(&lab.right);
                    wait_for(&left, 1440, 1440, GROWTH);
                    wait_until("both growing", HOLD + PATIENCE, || sites.map(Site::interface_mtu) == [1440; 2]);
                    transfer.wait_for_more(5 * MB);
                });
                drop(ending);
                watches.map(|watch| watch.join().unwrap())
            });
            println!("left {:.3?}, right {:.3?}", changes[0], changes[1]);
            let sizes = |of: &[(Duration, u32)]| of.iter().map(|(_, mtu)| *mtu).collect::<Vec<_>>();
            assert_eq!(changes.each_ref().map(|of| sizes(of)), [[1340, 1440]; 2]);
            for ((a, _), (b, _)) in changes[0].iter().zip(&changes[1]) {
                assert!(a.abs_diff(*b) < Duration::from_secs(1), "{a:?} and {b:?}");
            }
        }
    }
);

/// Says that it is over, also when what was going on has failed.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

scenario!(
    /// What config says at one end is taken by the other, and differing words are named at both.
    an_mtu_that_is_set_at_one_end_holds_at_both,
    60,
    {
        let mut lab = Lab::new();
        lab.right.link = "mtu = 1500\n".into();
        let (_left, right) = lab.up();
        wait_until("the other end taking it", PATIENCE, || lab.left.interface_mtu() == 1500);
        lab.left.ping_all(lab.right.inner[0]);
        assert!(right.terminate().success());
        let right = lab.right.start_with("mtu = 1400\n");
        wait_until("the other end taking it", PATIENCE, || lab.left.interface_mtu() == 1400);
        assert!(right.terminate().success());
        // As it is by itself again.
        let right = lab.right.start_with("");
        right.wait_for_state("up");
        wait_until("both as found", HOLD + PATIENCE, || {
            [&lab.left, &lab.right].map(Site::interface_mtu) == [1440; 2]
        });
        assert!(right.terminate().success());
    }
);

scenario!(two_ends_that_are_set_to_different_mtus_say_so, 30, {
    let mut lab = Lab::new();
    (lab.left.link, lab.right.link) = ("mtu = 1400\n".into(), "mtu = 1500\n".into());
    let (left, right) = lab.up();
    left.wait_for_log(&["mtu is 1400 here and 1500 at the other end", "set the same mtu"], PATIENCE);
    right.wait_for_log(&["mtu is 1500 here and 1400 at the other end", "set the same mtu"], PATIENCE);
    assert_eq!([&lab.left, &lab.right].map(Site::interface_mtu), [1400, 1500]);
});

scenario!(
    /// A line of Ethernet's MTU, or more, over a way that carries less: what does not fit goes in pieces.
    a_fixed_mtu_holds_over_a_way_that_carries_less,
    120,
    {
        if nft::is_there() {
            for (mtu, way) in [(1500, 1280), (1500, 1500), (9000, 1400), (1280, 1100)] {
                let mut lab = lab();
                for site in [&mut lab.left, &mut lab.right] {
                    site.link = format!("mtu = {mtu}\n");
                }
                [&lab.left, &lab.right].into_iter().for_each(|site| narrow(site, way));
                let (left, right) = lab.up();
                [&left, &right].into_iter().for_each(|end| wait_for(end, way as u64 - 60, way as u64 - 60, PATIENCE));
                assert_eq!((lab.left.interface_mtu(), lab.right.interface_mtu()), (mtu, mtu));
                let before = [&left, &right].map(End::drops);
                for family in [0, 1] {
                    transfer(&lab.left, &lab.right, lab.right.inner[family], 20 * MB, |_| {});
                    transfer(&lab.right, &lab.left, lab.left.inner[family], 20 * MB, |_| {});
                    // Every size, in order, each byte looked at, and none lost: one at a time.
                    let overhead = [28, 48][family];
                    let came = flow(
                        &lab.left.network,
                        &lab.right.network,
                        lab.right.inner[family],
                        8..=mtu as usize - overhead,
                        500,
                    );
                    assert!(came > 490, "{came} of 500 datagrams came");
                }
                assert_eq!([&left, &right].map(End::drops), before);
            }
        }
    }
);

scenario!(
    /// The same where the cable's offloads are on, so that runs of pieces leave in one send and come in one receive; and with the
    /// offloads of either end off.
    pieces_go_with_every_offload_and_without,
    120,
    {
        const BARE: [&str; 6] = ["--without", "vnet_hdr", "--without", "udp_segment", "--without", "udp_gro"];
        for (arguments, mtu, cable) in [([&[][..], &[]], 1500, 1500), ([&BARE, &[]], 1500, 1280), ([&[], &BARE], 9000, 1500)]
        {
            let mut lab = Lab::new();
            for (n, site) in [&mut lab.left, &mut lab.right].into_iter().enumerate() {
                site.link = format!("mtu = {mtu}\n");
                site.arguments = arguments[n].to_vec();
            }
            [&lab.left, &lab.right].into_iter().for_each(|site| site.set_cable_mtu(cable));
            let (left, right) = lab.up();
            let fits = u64::from(cable) - 60;
            [&left, &right].into_iter().for_each(|end| wait_for(end, fits, fits, PATIENCE));
            let before = [&left, &right].map(End::drops);
            for family in [0, 1] {
                transfer(&lab.left, &lab.right, lab.right.inner[family], 100 * MB, |_| {});
                transfer(&lab.right, &lab.left, lab.left.inner[family], 100 * MB, |_| {});
            }
            assert_eq!([&left, &right].map(End::drops), before);
        }
    }
);

scenario!(
    /// The own interface's MTU changes: the kernel refuses what is larger, and that is a sign too.
    the_own_interface_shrinks_in_mid_transfer,
    90,
    {
        let lab = lab();
        let (left, right) = lab.up();
        [&left, &right].into_iter().for_each(|end| wait_for(end, 1440, 1440, PATIENCE));
        while_transferring(&lab.left.network, &lab.right.network, lab.right.inner[0], |transfer| {
            transfer.wait_for_more(20 * MB);
            transfer.stall();
            [&lab.left, &lab.right].into_iter().for_each(|site| site.set_cable_mtu(1400));
            transfer.wait_for_more(20 * MB);
            let stall = transfer.stall();
            println!("1500 to 1400: {stall:?}");
            assert!(stall < STALL, "{stall:?}");
            [&left, &right].into_iter().for_each(|end| wait_for(end, 1340, 1340, PATIENCE));
        });
    }
);

scenario!(
    /// With `mss_clamp` at one end alone, connections from either side are told at both of their ends.
    connections_are_told_what_fits_whoever_drops_icmp,
    60,
    {
        for (clamp, size) in [("", None), ("mss_clamp = true\n", Some(1_300)), ("mss_clamp = true\nmtu = 1350\n", None)] {
            let mut lab = lab();
            let [near, far] = [Yard::behind(&lab.left, 1, Wire::Offloading), Yard::behind(&lab.right, 2, Wire::Plain)];
            (lab.left.link, lab.right.link) = (format!("{}{clamp}", far.routes), near.routes.clone());
            if let Some(size) = size {
                narrow(&lab.left, size);
                narrow(&lab.right, size);
            }
            let (left, right) = lab.up();
            // Over IPv4: less its header, UDP's, and the transport header and tag.
            let fits = size.unwrap_or(1_500) as u64 - 60;
            [&left, &right].into_iter().for_each(|end| wait_for(end, fits, fits, PATIENCE));
            let most = match clamp {
                "" => 1_500,
                clamp if clamp.contains("mtu") => 1_350,
                _ => fits as u16,
            };
            for (from, to) in [(&near, &far), (&far, &near)] {
                for (address, headers) in to.address.into_iter().zip([40, 60]) {
                    let captures = [Capture::start(&from.network), Capture::start(&to.network)];
                    connect(&from.network, &to.network, address);
                    let offered = captures.map(|capture| capture.finish().iter().find_map(offer));
                    assert_eq!(offered, [Some(most - headers); 2], "{clamp:?} to {address}");
                }
            }
        }
    }
);

/// Opens a connection, and closes it.
fn connect(from: &NetNs, to: &NetNs, address: IpAddr) {
    let listener = to.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let mut outgoing = from.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap().unwrap();
    outgoing.write_all(b"hello").unwrap();
    listener.accept().unwrap().0.read_exact(&mut [0; 5]).unwrap();
}

/// The largest segment that a SYN offers, whose first option that is, as Linux has it.
fn offer(packet: &Packet) -> Option<u16> {
    let (protocol, header) = if packet[0] >> 4 == 4 { (packet[9], 20) } else { (packet[6], 40) };
    let tcp = packet.get(header..).filter(|tcp| protocol == 6 && tcp[13] & 2 != 0)?;
    tcp[20..].starts_with(&[2, 4]).then(|| u16::from_be_bytes([tcp[22], tcp[23]]))
}
