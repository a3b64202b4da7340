//! Joining TCP segments and UDP datagrams of one flow to super-frames (receive offload).

use std::ops::Range;

use super::group::{Append, Group};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, ethertype};
use crate::wire::virtio::VnetHdr;
use crate::wire::{be16, ipv4, ipv6, protocol, tcp, udp};

/// Flows that are held back at the same time.
const GROUPS: usize = 8;

/// One payload of a super-frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<H> {
    /// What the caller named the frame by.
    pub handle: H,
    /// Where the payload lies in that frame.
    pub payload: Range<u32>,
}

/// A super-frame: headers, then the payload of each piece in order.
#[derive(Clone, Debug)]
pub struct Joined<'c, H> {
    /// The virtio-net header to write in front.
    pub vnet: VnetHdr,
    /// Ethernet to TCP or UDP, patched.
    pub header: &'c [u8],
    /// At least two payloads, at most [`super::MAX_PIECES`].
    pub pieces: &'c [Piece<H>],
}

/// What leaves a [`Coalescer`], in the order in which it must be written.
#[derive(Clone, Debug)]
pub enum Output<'c, H> {
    /// The frame as it came; write it with [`VnetHdr::NONE`].
    Single(H),
    /// Several frames as one.
    Joined(Joined<'c, H>),
}

/// Joins segments by the rules of Linux's GRO (`net/ipv4/tcp_offload.c`, `udp_offload.c`).
///
/// TCP segments are joined if nothing but sequence number, IPv4 identification, checksum, PSH and
/// FIN differs between them, they follow each other without a gap, all but the last have one size,
/// and every checksum is right; a TAP's kernel takes the whole as verified. A segment with CWR passes
/// alone: it is rare with classic ECN, and with Accurate ECN (RFC 9768) the flag is part of a counter
/// that not every kernel cuts as it was. Identifications must count up unless DF is set, for then
/// they mean nothing (RFC 6864). UDP datagrams are joined by the same rules as far as they have such
/// fields, if they have a checksum; a socket still receives every one by itself. What cannot be
/// joined passes as it is. Frames of one flow leave in the order in which they came; frames of
/// different flows may overtake each other. Holds neither frames nor references to them, only the
/// caller's handles.
///
/// One per port and worker; allocates nothing after [`Coalescer::new`].
#[derive(Debug)]
pub struct Coalescer<H> {
    groups: Vec<Group<H>>,
    /// Indices of `groups`: the first `open` are in use, oldest first.
    order: [usize; GROUPS],
    open: usize,
    datagrams: bool,
}

impl<H: Copy> Coalescer<H> {
    /// Allocates all room that will ever be needed.
    #[must_use]
    pub fn new() -> Self {
        Coalescer {
            groups: (0..GROUPS).map(|_| Group::new()).collect(),
            order: std::array::from_fn(|index| index),
            open: 0,
            datagrams: true,
        }
    }

    /// Leaves datagrams alone from now on; for kernels that take no super-frames of UDP.
    pub fn leave_datagrams(&mut self) {
        self.datagrams = false;
    }

    /// Takes a frame that the caller knows by `handle`; `emit` gets what must be written now, in
    /// order. The frame's bytes must stay as they are until its handle was emitted.
    #[inline]
    pub fn push(&mut self, frame: &[u8], handle: H, mut emit: impl FnMut(Output<'_, H>)) {
        match classify(frame) {
            Class::Other => emit(Output::Single(handle)),
            Class::Unjoinable(addresses) => {
                self.close_where(|group| group.addresses() == addresses, &mut emit);
                emit(Output::Single(handle));
            }
            Class::Joinable(segment) if segment.udp && !self.datagrams => {
                emit(Output::Single(handle));
            }
            Class::Joinable(segment) => self.push_segment(&segment, handle, &mut emit),
        }
    }

    /// Emits everything that is held back, oldest first. To be called at the end of every batch.
    #[inline]
    pub fn flush(&mut self, mut emit: impl FnMut(Output<'_, H>)) {
        self.close_where(|_| true, &mut emit);
    }

    fn push_segment(
        &mut self,
        segment: &Segment<'_>,
        handle: H,
        emit: &mut impl FnMut(Output<'_, H>),
    ) {
        let found = self.order[..self.open]
            .iter()
            .position(|&index| self.groups[index].is_flow_of(segment));
        if let Some(at) = found {
            match self.groups[self.order[at]].append(segment, handle) {
                Append::Open => return,
                Append::Complete => return self.close(at, emit),
                Append::Refused => self.close(at, emit),
            }
        }
        if !segment.can_begin() {
            return emit(Output::Single(handle));
        }
        if self.open == GROUPS {
            self.close(0, emit);
        }
        self.groups[self.order[self.open]].begin(segment, handle);
        self.open += 1;
    }

    fn close_where(
        &mut self,
        matches: impl Fn(&Group<H>) -> bool,
        emit: &mut impl FnMut(Output<'_, H>),
    ) {
        let mut at = 0;
        while at < self.open {
            if matches(&self.groups[self.order[at]]) {
                self.close(at, emit);
            } else {
                at += 1;
            }
        }
    }

    /// Emits the group at place `at` of the order and frees it.
    fn close(&mut self, at: usize, emit: &mut impl FnMut(Output<'_, H>)) {
        emit(self.groups[self.order[at]].finish());
        self.order[at..self.open].rotate_left(1);
        self.open -= 1;
    }
}

impl<H: Copy> Default for Coalescer<H> {
    fn default() -> Self {
        Self::new()
    }
}

/// A TCP segment or UDP datagram that may be joined: IP without options or extension headers, and
/// without padding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'f> {
    pub(super) frame: &'f [u8],
    pub(super) l3: usize,
    pub(super) l4: usize,
    pub(super) payload: usize,
    pub(super) ipv6: bool,
    pub(super) udp: bool,
}

enum Class<'f> {
    /// Neither TCP nor UDP; belongs to no flow that is held back.
    Other,
    /// TCP or UDP, or perhaps one of them, between these addresses.
    Unjoinable(&'f [u8]),
    Joinable(Segment<'f>),
}

#[inline]
fn classify(frame: &[u8]) -> Class<'_> {
    let Some((kind, l3)) = ethernet::payload(frame) else {
        return Class::Other;
    };
    let packet = &frame[l3..];
    let (next, l4, len, simple, addresses) = match (kind, packet) {
        (
            ethertype::IPV4,
            [version, _, len_a, len_b, _, _, fragment_a, fragment_b, _, next, ..],
        ) if packet.len() >= ipv4::HEADER_LEN && version >> 4 == 4 => {
            let len = usize::from(u16::from_be_bytes([*len_a, *len_b]));
            // Bits of the fragment field but DF.
            let whole = fragment_a & 0xbf == 0 && *fragment_b == 0;
            (
                *next,
                ipv4::HEADER_LEN,
                len,
                packet[0] == 0x45 && whole,
                &packet[12..20],
            )
        }
        (ethertype::IPV6, [version, _, _, _, len_a, len_b, next, ..])
            if packet.len() >= ipv6::HEADER_LEN && version >> 4 == 6 =>
        {
            let len = usize::from(u16::from_be_bytes([*len_a, *len_b]));
            (
                *next,
                ipv6::HEADER_LEN,
                ipv6::HEADER_LEN + len,
                true,
                &packet[8..40],
            )
        }
        _ => return Class::Other,
    };
    let header_len = match next {
        protocol::TCP => packet
            .get(l4 + 12)
            .map(|byte| usize::from(byte >> 4) * 4)
            .filter(|len| *len >= tcp::HEADER_LEN),
        protocol::UDP => be16(packet, l4 + 4)
            .filter(|udp_len| l4 + usize::from(*udp_len) == len)
            .map(|_| udp::HEADER_LEN),
        // Behind an extension header may be anything.
        _ if kind == ethertype::IPV6 && next != protocol::ICMPV6 => None,
        _ => return Class::Other,
    };
    let whole = simple && len == packet.len();
    match header_len.filter(|header_len| whole && l4 + header_len <= len) {
        None => Class::Unjoinable(addresses),
        Some(header_len) => Class::Joinable(Segment {
            frame,
            l3,
            l4: l3 + l4,
            payload: l3 + l4 + header_len,
            ipv6: kind == ethertype::IPV6,
            udp: next == protocol::UDP,
        }),
    }
}

impl<'f> Segment<'f> {
    #[inline]
    pub(super) fn payload_len(&self) -> usize {
        self.frame.len() - self.payload
    }

    /// Source and destination address.
    #[inline]
    pub(super) fn addresses(&self) -> &'f [u8] {
        let at = self.l3 + if self.ipv6 { 8 } else { 12 };
        &self.frame[at..self.l4]
    }

    #[inline]
    pub(super) fn protocol(&self) -> u8 {
        if self.udp {
            protocol::UDP
        } else {
            protocol::TCP
        }
    }

    /// TCP's flags; UDP has none.
    #[inline]
    pub(super) fn flags(&self) -> u8 {
        if self.udp {
            0
        } else {
            self.frame[self.l4 + super::field::TCP_FLAGS]
        }
    }

    /// TCP's sequence number; UDP has none.
    #[inline]
    pub(super) fn sequence(&self) -> u32 {
        if self.udp {
            return 0;
        }
        let at = self.l4 + super::field::TCP_SEQUENCE;
        self.frame[at..]
            .first_chunk()
            .map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    #[inline]
    fn can_begin(&self) -> bool {
        self.payload_len() != 0
            && self.flags() & super::flag::LONE == 0
            && self.checksums_are_right()
    }

    /// Whether the IPv4 header's and the segment's checksum are there and right.
    #[inline]
    pub(super) fn checksums_are_right(&self) -> bool {
        if self.udp && be16(self.frame, self.l4 + super::field::UDP_CHECKSUM) == Some(0) {
            return false;
        }
        if !self.ipv6 && Sum::new().bytes(&self.frame[self.l3..self.l4]).finish() != 0 {
            return false;
        }
        Sum::new()
            .bytes(self.addresses())
            .word(u16::from(self.protocol()))
            .word((self.frame.len() - self.l4) as u16)
            .bytes(&self.frame[self.l4..])
            .finish()
            == 0
    }
}
