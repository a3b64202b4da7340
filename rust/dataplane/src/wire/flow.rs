//! The flow hash of a frame and the outer source port that carries it (RFC 7348, section 5).

use super::{
    array, be16,
    ethernet::{self, ethertype},
    ipv6, protocol,
};

/// First port of the range that the RFC recommends: 49152 to 65535, so 14 bits.
const FIRST_PORT: u16 = 0xc000;

// Odd constants with as many ones as zeros; any such would do.
const KEY_A: u64 = 0x9e37_79b9_7f4a_7c15;
const KEY_B: u64 = 0xc2b2_ae3d_27d4_eb4f;
const KEY_C: u64 = 0x1656_67b1_9e37_79f9;

/// Hash of the flow that `frame` belongs to: the same for every frame of a flow, on every machine.
///
/// It covers addresses, protocol and ports of TCP, UDP and SCTP; addresses and protocol alone of
/// other packets and of all fragments, so that the pieces of one packet stay together; MAC
/// addresses and ethertype of what is not IP. It looks through up to two VLAN tags and over IPv6
/// extension headers. Frames too short for any of this hash to a fixed value.
#[inline]
#[must_use]
pub fn flow_hash(frame: &[u8]) -> u32 {
    let l3 = match ethernet::payload(frame) {
        Some((ethertype::IPV4, offset)) => ipv4(&frame[offset..]),
        Some((ethertype::IPV6, offset)) => ipv6(&frame[offset..]),
        _ => None,
    };
    l3.unwrap_or_else(|| l2(frame))
}

/// Outer UDP source port for a flow: 49152 to 65535, from the upper 14 bits of the hash.
#[inline]
#[must_use]
pub const fn source_port(hash: u32) -> u16 {
    FIRST_PORT | (hash >> 18) as u16
}

#[inline]
fn ipv4(packet: &[u8]) -> Option<u32> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return None;
    }
    let addresses = u64::from_le_bytes(array(header, 12)?);
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let ports = if fragment {
        0
    } else {
        ports(packet, header[9], header_len)
    };
    Some(mix(addresses, 0, ports, header[9]))
}

#[inline]
fn ipv6(packet: &[u8]) -> Option<u32> {
    let header: &[u8; ipv6::HEADER_LEN] = packet.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let word = |at| array(header, at).map_or(0, u64::from_le_bytes);
    let source = fold(word(8) ^ KEY_C, word(16) ^ KEY_A);
    let destination = fold(word(24) ^ KEY_B, word(32) ^ KEY_C);
    // A packet that ends within its extension headers still hashes on its addresses.
    let (protocol, ports) = match ipv6::upper(packet) {
        // Only the first fragment shows what follows its fragment header.
        Some(upper) if upper.fragment => (0, 0),
        Some(upper) => (upper.protocol, ports(packet, upper.protocol, upper.offset)),
        None => (header[6], 0),
    };
    Some(mix(source, destination, ports, protocol))
}

fn l2(frame: &[u8]) -> u32 {
    let (kind, _) = ethernet::payload(frame).unwrap_or_default();
    let destination = array(frame, 0).map_or(0, u64::from_le_bytes);
    // Overlaps the destination by two bytes, which does no harm.
    let source = array(frame, 4).map_or(0, u64::from_le_bytes);
    mix(destination, source, u32::from(kind), 0)
}

#[inline]
fn ports(packet: &[u8], protocol: u8, offset: usize) -> u32 {
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let source = be16(packet, offset).unwrap_or_default();
            let destination = be16(packet, offset + 2).unwrap_or_default();
            u32::from(source) << 16 | u32::from(destination)
        }
        _ => 0,
    }
}

#[inline]
const fn mix(a: u64, b: u64, ports: u32, protocol: u8) -> u32 {
    let transport = (ports as u64) << 8 | protocol as u64;
    let hash = fold(fold(a ^ KEY_A, b ^ KEY_B) ^ KEY_C, transport ^ KEY_A);
    let hash = hash.wrapping_mul(KEY_B);
    (hash >> 32) as u32
}

/// Both halves of the product, one upon the other: every bit of the result depends on every bit
/// of both factors.
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}
