//! Ethernet II headers with up to two VLAN tags (IEEE 802.3, 802.1Q).

use super::{array, be16, head, MacAddr, WireError};

/// Length of a header without tags, in bytes.
pub const HEADER_LEN: usize = 14;
/// Length of one VLAN tag, in bytes.
pub const TAG_LEN: usize = 4;
/// Tags that are looked through; a third one is taken for the payload.
pub const MAX_TAGS: usize = 2;

/// Ethertypes (IANA, IEEE).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// Customer VLAN tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// Service VLAN tag (802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// One VLAN tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// Tag protocol: [`ethertype::VLAN`] or [`ethertype::SERVICE_VLAN`].
    pub protocol: u16,
    /// Priority (3 bits), drop eligible (1 bit) and VLAN identifier (12 bits).
    pub control: u16,
}

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Destination address.
    pub destination: MacAddr,
    /// Source address.
    pub source: MacAddr,
    tags: [Tag; MAX_TAGS],
    tag_count: usize,
    /// What follows the header.
    pub ethertype: u16,
}

impl Header {
    /// A header without tags.
    #[must_use]
    pub const fn new(destination: MacAddr, source: MacAddr, ethertype: u16) -> Self {
        Header {
            destination,
            source,
            tags: [Tag {
                protocol: 0,
                control: 0,
            }; MAX_TAGS],
            tag_count: 0,
            ethertype,
        }
    }

    /// The same header with these tags, outermost first.
    ///
    /// # Errors
    ///
    /// [`WireError::Malformed`] for more than [`MAX_TAGS`] tags or another tag protocol.
    pub fn with_tags(mut self, tags: &[Tag]) -> Result<Self, WireError> {
        if tags.len() > MAX_TAGS || !tags.iter().all(|tag| is_tag(tag.protocol)) {
            return Err(WireError::Malformed("VLAN tags"));
        }
        self.tags = [Tag::default(); MAX_TAGS];
        self.tags[..tags.len()].copy_from_slice(tags);
        self.tag_count = tags.len();
        Ok(self)
    }

    /// The tags, outermost first.
    #[must_use]
    pub fn tags(&self) -> &[Tag] {
        &self.tags[..self.tag_count]
    }

    /// Length on the wire, in bytes: where the payload begins.
    #[must_use]
    pub const fn len(&self) -> usize {
        HEADER_LEN + self.tag_count * TAG_LEN
    }

    /// Never: a header has at least [`HEADER_LEN`] bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Reads the header at the beginning of `frame`; its payload begins at [`Header::len`].
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if the frame ends within the header or its tags.
    pub fn parse(frame: &[u8]) -> Result<Self, WireError> {
        let bytes: &[u8; HEADER_LEN] = head(frame)?;
        let mut header = Header::new(
            MacAddr([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]),
            MacAddr([bytes[6], bytes[7], bytes[8], bytes[9], bytes[10], bytes[11]]),
            u16::from_be_bytes([bytes[12], bytes[13]]),
        );
        while is_tag(header.ethertype) && header.tag_count < MAX_TAGS {
            let offset = header.len();
            let [a, b, c, d] = array(frame, offset).ok_or(WireError::Short {
                need: offset + TAG_LEN,
                have: frame.len(),
            })?;
            header.tags[header.tag_count] = Tag {
                protocol: header.ethertype,
                control: u16::from_be_bytes([a, b]),
            };
            header.tag_count += 1;
            header.ethertype = u16::from_be_bytes([c, d]);
        }
        Ok(header)
    }

    /// Writes the header to the beginning of `out` and returns its length.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `out` is too short; nothing is written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, WireError> {
        let len = self.len();
        let have = out.len();
        let out = out
            .get_mut(..len)
            .ok_or(WireError::Short { need: len, have })?;
        out[..6].copy_from_slice(&self.destination.0);
        out[6..12].copy_from_slice(&self.source.0);
        for (index, tag) in self.tags().iter().enumerate() {
            let at = 12 + index * TAG_LEN;
            out[at..at + 2].copy_from_slice(&tag.protocol.to_be_bytes());
            out[at + 2..at + 4].copy_from_slice(&tag.control.to_be_bytes());
        }
        out[len - 2..].copy_from_slice(&self.ethertype.to_be_bytes());
        Ok(len)
    }
}

/// Destination and source of `frame`, if it has a whole header.
#[inline]
#[must_use]
pub fn addresses(frame: &[u8]) -> Option<(MacAddr, MacAddr)> {
    let b: &[u8; HEADER_LEN] = frame.first_chunk()?;
    Some((
        MacAddr([b[0], b[1], b[2], b[3], b[4], b[5]]),
        MacAddr([b[6], b[7], b[8], b[9], b[10], b[11]]),
    ))
}

/// Ethertype behind up to [`MAX_TAGS`] tags, and the offset of the payload.
#[inline]
#[must_use]
pub fn payload(frame: &[u8]) -> Option<(u16, usize)> {
    let mut offset = HEADER_LEN;
    let mut kind = be16(frame, offset - 2)?;
    while is_tag(kind) && offset < HEADER_LEN + MAX_TAGS * TAG_LEN {
        offset += TAG_LEN;
        kind = be16(frame, offset - 2)?;
    }
    Some((kind, offset))
}

const fn is_tag(kind: u16) -> bool {
    matches!(kind, ethertype::VLAN | ethertype::SERVICE_VLAN)
}
