//! `tieline check`: whether `up` would take a config file, and what the file says.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use super::{CheckArgs, Failure, print};
use crate::config::{Config, Layer, PathConfig, Warning};

pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let (config, warnings) = Config::load(&args.file)?;
    show_warnings(&warnings);
    print(&summary(&config)?)
}

/// Prints warnings on standard error, for whoever loads a config.
pub(crate) fn show_warnings(warnings: &[Warning]) {
    for warning in warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
}

/// The link in four lines, and one for each path: enough to see that the two ends' files belong together.
fn summary(config: &Config) -> Result<String, Failure> {
    let (link, local, peer) = (&config.link, &config.local, &config.peer);
    let mut text = format!("{}: fine\n", config.path.display());
    let _ = write!(text, "  interface  {}", link.interface);
    for address in &link.addresses {
        let _ = write!(text, " {address}");
    }
    if !link.routes.is_empty() {
        let routes: Vec<_> = link.routes.iter().map(ToString::to_string).collect();
        let _ = write!(text, ", leads to {}", routes.join(" "));
    }
    match (&link.layer, &link.bridge) {
        (Layer::Ip, _) => {}
        (Layer::Ethernet, None) => text.push_str(", carries Ethernet"),
        (Layer::Ethernet, Some(bridge)) => _ = write!(text, ", carries Ethernet, joins bridge {bridge}"),
    }
    let _ = write!(text, "\n  this end   {}", local.private_key.public()?);
    if let Some(listen) = local.listen {
        let _ = write!(text, ", listens at {listen}");
    }
    let keys: Vec<_> = peer.public_keys.iter().map(ToString::to_string).collect();
    let _ = write!(text, "\n  other end  {}", keys.join(" or "));
    match &peer.endpoint {
        _ if !config.paths.is_empty() => text.push('\n'),
        Some(endpoint) => _ = writeln!(text, ", called at {endpoint}"),
        None => text.push_str(", calls us\n"),
    }
    config.paths.iter().for_each(|path| _ = writeln!(text, "  path       {}", way(path)));
    if link.duplicate {
        text.push_str("  duplicate  each datagram goes on two paths\n");
    }
    if let [_, _] = peer.preshared_keys[..] {
        text.push_str("  rotation   two preshared keys are listed\n");
    }
    if let [old, new] = peer.public_keys[..] {
        let _ = writeln!(text, "  rotation   the other end may use either key; when it uses {new}, take {old} out");
    }
    Ok(text)
}

/// One path: what it leaves by and where it leads.
fn way(path: &PathConfig) -> String {
    let PathConfig { name, interface, local, endpoint, priority } = path;
    let mut text = format!("{name}, priority {priority}");
    let _ = interface.iter().try_for_each(|interface| write!(text, ", by {interface}"));
    let _ = local.iter().try_for_each(|local| write!(text, ", from {local}"));
    match endpoint {
        Some(endpoint) => _ = write!(text, ", called at {endpoint}"),
        None => text.push_str(", is called"),
    }
    text
}
