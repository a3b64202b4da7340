//! IPv6 headers and the walk over extension headers (RFC 8200).

use std::net::Ipv6Addr;

use super::{array, head, head_mut, WireError};

/// Length of the fixed header, in bytes.
pub const HEADER_LEN: usize = 40;

/// Extension headers that are walked; more is taken for an unknown protocol.
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// The fixed IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// DSCP (6 bits) and ECN (2 bits).
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Length of all that follows the fixed header, in bytes.
    pub payload_len: u16,
    /// What follows the fixed header.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
}

impl Header {
    /// Reads the header at the beginning of `packet`; padding may follow the packet.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `packet` ends before the header or before the payload length,
    /// [`WireError::Malformed`] if the version is not 6.
    pub fn parse(packet: &[u8]) -> Result<Self, WireError> {
        let b: &[u8; HEADER_LEN] = head(packet)?;
        if b[0] >> 4 != 6 {
            return Err(WireError::Malformed("IPv6 header"));
        }
        let payload_len = u16::from_be_bytes([b[4], b[5]]);
        let need = HEADER_LEN + usize::from(payload_len);
        if packet.len() < need {
            return Err(WireError::Short {
                need,
                have: packet.len(),
            });
        }
        let address = |at| array(b, at).map_or(Ipv6Addr::UNSPECIFIED, <[u8; 16]>::into);
        Ok(Header {
            traffic_class: b[0] << 4 | b[1] >> 4,
            flow_label: u32::from_be_bytes([0, b[1] & 0x0f, b[2], b[3]]),
            payload_len,
            next_header: b[6],
            hop_limit: b[7],
            source: address(8),
            destination: address(24),
        })
    }

    /// Writes the header to the beginning of `out` and returns its length.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `out` is too short, [`WireError::Malformed`] if the flow label has
    /// more than 20 bits; nothing is written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, WireError> {
        if self.flow_label > 0x000f_ffff {
            return Err(WireError::Malformed("IPv6 flow label"));
        }
        let out: &mut [u8; HEADER_LEN] = head_mut(out)?;
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
        out[..4].copy_from_slice(&first.to_be_bytes());
        out[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        out[6] = self.next_header;
        out[7] = self.hop_limit;
        out[8..24].copy_from_slice(&self.source.octets());
        out[24..].copy_from_slice(&self.destination.octets());
        Ok(HEADER_LEN)
    }
}

/// What the extension headers of a packet lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Protocol behind the last extension header that was understood.
    pub protocol: u8,
    /// Offset of that protocol's header from the beginning of the packet.
    pub offset: usize,
    /// Whether the packet is a fragment (an atomic fragment, RFC 6946, is none).
    pub fragment: bool,
    /// Whether a fragment header was passed, be it of an atomic fragment.
    pub fragment_header: bool,
    /// Whether a routing header has segments left: the destination of the pseudo header is then
    /// not that of the packet.
    pub routed: bool,
}

/// Walks the extension headers of the IPv6 packet at the beginning of `packet`.
///
/// The walk ends at the first header that is not hop-by-hop options, routing, fragment or
/// destination options, behind the header of a fragment that is not the first, and after eight
/// extension headers. None if `packet` ends within a header.
#[inline]
#[must_use]
pub fn upper(packet: &[u8]) -> Option<Upper> {
    let mut upper = Upper {
        protocol: *packet.get(6)?,
        offset: HEADER_LEN,
        fragment: false,
        fragment_header: false,
        routed: false,
    };
    for _ in 0..MAX_EXTENSIONS {
        let kind = upper.protocol;
        if !matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
            break;
        }
        let [next, len, a, b]: [u8; 4] = array(packet, upper.offset)?;
        let segments_left = b;
        upper.protocol = next;
        upper.offset += 8;
        match kind {
            FRAGMENT => {
                // Offset (13 bits), 2 reserved bits, M bit.
                let field = u16::from_be_bytes([a, b]);
                upper.fragment_header = true;
                upper.fragment |= field & 0xfff9 != 0;
                if field & 0xfff8 != 0 {
                    break;
                }
            }
            _ => {
                upper.offset += usize::from(len) * 8;
                upper.routed |= kind == ROUTING && segments_left != 0;
            }
        }
    }
    (upper.offset <= packet.len()).then_some(upper)
}
