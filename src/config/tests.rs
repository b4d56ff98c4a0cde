//! Every error and warning as the user sees it, to the character, and what a good file means.

use super::*;

/// Paths are as the tests see them: from the crate's root. The key files are the published ones.
const PATH: &str = "keys/hq.toml";

const BASE: &str = r#"[link]
address = ["10.99.0.1/30", "fd99::1/126"]
routes = ["192.168.20.0/24"]

[local]
private_key = "hq.key"
listen = "[::]:7311"

[peer]
public_key = "tlpub1f6v7jvu6d0r2fxkwddz7dme4spdfjd0jyd2tccm2wy6d277nz9qqfcs5y9"
"#;

fn from_text(text: &str) -> Result<(Config, Vec<Warning>), ConfigError> {
    Config::from_text(Path::new(PATH), text)
}

/// The base with one part exchanged.
fn with(old: &str, new: &str) -> Result<(Config, Vec<Warning>), ConfigError> {
    assert_eq!(BASE.matches(old).count(), 1, "{old}");
    from_text(&BASE.replace(old, new))
}

fn good(old: &str, new: &str) -> Config {
    with(old, new).unwrap_or_else(|error| panic!("{new}: {error}")).0
}

/// `cases.txt`: what is exchanged in the base, `---`, for what, `>>>`, what the user then sees; `===` between cases.
/// The warning that all have because the base has a published key is left out.
#[test]
fn each_mistake_is_shown_as_in_cases_txt() {
    let mut wrong = Vec::new();
    for case in include_str!("cases.txt").trim_end().split("\n===\n") {
        let (old, rest) = case.split_once("\n---\n").unwrap();
        let (new, expected) = rest.split_once("\n>>>\n").unwrap();
        let shown = match with(old, new) {
            Err(error) => format!("error: {error}"),
            Ok((_, warnings)) => {
                let warnings = warnings.iter().map(|warning| format!("warning: {warning}"));
                warnings.filter(|text| !text.contains("tieline publishes")).collect()
            }
        };
        if shown != expected {
            wrong.push(format!("in the case of\n{new}\nexpected\n{expected}\nshown\n{shown}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_in_utf_16_is_told_so_and_a_byte_order_mark_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hq.toml");
    let text = BASE.replace("hq.key", &std::path::absolute("keys/hq.key").unwrap().to_string_lossy());
    let units = |mark: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
        format!("{mark}{text}").encode_utf16().flat_map(bytes).collect()
    };
    for (bytes, name) in [
        (units("\u{feff}", u16::to_le_bytes), "UTF-16"),
        (units("\u{feff}", u16::to_be_bytes), "UTF-16"),
        (units("", u16::to_le_bytes), "UTF-16LE"),
        (units("", u16::to_be_bytes), "UTF-16BE"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.starts_with("the file is UTF-16 text, and a config is UTF-8\n"), "{error}");
        assert!(error.contains(&format!("`iconv -f {name} -t UTF-8 ")), "{error}");
    }
    fs::write(&path, format!("\u{feff}{text}")).unwrap();
    Config::load(&path).unwrap();
}

#[test]
fn a_small_file_has_the_defaults() {
    let (config, warnings) = from_text(BASE).unwrap();
    assert_eq!(config.name, "hq");
    assert_eq!(config.path, Path::new(PATH));
    assert_eq!(
        config.link,
        LinkConfig {
            interface: "tl0".into(),
            addresses: vec!["10.99.0.1/30".parse().unwrap(), "fd99::1/126".parse().unwrap()],
            routes: vec!["192.168.20.0/24".parse().unwrap()],
            mtu: Mtu::Auto,
            metric: None,
            mss_clamp: false,
            layer: Layer::Ip,
            bridge: None,
            routes_follow: true,
            carrier: Carrier::Peer,
            duplicate: false,
            fallback: Fallback::Block,
            coalesce_udp: false,
            source_filter: true,
        }
    );
    assert_eq!(config.local.listen, Some("[::]:7311".parse().unwrap()));
    assert!(config.peer.endpoint.is_none() && config.peer.preshared_keys.is_empty());
    let (cipher, checksum) = (CipherChoice::Auto, Checksum::Partial);
    assert_eq!(config.crypto, CryptoConfig { cipher, post_quantum: true, checksum });
    assert_eq!(config.liveness_interval, Duration::from_secs(1));

    let [published] = &warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(
        published.to_string(),
        "this end's key is one of the example keys that tieline publishes: it protects nothing
  --> keys/hq.toml:6:15
   |
6  | private_key = \"hq.key\"
   |               ^^^^^^^^
help: for anything but a try, make your own with `tieline keygen --out FILE`"
    );
}

#[test]
fn two_keys_may_be_listed_and_one_in_a_list() {
    let key = "public_key = \"tlpub1f6v7jvu6d0r2fxkwddz7dme4spdfjd0jyd2tccm2wy6d277nz9qqfcs5y9\"";
    let other = "tlpub1v94maarg2m464rz2ympxnux74yapf7539t06a8ljwuyhzz4r4geqxgw8ta";
    let config = good(key, &format!("{}, \"{other}\"]", key.replace("= ", "= [")));
    let listed: Vec<String> = config.peer.public_keys.iter().map(ToString::to_string).collect();
    assert!(listed.len() == 2 && key.contains(&listed[0]) && listed[1] == other);
    let config = good(key, &format!("{key}\npreshared_key = [\"hq-branch.psk\"]"));
    assert_eq!((config.peer.public_keys.len(), config.peer.preshared_keys.len()), (1, 1));
    assert_eq!(config.peer.preshared_key_files, [Path::new("keys/hq-branch.psk")]);
    assert_eq!(config.local.private_key_file, Path::new("keys/hq.key"));
}

#[test]
fn an_ethernet_joins_a_bridge_or_has_addresses_or_is_left_to_others() {
    let (all, routes) =
        (&BASE[BASE.find("address").unwrap()..BASE.find("\n\n[local]").unwrap()], "routes = [\"192.168.20.0/24\"]");
    for (old, new, addresses, bridge) in [
        (all, "layer = \"ethernet\"\nbridge = \"br0\"", 0, Some("br0")),
        (all, "layer = \"ethernet\"", 0, None),
        (routes, "layer = \"ethernet\"", 2, None),
    ] {
        let (config, warnings) = with(old, new).unwrap();
        assert_eq!(warnings.len(), 1, "not even one of the published key: {warnings:?}");
        assert_eq!((config.link.layer, config.link.bridge.as_deref()), (Layer::Ethernet, bridge));
        assert_eq!(config.link.addresses.len(), addresses);
    }
    // What stands in the file is meant.
    for (more, mtu) in [("", Mtu::Bridge), ("\nmtu = \"auto\"", Mtu::Auto), ("\nmtu = 1400", Mtu::Fixed(1400))] {
        let link = good(all, &format!("layer = \"ethernet\"\nbridge = \"br0\"{more}")).link;
        assert_eq!(link.mtu, mtu, "{more}");
        assert_ne!(good(all, &format!("layer = \"ethernet\"{more}")).link.mtu, Mtu::Bridge);
    }
    let joined = good(all, "layer = \"ethernet\"\nbridge = \"br0\"");
    assert_eq!(joined.differences(&good(all, "layer = \"ethernet\"\nbridge = \"br1\"")), ["[link] bridge"]);
    assert_eq!(good(all, "layer = \"ethernet\"").differences(&good(all, "layer = \"ip\"")), ["[link] layer"]);
}

#[test]
fn what_else_changed_beside_the_keys_is_named() {
    let base = from_text(BASE).unwrap().0;
    let changed = [
        ("routes = [\"192.168.20.0/24\"]", "routes = [\"192.168.21.0/24\"]", "[link] routes"),
        ("[local]", "mtu = 1400\n[local]", "[link] mtu"),
        ("[local]", "routes_follow = false\n[local]", "[link] routes_follow"),
        ("[local]", "carrier = \"always\"\n[local]", "[link] carrier"),
        ("[local]", "duplicate = true\n[local]", "[link] duplicate"),
        ("[local]", "fallback = \"clear\"\n[local]", "[link] fallback"),
        ("[local]", "coalesce_udp = true\n[local]", "[link] coalesce_udp"),
        ("[local]", "source_filter = false\n[local]", "[link] source_filter"),
        ("[local]", "[[path]]\nname = \"a\"\n[local]", "[[path]]"),
        ("[local]", "[local]\nuser = \"nobody\"", "[local] user"),
        ("[local]", "[local]\nbind = \"eth0\"", "[local] bind"),
        ("[local]", "[local]\nfwmark = 1", "[local] fwmark"),
        ("[::]:7311", "[::]:7312", "[local] listen"),
        ("[peer]", "[peer]\nendpoint = \"203.0.113.7:7311\"", "[peer] endpoint"),
        ("[local]", "[crypto]\npost_quantum = false\n[local]", "[crypto] post_quantum"),
        ("[local]", "[hooks]\nup = [\"/bin/true\"]\n[local]", "[hooks] up"),
        ("[local]", "[hooks]\ndown = [\"/bin/true\"]\n[local]", "[hooks] down"),
        ("[local]", "[liveness]\ninterval = \"2s\"\n[local]", "[liveness] interval"),
    ];
    for (old, new, what) in changed {
        assert_eq!(base.differences(&good(old, new)), [what]);
    }
    assert!(base.differences(&good("[peer]", "[peer]\npreshared_key = \"hq-branch.psk\"")).is_empty());
}

#[test]
fn each_value_of_a_path_is_a_difference_but_what_it_has_from_the_peer() {
    let to = |endpoint, path: &str| {
        let text = BASE.replace("[peer]", &format!("[peer]\nendpoint = \"{endpoint}:7311\""));
        from_text(&format!("{text}\n[[path]]\nname = \"fibre\"\n{path}")).unwrap().0
    };
    let base = to("a", "interface = \"eth0\"");
    for path in
        ["", "interface = \"eth1\"", "interface = \"eth0\"\npriority = 1", "interface = \"eth0\"\nendpoint = \"b:1\""]
    {
        assert_eq!(base.differences(&to("a", path)), ["[[path]]"], "{path}");
    }
    assert_eq!(base.differences(&to("b", "interface = \"eth0\"")), ["[peer] endpoint"]);
}

#[test]
fn a_path_has_what_it_says_and_the_rest_from_the_other_sections() {
    let text = BASE.replace("[peer]", "[peer]\nendpoint = \"hq.example.net:7311\"");
    let (config, warnings) = from_text(&format!(
        "{text}
[[path]]
name = \"fibre\"
local = \"2001:db8::1\"

[[path]]
name = \"lte\"
local = \"198.51.100.7\"
interface = \"wwan0\"
endpoint = \"192.0.2.1:7312\"
priority = 10
"
    ))
    .unwrap();
    assert_eq!(warnings.len(), 1, "the published key's only: {warnings:?}");
    let fibre = PathConfig {
        name: "fibre".into(),
        interface: None,
        local: Some("2001:db8::1".parse().unwrap()),
        endpoint: config.peer.endpoint.clone(),
        priority: 0,
    };
    let lte = PathConfig {
        name: "lte".into(),
        interface: Some("wwan0".into()),
        local: Some("198.51.100.7".parse().unwrap()),
        endpoint: Some("192.0.2.1:7312".parse().unwrap()),
        priority: 10,
    };
    assert_eq!(config.paths, [fibre, lte]);
}

#[test]
fn what_only_looks_odd_about_paths_passes_without_a_word() {
    let listen = "private_key = \"hq.key\"\nlisten = \"[::]:7311\"";
    for (listen_at, paths) in [
        // Two peers' addresses by one socket.
        ("listen = \"[::]:7311\"", ["endpoint = \"a:1\"", "endpoint = \"b:1\""]),
        // The same port on two interfaces, and on two addresses.
        ("listen = \"0.0.0.0:7311\"", ["interface = \"eth0\"", "interface = \"wwan0\""]),
        ("listen = \"[::]:7311\"", ["local = \"192.0.2.1\"", "local = \"2001:db8::1\""]),
        ("listen = \"192.0.2.1:7311\"", ["local = \"192.0.2.1\"\ninterface = \"eth0\"", "interface = \"wwan0\""]),
        // Two of the peer's by one interface, each from a port of its own.
        (
            "listen = \"[::]:0\"",
            ["interface = \"eth0\"\nendpoint = \"a:1\"", "interface = \"eth0\"\nendpoint = \"b:1\""],
        ),
        // What is tied to an interface does not go into the link.
        ("bind = \"eth0\"", ["endpoint = \"192.168.20.1:1\"", "endpoint = \"192.168.20.2:1\""]),
        (
            "",
            [
                "interface = \"eth0\"\nendpoint = \"192.168.20.1:1\"",
                "local = \"fe80::1\"\ninterface = \"wwan0\"\nendpoint = \"c:1\"",
            ],
        ),
    ] {
        let [a, b] = paths;
        let section = format!("private_key = \"hq.key\"\n{listen_at}");
        let paths = format!("[[path]]\nname = \"a\"\n{a}\n[[path]]\nname = \"b\"\n{b}");
        let text = format!("{}\n{paths}", BASE.replace(listen, &section));
        let warnings = from_text(&text).unwrap_or_else(|error| panic!("{error}")).1;
        assert_eq!(warnings.len(), 1, "the published key's only: {warnings:?}\n{text}");
    }
    // The other end may be the one with two.
    assert!(good("[link]", "[link]\nduplicate = true").link.duplicate);
}

#[test]
fn sources_are_filtered_where_routes_are_set_unless_the_file_says_otherwise() {
    let routes = "routes = [\"192.168.20.0/24\"]";
    for (file, filtered) in [
        (good(routes, routes), true),
        (good(routes, ""), false),
        (good(routes, &format!("{routes}\nsource_filter = false")), false),
        (good(routes, "source_filter = true"), true),
        (good(routes, "layer = \"ethernet\""), false),
        (good(routes, "layer = \"ethernet\"\nsource_filter = false"), false),
    ] {
        assert_eq!(file.link.source_filter, filtered, "{:?}", file.link);
        assert!(!file.link.coalesce_udp);
    }
    assert!(good("[link]", "[link]\ncoalesce_udp = true").link.coalesce_udp);
}

#[test]
fn a_default_route_brings_a_mark() {
    let mark = |old, new| good(old, new).mark();
    assert_eq!(mark("[local]", "[local]"), None);
    assert_eq!(mark("192.168.20.0/24", "0.0.0.0/0"), Some(DEFAULT_MARK));
    assert_eq!(mark("192.168.20.0/24", "::/0"), Some(DEFAULT_MARK));
    assert_eq!(mark("[local]", "[local]\nfwmark = 0xFFFFFFFF"), Some(u32::MAX));
    let both = BASE.replace("192.168.20.0/24", "::/0").replace("[local]", "[local]\nfwmark = 7");
    assert_eq!(from_text(&both).unwrap().0.mark(), Some(7));
}

#[test]
fn a_full_file_of_the_contract_is_read() {
    let text = r#"
[link]
interface = "hq-branch"
address = ["10.99.0.1/32", "10.99.1.0/31", "fd99::1/128"]
routes = ["0.0.0.0/0", "192.168.0.0/16", "192.168.20.0/24", "::/0"]
mtu = 1420
layer = "ip"
carrier = "always"
metric = 100
routes_follow = false
duplicate = false

[local]
private_key = "hq.key"
listen = "0.0.0.0:7311"
dscp = "none"

[peer]
public_key = "tlpub1f6v7jvu6d0r2fxkwddz7dme4spdfjd0jyd2tccm2wy6d277nz9qqfcs5y9"
endpoint = "branch.example.net:7311"
preshared_key = "hq-branch.psk"

[crypto]
cipher = "chacha20-poly1305"
post_quantum = false
checksum = "full"

[liveness]
interval = "500ms"

[hooks]
up   = ["/bin/sh", "-c", "true"]
down = ["../Cargo.toml"]
"#;
    let (config, warnings) = from_text(text).unwrap();
    assert_eq!(warnings.len(), 1, "one warning about published keys is enough: {warnings:?}");
    assert_eq!(config.link.interface, "hq-branch");
    assert_eq!((config.link.addresses.len(), config.link.routes.len()), (3, 4));
    assert_eq!((config.link.mtu, config.link.metric), (Mtu::Fixed(1420), Some(100)));
    assert_eq!(config.peer.endpoint.as_ref().unwrap().to_string(), "branch.example.net:7311");
    assert_eq!((config.link.carrier, config.link.routes_follow), (Carrier::Always, false));
    assert_eq!(config.hooks.up, ["/bin/sh", "-c", "true"]);
    let beside = std::path::absolute("keys/../Cargo.toml").unwrap();
    assert_eq!(config.hooks.down, [beside.to_str().unwrap()], "paths begin at the file's folder");
    let (cipher, checksum) = (CipherChoice::ChaCha20Poly1305, Checksum::Full);
    assert_eq!(config.crypto, CryptoConfig { cipher, post_quantum: false, checksum });
    assert_eq!(config.liveness_interval, Duration::from_millis(500));

    let shown = format!("{config:?}");
    assert!(shown.contains("SecretKey(redacted)") && shown.contains("PresharedKey(redacted)"));
    assert!(!shown.to_uppercase().contains("TLSECRET1") && !shown.to_uppercase().contains("TLPSK1"));
}

#[test]
fn endpoints_are_read_and_written_back() {
    for text in [
        "branch.example.net:7311",
        "branch.example.net.:1",
        "branch:65535",
        "my_box.lan:7311",
        "4ever.example:7311",
        "203.0.113.7:7311",
        "[2001:db8::7]:7311",
        "[fe80::7%eth0]:7311",
    ] {
        assert_eq!(parse::endpoint(text).unwrap().to_string(), text);
    }
    let long_label = format!("{}.net:1", "a".repeat(64));
    let long_name = format!("{}net:1", "abcdefg.".repeat(32));
    for text in [
        "",
        ":",
        ":7311",
        "branch:",
        "branch:+7311",
        "branch:-1",
        "branch: 7311",
        "branch:7311 ",
        "-branch:1",
        "a..b:1",
        "1.2.3:1",
        "[]:1",
        "[::1]",
        "[::1]7311",
        "[::1:7311",
        "[1.2.3.4]:1",
        "[2001:db8::7%eth0]:1",
        "[fe80::7%]:1",
        "0.0.0.0:1",
        "239.0.0.1:1",
        "http://branch:80",
        &long_label,
        &long_name,
    ] {
        assert!(parse::endpoint(text).is_err(), "{text}");
    }
}

#[test]
fn intervals_are_read() {
    for (text, milliseconds) in
        [("50ms", 50), ("1s", 1000), ("1.5s", 1500), ("0.05s", 50), ("60s", 60_000), ("1m", 60_000), ("2 s", 2000)]
    {
        assert_eq!(parse::interval(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
    }
    for text in [
        "",
        "1",
        "s",
        "-1s",
        "1h",
        "49ms",
        "61s",
        "1.1m",
        "inf",
        "infs",
        "nan",
        "NaNs",
        "1e3ms",
        "1..5s",
        "9999999999999999999999s",
        "１s",
    ] {
        assert!(parse::interval(text).is_err(), "{text}");
    }
}

#[test]
fn tables_may_be_written_any_way_toml_has() {
    let config =
        good("[link]\naddress = [\"10.99.0.1/30\", \"fd99::1/126\"]\nroutes", "link.interface = 'x'\nlink.routes");
    assert_eq!(config.link.interface, "x");
    assert_eq!(config.link.routes.len(), 1);
    assert_eq!(good("[link]", "crypto = { cipher = \"aes-256-gcm\" }\n[link]").crypto.cipher, CipherChoice::Aes256Gcm);
}

#[test]
fn a_key_file_open_to_others_is_an_error_that_says_chmod() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (config, key) = (folder.path().join("hq.toml"), folder.path().join("hq.key"));
    SecretKey::generate().unwrap().write_file(&key).unwrap();
    fs::write(&config, BASE).unwrap();
    assert!(Config::load(&config).unwrap().1.is_empty());

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Config::load(&config).unwrap_err().to_string();
    assert!(error.contains("others than its owner can open this key file (mode 0644)"), "{error}");
    assert!(error.contains("hq.toml:6:15\n"), "{error}");
    assert!(error.contains(&format!("help: run `chmod 600 {}`", key.display())), "{error}");
}

#[test]
fn a_file_that_is_no_config_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("binary"), [0xff, 0xfe, 0]).unwrap();
    fs::write(at("large"), "#".repeat(300_000)).unwrap();
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, what) in [
        ("missing.toml", "there is no such config file"),
        ("binary", "the file is not text (UTF-8)"),
        ("large", "the file is too large for a config"),
        ("pipe", "this is not a regular file"),
        (".", "this is not a regular file"),
    ] {
        let error = Config::load(&at(name)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{what}\n  --> {}\nhelp: ", at(name).display())), "{error}");
    }
}

#[test]
fn a_byte_order_mark_does_not_shift_columns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hq.toml");
    fs::write(&path, "\u{feff}[lonk]").unwrap();
    let error = Config::load(&path).unwrap_err().to_string();
    assert!(error.contains("hq.toml:1:2\n"), "{error}");
}

#[test]
fn what_is_in_a_file_cannot_drive_the_terminal() {
    let error = with("\"10.99.0.1/30\"", r#""\u001b[2J", "\u009b""#).unwrap_err().to_string();
    assert!(!error.chars().any(|c| c.is_control() && c != '\n'), "{error:?}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*", at in 0..BASE.len(), junk in "[\\[\\]\"'=.,0-9a-z\\n]{0,6}") {
        let _ = from_text(&text);
        let mut changed = BASE.to_owned();
        changed.insert_str(at, &junk);
        let _ = from_text(&changed);
        let _ = (parse::endpoint(&text), parse::interval(&text), parse::address(&text), parse::route(&text));
    }
}
