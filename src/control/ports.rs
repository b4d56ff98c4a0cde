//! The link's own UDP ports: the one it began with and those opened later because nothing answered on it, or one for each of config's
//! paths that has an uplink of its own.
//!
//! Something on the way may have taken against one port (a NAT with a stale mapping, a firewall with a stale verdict);
//! another may pass. An interface comes and goes, and a socket tied to the one that went is of no use to the next. Which numbers are
//! open is kept here; the sockets themselves are the loops'.

use super::RunError;
use super::resolver::Families;
use super::unreachable::Question;
use crate::config::{Config, PathConfig};
use crate::dataplane::MAX_SOCKETS;
use crate::protocol::{SocketId, Time};
use crate::sys::offloads::UdpOffloads;
use crate::sys::sysctl;
use crate::sys::udp::{BindError, Ties, UdpSocket};
use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;
use tracing::{debug, info, warn};

const FIRST: SocketId = SocketId(0);

/// A path's socket is opened anew this often at most: several paths may ask for the one they share.
const REOPEN_SPACING: Duration = Duration::from_secs(5);

/// A socket and its number.
pub(super) type Opened = (SocketId, UdpSocket);

/// Where a socket is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// `None`: any address, and a port of the kernel's choice.
    address: Option<SocketAddr>,
    ties: Ties,
}

impl Place {
    /// That of a link without paths, and of a path that names nothing of its own.
    fn usual(config: &Config) -> Place {
        let ties = Ties { interface: config.local.bind.clone(), mark: config.mark() };
        Place { address: config.local.listen, ties }
    }

    /// That of a path; the port is the one of `listen` also where the address is its own.
    fn of(path: &PathConfig, usual: &Place) -> Place {
        let port = usual.address.map_or(0, |address| address.port());
        let address = path.local.map(|own| SocketAddr::new(own, port)).or(usual.address);
        let interface = path.interface.clone().or(usual.ties.interface.clone());
        Place { address, ties: Ties { interface, ..usual.ties } }
    }

    /// `UDP [::]:7311 at eth0`
    fn in_words(&self) -> String {
        let address = self.address.map_or_else(|| "any address".to_owned(), |address| format!("UDP {address}"));
        match &self.ties.interface {
            Some(interface) => format!("{address} at {interface}"),
            None => address,
        }
    }

    fn families(&self) -> Families {
        Families::of(self.address.unwrap_or((Ipv6Addr::UNSPECIFIED, 0).into()))
    }
}

/// What a socket is bound to, as it was when that was last tried.
#[derive(Clone, Copy, Debug, Default)]
struct Bound {
    /// Whether the interface and the address were there.
    there: bool,
    /// The interface's index, of which another interface with the same name knows nothing.
    index: Option<u32>,
    /// The address and port it has, or had.
    at: Option<SocketAddr>,
}

impl Bound {
    fn new(socket: Option<&UdpSocket>, index: Option<u32>) -> Bound {
        Bound { there: socket.is_some(), index, at: socket.and_then(|socket| socket.local_addr().ok()) }
    }
}

/// The port of one of config's paths.
struct PathPort {
    name: String,
    place: Place,
    /// Its own; or the first, which all share that name no uplink.
    socket: SocketId,
    bound: Bound,
    reopened: Option<Time>,
}

fn path_ports(paths: &[PathConfig], usual: &Place) -> Vec<PathPort> {
    let port = |(path, n): (&PathConfig, u8)| PathPort {
        name: path.name.clone(),
        place: Place::of(path, usual),
        socket: if path.interface.is_some() || path.local.is_some() { SocketId(n) } else { FIRST },
        bound: Bound { there: true, ..Bound::default() },
        reopened: None,
    };
    paths.iter().zip(0..).map(port).collect()
}

/// The index of the interface that a socket there is bound to.
fn index_of(place: &Place, links: &Links) -> Option<u32> {
    links.get(place.ties.interface.as_ref()?).copied()
}

/// Whether the error may pass: an uplink that is not there yet, or has no such address yet.
fn may_pass(error: &BindError) -> bool {
    matches!(error, BindError::NoSuchInterface(_) | BindError::NoSuchAddress(_))
}

/// Why a path's socket could not be opened: what [`BindError`] says of the link's one socket, in terms of a path.
pub(super) fn in_words(error: &BindError) -> String {
    match error {
        BindError::NoSuchInterface(name) => {
            format!("this machine has no interface {name}: see `interface` in its [[path]]")
        }
        BindError::NoSuchAddress(address) => {
            format!("this machine has no address {}: see `local` in its [[path]], or [local] listen", address.ip())
        }
        other => other.to_string(),
    }
}

/// The machine's interfaces: the index that each name has.
type Links = BTreeMap<String, u32>;

pub(super) struct Ports {
    usual: Place,
    /// What is asked of each socket.
    wish: UdpOffloads,
    /// The traffic class of what is not user data.
    class: u8,
    /// Of a link without paths.
    open: Vec<(SocketId, Bound)>,
    /// One for each of config's, in its order.
    paths: Vec<PathPort>,
}

impl Ports {
    /// Opens the first socket, where config says, else anywhere; or one for each path's uplink. An interface or address that is not
    /// there is none of the errors: [`Ports::sync`] opens the socket when it comes.
    ///
    /// # Errors
    /// As [`BindError`] says.
    pub(super) fn open(config: &Config, wish: UdpOffloads, links: &Links) -> Result<(Ports, Vec<Opened>), RunError> {
        let usual = Place::usual(config);
        let paths = path_ports(&config.paths, &usual);
        let class = config.local.dscp.own();
        let mut ports = Ports { usual, wish, class, open: vec![(FIRST, Bound::default())], paths };
        let opened = match ports.paths.is_empty() {
            true => ports.open_first(links)?,
            false => ports.open_paths(links)?,
        };
        Ok((ports, opened))
    }

    fn open_first(&mut self, links: &Links) -> Result<Vec<Opened>, RunError> {
        let socket = self.bind(&self.usual);
        self.open = vec![(FIRST, Bound::new(socket.as_ref().ok(), index_of(&self.usual, links)))];
        match socket {
            Ok(socket) => Ok(vec![(FIRST, socket)]),
            Err(error) if may_pass(&error) => {
                warn!("{error}; waiting until it is there");
                Ok(Vec::new())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn open_paths(&mut self, links: &Links) -> Result<Vec<Opened>, RunError> {
        let mut opened = Vec::new();
        for way in self.with_own() {
            let socket = self.bind(&self.paths[way].place);
            let path = &mut self.paths[way];
            path.bound = Bound::new(socket.as_ref().ok(), index_of(&path.place, links));
            match socket {
                Ok(socket) => opened.push((path.socket, socket)),
                Err(error) if may_pass(&error) => {
                    warn!("path {} is not there yet, and is tried again: {}", path.name, in_words(&error));
                }
                Err(source) => return Err(RunError::Path { path: path.name.clone(), source }),
            }
        }
        self.warn_of_strict_filters();
        Ok(opened)
    }

    /// Opens what was waited for, now that these interfaces are there, and what is bound to an interface that was made anew: on the
    /// port it had, which a firewall on the way may know.
    pub(super) fn sync(&mut self, links: &Links) -> Vec<Opened> {
        if self.paths.is_empty() {
            let mut open = std::mem::take(&mut self.open);
            let sync = |(id, bound): &mut (SocketId, Bound)| {
                self.sync_one("the link's socket", &self.usual, bound, links).map(|socket| (*id, socket))
            };
            let opened = open.iter_mut().filter_map(sync).collect();
            self.open = open;
            return opened;
        }
        let mut opened = Vec::new();
        for way in self.with_own() {
            let path = &self.paths[way];
            let (name, place, mut bound) = (format!("path {}", path.name), path.place.clone(), path.bound);
            let socket = self.sync_one(&name, &place, &mut bound, links);
            self.paths[way].bound = bound;
            opened.extend(socket.map(|socket| (self.paths[way].socket, socket)));
        }
        opened
    }

    fn sync_one(&self, what: &str, place: &Place, bound: &mut Bound, links: &Links) -> Option<UdpSocket> {
        let index = index_of(place, links);
        if let (Some(interface), None) = (&place.ties.interface, index) {
            if std::mem::replace(&mut bound.there, false) {
                warn!("{what} waits until interface {interface} is there again");
            }
            return None;
        }
        if bound.there && bound.index == index {
            return None;
        }
        match self.bind_again(place, bound.at) {
            Ok(socket) => {
                *bound = Bound::new(Some(&socket), index);
                info!("{what} is bound again: {}", place.in_words());
                Some(socket)
            }
            Err(error) => {
                debug!("{what} cannot be bound yet: {error}");
                None
            }
        }
    }

    /// Binds there, at the address it had before if that is free.
    fn bind_again(&self, place: &Place, before: Option<SocketAddr>) -> Result<UdpSocket, BindError> {
        let same = before.map(|_| self.bind(&Place { address: before, ..place.clone() }));
        match same {
            Some(Ok(socket)) => Ok(socket),
            _ => self.bind(place),
        }
    }

    /// The sockets whose datagrams leave as the routing table says.
    pub(super) fn untied(&self) -> Vec<SocketId> {
        if self.paths.is_empty() {
            return if self.usual.ties.interface.is_none() { self.open_ids().collect() } else { Vec::new() };
        }
        let free = |way: &usize| self.paths[*way].place.ties.interface.is_none();
        self.with_own().into_iter().filter(free).map(|way| self.paths[way].socket).collect()
    }

    /// A strict reverse path filter (RFC 3704) lets in what the peer sends at the one interface alone that the route to it goes by.
    fn warn_of_strict_filters(&self) {
        let filtered = sysctl::strictly_filtered();
        for PathPort { name, place, .. } in &self.paths {
            if let Some(interface) = place.ties.interface.as_ref().filter(|interface| filtered.contains(interface)) {
                warn!(
                    "path {name} will hear nothing over IPv4 while the route to the peer goes by another interface: \
                     net.ipv4.conf.{interface}.rp_filter is 1; set it to 2"
                );
            }
        }
    }

    /// The paths that are the first to go by their sockets.
    fn with_own(&self) -> Vec<usize> {
        (0..self.paths.len()).filter(|way| self.has_own(*way)).collect()
    }

    /// Whether the path is the first that goes by its socket.
    fn has_own(&self, way: usize) -> bool {
        self.paths[way].socket == SocketId(way as u8)
    }

    fn bind(&self, place: &Place) -> Result<UdpSocket, BindError> {
        let mut socket = match place.address {
            Some(address) => UdpSocket::bind_tied(address, &place.ties)?,
            None => UdpSocket::bind_any(&place.ties)?,
        };
        socket.set_offloads(self.wish);
        if let Err(error) = socket.set_class(self.class) {
            let error = crate::os_error::in_words(&error);
            warn!("the link's own datagrams go without the DSCP that config says: {error}");
        }
        if let Err(error) = socket.open_door() {
            let error = crate::os_error::in_words(&error);
            info!("a flood from elsewhere will cost more than it need, as this kernel gives a port one queue: {error}");
        }
        Ok(socket)
    }

    /// How a datagram leaves that asks why nobody answers there: as the link's own do, by a path or by the link where it has none.
    pub(super) fn question(&self, way: usize, peers: Vec<SocketAddr>) -> Question {
        let place = self.paths.get(way).map_or(&self.usual, |path| &path.place);
        let local = place.address.map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
        Question { local, ties: place.ties.clone(), peers }
    }

    /// The number of the socket that a path goes by; the first where there is none such.
    pub(super) fn socket_of(&self, way: usize) -> SocketId {
        self.paths.get(way).map_or(FIRST, |path| path.socket)
    }

    /// The paths that go by a socket.
    pub(super) fn ways_by(&self, socket: SocketId) -> impl Iterator<Item = usize> + '_ {
        (0..self.paths.len()).filter(move |way| self.paths[*way].socket == socket)
    }

    /// The path that goes by a socket, if it is the only one.
    pub(super) fn way_by(&self, socket: SocketId) -> Option<usize> {
        let mut ways = self.ways_by(socket);
        ways.next().filter(|_| ways.next().is_none())
    }

    /// What can be sent to by a path, or by the link where it has none.
    pub(super) fn families(&self, way: usize, opened: &[Opened]) -> Families {
        let (id, place) = (self.socket_of(way), self.paths.get(way).map_or(&self.usual, |path| &path.place));
        let bound = opened.iter().find(|(known, _)| *known == id).and_then(|(_, socket)| socket.local_addr().ok());
        bound.map_or_else(|| place.families(), Families::of)
    }

    /// Opens a path's socket anew, which is to take the place of the one it has, if any. `None`: there is nothing better than that.
    ///
    /// A port of the kernel's choice is another one then, which a NAT with a stale mapping does not know. One that config names is still
    /// the old socket's, unless the interface has gone and come back since.
    pub(super) fn reopen(&mut self, now: Time, way: usize) -> Option<Opened> {
        let first = usize::from(self.paths.get(way)?.socket.0);
        if self.paths[first].reopened.is_some_and(|last| now.since(last) < REOPEN_SPACING) {
            return None;
        }
        self.paths[first].reopened = Some(now);
        let bound = self.bind(&self.paths[first].place);
        let path = &mut self.paths[first];
        let was_there = std::mem::replace(&mut path.bound.there, !bound.as_ref().is_err_and(may_pass));
        if let Ok(socket) = &bound {
            path.bound.at = socket.local_addr().ok();
        }
        match &bound {
            Ok(_) if !was_there => info!("path {} is there now", path.name),
            Err(error) if may_pass(error) && was_there => {
                warn!("path {} is not there any more, and is tried again: {}", path.name, in_words(error));
            }
            Err(error) => debug!("path {} stays with the socket it has: {error}", path.name),
            Ok(_) => {}
        }
        Some((path.socket, bound.ok()?))
    }

    /// Opens another of the same families and address, at a port of the kernel's choice. `None` while the interface or address it
    /// belongs to is waited for.
    pub(super) fn open_another(&self) -> Result<Option<UdpSocket>, BindError> {
        if !self.open.iter().any(|(_, bound)| bound.there) {
            return Ok(None);
        }
        let address = self.usual.address.map(|address| SocketAddr::new(address.ip(), 0));
        self.bind(&Place { address, ..self.usual.clone() }).map(Some)
    }

    /// A number for another `socket`, and the one that must make room for it, which is never `used` nor the one that
    /// config asks for.
    pub(super) fn next(&mut self, used: Option<SocketId>, socket: &UdpSocket) -> (SocketId, Option<SocketId>) {
        let mut evicted = None;
        if self.open.len() >= MAX_SOCKETS
            && let Some(oldest) = self.open.iter().position(|(id, _)| self.can_go(*id, used))
        {
            evicted = Some(self.open.remove(oldest).0);
        }
        let free = |id: &SocketId| !self.open_ids().any(|open| open == *id) && evicted != Some(*id);
        let id = (0..=u8::MAX).map(SocketId).find(free).unwrap_or(SocketId(u8::MAX));
        let index = self.open.first().and_then(|(_, bound)| bound.index);
        self.open.push((id, Bound::new(Some(socket), index)));
        (id, evicted)
    }

    fn open_ids(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.open.iter().map(|(id, _)| *id)
    }

    /// Takes the numbers that can go, now that the line uses `used`: none of those that are paths'.
    pub(super) fn take_needless(&mut self, used: SocketId) -> Vec<SocketId> {
        if !self.paths.is_empty() {
            return Vec::new();
        }
        let gone: Vec<_> = self.open_ids().filter(|id| self.can_go(*id, Some(used))).collect();
        self.open.retain(|(id, _)| !gone.contains(id));
        gone
    }

    /// The port that config names is where the peer expects this end: it stays.
    fn can_go(&self, id: SocketId, used: Option<SocketId>) -> bool {
        Some(id) != used && (id != FIRST || self.usual.address.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{in_own_network, shell};
    use std::net::Ipv4Addr;

    const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn ids(numbers: &[u8]) -> Vec<SocketId> {
        numbers.iter().copied().map(SocketId).collect()
    }

    /// That of a path which leaves by `interface` from `local`, where they are not empty.
    fn path(name: &str, interface: &str, local: &str) -> PathConfig {
        let interface = Some(interface.to_owned()).filter(|name| !name.is_empty());
        PathConfig { name: name.into(), interface, local: local.parse().ok(), endpoint: None, priority: 100 }
    }

    fn config(listen: Option<SocketAddr>, paths: Vec<PathConfig>) -> Config {
        let mut config = Config::load("examples/hq.toml".as_ref()).unwrap().0;
        (config.local.listen, config.paths) = (listen, paths);
        config
    }

    fn open(listen: Option<SocketAddr>, paths: Vec<PathConfig>) -> Result<(Ports, Vec<Opened>), RunError> {
        Ports::open(&config(listen, paths), UdpOffloads::ALL, &links())
    }

    /// The interfaces of the calling thread's network.
    fn links() -> Links {
        let interfaces = nix::net::if_::if_nameindex().unwrap();
        interfaces.iter().map(|found| (found.name().to_string_lossy().into_owned(), found.index())).collect()
    }

    fn plain(listen: Option<SocketAddr>) -> (Ports, UdpSocket) {
        let (ports, mut opened) = open(listen, vec![]).unwrap();
        let (id, socket) = opened.remove(0);
        assert_eq!((id, opened.len()), (FIRST, 0));
        (ports, socket)
    }

    fn addresses(opened: &[Opened]) -> Vec<(u8, String)> {
        opened.iter().map(|(id, socket)| (id.0, socket.local_addr().unwrap().to_string())).collect()
    }

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    #[test]
    fn others_go_when_one_is_used_but_never_the_configured_one() {
        let (mut ports, socket) = plain(Some(LISTEN));
        assert_eq!(ports.next(None, &socket), (SocketId(1), None));
        assert_eq!(ports.next(None, &socket), (SocketId(2), None));
        assert_eq!(ports.take_needless(SocketId(2)), ids(&[1]));
        assert_eq!(ports.next(Some(SocketId(2)), &socket), (SocketId(1), None), "a freed number is used again");
        assert_eq!(ports.take_needless(SocketId(0)), ids(&[2, 1]));

        let (mut ports, socket) = plain(None);
        ports.next(None, &socket);
        assert_eq!(ports.take_needless(SocketId(1)), ids(&[0]));
    }

    #[test]
    fn there_is_room_for_one_more_always() {
        let (mut ports, socket) = plain(Some(LISTEN));
        let used = ports.next(None, &socket).0;
        for _ in 0..1_000 {
            ports.next(Some(used), &socket);
            assert!(ports.open.len() <= MAX_SOCKETS);
            assert!([used, FIRST].iter().all(|id| ports.open_ids().any(|open| open == *id)));
        }
    }

    #[test]
    fn another_port_is_another_port() {
        let (ports, first) = plain(Some(LISTEN));
        let second = ports.open_another().unwrap().unwrap();
        let (first, second) = (first.local_addr().unwrap(), second.local_addr().unwrap());
        assert_eq!(first.ip(), second.ip());
        assert_ne!(first.port(), second.port());
    }

    /// Two uplinks, with an address each.
    fn two_uplinks() {
        for (name, far, net) in [("wan0", "far0", "198.51.100.1"), ("wan1", "far1", "203.0.113.1")] {
            shell(&format!("ip link add {name} type veth peer name {far} && ip link set {far} up"));
            shell(&format!("ip addr add {net}/24 dev {name} && ip link set {name} up"));
        }
        shell("ip link set lo up");
    }

    #[test]
    fn each_uplink_has_a_socket_of_its_own_at_the_one_port() {
        in_own_network(|| {
            two_uplinks();
            let port = Some("[::]:7311".parse().unwrap());
            let paths = vec![path("a", "wan0", ""), path("b", "", "203.0.113.1"), path("c", "wan1", "203.0.113.1")];
            let (ports, opened) = open(port, paths[..1].iter().chain(&paths[2..]).cloned().collect()).unwrap();
            assert_eq!(addresses(&opened), [(0, "[::]:7311".into()), (1, "203.0.113.1:7311".into())]);
            assert_eq!([ports.socket_of(0), ports.socket_of(1)], [SocketId(0), SocketId(1)]);
            let families = |way| ports.families(way, &opened);
            assert_eq!(families(0), Families::of("[::]:1".parse().unwrap()));
            assert_eq!(families(1), Families::of("0.0.0.0:1".parse().unwrap()));
            drop(opened);

            let (mut ports, opened) = open(None, paths).unwrap();
            let ports_of =
                |opened: &[Opened]| opened.iter().map(|(_, s)| s.local_addr().unwrap().port()).collect::<Vec<_>>();
            assert_eq!(opened.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [0, 1, 2]);
            assert!(ports_of(&opened).iter().all(|port| *port != 0));
            assert_eq!(ports.take_needless(SocketId(1)), [], "a path's socket was closed");
        });
    }

    #[test]
    fn paths_without_an_uplink_share_the_socket_there_is() {
        let (mut ports, opened) = open(Some(LISTEN), vec![path("a", "", ""), path("b", "", "")]).unwrap();
        assert_eq!((opened.len(), opened[0].0), (1, FIRST));
        assert_eq!([ports.socket_of(0), ports.socket_of(1)], [FIRST; 2]);
        assert_eq!(ports.ways_by(FIRST).collect::<Vec<_>>(), [0, 1]);
        let (id, anew) = ports.reopen(at(1), 1).unwrap();
        assert_eq!(id, FIRST);
        assert_ne!(anew.local_addr().unwrap(), opened[0].1.local_addr().unwrap());
        assert!(ports.reopen(at(5), 0).is_none(), "twice, as each path asked");
        assert!(ports.reopen(at(6), 0).is_some());
    }

    #[test]
    fn an_uplink_that_is_not_there_is_waited_for_if_there_is_another() {
        in_own_network(|| {
            two_uplinks();
            let port = Some("[::]:7311".parse().unwrap());
            let paths = vec![path("lte", "wwan0", ""), path("dsl", "wan1", ""), path("old", "wan0", "192.0.2.1")];
            let (mut ports, opened) = open(port, paths.clone()).unwrap();
            assert_eq!(addresses(&opened), [(1, "[::]:7311".into())]);
            assert_eq!(ports.families(2, &opened), Families::of("192.0.2.1:0".parse().unwrap()), "not known before");
            assert!(ports.reopen(at(1), 0).is_none() && ports.reopen(at(1), 2).is_none());
            assert!(ports.reopen(at(1), 1).is_none(), "the port is its own socket's");

            shell("ip link add wwan0 type veth peer name tower && ip link set wwan0 up");
            shell("ip addr add 192.0.2.1/32 dev wan0");
            let (id, first) = ports.reopen(at(10), 0).unwrap();
            assert_eq!(id, SocketId(0));
            assert_eq!(ports.reopen(at(10), 2).unwrap().0, SocketId(2));
            // The port is still the old socket's, which is tied to an interface that is no more.
            assert!(ports.reopen(at(20), 0).is_none());
            shell("ip link del wwan0");
            assert!(ports.reopen(at(30), 0).is_none());
            shell("ip link add wwan0 type veth peer name tower && ip link set wwan0 up");
            let (_, second) = ports.reopen(at(40), 0).unwrap();
            assert_eq!(first.local_addr().unwrap(), second.local_addr().unwrap());

            let (mut none, opened) =
                open(port, vec![path("a", "wwan7", ""), path("b", "wwan9", "192.0.2.99")]).unwrap();
            assert!(opened.is_empty() && none.sync(&links()).is_empty());
            shell("ip link add wwan7 type veth peer name wwan9; ip addr add 192.0.2.99/32 dev wwan9");
            assert_eq!(addresses(&none.sync(&links())), [(0, "[::]:7311".into()), (1, "192.0.2.99:7311".into())]);
            assert!(none.sync(&links()).is_empty());
            shell("ip link del wwan7");
            assert!(none.sync(&links()).is_empty());
            shell("ip link add wwan7 type veth peer name wwan8");
            assert_eq!(addresses(&none.sync(&links())), [(0, "[::]:7311".into())]);

            let said = |paths| open(port, paths).err().unwrap().to_string();
            let taken = said(vec![path("gone", "wwan7", ""), path("dsl", "wan1", "")]);
            assert!(taken.contains("path dsl: UDP port 7311 is in use"), "{taken}");
        });
    }
}
