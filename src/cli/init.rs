//! `tieline init`: both ends of a new link as two folders, ready to copy. What is in them is decided in [`Plan`].

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::{Failure, InitArgs, print, shell_word};
use crate::config::{Config, Endpoint};
use crate::keys::{KeyError, PresharedKey, PublicKey, SecretKey};

/// Longest name of a site: it names folders and files.
const MAX_NAME: usize = 32;

pub(super) fn run(args: &InitArgs) -> Result<(), Failure> {
    let mut seed = [0; 16];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| KeyError::Crypto)?;
    let plan = Plan::from_seed(seed);
    let sites = sites(&args.site, &args.other_site, plan.port)?;
    let mut made = Made::default();
    made.folder_and_parents(&args.out)?;
    write_both(&mut made, &args.out, &plan, &sites, args.psk)?;
    for site in &sites {
        // What `init` writes must be what `check` takes, or neither is worth anything.
        Config::load(&args.out.join(&site.name).join(format!("{}.toml", site.name)))?;
    }
    print(&what_next(&args.out, &sites))?;
    made.keep();
    Ok(())
}

/// One end, as the command line names it.
#[derive(Debug)]
struct Site {
    name: String,
    endpoint: Option<Endpoint>,
}

/// Reads both `NAME[=HOST[:PORT]]`.
fn sites(a: &str, b: &str, port: u16) -> Result<[Site; 2], Failure> {
    let (a, b) = (site(a, port)?, site(b, port)?);
    if a.name.eq_ignore_ascii_case(&b.name) {
        return Err(Failure::usage(format!("both ends are called `{}`", a.name), "give each its own name"));
    }
    if a.endpoint.is_none() && b.endpoint.is_none() {
        let help = format!("say where one of them is found from outside: {}=HOST or {}=HOST", a.name, b.name);
        return Err(Failure::usage("neither end could call the other", help));
    }
    Ok([a, b])
}

fn site(word: &str, port: u16) -> Result<Site, Failure> {
    let (name, endpoint) = word.split_once('=').map_or((word, None), |(name, endpoint)| (name, Some(endpoint)));
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > MAX_NAME || !name.chars().all(inside) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(Failure::usage(
            format!("`{name}` cannot be the name of a site"),
            format!("take up to {MAX_NAME} letters, digits, `-`, `_` or `.`, the first a letter or digit"),
        ));
    }
    let endpoint = endpoint.map(|text| with_port(text, port).parse::<Endpoint>());
    let endpoint = endpoint.transpose().map_err(|problem| Failure::usage(&problem, problem.help()))?;
    Ok(Site { name: name.to_owned(), endpoint })
}

/// Adds the drawn port where none is given.
fn with_port(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ if host.contains(':') && !host.ends_with(']') => host.to_owned(),
        _ => format!("{host}:{port}"),
    }
}

/// What two links on one machine must not share, drawn at random.
#[derive(Debug, PartialEq)]
struct Plan {
    /// Three letters or digits at the end of both interfaces' names: one in 29,791.
    tag: String,
    /// UDP port where none is given, 10240…32767: above the well-known, below those that Linux picks by itself.
    port: u16,
    /// Addresses of the two ends inside the link: a /31 from 10.64.0.0 up to 10.254.255.255 (RFC 3021). It has no third address,
    /// which a packet for it would be sent back and forth between the ends for.
    v4: [IpNet; 2],
    /// And a /127 in a random /48 (RFC 4193 §3.2; RFC 6164).
    v6: [IpNet; 2],
}

impl Plan {
    fn from_seed(seed: [u8; 16]) -> Self {
        // Letters that cannot be mistaken for one another or for digits.
        const ALPHABET: &[u8; 31] = b"abcdefghjkmnpqrstuvwxyz23456789";
        let [t0, t1, t2, p0, p1, a, b, c, g0, g1, g2, g3, g4, ..] = seed;
        let letter = |byte: u8| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]);
        // The first and the last of a /24 are left out: some devices take them for its network and broadcast addresses.
        let v4 = |host| net(Ipv4Addr::new(10, 64 + a % 191, b, 4 * (c / 4 % 63) + host), 31);
        let group = |high, low| u16::from_be_bytes([high, low]);
        let v6 = |host| net(Ipv6Addr::new(group(0xfd, g0), group(g1, g2), group(g3, g4), 0, 0, 0, 0, host), 127);
        Self {
            tag: [t0, t1, t2].map(letter).iter().collect(),
            port: 10_240 + u16::from_be_bytes([p0, p1]) % (32_768 - 10_240),
            v4: [v4(2), v4(3)],
            // Not ::0, the anycast address of routers (RFC 6164, section 5.2).
            v6: [v6(2), v6(3)],
        }
    }

    /// `tl-<peer>-<tag>`, with as much of the peer's name as fits into the 15 bytes that Linux allows.
    fn interface(&self, peer: &str) -> String {
        let peer: String = peer.chars().take(8).map(|c| if c == '.' { '-' } else { c }).collect();
        format!("tl-{}-{}", peer.trim_end_matches(['-', '_']), self.tag)
    }
}

fn net(ip: impl Into<IpAddr>, prefix: u8) -> IpNet {
    IpNet::new_assert(ip.into(), prefix)
}

fn write_both(made: &mut Made, out: &Path, plan: &Plan, sites: &[Site; 2], psk: bool) -> Result<(), Failure> {
    let secrets = [SecretKey::generate()?, SecretKey::generate()?];
    let publics = [secrets[0].public()?, secrets[1].public()?];
    let psk = if psk { Some(PresharedKey::generate()?) } else { None };
    let psk_name = format!("{}-{}.psk", sites[0].name, sites[1].name);
    for (own, peer) in [(0, 1), (1, 0)] {
        let name = &sites[own].name;
        let folder = out.join(name);
        made.folder(&folder, 0o700)?;
        let key = folder.join(format!("{name}.key"));
        secrets[own].write_file(&key)?;
        made.note(key);
        if let Some(psk) = &psk {
            let path = folder.join(&psk_name);
            psk.write_file(&path)?;
            made.note(path);
        }
        let psk_name = psk.is_some().then_some(psk_name.as_str());
        let text = toml(plan, own, &sites[own], &sites[peer], &publics[peer], psk_name);
        made.file(&folder.join(format!("{name}.toml")), &text)?;
    }
    Ok(())
}

/// The config file of one end; `index` says which of the plan's addresses is its own.
fn toml(plan: &Plan, index: usize, own: &Site, peer: &Site, peer_key: &PublicKey, psk: Option<&str>) -> String {
    let (name, peer_name, interface) = (&own.name, &peer.name, plan.interface(&peer.name));
    let (v4, v6, other) = (plan.v4[index], plan.v6[index], plan.v4[1 - index].addr());
    let listen = match &own.endpoint {
        Some(endpoint) => {
            let port = endpoint.port;
            format!("listen      = \"[::]:{port}\"   # UDP; \"0.0.0.0:{port}\" on a machine without IPv6\n")
        }
        None => String::new(),
    };
    let endpoint = match &peer.endpoint {
        Some(endpoint) => format!("endpoint      = \"{endpoint}\"\n"),
        None => {
            format!("# endpoint    = \"HOST:PORT\"   # where {peer_name} is found; without it {peer_name} calls us\n")
        }
    };
    let psk =
        psk.map(|file| format!("preshared_key = \"{file}\"   # the same file at both ends\n")).unwrap_or_default();
    format!(
        "\
# {name}: its end of the link to {peer_name}. Check it with `tieline check {name}.toml` after every change.

[link]
interface = \"{interface}\"
address   = [\"{v4}\", \"{v6}\"]   # inside the link; {peer_name} is {other}
# routes  = [\"192.168.20.0/24\"]   # networks behind {peer_name}, to be sent into the link

[local]
private_key = \"{name}.key\"   # the secret of {name}: it stays on this machine
{listen}
[peer]
public_key    = \"{peer_key}\"   # {peer_name}
{endpoint}{psk}"
    )
}

fn what_next(out: &Path, sites: &[Site; 2]) -> String {
    let mut text = format!("Both ends of the link are in {}, with fresh keys.\n", shell_word(out));
    for Site { name, endpoint } in sites {
        let folder = shell_word(&out.join(name));
        let host = match endpoint {
            Some(Endpoint { host, .. }) if host.contains(':') => format!("'[{host}]'"),
            Some(Endpoint { host, .. }) => host.clone(),
            None => name.to_uppercase() + "-HOST",
        };
        let _ =
            write!(text, "\n{name}: copy its folder there, and start its end there:\n    scp -rp {folder} {host}:\n");
        let _ = writeln!(text, "    sudo tieline up {name}/{name}.toml");
        if let Some(endpoint) = endpoint {
            let _ = writeln!(text, "  A firewall in front of {name} must let UDP port {} in.", endpoint.port);
        }
    }
    let folders = sites.each_ref().map(|site| shell_word(&out.join(&site.name)));
    let _ = write!(
        text,
        "\nThe folders hold secret keys. Once they are copied, remove them here:\n    rm -r {}\n",
        folders.join(" ")
    );
    text
}

/// What has been made so far: all of it goes again unless it is kept.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn note(&mut self, path: PathBuf) {
        self.0.push(path);
    }

    fn keep(mut self) {
        self.0.clear();
    }

    /// Makes a folder that must be new.
    fn folder(&mut self, path: &Path, mode: u32) -> Result<(), Failure> {
        DirBuilder::new().mode(mode).create(path).map_err(|error| cannot_make(path, &error))?;
        self.note(path.to_owned());
        Ok(())
    }

    /// Makes a folder and those above it, as far as they are missing.
    fn folder_and_parents(&mut self, path: &Path) -> Result<(), Failure> {
        let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let missing: Vec<_> = path.ancestors().take_while(missing).collect();
        missing.into_iter().rev().try_for_each(|path| self.folder(path, 0o777))
    }

    /// Writes a file that must be new.
    fn file(&mut self, path: &Path, text: &str) -> Result<(), Failure> {
        let created = OpenOptions::new().write(true).create_new(true).open(path);
        let mut file = created.map_err(|error| cannot_make(path, &error))?;
        self.note(path.to_owned());
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| cannot_make(path, &error))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // Nothing more can be done about what stays; a folder that someone else has put a file into should.
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        }
    }
}

fn cannot_make(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::failed(
            format!("{}: exists already; nothing is overwritten", path.display()),
            "name another folder with --out, or move the old one away first",
        ),
        _ => Failure::failed(
            format!("{}: cannot make it: {}", path.display(), crate::os_error::in_words(error)),
            "check that you may write there, or name another folder with --out",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn init(out: &Path, sites: [&str; 2], psk: bool) -> Result<(), Failure> {
        let [site, other_site] = sites.map(str::to_owned);
        run(&InitArgs { out: out.to_owned(), site, other_site, psk })
    }

    #[test]
    fn the_two_ends_belong_together_and_pass_check_without_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/b");
        init(&out, ["hq=hq.example.net:7311", "branch"], true).unwrap();
        let [(hq, hq_warnings), (branch, branch_warnings)] =
            ["hq/hq.toml", "branch/branch.toml"].map(|name| Config::load(&out.join(name)).unwrap());
        assert!(hq_warnings.is_empty() && branch_warnings.is_empty(), "{hq_warnings:?} {branch_warnings:?}");

        assert_eq!(hq.peer.public_keys, [branch.local.private_key.public().unwrap()]);
        assert_eq!(branch.peer.public_keys, [hq.local.private_key.public().unwrap()]);
        assert_eq!(hq.local.listen, Some("[::]:7311".parse().unwrap()));
        assert_eq!(branch.local.listen, None);
        assert_eq!(branch.peer.endpoint.unwrap().to_string(), "hq.example.net:7311");
        assert_eq!(hq.peer.endpoint, None);
        assert_eq!(hq.peer.preshared_keys[0].as_bytes(), branch.peer.preshared_keys[0].as_bytes());
        for (a, b) in hq.link.addresses.iter().zip(&branch.link.addresses) {
            assert!(a.addr() != b.addr() && a.trunc() == b.trunc());
            assert_eq!(a.max_prefix_len() - a.prefix_len(), 1, "{a}: more addresses than ends");
        }
        for name in ["hq", "hq/hq.key", "hq/hq-branch.psk", "branch/branch.key", "branch/hq-branch.psk"] {
            assert_eq!(fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o077, 0, "{name}");
        }
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_half_made_stays() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("link");
        fs::create_dir_all(out.join("branch")).unwrap();
        let failure = init(&out, ["hq=hq.example.net", "branch"], true).unwrap_err();
        assert!(failure.text.contains("branch: exists already"), "{failure:?}");
        let left: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["branch"]);

        fs::write(folder.path().join("file"), "").unwrap();
        assert!(init(&folder.path().join("file/x/y"), ["hq=hq.example.net", "branch"], false).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_port_is_added_only_where_there_is_none() {
        for (text, endpoint) in [
            ("a=host", "host:9"),
            ("a=host:7", "host:7"),
            ("a=192.0.2.1", "192.0.2.1:9"),
            ("a=2001:db8::1", "[2001:db8::1]:9"),
            ("a=[2001:db8::1]", "[2001:db8::1]:9"),
            ("a=[2001:db8::1]:7", "[2001:db8::1]:7"),
        ] {
            assert_eq!(site(text, 9).unwrap().endpoint.unwrap().to_string(), endpoint);
        }
        for text in ["", "=host", "a=", "../a", "a/b", "-a", "a b", "a=host:0", "a=b=c", "ä", &"a".repeat(33)] {
            assert_eq!(site(text, 9).unwrap_err().code, super::super::USAGE, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_plan_gives_files_that_pass_check(seed: [u8; 16], name in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,31}") {
            let plan = Plan::from_seed(seed);
            let key = "tlpub1f6v7jvu6d0r2fxkwddz7dme4spdfjd0jyd2tccm2wy6d277nz9qqfcs5y9".parse().unwrap();
            let own = Site { name: "hq".into(), endpoint: Some(Endpoint { host: "h".into(), port: plan.port }) };
            let peer = Site { name, endpoint: None };
            let text = toml(&plan, usize::from(seed[0] & 1), &own, &peer, &key, None);
            let (config, warnings) = Config::from_text(Path::new("keys/hq.toml"), &text).unwrap();
            prop_assert_eq!(warnings.len(), 1, "the published key's only: {:?}", warnings);
            prop_assert_eq!(config.link.addresses.len(), 2);
            let IpNet::V4(v4) = plan.v4[1] else { panic!("{}", plan.v4[1]) };
            prop_assert!(plan.v4[0].trunc() == plan.v4[1].trunc() && (2..=251).contains(&v4.addr().octets()[3]), "{}", v4);
        }

        #[test]
        fn two_plans_share_nothing(a: [u8; 16], b: [u8; 16]) {
            // 16 random bytes against 16: a clash of all three draws is beyond chance, and of the addresses too.
            prop_assume!(a[..13].iter().zip(&b[..13]).all(|(a, b)| a / 4 % 63 != b / 4 % 63));
            let (a, b) = (Plan::from_seed(a), Plan::from_seed(b));
            prop_assert!(a.v4[0].trunc() != b.v4[0].trunc() && a.v6[0].trunc() != b.v6[0].trunc());
        }
    }
}
