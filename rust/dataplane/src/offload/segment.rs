//! Segmentation of super-frames: TCP over IPv4 and IPv6 (TSO), UDP (USO).

use std::net::IpAddr;
use std::ops::Range;

use super::{field, flag, put16, MAX_HEADER_LEN, MAX_SEGMENTS};
use crate::drop::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, ethertype};
use crate::wire::virtio::{self, VnetHdr};
use crate::wire::{ipv4, ipv6, protocol, tcp, udp};

const MALFORMED: DropReason = DropReason::OffloadMalformed;

/// The segments of one super-frame, one after the other.
///
/// A segment is its own headers, which [`Segments::next_into`] writes, and a part of the
/// super-frame's payload, which stays where it is: both can be sent as one vector without a copy.
/// Headers and checksums are as Linux makes them: IPv4 identification counts up, CWR stays on the
/// first segment, FIN and PSH on the last, every checksum is complete.
#[derive(Clone, Debug)]
pub struct Segments<'f> {
    frame: &'f [u8],
    version: Version,
    transport: Transport,
    /// Offset of the IP header.
    l3: usize,
    /// Offset of the TCP or UDP header.
    l4: usize,
    /// Offset of the payload, so the length of all headers.
    payload: usize,
    /// End of the payload; padding may follow.
    end: usize,
    /// Payload bytes per segment.
    size: usize,
    /// Segments made so far.
    index: usize,
    count: usize,
}

/// The IP header's kind, with what all segments have in common.
#[derive(Clone, Copy, Debug)]
enum Version {
    /// First identification, and the sum of the header without length, identification, checksum.
    V4 {
        id: u16,
        sum: Sum,
    },
    V6,
}

/// The transport header's kind, with what all segments have in common.
#[derive(Clone, Copy, Debug)]
enum Transport {
    /// First sequence number, and the sum of pseudo header and header without length, sequence
    /// number, flags and checksum.
    Tcp { sequence: u32, sum: Sum },
    /// Sum of pseudo header and header without length and checksum; none if the checksum stays
    /// zero.
    Udp { sum: Option<Sum> },
}

impl<'f> Segments<'f> {
    /// Reads the headers of `frame`, which `hdr` calls a super-frame.
    ///
    /// # Errors
    ///
    /// [`DropReason::OffloadMalformed`] if the headers are not those that `hdr` names, are cut
    /// short, fragments or longer than [`MAX_HEADER_LEN`]; if the checksum that `hdr` asks for is
    /// not that of the transport header; for a segment size that gives more than [`MAX_SEGMENTS`]
    /// segments; and for kinds that are not segmented here: UFO, and tunnels in tunnels.
    pub fn new(hdr: &VnetHdr, frame: &'f [u8]) -> Result<Self, DropReason> {
        let (kind, l3) = ethernet::payload(frame).ok_or(MALFORMED)?;
        let protocol = match (hdr.gso_type & !virtio::GSO_ECN, kind) {
            (virtio::GSO_TCPV4, ethertype::IPV4) | (virtio::GSO_TCPV6, ethertype::IPV6) => {
                protocol::TCP
            }
            (virtio::GSO_UDP_L4, ethertype::IPV4 | ethertype::IPV6) => protocol::UDP,
            _ => return Err(MALFORMED),
        };
        let network = if kind == ethertype::IPV4 {
            Network::ipv4(&frame[l3..], protocol)?
        } else {
            Network::ipv6(&frame[l3..], protocol)?
        };
        let (l4, end) = (l3 + network.l4, l3 + network.end);
        let datagram = frame.get(l4..end).ok_or(MALFORMED)?;
        let (header_len, checksum_at) = if protocol == protocol::TCP {
            let header = tcp::Header::parse(datagram).map_err(|_| MALFORMED)?;
            (header.len(), field::TCP_CHECKSUM)
        } else {
            (udp::HEADER_LEN, field::UDP_CHECKSUM)
        };
        let header = datagram.get(..header_len).ok_or(MALFORMED)?;
        let payload = l4 + header_len;
        let named =
            usize::from(hdr.csum_start) == l4 && usize::from(hdr.csum_offset) == checksum_at;
        if payload > MAX_HEADER_LEN || (hdr.needs_csum() && !named) {
            return Err(MALFORMED);
        }
        let field = u16::from_be_bytes([header[checksum_at], header[checksum_at + 1]]);
        let pseudo = match network.pseudo {
            Some(sum) => sum,
            // The destination is not the last one, but the sender knew the last one: its sum of
            // the pseudo header is right up to the length.
            None if hdr.needs_csum() => Sum::new().word(field).word(!(datagram.len() as u16)),
            None => return Err(MALFORMED),
        };
        let transport = if protocol == protocol::TCP {
            Transport::Tcp {
                sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                sum: pseudo
                    .bytes(&header[..4])
                    .bytes(&header[8..12])
                    .bytes(&header[14..16])
                    .bytes(&header[18..]),
            }
        } else {
            let wanted = hdr.needs_csum() || field != 0;
            Transport::Udp {
                sum: wanted.then(|| pseudo.bytes(&header[..4])),
            }
        };
        let size = usize::from(hdr.gso_size);
        let count = match size {
            0 => return Err(MALFORMED),
            _ => (end - payload).div_ceil(size).max(1),
        };
        if count > MAX_SEGMENTS {
            return Err(MALFORMED);
        }
        Ok(Segments {
            frame,
            version: network.version,
            transport,
            l3,
            l4,
            payload,
            end,
            size,
            index: 0,
            count,
        })
    }

    /// Length of the headers of every segment (Ethernet to TCP or UDP), in bytes.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.payload
    }

    /// Length of the longest segment as a frame, in bytes. Every segment but the last has it; the
    /// last may be shorter.
    #[inline]
    #[must_use]
    pub fn frame_len(&self) -> usize {
        self.payload + self.size.min(self.end - self.payload)
    }

    /// Whether the frame goes on behind the packet.
    pub(super) fn is_padded(&self) -> bool {
        self.end < self.frame.len()
    }

    /// Number of segments that are left.
    #[inline]
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.count - self.index
    }

    /// Writes the headers of the next segment to the beginning of `scratch`.
    ///
    /// Returns their length, which is [`Segments::header_len`], and where the segment's payload lies
    /// in the super-frame. None after the last segment, and if `scratch` is shorter than the headers;
    /// the segment is then still to come.
    #[inline]
    pub fn next_into(&mut self, scratch: &mut [u8]) -> Option<(usize, Range<usize>)> {
        if self.index == self.count {
            return None;
        }
        let header = scratch.get_mut(..self.payload)?;
        header.copy_from_slice(&self.frame[..self.payload]);
        let start = self.payload + self.index * self.size;
        let range = start..self.end.min(start + self.size);
        let frame_len = self.payload + range.len();
        self.patch_network(header, frame_len);
        self.patch_transport(header, &self.frame[range.clone()]);
        self.index += 1;
        Some((self.payload, range))
    }

    /// Patches the IP header of a segment whose frame is `frame_len` long.
    #[inline]
    fn patch_network(&self, header: &mut [u8], frame_len: usize) {
        match self.version {
            Version::V4 { id, sum } => {
                let len = (frame_len - self.l3) as u16;
                let id = id.wrapping_add(self.index as u16);
                let sum = sum.word(len).word(id).finish();
                put16(header, self.l3 + field::IPV4_LEN, len);
                put16(header, self.l3 + field::IPV4_ID, id);
                put16(header, self.l3 + field::IPV4_CHECKSUM, sum);
            }
            Version::V6 => {
                let len = (frame_len - self.l3 - ipv6::HEADER_LEN) as u16;
                put16(header, self.l3 + field::IPV6_LEN, len);
            }
        }
    }

    #[inline]
    fn patch_transport(&self, header: &mut [u8], payload: &[u8]) {
        let l4 = self.l4;
        let len = (self.payload - l4 + payload.len()) as u16;
        match self.transport {
            Transport::Tcp { sequence, sum } => {
                let sequence = sequence.wrapping_add((self.index * self.size) as u32);
                header[l4 + field::TCP_SEQUENCE..][..4].copy_from_slice(&sequence.to_be_bytes());
                let flags = &mut header[l4 + field::TCP_FLAGS];
                if self.index != 0 {
                    *flags &= !flag::CWR;
                }
                if self.index + 1 != self.count {
                    *flags &= !flag::FIN_PSH;
                }
                let offset_and_flags = [header[l4 + 12], header[l4 + 13]];
                let sum = sum
                    .word(len)
                    .double(sequence)
                    .word(u16::from_be_bytes(offset_and_flags))
                    .bytes(payload)
                    .finish();
                put16(header, l4 + field::TCP_CHECKSUM, sum);
            }
            Transport::Udp { sum } => {
                put16(header, l4 + field::UDP_LEN, len);
                if let Some(sum) = sum {
                    // The length is in the pseudo header and in the header.
                    let sum = sum.word(len).word(len).bytes(payload).finish_nonzero();
                    put16(header, l4 + field::UDP_CHECKSUM, sum);
                }
            }
        }
    }
}

/// What the IP header of a super-frame tells; offsets count from its beginning.
struct Network {
    version: Version,
    l4: usize,
    end: usize,
    /// Sum of the pseudo header without its length; none if the header does not show the last
    /// destination.
    pseudo: Option<Sum>,
}

impl Network {
    fn ipv4(packet: &[u8], protocol: u8) -> Result<Self, DropReason> {
        let header = ipv4::Header::parse(packet).map_err(|_| MALFORMED)?;
        if header.protocol != protocol || header.is_fragment() {
            return Err(MALFORMED);
        }
        let sum = Sum::new()
            .bytes(&packet[..2])
            .bytes(&packet[6..10])
            .bytes(&packet[12..header.len()]);
        let (source, destination) = (header.source.into(), header.destination.into());
        Ok(Network {
            version: Version::V4 { id: header.id, sum },
            l4: header.len(),
            end: usize::from(header.total_len),
            pseudo: (!has_source_route(header.options))
                .then(|| Sum::new().pseudo_header(source, destination, protocol)),
        })
    }

    fn ipv6(packet: &[u8], protocol: u8) -> Result<Self, DropReason> {
        let header = ipv6::Header::parse(packet).map_err(|_| MALFORMED)?;
        let upper = ipv6::upper(packet).ok_or(MALFORMED)?;
        if upper.protocol != protocol || upper.fragment_header {
            return Err(MALFORMED);
        }
        let (source, destination) = (IpAddr::V6(header.source), IpAddr::V6(header.destination));
        Ok(Network {
            version: Version::V6,
            l4: upper.offset,
            end: ipv6::HEADER_LEN + usize::from(header.payload_len),
            pseudo: (!upper.routed)
                .then(|| Sum::new().pseudo_header(source, destination, protocol)),
        })
    }
}

/// Whether IPv4 options hold a loose or strict source route (RFC 791, section 3.1).
fn has_source_route(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    while let [kind, rest @ ..] = options {
        options = match *kind {
            END => return false,
            NOTHING => rest,
            LOOSE | STRICT => return true,
            _ => match rest.first() {
                Some(len @ 2..) => options.get(usize::from(*len)..).unwrap_or_default(),
                _ => return false,
            },
        };
    }
    false
}
