//! UDP headers (RFC 768).

use super::{head, head_mut, WireError};

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 8;

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Length of header and payload, in bytes.
    pub len: u16,
    /// Checksum; zero means that there is none.
    pub checksum: u16,
}

impl Header {
    /// Reads the header at the beginning of `datagram`.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `datagram` ends before the header or before its length,
    /// [`WireError::Malformed`] if the length is below that of the header.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let b: &[u8; HEADER_LEN] = head(datagram)?;
        let header = Header {
            source_port: u16::from_be_bytes([b[0], b[1]]),
            destination_port: u16::from_be_bytes([b[2], b[3]]),
            len: u16::from_be_bytes([b[4], b[5]]),
            checksum: u16::from_be_bytes([b[6], b[7]]),
        };
        let need = usize::from(header.len);
        if need < HEADER_LEN {
            return Err(WireError::Malformed("UDP length"));
        }
        if datagram.len() < need {
            return Err(WireError::Short {
                need,
                have: datagram.len(),
            });
        }
        Ok(header)
    }

    /// Writes the header to the beginning of `out` and returns its length.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `out` is too short; nothing is written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, WireError> {
        let out: &mut [u8; HEADER_LEN] = head_mut(out)?;
        out[..2].copy_from_slice(&self.source_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.destination_port.to_be_bytes());
        out[4..6].copy_from_slice(&self.len.to_be_bytes());
        out[6..].copy_from_slice(&self.checksum.to_be_bytes());
        Ok(HEADER_LEN)
    }
}
