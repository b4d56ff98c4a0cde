//! How the control side hands things to a loop: in order, without a lock on the loop's packet path.
//!
//! A loop looks at one flag in each batch, and only when it is set takes the lock. The bell ends its sleep, so that
//! a replaced key is dropped on an idle line too.

use super::sockets::Sockets;
use crate::keys::secret::overwrite_stack;
use crate::protocol::SocketId;
use crate::sys::udp::UdpSocket;
use crate::sys::wake::Wake;
use std::io;
use std::mem;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a loop can be told.
pub(super) enum Command<U> {
    /// Something for its half of the session.
    Update(U),
    /// Use this socket too.
    Open(SocketId, Arc<UdpSocket>),
    /// Let go of this one.
    Close(SocketId),
    /// End.
    Stop,
}

/// The way in to one loop.
pub(super) struct Handoff<U> {
    waiting: AtomicBool,
    commands: Mutex<Vec<Command<U>>>,
    bell: Wake,
}

impl<U> Handoff<U> {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Handoff { waiting: AtomicBool::new(false), commands: Mutex::default(), bell: Wake::new()? })
    }

    /// Leaves a command for the loop and wakes it.
    pub(super) fn push(&self, command: Command<U>) {
        let mut commands = self.lock();
        commands.push(command);
        // Under the lock, so that it is set whenever the list is not empty.
        self.waiting.store(true, Ordering::Release);
        drop(commands);
        self.bell.ring();
    }

    /// Moves all commands, in order, into the empty `taken`; the two lists change places, so neither is allocated anew.
    pub(super) fn take(&self, taken: &mut Vec<Command<U>>) {
        if !self.waiting.load(Ordering::Acquire) {
            return;
        }
        let mut commands = self.lock();
        self.waiting.store(false, Ordering::Relaxed);
        mem::swap(&mut *commands, taken);
    }

    /// To be called when poll(2) says it rang, and before [`take`](Self::take): what is pushed in between rings again.
    pub(super) fn still(&self) {
        self.bell.still();
    }

    /// Whether something lies there that the loop has not taken.
    #[cfg(test)]
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Command<U>>> {
        // Nothing under this lock can leave the list half changed.
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<U> AsFd for Handoff<U> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// A loop's end of a [`Handoff`], with the sockets it was told of.
pub(super) struct Inbox<U> {
    handoff: Arc<Handoff<U>>,
    taken: Vec<Command<U>>,
    pub(super) sockets: Sockets,
}

impl<U> Inbox<U> {
    pub(super) fn new(handoff: Arc<Handoff<U>>) -> Self {
        Inbox { handoff, taken: Vec::new(), sockets: Sockets::default() }
    }

    /// Follows all commands left so far, in order, giving `apply` the updates. Breaks when told to end.
    ///
    /// What an update took away may have been used on this thread's stack, where the AEAD's code leaves keys: that is wiped.
    pub(super) fn take(&mut self, apply: impl FnMut(U)) -> ControlFlow<()> {
        self.handoff.take(&mut self.taken);
        if self.taken.is_empty() {
            return ControlFlow::Continue(());
        }
        let flow = self.follow(apply);
        overwrite_stack();
        flow
    }

    fn follow(&mut self, mut apply: impl FnMut(U)) -> ControlFlow<()> {
        for command in self.taken.drain(..) {
            match command {
                Command::Update(update) => apply(update),
                // The control side's table of the same size took it, so there is room.
                Command::Open(id, socket) => drop(self.sockets.open(id, socket)),
                Command::Close(id) => self.sockets.close(id),
                Command::Stop => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    /// As [`Handoff::still`].
    pub(super) fn still(&self) {
        self.handoff.still();
    }
}

impl<U> AsFd for Inbox<U> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handoff.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::wake::wait_readable;

    fn updates(taken: &mut Vec<Command<u32>>) -> Vec<u32> {
        let number = |command| match command {
            Command::Update(n) => n,
            _ => panic!("not an update"),
        };
        taken.drain(..).map(number).collect()
    }

    #[test]
    fn commands_come_once_and_in_order() {
        let (handoff, mut taken) = (Handoff::new().unwrap(), Vec::new());
        handoff.take(&mut taken);
        assert!(taken.is_empty());
        (0..5).for_each(|n| handoff.push(Command::Update(n)));
        handoff.take(&mut taken);
        assert_eq!(updates(&mut taken), [0, 1, 2, 3, 4]);
        handoff.take(&mut taken);
        assert!(taken.is_empty());
    }

    #[test]
    fn a_sleeping_loop_misses_nothing() {
        const COUNT: u32 = 20_000;
        let handoff = Arc::new(Handoff::new().unwrap());
        let looping = std::thread::spawn({
            let handoff = handoff.clone();
            move || {
                let (mut got, mut taken) = (Vec::new(), Vec::new());
                while got.len() < COUNT as usize {
                    wait_readable([Some(handoff.as_fd())], None).unwrap();
                    handoff.still();
                    handoff.take(&mut taken);
                    got.extend(updates(&mut taken));
                }
                got
            }
        });
        (0..COUNT).for_each(|n| handoff.push(Command::Update(n)));
        assert!(looping.join().unwrap().into_iter().eq(0..COUNT));
    }
}
