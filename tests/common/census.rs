//! Packets seen on a wire, counted by kind, every one's lengths and checksums verified in full. It shares no code with the
//! packet room it judges.

use std::collections::{BTreeMap, HashMap};

const FRAGMENT_HEADER: u8 = 44;

/// What is not as it should be.
pub type Wrong = &'static str;

/// What was seen: IPv4 first, IPv6 second.
#[derive(Debug, Default)]
pub struct Census {
    pub tcp: [usize; 2],
    pub udp: [usize; 2],
    pub icmp: [usize; 2],
    pub fragments: [usize; 2],
    /// Datagrams put together from fragments.
    pub reassembled: [usize; 2],
    /// Bytes of the largest packet.
    pub longest: usize,
    pieces: HashMap<Vec<u8>, Pieces>,
}

/// The fragments of a datagram so far.
#[derive(Debug, Default)]
struct Pieces {
    /// By offset.
    by_offset: BTreeMap<usize, Vec<u8>>,
    /// Known from the last one.
    length: Option<usize>,
}

/// What an IP header says of what follows it.
struct Datagram<'a> {
    family: usize,
    addresses: &'a [u8],
    protocol: u8,
    /// Of fragments: identification, offset in bytes, whether more follow.
    fragment: Option<(&'a [u8], usize, bool)>,
    payload: &'a [u8],
}

impl Census {
    /// Verifies and counts a packet.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take(&mut self, packet: &[u8]) -> Result<(), Wrong> {
        self.longest = self.longest.max(packet.len());
        let datagram = match packet[0] >> 4 {
            4 => v4(packet)?,
            6 => v6(packet)?,
            _ => return Err("not IP"),
        };
        match datagram.fragment {
            None => self.take_whole(&datagram),
            Some((identification, offset, more)) => {
                self.fragments[datagram.family] += 1;
                let key = [datagram.addresses, &[datagram.protocol], identification].concat();
                let pieces = self.pieces.entry(key.clone()).or_default();
                if let Some(whole) = pieces.add(offset, more, datagram.payload) {
                    self.pieces.remove(&key);
                    self.reassembled[datagram.family] += 1;
                    return self.take_whole(&Datagram { payload: &whole, fragment: None, ..datagram });
                }
                Ok(())
            }
        }
    }

    /// The counts, in words.
    pub fn summary(&self) -> String {
        let Self { tcp, udp, icmp, fragments, reassembled, longest, pieces } = self;
        format!(
            "TCP {tcp:?}, UDP {udp:?}, ICMP {icmp:?}, fragments {fragments:?} of which {reassembled:?} datagrams came, {} did \
             not, longest {longest}",
            pieces.len()
        )
    }

    fn take_whole(&mut self, datagram: &Datagram<'_>) -> Result<(), Wrong> {
        let payload = datagram.payload;
        let length = payload.len() as u32;
        let pseudo = sum(datagram.addresses) + u64::from(datagram.protocol) + u64::from(length);
        let (counts, expected) = match datagram.protocol {
            6 => (&mut self.tcp, pseudo),
            17 => {
                ensure(u32::from(u16_at(payload, 4)) == length, "UDP length")?;
                ensure(u16_at(payload, 6) != 0, "UDP without a checksum")?;
                (&mut self.udp, pseudo)
            }
            1 => (&mut self.icmp, 0),
            58 => (&mut self.icmp, pseudo),
            _ => return Err("a protocol nobody here speaks"),
        };
        counts[datagram.family] += 1;
        ensure(fold(expected + sum(payload)) == 0xFFFF, "checksum")
    }
}

impl Pieces {
    fn add(&mut self, offset: usize, more: bool, payload: &[u8]) -> Option<Vec<u8>> {
        self.by_offset.insert(offset, payload.to_vec());
        if !more {
            self.length = Some(offset + payload.len());
        }
        let mut whole = Vec::new();
        for (&offset, piece) in &self.by_offset {
            if offset != whole.len() {
                return None;
            }
            whole.extend(piece);
        }
        (self.length == Some(whole.len())).then_some(whole)
    }
}

fn ensure(holds: bool, otherwise: Wrong) -> Result<(), Wrong> {
    holds.then_some(()).ok_or(otherwise)
}

fn v4(packet: &[u8]) -> Result<Datagram<'_>, Wrong> {
    let header = usize::from(packet[0] & 0x0F) * 4;
    ensure(usize::from(u16_at(packet, 2)) == packet.len() && header <= packet.len(), "IPv4 length")?;
    ensure(fold(sum(&packet[..header])) == 0xFFFF, "IPv4 header checksum")?;
    let (more, offset) = (u16_at(packet, 6) & 0x2000 != 0, usize::from(u16_at(packet, 6) & 0x1FFF) * 8);
    Ok(Datagram {
        family: 0,
        addresses: &packet[12..20],
        protocol: packet[9],
        fragment: (more || offset > 0).then_some((&packet[4..6], offset, more)),
        payload: &packet[header..],
    })
}

fn v6(packet: &[u8]) -> Result<Datagram<'_>, Wrong> {
    ensure(usize::from(u16_at(packet, 4)) + 40 == packet.len(), "IPv6 length")?;
    let (mut protocol, mut payload) = (packet[6], &packet[40..]);
    if protocol == 0 {
        // Hop-by-hop options: the kernel's own multicast listener reports have them.
        protocol = payload[0];
        payload = &payload[8 + 8 * usize::from(payload[1])..];
    }
    let mut fragment = None;
    if protocol == FRAGMENT_HEADER {
        let place = u16_at(payload, 2);
        fragment = Some((&payload[4..8], usize::from(place & 0xFFF8), place & 1 != 0));
        protocol = payload[0];
        payload = &payload[8..];
    }
    Ok(Datagram { family: 1, addresses: &packet[8..40], protocol, fragment, payload })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// RFC 1071, carries not yet folded in.
fn sum(bytes: &[u8]) -> u64 {
    let (words, last) = bytes.as_chunks::<2>();
    let words: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    words + last.first().map_or(0, |&last| u64::from(last) << 8)
}

fn fold(mut sum: u64) -> u64 {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum
}
