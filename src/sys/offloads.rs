//! What the kernel can take off our hands at both edges: a wish when it goes in, what was granted when it comes out.
//!
//! Only names. Asking for them is the device's and the socket's business, and so is doing without.

/// Offloads of the TUN device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunOffloads {
    /// A virtio header stands before each frame ([`super::tun::VNET_HEADER`] bytes), so that checksums may be partial.
    pub vnet_hdr: bool,
    /// TCP over either IP is read in super-packets.
    pub tso: bool,
    /// UDP over either IP is read in super-packets (Linux 6.2).
    pub uso: bool,
}

impl TunOffloads {
    /// Frames as they are on a wire.
    pub const NONE: Self = TunOffloads { vnet_hdr: false, tso: false, uso: false };
    /// All there are.
    pub const ALL: Self = TunOffloads { vnet_hdr: true, tso: true, uso: true };
}

/// Offloads of a UDP socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpOffloads {
    /// A run of datagrams is sent as one (`UDP_SEGMENT`, Linux 4.18).
    pub segment: bool,
    /// Datagrams of one flow are received as one (`UDP_GRO`, Linux 5.0).
    pub gro: bool,
}

impl UdpOffloads {
    /// Each datagram by itself.
    pub const NONE: Self = UdpOffloads { segment: false, gro: false };
    /// All there are.
    pub const ALL: Self = UdpOffloads { segment: true, gro: true };
}

/// Both edges of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The interface's.
    pub tun: TunOffloads,
    /// The sockets'.
    pub udp: UdpOffloads,
}

impl Offloads {
    /// None of them: the plain path.
    pub const NONE: Self = Offloads { tun: TunOffloads::NONE, udp: UdpOffloads::NONE };
    /// All there are.
    pub const ALL: Self = Offloads { tun: TunOffloads::ALL, udp: UdpOffloads::ALL };
}
