//! Which packets from the peer are believed, by their source: what the peer's inner address, `routes` and link-local allow.

use super::addresses::{Addresses, OwnAddresses, mask_v4, mask_v6};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The sources that packets from the peer may have. The price of a look is a compare for each prefix, and nothing is allocated.
#[derive(Clone, Debug)]
pub struct SourceFilter {
    own: OwnAddresses,
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

/// 169.254.0.0/16 (RFC 3927).
const LINK_LOCAL_V4: u32 = 0xA9FE;
/// fe80::/10 (RFC 4291 §2.5.6).
const LINK_LOCAL_V6: u128 = 0xFE80 >> 6;

impl SourceFilter {
    /// From this end's inner `addresses` with their prefix lengths, whose networks are the link's own, and from its `routes`.
    pub fn new(addresses: &[(IpAddr, u8)], routes: &[(IpAddr, u8)]) -> Self {
        let own = OwnAddresses::new(addresses.iter().copied());
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (address, length) in addresses.iter().chain(routes) {
            match address {
                IpAddr::V4(address) => v4.push(prefix_v4(*address, *length)),
                IpAddr::V6(address) => v6.push(prefix_v6(*address, *length)),
            }
        }
        SourceFilter { own, v4, v6 }
    }

    /// Whether a packet from the peer may have this source.
    ///
    /// Never one of this end's own. Always one that is good on the link alone: link-local, and none at all, with which hosts ask for
    /// an address or tell of groups (RFC 1122 §3.2.1.3, RFC 4291 §2.5.2). Else one within a network of the link or of `routes`.
    pub fn admits(&self, addresses: &Addresses) -> bool {
        if self.own.has_source_of(addresses) {
            return false;
        }
        match *addresses {
            Addresses::V4 { source, .. } => {
                source == 0
                    || source >> 16 == LINK_LOCAL_V4
                    || self.v4.iter().any(|(network, mask)| source & mask == *network)
            }
            Addresses::V6 { source, .. } => {
                source == 0
                    || source >> 118 == LINK_LOCAL_V6
                    || self.v6.iter().any(|(network, mask)| source & mask == *network)
            }
        }
    }
}

fn prefix_v4(address: Ipv4Addr, length: u8) -> (u32, u32) {
    let mask = mask_v4(length);
    (address.to_bits() & mask, mask)
}

fn prefix_v6(address: Ipv6Addr, length: u8) -> (u128, u128) {
    let mask = mask_v6(length);
    (address.to_bits() & mask, mask)
}

/// Prefixes that are remembered as named.
const REMEMBERED: usize = 16;
/// Between the first of them, in nanoseconds …
const FIRST: u64 = 1_000_000_000;
/// … and once all places are taken, when each new one takes the place of the oldest.
const LATER: u64 = 60_000_000_000;

/// Which prefixes of refused sources have been named: each once, a bounded number of them, and not too many at a time.
#[derive(Clone, Debug, Default)]
pub struct Named {
    known: [Option<IpAddr>; REMEMBERED],
    count: usize,
    /// From when on another may be named, in nanoseconds.
    due: u64,
}

impl Named {
    /// The prefix of `source` and its length, a /24 or a /64, if it is to be named now, at `now` nanoseconds.
    pub fn name(&mut self, source: IpAddr, now: u64) -> Option<(IpAddr, u8)> {
        let (prefix, length): (IpAddr, u8) = match source {
            IpAddr::V4(v4) => (Ipv4Addr::from_bits(v4.to_bits() & mask_v4(24)).into(), 24),
            IpAddr::V6(v6) => (Ipv6Addr::from_bits(v6.to_bits() & mask_v6(64)).into(), 64),
        };
        if now < self.due || self.known.contains(&Some(prefix)) {
            return None;
        }
        self.known[self.count % REMEMBERED] = Some(prefix);
        self.count += 1;
        self.due = now + if self.count < REMEMBERED { FIRST } else { LATER };
        Some((prefix, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets(texts: &[&str]) -> Vec<(IpAddr, u8)> {
        let net = |text: &&str| {
            let (address, length) = text.split_once('/').unwrap();
            (address.parse().unwrap(), length.parse().unwrap())
        };
        texts.iter().map(net).collect()
    }

    fn from(source: &str) -> Addresses {
        match source.parse().unwrap() {
            IpAddr::V4(source) => Addresses::V4 { source: source.to_bits(), destination: 1 },
            IpAddr::V6(source) => Addresses::V6 { source: source.to_bits(), destination: 1 },
        }
    }

    fn check(addresses: &[&str], routes: &[&str], sources: &[(&str, bool)]) {
        let filter = SourceFilter::new(&nets(addresses), &nets(routes));
        for (source, admitted) in sources {
            assert_eq!(filter.admits(&from(source)), *admitted, "{source} with {addresses:?} and {routes:?}");
        }
    }

    #[test]
    fn the_peers_own_what_is_routed_and_link_local_may_be_a_source() {
        check(
            &["10.99.0.1/30", "fd99::1/126"],
            &["192.168.20.0/24", "fd20::/48"],
            &[
                ("10.99.0.2", true),
                ("192.168.20.255", true),
                ("169.254.1.1", true),
                ("0.0.0.0", true),
                ("10.99.0.1", false),
                ("10.99.0.4", false),
                ("192.168.21.1", false),
                ("169.255.0.1", false),
                ("203.0.113.9", false),
                ("fd99::2", true),
                ("fd20:0:0:ffff::1", true),
                ("fe80::1", true),
                ("febf::1", true),
                ("::", true),
                ("fd99::1", false),
                ("fd99::4", false),
                ("fd20:0:1::1", false),
                ("fec0::1", false),
                ("2001:db8::1", false),
                ("::ffff:10.99.0.2", false),
            ],
        );
    }

    #[test]
    fn an_address_without_a_network_names_no_peer() {
        check(&["10.99.0.1/32", "fd99::1/128"], &[], &[("10.99.0.2", false), ("10.99.0.1", false), ("fd99::2", false)]);
        check(&["10.99.0.0/31", "fd99::/127"], &[], &[("10.99.0.1", true), ("10.99.0.0", false), ("fd99::1", true)]);
    }

    #[test]
    fn a_default_route_lets_in_all_of_its_family_but_this_end() {
        check(
            &["10.99.0.1/30"],
            &["0.0.0.0/0"],
            &[("203.0.113.9", true), ("10.99.0.1", false), ("2001:db8::1", false), ("fe80::1", true)],
        );
        check(&["fd99::1/126"], &["::/0"], &[("2001:db8::1", true), ("fd99::1", false), ("203.0.113.9", false)]);
    }

    #[test]
    fn each_prefix_is_named_once_and_not_too_many_at_a_time() {
        let mut named = Named::default();
        let v4 = |n: u8| IpAddr::from([203, 0, n, 9]);
        assert_eq!(named.name(v4(0), 0), Some(([203, 0, 0, 0].into(), 24)));
        assert_eq!(named.name([203, 0, 0, 10].into(), 10 * FIRST), None, "of the same");
        assert_eq!(named.name(v4(1), FIRST - 1), None, "too soon");
        assert_eq!(named.name("2001:db8::1".parse().unwrap(), FIRST), Some(("2001:db8::".parse().unwrap(), 64)));
        let mut now = FIRST;
        let mut said = 2;
        // However many there are.
        for n in 1..=250 {
            now += FIRST;
            said += usize::from(named.name(v4(n), now).is_some());
        }
        assert_eq!(said, REMEMBERED + 3, "sixteen, and then one a minute");
    }

    proptest! {
        /// By the letter: as text, bit by bit.
        #[test]
        fn it_agrees_with_a_slow_one(
            own in any::<u32>(), length in 0u8..=32, routes in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..5),
            random in any::<u32>(), near in 0u8..34,
        ) {
            // A source that shares some bits with the first of them.
            let base = routes.first().map_or(own, |route| route.0);
            let source = if near > 32 { random } else { base ^ random & !mask_v4(near) };
            let bits = |address: u32| format!("{address:032b}");
            let within = |network: u32, length: u8| bits(source)[..length.into()] == bits(network)[..length.into()];
            let link = (own, length);
            let networks = std::iter::once(&link).chain(&routes);
            let expected = source != own
                && (source == 0 || within(0xA9FE_0000, 16) || networks.clone().any(|(n, l)| within(*n, *l)));
            let net = |(address, length): &(u32, u8)| (IpAddr::from(address.to_be_bytes()), *length);
            let filter = SourceFilter::new(&[net(&link)], &routes.iter().map(net).collect::<Vec<_>>());
            prop_assert_eq!(filter.admits(&Addresses::V4 { source, destination: random }), expected);
        }

        #[test]
        fn and_so_it_does_for_ipv6(
            own in any::<u128>(), length in 0u8..=128, random in any::<u128>(), near in 0u8..=128,
        ) {
            let source = own ^ random & !mask_v6(near);
            let bits = |address: u128| format!("{address:0128b}");
            let within = |network: u128, length: u8| bits(source)[..length.into()] == bits(network)[..length.into()];
            let expected = source != own && (source == 0 || within(0xFE80 << 112, 10) || within(own, length));
            let filter = SourceFilter::new(&[(IpAddr::from(own.to_be_bytes()), length)], &[]);
            prop_assert_eq!(filter.admits(&Addresses::V6 { source, destination: random }), expected);
        }
    }
}
