//! Memory that has held a secret: none is given back with the secret in it, and what holds keys never leaves the RAM.
//!
//! - [`Wiping`], the program's allocator, overwrites every block that is freed, whosever it is: nobody has to be trusted to do so,
//!   nor to say which of his blocks were secret. No packet allocates, so it costs the packet path nothing.
//! - [`lock`] makes the `vault`, a few pages that are not swapped out nor dumped. In it lies what belongs to
//!   [`secret::Guarded`], and all that aws-lc allocates (`aws_lc`). Nothing else is locked.
//!
//! Stacks are the business of those who work with keys: [`secret::leaving_no_trace`].
//!
//! A program that embeds a link does the same with `#[global_allocator] static MEMORY: Wiping = Wiping;` and [`lock`].

mod aws_lc;
mod vault;

use crate::keys::secret;
use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;
use std::io;
use vault::Vault;

static VAULT: Vault = Vault::new();

/// Makes the pages for keys, and locks them into RAM (mlock(2)). To be called once, before there is a key in the process, which it
/// serves from then on; before, and where it is full, keys lie with everything else.
///
/// # Errors
/// As mlock(2), where the user may not lock so much (`RLIMIT_MEMLOCK`): keys are kept together and out of core dumps then, but
/// may be swapped out. As mmap(2), where there is no memory.
pub fn lock() -> io::Result<()> {
    VAULT.open()
}

/// How many blocks with keys have found no room in the pages for them so far.
pub fn unlocked_blocks() -> u64 {
    VAULT.refused()
}

/// The system's allocator, which wipes what it frees, and serves secrets from the pages that are locked.
pub struct Wiping;

// SAFETY: blocks come from the vault or the system, both of which give blocks of the size and alignment asked for that are nobody
// else's, and each goes back to where it came from. `realloc` is the trait's own: a new block, a copy, and the old one freed here.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let kept = if is_secret(layout) { VAULT.take(layout.size()) } else { None };
        // SAFETY: the caller's promise is System's condition too.
        kept.unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let kept = if is_secret(layout) { VAULT.take(layout.size()) } else { None };
        // SAFETY: as above. What the vault gives is zero.
        kept.unwrap_or_else(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives up a block of this size.
        unsafe { wipe(block, layout.size()) };
        if !VAULT.give_back(block, layout.size()) {
            // SAFETY: it is not the vault's, so System gave it, for this layout.
            unsafe { System.dealloc(block, layout) };
        }
    }
}

fn is_secret(layout: Layout) -> bool {
    layout.align() == secret::ALIGNMENT
}

/// Overwrites memory that nobody reads any more, in a way that the compiler cannot take for needless.
///
/// # Safety
/// `length` bytes from `block` on are the caller's alone to write.
unsafe fn wipe(block: *mut u8, length: usize) {
    // SAFETY: the caller's promise.
    unsafe { block.write_bytes(0, length) };
    // SAFETY: there is no instruction in it. It may read memory for all the compiler knows, so the zeros must be there.
    unsafe { asm!("/* {0} */", in(reg) block, options(nostack, preserves_flags, readonly)) };
}

#[cfg(test)]
mod tests;
