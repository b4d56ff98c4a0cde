//! Rules of the kernel's packet filter in a network (`man 8 nft`).

use std::io::Write;
use std::process::{Command, Output};

use serde_json::Value;
use tieline::sys::netns::NetNs;

use super::lab::PATIENCE;
use super::output_within;

/// Whether this machine has `nft`. Where `CI` is set it must.
pub fn is_there() -> bool {
    let found = command().arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "this machine has no nft");
    if !found {
        eprintln!("left out: this machine has no nft");
    }
    found
}

/// Adds a ruleset to those of a network.
pub fn load(network: &NetNs, rules: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(rules.as_bytes()).unwrap();
    nft(network, &["-f", file.path().to_str().unwrap()]);
}

/// How many packets a named counter of a network has counted.
pub fn counted(network: &NetNs, name: &str) -> u64 {
    let list: Value = serde_json::from_slice(&nft(network, &["-j", "list", "counters"]).stdout).unwrap();
    let mut counters = list["nftables"].as_array().unwrap().iter().map(|entry| &entry["counter"]);
    counters.find(|counter| counter["name"] == name).unwrap()["packets"].as_u64().unwrap()
}

/// It is where an ordinary user's PATH may not lead.
fn command() -> Command {
    let mut command = Command::new("nft");
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

fn nft(network: &NetNs, arguments: &[&str]) -> Output {
    let mut command = command();
    network.enter_at_start(&mut command).unwrap();
    let output = output_within(command.args(arguments), PATIENCE);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}
