//! Whether a packet that a route sends into the link is one of the link's own datagrams.

use super::addresses::Addresses;
use super::ip::{self, Version};
use super::layer::Network;
use super::u16_at;
use std::net::{IpAddr, SocketAddr};

/// UDP's number in an IP header.
const UDP: u8 = 17;

/// Where the link's own datagrams go, by which they are known. There are two paths at most; what is not for either's address costs a
/// compare for each.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnDatagrams([Option<SocketAddr>; 2]);

impl OwnDatagrams {
    /// By the peer's addresses on the path and on the second one. An IPv4-mapped IPv6 address means the IPv4 one.
    pub fn to(peers: [Option<SocketAddr>; 2]) -> Self {
        OwnDatagrams(peers.map(|peer| peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()))))
    }

    /// Which of the two paths a packet belongs to that is a datagram to the peer from one of the link's own ports; `None` for
    /// any other. The packet was found in `frame` and has these `addresses`.
    pub fn path_of(
        &self,
        network: Network,
        frame: &[u8],
        addresses: &Addresses,
        ports: impl IntoIterator<Item = u16>,
    ) -> Option<usize> {
        let same = |peer: &Option<SocketAddr>| peer.is_some_and(|peer| is_for(addresses, peer.ip()));
        // Ends here for all but a loop.
        let first = self.0.iter().position(same)?;
        let (from, to) = udp_ports(network, frame)?;
        let path = (first..self.0.len()).find(|n| same(&self.0[*n]) && self.0[*n].is_some_and(|p| p.port() == to))?;
        ports.into_iter().any(|port| port == from).then_some(path)
    }
}

fn is_for(addresses: &Addresses, peer: IpAddr) -> bool {
    match (*addresses, peer) {
        (Addresses::V4 { destination, .. }, IpAddr::V4(peer)) => destination == peer.to_bits(),
        (Addresses::V6 { destination, .. }, IpAddr::V6(peer)) => destination == peer.to_bits(),
        _ => false,
    }
}

/// Source and destination port, if it is UDP. The link's own datagrams are never fragments, and have no extension headers.
fn udp_ports(network: Network, frame: &[u8]) -> Option<(u16, u16)> {
    let packet = frame.get(network.start..)?;
    let (protocol, start) = match network.version {
        Version::V4 => (*packet.get(9)?, usize::from(packet[0] & 0x0F) * 4),
        Version::V6 => (*packet.get(6)?, ip::V6_HEADER),
    };
    let ports = packet.get(start..start + 4).filter(|_| protocol == UDP)?;
    Some((u16_at(ports, 0), u16_at(ports, 2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::{Model, junk};
    use crate::packet::{Layer, transport::Protocol};
    use proptest::prelude::*;

    fn path_of(peers: [Option<&str>; 2], layer: Layer, frame: &[u8], ports: &[u16]) -> Option<usize> {
        let network = layer.network(frame).unwrap()?;
        let addresses = Addresses::of(network, frame).unwrap();
        let peers = peers.map(|peer| peer.map(|peer| peer.parse().unwrap()));
        OwnDatagrams::to(peers).path_of(network, frame, &addresses, ports.iter().copied())
    }

    #[test]
    fn a_datagram_to_the_peer_from_an_own_port_is_known() {
        // From port 5201 to port 40000.
        let v4 = "10.0.1.1:40000";
        let v6 = "[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:a00:101]:40000";
        for model in Model::each().filter(|model| model.protocol == Protocol::Udp) {
            let frame = model.packet(90);
            let right = if matches!(model.wire, crate::packet::testing::Wire::V4 { .. }) { v4 } else { v6 };
            let of = |peers, ports: &[u16]| path_of(peers, model.layer(), &frame, ports);
            assert_eq!(of([Some(right), None], &[5201]), Some(0));
            assert_eq!(of([Some("192.0.2.1:40000"), Some(right)], &[1, 5201]), Some(1));
            assert_eq!(of([Some(right), None], &[5202]), None, "another program's port");
            assert_eq!(of([None, None], &[5201]), None);
            let other = right.replace(":40000", ":40001");
            assert_eq!(of([Some(&other), None], &[5201]), None, "another port there");
            assert_eq!(of([Some(&other), Some(right)], &[5201]), Some(1), "two ports at one address");
        }
        let frame = Model::udp4().packet(90);
        assert_eq!(path_of([Some("[::ffff:10.0.1.1]:40000"), None], Layer::Ip, &frame, &[5201]), Some(0));
        let frame = Model::tcp4().packet(90);
        assert_eq!(path_of([Some(v4), None], Layer::Ip, &frame, &[5201]), None, "TCP");
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(frame in junk()) {
            if let Ok(Some(network)) = Layer::Ip.network(&frame) {
                let addresses = Addresses::of(network, &frame).unwrap();
                let peer = SocketAddr::new(addresses.destination(), 40_000);
                let _ = OwnDatagrams::to([Some(peer), None]).path_of(network, &frame, &addresses, [5201]);
            }
        }
    }
}
