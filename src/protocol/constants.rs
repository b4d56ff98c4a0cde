//! Every number of the protocol, in one place. The text behind each is in `docs/PROTOCOL.md`.

use std::time::Duration;

/// The version in byte 1 of every cold-open datagram.
pub const VERSION: u8 = 1;

/// Bytes of the transport header, all of it authenticated: type, flags, lane, path, index, counter.
pub const HEADER: usize = 16;
/// Bytes of the AEAD tag at the end of every transport datagram.
pub const TAG: usize = 16;
/// The shortest transport datagram: an empty plaintext.
pub const MIN_TRANSPORT: usize = HEADER + TAG;

/// The lane number of the control lane.
pub const CONTROL_LANE: u8 = 255;
/// The most data lanes one session can have.
pub const MAX_LANES: u8 = 16;
/// The lanes this version offers.
pub const LANES: u8 = 1;

/// Replay window of a data lane, in datagrams.
pub const DATA_WINDOW: u64 = 65_536;
/// Replay window of the control lane, in datagrams.
pub const CONTROL_WINDOW: u64 = 1_024;

/// Datagrams all lanes of one direction may seal under one session's keys.
pub const SEAL_DATAGRAMS: u64 = 1 << 28;
/// Plaintext bytes all lanes of one direction may seal under one session's keys.
pub const SEAL_BYTES: u64 = 1 << 38;

/// When Knock and Init are sent, counted from the first sending of each. The last of them and the short
/// [`PAUSE_MAX`] see to it that while nobody answers no two Knocks are 3 s apart: an end that comes back is found.
pub const COLD_RESENDS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_millis(900),
    Duration::from_millis(2_100),
    Duration::from_millis(3_500),
];
/// A cold-open attempt ends this long after its first Knock.
pub const ATTEMPT_TIME: Duration = Duration::from_secs(5);
/// The pause after the first failed attempt; it doubles with each further one.
pub const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest pause between attempts, before the jitter of ±25 %: see [`COLD_RESENDS`].
pub const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The pause after a Response that refuses the link.
pub const PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// The most addresses knocked at in one sending.
pub const MAX_ADDRESSES: usize = 4;
/// The most public keys of the peer's, and the most preshared keys, that an end may list: an old one and a new one.
pub const MAX_LISTED_KEYS: usize = 2;
/// Failed attempts after which a new local port is opened.
pub const FAILURES_TO_NEW_PORT: u32 = 6;

/// Copies of one cold-open datagram that are looked at: one for each sending to each address, and as many more as a network
/// may make of them.
pub const COLD_COPIES: u8 = 64;
/// How many cold-open datagrams that were looked at are remembered, to know a copy.
pub const COLD_MEMORY: usize = 1_024;
/// Authentic cold-open datagrams of one type that are looked at in a second, as long as they come evenly …
pub const COLD_RATE: u64 = 1_000;
/// … and at once.
pub const COLD_BURST: u64 = 16;

/// A token is taken no longer than this after it was made.
pub const TOKEN_AGE: Duration = Duration::from_secs(10);
/// A recorded Knock is answered again no longer than this after its first answer.
pub const KNOCK_AGE: Duration = Duration::from_secs(10);
/// How many answered nonces the knock memory holds.
pub const KNOCK_MEMORY: usize = 1_024;
/// Accepted Inits are at least this far apart: it caps the DH operations a thief of a key can cost us.
pub const INIT_SPACING: Duration = Duration::from_millis(100);
/// How often a cached Response is sent again for a repeated Init.
pub const RESPONSE_RESENDS: u8 = 5;
/// How long the cached Init and Response are kept.
pub const RESPONSE_CACHE: Duration = Duration::from_secs(10);

/// A bootstrap session is wiped this long after it was made or established.
pub const BOOT_LIFE: Duration = Duration::from_secs(10);
/// `prev` is wiped this long after the first datagram opened under `cur`.
pub const PREV_LIFE: Duration = Duration::from_secs(10);
/// An unconfirmed data session is kept this long.
pub const ANSWERED_DATA_LIFE: Duration = Duration::from_secs(180);
/// An unconfirmed rekeyed session is kept this long after its parent is gone.
pub const ANSWERED_AFTER_PARENT: Duration = Duration::from_secs(10);
/// The most unconfirmed sessions held.
pub const MAX_ANSWERED: usize = 3;
/// The highest epoch an end takes part in.
pub const MAX_EPOCH: u32 = 1 << 31;

/// The session's initiator starts a rekey this long after establishment.
pub const REKEY_INITIATOR: Duration = Duration::from_secs(120);
/// The session's responder starts one if nothing came by then.
pub const REKEY_RESPONDER: Duration = Duration::from_secs(150);
/// `cur` is wiped this long after establishment.
pub const SESSION_LIFE: Duration = Duration::from_secs(180);
/// The same as `prev`.
pub const SESSION_LIFE_PREV: Duration = Duration::from_secs(190);
/// The bytes of a rekey message in one Control datagram.
pub const REKEY_PART: usize = 512;
/// The first resend of a RekeyInit is no earlier than this.
pub const REKEY_RESEND_MIN: Duration = Duration::from_millis(250);
/// The spacing of RekeyInit resends doubles up to this.
pub const REKEY_RESEND_MAX: Duration = Duration::from_secs(2);
/// M2 is sent again no more often than this.
pub const REKEY_ANSWER_SPACING: Duration = Duration::from_millis(100);

/// Reports missed until the peer counts as gone.
pub const MISSED_REPORTS: u32 = 3;
/// How often a peer whose Report is overdue is asked whether it is there, in each of its intervals.
pub const ASKS_PER_INTERVAL: u32 = 8;
/// The shortest report interval an end may announce, in milliseconds.
pub const INTERVAL_MIN_MS: u32 = 50;
/// The longest report interval an end may announce, in milliseconds.
pub const INTERVAL_MAX_MS: u32 = 60_000;
/// The initiator of a data session repeats its confirming Report this often until it opens something.
pub const CONFIRM_SPACING: Duration = Duration::from_millis(200);
/// An echo is believed only if it is one of this many of our last Reports' times.
pub const ECHOES: usize = 8;
/// Reports sent out of turn are so far apart on average; two at once is what coming Up takes.
pub const REPORT_SPACING: Duration = Duration::from_millis(20);
/// An idle data lane seals an empty datagram this often.
pub const KEEPALIVE: Duration = Duration::from_secs(15);

/// Path MTU: a datagram that every way is taken to carry. A rekey part is one, and with IPv4's and UDP's headers it makes the 576
/// bytes that each host must take (RFC 791 §3.1).
pub const MTU_FLOOR: u16 = 548;
/// What is used until anything is found (BASE_PLPMTU, RFC 8899 §5.1.2).
pub const MTU_BASE: u16 = 1_200;
/// The largest that is tried unless something is known of the own interface: Ethernet's, over IPv4.
pub const MTU_CEILING: u16 = 1_472;
/// In the mark of a Probe: it is of the way that second copies go.
pub const MARK_SECOND: u8 = 0x80;
/// Sizes tried at once.
pub const PROBE_SIZES: u32 = 5;
/// The size of a small probe: the least a Probe can have.
pub const PROBE_SMALL: u16 = 36;
/// An answer to a probe is waited for no shorter …
pub const PROBE_TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// … and no longer than this; else twice the RTT and four times the jitter.
pub const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(2);
/// Where the RTT is not known yet.
pub const PROBE_TIMEOUT_FIRST: Duration = Duration::from_millis(500);
/// While large datagrams are sent, whether the size in use still passes is tried this often.
pub const MTU_LOOK: Duration = Duration::from_millis(500);
/// Whether a larger one passes is tried so long after a search that found less than could be; then the pause doubles …
pub const MTU_RAISE_FIRST: Duration = Duration::from_secs(10);
/// … up to this (PMTU_RAISE_TIMER, RFC 8899 §5.1.1, which is twice as long).
pub const MTU_RAISE_MAX: Duration = Duration::from_secs(300);

/// The largest datagram that a user frame takes, and so the largest size an end may offer for the link's MTU.
pub const MTU_LARGEST: u16 = 9_248;
/// The least and …
pub const LINK_MTU_MIN: u16 = 1_280;
/// … the most an end may say that its interface's MTU is.
pub const LINK_MTU_MAX: u16 = 9_000;
/// A larger size has to hold this long before it is offered; twice as long each time it was offered and then did not last …
pub const MTU_HOLD: Duration = Duration::from_secs(30);
/// … up to this, and as at first where it lasted for so long.
pub const MTU_HOLD_MAX: Duration = Duration::from_secs(600);
/// An offer that the peer has not said to have is said again: so many times …
pub const MTU_OFFERS: u32 = 5;
/// … at this spacing, which then doubles …
pub const MTU_OFFER_SPACING: Duration = Duration::from_millis(200);
/// … up to this.
pub const MTU_OFFER_SPACING_MAX: Duration = Duration::from_secs(10);
/// Without an offer of the peer's for so long, what passes to the peer is the link's size.
pub const MTU_OFFER_WAIT: Duration = Duration::from_secs(10);

/// A piece of a cut frame waits this long for the others.
pub const PIECE_TIME: Duration = Duration::from_secs(1);

/// Goodbye is sent this often …
pub const GOODBYES: u8 = 3;
/// … this far apart.
pub const GOODBYE_SPACING: Duration = Duration::from_millis(50);

/// Checks sent to a candidate address and to the current one.
pub const PATH_CHECKS: u8 = 3;
/// The shortest spacing of those checks, which is the RTT where that is longer …
pub const PATH_CHECK_SPACING: Duration = Duration::from_millis(200);
/// … but no longer than this: a clock that leaps makes any round-trip time.
pub const PATH_CHECK_SPACING_MAX: Duration = Duration::from_secs(2);
/// The most ways to the peer that an end may be told.
pub const MAX_WAYS: usize = 4;
/// A way that works, and is better than the one in use, is used once it has been good for this long after its first failure; the time
/// doubles with each …
pub const WAY_WAIT: Duration = Duration::from_secs(5);
/// … up to this, …
pub const WAY_WAIT_MAX: Duration = Duration::from_secs(300);
/// … and begins anew once it has worked for so long.
pub const WAY_FORGET: Duration = Duration::from_secs(300);
/// The share of a way's checks from which on another way that works is better …
pub const WAY_LOSSY: f64 = 0.25;
/// … and down to which it has to come to be as good as that again.
pub const WAY_CLEAN: f64 = 0.07;
/// When the line moves to another way nothing is sent for as long as the way before takes longer, and this, which is a tick of a
/// scheduler's clock (CONFIG_HZ=250) and some more …
pub const WAY_HOLD_MIN: Duration = Duration::from_millis(5);
/// … but no longer than this.
pub const WAY_HOLD_MAX: Duration = Duration::from_millis(250);
/// How often it is said of a way that it is silent.
pub const WAY_SILENT: Duration = Duration::from_secs(10);
/// One candidate a second at most.
pub const CANDIDATE_SPACING: Duration = Duration::from_secs(1);
/// A candidate that proved needless is left alone this long.
pub const CANDIDATE_IGNORE: Duration = Duration::from_secs(10);

/// For so long after this machine's routes have left an own address, what still comes to it does not bring the link back to it.
pub const LEFT_ADDRESS: Duration = Duration::from_secs(5);

/// Takeovers of the link that prove two clocks behind the peer's key, until that is said.
pub const SAME_KEY_PROOFS: usize = 3;
/// What shows that two machines have one key is so for this many detection times after it was last
/// seen, …
pub const SAME_KEY_DETECTIONS: u32 = 5;
/// … and for this long at least. Proofs count together within twice as long.
pub const SAME_KEY_MEMORY: Duration = Duration::from_secs(30);

/// Each notice of a stranger, a cause or a mismatch is given at most this often.
pub const NOTICE_SPACING: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_back_is_knocked_at_within_three_seconds() {
        let next_attempt = ATTEMPT_TIME + PAUSE_MAX.mul_f64(1.25);
        let sendings = [&COLD_RESENDS[..], &[next_attempt]].concat();
        let longest = sendings.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest < Some(Duration::from_secs(3)), "{longest:?}");
        assert!(COLD_RESENDS.iter().all(|at| *at < ATTEMPT_TIME));
    }

    #[test]
    fn the_text_names_the_constants_as_they_are_named_here() {
        let (text, code) = (include_str!("../../docs/PROTOCOL.md"), include_str!("constants.rs"));
        let foreign = ["HMAC", "X25519", "IP_PMTUDISC_PROBE", "IPV6_PMTUDISC_PROBE"];
        let upper = |word: &&str| {
            word.len() > 2 && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        };
        let named: Vec<&str> = text.split('`').skip(1).step_by(2).filter(upper).collect();
        for name in named.iter().filter(|name| !foreign.contains(name)) {
            assert!(code.contains(&format!("pub const {name}:")), "docs/PROTOCOL.md names {name}");
        }
        // And the table of §12 leaves none out but the layout of a datagram.
        let names = code.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next());
        for name in
            names.filter(|name| !["HEADER", "TAG", "MIN_TRANSPORT", "CONTROL_LANE", "NOTICE_SPACING"].contains(name))
        {
            assert!(named.contains(&name), "docs/PROTOCOL.md does not name {name}");
        }
    }
}
