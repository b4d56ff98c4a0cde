//! What an IP header must say before a frame is sealed or written to the interface.
//!
//! Not a parser: it asks only whether the frame is IPv4 or IPv6 and whether its own lengths fit it, which is what
//! a kernel would ask first. Checksums, options and extension headers are the kernel's business.

use std::ops::Range;

/// The IP version a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// The frame is not an IP packet: too short, of another version, or with lengths that contradict it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

const V4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub(super) const V6_HEADER: usize = 40;

impl Version {
    /// Where source and destination lie in the header, one behind the other.
    pub(super) const fn addresses(self) -> Range<usize> {
        match self {
            Version::V4 => 12..20,
            Version::V6 => 8..40,
        }
    }
}

/// Tells the frame's version if its header is all there and claims no more bytes than the frame has.
///
/// Bytes behind the claimed end are let pass, as every IP stack does (RFC 791 §3.1, RFC 8200 §3).
///
/// # Errors
/// [`Malformed`] if it is anything else.
pub fn check(frame: &[u8]) -> Result<Version, Malformed> {
    match frame.first().ok_or(Malformed)? >> 4 {
        4 => check_v4(frame),
        6 => check_v6(frame),
        _ => Err(Malformed),
    }
}

fn check_v4(frame: &[u8]) -> Result<Version, Malformed> {
    let header: &[u8; V4_HEADER] = frame.first_chunk().ok_or(Malformed)?;
    let header_length = usize::from(header[0] & 0x0F) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fits = V4_HEADER <= header_length && header_length <= total && total <= frame.len();
    fits.then_some(Version::V4).ok_or(Malformed)
}

fn check_v6(frame: &[u8]) -> Result<Version, Malformed> {
    let header: &[u8; V6_HEADER] = frame.first_chunk().ok_or(Malformed)?;
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let fits = V6_HEADER + payload <= frame.len();
    fits.then_some(Version::V6).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(words: u8, total: u16, length: usize) -> Vec<u8> {
        let mut frame = vec![0; length];
        frame[0] = 0x40 | words;
        frame[2..4].copy_from_slice(&total.to_be_bytes());
        frame
    }

    fn v6(payload: u16, length: usize) -> Vec<u8> {
        let mut frame = vec![0; length];
        frame[0] = 0x60;
        frame[4..6].copy_from_slice(&payload.to_be_bytes());
        frame
    }

    #[test]
    fn lengths_that_agree_pass() {
        assert_eq!(check(&v4(5, 20, 20)), Ok(Version::V4));
        assert_eq!(check(&v4(15, 60, 60)), Ok(Version::V4));
        assert_eq!(check(&v4(5, 28, 46)), Ok(Version::V4)); // padded to an Ethernet minimum
        assert_eq!(check(&v6(0, 40)), Ok(Version::V6));
        assert_eq!(check(&v6(1240, 1280)), Ok(Version::V6));
    }

    #[test]
    fn lengths_that_lie_do_not() {
        for frame in [
            vec![],
            vec![0x45],
            v4(5, 20, 20)[..19].to_vec(),
            v4(4, 20, 20), // header shorter than its fixed part
            v4(6, 20, 24), // header longer than the packet
            v4(5, 19, 20), // packet shorter than its header
            v4(5, 21, 20), // cut short
            v6(0, 40)[..39].to_vec(),
            v6(1, 40),      // cut short
            vec![0x05; 64], // no version at all
            vec![0xF5; 64],
        ] {
            assert_eq!(check(&frame), Err(Malformed), "{frame:02x?}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_claims_no_more_than_there_is(frame in proptest::collection::vec(any::<u8>(), 0..100)) {
            match check(&frame) {
                Ok(Version::V4) => {
                    let total = u16::from_be_bytes([frame[2], frame[3]]) as usize;
                    prop_assert!(frame[0] >> 4 == 4 && (20..=frame.len()).contains(&total));
                }
                Ok(Version::V6) => {
                    let payload = u16::from_be_bytes([frame[4], frame[5]]) as usize;
                    prop_assert!(frame[0] >> 4 == 6 && 40 + payload <= frame.len());
                }
                Err(Malformed) => {}
            }
        }

        #[test]
        fn every_cut_of_a_good_packet_is_caught(length in 20usize..1500, cut in any::<prop::sample::Index>()) {
            let frame = v4(5, length as u16, length);
            prop_assert_eq!(check(&frame), Ok(Version::V4));
            prop_assert_eq!(check(&frame[..cut.index(length)]), Err(Malformed));
        }
    }
}
