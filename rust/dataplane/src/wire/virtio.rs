//! The virtio-net header that a TAP puts in front of every frame (virtio 1.2, section 5.1.6;
//! `linux/virtio_net.h`).

use super::{head, WireError};

/// Length of the header that `IFF_VNET_HDR` gives by default, in bytes.
pub const HEADER_LEN: usize = 10;

/// The checksum must be completed from `csum_start` on.
pub const FLAG_NEEDS_CSUM: u8 = 1;
/// The checksum was verified.
pub const FLAG_DATA_VALID: u8 = 2;

/// Not a super-frame.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// UDP by IP fragmentation (legacy UFO); refused here.
pub const GSO_UDP: u8 = 3;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP as datagrams of equal size (USO).
pub const GSO_UDP_L4: u8 = 5;
/// Bit beside a TCP type: the first segment carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// A virtio-net header, in the machine's byte order as a TAP has it without `TUNSETVNETLE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// `FLAG_*` bits.
    pub flags: u8,
    /// One of `GSO_*`, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Length of all headers in bytes; a hint only.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the checksum begins to cover the frame.
    pub csum_start: u16,
    /// Where the checksum lies, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// A header that asks for nothing.
    pub const NONE: VnetHdr = VnetHdr {
        flags: 0,
        gso_type: GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Whether the frame is a super-frame that must be segmented.
    #[inline]
    #[must_use]
    pub const fn is_gso(&self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE
    }

    /// Whether a checksum must be completed.
    #[inline]
    #[must_use]
    pub const fn needs_csum(&self) -> bool {
        self.flags & FLAG_NEEDS_CSUM != 0
    }

    /// Reads the header at the beginning of what a TAP gave; the frame begins at [`HEADER_LEN`].
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] for less than a header.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let b: &[u8; HEADER_LEN] = head(bytes)?;
        Ok(VnetHdr {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_ne_bytes([b[2], b[3]]),
            gso_size: u16::from_ne_bytes([b[4], b[5]]),
            csum_start: u16::from_ne_bytes([b[6], b[7]]),
            csum_offset: u16::from_ne_bytes([b[8], b[9]]),
        })
    }

    /// The header as bytes.
    #[inline]
    #[must_use]
    pub const fn emit(&self) -> [u8; HEADER_LEN] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }
}
