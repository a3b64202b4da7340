//! What becomes of frames for a tunnel that is narrower than the overlay's MTU promises. Pure.
//!
//! The container is told (RFC 1191, RFC 8201), as a router on the way would tell it; the answer comes
//! from the packet's own destination, the one address that every container has a way to and that no
//! filter of source addresses refuses. TCP is told before it sends (MSS, RFC 6691).

use crate::wire::checksum::{self, Sum};
use crate::wire::ethernet::{self, ethertype};
use crate::wire::{ipv4, ipv6, protocol, tcp};

/// Longest answer: Ethernet with two tags, and IPv6's least MTU (RFC 4443, section 2.4).
pub const ANSWER_LEN: usize = ethernet::HEADER_LEN + ethernet::MAX_TAGS * ethernet::TAG_LEN + 1280;

/// RFC 1812, section 4.3.2.3.
const LONGEST_V4: usize = 576;
/// No IPv6 packet of that length is too big for anybody (RFC 8200, section 5).
const LEAST_V6: usize = 1280;
const ICMP_LEN: usize = 8;
const TTL: u8 = 64;

const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;
const ICMP: u8 = 1;

const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;

/// Writes to `out` what tells the sender of `frame` that it was too big.
///
/// `longest` is the longest frame that gets through, in bytes. Of a super-frame the headers count,
/// whatever its length. None if nobody can be told: not IP, IPv4 that may be fragmented, IPv6 that
/// is no longer than everybody must carry, fragments but the first, errors of ICMP, and
/// addresses that are no station's.
#[must_use]
pub fn answer(frame: &[u8], longest: usize, out: &mut [u8; ANSWER_LEN]) -> Option<usize> {
    let mut header = ethernet::Header::parse(frame).ok()?;
    let packet = frame.get(header.len()..)?;
    let mtu = longest.checked_sub(header.len())?;
    if header.destination.is_multicast() {
        return None;
    }
    std::mem::swap(&mut header.source, &mut header.destination);
    let at = header.emit(out).ok()?;
    let room = &mut out[at..];
    let len = match header.ethertype {
        ethertype::IPV4 => answer_v4(packet, mtu, room)?,
        ethertype::IPV6 => answer_v6(packet, mtu, room)?,
        _ => return None,
    };
    Some(at + len)
}

fn answer_v4(packet: &[u8], mtu: usize, out: &mut [u8]) -> Option<usize> {
    let asked = ipv4::Header::parse(packet).ok()?;
    let upper = &packet[asked.len()..usize::from(asked.total_len)];
    // Queries may be answered with an error (types 0, 8, 13 to 18); errors may not.
    let error = asked.protocol == ICMP && !matches!(upper.first(), Some(0 | 8 | 13..=18));
    let odd = asked.source.is_unspecified()
        || asked.source.is_multicast()
        || asked.source.is_broadcast()
        || asked.destination.is_multicast()
        || asked.destination.is_broadcast();
    if !asked.dont_fragment || asked.fragment_offset != 0 || error || odd {
        return None;
    }
    let quoted = usize::from(asked.total_len).min(LONGEST_V4 - ipv4::HEADER_LEN - ICMP_LEN);
    let total_len = ipv4::HEADER_LEN + ICMP_LEN + quoted;
    let header = ipv4::Header {
        traffic_class: 0,
        total_len: total_len as u16,
        id: 0,
        dont_fragment: false,
        more_fragments: false,
        fragment_offset: 0,
        ttl: TTL,
        protocol: ICMP,
        source: asked.destination,
        destination: asked.source,
        options: &[],
    };
    let at = header.emit(out).ok()?;
    let message = out.get_mut(at..total_len)?;
    message[..ICMP_LEN].fill(0);
    message[0] = UNREACHABLE;
    message[1] = FRAGMENTATION_NEEDED;
    message[6..8].copy_from_slice(&u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes());
    message[ICMP_LEN..].copy_from_slice(&packet[..quoted]);
    let sum = checksum::checksum(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(total_len)
}

fn answer_v6(packet: &[u8], mtu: usize, out: &mut [u8]) -> Option<usize> {
    let asked = ipv6::Header::parse(packet).ok()?;
    let len = ipv6::HEADER_LEN + usize::from(asked.payload_len);
    let upper = ipv6::upper(packet)?;
    // Types below 128 are errors (RFC 4443, section 2.1).
    let error = upper.protocol == protocol::ICMPV6
        && packet.get(upper.offset).is_none_or(|kind| *kind < 128);
    if len <= LEAST_V6 || error || asked.source.is_unspecified() || asked.source.is_multicast() {
        return None;
    }
    let quoted = len.min(LEAST_V6 - ipv6::HEADER_LEN - ICMP_LEN);
    let header = ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: (ICMP_LEN + quoted) as u16,
        next_header: protocol::ICMPV6,
        hop_limit: TTL,
        source: asked.destination,
        destination: asked.source,
    };
    let at = header.emit(out).ok()?;
    let message = out.get_mut(at..at + ICMP_LEN + quoted)?;
    message[..ICMP_LEN].fill(0);
    message[0] = PACKET_TOO_BIG;
    let told = mtu.max(LEAST_V6) as u32;
    message[4..8].copy_from_slice(&told.to_be_bytes());
    message[ICMP_LEN..].copy_from_slice(packet.get(..quoted)?);
    let sum = Sum::new()
        .pseudo_header(
            header.source.into(),
            header.destination.into(),
            protocol::ICMPV6,
        )
        .double(message.len() as u32)
        .bytes(message)
        .finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(at + message.len())
}

/// Where a frame's TCP header is, and the room for TCP's headers and data, in a SYN.
struct Syn {
    /// Offset of the TCP header.
    l4: usize,
    end: usize,
    most: usize,
    sum: Sum,
}

/// Whether a frame may be a TCP segment that begins a connection: cheap, and true for all that are.
#[inline]
#[must_use]
pub fn may_be_syn(frame: &[u8]) -> bool {
    // Data segments leave here: a SYN is short.
    frame.len() <= 256
}

/// Lowers the MSS that a TCP segment with SYN offers to what fits frames of `longest` bytes.
///
/// Says whether there was something to lower. A checksum that was right is right again; one that is
/// still to be completed needs no change.
pub fn clamp_mss(frame: &mut [u8], longest: usize) -> bool {
    let Some(syn) = find_syn(frame, longest) else {
        return false;
    };
    let Some(at) = find_mss(&frame[syn.l4..syn.end]).map(|at| syn.l4 + at) else {
        return false;
    };
    let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let new = u16::try_from(syn.most).unwrap_or(u16::MAX);
    if old <= new {
        return false;
    }
    let segment = &frame[syn.l4..syn.end];
    let whole = syn.sum.bytes(segment).finish() == 0;
    frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
    if whole {
        let field = syn.l4 + 16;
        let before = u16::from_be_bytes([frame[field], frame[field + 1]]);
        // At an odd offset its two bytes belong to two words, the other way round.
        let after = if (at - syn.l4) % 2 == 0 {
            checksum::update(before, old, new)
        } else {
            checksum::update(before, old.swap_bytes(), new.swap_bytes())
        };
        frame[field..field + 2].copy_from_slice(&after.to_be_bytes());
    }
    true
}

fn find_syn(frame: &[u8], longest: usize) -> Option<Syn> {
    let (kind, l3) = ethernet::payload(frame)?;
    let packet = frame.get(l3..)?;
    let (l4, len, ip, source, destination) = match kind {
        ethertype::IPV4 => {
            let header = ipv4::Header::parse(packet).ok()?;
            if header.protocol != protocol::TCP || header.is_fragment() {
                return None;
            }
            let (source, destination) = (header.source.into(), header.destination.into());
            let len = usize::from(header.total_len);
            (header.len(), len, ipv4::HEADER_LEN, source, destination)
        }
        ethertype::IPV6 => {
            let header = ipv6::Header::parse(packet).ok()?;
            let upper = ipv6::upper(packet)?;
            if upper.protocol != protocol::TCP || upper.fragment {
                return None;
            }
            let (source, destination) = (header.source.into(), header.destination.into());
            let len = ipv6::HEADER_LEN + usize::from(header.payload_len);
            (upper.offset, len, ipv6::HEADER_LEN, source, destination)
        }
        _ => return None,
    };
    let segment = packet.get(l4..len)?;
    let header = tcp::Header::parse(segment).ok()?;
    if header.flags & tcp::flag::SYN == 0 {
        return None;
    }
    let sum = Sum::new()
        .pseudo_header(source, destination, protocol::TCP)
        .double(segment.len() as u32);
    Some(Syn {
        l4: l3 + l4,
        end: l3 + len,
        most: longest.checked_sub(l3 + ip + tcp::HEADER_LEN)?,
        sum,
    })
}

/// Offset of the MSS in a TCP header whose options are whole.
fn find_mss(segment: &[u8]) -> Option<usize> {
    let end = tcp::Header::parse(segment).ok()?.len();
    let mut at = tcp::HEADER_LEN;
    while at < end {
        at += match segment[at] {
            END => return None,
            NOTHING => 1,
            kind => {
                let len = usize::from(*segment.get(at + 1)?);
                if kind == MSS && len == 4 && at + 4 <= end {
                    return Some(at + 2);
                }
                len.max(2)
            }
        };
    }
    None
}
