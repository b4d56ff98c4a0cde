//! From what the file says to what it means: defaults, key files, and whether the values agree with each other.
//!
//! What cannot work, or not as it reads, is an error; what works but can hardly be meant is a warning.

mod paths;

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;

use super::report::{Problem, Report, Source};
use super::schema::Texts;
use super::{
    Carrier, Config, CryptoConfig, HooksConfig, Layer, LinkConfig, LocalConfig, Mtu, PeerConfig, parse, schema,
};
use crate::keys::{KeyError, KeyFileError, PresharedKey, PublicKey, SecretKey};
use crate::packet::marks::Dscp;

/// Keys of one kind that may be listed: an old one and a new one.
const MAX_LISTED: usize = 2;

/// Checks the whole file.
pub(super) fn check(source: &Source<'_>, file: schema::File) -> Result<(Config, Vec<Report>), Report> {
    let mut checker = Checker { source, warnings: Vec::new(), published: false };
    let link = checker.link(&file)?;
    let local = checker.local(&file, &link)?;
    let peer = checker.peer(&file)?;
    checker.ends_differ(&file, &local, &peer)?;
    let paths = checker.paths(&file, &link, &local, &peer)?;
    let liveness_interval = match &file.liveness.interval {
        Some(text) => checker.parsed(text, parse::interval)?,
        None => Duration::from_secs(1),
    };
    let (up, down) = (checker.hook(file.hooks.up.as_ref())?, checker.hook(file.hooks.down.as_ref())?);
    let hooks = HooksConfig { up, down };
    let schema::Crypto { cipher, post_quantum, checksum } = file.crypto;
    let config = Config {
        name: source.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        path: source.path.to_owned(),
        link,
        local,
        peer,
        paths,
        crypto: CryptoConfig { cipher, post_quantum, checksum },
        liveness_interval,
        hooks,
    };
    Ok((config, checker.warnings))
}

struct Checker<'a> {
    source: &'a Source<'a>,
    warnings: Vec<Report>,
    /// Whether a published key has been met: one warning about them is enough.
    published: bool,
}

impl Checker<'_> {
    fn warn(&mut self, span: Range<usize>, what: impl Into<String>, help: impl Into<String>) {
        self.warnings.push(self.source.at(span, Problem::new(what, help)));
    }

    /// An error at a place.
    fn fail<T>(&self, span: Range<usize>, what: impl Into<String>, help: impl Into<String>) -> Result<T, Report> {
        Err(self.source.at(span, Problem::new(what, help)))
    }

    /// Parses one value, putting what is wrong with it in its place.
    fn parsed<T>(&self, text: &Spanned<String>, parse: fn(&str) -> Result<T, Problem>) -> Result<T, Report> {
        parse(text.get_ref()).map_err(|problem| self.source.at(text.span(), problem))
    }

    /// Where a section begins, or the file if it has none.
    fn at_section<T>(&self, section: Option<&Spanned<T>>, problem: Problem) -> Report {
        match section {
            Some(section) => self.source.at(section.span(), problem),
            None => Report::of_file(self.source.path, problem),
        }
    }

    fn missing<T>(&self, section: Option<&Spanned<T>>, key: &str, help: &str) -> Report {
        self.at_section(section, Problem::new(format!("{key} is missing"), help))
    }

    fn link(&mut self, file: &schema::File) -> Result<LinkConfig, Report> {
        let nothing = schema::Link::default();
        let link = file.link.as_ref().map_or(&nothing, Spanned::get_ref);
        let interface = match &link.interface {
            Some(text) => self.parsed(text, parse::interface)?,
            None => "tl0".to_owned(),
        };
        let addresses = self.addresses(&link.address)?;
        let routes = self.routes(&link.routes, &addresses)?;
        let bridge = self.bridge(link, &interface)?;
        let mtu = match &link.mtu {
            Some(value) => parse::mtu(value.get_ref()).map_err(|problem| self.source.at(value.span(), problem))?,
            None if bridge.is_some() => Mtu::Bridge,
            None => Mtu::Auto,
        };
        let source_filter = self.source_filter(link)?;
        // An Ethernet may be joined to others by other hands.
        if addresses.is_empty() && routes.is_empty() && link.layer == Layer::Ip {
            let problem = Problem::new(
                "the link has neither an address nor a route: nothing will use it",
                "write `address = [\"10.99.0.2/31\"]` in [link], the other end having 10.99.0.3/31",
            );
            self.warnings.push(self.at_section(file.link.as_ref(), problem));
        }
        Ok(LinkConfig {
            interface,
            addresses,
            routes,
            mtu,
            metric: link.metric,
            layer: link.layer,
            bridge,
            mss_clamp: link.mss_clamp,
            routes_follow: link.routes_follow.unwrap_or(true),
            carrier: link.carrier.unwrap_or(Carrier::Peer),
            duplicate: link.duplicate.as_ref().is_some_and(|duplicate| *duplicate.get_ref()),
            fallback: link.fallback,
            coalesce_udp: link.coalesce_udp,
            source_filter,
        })
    }

    /// Whether sources are filtered: where `routes` says which there are, unless the file says otherwise.
    fn source_filter(&self, link: &schema::Link) -> Result<bool, Report> {
        let Some(wanted) = &link.source_filter else { return Ok(!link.routes.is_empty()) };
        if *wanted.get_ref() && link.layer == Layer::Ethernet {
            return self.fail(
                wanted.span(),
                "a link that carries Ethernet has no source filter: `routes`, which it goes by, belongs to IP",
                "take it out, and filter on the bridge (nft, table bridge), or take `layer = \"ip\"`",
            );
        }
        Ok(*wanted.get_ref())
    }

    /// What only an Ethernet can have, and what it cannot.
    fn bridge(&self, link: &schema::Link, interface: &str) -> Result<Option<String>, Report> {
        if let (Layer::Ethernet, Some(route)) = (link.layer, link.routes.first()) {
            return self.fail(
                route.span(),
                "on an Ethernet a route needs a next hop, which `routes` does not have",
                "set it with `ip route add NETWORK via ADDRESS`, or take `layer = \"ip\"`, where none is needed",
            );
        }
        let Some(text) = &link.bridge else { return Ok(None) };
        let bridge = self.parsed(text, parse::interface)?;
        if link.layer == Layer::Ip {
            let help = "write `layer = \"ethernet\"` beside it, at both ends";
            return self.fail(text.span(), "only a link that carries Ethernet can be a bridge's port", help);
        }
        if bridge == interface {
            let help = "name the bridge that it joins";
            return self.fail(text.span(), "this is the link's own interface", help);
        }
        if let Some(address) = link.address.first() {
            return self.fail(
                address.span(),
                format!("a port of bridge `{bridge}` has no use for an address"),
                "take it out: the address belongs on the bridge itself",
            );
        }
        Ok(Some(bridge))
    }

    fn addresses(&self, texts: &[Spanned<String>]) -> Result<Vec<IpNet>, Report> {
        let mut addresses: Vec<IpNet> = Vec::new();
        for text in texts {
            let new = self.parsed(text, parse::address)?;
            if let Some(old) = addresses.iter().find(|old| overlap(old, &new)) {
                let what = match old.addr() == new.addr() {
                    true => format!("`{new}` is the same address as `{old}`"),
                    false => format!("`{new}` is in the same network as `{old}`"),
                };
                return self.fail(text.span(), what, "keep one of them, or take another network for one");
            }
            addresses.push(new);
        }
        Ok(addresses)
    }

    fn routes(&mut self, texts: &[Spanned<String>], addresses: &[IpNet]) -> Result<Vec<IpNet>, Report> {
        let mut routes = Vec::new();
        for text in texts {
            let new = self.parsed(text, parse::route)?;
            if routes.contains(&new) {
                return self.fail(text.span(), format!("`{new}` is in the list already"), "take it out");
            }
            if let Some(own) = addresses.iter().find(|own| own.trunc().contains(&new)) {
                let what = format!("`{new}` lies in the link's own network, that of its address `{own}`");
                return self.fail(text.span(), what, "take it out: the link's own network is reached without a route");
            }
            if !addresses.is_empty() && !addresses.iter().any(|own| same_family(own, &new)) {
                let family = if new.addr().is_ipv4() { "IPv4" } else { "IPv6" };
                self.warn(
                    text.span(),
                    format!("the link has a route for {family} but no address of {family}"),
                    format!(
                        "add an {family} address, or packets of this machine itself go out under another interface's"
                    ),
                );
            }
            routes.push(new);
        }
        Ok(routes)
    }

    fn local(&mut self, file: &schema::File, link: &LinkConfig) -> Result<LocalConfig, Report> {
        let section = file.local.as_ref();
        let help = "write `private_key = \"FILE\"` in [local]; `tieline keygen --out FILE` makes the file";
        let local = section.map(Spanned::get_ref);
        let text = local.and_then(|local| local.private_key.as_ref());
        let text = text.ok_or_else(|| self.missing(section, "`private_key` of [local]", help))?;
        let (private_key, private_key_file) = self.key_file(text, "tieline keygen", SecretKey::read_file)?;
        if private_key.is_published() {
            self.warn_published(text.span(), "this end's key", "tieline keygen --out FILE");
        }
        let listen = local.and_then(|local| local.listen.as_ref());
        let listen = listen.map(|text| self.parsed(text, parse::listen)).transpose()?;
        let dscp = match local.and_then(|local| local.dscp.as_ref()) {
            Some(value) => parse::dscp(value.get_ref()).map_err(|problem| self.source.at(value.span(), problem))?,
            None => Dscp::None,
        };
        let user = local.and_then(|local| local.user.as_ref());
        let user = user.map(|text| self.parsed(text, parse::user)).transpose()?;
        let bind = local.and_then(|local| local.bind.as_ref());
        let listen_at = |ip| format!("`listen`, as in \"{}\", with port 0 for any", SocketAddr::new(ip, 7311));
        let bind = bind.map(|text| self.uplink(text, link, listen_at)).transpose()?;
        let fwmark = match local.and_then(|local| local.fwmark.as_ref()) {
            Some(mark) if *mark.get_ref() == 0 => {
                return self.fail(
                    mark.span(),
                    "0 is what packets without a mark have",
                    "take another number, or take it out",
                );
            }
            mark => mark.map(|mark| *mark.get_ref()),
        };
        Ok(LocalConfig { private_key, private_key_file, listen, bind, fwmark, dscp, user })
    }

    /// The interface that the link's own datagrams leave by; not the link's. `elsewhere` says where an address belongs.
    fn uplink(
        &self,
        text: &Spanned<String>,
        link: &LinkConfig,
        elsewhere: impl Fn(IpAddr) -> String,
    ) -> Result<String, Report> {
        let name = text.get_ref();
        if let Ok(ip) = name.parse::<IpAddr>() {
            return self.fail(
                text.span(),
                format!("`{name}` is an address; here the name of an interface belongs"),
                format!("an address goes into {}", elsewhere(ip)),
            );
        }
        let name = self.parsed(text, parse::interface)?;
        if name == link.interface {
            return self.fail(
                text.span(),
                format!("`{name}` is the link's own interface: its own datagrams would go into the link"),
                "name the interface by which the peer is reached, such as \"eth0\"",
            );
        }
        Ok(name)
    }

    fn peer(&mut self, file: &schema::File) -> Result<PeerConfig, Report> {
        let section = file.peer.as_ref();
        let help = "write `public_key = \"tlpub1…\"` in [peer]: `tieline pubkey FILE` prints it at the other end";
        let peer = section.map(Spanned::get_ref);
        let texts = peer.and_then(|peer| peer.public_key.as_ref());
        let texts = texts.ok_or_else(|| self.missing(section, "`public_key` of [peer]", help))?;
        let public_keys = self.public_keys(texts)?;
        let endpoint = peer.and_then(|peer| peer.endpoint.as_ref());
        let endpoint = endpoint.map(|text| self.parsed(text, parse::endpoint)).transpose()?;
        let texts = peer.and_then(|peer| peer.preshared_key.as_ref());
        let (preshared_keys, preshared_key_files) =
            texts.map(|texts| self.preshared_keys(texts)).transpose()?.unwrap_or_default();
        Ok(PeerConfig { public_keys, endpoint, preshared_keys, preshared_key_files })
    }

    fn public_keys(&mut self, texts: &Spanned<Texts>) -> Result<Vec<PublicKey>, Report> {
        let mut keys = Vec::new();
        for text in self.one_or_two(texts)? {
            let key: PublicKey = match text.get_ref().parse() {
                Ok(key) => key,
                Err(error) => return self.fail(text.span(), KeyError::to_string(&error), error.help()),
            };
            if key.is_published() {
                self.warn_published(text.span(), "the peer's key", "tieline keygen --out FILE");
            }
            if keys.contains(&key) {
                return self.fail(text.span(), "this key is in the list already", "take it out");
            }
            keys.push(key);
        }
        Ok(keys)
    }

    fn preshared_keys(&mut self, texts: &Spanned<Texts>) -> Result<(Vec<PresharedKey>, Vec<PathBuf>), Report> {
        let (mut keys, mut files): (Vec<PresharedKey>, Vec<PathBuf>) = Default::default();
        for text in self.one_or_two(texts)? {
            let (key, file) = self.key_file(&text, "tieline psk", PresharedKey::read_file)?;
            if key.is_published() {
                self.warn_published(text.span(), "the preshared key", "tieline psk --out FILE");
            }
            if keys.iter().any(|known| known.as_bytes() == key.as_bytes()) {
                return self.fail(text.span(), "this file has the same key as the one before it", "take it out");
            }
            keys.push(key);
            files.push(file);
        }
        Ok((keys, files))
    }

    /// The texts of a value that may be a list while a key is changed.
    fn one_or_two(&self, texts: &Spanned<Texts>) -> Result<Vec<Spanned<String>>, Report> {
        let list = Texts::each(texts);
        if list.is_empty() {
            return self.fail(texts.span(), "the list is empty", "write the key between quotes, as in [\"…\"]");
        }
        match list.get(MAX_LISTED) {
            Some(third) => self.fail(
                third.span(),
                "this is one key too many",
                "list the old and the new one while a key is changed; see `tieline rotate --help`",
            ),
            None => Ok(list),
        }
    }

    /// Whoever has read the project's `keys/` folder can stand in for an end whose key is from there.
    fn warn_published(&mut self, span: Range<usize>, which: &str, command: &str) {
        if !std::mem::replace(&mut self.published, true) {
            self.warn(
                span,
                format!("{which} is one of the example keys that tieline publishes: it protects nothing"),
                format!("for anything but a try, make your own with `{command}`"),
            );
        }
    }

    /// Reads the key file that a value names, beside the config file, and says where that is. The value must not be a key itself.
    fn key_file<K>(
        &self,
        text: &Spanned<String>,
        command: &str,
        read: fn(&Path) -> Result<K, KeyFileError>,
    ) -> Result<(K, PathBuf), Report> {
        let (span, name) = (text.span(), text.get_ref());
        let is_key = |prefix| name.trim_start().to_lowercase().starts_with(prefix);
        if ["tlsecret1", "tlpsk1", "tlpub1"].into_iter().any(is_key) {
            let help = format!("take the key out of this file; `{command} --out FILE` makes a key file: name that");
            return self.fail(span, "this is a key itself; here the path of a key file belongs", help);
        }
        if name.is_empty() {
            return self.fail(
                span,
                "the path is empty",
                format!("name a file that `{command} --out FILE` has written"),
            );
        }
        let path = self.source.path.parent().map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        let key = read(&path).map_err(|error| self.source.at(span, Problem::new(error.to_string(), error.help())))?;
        Ok((key, path))
    }

    /// A program beside the config file or at an absolute path, and its arguments.
    fn hook(&mut self, argv: Option<&Spanned<Vec<String>>>) -> Result<Vec<String>, Report> {
        let Some(argv) = argv else { return Ok(Vec::new()) };
        let help = "write the program's path and its arguments, as in [\"/usr/local/bin/notify\", \"up\"]";
        let Some((program, arguments)) = argv.get_ref().split_first() else {
            return self.fail(argv.span(), "the list is empty", help);
        };
        if !program.contains('/') {
            let what = format!("`{program}` is not a path: hooks are run without a shell, and not looked for");
            return self.fail(argv.span(), what, help);
        }
        if argv.get_ref().iter().any(|word| word.contains('\0')) {
            return self.fail(argv.span(), "there is a NUL character in it", help);
        }
        let beside = self.source.path.parent().map_or_else(|| PathBuf::from(program), |folder| folder.join(program));
        // It is run in another folder.
        let path = std::path::absolute(&beside).unwrap_or(beside);
        if !path.is_file() {
            let what = format!("there is no program at {}", path.display());
            self.warn(
                argv.span(),
                what,
                "put it there before it is needed: a hook that cannot be run is said in the log",
            );
        }
        // A file's text is UTF-8, and so is what was made of it, unless the working folder is not.
        let path = path.to_string_lossy().into_owned();
        Ok(std::iter::once(path).chain(arguments.iter().cloned()).collect())
    }

    fn ends_differ(&self, file: &schema::File, local: &LocalConfig, peer: &PeerConfig) -> Result<(), Report> {
        let texts = file.peer.as_ref().and_then(|peer| peer.get_ref().public_key.as_ref()).map(Texts::each);
        let spans = texts.into_iter().flatten().map(|text| text.span());
        let own = match local.private_key.public() {
            Err(error) => return Err(Report::of_file(self.source.path, Problem::new(error.to_string(), error.help()))),
            Ok(own) => own,
        };
        match peer.public_keys.iter().zip(spans).find(|(key, _)| **key == own) {
            Some((_, span)) => self.fail(
                span,
                "this is this end's own public key; here the other end's belongs",
                "put the line here that `tieline pubkey FILE` prints at the other end",
            ),
            None => Ok(()),
        }
    }
}

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv4() == b.addr().is_ipv4()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.trunc().contains(&b.trunc()) || b.trunc().contains(&a.trunc())
}
