//! The header before each frame of a TUN device with `IFF_VNET_HDR`: the legacy `virtio_net_hdr` of 10 bytes
//! (virtio 1.2 §5.1.6, `<linux/virtio_net.h>`).
//!
//! Only its bytes and what they mean, not whether they fit the frame: that is [`super::split`]'s to see.

/// Bytes of the header.
pub const LENGTH: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What the kernel asks of us about a frame read, or we of it about one written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The checksum yet to be completed, if there is one: only the sum of the pseudo-header is stored.
    pub checksum: Option<Place>,
    /// How the frame is to be cut into segments, if it is.
    pub gso: Option<Gso>,
    /// Bytes of all headers of the frame. The kernel writes what it likes here, so a reader cannot rely on it.
    pub header_length: u16,
}

/// Where a checksum lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the bytes it covers begin, in the frame; they end with it.
    pub start: u16,
    /// Where it is stored, from `start`.
    pub offset: u16,
}

/// How a frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// By which rules.
    pub kind: Kind,
    /// Whether CWR is set: the first segment alone has it (RFC 3168 §6.1.2).
    pub ecn: bool,
    /// Payload bytes of every segment but the last.
    pub size: u16,
}

/// The rules a frame is cut by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// A run of UDP datagrams, over either: not UFO, which would be one datagram in fragments.
    Udp,
}

/// The header asks for something that was never agreed with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl Header {
    /// Reads a header. Numbers are in the machine's own order, as on every TUN device that was not told otherwise.
    ///
    /// # Errors
    /// [`Unknown`] for flags and kinds, UFO among them, that are never asked for.
    pub fn parse(bytes: [u8; LENGTH]) -> Result<Self, Unknown> {
        let [flags, kind, bytes @ ..] = bytes;
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        // DATA_VALID tells that a checksum was seen to be right, which asks for nothing.
        if flags & !(NEEDS_CSUM | DATA_VALID) != 0 {
            return Err(Unknown);
        }
        let place = Place { start: number(4), offset: number(6) };
        Ok(Header {
            checksum: (flags & NEEDS_CSUM != 0).then_some(place),
            gso: Gso::parse(kind, number(2))?,
            header_length: number(0),
        })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; LENGTH] {
        let (flags, start, offset) = self.checksum.map_or((0, 0, 0), |place| (NEEDS_CSUM, place.start, place.offset));
        let (kind, size) = self.gso.map_or((GSO_NONE, 0), |gso| (gso.code(), gso.size));
        let [a, b] = self.header_length.to_ne_bytes();
        let [c, d] = size.to_ne_bytes();
        let [e, f] = start.to_ne_bytes();
        let [g, h] = offset.to_ne_bytes();
        [flags, kind, a, b, c, d, e, f, g, h]
    }
}

impl Gso {
    fn parse(code: u8, size: u16) -> Result<Option<Self>, Unknown> {
        let (kind, ecn) = match (code & !GSO_ECN, code & GSO_ECN != 0) {
            (GSO_NONE, false) => return Ok(None),
            (GSO_TCPV4, ecn) => (Kind::Tcp4, ecn),
            (GSO_TCPV6, ecn) => (Kind::Tcp6, ecn),
            (GSO_UDP_L4, false) => (Kind::Udp, false),
            _ => return Err(Unknown),
        };
        Ok(Some(Gso { kind, ecn, size }))
    }

    fn code(self) -> u8 {
        let kind = match self.kind {
            Kind::Tcp4 => GSO_TCPV4,
            Kind::Tcp6 => GSO_TCPV6,
            Kind::Udp => GSO_UDP_L4,
        };
        if self.ecn { kind | GSO_ECN } else { kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn the_bytes_are_the_kernels() {
        let header = Header {
            checksum: Some(Place { start: 20, offset: 16 }),
            gso: Some(Gso { kind: Kind::Tcp4, ecn: true, size: 1448 }),
            header_length: 52,
        };
        assert_eq!(header.encode(), [1, 0x81, 52, 0, 0xA8, 5, 20, 0, 16, 0]);
        assert_eq!(Header::default().encode(), [0; 10]);
    }

    #[test]
    fn data_valid_asks_for_nothing() {
        assert_eq!(Header::parse([2, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Ok(Header::default()));
    }

    #[test]
    fn only_known_flags_and_kinds_are_taken() {
        for code in 0..=u8::MAX {
            let known = matches!(code, 0 | 1 | 4 | 5 | 0x81 | 0x84);
            assert_eq!(Header::parse([0, code, 0, 0, 9, 9, 0, 0, 0, 0]).is_ok(), known, "{code:#x}");
            assert_eq!(Header::parse([code, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_ok(), code < 4, "{code:#x}");
        }
    }

    proptest! {
        #[test]
        fn what_is_parsed_encodes_to_itself(mut bytes: [u8; LENGTH], kind in prop::sample::select(&[0u8, 1, 4, 5, 0x81, 0x84][..])) {
            (bytes[0], bytes[1]) = (bytes[0] & NEEDS_CSUM, kind);
            let header = Header::parse(bytes).unwrap();
            prop_assert_eq!(Header::parse(header.encode()), Ok(header));
            if header.checksum.is_some() && header.gso.is_some() {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
