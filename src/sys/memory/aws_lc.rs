//! aws-lc's heap: AEAD keys, private keys and hash states lie there, beyond the reach of Rust's allocator. aws-lc looks for these three
//! functions by name when it is linked (its `crypto/mem.c`), and uses them for all it allocates. It puts no packet there.

use super::{VAULT, wipe};
use libc::{c_void, size_t};
use std::ptr::null_mut;

/// Before each block stands its size, which [`OPENSSL_memory_free`] is not told; blocks stay aligned as malloc(3)'s are.
const BEFORE: usize = 16;

/// As malloc(3).
#[unsafe(no_mangle)]
extern "C" fn OPENSSL_memory_alloc(size: size_t) -> *mut c_void {
    let Some(whole) = size.checked_add(BEFORE) else {
        return null_mut();
    };
    // SAFETY: malloc(3) has no condition.
    let start = VAULT.take(whole).unwrap_or_else(|| unsafe { libc::malloc(whole) }.cast());
    if start.is_null() {
        return null_mut();
    }
    // SAFETY: the block begins with `BEFORE` bytes that are ours, aligned for any type; the rest has the size asked for.
    unsafe {
        start.cast::<size_t>().write(size);
        start.add(BEFORE).cast()
    }
}

/// As free(3), wiping.
///
/// # Safety
/// `block` is from [`OPENSSL_memory_alloc`], and not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn OPENSSL_memory_free(block: *mut c_void) {
    // SAFETY: the caller's promise: the block begins `BEFORE` bytes earlier, and its size stands there.
    unsafe {
        let whole = OPENSSL_memory_get_size(block) + BEFORE;
        let start = block.cast::<u8>().sub(BEFORE);
        wipe(start, whole);
        if !VAULT.give_back(start, whole) {
            libc::free(start.cast());
        }
    }
}

/// The size asked for.
///
/// # Safety
/// `block` is from [`OPENSSL_memory_alloc`].
#[unsafe(no_mangle)]
unsafe extern "C" fn OPENSSL_memory_get_size(block: *mut c_void) -> size_t {
    // SAFETY: the caller's promise: it stands there.
    unsafe { block.cast::<u8>().sub(BEFORE).cast::<size_t>().read() }
}
