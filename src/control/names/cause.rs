//! Why a name has no address: getaddrinfo's answer and the machine's configuration, in words that
//! say what to do.

use crate::config::Endpoint;
use crate::os_error::in_words;
use crate::sys::lookup::{self, LookupError};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

/// Where the C library reads which name servers to ask.
const SERVERS: &str = "/etc/resolv.conf";
/// What it reads. One of these that it may not read is as good as empty to it, and it does not say
/// so.
const READ: [&str; 3] = [SERVERS, "/etc/nsswitch.conf", "/etc/hosts"];

/// All addresses of an endpoint, or why there are none. Waits for name servers.
pub(super) fn addresses(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, String> {
    lookup::addresses(&endpoint.host, endpoint.port).map_err(|error| Machine::look().explain(&error))
}

/// What this process sees of how the machine looks names up.
#[derive(Debug, Default)]
struct Machine {
    /// A file that it may not read, and as what user.
    forbidden: Option<(String, u32)>,
    /// The name servers.
    servers: Vec<String>,
}

impl Machine {
    fn look() -> Machine {
        let denied = |path: &&str| File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        let user = nix::unistd::geteuid().as_raw();
        let forbidden = READ.into_iter().find(denied).map(|path| (shown(Path::new(path)), user));
        Machine { forbidden, servers: listed(&fs::read_to_string(SERVERS).unwrap_or_default()) }
    }

    fn explain(&self, error: &LookupError) -> String {
        if let Some((file, user)) = &self.forbidden {
            return format!(
                "user {user}, as whom names are looked up, may not read {file}: let all users read it and enter the folders it is \
                 in (chmod a+r {})",
                file.split(' ').next().unwrap_or(file)
            );
        }
        let servers = match self.servers.as_slice() {
            [] => format!("{SERVERS} lists no name server"),
            [one] => format!("name server {one}"),
            several => format!("name servers {}", several.join(", ")),
        };
        match error {
            LookupError::NoSuchName => format!("there is no such name ({servers}); check how it is written"),
            LookupError::NoAddress => {
                format!("the name is there, and has no address ({servers}); give it an A or AAAA record")
            }
            LookupError::NoAnswer if self.servers.is_empty() => {
                format!("{servers}, and none answers on this machine; name one there")
            }
            LookupError::NoAnswer => format!(
                "no answer from {servers}, or only that the name cannot be looked up now; is there a route to it, and does a \
                 firewall let port 53 pass?"
            ),
            LookupError::Refused => {
                format!("the question was refused ({servers}); is this machine one of those it answers?")
            }
            LookupError::System(error) => format!("this machine cannot ask: {}", in_words(error)),
            LookupError::Other(code) => format!("getaddrinfo failed with code {code} ({servers})"),
        }
    }
}

/// A file, and where it leads if it is a link.
fn shown(path: &Path) -> String {
    match fs::read_link(path) {
        Ok(target) => format!("{} (a link to {})", path.display(), target.display()),
        Err(_) => path.display().to_string(),
    }
}

/// The name servers of a resolv.conf (resolv.conf(5)): the C library asks the first three.
fn listed(text: &str) -> Vec<String> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())
    });
    servers.take(3).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_says_whom_was_asked_and_what_to_do() {
        let machine = |servers: &[&str]| Machine {
            forbidden: None,
            servers: servers.iter().map(|server| (*server).to_owned()).collect(),
        };
        let [none, one, two] = [&[][..], &["192.0.2.53"], &["192.0.2.53", "::1"]].map(machine);
        let said = |machine: &Machine, error| machine.explain(&error);
        let line = said(&one, LookupError::NoAnswer);
        assert!(line.contains("no answer from name server 192.0.2.53") && line.contains("port 53"), "{line}");
        let line = said(&none, LookupError::NoAnswer);
        assert!(line.contains("/etc/resolv.conf lists no name server") && line.contains("name one"), "{line}");
        let line = said(&two, LookupError::NoSuchName);
        assert!(line.contains("no such name") && line.contains("name servers 192.0.2.53, ::1"), "{line}");
        assert!(said(&one, LookupError::NoAddress).contains("A or AAAA record"));
        assert!(said(&one, LookupError::Refused).contains("refused (name server 192.0.2.53)"));
        let full = std::io::Error::from_raw_os_error(libc::EMFILE);
        assert_eq!(said(&one, LookupError::System(full)), "this machine cannot ask: Too many open files");
        assert!(said(&one, LookupError::Other(-6)).contains("code -6"));
    }

    #[test]
    fn a_file_that_may_not_be_read_is_the_cause_whatever_was_answered() {
        let machine = Machine { forbidden: Some(("/etc/resolv.conf".into(), 65_534)), servers: Vec::new() };
        let line = machine.explain(&LookupError::NoAnswer);
        assert!(line.contains("user 65534") && line.contains("may not read /etc/resolv.conf"), "{line}");
        assert!(line.contains("chmod a+r /etc/resolv.conf"), "{line}");
    }

    #[test]
    fn servers_are_listed_as_the_c_library_reads_them() {
        let text =
            "# nameserver 192.0.2.1\nsearch example.net\nnameserver 192.0.2.53\n nameserver\t::1 # x\nnameserver\n";
        assert_eq!(listed(text), ["192.0.2.53", "::1"]);
        assert_eq!(listed(&"nameserver 192.0.2.1\n".repeat(5)).len(), 3);
    }
}
