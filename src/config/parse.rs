//! The small languages inside config values: endpoints, durations, names, networks. One string in, one value out;
//! whether values agree with each other is for [`super::check`].

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use toml::Value;

use super::report::Problem;
use super::{Endpoint, Mtu};
use crate::packet::marks::Dscp;

/// `IFNAMSIZ` of Linux without its closing zero.
const MAX_INTERFACE: usize = 15;

/// Longest name of a path: it stands in columns and before what the log says.
const MAX_PATH_NAME: usize = 32;

/// What Linux takes as the name of an interface, except what would not be safe in a path or on a terminal.
pub(super) fn interface(text: &str) -> Result<String, Problem> {
    let bad = |what: String| Err(Problem::new(what, "take 1 to 15 letters, digits, `-`, `_` or `.`, such as `tl0`"));
    let odd = |c: char| !c.is_ascii_graphic() || matches!(c, '/' | ':' | '%');
    match text {
        "" => bad("the interface's name is empty".into()),
        "." | ".." | "all" | "default" => bad(format!("`{text}` cannot be the name of an interface")),
        _ if text.len() > MAX_INTERFACE => bad(format!(
            "`{text}` is {} bytes long: Linux allows {MAX_INTERFACE} in the name of an interface",
            text.len()
        )),
        _ => match text.chars().find(|c| odd(*c)) {
            Some(c) => bad(format!("an interface's name cannot have {c:?} in it")),
            None => Ok(text.to_owned()),
        },
    }
}

/// `auto`, or 1280 (below which Linux takes IPv6 off an interface) to 9000.
pub(super) fn mtu(value: &Value) -> Result<Mtu, Problem> {
    let help = "write \"auto\" or a number from 1280 to 9000";
    match value {
        Value::String(text) if text == "auto" => Ok(Mtu::Auto),
        Value::Integer(number) => match u16::try_from(*number) {
            Ok(mtu @ 1280..=9000) => Ok(Mtu::Fixed(mtu)),
            _ => Err(Problem::new(format!("an MTU of {number} is out of range"), help)),
        },
        _ => Err(Problem::new("this is not an MTU", help)),
    }
}

/// `none`, `copy`, or 0 to 63 (RFC 2474, section 3).
pub(super) fn dscp(value: &Value) -> Result<Dscp, Problem> {
    let help = "write \"none\", \"copy\" (that of the packet inside), or a number from 0 to 63, such as 46";
    match value {
        Value::String(text) if text == "none" => Ok(Dscp::None),
        Value::String(text) if text == "copy" => Ok(Dscp::Copy),
        Value::Integer(number) => match u8::try_from(*number) {
            Ok(dscp @ 0..=63) => Ok(Dscp::Fixed(dscp)),
            _ => Err(Problem::new(format!("a DSCP of {number} is out of range"), help)),
        },
        _ => Err(Problem::new("this is not a DSCP", help)),
    }
}

/// A number and `ms`, `s` or `m`: 50 ms to 60 s.
pub(super) fn interval(text: &str) -> Result<Duration, Problem> {
    let help = "write a number and its unit, from \"50ms\" to \"60s\"";
    let not_a_duration = || Problem::new(format!("`{text}` is not a duration"), help);
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(not_a_duration)?;
    let (number, unit) = text.split_at(unit_at);
    let milliseconds = match unit.trim() {
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        _ => return Err(not_a_duration()),
    } * number.parse::<f64>().map_err(|_| not_a_duration())?;
    if !(50.0..=60e3).contains(&milliseconds) {
        return Err(Problem::new(format!("an interval of {text} is out of range"), help));
    }
    Ok(Duration::from_secs_f64(milliseconds / 1e3))
}

/// `address:port` of this machine; port 0 means any.
pub(super) fn listen(text: &str) -> Result<SocketAddr, Problem> {
    let help = "write an address of this machine and a port, such as \"0.0.0.0:7311\", or \"[::]:7311\" for IPv4 and \
                IPv6";
    let address: SocketAddr =
        text.parse().map_err(|_| Problem::new(format!("`{text}` is not an address and port"), help))?;
    if address.ip().is_multicast() {
        return Err(Problem::new(format!("`{text}` is a multicast address: it is not this machine's"), help));
    }
    Ok(address)
}

/// An address of this machine by which one uplink can be told from another.
pub(super) fn own_address(text: &str) -> Result<IpAddr, Problem> {
    let help = "write an address of this machine, such as \"203.0.113.7\" or \"2001:db8::7\"; the name of an interface goes \
                into `interface`";
    if let Ok(with_port) = text.parse::<SocketAddr>() {
        return Err(Problem::new(
            format!("`{text}` has a port; here an address alone belongs"),
            format!("write \"{}\": the port is that of `listen`", with_port.ip()),
        ));
    }
    let ip: IpAddr = text.parse().map_err(|_| Problem::new(format!("`{text}` is not an address"), help))?;
    match ip.is_unspecified() || ip.is_multicast() {
        true => Err(Problem::new(format!("`{text}` is not the address of any one uplink"), help)),
        false => Ok(ip),
    }
}

/// What a path is called: one word on a line of the log.
pub(super) fn path_name(text: &str) -> Result<String, Problem> {
    let bad = |what: String| Err(Problem::new(what, "take up to 32 letters, digits or signs, such as \"fibre\""));
    match text.chars().find(|c| !c.is_ascii_graphic()) {
        _ if text.is_empty() => bad("the path's name is empty".into()),
        Some(c) => bad(format!("a path's name cannot have {c:?} in it")),
        None if text.len() > MAX_PATH_NAME => {
            bad(format!("`{text}` is {} characters long: {MAX_PATH_NAME} are the most", text.len()))
        }
        None => Ok(text.to_owned()),
    }
}

/// The name of a user of this machine, as useradd(8) takes it.
pub(super) fn user(text: &str) -> Result<String, Problem> {
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if begins && text.len() <= 32 && text.bytes().all(inside) {
        return Ok(text.to_owned());
    }
    Err(Problem::new(format!("`{text}` is not the name of a user"), "name a user of this machine, such as \"tieline\""))
}

/// `host:port`, `address:port` or `[address]:port`. A name is not looked up.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, Problem> {
    let help = "write host and port, such as \"branch.example.net:7311\", \"203.0.113.7:7311\" or \
                \"[2001:db8::7]:7311\"";
    let bad = |what: String| Problem::new(what, help);
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, tail)) => (host, tail.strip_prefix(':')),
        None if text.parse::<Ipv6Addr>().is_ok() => {
            return Err(Problem::new(
                format!("`{text}` is an IPv6 address without brackets"),
                "write brackets around it and the port behind: \"[2001:db8::7]:7311\"",
            ));
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.ok_or_else(|| bad(format!("`{text}` has no port")))?;
    let port = match port.parse::<u16>() {
        Ok(port @ 1..) if !text.ends_with(|c: char| !c.is_ascii_digit()) && !text.contains("+") => port,
        _ => return Err(bad(format!("`{port}` is not a port: ports are 1 to 65535"))),
    };
    let well_formed = if text.starts_with('[') { is_ipv6(host) } else { is_ipv4_or_name(host) };
    if !well_formed {
        return Err(bad(format!("`{host}` is not a host name or address")));
    }
    if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
        return Err(bad(format!("`{host}` is not the address of any one machine")));
    }
    Ok(Endpoint { host: host.to_owned(), port })
}

/// An IPv6 address, with `%interface` if it is link-local.
fn is_ipv6(host: &str) -> bool {
    let (address, zone) = host.split_once('%').map_or((host, None), |(address, zone)| (address, Some(zone)));
    let zone_fits = |ip: Ipv6Addr| zone.is_none_or(|zone| ip.is_unicast_link_local() && interface(zone).is_ok());
    address.parse().is_ok_and(zone_fits)
}

/// A host name (RFC 1123 §2.1, and `_`, which some have). What ends in a number is an IPv4 address or nothing.
fn is_ipv4_or_name(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    match name.rsplit('.').next() {
        Some(last) if last.bytes().all(|b| b.is_ascii_digit()) => host.parse::<std::net::Ipv4Addr>().is_ok(),
        _ => name.len() <= 253 && name.split('.').all(label),
    }
}

/// An address of an interface with its prefix length; host bits are kept.
pub(super) fn address(text: &str) -> Result<IpNet, Problem> {
    let network = network_of(text, |ip| {
        let prefix = if ip.is_ipv4() { 31 } else { 127 };
        format!("\"{ip}/{prefix}\", where the other end is {}", neighbour(ip))
    })?;
    let (ip, prefix) = (network.addr(), network.prefix_len());
    let help = "take a private address that neither site uses, such as \"10.99.0.2/31\"";
    // A link-local one is for the link itself, and some put it there.
    if let Some((_, why)) = special(&ip.into()).filter(|(_, why)| *why != LINK_LOCAL) {
        return Err(Problem::new(format!("`{text}` cannot be the address of an interface: {why}"), help));
    }
    if prefix == 0 {
        return Err(Problem::new(format!("`{text}` cannot be the address of an interface"), help));
    }
    // IPv4 keeps the first and last address of a network for itself, except in /31 (RFC 3021) and /32.
    if let IpNet::V4(v4) = network
        && prefix < 31
        && (ip == network.network() || ip == network.broadcast())
    {
        let which = if ip == network.network() { "network's own" } else { "broadcast" };
        let first = v4.hosts().next().unwrap_or(v4.addr());
        return Err(Problem::new(
            format!("`{text}` is the {which} address, not a host's"),
            format!("take a host's address, such as \"{first}/{prefix}\""),
        ));
    }
    Ok(network)
}

/// A network to route; host bits are an error.
pub(super) fn route(text: &str) -> Result<IpNet, Problem> {
    let network = network_of(text, |ip| format!("\"{}\"", IpNet::from(ip)))?;
    if network != network.trunc() {
        return Err(Problem::new(
            format!("`{text}` is a host in a network, not a network"),
            format!(
                "write \"{}\" for the network, or \"{}\" for the host",
                network.trunc(),
                IpNet::from(network.addr())
            ),
        ));
    }
    if let Some((_, why)) = special(&network) {
        return Err(Problem::new(
            format!("`{text}` cannot be behind the other end: {why}"),
            "take it out: `routes` lists the networks behind the other end",
        ));
    }
    Ok(network)
}

const LOOPBACK: &str = "these addresses are this machine's own (loopback)";
const MULTICAST: &str = "these are multicast addresses, which no route leads to";
const LINK_LOCAL: &str = "these addresses hold on one wire alone (link-local)";
const RESERVED: &str = "these addresses are reserved, and hosts do not have them";
const THIS_NETWORK: &str = "these addresses mean \"this network\", and no host has them";
const MAPPED: &str = "these are IPv4 addresses, which are written as such";

/// What no host at another site has (RFC 6890; the registries of special-purpose addresses).
const SPECIAL: [(&str, &str); 11] = [
    ("0.0.0.0/8", THIS_NETWORK),
    ("127.0.0.0/8", LOOPBACK),
    ("169.254.0.0/16", LINK_LOCAL),
    ("224.0.0.0/4", MULTICAST),
    ("240.0.0.0/4", RESERVED),
    ("224.0.0.0/3", RESERVED),
    ("::/128", THIS_NETWORK),
    ("::1/128", LOOPBACK),
    ("::ffff:0:0/96", MAPPED),
    ("fe80::/10", LINK_LOCAL),
    ("ff00::/8", MULTICAST),
];

/// The first of those that all of a network lies in. A default route lies in none.
fn special(network: &IpNet) -> Option<(&'static str, &'static str)> {
    SPECIAL.into_iter().find(|(range, _)| range.parse::<IpNet>().is_ok_and(|range| range.contains(network)))
}

/// The other address of a network of two.
fn neighbour(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => IpAddr::from((v4.to_bits() ^ 1).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() ^ 1).to_be_bytes()),
    }
}

/// `address/prefix`; `usual` says what to write where the prefix is missing.
fn network_of(text: &str, usual: impl Fn(IpAddr) -> String) -> Result<IpNet, Problem> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Err(Problem::new(format!("`{text}` has no prefix length"), format!("write it as {}", usual(ip))));
    }
    text.parse().map_err(|_| {
        Problem::new(
            format!("`{text}` is not an address with a prefix length"),
            "write it like \"10.99.0.2/31\" or \"fd99::2/127\"",
        )
    })
}
