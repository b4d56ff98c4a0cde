//! The ways to the peer, which are the `[[path]]`s or the one of `[local]` and `[peer]`: what each says, whether it is
//! one more, and whether the ends can meet on it.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use ipnet::IpNet;
use toml::Spanned;

use super::Checker;
use crate::config::report::Report;
use crate::config::{Endpoint, LinkConfig, LocalConfig, MAX_PATHS, PathConfig, PeerConfig, parse, schema};

impl Checker<'_> {
    /// The `[[path]]`s; with none the one of the other sections is checked all the same.
    pub(super) fn paths(
        &mut self,
        file: &schema::File,
        link: &LinkConfig,
        local: &LocalConfig,
        peer: &PeerConfig,
    ) -> Result<Vec<PathConfig>, Report> {
        if let Some(extra) = file.path.get(MAX_PATHS) {
            let help = format!("take one out: a link has {MAX_PATHS} at most");
            return self.fail(extra.span(), "this is one path too many", help);
        }
        let mut paths: Vec<PathConfig> = Vec::new();
        for text in &file.path {
            let path = self.path(text, link, local, peer)?;
            self.is_one_more(text, &path, &paths, local.listen)?;
            paths.push(path);
        }
        let ways = ways(file, local, peer, &paths);
        self.ends_can_meet(&ways, local)?;
        self.endpoints_are_outside(&ways, link);
        self.nothing_is_idle(file, link);
        Ok(paths)
    }

    fn path(
        &self,
        text: &Spanned<schema::Path>,
        link: &LinkConfig,
        local: &LocalConfig,
        peer: &PeerConfig,
    ) -> Result<PathConfig, Report> {
        let path = text.get_ref();
        let help = "write `name = \"fibre\"` in it, or what else status and log are to call it";
        let name = path.name.as_ref().ok_or_else(|| self.missing(Some(text), "`name` of a path", help))?;
        let name = self.parsed(name, parse::path_name)?;
        let interface = path.interface.as_ref().map(|text| self.path_interface(text, link, local)).transpose()?;
        let own = path.local.as_ref();
        let own = own.map(|text| self.path_local(text, interface.is_some(), link, local)).transpose()?;
        let endpoint = path.endpoint.as_ref().map(|text| self.parsed(text, parse::endpoint)).transpose()?;
        let endpoint = endpoint.or_else(|| peer.endpoint.clone());
        Ok(PathConfig { name, interface, local: own, endpoint, priority: path.priority })
    }

    fn path_interface(&self, text: &Spanned<String>, link: &LinkConfig, local: &LocalConfig) -> Result<String, Report> {
        let name = self.uplink(text, link, |ip| format!("`local`, as in `local = \"{ip}\"`"))?;
        match &local.bind {
            Some(bind) => self.fail(
                text.span(),
                format!("this path has an interface, and `bind = \"{bind}\"` in [local] one for all"),
                "take `bind` out, and let each path name its own",
            ),
            None => Ok(name),
        }
    }

    /// The address that takes the place of that of `listen`.
    fn path_local(
        &self,
        text: &Spanned<String>,
        has_interface: bool,
        link: &LinkConfig,
        local: &LocalConfig,
    ) -> Result<IpAddr, Report> {
        let ip = self.parsed(text, parse::own_address)?;
        if link.addresses.iter().any(|address| address.addr() == ip) {
            return self.fail(
                text.span(),
                format!("`{ip}` is the link's own address: its own datagrams would go into the link"),
                "name the address by which the peer reaches this machine",
            );
        }
        if let IpAddr::V6(v6) = ip
            && v6.is_unicast_link_local()
            && !has_interface
        {
            return self.fail(
                text.span(),
                format!("`{ip}` could be of any interface, as link-local addresses are"),
                "name its interface beside it, as in `interface = \"eth0\"`",
            );
        }
        match local.listen {
            Some(listen) if !listen.ip().is_unspecified() && listen.ip() != ip => self.fail(
                text.span(),
                format!("`listen = \"{listen}\"` in [local] has one address, and this path another"),
                format!(
                    "write `listen = \"[::]:{}\"`: the port is for all paths, the address is that of each",
                    listen.port()
                ),
            ),
            _ => Ok(ip),
        }
    }

    /// A path must be told from those before it: by its name, on the wire, and by its socket.
    fn is_one_more(
        &self,
        text: &Spanned<schema::Path>,
        new: &PathConfig,
        before: &[PathConfig],
        listen: Option<SocketAddr>,
    ) -> Result<(), Report> {
        let PathConfig { name, .. } = new;
        if before.iter().any(|old| old.name == *name) {
            let span = text.get_ref().name.as_ref().map_or(text.span(), Spanned::span);
            return self.fail(span, format!("there is a path `{name}` already"), "give each path its own name");
        }
        if let Some(old) = before.iter().find(|old| has_uplink(old) != has_uplink(new)) {
            let (with, without) = if has_uplink(new) { (new, old) } else { (old, new) };
            return self.fail(
                text.span(),
                format!("path `{}` names its uplink, and path `{}` does not", with.name, without.name),
                "write `interface` or `local` in each path, or in none if they differ by `endpoint` alone",
            );
        }
        let ends = |path: &PathConfig| (path.interface.clone(), path.local, path.endpoint.clone());
        if let Some(old) = before.iter().find(|old| ends(old) == ends(new)) {
            return self.fail(
                text.span(),
                format!("path `{name}` is the same as path `{}`: both leave and end at the same place", old.name),
                "give it another `interface`, `local` or `endpoint`, or take it out",
            );
        }
        if let Some(listen) = listen.filter(|listen| listen.port() != 0)
            && let Some(old) = before.iter().find(|old| collide(old, new, listen))
        {
            let (other, port) = (&old.name, listen.port());
            return self.fail(
                text.span(),
                format!("paths `{other}` and `{name}` cannot both have the port of `listen`, {port}: a datagram to it could be for either"),
                "tell them apart by `interface` or by `local`, or take `listen` out: then each has a port of its own",
            );
        }
        Ok(())
    }

    /// Each end must be able to call or to be called, by addresses of one family.
    fn ends_can_meet(&mut self, ways: &[Way<'_>], local: &LocalConfig) -> Result<(), Report> {
        let port = local.listen.map_or(0, |listen| listen.port());
        for way in ways {
            if way.endpoint.is_none() && port == 0 {
                let (who, place) = match way.name {
                    None => ("this end".to_owned(), "in [peer]"),
                    Some(name) => (format!("path `{name}`"), "in it or in [peer]"),
                };
                self.warn(
                    way.section.clone(),
                    format!("{who} has neither an endpoint to call nor a fixed port to be called at"),
                    format!("write `endpoint` {place}, or `listen = \"[::]:7311\"` in [local]"),
                );
            }
            if let (Some((from, own)), Some(endpoint)) = (&way.from, way.endpoint.and_then(ip_of))
                && !can_send(*own, endpoint)
            {
                let what = format!("from {from} nothing can be sent to {endpoint}");
                let help = match way.has_local {
                    true => "let both be IPv4 or both IPv6",
                    false => "let both be IPv4 or both IPv6; `listen = \"[::]:PORT\"` serves both",
                };
                return self.fail(way.span.clone(), what, help);
            }
        }
        Ok(())
    }

    /// A tunnel whose own datagrams are routed into it carries nothing.
    fn endpoints_are_outside(&mut self, ways: &[Way<'_>], link: &LinkConfig) {
        let mut seen = Vec::new();
        // What is tied to another interface is not routed into this one.
        for way in ways.iter().filter(|way| !way.is_tied) {
            let Some(ip) = way.endpoint.and_then(ip_of) else { continue };
            // A default route is not for them: see `control/policy`.
            let routes = link.routes.iter().copied().filter(|route| route.prefix_len() > 0);
            let own = link.addresses.iter().map(IpNet::trunc);
            let Some(net) = routes.chain(own).find(|net| net.contains(&ip)) else { continue };
            if seen.contains(&ip) {
                continue;
            }
            seen.push(ip);
            self.warn(
                way.endpoint_span.clone(),
                format!("{ip} lies in {net}, which is sent into the link: so would the link's own datagrams be"),
                format!("make sure that there is a narrower route to {ip}, or take it out of what goes into the link"),
            );
        }
    }

    /// What is said but acts on nothing.
    fn nothing_is_idle(&mut self, file: &schema::File, link: &LinkConfig) {
        let peer = file.peer.as_ref().and_then(|peer| peer.get_ref().endpoint.as_ref());
        if let Some(endpoint) = peer
            && !file.path.is_empty()
            && file.path.iter().all(|path| path.get_ref().endpoint.is_some())
        {
            self.warn(
                endpoint.span(),
                "nothing is sent there: each path has an endpoint of its own",
                "take it out, or write another [[path]] that leads there",
            );
        }
        let duplicate = file.link.as_ref().and_then(|link| link.get_ref().duplicate.as_ref());
        if let (Some(duplicate), true, 1) = (duplicate, link.duplicate, file.path.len()) {
            self.warn(
                duplicate.span(),
                "there is one path to send on, and a second is needed",
                "write another [[path]], or none if the other end is the one with two",
            );
        }
    }
}

/// One way to the peer, with its places in the file.
struct Way<'a> {
    /// `None` where it is the only one, of `[local]` and `[peer]`.
    name: Option<&'a str>,
    section: Range<usize>,
    /// The own address, and what it says in the file; `None` for any.
    from: Option<(String, IpAddr)>,
    has_local: bool,
    /// Whether it leaves by a certain interface.
    is_tied: bool,
    endpoint: Option<&'a Endpoint>,
    endpoint_span: Range<usize>,
    /// Where own address and endpoint are at odds, if they are.
    span: Range<usize>,
}

/// The paths, or what there is without any.
fn ways<'a>(
    file: &'a schema::File,
    local: &'a LocalConfig,
    peer: &'a PeerConfig,
    paths: &'a [PathConfig],
) -> Vec<Way<'a>> {
    let section = file.peer.as_ref().map(Spanned::span).unwrap_or_default();
    let endpoint = file.peer.as_ref().and_then(|peer| peer.get_ref().endpoint.as_ref());
    let peer_span = endpoint.map(Spanned::span).unwrap_or_default();
    let listen = local.listen.map(|listen| (format!("`listen = \"{listen}\"`"), listen.ip()));
    let only = Way {
        name: None,
        section,
        from: listen.clone(),
        has_local: false,
        is_tied: local.bind.is_some(),
        endpoint: peer.endpoint.as_ref(),
        endpoint_span: peer_span.clone(),
        span: peer_span.clone(),
    };
    if paths.is_empty() {
        return vec![only];
    }
    let way = |(text, path): (&'a Spanned<schema::Path>, &'a PathConfig)| {
        let schema::Path { local: own, endpoint, .. } = text.get_ref();
        let endpoint_span = endpoint.as_ref().map_or(peer_span.clone(), Spanned::span);
        Way {
            name: Some(&path.name),
            section: text.span(),
            from: path.local.map(|ip| (format!("`local = \"{ip}\"`"), ip)).or_else(|| listen.clone()),
            has_local: path.local.is_some(),
            is_tied: path.interface.is_some() || local.bind.is_some(),
            endpoint: path.endpoint.as_ref(),
            span: endpoint.as_ref().or(own.as_ref()).map_or(peer_span.clone(), Spanned::span),
            endpoint_span,
        }
    };
    file.path.iter().zip(paths).map(way).collect()
}

/// Whether it names the interface it leaves by or the address it leaves from.
fn has_uplink(path: &PathConfig) -> bool {
    path.interface.is_some() || path.local.is_some()
}

/// Whether Linux would refuse one of the two a socket, both being at the port of `listen`.
fn collide(a: &PathConfig, b: &PathConfig, listen: SocketAddr) -> bool {
    // Without an uplink all paths share a socket.
    if !has_uplink(a) || !has_uplink(b) {
        return false;
    }
    let apart = matches!((&a.interface, &b.interface), (Some(a), Some(b)) if a != b);
    let [a, b] = [a, b].map(|path| path.local.unwrap_or(listen.ip()));
    let covers = |any: IpAddr, one: IpAddr| any.is_unspecified() && can_send(any, one);
    !apart && (a == b || covers(a, b) || covers(b, a))
}

/// The endpoint's address, if it is one and not a name.
fn ip_of(endpoint: &Endpoint) -> Option<IpAddr> {
    let address = endpoint.host.split_once('%').map_or(endpoint.host.as_str(), |(address, _zone)| address);
    address.parse().ok()
}

/// Whether a socket bound to `own` can reach `ip`: `::` is the one that serves both families.
fn can_send(own: IpAddr, ip: IpAddr) -> bool {
    own.is_ipv4() == ip.is_ipv4() || (own.is_ipv6() && own.is_unspecified())
}
