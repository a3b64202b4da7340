//! TCP headers (RFC 9293).

use super::{head, WireError};

/// Length of a header without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Length of the longest header, in bytes.
pub const MAX_HEADER_LEN: usize = 60;

/// Flag bits of [`Header::flags`].
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u16 = 0x001;
    /// Synchronise sequence numbers.
    pub const SYN: u16 = 0x002;
    /// Reset the connection.
    pub const RST: u16 = 0x004;
    /// Push.
    pub const PSH: u16 = 0x008;
    /// The acknowledgement number counts.
    pub const ACK: u16 = 0x010;
    /// The urgent pointer counts.
    pub const URG: u16 = 0x020;
    /// ECN echo (RFC 3168).
    pub const ECE: u16 = 0x040;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u16 = 0x080;
}

/// A TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number of the first payload byte.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// The 12 bits behind the data offset: reserved bits and flags.
    pub flags: u16,
    /// Receive window.
    pub window: u16,
    /// Checksum.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options with their padding: at most 40 bytes, a multiple of 4.
    pub options: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads the header at the beginning of `segment`.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `segment` ends within the header, [`WireError::Malformed`] if the
    /// data offset is below 5.
    pub fn parse(segment: &'a [u8]) -> Result<Self, WireError> {
        let b: &[u8; HEADER_LEN] = head(segment)?;
        let len = usize::from(b[12] >> 4) * 4;
        if len < HEADER_LEN {
            return Err(WireError::Malformed("TCP data offset"));
        }
        let options = segment.get(HEADER_LEN..len).ok_or(WireError::Short {
            need: len,
            have: segment.len(),
        })?;
        Ok(Header {
            source_port: u16::from_be_bytes([b[0], b[1]]),
            destination_port: u16::from_be_bytes([b[2], b[3]]),
            sequence: u32::from_be_bytes([b[4], b[5], b[6], b[7]]),
            acknowledgement: u32::from_be_bytes([b[8], b[9], b[10], b[11]]),
            flags: u16::from_be_bytes([b[12] & 0x0f, b[13]]),
            window: u16::from_be_bytes([b[14], b[15]]),
            checksum: u16::from_be_bytes([b[16], b[17]]),
            urgent: u16::from_be_bytes([b[18], b[19]]),
            options,
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

    /// Writes the header to the beginning of `out` and returns its length.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `out` is too short, [`WireError::Malformed`] if options or flags do
    /// not fit; nothing is written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, WireError> {
        let len = self.len();
        if len > MAX_HEADER_LEN || len % 4 != 0 || self.flags > 0x0fff {
            return Err(WireError::Malformed("TCP header"));
        }
        let have = out.len();
        let out = out
            .get_mut(..len)
            .ok_or(WireError::Short { need: len, have })?;
        let offset_and_flags = ((len / 4) as u16) << 12 | self.flags;
        out[..2].copy_from_slice(&self.source_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.destination_port.to_be_bytes());
        out[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        out[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        out[12..14].copy_from_slice(&offset_and_flags.to_be_bytes());
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        out[16..18].copy_from_slice(&self.checksum.to_be_bytes());
        out[18..20].copy_from_slice(&self.urgent.to_be_bytes());
        out[HEADER_LEN..].copy_from_slice(self.options);
        Ok(len)
    }
}
