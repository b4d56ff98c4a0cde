//! The pages that keys lie on: few, locked into RAM, and left out of core dumps. An allocator of its own, for blocks that are small,
//! few, and seldom made.

use crate::keys::secret::ALIGNMENT;
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// All of it, in bytes. A link uses a fifth with one session and a quarter with two, and any user may lock so much (`RLIMIT_MEMLOCK`
/// was 64 KB for long).
const SIZE: usize = 64 << 10;
/// Blocks begin at multiples of this.
const GRAIN: usize = ALIGNMENT;
const GRAINS: usize = SIZE / GRAIN;
/// No key is longer, in bytes: that of ML-KEM-768 has 2,400. What is longer is some buffer and would fill the pages.
const LONGEST: usize = 4 << 10;

/// See the module.
pub(super) struct Vault {
    /// Null until it is open.
    pages: AtomicPtr<u8>,
    /// Which grains are in use.
    used: Mutex<[bool; GRAINS]>,
    refused: AtomicU64,
}

impl Vault {
    pub(super) const fn new() -> Vault {
        Vault { pages: AtomicPtr::new(null_mut()), used: Mutex::new([false; GRAINS]), refused: AtomicU64::new(0) }
    }

    /// Makes the pages, once, and locks them: see [`super::lock`].
    pub(super) fn open(&self) -> io::Result<()> {
        let _one_at_a_time = self.used();
        if self.pages.load(Ordering::Acquire).is_null() {
            self.pages.store(map()?, Ordering::Release);
        }
        let pages = self.pages.load(Ordering::Acquire).cast();
        // SAFETY: the pages are ours and stay.
        if unsafe { libc::madvise(pages, SIZE, libc::MADV_DONTDUMP) } != 0 || unsafe { libc::mlock(pages, SIZE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// A block of zeros of at least this size, aligned to [`GRAIN`]; `None` where it is not open, or has no room.
    pub(super) fn take(&self, size: usize) -> Option<*mut u8> {
        let pages = self.pages.load(Ordering::Acquire);
        if pages.is_null() || size > LONGEST {
            return None;
        }
        let grains = size.div_ceil(GRAIN);
        let mut used = self.used();
        let Some(at) = used.windows(grains.max(1)).position(|free| !free.contains(&true)) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        used[at..at + grains].fill(true);
        Some(pages.wrapping_add(at * GRAIN))
    }

    /// Takes back what [`take`](Self::take) gave for this size, wiped; says whether it was its own.
    pub(super) fn give_back(&self, block: *mut u8, size: usize) -> bool {
        let Some(at) = self.position(block) else { return false };
        self.used()[at..at + size.div_ceil(GRAIN)].fill(false);
        true
    }

    /// The grain a block of its own begins with.
    pub(super) fn position(&self, block: *const u8) -> Option<usize> {
        let pages = self.pages.load(Ordering::Acquire);
        let offset = block.addr().wrapping_sub(pages.addr());
        (!pages.is_null() && offset < SIZE).then_some(offset / GRAIN)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many grains are in use.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.used().iter().filter(|used| **used).count()
    }

    /// It is held for a search and no longer, and nothing is allocated under it.
    fn used(&self) -> MutexGuard<'_, [bool; GRAINS]> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages of zeros that are nobody else's.
fn map() -> io::Result<*mut u8> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, where the kernel likes, touches no memory there is.
    let pages = unsafe { libc::mmap(null_mut(), SIZE, access, kind, -1, 0) };
    if pages == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(pages.cast()) }
}
