//! Where secrets lie while they are in use: in a block of the heap of their own, so that nothing is left behind when their owner
//! moves, and nothing else is wiped, locked or leaked with them.
//!
//! The blocks have an [`ALIGNMENT`] that nothing else asks for. By it an allocator can tell them from everything else: that of the
//! `tieline` program ([`crate::sys::memory`]) keeps them on locked pages. With another allocator they are blocks like any.

use std::fmt;
use std::ops::{Deref, DerefMut};

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Of every block with a secret in it, in bytes.
pub const ALIGNMENT: usize = 256;

/// Makes a block of the heap that holds a `T` one for secrets. It does not wipe: that is its owner's or the allocator's business.
#[repr(align(256))]
pub struct Guarded<T>(pub T);

const _: () = assert!(align_of::<Guarded<u8>>() == ALIGNMENT);

/// What is wiped of the stack, in bytes: more than twice what the deepest work with keys takes (ML-KEM's).
const STACK: usize = 64 << 10;

/// Does a piece of work with secrets, and wipes the stack it ran on: whatever the code within, of whatever crate, left there. To be
/// done before anything else is: a value made on that stack may take what lies in its gaps along to where it is kept.
pub fn leaving_no_trace<T>(work: impl FnOnce() -> T) -> T {
    /// Keeps what the compiler makes of `work` in a frame that begins where that of [`overwrite_stack`] does.
    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let result = apart(work);
    overwrite_stack();
    result
}

/// Wipes the calling thread's stack below its caller's own frame. The thread must have 64 KB left of it.
#[inline(never)]
pub fn overwrite_stack() {
    [0u64; STACK / 8][..].zeroize();
}

/// `N` secret bytes. Wiped when dropped; not shown by `Debug`; compared in constant time.
pub struct Secret<const N: usize = 32>(Box<Guarded<[u8; N]>>);

impl<const N: usize> Secret<N> {
    /// A copy; the original is its owner's to wipe.
    #[must_use]
    pub fn copy_of(bytes: &[u8; N]) -> Self {
        let mut secret = Self::default();
        secret.copy_from_slice(bytes);
        secret
    }
}

impl<const N: usize> Default for Secret<N> {
    /// Zeros, to be filled in place.
    fn default() -> Self {
        Self(Box::new(Guarded([0; N])))
    }
}

impl<const N: usize> From<[u8; N]> for Secret<N> {
    fn from(mut bytes: [u8; N]) -> Self {
        let secret = Self::copy_of(&bytes);
        bytes.zeroize();
        secret
    }
}

impl<const N: usize> Deref for Secret<N> {
    type Target = [u8; N];

    fn deref(&self) -> &[u8; N] {
        &self.0.0
    }
}

impl<const N: usize> DerefMut for Secret<N> {
    fn deref_mut(&mut self) -> &mut [u8; N] {
        &mut self.0.0
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl<const N: usize> PartialEq for Secret<N> {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(&other[..]).into()
    }
}

impl<const N: usize> Eq for Secret<N> {}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}
