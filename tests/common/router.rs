//! A router between two sites, each in a network of its own; the right one's can be hidden behind its address translation.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};
use rtnetlink::RouteMessageBuilder;
use tieline::sys::netns::NetNs;

use super::lab::{Site, netlink};
use super::nft;

/// The addresses on both ends of a site's second interface.
pub const SPARE: [&str; 2] = ["198.18.0.2", "198.18.0.254"];

/// The router. It goes with its network.
pub struct Router {
    pub network: NetNs,
}

/// `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`, about everything (linux/netfilter/nfnetlink_conntrack.h): a `nlmsghdr` with
/// NLM_F_REQUEST and NLM_F_ACK, and a `nfgenmsg` of zeros.
const FORGET: [u8; 20] = [20, 0, 0, 0, 2, 1, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl Router {
    /// Connects two sites that have no cable yet, gives them their addresses, and routes by itself.
    pub fn between(sites: [&Site; 2]) -> Self {
        let router = Self { network: NetNs::create().unwrap() };
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            router.network.run(|| fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap()).unwrap();
        }
        for site in sites {
            router.plug_in(site);
        }
        router
    }

    fn plug_in(&self, site: &Site) {
        let port = format!("to-{}", site.name);
        let gateway = Self::gateway(site);
        site.netlink(async |netlink| {
            netlink.create_veth(site.name, &port).await.unwrap();
            netlink.set_netns(netlink.index(&port).await.unwrap(), &self.network).await.unwrap();
        });
        netlink(&self.network, async |netlink| {
            let port = netlink.index(&port).await.unwrap();
            netlink.add_address(port, gateway[0], 24).await.unwrap();
            netlink.add_address(port, gateway[1], 64).await.unwrap();
            netlink.set_up(port).await.unwrap();
        });
        site.netlink(async |netlink| {
            netlink.set_up(netlink.index("lo").await.unwrap()).await.unwrap();
            let cable = netlink.index(site.name).await.unwrap();
            netlink.add_address(cable, site.outer[0], 24).await.unwrap();
            netlink.add_address(cable, site.outer[1], 64).await.unwrap();
            netlink.set_up(cable).await.unwrap();
            route_by(gateway[0]).await;
            route_by(gateway[1]).await;
        });
        site.ping(gateway[0]);
        site.ping(gateway[1]);
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
            route(peer, 32, gateway).await;
        });
        site.ping(gateway);
    }

    /// Its addresses on a site's network.
    pub fn gateway(site: &Site) -> [IpAddr; 2] {
        site.outer.map(|address| match address {
            IpAddr::V4(v4) => IpAddr::from([v4.octets()[0], v4.octets()[1], v4.octets()[2], 254]),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !0xffff | 0xfe).into(),
        })
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
        site.netlink(async |_| route_by(Self::gateway(site)[0]).await);
    }
}

async fn route_by(gateway: IpAddr) {
    let anywhere: IpAddr = if gateway.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    route(anywhere, 0, gateway).await;
}

async fn route(network: IpAddr, length: u8, gateway: IpAddr) {
    let (connection, handle, _unasked_for) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(network, length).unwrap();
    handle.route().add(route.gateway(gateway).unwrap().build()).execute().await.unwrap();
}
