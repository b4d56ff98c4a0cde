//! `tieline status`: what the links of this machine say of themselves.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use super::{FAILED, Failure, StatusArgs, print};
use crate::config::{self, Config};
use crate::control::status::{self, AskError, Carrier, Drops, NamedPath, Rotation, Sandbox, State, Status, Traffic};

/// The link is not up, or not running.
const NOT_UP: u8 = 3;

pub(super) fn run(args: &StatusArgs) -> ExitCode {
    let done = match &args.link {
        Some(link) => one(link, args.json),
        None => all(args.json),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NOT_UP),
        Err(failure) => failure.report(),
    }
}

/// Shows one link, and says whether packets pass.
fn one(link: &Path, json: bool) -> Result<bool, Failure> {
    let answer = ask(&interface_of(link)?)?;
    print(&if json { answer.text } else { show(&answer.status) })?;
    Ok(answer.status.passes())
}

/// Shows every link that runs, and says whether there are any and packets pass on all of them.
fn all(json: bool) -> Result<bool, Failure> {
    let run_dir = status::run_dir();
    let interfaces = status::running(&run_dir).map_err(|error| {
        Failure::failed(
            format!("cannot read {}: {}", run_dir.display(), crate::os_error::in_words(&error)),
            "see who may read that folder",
        )
    })?;
    let mut answers = Vec::new();
    let mut all_up = !interfaces.is_empty();
    for interface in interfaces {
        match ask(&interface) {
            Ok(answer) => {
                all_up &= answer.status.passes();
                answers.push(if json { answer.text } else { show(&answer.status) });
            }
            Err(failure) => {
                all_up = false;
                failure.report();
            }
        }
    }
    match (json, answers.is_empty()) {
        (true, _) => print(&format!("[{}]\n", answers.join(",").trim_end()))?,
        (false, true) => _ = writeln!(io::stderr(), "no link is running on this machine"),
        (false, false) => print(&answers.join("\n"))?,
    }
    Ok(all_up)
}

/// What a link answered: read, and as it came.
struct Answer {
    status: Status,
    text: String,
}

fn ask(interface: &str) -> Result<Answer, Failure> {
    let (text, status) = status::ask(&status::run_dir(), interface).map_err(|error| {
        let (code, help) = match error {
            AskError::NotRunning { .. } => {
                (NOT_UP, "start it with `tieline up FILE`; `tieline status` lists what runs")
            }
            AskError::Forbidden { .. } => (FAILED, "ask as root: sudo tieline status"),
            AskError::Silent { .. } => (
                FAILED,
                "see its log, and whether it is stopped (state T in `ps`); if it hangs, end it and start it again",
            ),
        };
        Failure { code, text: format!("{error}\nhelp: {help}") }
    })?;
    Ok(Answer { status, text })
}

/// A config file names its interface; anything else is one.
pub(super) fn interface_of(link: &Path) -> Result<String, Failure> {
    let is_file = link.extension().is_some_and(|extension| extension == "toml") || link.components().count() > 1;
    match link.to_str() {
        Some(name) if !is_file => Ok(name.to_owned()),
        _ => Ok(Config::load(link)?.0.link.interface),
    }
}

/// The link in a few lines.
fn show(status: &Status) -> String {
    let mut text = format!("{} ({}): {}", status.interface, status.name, condition(status));
    if let Some(problem) = &status.problem {
        let _ = write!(text, "\n  problem   {}", problem.text);
        if let Some(since) = &problem.since {
            let _ = write!(text, ", since {since}");
        }
    }
    if !status.local.public_key.is_empty() {
        let _ = write!(text, "\n  this end  {}", status.local.public_key);
    }
    let peer = &status.peer;
    let _ = write!(text, "\n  peer      {}", peer.public_key);
    if let Some(endpoint) = &peer.endpoint {
        let _ = write!(text, "\n            at {endpoint}");
    }
    if let Some(rotation) = rotation(status) {
        let _ = write!(text, "\n  rotation  {rotation}");
    }
    let _ = write!(text, "\n  carrier   {}", carrier(&status.carrier));
    if let Some(ms) = status.detection_ms {
        let _ = write!(text, "\n  detection {} s of silence take the link down", ms / 1e3);
    }
    text += "\n  session   ";
    match &status.session {
        Some(session) => {
            let kind = if session.post_quantum { "post-quantum" } else { "not post-quantum" };
            let _ =
                write!(text, "{}, {kind}, epoch {}, {} s old", session.cipher, session.epoch, session.age_s.floor());
        }
        None => text += "none",
    }
    let path = &status.path;
    let ms = |time: Option<f64>| time.map(|ms| format!("{ms:.1} ms"));
    let facts = [
        path.mtu.map(|mtu| format!("mtu {mtu}")),
        ms(path.rtt_ms).map(|rtt| format!("rtt {rtt}")),
        ms(path.jitter_ms).map(|jitter| format!("jitter {jitter}")),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    if !facts.is_empty() {
        let _ = write!(text, "\n  path      {}", facts.join(", "));
    }
    for (n, path) in status.paths.iter().enumerate() {
        let _ = write!(text, "\n  {:<9} {}", if n == 0 { "ways out" } else { "" }, named_path(path));
    }
    let _ = write!(text, "\n  sent      {}\n  received  {}", traffic(&path.tx), traffic(&path.rx));
    if status.drops != Drops::default() {
        let _ = write!(text, "\n  dropped   {}", drops(&status.drops));
    }
    if let Some(sandbox) = &status.sandbox {
        let _ = write!(text, "\n  sandbox   {}", locks(sandbox));
    }
    text + "\n"
}

/// `fibre (wan0) to 203.0.113.7:7311: up since 2026-01-02T03:04:05Z, in use, rtt 12.1 ms, 0.0 % of checks lost lately`
fn named_path(path: &NamedPath) -> String {
    let mut text = path.name.clone();
    let ties: Vec<&str> = [&path.interface, &path.local].into_iter().flatten().map(String::as_str).collect();
    if !ties.is_empty() {
        let _ = write!(text, " ({})", ties.join(", "));
    }
    if let Some(endpoint) = &path.endpoint {
        let _ = write!(text, " to {endpoint}");
    }
    let _ = write!(text, ": {}", state(path.state));
    if let Some(since) = &path.since {
        let _ = write!(text, " since {since}");
    }
    if path.used {
        text += ", in use";
    }
    if let Some(rtt) = path.rtt_ms {
        let _ = write!(text, ", rtt {rtt:.1} ms");
    }
    if let Some(loss) = path.loss_ratio {
        let _ = write!(text, ", {:.1} % of checks lost lately", loss * 100.0);
    }
    text
}

/// What routing sees of the line, and why it is damped where it is.
fn carrier(carrier: &Carrier) -> String {
    let mut text = match (carrier.follows, carrier.on) {
        (config::Carrier::Always, _) => "always on".to_owned(),
        (config::Carrier::Peer, true) => "on".to_owned(),
        (config::Carrier::Peer, false) => "off".to_owned(),
    };
    match carrier.left_s {
        Some(left) => _ = write!(text, ", damped: waits {left:.1} s more"),
        None if carrier.wait_s > 0.0 && carrier.on => text += ", damped until it has been up for 5 minutes",
        None if carrier.wait_s > 0.0 => {
            _ = write!(text, ", damped: will wait {} s once the peer is back", carrier.wait_s)
        }
        None => {}
    }
    match carrier.losses {
        0 => {}
        1 => text += ", lost once in the last minute",
        several => _ = write!(text, ", lost {several} times in the last minute"),
    }
    text
}

/// How far a change of keys is.
fn rotation(status: &Status) -> Option<String> {
    let psk = status.session.as_ref().and_then(|session| session.preshared_key);
    let others = status.peer.public_keys.iter().filter(|key| **key != status.peer.public_key);
    match status.rotation {
        Rotation::None => None,
        Rotation::Waiting => Some("waiting for the peer: the link is still under the old key".into()),
        Rotation::Listed => {
            let others: Vec<_> = others.map(|key| format!("the peer may also use {key}")).collect();
            let psk = psk.map(|at| format!("the link uses preshared key {at}"));
            let facts: Vec<String> = others.into_iter().chain(psk).collect();
            Some(if facts.is_empty() { "two preshared keys are listed".into() } else { facts.join("; ") })
        }
    }
}

/// What is left to the process, and what keeps the rest from it.
fn locks(sandbox: &Sandbox) -> String {
    let rights = match sandbox.capabilities.as_slice() {
        [] => "no capabilities".into(),
        some => some.join(", "),
    };
    let held = |holds, name: &str| if holds { name.to_owned() } else { format!("no {name}") };
    let locks = [
        sandbox.user.as_ref().map(|user| format!("user {user}")),
        Some(rights),
        Some(held(sandbox.seccomp, "seccomp")),
        Some(held(sandbox.landlock.is_some(), "landlock")),
    ];
    locks.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Whether packets pass, and since when or until when it is so.
fn condition(status: &Status) -> String {
    if let Some(until) = status.damped.as_ref().filter(|_| status.state == State::Up) {
        let missing = match (status.carrier.follows, &status.peer.damped) {
            (_, Some(theirs)) if theirs >= until => "the peer holds the link back, as it comes and goes there",
            (config::Carrier::Peer, _) => "the interface has no carrier",
            (config::Carrier::Always, _) => "its routes are not set",
        };
        return format!("damped until {until}; {missing}");
    }
    let state = state(status.state);
    status.since.as_ref().map_or(state.to_owned(), |since| format!("{state} since {since}"))
}

fn state(state: State) -> &'static str {
    match state {
        State::AdminDown => "administratively down",
        State::Up => "up",
        State::Init => "coming up",
        State::Down => "down",
    }
}

fn traffic(traffic: &Traffic) -> String {
    let mut text = format!("{} packets, {}", traffic.packets, bytes(traffic.bytes));
    if let Some(loss) = traffic.loss_ratio {
        let _ = write!(text, ", {:.1} % lost lately", loss * 100.0);
    }
    if let Some(dropped) = traffic.dropped_ratio.filter(|dropped| *dropped > 0.0) {
        let _ = write!(text, ", {:.1} % dropped by this end lately", dropped * 100.0);
    }
    if let (Some(mtu), Some(since)) = (traffic.mtu, &traffic.mtu_since) {
        let _ = write!(text, ", mtu {mtu} since {since}");
    }
    text
}

/// `999 B`, `1.2 MB`: powers of ten, as line rates are.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1e3;
    let mut units = UNITS.into_iter();
    let mut unit = units.next();
    while amount >= 999.95
        && let Some(next) = units.next()
    {
        amount /= 1e3;
        unit = Some(next);
    }
    format!("{amount:.1} {}", unit.unwrap_or_default())
}

fn drops(drops: &Drops) -> String {
    let reasons = [
        (drops.replayed, "replayed"),
        (drops.unauthentic, "unauthentic"),
        (drops.malformed, "malformed"),
        (drops.no_session, "without a session"),
        (drops.too_big, "too big"),
        (drops.congested, "congested"),
        (drops.source, "from a source outside routes"),
        (drops.returned, "about to be sent back"),
        (drops.looped, "own datagrams in a loop"),
        (drops.socket_send, "not taken by the socket"),
        (drops.interface_queue, "by the interface's full queue"),
        (drops.interface_no_carrier, "without a carrier"),
        (drops.interface_down, "with the interface down"),
        (drops.interface_invalid, "refused by the interface as invalid"),
        (drops.interface_write, "refused by the interface"),
        (drops.interface_receive, "by the kernel behind the interface"),
    ];
    let some: Vec<String> =
        reasons.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
    some.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{Local, Path as Line, Peer, Problem, Session};

    fn status() -> Status {
        let traffic = |packets, bytes, loss_ratio, mtu| Traffic {
            packets,
            bytes,
            loss_ratio,
            dropped_ratio: Some(0.0),
            mtu: Some(mtu),
            mtu_since: Some("2026-01-02T03:04:06Z".into()),
        };
        Status {
            version: 1,
            name: "hq".into(),
            interface: "tl0".into(),
            state: State::Up,
            since: Some("2026-01-02T03:04:05Z".into()),
            damped: None,
            detection_ms: Some(3_000.0),
            problem: None,
            local: Local { public_key: "tlpub1own…".into() },
            peer: Peer {
                public_key: "tlpub1…".into(),
                public_keys: vec!["tlpub1…".into()],
                endpoint: Some("203.0.113.7:7311".into()),
                damped: None,
            },
            rotation: Rotation::None,
            carrier: Carrier { follows: config::Carrier::Peer, on: true, losses: 0, wait_s: 0.0, left_s: None },
            session: Some(Session {
                noise: "…".into(),
                cipher: "aes-256-gcm".into(),
                post_quantum: true,
                epoch: 3,
                age_s: 41.2,
                preshared_key: None,
            }),
            path: Line {
                mtu: Some(1440),
                rtt_ms: Some(12.1),
                jitter_ms: Some(0.3),
                tx: traffic(1_234, 1_234_567, Some(0.0), 1440),
                rx: traffic(7, 588, Some(0.25), 1272),
            },
            paths: Vec::new(),
            drops: Drops { replayed: 3, too_big: 1, ..Drops::default() },
            offloads: Default::default(),
            sandbox: Some(Sandbox {
                capabilities: vec!["net_admin".into()],
                no_new_privs: true,
                seccomp: true,
                landlock: Some(7),
                user: Some("tieline".into()),
            }),
        }
    }

    #[test]
    fn a_link_that_is_up() {
        let shown = "\
tl0 (hq): up since 2026-01-02T03:04:05Z
  this end  tlpub1own…
  peer      tlpub1…
            at 203.0.113.7:7311
  carrier   on
  detection 3 s of silence take the link down
  session   aes-256-gcm, post-quantum, epoch 3, 41 s old
  path      mtu 1440, rtt 12.1 ms, jitter 0.3 ms
  sent      1234 packets, 1.2 MB, 0.0 % lost lately, mtu 1440 since 2026-01-02T03:04:06Z
  received  7 packets, 588 B, 25.0 % lost lately, mtu 1272 since 2026-01-02T03:04:06Z
  dropped   3 replayed, 1 too big
  sandbox   user tieline, net_admin, seccomp, landlock
";
        assert_eq!(show(&status()), shown);
    }

    #[test]
    fn a_link_that_is_down_shows_only_what_is_known() {
        let nothing =
            Traffic { packets: 0, bytes: 0, loss_ratio: None, dropped_ratio: None, mtu: None, mtu_since: None };
        let status = Status {
            state: State::Down,
            peer: Peer { endpoint: None, ..status().peer },
            carrier: Carrier { on: false, losses: 1, ..status().carrier },
            session: None,
            path: Line { mtu: None, rtt_ms: None, jitter_ms: None, tx: nothing.clone(), rx: nothing },
            drops: Drops::default(),
            sandbox: Some(Sandbox::default()),
            ..status()
        };
        let shown = "\
tl0 (hq): down since 2026-01-02T03:04:05Z
  this end  tlpub1own…
  peer      tlpub1…
  carrier   off, lost once in the last minute
  detection 3 s of silence take the link down
  session   none
  sent      0 packets, 0 B
  received  0 packets, 0 B
  sandbox   no capabilities, no seccomp, no landlock
";
        assert_eq!(show(&status), shown);
    }

    #[test]
    fn a_link_that_is_damped_does_not_count_as_up() {
        assert!(status().passes());
        let damped = Status { damped: Some("2026-01-02T03:04:09Z".into()), ..status() };
        assert!(!damped.passes());
        let first = "tl0 (hq): damped until 2026-01-02T03:04:09Z; the interface has no carrier\n";
        assert!(show(&damped).starts_with(first), "{}", show(&damped));
        let always = Status { carrier: Carrier { follows: config::Carrier::Always, ..damped.carrier }, ..damped };
        let first = "tl0 (hq): damped until 2026-01-02T03:04:09Z; its routes are not set\n";
        assert!(show(&always).starts_with(first), "{}", show(&always));
        let theirs = Peer { damped: always.damped.clone(), ..always.peer.clone() };
        let held = Status { peer: theirs, ..always };
        let first =
            "tl0 (hq): damped until 2026-01-02T03:04:09Z; the peer holds the link back, as it comes and goes there\n";
        assert!(!held.passes() && show(&held).starts_with(first), "{}", show(&held));
    }

    #[test]
    fn a_problem_is_shown_below_the_state() {
        let problem = Problem {
            code: "interface-down".into(),
            text: "interface tl0 is administratively down (ip link set tl0 up)".into(),
            since: Some("2026-01-02T03:04:05Z".into()),
        };
        let down = Status { state: State::AdminDown, problem: Some(problem), ..status() };
        assert!(!down.passes());
        let shown = "\
tl0 (hq): administratively down since 2026-01-02T03:04:05Z
  problem   interface tl0 is administratively down (ip link set tl0 up), since 2026-01-02T03:04:05Z
  this end ";
        assert!(show(&down).starts_with(shown), "{}", show(&down));
    }

    #[test]
    fn what_this_end_drops_is_shown_beside_what_the_way_loses() {
        let mut status = status();
        status.path.tx.dropped_ratio = Some(0.63);
        status.drops = Drops { interface_queue: 630, interface_no_carrier: 7, interface_down: 2, ..Drops::default() };
        let shown = show(&status);
        let sent = "sent      1234 packets, 1.2 MB, 0.0 % lost lately, 63.0 % dropped by this end lately, mtu";
        assert!(shown.contains(sent), "{shown}");
        let dropped = "dropped   630 by the interface's full queue, 7 without a carrier, 2 with the interface down\n";
        assert!(shown.contains(dropped), "{shown}");
    }

    #[test]
    fn each_path_has_a_line() {
        let fibre = NamedPath {
            name: "fibre".into(),
            interface: Some("wan0".into()),
            local: Some("192.0.2.9".into()),
            endpoint: Some("203.0.113.7:7311".into()),
            priority: 10,
            state: State::Up,
            since: Some("2026-01-02T03:04:05Z".into()),
            used: true,
            rtt_ms: Some(12.14),
            loss_ratio: Some(0.125),
        };
        let lte = NamedPath {
            name: "lte".into(),
            interface: None,
            local: None,
            endpoint: None,
            state: State::Down,
            since: None,
            used: false,
            rtt_ms: None,
            loss_ratio: None,
            ..fibre.clone()
        };
        let status = Status { paths: vec![fibre, lte], ..status() };
        let shown = "
  ways out  fibre (wan0, 192.0.2.9) to 203.0.113.7:7311: up since 2026-01-02T03:04:05Z, in use, rtt 12.1 ms, 12.5 % of checks lost lately
            lte: down
  sent ";
        assert!(show(&status).contains(shown), "{}", show(&status));
    }

    #[test]
    fn a_line_that_comes_and_goes() {
        let damped = |on, left_s, wait_s| carrier(&Carrier { on, left_s, wait_s, losses: 5, ..status().carrier });
        let lately = "lost 5 times in the last minute";
        assert_eq!(damped(false, Some(1.54), 2.0), format!("off, damped: waits 1.5 s more, {lately}"));
        assert_eq!(damped(false, None, 4.0), format!("off, damped: will wait 4 s once the peer is back, {lately}"));
        assert_eq!(damped(true, None, 4.0), format!("on, damped until it has been up for 5 minutes, {lately}"));
        assert_eq!(carrier(&Carrier::default()), "always on");
    }

    #[test]
    fn a_change_of_keys_that_is_under_way() {
        let line = |status: &Status| show(status).lines().find(|line| line.contains("rotation")).map(str::to_owned);
        assert_eq!(line(&status()), None);
        let mut waiting = Status { rotation: Rotation::Waiting, ..status() };
        assert_eq!(line(&waiting).unwrap(), "  rotation  waiting for the peer: the link is still under the old key");
        waiting.rotation = Rotation::Listed;
        waiting.peer.public_keys.push("tlpub1other".into());
        assert_eq!(line(&waiting).unwrap(), "  rotation  the peer may also use tlpub1other");
    }

    #[test]
    fn amounts_of_bytes() {
        let amounts = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_999, "1.0 MB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (number, text) in amounts {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn names_and_files_are_told_apart() {
        for name in ["tl0", "tl0.100", "toml"] {
            assert_eq!(interface_of(name.as_ref()).unwrap(), name);
        }
        for file in ["missing.toml", "./missing", "/etc/missing"] {
            assert!(interface_of(file.as_ref()).is_err(), "{file}");
        }
    }
}
