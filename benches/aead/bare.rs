//! The two halves of a link without the AEAD: no key, no tag, and nobody could send anything by them but this bench.
//!
//! All else is done as [`tieline::protocol::Sender`] and [`tieline::protocol::Receiver`] do it: the header with its counter is
//! written and read, index and flags are looked at, a counter is opened once, and what is counted is counted.

use std::sync::Arc;
use tieline::dataplane::{Open, Seal};
use tieline::protocol::levels::{Counter, LaneLevels, Levels, SessionLevels};
use tieline::protocol::replay::Window;
use tieline::protocol::session::SealError;
use tieline::protocol::wire::{Header, Kind, data_flags};
use tieline::protocol::{EgressUpdate, HEADER, IngressUpdate, Notice, Path, Received, TAG, Time};

/// The only session there is.
const INDEX: u32 = 7;
/// What it has agreed to.
const FLAGS: u8 = data_flags::PARTIAL_CHECKSUM;

/// Those of one end, and what they count.
pub fn halves() -> (Sender, Receiver, Arc<Levels>) {
    let levels: Arc<Levels> = Arc::default();
    (Sender::new(), Receiver::new(levels.clone()), levels)
}

/// In the place of the sealing half.
pub struct Sender {
    header: Header,
    path: Option<Path>,
    levels: SessionLevels,
    lane: LaneLevels,
    held: u64,
}

impl Sender {
    fn new() -> Self {
        let header = Header { kind: Kind::Data, flags: 0, lane: 0, path: 0, index: INDEX, counter: 0 };
        Sender { header, path: None, levels: SessionLevels::default(), lane: LaneLevels::default(), held: 0 }
    }
}

impl Seal for Sender {
    fn apply(&mut self, update: EgressUpdate) {
        if let EgressUpdate::Path(path) = update {
            self.path = path;
        }
    }

    fn path(&self) -> Option<Path> {
        self.path
    }

    fn second(&self) -> Option<Path> {
        None
    }

    fn is_held(&self) -> bool {
        false
    }

    fn take_keepalive(&mut self) -> bool {
        false
    }

    fn longest(&self) -> usize {
        usize::MAX
    }
    fn partial_checksum(&self) -> bool {
        FLAGS & data_flags::PARTIAL_CHECKSUM != 0
    }

    /// The room for the tag stays as it is.
    fn seal(&mut self, flags: u8, datagram: &mut [u8]) -> Result<(), SealError> {
        let Some((room, text)) = datagram.split_first_chunk_mut::<HEADER>().filter(|_| self.path.is_some()) else {
            return Err(SealError::NoSession);
        };
        if flags & !FLAGS != 0 {
            return Err(SealError::NotAgreed);
        }
        *room = Header { flags, ..self.header }.encode();
        self.header.counter += 1;
        self.held += 1;
        self.levels.sealed.add(1);
        self.levels.sealed_bytes.add((text.len() - TAG) as u64);
        Ok(())
    }

    fn handed_over(&mut self) {
        self.lane.sent.add(std::mem::take(&mut self.held));
    }
}

/// In the place of the opening half.
pub struct Receiver {
    window: Window,
    heard: Counter,
    session: SessionLevels,
    lane: LaneLevels,
    levels: Arc<Levels>,
}

impl Receiver {
    fn new(levels: Arc<Levels>) -> Self {
        let (session, lane) = (SessionLevels::default(), LaneLevels::default());
        Receiver { window: Window::data(), heard: Counter::default(), session, lane, levels }
    }

    fn drop(&self, which: &Counter) -> Received {
        which.bump();
        Received::Nothing
    }
}

impl Open for Receiver {
    fn apply(&mut self, _: IngressUpdate) {}

    fn receive(&mut self, now: Time, _: Path, datagram: &mut [u8]) -> Received {
        let drops = &self.levels.drops;
        let Ok(header) = Header::parse(datagram) else { return self.drop(&drops.malformed) };
        if header.index != INDEX {
            return self.drop(&drops.no_session);
        }
        if header.flags & !FLAGS != 0 || header.lane != 0 {
            return self.drop(&drops.malformed);
        }
        if self.window.check(header.counter).is_err() {
            return self.drop(&drops.replayed);
        }
        if self.window.mark(header.counter) {
            self.session.peer_sealed.set(header.counter + 1);
        }
        self.lane.received.add(1);
        self.session.opened_bytes.add((datagram.len() - HEADER - TAG) as u64);
        self.heard.set(now.0);
        self.session.opened.add(1);
        Received::Frame { flags: header.flags }
    }

    fn poll_notice(&mut self) -> Option<Notice> {
        None
    }
}
