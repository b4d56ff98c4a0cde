//! Two ends of a link in one process, without a socket or a root shell: how to embed the protocol.
//!
//! ```text
//! cargo run --example in_memory
//! ```
//!
//! Everything the outside world does for a link is in [`End`]: it carries out what the engine says, in order, and
//! hands back what comes. Time is a number that this program moves.

use std::{error::Error, net::SocketAddr, time::Duration};
use tieline::{
    control::OsEntropy,
    keys::{PublicKey, SecretKey},
    protocol::{
        Event, HEADER, Input, Keys, Link, Output, Params, Path, Received, Receiver, Sender, Small, SocketId, TAG, Time,
        Transmit, control::State,
    },
};

/// One end: the engine and the two halves the packet loops would own.
struct End {
    name: &'static str,
    address: SocketAddr,
    link: Link,
    sender: Sender,
    receiver: Receiver,
    delivered: Vec<Vec<u8>>,
}

impl End {
    fn new(name: &'static str, address: &str, own: &SecretKey, peer: &PublicKey) -> Result<End, Box<dyn Error>> {
        let keys = Keys { own, peers: &[*peer], preshared: &[] };
        let (link, sender, receiver) = Link::new(Params::default(), keys, Box::new(OsEntropy), Time::default())?;
        Ok(End { name, address: address.parse()?, link, sender, receiver, delivered: Vec::new() })
    }

    /// A datagram came: the receiver opens and sorts it, the engine gets its share.
    fn receive(&mut self, now: Time, from: SocketAddr, datagram: &mut [u8]) {
        let path = Path { socket: SocketId(0), local: Some(self.address.ip()), peer: from };
        let text = |datagram: &[u8]| datagram[HEADER..datagram.len() - TAG].to_vec();
        match self.receiver.receive(now, path, datagram) {
            Received::Frame { .. } => self.delivered.push(text(datagram)),
            Received::Cold => self.link.handle_input(now, Input::Cold { path, datagram: Small::new(datagram) }),
            Received::Control { session, counter } => {
                let message = Small::new(&text(datagram));
                self.link.handle_input(now, Input::Control { path, session, counter, message });
            }
            Received::Piece { .. } => {} // of a frame that does not fit one datagram; these do
            Received::Nothing => {}
        }
        while let Some(notice) = self.receiver.poll_notice() {
            self.link.handle_input(now, Input::Notice(notice));
        }
    }

    /// Carries out what the engine wants, in order; gives back what is to be sent.
    fn carry_out(&mut self) -> Vec<Transmit> {
        let mut sends = Vec::new();
        while let Some(output) = self.link.poll_output() {
            match output {
                Output::Ingress(update) => self.receiver.apply(update),
                Output::Egress(update) => self.sender.apply(update),
                Output::Send(transmit) => sends.push(transmit),
                Output::Event(Event::State { state, .. }) => println!("{}: {state:?}", self.name),
                Output::Event(Event::Session { cipher, post_quantum, .. }) => {
                    println!("{}: session, {}, post-quantum: {post_quantum}", self.name, cipher.name());
                }
                Output::Event(_) => {}
            }
        }
        sends
    }

    /// Seals a frame into a datagram, as the egress loop does in place.
    fn seal(&mut self, frame: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
        let mut datagram = vec![0; HEADER + frame.len() + TAG];
        datagram[HEADER..HEADER + frame.len()].copy_from_slice(frame);
        self.sender.seal(0, &mut datagram)?;
        self.sender.handed_over();
        Ok(datagram)
    }
}

/// Lets both ends talk over a perfect wire until neither has anything to say now.
fn settle(now: Time, ends: &mut [End; 2]) {
    loop {
        let mut quiet = true;
        for i in [0, 1] {
            for Transmit { mut datagram, .. } in ends[i].carry_out() {
                quiet = false;
                let from = ends[i].address;
                ends[1 - i].receive(now, from, &mut datagram);
            }
        }
        if quiet {
            return;
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (hq, branch) = (SecretKey::generate()?, SecretKey::generate()?);
    let mut ends = [
        End::new("hq", "192.0.2.1:7311", &hq, &branch.public()?)?,
        End::new("branch", "198.51.100.1:7311", &branch, &hq.public()?)?,
    ];
    // One end knows where the other is; that is enough.
    let mut now = Time::default();
    let hq_address = ends[0].address;
    ends[1].link.handle_addresses(now, 0, &[hq_address]);

    while ends.iter().any(|end| end.link.status().state != State::Up) {
        settle(now, &mut ends);
        now = ends.iter().filter_map(|end| end.link.poll_timeout()).min().unwrap_or(now + Duration::from_millis(1));
        ends.iter_mut().for_each(|end| end.link.handle_timeout(now));
    }

    let mut datagram = ends[0].seal(b"the first frame over the line")?;
    println!("on the wire: {} bytes, sealed", datagram.len());
    ends[1].receive(now, hq_address, &mut datagram);
    println!("at the branch: {:?}", String::from_utf8_lossy(&ends[1].delivered[0]));
    Ok(())
}
