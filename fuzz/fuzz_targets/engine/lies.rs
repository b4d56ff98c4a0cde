//! What one can do who has the peer's keys, and what a mailbox can hold.

use super::{
    Story,
    support::{
        Flight,
        scenes::{open_keys, stranger},
    },
};
use tieline::protocol::{
    Input, Notice, Path, Small,
    constants::{CONTROL_LANE, MIN_TRANSPORT},
};

/// Counters and epochs that are worth a try.
const NUMBERS: [u64; 10] = [0, 1, 2, 1_023, 1_024, 70_000, (1 << 31) - 1, 1 << 31, u32::MAX as u64, u64::MAX];

impl Story<'_> {
    fn large_number(&mut self) -> u64 {
        NUMBERS[self.number() % NUMBERS.len()]
    }

    /// The index of a session this end holds, or one of none.
    fn session(&mut self, end: usize) -> u32 {
        let which = self.number();
        let held = self.world.ends[end].process().watch.held();
        held.iter().nth(which % (held.len() + 1)).copied().unwrap_or(7)
    }

    /// A path to `end`, over a socket it has.
    fn path(&mut self, end: usize) -> Path {
        let (socket, peer, local) = (self.socket(end), self.address(), self.number());
        let own = self.world.ends[end].local;
        let local = [Some(own), None, Some([192, 0, 2, 250].into())][local % 3];
        Path { socket, local, peer }
    }

    /// A control message: its length and as many bytes, or fewer and zeros to the length that its kind has.
    fn message(&mut self) -> Vec<u8> {
        let length = self.number();
        let mut message = self.input.take(length % 64).to_vec();
        message.iter_mut().take(3).for_each(|byte| *byte = byte.wrapping_sub(b'0'));
        let whole = match message[..] {
            [1 | 2, 2, 3, ..] => 4 + 216,
            [1 | 2, _, 3, ..] => 4 + 512,
            [1 | 2, ..] => 4 + 56,
            [3, _, lanes, ..] => 24 + 40 * usize::from(lanes),
            [4 | 5, ..] => 12,
            [9 | 10, ..] => 20,
            [11, ..] => 12,
            _ => return message,
        };
        if length < 64 {
            message.resize(whole, 0);
        }
        message
    }

    /// `i`, who, session, counter, path, message: a control message that was opened, as the mailbox would hold it.
    pub fn lie(&mut self) {
        let end = self.end();
        if !self.world.awake(end) {
            return;
        }
        let (session, counter) = (self.session(end), self.large_number());
        // That something was opened confirms the session, whatever it says: not what the watch takes an M2 for.
        self.world.hand_over(end, Input::Notice(Notice::Opened { session }));
        // A session that comes into use closes other sockets.
        let (path, message) = (self.path(end), self.message());
        if self.world.awake(end) {
            // What was opened came in a datagram, and may have an answer of its length.
            self.world.ends[end].process().watch.received(path.peer, message.len() + MIN_TRANSPORT);
            self.world.hand_over(end, Input::Control { path, session, counter, message: Small::new(&message) });
        }
    }

    /// `h`, who, which kind, session, path: a notice. A move to an address that proved nothing is left to the ingress
    /// half, which sees to it that there are not many.
    pub fn notice(&mut self) {
        let (end, kind) = (self.end(), self.number());
        if !self.world.awake(end) {
            return;
        }
        let (session, path) = (self.session(end), self.path(end));
        let line = self.world.status(end).path;
        let notice = match kind % 3 {
            0 => Notice::Opened { session },
            1 => Notice::Stranger { source: path.peer },
            _ => Notice::Moved { session, path: Path { peer: line.map_or(path.peer, |line| line.peer), ..path } },
        };
        self.world.hand_over(end, Input::Notice(notice));
    }

    /// `e`, who, epoch: one with the keys of the other end opens a session at this one; or, where the epoch is odd, alters
    /// a byte of the cold-open datagram that is held longest, and makes its MAC right again.
    pub fn puppet_opens(&mut self) {
        let (end, epoch) = (self.end(), self.number());
        if epoch % 2 == 1 {
            return self.alter_cold(end);
        }
        let epoch = NUMBERS[epoch / 2 % NUMBERS.len()].min(u64::from(u32::MAX)) as u32;
        // One who lies about the other end's wish for hybrid keys looks to the watch like a bug.
        let wishes = [end, 1 - end].map(|end| self.world.ends[end].setup.params.post_quantum);
        if self.world.awake(end) && wishes[0] >= wishes[1] {
            self.held[end] = self.puppets[1 - end].open(&mut self.world, end, epoch);
        }
    }

    fn alter_cold(&mut self, end: usize) {
        let (place, bits) = (self.number(), self.number() as u8);
        let held = self.world.held.iter().position(|flight| flight.sender != end && flight.cold());
        let Some(at) = held else { return };
        let mut flight = self.world.held.remove(at);
        let body = flight.bytes.len() - 16;
        flight.bytes[place % body] ^= bits;
        let mac = open_keys(&self.world, 1 - end).sending.mac16(&[&flight.bytes[..body]]);
        flight.bytes[body..].copy_from_slice(&mac);
        self.world.arrive(flight);
    }

    /// `g`, who, counter, message: the puppet says something under the session it holds, which may be a bootstrap. First
    /// it says a word that means nothing, as in `lie`.
    pub fn puppet_says(&mut self) {
        let (end, counter) = (self.end(), self.large_number());
        let message = self.message();
        let Some(held) = &self.held[end] else { return };
        let sealed = [(0, &[0][..]), (counter, &message)].map(|(n, text)| held.seal_at(CONTROL_LANE, n, text));
        for bytes in sealed {
            if self.world.awake(end) {
                let (&socket, &to) = self.world.ends[end].sockets.first_key_value().expect("a socket");
                self.world.receive(end, socket, Flight { sender: 1 - end, from: stranger(), to, bytes });
            }
        }
    }
}
