//! The rhythm both loops keep: sleep, work until there is nothing more, let others run, look again, sleep.

use std::io;
use std::thread;

/// What a look at everything that was ready came to. The most there was of anything is what counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    /// There is nothing to do.
    Idle,
    /// Something was there, and is dealt with; there may be more.
    Busy,
    /// As much was there as one turn takes, and is dealt with: there is more.
    Full,
    /// The loop was told to end.
    Stop,
}

/// A loop, as far as its rhythm goes.
pub(super) trait Turns {
    /// Sleeps until something can be read, and says what: a bit for each descriptor.
    fn wait(&mut self) -> io::Result<u32>;

    /// Takes one batch of what `ready` names, without waiting.
    fn turn(&mut self, ready: u32) -> io::Result<Turn>;
}

/// Turns after which a loop that always found something looks at what it did not wait for.
const TURNS: usize = 64;

/// Runs a loop until it is told to end, or has nothing to live on.
///
/// A loop asleep is woken by the first packet of many, before its sender comes to the second: each packet would be a batch of
/// its own and pay for two changes of thread. So the loop gives way before it sleeps, and what others have written by then
/// is one batch. Where nobody else wants to run that is one short system call. No packet in hand ever waits for it.
///
/// After a full turn it does not: the next batch is there already, and to give way may take as long as the others have work. Under
/// a flood of small datagrams it took the loop from the processor after each few of them, and the queue behind it overflowed.
pub(super) fn run(mut of: impl Turns) -> io::Result<()> {
    loop {
        let ready = of.wait()?;
        for _ in 0..TURNS {
            match of.turn(ready)? {
                Turn::Full => {}
                Turn::Busy => thread::yield_now(),
                Turn::Idle => break,
                Turn::Stop => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A loop whose turns are written down, each with the number of the wait it belongs to.
    struct Script<'a> {
        turns: VecDeque<Turn>,
        waits: u32,
        seen: &'a mut Vec<u32>,
    }

    impl Turns for Script<'_> {
        fn wait(&mut self) -> io::Result<u32> {
            self.waits += 1;
            Ok(self.waits)
        }

        fn turn(&mut self, ready: u32) -> io::Result<Turn> {
            self.seen.push(ready);
            Ok(self.turns.pop_front().unwrap_or(Turn::Stop))
        }
    }

    fn waits_of(turns: impl IntoIterator<Item = Turn>) -> Vec<u32> {
        let mut seen = Vec::new();
        run(Script { turns: turns.into_iter().collect(), waits: 0, seen: &mut seen }).unwrap();
        seen
    }

    #[test]
    fn it_sleeps_when_there_is_nothing() {
        assert_eq!(waits_of([Turn::Full, Turn::Busy, Turn::Idle, Turn::Busy]), [1, 1, 1, 2, 2]);
    }

    #[test]
    fn what_always_has_something_hides_nothing_for_ever() {
        for always in [Turn::Full, Turn::Busy] {
            let waits = waits_of(std::iter::repeat_n(always, 3 * TURNS));
            assert_eq!(waits.last(), Some(&4), "{always:?}");
        }
    }
}
