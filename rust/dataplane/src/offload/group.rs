//! The segments of one flow that are being joined.

use super::coalesce::{Joined, Output, Piece, Segment};
use super::{field, flag, put16, MAX_PIECES};
use crate::wire::checksum::{checksum, Sum};
use crate::wire::virtio::{self, VnetHdr};
use crate::wire::{ethernet, ipv6, protocol, tcp};

/// Longest IP packet: its length must fit 16 bits.
const MAX_PACKET_LEN: usize = 65535;
/// Ethernet with tags, IP without options, TCP with options.
const HEADER_ROOM: usize = ethernet::HEADER_LEN
    + ethernet::MAX_TAGS * ethernet::TAG_LEN
    + ipv6::HEADER_LEN
    + tcp::MAX_HEADER_LEN;

/// Data offset, flags and window as one word: what of it may differ (FIN, PSH).
const FREE_FLAGS: u32 = u32::from_be_bytes([0, flag::FIN_PSH, 0, 0]);

/// What became of a segment.
pub(super) enum Append {
    /// It was joined, and more may follow.
    Open,
    /// It was joined, and nothing may follow.
    Complete,
    /// It was not joined and nothing changed.
    Refused,
}

#[derive(Debug)]
pub(super) struct Group<H> {
    /// Headers of the first segment, for TCP with PSH and FIN of the last.
    header: [u8; HEADER_ROOM],
    l3: usize,
    l4: usize,
    header_len: usize,
    ipv6: bool,
    udp: bool,
    pieces: Vec<Piece<H>>,
    payload_len: usize,
    /// Payload of every segment but the last.
    size: usize,
    /// For TCP.
    next_sequence: u32,
    /// What the next identification must be; none if it does not matter.
    next_id: Option<u16>,
}

impl<H: Copy> Group<H> {
    pub(super) fn new() -> Self {
        Group {
            header: [0; HEADER_ROOM],
            l3: 0,
            l4: 0,
            header_len: 0,
            ipv6: false,
            udp: false,
            pieces: Vec::with_capacity(MAX_PIECES),
            payload_len: 0,
            size: 0,
            next_sequence: 0,
            next_id: None,
        }
    }

    /// Forgets what was before and begins with `segment`.
    #[inline]
    pub(super) fn begin(&mut self, segment: &Segment<'_>, handle: H) {
        let Segment {
            frame,
            l3,
            l4,
            payload,
            ipv6,
            udp,
        } = *segment;
        // Fits: tags, IP and TCP headers are bounded by what `classify` lets pass.
        self.header[..payload].copy_from_slice(&frame[..payload]);
        self.l3 = l3;
        self.l4 = l4;
        self.header_len = payload;
        self.ipv6 = ipv6;
        self.udp = udp;
        self.size = segment.payload_len();
        self.payload_len = 0;
        self.next_sequence = segment.sequence();
        const DONT_FRAGMENT: u8 = 0x40;
        self.next_id = (!ipv6 && frame[l3 + 6] & DONT_FRAGMENT == 0).then(|| self.id_of(frame));
        self.pieces.clear();
        self.add(segment, handle);
    }

    /// Source and destination address.
    #[inline]
    pub(super) fn addresses(&self) -> &[u8] {
        let at = self.l3 + if self.ipv6 { 8 } else { 12 };
        &self.header[at..self.l4]
    }

    /// Whether protocol, addresses and ports are those of `segment`.
    #[inline]
    pub(super) fn is_flow_of(&self, segment: &Segment<'_>) -> bool {
        self.udp == segment.udp
            && self.header[self.l4..self.l4 + 4] == segment.frame[segment.l4..segment.l4 + 4]
            && self.addresses() == segment.addresses()
    }

    /// Joins `segment`, which is of this flow, if it continues it.
    #[inline]
    pub(super) fn append(&mut self, segment: &Segment<'_>, handle: H) -> Append {
        let len = segment.payload_len();
        let joinable = (1..=self.size).contains(&len)
            && self.header_len - self.l3 + self.payload_len + len <= MAX_PACKET_LEN
            && (self.udp || segment.sequence() == self.next_sequence)
            && self.has_headers_of(segment)
            && segment.checksums_are_right();
        if !joinable {
            return Append::Refused;
        }
        let flags = segment.flags();
        if !self.udp {
            self.header[self.l4 + field::TCP_FLAGS] |= flags & flag::FIN_PSH;
        }
        self.add(segment, handle);
        if len < self.size || flags & flag::LONE != 0 || self.pieces.len() == MAX_PIECES {
            Append::Complete
        } else {
            Append::Open
        }
    }

    /// What is to be written for the group, which is not empty.
    pub(super) fn finish(&mut self) -> Output<'_, H> {
        if let [piece] = &self.pieces[..] {
            return Output::Single(piece.handle);
        }
        let (l3, l4) = (self.l3, self.l4);
        let packet_len = self.header_len - l3 + self.payload_len;
        if self.ipv6 {
            let len = packet_len - ipv6::HEADER_LEN;
            put16(&mut self.header, l3 + field::IPV6_LEN, len as u16);
        } else {
            put16(&mut self.header, l3 + field::IPV4_LEN, packet_len as u16);
            put16(&mut self.header, l3 + field::IPV4_CHECKSUM, 0);
            let sum = checksum(&self.header[l3..l4]);
            put16(&mut self.header, l3 + field::IPV4_CHECKSUM, sum);
        }
        let segment_len = (self.header_len - l4 + self.payload_len) as u16;
        let (protocol, checksum_at, gso_type) = if self.udp {
            put16(&mut self.header, l4 + field::UDP_LEN, segment_len);
            (protocol::UDP, field::UDP_CHECKSUM, virtio::GSO_UDP_L4)
        } else {
            let kind = match self.ipv6 {
                true => virtio::GSO_TCPV6,
                false => virtio::GSO_TCPV4,
            };
            (protocol::TCP, field::TCP_CHECKSUM, kind)
        };
        let sum = Sum::new()
            .bytes(self.addresses())
            .word(u16::from(protocol))
            .word(segment_len)
            .folded();
        put16(&mut self.header, l4 + checksum_at, sum);
        Output::Joined(Joined {
            vnet: VnetHdr {
                flags: virtio::FLAG_NEEDS_CSUM,
                gso_type,
                hdr_len: self.header_len as u16,
                gso_size: self.size as u16,
                csum_start: l4 as u16,
                csum_offset: checksum_at as u16,
            },
            header: &self.header[..self.header_len],
            pieces: &self.pieces,
        })
    }

    #[inline]
    fn add(&mut self, segment: &Segment<'_>, handle: H) {
        let len = segment.payload_len();
        self.pieces.push(Piece {
            handle,
            payload: segment.payload as u32..segment.frame.len() as u32,
        });
        self.payload_len += len;
        self.next_sequence = self.next_sequence.wrapping_add(len as u32);
        self.next_id = self.next_id.map(|id| id.wrapping_add(1));
    }

    /// Whether the headers of `segment` are those of the group, apart from what may differ.
    #[inline]
    fn has_headers_of(&self, segment: &Segment<'_>) -> bool {
        let frame = segment.frame;
        let (l3, l4) = (self.l3, self.l4);
        let same = |from: usize, to: usize| self.header[from..to] == frame[from..to];
        if (segment.l3, segment.payload, segment.ipv6) != (l3, self.header_len, self.ipv6)
            || !same(0, l3)
        {
            return false;
        }
        let network = if self.ipv6 {
            // Version, traffic class, flow label; next header, hop limit.
            same(l3, l3 + 4) && same(l3 + 6, l3 + 8)
        } else {
            // Version, traffic class; fragment field, TTL, protocol.
            same(l3, l3 + 2)
                && same(l3 + 6, l3 + 10)
                && self.next_id.is_none_or(|id| id == self.id_of(frame))
        };
        if self.udp {
            return network;
        }
        // Acknowledgement; data offset, flags, window; urgent pointer and options.
        network
            && same(l4 + 8, l4 + 12)
            && (word(&self.header, l4 + 12) ^ word(frame, l4 + 12)) & !FREE_FLAGS == 0
            && same(l4 + field::TCP_CHECKSUM + 2, self.header_len)
    }

    /// IPv4 identification in `frame`, whose IP header lies where the group's does.
    #[inline]
    fn id_of(&self, frame: &[u8]) -> u16 {
        let at = self.l3 + field::IPV4_ID;
        u16::from_be_bytes([frame[at], frame[at + 1]])
    }
}

/// The big-endian word at `at`, which lies within `bytes`.
#[inline]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
