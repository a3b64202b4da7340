//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::{head, head_mut, MacAddr, WireError};

/// Length of a message, in bytes.
pub const LEN: usize = 28;
/// Operation: who has the target address?
pub const REQUEST: u16 = 1;
/// Operation: the sender has it.
pub const REPLY: u16 = 2;

/// Hardware type Ethernet, protocol type IPv4, lengths 6 and 4.
const PREFIX: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// An ARP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// [`REQUEST`], [`REPLY`] or another number.
    pub operation: u16,
    /// The sender's MAC address.
    pub sender_mac: MacAddr,
    /// The sender's address; unspecified in a probe (RFC 5227).
    pub sender_ip: Ipv4Addr,
    /// The target's MAC address; meaningless in a request.
    pub target_mac: MacAddr,
    /// The target's address.
    pub target_ip: Ipv4Addr,
}

impl Message {
    /// Reads the message at the beginning of `bytes`; padding may follow.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `bytes` is too short, [`WireError::Malformed`] if it is not about
    /// IPv4 over Ethernet.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let b: &[u8; LEN] = head(bytes)?;
        if b[..6] != PREFIX {
            return Err(WireError::Malformed("ARP message"));
        }
        Ok(Message {
            operation: u16::from_be_bytes([b[6], b[7]]),
            sender_mac: MacAddr([b[8], b[9], b[10], b[11], b[12], b[13]]),
            sender_ip: Ipv4Addr::new(b[14], b[15], b[16], b[17]),
            target_mac: MacAddr([b[18], b[19], b[20], b[21], b[22], b[23]]),
            target_ip: Ipv4Addr::new(b[24], b[25], b[26], b[27]),
        })
    }

    /// Writes the message to the beginning of `out` and returns its length.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `out` is too short; nothing is written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, WireError> {
        let out: &mut [u8; LEN] = head_mut(out)?;
        out[..6].copy_from_slice(&PREFIX);
        out[6..8].copy_from_slice(&self.operation.to_be_bytes());
        out[8..14].copy_from_slice(&self.sender_mac.0);
        out[14..18].copy_from_slice(&self.sender_ip.octets());
        out[18..24].copy_from_slice(&self.target_mac.0);
        out[24..].copy_from_slice(&self.target_ip.octets());
        Ok(LEN)
    }
}
