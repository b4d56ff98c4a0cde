//! Packets for networks behind a link, sent all the time, and a count of those that leave in plain text.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tieline::sys::netns::NetNs;

use super::nft;

/// The UDP port that the packets go to: nothing else in a test does.
const PORT: u16 = 4_711;

/// Runs a shell command in a network; it must succeed.
pub fn sh(network: &NetNs, command: &str) {
    let done = network.run(|| Command::new("sh").args(["-ec", command]).output().unwrap()).unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

/// What a shell command prints in a network.
pub fn printed(network: &NetNs, command: &str) -> String {
    let done = network.run(|| Command::new("sh").args(["-c", command]).output().unwrap()).unwrap();
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Sends a small datagram to each of the addresses every 200 microseconds, until it is dropped. That one cannot be sent is none of the
/// errors.
pub struct Strays {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Strays {
    pub fn from(network: &NetNs, to: &[IpAddr]) -> Strays {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, to) = (stop.clone(), to.to_vec());
        let sockets = network
            .run(|| ["0.0.0.0:0", "[::]:0"].map(|any| UdpSocket::bind(any.parse::<SocketAddr>().unwrap()).unwrap()))
            .unwrap();
        let send = move || {
            while !stopped.load(Relaxed) {
                for address in &to {
                    let socket = &sockets[usize::from(address.is_ipv6())];
                    let _ = socket.send_to(b"inside", (*address, PORT));
                }
                thread::sleep(Duration::from_micros(200));
            }
        };
        Strays { stop, thread: Some(thread::spawn(send)) }
    }
}

impl Drop for Strays {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Counts those of them that leave a network by these interfaces.
pub struct Capture<'a>(&'a NetNs);

impl Capture<'_> {
    pub fn at<'a>(network: &'a NetNs, interfaces: &[&str]) -> Capture<'a> {
        let list = interfaces.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let rules = format!(
            "table inet strays {{
                counter leaked {{}}
                counter inside {{}}
                chain leave {{ type filter hook postrouting priority 300;
                    oifname {{ {list} }} udp dport {PORT} counter name leaked
                    oifname \"tl-*\" udp dport {PORT} counter name inside
                }}
            }}"
        );
        nft::load(network, &rules);
        Capture(network)
    }

    pub fn leaked(&self) -> u64 {
        nft::counted(self.0, "leaked")
    }

    pub fn inside(&self) -> u64 {
        nft::counted(self.0, "inside")
    }
}
