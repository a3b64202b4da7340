//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Running ones' complement sum of 16-bit words.
///
/// Kept in the machine's byte order and folded only at the end (RFC 1071, section 2B): adding
/// eight bytes at a time is then one addition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// An empty sum.
    #[must_use]
    pub const fn new() -> Self {
        Sum(0)
    }

    /// Adds bytes that begin at an even offset of what is summed.
    ///
    /// An odd last byte is padded with zero, so only the last piece may have an odd length.
    #[must_use]
    #[inline]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        self.add(sum_bytes(bytes))
    }

    /// Adds a 16-bit field.
    #[must_use]
    #[inline]
    pub const fn word(self, value: u16) -> Self {
        self.add(value.to_be() as u64)
    }

    /// Adds a 32-bit field.
    #[must_use]
    #[inline]
    pub const fn double(self, value: u32) -> Self {
        self.add(value.to_be() as u64)
    }

    /// Adds the pseudo header of TCP, UDP and ICMPv6 except its length field (RFC 9293, 3.1; RFC
    /// 8200, 8.1). Addresses of different families add nothing but the protocol.
    #[must_use]
    #[inline]
    pub fn pseudo_header(self, source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        let sum = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4(source).ipv4(destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6(source).ipv6(destination),
            _ => self,
        };
        sum.word(u16::from(protocol))
    }

    /// The sum folded to 16 bits, not inverted: what a virtio-net driver leaves in the checksum
    /// field when it asks for completion.
    #[must_use]
    #[inline]
    pub const fn folded(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum: the folded sum inverted. Zero over data that contains a right checksum.
    #[must_use]
    #[inline]
    pub const fn finish(self) -> u16 {
        !self.folded()
    }

    /// The checksum for a field in which zero means "none" (UDP): zero becomes 0xffff, the other
    /// representation of the same number (RFC 768).
    #[must_use]
    #[inline]
    pub const fn finish_nonzero(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    #[inline]
    fn ipv4(self, address: Ipv4Addr) -> Self {
        self.add(u64::from(u32::from_ne_bytes(address.octets())))
    }

    #[inline]
    fn ipv6(self, address: Ipv6Addr) -> Self {
        self.add(sum_bytes(&address.octets()))
    }

    #[inline]
    const fn add(self, value: u64) -> Self {
        let (sum, carry) = self.0.overflowing_add(value);
        Sum(sum + carry as u64)
    }
}

/// The checksum of `bytes`.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::new().bytes(bytes).finish()
}

/// The checksum after one 16-bit field changed from `old` to `new` (RFC 1624, equation 3).
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::new().word(!checksum).word(!old).word(new).finish()
}

/// Ones' complement sum of `bytes` in the machine's byte order.
///
/// Sixteen lanes of 32-bit words, each of which overflows only after 2^32 blocks: a loop that
/// compilers turn into vector instructions.
#[inline]
fn sum_bytes(bytes: &[u8]) -> u64 {
    let word = |bytes: &[u8]| {
        bytes
            .first_chunk()
            .map_or(0, |word| u64::from(u32::from_ne_bytes(*word)))
    };
    let mut lanes = [0u64; 16];
    let mut blocks = bytes.chunks_exact(64);
    for block in &mut blocks {
        for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += word(bytes);
        }
    }
    let mut words = blocks.remainder().chunks_exact(4);
    let mut sum: u64 = lanes.iter().sum();
    for bytes in &mut words {
        sum += word(bytes);
    }
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}
