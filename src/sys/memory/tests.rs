use super::*;
use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use secret::{Secret, leaving_no_trace};
use std::fs;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::slice;

/// All unit tests run with it.
#[global_allocator]
static MEMORY: Wiping = Wiping;

/// A vault of a test's own, open, whether or not it could be locked.
fn open() -> &'static Vault {
    let vault: &'static Vault = Box::leak(Box::new(Vault::new()));
    let _ = vault.open();
    vault
}

/// What the block holds.
fn bytes(block: *mut u8, length: usize) -> &'static mut [u8] {
    // SAFETY: the tests hold these blocks alone, and never free the memory itself.
    unsafe { slice::from_raw_parts_mut(block, length) }
}

#[test]
fn a_vault_gives_each_block_to_one_and_takes_it_back() {
    let vault = open();
    let sizes = [1, 256, 257, 600, 4096, 0];
    for _ in 0..100 {
        let blocks = sizes.map(|size| (vault.take(size).unwrap(), size));
        for (n, (block, size)) in (1..).zip(blocks) {
            assert_eq!(block.addr() % secret::ALIGNMENT, 0);
            bytes(block, size).fill(n);
        }
        for (n, (block, size)) in (1..).zip(blocks) {
            assert!(bytes(block, size).iter().all(|byte| *byte == n), "{size} bytes are someone else's too");
            assert!(vault.give_back(block, size));
        }
        assert_eq!(vault.in_use(), 0);
    }
}

#[test]
fn a_full_vault_refuses_and_says_so() {
    let vault = open();
    let mut blocks = Vec::new();
    while let Some(block) = vault.take(1000) {
        blocks.push(block);
    }
    assert_eq!((blocks.len(), vault.refused()), (64, 1));
    vault.give_back(blocks[17], 1000);
    assert_eq!(vault.take(1000), Some(blocks[17]));
    assert!(!vault.give_back(Box::leak(Box::new(1u8)), 1), "a block of somebody else's");
    assert_eq!(vault.take(4097), None, "no key is so long");
    assert_eq!(Vault::new().take(1), None, "it is not open");
}

#[test]
fn a_vault_is_locked_and_left_out_of_core_dumps_and_nothing_else_is() {
    let vault = Vault::new();
    vault.open().unwrap();
    let inside = vault.take(1).unwrap().addr();
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut flags, mut here) = ("", false);
    for line in maps.lines() {
        if let Some((start, end)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')) {
            let address = |hex| usize::from_str_radix(hex, 16);
            here = matches!((address(start), address(end)), (Ok(start), Ok(end)) if (start..end).contains(&inside));
        } else if let Some(all) = line.strip_prefix("VmFlags:").filter(|_| here) {
            flags = all;
        }
    }
    let has = |flag| flags.split_whitespace().any(|other| other == flag);
    assert!(has("lo") && has("dd"), "{flags}");
}

#[test]
fn freed_blocks_are_wiped_also_those_that_grow() {
    // In a process of one thread: here another one might be given what was just freed, and write to it.
    // SAFETY: the child does nothing but allocate, which the C library leaves possible, and ends.
    match unsafe { fork() }.unwrap() {
        // SAFETY: it ends the process, and runs nothing that the parent has registered for its own end.
        ForkResult::Child => unsafe { libc::_exit(left_behind()) },
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert_eq!(
                ended,
                WaitStatus::Exited(child, 0),
                "1: nothing was kept; 2: of what has moved; 3: of what is freed"
            );
        }
    }
}

/// What is wrong with the blocks that a growing one leaves.
fn left_behind() -> i32 {
    // Too large for the C library to keep anything of its own in it, too small to be unmapped.
    let old = Layout::from_size_align(40_000, 8).unwrap();
    // SAFETY: a block is freed once, with its layout, and read only while the allocator keeps the page.
    unsafe {
        let block = Wiping.alloc(old);
        bytes(block, 40_000).fill(0xa5);
        let grown = Wiping.realloc(block, old, 60_000);
        if grown == block || bytes(grown, 40_000).iter().any(|byte| *byte != 0xa5) {
            return 1;
        }
        if bytes(block, 40_000).contains(&0xa5) {
            return 2;
        }
        Wiping.dealloc(grown, Layout::from_size_align(60_000, 8).unwrap());
        if bytes(grown, 60_000).contains(&0xa5) { 3 } else { 0 }
    }
}

/// Fills some stack with a pattern.
#[inline(never)]
fn scribble() {
    black_box(&mut [0xa5u8; 50_000]);
}

/// How much of that is there.
#[inline(never)]
fn traces() -> usize {
    let mut unused = MaybeUninit::<[u8; 60_000]>::uninit();
    let seen: *mut u8 = black_box(&mut unused).as_mut_ptr().cast();
    // SAFETY: the bytes are this frame's; whatever is in them is what the test is after, and they are read as the machine has them.
    (0..60_000).filter(|n| unsafe { seen.add(*n).read_volatile() } == 0xa5).count()
}

#[test]
fn the_stack_is_wiped_below() {
    scribble();
    assert!(traces() > 10_000, "the instrument does not work");
    leaving_no_trace(scribble);
    assert_eq!(traces(), 0);
}

#[test]
fn keys_of_aws_lc_and_secrets_lie_in_the_vault() {
    let _ = lock();
    // Other tests use it at the same time, so that this cannot be counted exactly.
    let keys: Vec<_> = (0..20).map(|_| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).unwrap())).collect();
    assert!(VAULT.in_use() >= 20 * 3, "aws-lc allocates elsewhere");
    drop(keys);
    let secret = Secret::<32>::default();
    assert!(VAULT.position(secret.as_ptr()).is_some(), "secrets lie elsewhere");
    assert!(VAULT.position(Box::new(1u8).as_ref()).is_none(), "what is not secret lies with the secrets");
}
