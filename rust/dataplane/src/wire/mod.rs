//! Bytes to headers and back. Pure: nothing here keeps state or touches the system.
//!
//! Every `parse` checks every length before it reads; every `emit` is the inverse of its `parse`.

pub mod arp;
pub mod checksum;
pub mod datagram;
pub mod ethernet;
mod flow;
mod headers;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;
pub mod virtio;
pub mod vxlan;

use std::fmt;

pub use flow::{flow_hash, source_port};
pub use headers::headers_len;

/// Protocol numbers in IPv4's protocol and IPv6's next header field (IANA).
pub mod protocol {
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// Why bytes are not the header they were taken for, or a value does not fit its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Fewer bytes than the header needs, on parse, or than there is room for, on emit.
    #[error("{need} bytes needed, {have} there")]
    Short {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// VXLAN header without the I flag.
    #[error("VXLAN flags {flags:#04x} lack the I bit (0x08)")]
    VxlanFlags {
        /// First byte of the header.
        flags: u8,
    },
    /// VNI of more than 24 bits.
    #[error("VNI {value} is above 16777215 (24 bits)")]
    VniRange {
        /// The value that was refused.
        value: u32,
    },
    /// A field has a value that the named header cannot have.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

/// VXLAN network identifier: 24 bits (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// Largest VNI.
    pub const MAX: Vni = Vni(0x00ff_ffff);

    /// Checks that `value` fits 24 bits.
    ///
    /// # Errors
    ///
    /// [`WireError::VniRange`] with the value.
    pub const fn new(value: u32) -> Result<Self, WireError> {
        if value <= Self::MAX.0 {
            Ok(Vni(value))
        } else {
            Err(WireError::VniRange { value })
        }
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// MAC address: six bytes, as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
    /// 00:00:00:00:00:00, never a valid station.
    pub const ZERO: MacAddr = MacAddr([0; 6]);

    /// Whether the group bit is set; true for broadcast too.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether every bit is set.
    #[must_use]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// Whether the address can belong to one station: neither zero nor multicast.
    #[must_use]
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self != Self::ZERO
    }

    /// The address as a number, first byte highest.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl From<[u8; 6]> for MacAddr {
    fn from(bytes: [u8; 6]) -> Self {
        MacAddr(bytes)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The `N` bytes of `bytes` at `offset`.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

/// The big-endian number at `offset`.
pub(crate) fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_be_bytes)
}

/// The first `N` bytes of `bytes`.
pub(crate) fn head<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], WireError> {
    bytes.first_chunk().ok_or(WireError::Short {
        need: N,
        have: bytes.len(),
    })
}

/// The first `N` bytes of `bytes`, to write to.
pub(crate) fn head_mut<const N: usize>(bytes: &mut [u8]) -> Result<&mut [u8; N], WireError> {
    let have = bytes.len();
    bytes
        .first_chunk_mut()
        .ok_or(WireError::Short { need: N, have })
}
