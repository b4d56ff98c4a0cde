//! The rhythm both loops keep: sleep, work until there is nothing more, let others run, look again, sleep.

use std::io;
use std::thread;

/// What a look at everything that was ready came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Something was there, and is dealt with; there may be more.
    Busy,
    /// There is nothing to do.
    Idle,
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

/// Runs a loop until it is told to end, or has nothing to live on.
///
/// A loop asleep is woken by the first packet of many, before its sender comes to the second: each packet would be a batch of
/// its own and pay for two changes of thread. So the loop gives way before it sleeps, and what others have written by then
/// is one batch. Where nobody else wants to run that is one short system call. No packet in hand ever waits for it.
pub(super) fn run(mut of: impl Turns) -> io::Result<()> {
    loop {
        let ready = of.wait()?;
        loop {
            match of.turn(ready)? {
                Turn::Busy => thread::yield_now(),
                Turn::Idle => break,
                Turn::Stop => return Ok(()),
            }
        }
    }
}
