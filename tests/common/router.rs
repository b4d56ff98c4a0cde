//! A router between two sites, each in a network of its own; the right one's can be hidden behind its address translation.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};
use rtnetlink::RouteMessageBuilder;
use tieline::sys::netns::NetNs;

use super::lab::{Site, netlink};
use super::nft;
use super::relay::Relay;

/// The addresses on both ends of a site's second interface.
pub const SPARE: [&str; 2] = ["198.18.0.2", "198.18.0.254"];

/// The router. It goes with its network.
pub struct Router {
    pub network: NetNs,
}

/// An interface of a site's, in a network of its own.
pub struct Uplink {
    pub name: &'static str,
    pub own: [IpAddr; 2],
    /// Of its default routes: that of the uplink with the lowest is the one for whoever asks for none.
    pub metric: u32,
}

impl Uplink {
    /// `number` goes into its addresses.
    pub const fn new(name: &'static str, number: u8) -> Self {
        let own = [
            IpAddr::V4(Ipv4Addr::new(198, 18, number, 2)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, number as u16, 0, 0, 0, 2)),
        ];
        Self { name, own, metric: 100 + number as u32 }
    }

    /// The router's interface there.
    pub fn port(&self) -> String {
        format!("to-{}", self.name)
    }
}

/// Headquarters' line, and what else it may have.
pub const HQ: Uplink = Uplink::new("left0", 1);
pub const HQ_OTHER: Uplink = Uplink::new("left1", 2);
/// A branch's uplinks; the default route by the first has the lower metric.
pub const FIBRE: Uplink = Uplink::new("right0", 11);
pub const RADIO: Uplink = Uplink::new("right1", 12);

/// `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`, about everything (linux/netfilter/nfnetlink_conntrack.h): a `nlmsghdr` with
/// NLM_F_REQUEST and NLM_F_ACK, and a `nfgenmsg` of zeros.
const FORGET: [u8; 20] = [20, 0, 0, 0, 2, 1, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl Router {
    /// Connects two sites that have no cable yet, gives them their addresses, and routes by itself.
    pub fn between(sites: [&Site; 2]) -> Self {
        let router = Self::alone();
        for site in sites {
            router.plug_in(site, &Uplink { name: site.name, own: site.outer, metric: 0 });
        }
        router
    }

    /// Without any site yet.
    pub fn alone() -> Self {
        let router = Self { network: NetNs::create().unwrap() };
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            router.network.run(|| fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap()).unwrap();
        }
        router
    }

    /// Gives a site an interface, with addresses and default routes.
    pub fn plug_in(&self, site: &Site, uplink: &Uplink) {
        let port = uplink.port();
        site.netlink(async |netlink| {
            netlink.create_veth(uplink.name, &port).await.unwrap();
            netlink.set_netns(netlink.index(&port).await.unwrap(), &self.network).await.unwrap();
        });
        self.configure(site, uplink);
    }

    /// The same with a relay in between, whose first direction is the one to the site.
    pub fn plug_in_by_relay(&self, site: &Site, uplink: &Uplink, seed: u64) -> Relay {
        let relay = Relay::joining([(&self.network, &uplink.port()), (&site.network, uplink.name)], seed);
        self.configure(site, uplink);
        relay
    }

    fn configure(&self, site: &Site, uplink: &Uplink) {
        let port = uplink.port();
        let gateway = gateway(uplink.own);
        netlink(&self.network, async |netlink| {
            let port = netlink.index(&port).await.unwrap();
            netlink.add_address(port, gateway[0], 24).await.unwrap();
            netlink.add_address(port, gateway[1], 64).await.unwrap();
            netlink.set_up(port).await.unwrap();
        });
        site.netlink(async |netlink| {
            netlink.set_up(netlink.index("lo").await.unwrap()).await.unwrap();
            let cable = netlink.index(uplink.name).await.unwrap();
            netlink.add_address(cable, uplink.own[0], 24).await.unwrap();
            netlink.add_address(cable, uplink.own[1], 64).await.unwrap();
            netlink.set_up(cable).await.unwrap();
            route_by(gateway[0], uplink.metric).await;
            route_by(gateway[1], uplink.metric).await;
        });
        site.ping(gateway[0]);
        site.ping(gateway[1]);
    }

    /// Brings an interface of a site up that was taken down: its addresses are there, its routes are not.
    pub fn bring_up(&self, site: &Site, uplink: &Uplink) {
        site.netlink(async |netlink| {
            netlink.set_up(netlink.index(uplink.name).await.unwrap()).await.unwrap();
            route_by(gateway(uplink.own)[0], uplink.metric).await;
        });
    }

    /// Drops what these rules of the filter match, until it is [`Router::mend`]ed; without a word.
    pub fn cut(&self, name: &str, matching: &[String]) {
        let rules: String = matching.iter().map(|rule| format!("{rule} drop\n")).collect();
        let chain = format!("chain way {{ type filter hook forward priority 1\n{rules} }}");
        nft::load(&self.network, &format!("table inet cut_{name} {{\n{chain}\n}}"));
    }

    /// No longer.
    pub fn mend(&self, name: &str) {
        nft::load(&self.network, &format!("delete table inet cut_{name}"));
    }

    /// Gives a site another interface, `spare`, in a network of its own, and sends what is for `peer` that way.
    pub fn plug_in_spare(&self, site: &Site, peer: IpAddr) {
        let [own, gateway] = SPARE.map(|text| text.parse::<IpAddr>().unwrap());
        site.netlink(async |netlink| {
            netlink.create_veth("spare", "to-spare").await.unwrap();
            netlink.set_netns(netlink.index("to-spare").await.unwrap(), &self.network).await.unwrap();
        });
        netlink(&self.network, async |netlink| {
            let port = netlink.index("to-spare").await.unwrap();
            netlink.add_address(port, gateway, 24).await.unwrap();
            netlink.set_up(port).await.unwrap();
        });
        site.netlink(async |netlink| {
            let spare = netlink.index("spare").await.unwrap();
            netlink.add_address(spare, own, 24).await.unwrap();
            netlink.set_up(spare).await.unwrap();
            route(peer, 32, gateway, 0).await;
        });
        site.ping(gateway);
    }

    /// Its addresses on a site's network.
    pub fn gateway(site: &Site) -> [IpAddr; 2] {
        gateway(site.outer)
    }

    /// From now on what comes from the right goes on from the router's own address, each flow from a port drawn by chance, and only
    /// what belongs to such a flow gets in.
    pub fn translate(&self) {
        nft::load(
            &self.network,
            "table inet nat {
                chain hide { type nat hook postrouting priority srcnat; oifname \"to-left\" masquerade fully-random; }
                chain guard { type filter hook forward priority filter;
                    iifname \"to-left\" ct state new,invalid drop; }
             }",
        );
    }

    /// Forgets every flow, as routers do that are restarted or short of memory.
    pub fn forget(&self) {
        let ask = || {
            let protocol = SockProtocol::NetlinkNetFilter;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
            connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
            send(fd.as_raw_fd(), &FORGET, MsgFlags::empty()).unwrap();
            let mut answer = [0; 64];
            let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
            // An `nlmsgerr` with no error.
            assert_eq!((answer[4], &answer[16..20]), (2, &[0; 4][..]), "{:?}", &answer[..length]);
        };
        self.network.run(ask).unwrap();
    }

    /// Takes an IPv4 address of a site away and gives another of the same network, as a DHCP server may.
    pub fn readdress(&self, site: &Site, from: IpAddr, to: IpAddr) {
        site.change_address(from, to);
        // The route went with the address.
        site.netlink(async |_| route_by(Self::gateway(site)[0], 0).await);
    }
}

/// The router's addresses in the networks of these.
fn gateway(own: [IpAddr; 2]) -> [IpAddr; 2] {
    own.map(|address| match address {
        IpAddr::V4(v4) => IpAddr::from([v4.octets()[0], v4.octets()[1], v4.octets()[2], 254]),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !0xffff | 0xfe).into(),
    })
}

async fn route_by(gateway: IpAddr, metric: u32) {
    let anywhere: IpAddr = if gateway.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    route(anywhere, 0, gateway, metric).await;
}

async fn route(network: IpAddr, length: u8, gateway: IpAddr, metric: u32) {
    let (connection, handle, _unasked_for) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(network, length).unwrap();
    let route = route.gateway(gateway).unwrap().priority(metric);
    handle.route().add(route.build()).execute().await.unwrap();
}
