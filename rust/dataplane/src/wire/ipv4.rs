//! IPv4 headers (RFC 791).

use std::net::Ipv4Addr;

use super::{checksum, head, WireError};

/// Length of a header without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Length of the longest header, in bytes.
pub const MAX_HEADER_LEN: usize = 60;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// An IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// DSCP (6 bits) and ECN (2 bits).
    pub traffic_class: u8,
    /// Length of header and payload, in bytes.
    pub total_len: u16,
    /// Identification of the fragments of one packet.
    pub id: u16,
    /// DF bit.
    pub dont_fragment: bool,
    /// MF bit.
    pub more_fragments: bool,
    /// Fragment offset in units of 8 bytes, at most 8191.
    pub fragment_offset: u16,
    /// Time to live, in hops.
    pub ttl: u8,
    /// What the payload is; see [`super::protocol`].
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Options with their padding: at most 40 bytes, a multiple of 4.
    pub options: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads the header at the beginning of `packet`; padding may follow the packet.
    ///
    /// The header checksum is not looked at; see [`checksum_is_right`].
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `packet` ends before the header or before the total length,
    /// [`WireError::Malformed`] if version or header length cannot be.
    pub fn parse(packet: &'a [u8]) -> Result<Self, WireError> {
        let b: &[u8; HEADER_LEN] = head(packet)?;
        let header_len = usize::from(b[0] & 0x0f) * 4;
        let total_len = u16::from_be_bytes([b[2], b[3]]);
        if b[0] >> 4 != 4 || header_len < HEADER_LEN || usize::from(total_len) < header_len {
            return Err(WireError::Malformed("IPv4 header"));
        }
        if packet.len() < usize::from(total_len) {
            return Err(WireError::Short {
                need: usize::from(total_len),
                have: packet.len(),
            });
        }
        let fragment = u16::from_be_bytes([b[6], b[7]]);
        Ok(Header {
            traffic_class: b[1],
            total_len,
            id: u16::from_be_bytes([b[4], b[5]]),
            dont_fragment: fragment & DONT_FRAGMENT != 0,
            more_fragments: fragment & MORE_FRAGMENTS != 0,
            fragment_offset: fragment & OFFSET_MASK,
            ttl: b[8],
            protocol: b[9],
            source: Ipv4Addr::new(b[12], b[13], b[14], b[15]),
            destination: Ipv4Addr::new(b[16], b[17], b[18], b[19]),
            options: &packet[HEADER_LEN..header_len],
        })
    }

    /// Length of the header, in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    /// Never: a header has at least [`HEADER_LEN`] bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Whether the packet is a fragment of a larger one.
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// Writes the header with its checksum to the beginning of `out` and returns its length.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `out` is too short, [`WireError::Malformed`] if the options or the
    /// fragment offset do not fit; nothing is written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, WireError> {
        let len = self.len();
        if len > MAX_HEADER_LEN || len % 4 != 0 || self.fragment_offset > OFFSET_MASK {
            return Err(WireError::Malformed("IPv4 header"));
        }
        let have = out.len();
        let out = out
            .get_mut(..len)
            .ok_or(WireError::Short { need: len, have })?;
        let fragment = self.fragment_offset
            | if self.dont_fragment { DONT_FRAGMENT } else { 0 }
            | if self.more_fragments {
                MORE_FRAGMENTS
            } else {
                0
            };
        out[0] = 0x40 | (len / 4) as u8;
        out[1] = self.traffic_class;
        out[2..4].copy_from_slice(&self.total_len.to_be_bytes());
        out[4..6].copy_from_slice(&self.id.to_be_bytes());
        out[6..8].copy_from_slice(&fragment.to_be_bytes());
        out[8] = self.ttl;
        out[9] = self.protocol;
        out[10..12].fill(0);
        out[12..16].copy_from_slice(&self.source.octets());
        out[16..20].copy_from_slice(&self.destination.octets());
        out[HEADER_LEN..].copy_from_slice(self.options);
        let sum = checksum::checksum(out);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        Ok(len)
    }
}

/// Whether the checksum of the header at the beginning of `packet` is right; false if the header is
/// cut short.
#[must_use]
pub fn checksum_is_right(packet: &[u8]) -> bool {
    let header_len = packet
        .first()
        .map_or(0, |byte| usize::from(byte & 0x0f) * 4);
    header_len >= HEADER_LEN
        && packet
            .get(..header_len)
            .is_some_and(|header| checksum::checksum(header) == 0)
}
