//! Control messages: what travels sealed on lane 255, by the byte.

use super::{
    constants::*,
    wire::{Malformed, Reader, address18, read_address18},
};
use std::net::SocketAddr;

/// The liveness states of RFC 5880 §6.2, with the numbers of its §4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The operator took the sender's interface down: no packets pass, whatever is heard.
    AdminDown = 0,
    /// The peer is not heard.
    #[default]
    Down = 1,
    /// The peer is heard, and does not say yet that it hears us.
    Init = 2,
    /// Both hear each other.
    Up = 3,
}

/// The cumulative counters of one lane, as its owner sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneReport {
    /// Datagrams sealed.
    pub sent: u64,
    /// Datagrams opened.
    pub received: u64,
    /// Datagrams that came a second time.
    pub duplicate: u64,
    /// Datagrams older than the window.
    pub late: u64,
    /// Datagrams that did not open.
    pub failed: u64,
}

/// What an end says of itself each interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The sender's liveness state.
    pub state: State,
    /// For how many whole seconds, rounded up, the sender still holds the link back; while it is not Up, for how many it will, from
    /// Up on.
    pub held_s: u8,
    /// How long `echo` was held before it was sent back, in microseconds.
    pub hold_us: u32,
    /// The sender's clock, in microseconds since its boot.
    pub time_us: u64,
    /// The newest `time_us` heard from the receiver, 0 for none.
    pub echo: u64,
    /// One entry a lane.
    pub lanes: Vec<LaneReport>,
}

/// What an end says of packet sizes, see [`crate::protocol::link::LinkMtu`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MtuOffer {
    /// Bytes of the largest datagram that passes in the direction the sender sends in, [`MTU_FLOOR`] to [`MTU_LARGEST`]; `None`
    /// while that is not known.
    pub size: Option<u16>,
    /// The MTU of the sender's interface in bytes, [`LINK_MTU_MIN`] to [`LINK_MTU_MAX`], where the interface has it whatever
    /// passes; `None` where it follows the link.
    pub mtu: Option<u16>,
}

/// Which half of the rekey a part belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RekeySide {
    /// M1.
    Init,
    /// M2.
    Resp,
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A part of M1 or M2.
    Rekey {
        /// Which message.
        side: RekeySide,
        /// 0-based.
        part: u8,
        /// 1 or 3.
        parts: u8,
        /// At most 512 bytes.
        bytes: &'a [u8],
    },
    /// See [`Report`].
    Report(Report),
    /// Do you hear me on this path?
    PathCheck {
        /// The lane it is asked for.
        lane: u8,
        /// Comes back in the answer.
        cookie: [u8; 8],
    },
    /// I do.
    PathAnswer {
        /// As in the check.
        lane: u8,
        /// As in the check.
        cookie: [u8; 8],
    },
    /// A datagram of a certain size, to find the path's MTU.
    Probe {
        /// Which search it belongs to: comes back in the answer.
        mark: u8,
        /// Its size.
        size: u16,
    },
    /// It came.
    ProbeAck {
        /// As in the probe.
        mark: u8,
        /// As in the probe.
        size: u16,
    },
    /// The sender is closing.
    Goodbye,
    /// What the sender does with the path this comes by; do you hear me there?
    WayCheck {
        /// It sends user data there, and wants what it is sent to come there.
        first: bool,
        /// It is the second best: a second copy of each datagram may come there.
        second: bool,
        /// Comes back in the answer.
        cookie: [u8; 8],
        /// For how long nothing should be sent there yet, in microseconds, for what went by the path before to come first.
        hold_us: u32,
    },
    /// I do.
    WayAnswer {
        /// As in the check.
        cookie: [u8; 8],
        /// The clock of the end that answers, in microseconds since its boot.
        time_us: u64,
    },
    /// What the sender offers for the MTU of both interfaces.
    Mtu {
        /// Its offer.
        own: MtuOffer,
        /// The receiver's, as the sender has it.
        has: MtuOffer,
        /// Whether it is to be answered with the receiver's own.
        ask: bool,
    },
    /// The receiver's key is on two machines, which take the link from each other.
    SameKey {
        /// Where the sender sees the receiver.
        here: SocketAddr,
        /// Where it sees the other machine. IPv6 scopes are left out of both.
        there: SocketAddr,
    },
    /// A kind of a later version.
    Unknown(u8),
}

impl Message<'_> {
    /// By the byte: see `docs/PROTOCOL.md`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Message::Rekey { side, part, parts, bytes } => {
                let kind = if *side == RekeySide::Init { 1 } else { 2 };
                [&[kind, *part, *parts, 0], *bytes].concat()
            }
            Message::Report(report) => encode_report(report),
            Message::WayCheck { first, second, cookie, hold_us } => {
                let uses = u8::from(*first) | u8::from(*second) << 1;
                [&[9, uses, 0, 0], &cookie[..], &hold_us.to_be_bytes(), &[0; 4]].concat() // as long as its answer
            }
            Message::WayAnswer { cookie, time_us } => [&[10, 0, 0, 0], &cookie[..], &time_us.to_be_bytes()].concat(),
            Message::Mtu { own, has, ask } => {
                [&[11, u8::from(*ask), 0, 0][..], &encode_offer(*own), &encode_offer(*has)].concat()
            }
            Message::SameKey { here, there } => [&[12, 0, 0, 0], &address18(*here)[..], &address18(*there)].concat(),
            Message::PathCheck { lane, cookie } => [&[4, *lane, 0, 0], &cookie[..]].concat(),
            Message::PathAnswer { lane, cookie } => [&[5, *lane, 0, 0], &cookie[..]].concat(),
            Message::Probe { mark, size } => {
                let mut out = vec![0; usize::from(*size).saturating_sub(MIN_TRANSPORT).max(4)];
                (out[0], out[1]) = (6, *mark);
                out[2..4].copy_from_slice(&size.to_be_bytes());
                out
            }
            Message::ProbeAck { mark, size } => [&[7, *mark], &size.to_be_bytes()[..]].concat(),
            Message::Goodbye => vec![8],
            Message::Unknown(kind) => vec![*kind],
        }
    }

    /// Reads a control message.
    ///
    /// # Errors
    /// [`Malformed`] for a wrong length or a value out of its range. Reserved bytes are not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
        let (&kind, rest) = bytes.split_first().ok_or(Malformed)?;
        let mut r = Reader(rest);
        let message = match kind {
            1 | 2 => return parse_rekey(if kind == 1 { RekeySide::Init } else { RekeySide::Resp }, r),
            3 => Message::Report(parse_report(&mut r)?),
            4 | 5 => {
                let lane = r.u8()?;
                r.skip(2)?;
                let cookie = r.array()?;
                if kind == 4 { Message::PathCheck { lane, cookie } } else { Message::PathAnswer { lane, cookie } }
            }
            // The rest is what is being measured.
            6 => return Ok(Message::Probe { mark: r.u8()?, size: r.u16()? }),
            7 => Message::ProbeAck { mark: r.u8()?, size: r.u16()? },
            8 => Message::Goodbye,
            9 => {
                let uses = r.u8()?;
                r.skip(2)?;
                let (cookie, hold_us) = (r.array()?, r.u32()?);
                r.skip(4)?;
                Message::WayCheck { first: uses & 1 != 0, second: uses & 2 != 0, cookie, hold_us }
            }
            10 => {
                r.skip(3)?;
                Message::WayAnswer { cookie: r.array()?, time_us: r.u64()? }
            }
            11 => {
                let ask = r.u8()? & 1 != 0;
                r.skip(2)?;
                Message::Mtu { own: parse_offer(&mut r)?, has: parse_offer(&mut r)?, ask }
            }
            12 => {
                r.skip(3)?;
                Message::SameKey { here: read_address18(&r.array()?), there: read_address18(&r.array()?) }
            }
            other => return Ok(Message::Unknown(other)),
        };
        r.end()?;
        Ok(message)
    }
}

fn parse_rekey(side: RekeySide, mut r: Reader<'_>) -> Result<Message<'_>, Malformed> {
    let (part, parts) = (r.u8()?, r.u8()?);
    r.skip(1)?;
    let bytes = r.0;
    if part >= parts || bytes.is_empty() || bytes.len() > REKEY_PART {
        return Err(Malformed);
    }
    Ok(Message::Rekey { side, part, parts, bytes })
}

fn encode_report(report: &Report) -> Vec<u8> {
    let mut out = vec![3, report.state as u8, report.lanes.len() as u8, report.held_s];
    out.extend_from_slice(&report.hold_us.to_be_bytes());
    out.extend_from_slice(&report.time_us.to_be_bytes());
    out.extend_from_slice(&report.echo.to_be_bytes());
    for lane in &report.lanes {
        for n in [lane.sent, lane.received, lane.duplicate, lane.late, lane.failed] {
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
    out
}

fn parse_report(r: &mut Reader<'_>) -> Result<Report, Malformed> {
    let state = match r.u8()? {
        0 => State::AdminDown,
        1 => State::Down,
        2 => State::Init,
        3 => State::Up,
        _ => return Err(Malformed),
    };
    let lanes = r.u8()?;
    let held_s = r.u8()?;
    if !(1..=MAX_LANES).contains(&lanes) {
        return Err(Malformed);
    }
    let (hold_us, time_us, echo) = (r.u32()?, r.u64()?, r.u64()?);
    let mut report = Report { state, held_s, hold_us, time_us, echo, lanes: Vec::new() };
    for _ in 0..lanes {
        report.lanes.push(LaneReport {
            sent: r.u64()?,
            received: r.u64()?,
            duplicate: r.u64()?,
            late: r.u64()?,
            failed: r.u64()?,
        });
    }
    Ok(report)
}

/// 0 stands for what is not said.
fn encode_offer(MtuOffer { size, mtu }: MtuOffer) -> [u8; 4] {
    let ([a, b], [c, d]) = (size.unwrap_or(0).to_be_bytes(), mtu.unwrap_or(0).to_be_bytes());
    [a, b, c, d]
}

fn parse_offer(r: &mut Reader<'_>) -> Result<MtuOffer, Malformed> {
    let (size, mtu) = (Some(r.u16()?).filter(|n| *n != 0), Some(r.u16()?).filter(|n| *n != 0));
    let in_range = size.is_none_or(|size| (MTU_FLOOR..=MTU_LARGEST).contains(&size))
        && mtu.is_none_or(|mtu| (LINK_MTU_MIN..=LINK_MTU_MAX).contains(&mtu));
    if in_range { Ok(MtuOffer { size, mtu }) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lane() -> impl Strategy<Value = LaneReport> {
        any::<[u64; 5]>().prop_map(|[sent, received, duplicate, late, failed]| LaneReport {
            sent,
            received,
            duplicate,
            late,
            failed,
        })
    }

    proptest! {
        #[test]
        fn reports_survive_the_trip(
            state in prop::sample::select(vec![State::AdminDown, State::Down, State::Init, State::Up]),
            held_s: u8,
            hold_us: u32,
            time_us: u64,
            echo: u64,
            lanes in prop::collection::vec(lane(), 1..=16),
        ) {
            let report = Report { state, held_s, hold_us, time_us, echo, lanes };
            let bytes = Message::Report(report.clone()).encode();
            prop_assert_eq!(Message::parse(&bytes), Ok(Message::Report(report)));
        }

        #[test]
        fn any_bytes_parse_or_are_malformed_and_what_parses_encodes_back(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            if let Ok(message) = Message::parse(&bytes) {
                match message {
                    // What follows is padding, or unknown.
                    Message::Probe { .. } | Message::Unknown(_) => {}
                    message => {
                        let again = message.encode();
                        prop_assert_eq!(Message::parse(&again), Ok(message));
                    }
                }
            }
        }
    }

    #[test]
    fn offers_are_in_range_or_malformed() {
        let parse = |bytes: &[u8; 12]| Message::parse(bytes).is_ok();
        let with = |at: usize, value: u16| {
            let mut bytes = [11, 1, 0, 0, 0x05, 0xC0, 0, 0, 0, 0, 0x05, 0xDC];
            bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
            bytes
        };
        for (at, range) in [(4, MTU_FLOOR..=MTU_LARGEST), (6, LINK_MTU_MIN..=LINK_MTU_MAX)] {
            for at in [at, at + 4] {
                let (low, high) = (*range.start(), *range.end());
                assert!([0, low, high].into_iter().all(|value| parse(&with(at, value))), "{at}");
                assert!(![1, low - 1, high + 1, u16::MAX].into_iter().any(|value| parse(&with(at, value))), "{at}");
            }
        }
    }

    #[test]
    fn lengths_are_exact() {
        let check = Message::PathCheck { lane: 0, cookie: [7; 8] }.encode();
        assert_eq!(check.len(), 12);
        assert_eq!(Message::parse(&check[..11]), Err(Malformed));
        assert_eq!(Message::parse(&[&check[..], &[0]].concat()), Err(Malformed));
        assert_eq!(Message::parse(&[]), Err(Malformed));
        assert_eq!(Message::parse(&[8]), Ok(Message::Goodbye));
        let [here, there] = ["192.0.2.1:7311", "[2001:db8::1]:7312"].map(|address| address.parse().unwrap());
        let same_key = Message::SameKey { here, there }.encode();
        assert_eq!(same_key.len(), 40);
        assert_eq!(Message::parse(&same_key), Ok(Message::SameKey { here, there }));
        assert_eq!(Message::parse(&same_key[..39]), Err(Malformed));
    }
}
