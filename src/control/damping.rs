//! Damping: how long a line that came back must stay before the rest of the machine is told.
//!
//! Each loss makes routing daemons and their neighbours compute, and flows move. A line that comes and goes would have them do
//! nothing else, so after a few losses in a row it waits before it counts again, longer and longer; a line that fails now and then
//! never waits. Losses themselves are never held back.
//!
//! A pure state machine: time is an argument, and what is due is read off the state.

use crate::protocol::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// As many losses …
const FREE: usize = 3;
/// … within this long are nothing to wait for; one more is.
const WINDOW: Duration = Duration::from_secs(60);
/// The first wait; each loss after that doubles it …
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// … up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// What happened before the link was up for so long without a break counts no more.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// The link's ups and downs, and what follows for those who go by it.
#[derive(Debug, Default)]
pub(super) struct Damping {
    /// Since when the link is up.
    up_since: Option<Time>,
    /// The losses of the last [`WINDOW`] before the last of them.
    losses: VecDeque<Time>,
    /// How long a link that comes up has to stay.
    wait: Duration,
}

impl Damping {
    /// The link came up; again is no news.
    pub(super) fn rise(&mut self, now: Time) {
        self.up_since.get_or_insert(now);
    }

    /// The link went down; again is no news.
    pub(super) fn fall(&mut self, now: Time) {
        self.forget(now);
        if self.up_since.take().is_none() {
            return;
        }
        self.losses.retain(|loss| now.since(*loss) <= WINDOW);
        self.losses.push_back(now);
        self.wait = match self.wait {
            Duration::ZERO if self.losses.len() <= FREE => Duration::ZERO,
            Duration::ZERO => FIRST_WAIT,
            wait => (wait * 2).min(LONGEST_WAIT),
        };
    }

    /// Whether the line counts as there.
    pub(super) fn is_on(&self, now: Time) -> bool {
        self.on_at().is_some_and(|at| at <= now)
    }

    /// When it will, if nothing happens before; later than now only while it waits.
    pub(super) fn on_at(&self) -> Option<Time> {
        self.up_since.map(|since| since + self.wait)
    }

    /// How long the link has to stay up, now or when it comes up next, before it counts: zero while it is not damped.
    pub(super) fn wait(&mut self, now: Time) -> Duration {
        self.forget(now);
        self.wait
    }

    /// How many losses of the last minute are remembered.
    pub(super) fn losses(&mut self, now: Time) -> usize {
        self.forget(now);
        self.losses.iter().filter(|loss| now.since(**loss) <= WINDOW).count()
    }

    fn forget(&mut self, now: Time) {
        if self.up_since.is_some_and(|since| now.since(since) >= FORGOTTEN) {
            self.losses.clear();
            self.wait = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: f64) -> Time {
        Time(0) + Duration::from_secs_f64(seconds)
    }

    /// Lets the link be up from `up` to `down`, and gives the wait that was in force.
    fn flap(damping: &mut Damping, up: f64, down: f64) -> Duration {
        damping.rise(at(up));
        let wait = damping.on_at().unwrap().since(at(up));
        damping.fall(at(down));
        wait
    }

    #[test]
    fn it_begins_off_and_comes_with_the_first_up() {
        let mut damping = Damping::default();
        assert!(!damping.is_on(at(9.0)) && damping.on_at().is_none());
        damping.rise(at(10.0));
        assert!(damping.is_on(at(10.0)));
        damping.fall(at(11.0));
        assert!(!damping.is_on(at(11.0)));
    }

    #[test]
    fn three_losses_in_a_minute_are_free_and_the_fourth_waits_a_second_then_two_up_to_thirty() {
        let mut damping = Damping::default();
        let waits: Vec<u64> =
            (0..11).map(|n| flap(&mut damping, f64::from(n) * 10.0, f64::from(n) * 10.0 + 5.0).as_secs()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30]);
        damping.rise(at(200.0));
        assert!(!damping.is_on(at(229.999)) && damping.is_on(at(230.0)));
    }

    #[test]
    fn seldom_losses_never_wait() {
        let mut damping = Damping::default();
        for n in 0..100 {
            // Three in a minute, for ever.
            let up = f64::from(n) * 20.001;
            assert_eq!(flap(&mut damping, up, up + 19.0), Duration::ZERO, "loss {n}");
        }
        let mut damping = Damping::default();
        for up in [0.0, 20.0, 40.0, 60.0] {
            flap(&mut damping, up - f64::min(up, 1.0), up);
        }
        assert_eq!(damping.wait(at(60.0)), FIRST_WAIT, "the fourth exactly a minute after the first");
    }

    #[test]
    fn five_minutes_up_and_all_is_forgotten_however_long_it_was_down_before() {
        let mut damping = Damping::default();
        (0..4).for_each(|n| _ = flap(&mut damping, f64::from(n), f64::from(n) + 0.5));
        assert_eq!(damping.wait(at(10_000.0)), FIRST_WAIT, "time spent down heals nothing");
        assert_eq!(damping.losses(at(10_000.0)), 0);
        assert_eq!(flap(&mut damping, 10_000.0, 10_299.9), FIRST_WAIT);
        assert_eq!(damping.wait(at(10_300.0)), FIRST_WAIT * 2);
        assert_eq!(flap(&mut damping, 20_000.0, 20_300.0), FIRST_WAIT * 2);
        assert_eq!(damping.wait(at(20_300.0)), Duration::ZERO);
        assert_eq!(damping.losses(at(20_300.0)), 1, "this loss is the first of the next ones");
    }

    #[test]
    fn what_happens_twice_counts_once() {
        let mut damping = Damping::default();
        damping.rise(at(1.0));
        damping.rise(at(5.0));
        assert_eq!(damping.on_at(), Some(at(1.0)));
        (0..9).for_each(|n| damping.fall(at(f64::from(n) + 6.0)));
        assert_eq!((damping.losses(at(20.0)), damping.wait(at(20.0))), (1, Duration::ZERO));
    }

    /// The times at which the line came on and went off, over a course of (down, up) spells in milliseconds.
    fn course(spells: &[(u32, u32)]) -> Vec<(Time, Time)> {
        let (mut damping, mut now, mut shown) = (Damping::default(), Time(0), Vec::new());
        let ms = |n: u32| Duration::from_millis(n.into());
        for (down, up) in spells {
            let rise = now + ms(*down);
            let fall = rise + ms(*up);
            damping.rise(rise);
            let on = damping.on_at().unwrap();
            assert!(on >= rise, "before the link was up");
            assert_eq!(damping.is_on(fall), on <= fall);
            damping.fall(fall);
            assert!(!damping.is_on(fall), "a loss was held back");
            if on < fall {
                shown.push((on, fall));
            }
            now = fall;
        }
        shown
    }

    fn spell() -> impl Strategy<Value = (u32, u32)> {
        let time = || prop_oneof![1..200u32, 200..5_000u32, 5_000..60_000u32, 250_000..400_000u32];
        (time(), time())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// What it is for: whatever the link does, those who go by it see few losses: four at once, then waits of 1, 2, 4, 8 and 16 s
        /// between them, and the next is over a minute after the first.
        #[test]
        fn however_it_flaps_few_losses_are_seen(spells in prop::collection::vec(spell(), 1..60)) {
            let shown = course(&spells);
            for (n, (_, first)) in shown.iter().enumerate() {
                let within = |limit| shown[n..].iter().filter(|(_, off)| off.since(*first) <= limit).count();
                prop_assert!(within(WINDOW) <= 9, "{} in a minute", within(WINDOW));
            }
        }

        /// A wait is never in force without four losses within a minute since the last five minutes of rest.
        #[test]
        fn only_a_line_that_flaps_waits(spells in prop::collection::vec(spell(), 1..60)) {
            let (mut damping, mut now, mut losses, mut flapped) = (Damping::default(), Time(0), Vec::<Time>::new(), false);
            for (down, up) in spells {
                let rise = now + Duration::from_millis(down.into());
                damping.rise(rise);
                let wait = damping.on_at().unwrap().since(rise);
                prop_assert_eq!(wait > Duration::ZERO, flapped);
                prop_assert!(wait <= LONGEST_WAIT);
                now = rise + Duration::from_millis(up.into());
                if up >= 300_000 {
                    (losses, flapped) = (Vec::new(), false);
                }
                losses.push(now);
                flapped |= losses.len() >= 4 && now.since(losses[losses.len() - 4]).as_secs_f64() <= 60.0;
                damping.fall(now);
            }
        }
    }
}
