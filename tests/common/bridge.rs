//! An Ethernet at a site: a bridge, hosts at it, and ports of it on which frames are read and written by hand.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tieline::packet::virtio::{self, Header};
use tieline::sys::netns::NetNs;
use tieline::sys::offloads::TunOffloads;
use tieline::sys::tun::{self, Kind, Refused};

use super::lab::Site;

/// The bridge, at either site.
pub const BRIDGE: &str = "br0";
/// A host's interface.
const HOST: &str = "eth0";
/// The largest super-packet and its header.
const ROOM: usize = 1 << 17;

/// Runs `ip` with these arguments in a network; it must succeed.
pub fn ip(network: &NetNs, arguments: &str) -> String {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    network.enter_at_start(&mut command).unwrap();
    let output = command.output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The Ethernet address of an interface.
pub fn hardware_address(network: &NetNs, interface: &str) -> String {
    let shown = ip(network, &format!("-o link show dev {interface}"));
    let address = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    address.unwrap_or_else(|| panic!("no address in {shown}")).to_owned()
}

/// The bridge at a site.
pub struct Lan<'a> {
    site: &'a Site,
}

impl<'a> Lan<'a> {
    pub fn at(site: &'a Site) -> Self {
        ip(&site.network, &format!("link add {BRIDGE} type bridge"));
        ip(&site.network, &format!("link set {BRIDGE} up"));
        // Where bridges are also made to look at what is in frames, they drop what only looks like IP.
        for filter in ["iptables", "ip6tables", "arptables"] {
            let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{filter}");
            match site.network.run(|| fs::write(switch, "0")).unwrap() {
                Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{filter}: {error}"),
                _ => {}
            }
        }
        Lan { site }
    }

    /// A host with an interface that takes packets of `mtu` bytes and has no address yet.
    pub fn host(&self, number: u8, mtu: u32) -> Host {
        let network = NetNs::create().unwrap();
        let port = format!("host{number}");
        self.site.netlink(async |netlink| {
            netlink.create_veth(&port, HOST).await.unwrap();
            netlink.set_netns(netlink.index(HOST).await.unwrap(), &network).await.unwrap();
        });
        ip(&self.site.network, &format!("link set {port} mtu {mtu} master {BRIDGE} up"));
        ip(&network, &format!("link set {HOST} mtu {mtu} up"));
        let ip = |text: String| text.parse::<IpAddr>().unwrap();
        Host { network, address: [ip(format!("10.7.0.{number}")), ip(format!("fd07::{number}"))] }
    }

    /// A port where frames go in and out as they are.
    pub fn port(&self, offloads: TunOffloads) -> Port {
        let (fd, granted) = self.site.network.run(|| tun::create("port", Kind::Tap, offloads)).unwrap().unwrap();
        assert_eq!(granted, offloads);
        ip(&self.site.network, &format!("link set port mtu 9100 master {BRIDGE} up"));
        Port { fd, has_header: offloads.vnet_hdr }
    }

    /// The ports of the bridge.
    pub fn ports(&self) -> String {
        ip(&self.site.network, &format!("-o link show master {BRIDGE}"))
    }
}

/// A host on an Ethernet.
pub struct Host {
    pub network: NetNs,
    /// What it has once it was given them.
    pub address: [IpAddr; 2],
}

impl Host {
    pub const INTERFACE: &str = HOST;

    pub fn take_addresses(&self) {
        let [v4, v6] = self.address;
        ip(&self.network, &format!("address add {v4}/24 dev {HOST}"));
        ip(&self.network, &format!("address add {v6}/64 dev {HOST} nodad"));
    }

    /// What it knows of its neighbours.
    pub fn neighbours(&self) -> String {
        ip(&self.network, "neighbour show")
    }
}

/// A port of a bridge, in our hands.
pub struct Port {
    fd: OwnedFd,
    has_header: bool,
}

impl Port {
    pub fn send(&self, header: &Header, frame: &[u8]) {
        let head = header.encode();
        let head = if self.has_header { &head[..] } else { &[] };
        tun::write(self.fd.as_fd(), &[IoSlice::new(head), IoSlice::new(frame)]).unwrap();
    }

    /// The next frame, and what the kernel says of it; `None` if none comes within `patience`.
    pub fn receive(&self, patience: Duration) -> Option<(Header, Vec<u8>)> {
        let until = Instant::now() + patience;
        let mut room = vec![0; ROOM];
        loop {
            match tun::read(self.fd.as_fd(), &mut [IoSliceMut::new(&mut room)]) {
                Ok(length) => {
                    let head = if self.has_header { virtio::LENGTH } else { 0 };
                    let header = room[..length].first_chunk().filter(|_| self.has_header);
                    let header = header.map(|bytes| Header::parse(*bytes).unwrap()).unwrap_or_default();
                    return Some((header, room[head..length].to_vec()));
                }
                Err(Refused::WouldBlock) => {}
                Err(error) => panic!("reading a port: {error:?}"),
            }
            let left = until.checked_duration_since(Instant::now())?;
            let left = PollTimeout::try_from(left.as_millis() + 1).unwrap();
            poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], left).unwrap();
        }
    }

    /// Whether this frame comes, to the byte, among whatever else does.
    pub fn hears(&self, frame: &[u8], patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while let Some((_, heard)) = self.receive(until.saturating_duration_since(Instant::now())) {
            if heard == frame {
                return true;
            }
        }
        false
    }
}
