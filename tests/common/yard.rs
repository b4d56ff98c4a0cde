//! A network behind a site: a host that knows nothing of the link, and the wire to it.

use std::fs;
use std::net::IpAddr;

use rtnetlink::RouteMessageBuilder;
use tieline::sys::netns::NetNs;

use super::lab::{PATIENCE, Site};
use super::nic::disable_offloads;

/// The site's end of the wire.
const GATE: &str = "gate";
/// The host's.
const HOST: &str = "host";

/// What crosses between host and site.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Every offload is off at both ends: packets of their own, and complete.
    Plain,
    /// Super-packets and unfinished checksums, as between containers.
    Offloading,
}

/// The host, and its network.
pub struct Yard {
    pub network: NetNs,
    pub address: [IpAddr; 2],
    gateway: [IpAddr; 2],
    /// As the other site's config has them.
    pub routes: String,
}

impl Yard {
    /// Builds it behind `site`, which forwards from now on. `number` goes into its addresses.
    pub fn behind(site: &Site, number: u8, wire: Wire) -> Self {
        let ip = |text: String| text.parse::<IpAddr>().unwrap();
        let addresses = |host: u8| [ip(format!("10.{number}.0.{host}")), ip(format!("fd00:{number}::{host}"))];
        let yard = Self {
            network: NetNs::create().unwrap(),
            address: addresses(2),
            gateway: addresses(1),
            routes: format!("routes = [\"10.{number}.0.0/24\", \"fd00:{number}::/64\"]\n"),
        };
        yard.connect(site, wire);
        // Both ends have found each other before anything is measured.
        for gateway in yard.gateway {
            super::lab::ping(&yard.network, gateway, PATIENCE).unwrap();
        }
        yard
    }

    fn connect(&self, site: &Site, wire: Wire) {
        site.netlink(async |netlink| {
            netlink.create_veth(GATE, HOST).await.unwrap();
            let host = netlink.index(HOST).await.unwrap();
            netlink.set_netns(host, &self.network).await.unwrap();
            let gate = netlink.index(GATE).await.unwrap();
            if wire == Wire::Plain {
                disable_offloads(GATE);
            }
            netlink.add_address(gate, self.gateway[0], 24).await.unwrap();
            netlink.add_address(gate, self.gateway[1], 64).await.unwrap();
            netlink.set_up(gate).await.unwrap();
            for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
            }
        });
        super::lab::netlink(&self.network, async |netlink| {
            let host = netlink.index(HOST).await.unwrap();
            if wire == Wire::Plain {
                disable_offloads(HOST);
            }
            netlink.add_address(host, self.address[0], 24).await.unwrap();
            netlink.add_address(host, self.address[1], 64).await.unwrap();
            netlink.set_up(host).await.unwrap();
            self.route_by_gateway().await;
        });
    }

    async fn route_by_gateway(&self) {
        let (connection, handle, _unasked_for) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let anywhere: [IpAddr; 2] = [[0; 4].into(), [0; 16].into()];
        for (anywhere, gateway) in anywhere.into_iter().zip(self.gateway) {
            let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(anywhere, 0).unwrap();
            let route = route.gateway(gateway).unwrap().build();
            handle.route().add(route).execute().await.unwrap();
        }
    }
}

/// The kernel's counts of packets with wrong checksums in a network, by name: all it has.
pub fn checksum_errors(network: &NetNs) -> Vec<(String, u64)> {
    let read = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
    let (v4, v6) = network.run(|| (read("snmp"), read("snmp6"))).unwrap();
    let mut counts = Vec::new();
    // Lines in pairs: names, values.
    let lines: Vec<Vec<_>> = v4.lines().map(|line| line.split_whitespace().collect()).collect();
    for pair in lines.chunks_exact(2) {
        let named = pair[0].iter().zip(&pair[1]).skip(1);
        counts.extend(named.map(|(name, value)| (format!("{}{name}", pair[0][0]), value.to_string())));
    }
    counts.extend(v6.lines().filter_map(|line| line.split_once(char::is_whitespace)).map(own));
    let errors = counts.into_iter().filter(|(name, _)| name.ends_with("CsumErrors"));
    errors.map(|(name, value)| (name, value.parse().unwrap())).collect()
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.trim().to_owned())
}
