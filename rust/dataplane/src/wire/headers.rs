//! How far the headers of a frame reach: what of it may be kept where payload must not be.

use super::ethernet::{self, ethertype};
use super::{arp, be16, ipv4, ipv6, protocol, tcp, udp};

/// ICMP (RFC 792) and ICMPv6 (RFC 4443) alike: type, code, checksum, and four bytes of the type's.
const ICMP_HEADER_LEN: usize = 8;
const ICMP: u8 = 1;
const SCTP_HEADER_LEN: usize = 12;
/// Types of neighbour discovery (RFC 4861, section 4), whose messages are nothing but headers.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// Bytes from the start of `frame` to where its payload begins, as far as its protocols are known:
/// Ethernet with VLAN tags, ARP, IPv4, IPv6 with extension headers, TCP, UDP, SCTP, ICMP. Of what
/// is cut off or not known, the headers before it; all of neighbour discovery and of what is too
/// short for Ethernet.
#[must_use]
pub fn headers_len(frame: &[u8]) -> usize {
    let Some((kind, offset)) = ethernet::payload(frame) else {
        return frame.len().min(ethernet::HEADER_LEN);
    };
    let packet = &frame[offset..];
    let len = match kind {
        ethertype::ARP => arp::LEN,
        ethertype::IPV4 => ipv4_len(packet),
        ethertype::IPV6 => ipv6_len(packet),
        _ => 0,
    };
    (offset + len).min(frame.len())
}

fn ipv4_len(packet: &[u8]) -> usize {
    let Some(&first) = packet.first() else {
        return 0;
    };
    let len = (usize::from(first & 0x0f) * 4).max(ipv4::HEADER_LEN);
    let begins = be16(packet, 6).is_some_and(|fragment| fragment & 0x1fff == 0);
    match packet.get(9) {
        Some(&next) if begins => len + upper_len(next, packet.get(len..).unwrap_or_default()),
        _ => len,
    }
}

fn ipv6_len(packet: &[u8]) -> usize {
    match ipv6::upper(packet) {
        Some(upper) if !upper.fragment => {
            upper.offset + upper_len(upper.protocol, &packet[upper.offset..])
        }
        Some(upper) => upper.offset,
        None => ipv6::HEADER_LEN,
    }
}

fn upper_len(next: u8, segment: &[u8]) -> usize {
    match next {
        protocol::TCP => tcp::Header::parse(segment).map_or(tcp::HEADER_LEN, |header| header.len()),
        protocol::UDP => udp::HEADER_LEN,
        protocol::SCTP => SCTP_HEADER_LEN,
        protocol::ICMPV6 if segment.first().is_some_and(|kind| DISCOVERY.contains(kind)) => {
            segment.len()
        }
        ICMP | protocol::ICMPV6 => ICMP_HEADER_LEN,
        _ => 0,
    }
}
