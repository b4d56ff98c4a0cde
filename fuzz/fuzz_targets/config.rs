//! Any text as a config beside the examples: what passes is in range, and what is said of what does not could be printed
//! anywhere. Text that begins with an empty line stands behind a config that is whole, so that it takes few bytes to change
//! a value and nothing else.
#![no_main]

use std::path::Path;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tieline::config::{Config, MAX_PATHS, Mtu};
use tieline::keys::{PresharedKey, SecretKey};

/// The key files that the examples name are found from there.
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hq.toml");

/// What is missing in it has a default.
const WHOLE: &str = r#"
[local]
private_key = "../keys/hq.key"
[peer]
public_key = "tlpub1v94maarg2m464rz2ympxnux74yapf7539t06a8ljwuyhzz4r4geqxgw8ta"
[link]
interface = "tl0"
address = ["10.99.0.1/30"]
"#;

fuzz_target!(|text: &str| {
    let text = if text.starts_with('\n') { &[WHOLE, text].concat() } else { text };
    match Config::from_text(Path::new(PATH), text) {
        Ok((config, warnings)) => {
            check(&config);
            warnings.iter().for_each(|warning| check_words(&warning.to_string()));
        }
        Err(error) => check_words(&error.to_string()),
    }
});

fn check(config: &Config) {
    assert!((1..=15).contains(&config.link.interface.len()));
    assert!(config.link.routes.iter().all(|route| *route == route.trunc()));
    assert!((Duration::from_millis(50)..=Duration::from_secs(60)).contains(&config.liveness_interval));
    if let Mtu::Fixed(mtu) = config.link.mtu {
        assert!((1280..=9000).contains(&mtu));
    }
    assert!(config.paths.len() <= MAX_PATHS);
    let of_paths = config.paths.iter().filter_map(|path| path.endpoint.as_ref());
    for endpoint in config.peer.endpoint.iter().chain(of_paths) {
        assert_ne!(endpoint.port, 0);
        assert_eq!(endpoint.to_string().parse().ok().as_ref(), Some(endpoint));
    }
}

fn check_words(words: &str) {
    assert!(!words.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
    let is_secret = |word: &str| SecretKey::parse(word).is_ok() || PresharedKey::parse(word).is_ok();
    assert!(!words.split(|c: char| !c.is_ascii_alphanumeric()).any(is_secret));
}
