//! The device as the loops see it: frames with what the kernel says of them, whether or not it has virtio headers.

use crate::packet::Layer;
use crate::packet::virtio::{self, Header};
use crate::sys::offloads::TunOffloads;
use crate::sys::tun::{self, Refused, VNET_HEADER};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most pieces of one frame: its own head and the payloads of those merged with it.
pub(super) const PIECES: usize = 64;

/// The TUN or TAP device and what it can do.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    layer: Layer,
    offloads: TunOffloads,
}

/// A frame that was read.
pub(super) struct Frame {
    /// What the kernel says of it.
    pub header: Header,
    /// Its bytes.
    pub length: usize,
}

impl Device {
    /// A device from [`tun::create`], of the kind that carries `layer`; `offloads` as that granted them.
    #[must_use]
    pub fn new(fd: OwnedFd, layer: Layer, offloads: TunOffloads) -> Device {
        Device { fd, layer, offloads }
    }

    /// Reads a frame: as much as fits into `near`, the rest into `far`. `None` when there is none.
    ///
    /// # Errors
    /// When the device is gone.
    pub(super) fn read(&self, near: &mut [u8], far: &mut [u8]) -> io::Result<Option<Frame>> {
        let mut bytes = [0; VNET_HEADER];
        let head = if self.offloads.vnet_hdr { VNET_HEADER } else { 0 };
        let mut rooms = [IoSliceMut::new(&mut bytes[..head]), IoSliceMut::new(near), IoSliceMut::new(far)];
        let length = match tun::read(self.fd.as_fd(), &mut rooms) {
            Ok(length) => length,
            Err(Refused::WouldBlock) => return Ok(None),
            // Lost, and counted as one that nothing can be made of.
            Err(Refused::Frame(_)) => return Ok(Some(Frame { header: UNKNOWN, length: 0 })),
            Err(Refused::Gone(error)) => return Err(error),
        };
        let header = if head == 0 { Ok(Header::default()) } else { Header::parse(bytes) };
        Ok(Some(Frame { header: header.unwrap_or(UNKNOWN), length: length.saturating_sub(head) }))
    }

    /// Writes a frame whose bytes lie in `pieces`, at most [`PIECES`] of them.
    ///
    /// # Errors
    /// As [`Refused`] says.
    pub(super) fn write<'a>(&self, header: &Header, pieces: impl Iterator<Item = &'a [u8]>) -> Result<(), Refused> {
        let bytes = header.encode();
        let mut slices = [IoSlice::new(&[]); 1 + PIECES];
        let first = usize::from(self.offloads.vnet_hdr);
        slices[0] = IoSlice::new(&bytes);
        let mut count = 1;
        for piece in pieces.take(PIECES) {
            slices[count] = IoSlice::new(piece);
            count += 1;
        }
        tun::write(self.fd.as_fd(), &slices[1 - first..count])
    }

    /// What its frames begin with.
    pub(super) fn layer(&self) -> Layer {
        self.layer
    }

    /// Whether the interface has a carrier; see [`tun::set_carrier`].
    ///
    /// # Errors
    /// As there.
    pub fn set_carrier(&self, on: bool) -> io::Result<()> {
        tun::set_carrier(self.fd.as_fd(), on)
    }

    /// What it can do.
    #[must_use]
    pub fn offloads(&self) -> TunOffloads {
        self.offloads
    }
}

/// Stands for a header that says what was never agreed: nothing can be cut by it.
const UNKNOWN: Header = Header {
    checksum: None,
    gso: Some(virtio::Gso { kind: virtio::Kind::Udp, ecn: false, size: 0 }),
    header_length: 0,
};

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
