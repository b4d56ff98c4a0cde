//! A running process's memory, searched for bytes that should, or should not, be in it.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes to look for, and what they are.
#[derive(Clone, Debug)]
pub struct Needle {
    pub name: String,
    bytes: Vec<u8>,
}

impl Needle {
    /// Looks for the halves of what is longer than 16 bytes: half a key left behind is bad enough.
    pub fn of(name: &str, bytes: &[u8]) -> Vec<Needle> {
        let needle = |bytes: &[u8]| Needle { name: name.to_owned(), bytes: bytes.to_vec() };
        bytes.chunks_exact(bytes.len().min(16)).map(needle).collect()
    }
}

/// Where one was found.
#[derive(Debug)]
#[allow(dead_code)] // for whoever reads why a test failed
pub struct Found {
    pub name: String,
    /// The mapping's name, or its addresses where it has none.
    pub mapping: String,
    /// Whether the mapping is locked into RAM.
    pub locked: bool,
}

struct Mapping {
    range: Range<u64>,
    name: String,
    flags: Vec<String>,
}

impl Mapping {
    fn is_locked(&self) -> bool {
        self.flags.iter().any(|flag| flag == "lo")
    }
}

/// Every place in the process's memory, freed or in use, where one of the needles is.
pub fn search(process: u32, needles: &[Needle]) -> Vec<Found> {
    let mut begins = vec![false; 1 << 16];
    for needle in needles {
        begins[start(&needle.bytes)] = true;
    }
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let mut found = Vec::new();
    for mapping in mappings(process) {
        let Some(bytes) = read(&memory, &mapping.range) else { continue };
        let candidates = (0..bytes.len().saturating_sub(1)).filter(|at| begins[start(&bytes[*at..])]);
        for at in candidates {
            for needle in needles.iter().filter(|needle| bytes[at..].starts_with(&needle.bytes)) {
                found.push(Found {
                    name: needle.name.clone(),
                    mapping: mapping.name.clone(),
                    locked: mapping.is_locked(),
                });
            }
        }
    }
    found
}

fn start(bytes: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// All of a mapping; nothing where the kernel has none to give, as for its own pages and devices.
fn read(memory: &File, range: &Range<u64>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    memory.read_exact_at(&mut bytes, range.start).ok()?;
    Some(bytes)
}

/// What /proc/PID/smaps says (proc(5)).
fn mappings(process: u32) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{process}/smaps")).unwrap().lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        if let Some(("VmFlags", flags)) = line.split_once(':') {
            mappings.last_mut().unwrap().flags = flags.split_whitespace().map(str::to_owned).collect();
        } else if let Some((begin, end)) = fields[0].split_once('-') {
            let address = |hex| u64::from_str_radix(hex, 16).unwrap();
            let name = fields.get(5).unwrap_or(&fields[0]).to_string();
            mappings.push(Mapping { range: address(begin)..address(end), name, flags: Vec::new() });
        }
    }
    assert!(!mappings.is_empty());
    mappings
}

/// The bytes that are locked into RAM, and those of them in grains of 256 that are not all zero.
pub fn locked_bytes(process: u32) -> (usize, usize) {
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let locked = mappings(process).into_iter().filter(Mapping::is_locked);
    let bytes: Vec<u8> = locked.flat_map(|mapping| read(&memory, &mapping.range).unwrap()).collect();
    let used = bytes.chunks(256).filter(|grain| grain.iter().any(|byte| *byte != 0));
    (bytes.len(), used.map(<[u8]>::len).sum())
}
