//! The line in use: control messages, Reports and liveness, where the peer is, and the end of it all.

use super::{DownCause, Event, Keepalive, Link, Output};
use crate::protocol::{
    Time,
    constants::*,
    control::{Message, Report, State},
    crypto::CryptoFailure,
    halves::{EgressUpdate, Path},
    paths::{Cookie, Step},
    session::LaneSet,
    slots::Kind,
    ways::Use,
};
use std::{sync::Arc, time::Duration};

impl Link {
    /// A control message was opened under the session with this index.
    pub(super) fn on_control(&mut self, now: Time, path: Path, index: u32, counter: u64, bytes: &[u8]) {
        self.on_opened(now, index);
        let Some(session) = self.slots.get_mut(index) else {
            return;
        };
        let (kind, rank, lanes) = (session.kind, session.rank, session.agreed.lanes.clone());
        let is_cur = self.slots.cur.as_ref().is_some_and(|cur| cur.index == index);
        let message = Message::parse(bytes);
        let by_line = self.paths.current.is_some_and(|current| current.peer == path.peer);
        if by_line || matches!(message, Ok(Message::Report(_))) {
            self.paths.carries(now);
        }
        match message {
            Ok(Message::Rekey { side, part, parts, bytes }) => {
                self.on_rekey_part(now, index, side, (part, parts, bytes));
            }
            Ok(_) if kind == Kind::Boot => self.levels.drops.malformed.bump(),
            Ok(Message::Report(report)) => {
                if report.lanes.len() != lanes.len() {
                    self.levels.drops.malformed.bump();
                    return;
                }
                self.watch_key(now, path, &report, &lanes);
                if self.measure.newer(rank, counter) {
                    self.on_report(now, &report, &lanes);
                }
            }
            Ok(Message::PathCheck { lane, .. } | Message::PathAnswer { lane, .. })
                if usize::from(lane) >= lanes.len() =>
            {
                self.levels.drops.malformed.bump();
            }
            Ok(Message::PathCheck { lane, cookie }) => self.on_path_check(now, path, lane, cookie),
            Ok(Message::PathAnswer { cookie, .. }) => {
                if let Some(proven) = self.paths.answer(now, cookie) {
                    self.move_to(proven);
                }
                self.on_followed(now, cookie);
            }
            Ok(Message::WayCheck { first, second, cookie, hold_us }) => {
                let hold = Duration::from_micros(hold_us.into());
                self.on_way_check(now, path, (rank, counter), Use { first, second, hold }, cookie);
            }
            Ok(Message::WayAnswer { cookie, time_us }) => self.ways.own.answer(now, path, cookie, time_us),
            Ok(Message::SameKey { here, there }) if is_cur => {
                self.same_key.told(now, [here, there], self.detection());
            }
            Ok(Message::SameKey { .. }) => {}
            Ok(Message::Goodbye) if is_cur => self.on_goodbye(now),
            Ok(Message::Probe { mark, size }) => self.on_probe(now, mark, size),
            Ok(Message::ProbeAck { mark, size }) => self.sizes.acked(now, mark, size),
            Ok(Message::Mtu { own, has, ask }) => self.on_offer((rank, counter), own, has, ask),
            Ok(Message::Goodbye) => {}
            Ok(Message::Unknown(_)) | Err(_) => self.levels.drops.malformed.bump(),
        }
    }

    /// Silence this long means that the peer is gone.
    pub(super) fn detection(&self) -> Duration {
        let own = Duration::from_millis(self.params.interval_ms().into()) * MISSED_REPORTS;
        self.slots.cur.as_ref().map_or(own, |cur| cur.agreed.detection)
    }

    /// When something was last opened, or the session to open it under was established; before the line went dead.
    pub(super) fn last_heard(&self) -> Option<Time> {
        let cur = self.slots.cur.as_ref()?;
        let heard = self.slots.heard().unwrap_or_default().max(cur.established);
        Some(self.paths.dead_since().map_or(heard, |dead| heard.min(dead)))
    }

    /// A Report that is newer than all before, about `lanes`: those of another family tell nothing of the present ones.
    fn on_report(&mut self, now: Time, report: &Report, lanes: &LaneSet) {
        if self.slots.cur.as_ref().is_some_and(|cur| Arc::ptr_eq(&cur.agreed.lanes, lanes)) {
            self.measure.apply(now, report, lanes);
        }
        self.hold.hear(now, report.held_s);
        let before = self.liveness;
        let news = self.liveness.hear(now, report.state);
        let [was_down, is_down] = [before.peer, Some(report.state)].map(|said| said == Some(State::AdminDown));
        if was_down != is_down {
            self.event(Event::PeerInterface { up: was_down });
        }
        if self.liveness.rests() {
            self.paths.set_probes(Vec::new()); // the peer is there: nobody needs to be found
        }
        let cause = match (is_down, before.state) {
            (true, _) => Some(DownCause::PeerAdminDown),
            (false, State::Up) => Some(DownCause::PeerDown),
            (false, _) => None,
        };
        self.after_state(now, before.state, cause);
        if news {
            self.report_soon(now);
        }
    }

    /// A Report shows whether one machine made it and those under other sessions.
    fn watch_key(&mut self, now: Time, path: Path, report: &Report, lanes: &LaneSet) {
        let (Some(cur), Some(current)) = (&self.slots.cur, self.paths.current) else {
            return;
        };
        if Arc::ptr_eq(&cur.agreed.lanes, lanes) {
            self.same_key.hear(report.time_us);
        } else {
            self.same_key.hear_late(report.time_us, path.peer);
        }
        self.same_key.judge(now, current.peer, self.detection());
    }

    /// Says whether one key is on two machines, where that is news.
    pub(super) fn note_same_key(&mut self, now: Time) {
        if let Some(known) = self.same_key.news(now) {
            self.event(Event::SameKey(known));
        }
    }

    /// Tells the peer that its key is on another machine too, with each Report: which of the two
    /// has the link is never sure.
    fn send_same_key(&mut self, index: u32) {
        let here = self.paths.current.map(|path| path.peer);
        if let Some(here) = here
            && let Some(there) = self.same_key.other(here)
        {
            self.send_control(index, &Message::SameKey { here, there }.encode(), None);
        }
    }

    /// The operator took this end's interface down, or up again: the peer is told at once.
    pub(super) fn set_interface(&mut self, now: Time, up: bool) {
        let before = self.liveness.state;
        if self.liveness.set_interface(now, up) {
            let cause = (before == State::Up).then_some(DownCause::AdminDown);
            self.after_state(now, before, cause);
            self.report_soon(now);
            // An end that was Down did not watch for silence: what it would have seen is due.
            self.run_liveness(now);
            self.run_ask(now);
        }
    }

    /// What a change of state brings with it.
    fn after_state(&mut self, now: Time, before: State, cause: Option<DownCause>) {
        let state = self.liveness.state;
        if state == before {
            return;
        }
        if state == State::Up {
            self.attempt = None;
            self.opener.reset(now);
            self.paths.set_probes(Vec::new()); // an answer that comes now moves nothing
        }
        self.event(Event::State { state, cause });
    }

    pub(super) fn lose(&mut self, now: Time, cause: DownCause) {
        let before = self.liveness.state;
        if self.liveness.lose(now) {
            self.after_state(now, before, Some(cause));
            self.report_soon(now);
        }
    }

    /// When silence will mean that the peer is gone.
    pub(super) fn next_liveness(&self) -> Option<Time> {
        if !self.liveness.watches() {
            return None;
        }
        Some(self.last_heard().map_or(self.liveness.since, |heard| heard + self.detection()))
    }

    pub(super) fn run_liveness(&mut self, now: Time) {
        if self.next_liveness().is_some_and(|at| at <= now) {
            self.lose(now, DownCause::Silence(self.detection()));
        }
    }

    /// When the peer is asked whether it is there: its Report is overdue. The answer counts as heard, like everything.
    pub(super) fn next_ask(&self) -> Option<Time> {
        if !self.liveness.watches() || self.paths.current.is_none() {
            return None;
        }
        let interval = self.detection() / MISSED_REPORTS;
        let spacing = (interval / ASKS_PER_INTERVAL).max(REPORT_SPACING);
        let overdue = self.last_heard()? + interval + spacing;
        Some(self.asked.map_or(overdue, |asked| overdue.max(asked + spacing)))
    }

    fn run_ask(&mut self, now: Time) {
        if self.next_ask().is_none_or(|at| at > now) {
            return;
        }
        self.asked = Some(now);
        if let (Some(path), Ok(cookie)) = (self.paths.current, self.entropy.bytes()) {
            self.send_path_check(path, cookie);
        }
    }

    fn on_goodbye(&mut self, now: Time) {
        let Some(rank) = self.slots.cur.as_ref().map(|cur| cur.rank) else {
            return;
        };
        self.lose(now, DownCause::Goodbye);
        self.slots.wipe_up_to(now, rank);
        self.expire_sessions();
    }

    /// A Report now, unless two have just been sent, which is what coming Up takes: then a little later. Without a session there is
    /// nobody to tell.
    fn report_soon(&mut self, now: Time) {
        if self.slots.cur.is_none() {
            return;
        }
        let earliest = self.last_reports[0].map_or(now, |older| older + REPORT_SPACING * 2);
        if earliest <= now {
            self.send_report(now);
        } else {
            self.report_at = Some(self.report_at.map_or(earliest, |at| at.min(earliest)));
        }
    }

    pub(super) fn send_report(&mut self, now: Time) {
        let Some(cur) = &self.slots.cur else {
            return;
        };
        let (index, lanes) = (cur.index, cur.agreed.lanes.clone());
        let held_s = self.hold.seconds(now, &self.liveness);
        let report = Report { held_s, ..self.measure.report(now, self.liveness.state, &lanes) };
        self.last_reports = [self.last_reports[1], Some(now)];
        let next = now + Duration::from_millis(self.params.interval_ms().into());
        // That it holds the link back no longer, the peer is to know at once.
        self.report_at = Some(self.hold.ends(&self.liveness).filter(|_| held_s > 0).map_or(next, |end| end.min(next)));
        self.send_control(index, &Message::Report(report).encode(), None);
        self.send_same_key(index);
    }

    pub(super) fn run_reports(&mut self, now: Time) {
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if due(self.confirm_at) {
            self.confirm_at = Some(now + CONFIRM_SPACING);
            self.send_report(now);
        } else if due(self.report_at) {
            self.send_report(now);
            self.probe_while_down();
        }
        self.run_ask(now);
        self.run_keepalive(now);
    }

    pub(super) fn next_keepalive(&self) -> Option<Time> {
        self.slots.cur.as_ref().map(|_| self.keepalive.checked + KEEPALIVE)
    }

    /// An empty datagram on a lane that sealed nothing since this was last looked at.
    fn run_keepalive(&mut self, now: Time) {
        let Some(cur) = self.slots.cur.as_ref().filter(|_| self.next_keepalive().is_some_and(|at| at <= now)) else {
            return;
        };
        let sealed = cur.levels.sealed.get();
        let idle = sealed == self.keepalive.sealed;
        if idle {
            self.outputs.push_back(Output::Egress(EgressUpdate::Keepalive));
        }
        self.keepalive = Keepalive { checked: now, sealed: sealed + u64::from(idle) };
    }

    /// The newest datagram of `cur` came from or to another address than the one in use.
    pub(super) fn on_moved(&mut self, now: Time, index: u32, path: Path) {
        let (Some(cur), Some(current)) = (&self.slots.cur, self.paths.current) else {
            return;
        };
        if cur.index != index {
            return;
        }
        let elsewhere = self.ways.own.lead() && current.socket != path.socket;
        if elsewhere || self.is_led(now) {
            // Where the line goes is not for the network to say.
        } else if current.peer == path.peer {
            if !self.has_left(now, path) {
                self.use_local(path);
            }
        } else if !self.ways.own.knows(path)
            && self.paths.is_candidate(now, path)
            && let (Ok(c1), Ok(c2)) = (self.entropy.bytes(), self.entropy.bytes())
        {
            self.paths.begin(now, path, [c1, c2], self.measure.rtt());
            self.run_paths(now);
        }
    }

    /// The line leaves from another address or socket of this end's.
    pub(super) fn use_local(&mut self, path: Path) {
        if self.paths.current != Some(path) {
            self.paths.set_local(path);
            self.ways.own.use_path(path);
            self.announce_current();
        }
    }

    pub(super) fn move_to(&mut self, path: Path) {
        let moved = self.paths.current.is_none_or(|current| current.peer != path.peer);
        self.paths.set(path);
        self.announce_current();
        if moved {
            self.event(Event::Path(path));
        }
    }

    pub(super) fn run_paths(&mut self, now: Time) {
        match self.paths.step(now) {
            Some(Step::Ask) => {
                let asked = self
                    .paths
                    .check()
                    .map(|check| [(check.candidate, check.candidate_cookie), (check.current, check.current_cookie)]);
                for (path, cookie) in asked.into_iter().flatten() {
                    self.send_path_check(path, cookie);
                }
            }
            Some(Step::Move(path)) => {
                self.ways.own.use_path(path);
                self.move_to(path);
            }
            Some(Step::Stay) | None => {}
        }
    }

    pub(super) fn send_path_check(&mut self, path: Path, cookie: Cookie) {
        if let Some(cur) = &self.slots.cur {
            let index = cur.index;
            self.send_control(index, &Message::PathCheck { lane: 0, cookie }.encode(), Some(path));
        }
    }

    /// Answers only what came from where this end sends, to where it sends from, and on that path: a copier's own
    /// address draws nothing.
    fn on_path_check(&mut self, now: Time, from: Path, lane: u8, cookie: Cookie) {
        let (Some(current), Some(index)) = (self.paths.current, self.slots.cur.as_ref().map(|cur| cur.index)) else {
            return;
        };
        let local_fits = current.local == from.local || current.local.is_none() && !self.has_left(now, from);
        let is_line = match self.ways.own.lead() {
            true => self.ways.own.uses(from),
            false => from.peer == current.peer && local_fits,
        };
        if is_line {
            self.send_control(index, &Message::PathAnswer { lane, cookie }.encode(), Some(from));
        }
    }

    /// While the link is down, and no operator wants it so: asks every address known whether the peer is there.
    fn probe_while_down(&mut self) {
        // Where there are ways, all of them are asked anyway.
        if self.liveness.watches() || self.slots.cur.is_none() || self.ways.own.lead() {
            return;
        }
        let socket = self.paths.current.map_or(self.socket, |path| path.socket);
        let mut probes: Vec<(Cookie, Path)> = Vec::new();
        for path in self.next_places(socket) {
            let current = self.paths.current.filter(|current| current.peer == path.peer);
            let path = current.unwrap_or(path);
            match self.entropy.bytes() {
                Ok(cookie) => probes.push((cookie, path)),
                Err(CryptoFailure) => return self.event(Event::CryptoFailed),
            }
        }
        for (cookie, path) in probes.clone() {
            self.send_path_check(path, cookie);
        }
        self.paths.set_probes(probes);
    }

    /// Sends the next Goodbye of a closing end.
    pub(super) fn say_goodbye(&mut self, now: Time) {
        let Some(closing) = self.closing.as_mut().filter(|c| c.goodbyes_left > 0 && c.next <= now) else {
            return;
        };
        closing.goodbyes_left -= 1;
        closing.next = now + GOODBYE_SPACING;
        if let Some(index) = self.slots.cur.as_ref().map(|cur| cur.index) {
            self.send_control(index, &Message::Goodbye.encode(), None);
        }
    }
}
