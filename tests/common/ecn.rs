//! What a packet on a wire says of congestion (RFC 3168).

use std::net::IpAddr;

/// Values of the two bits in the IP header.
pub const ECT_0: u8 = 2;
pub const CE: u8 = 3;

/// The two bits in a packet's IP header.
pub fn ecn(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[1] & 3 } else { packet[1] >> 4 & 3 }
}

/// A piece of a TCP stream, one packet or a super-packet.
#[derive(Debug)]
pub struct Segment {
    pub ecn: u8,
    /// Congestion Window Reduced.
    pub cwr: bool,
    sequence: u32,
    pub length: usize,
}

impl Segment {
    /// What goes over TCP `to` an address, unless there is no payload in the packet.
    pub fn of(packet: &[u8], to: IpAddr) -> Option<Self> {
        let (destination, tcp) = match to {
            IpAddr::V4(to) if packet[0] >> 4 == 4 && packet[9] == 6 => {
                (packet[16..20] == to.octets(), &packet[usize::from(packet[0] & 15) * 4..])
            }
            IpAddr::V6(to) if packet[0] >> 4 == 6 && packet[6] == 6 => (packet[24..40] == to.octets(), &packet[40..]),
            _ => return None,
        };
        let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
        let length = tcp.len() - usize::from(tcp[12] >> 4) * 4;
        (destination && length > 0).then_some(Self { ecn: ecn(packet), cwr: tcp[13] & 0x80 != 0, sequence, length })
    }

    /// Whether this is what cutting makes of a part of `whole`: marked alike, and CWR on nothing but its beginning.
    pub fn is_cut_from(&self, whole: &Self) -> bool {
        let offset = self.sequence.wrapping_sub(whole.sequence) as usize;
        let cwr = whole.cwr && offset == 0;
        offset + self.length <= whole.length && (self.ecn, self.cwr) == (whole.ecn, cwr)
    }
}
