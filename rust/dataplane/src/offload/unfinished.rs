//! Frames from the wire that a virtual link handed over before they were finished.

use std::net::IpAddr;

use super::{field, Segments};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, ethertype};
use crate::wire::virtio::{self, VnetHdr};
use crate::wire::{be16, ipv4, ipv6, protocol, tcp, vxlan, Vni};

/// Finds out whether the sender left `frame`'s checksum, and perhaps its segmentation, to a card.
///
/// Between virtual links (veth) nobody does a card's work: a peer's kernel vxlan device hands over
/// inner TCP and UDP with the pseudo header's sum in the checksum field, and TCP super-frames as one
/// datagram of up to 64 KiB. A socket is not told. But the field tells: it holds exactly that sum.
/// With the header that this returns, a TAP's kernel takes the frame as what it is; a frame that
/// is finished and has that checksum by chance (1 in 65536) is not harmed, since the field then
/// completes to itself. Super-frames get the segments that `mtu_bytes` allows.
///
/// None if the frame is finished, or is too long and no TCP super-frame.
#[must_use]
pub fn unfinished(frame: &[u8], mtu_bytes: usize) -> Option<VnetHdr> {
    let (kind, l3) = ethernet::payload(frame)?;
    let packet = &frame[l3..];
    let (upper, l4) = match kind {
        ethertype::IPV4 => upper_of_ipv4(packet)?,
        ethertype::IPV6 => upper_of_ipv6(packet)?,
        _ => return None,
    };
    let segment = &packet[l4..];
    let offset = match upper.protocol {
        protocol::TCP => field::TCP_CHECKSUM,
        protocol::UDP => field::UDP_CHECKSUM,
        _ => return None,
    };
    let pseudo = Sum::new()
        .pseudo_header(upper.source, upper.destination, upper.protocol)
        .word(u16::try_from(segment.len()).ok()?)
        .folded();
    if be16(segment, offset)? != pseudo {
        return None;
    }
    let mut header = VnetHdr {
        flags: virtio::FLAG_NEEDS_CSUM,
        csum_start: u16::try_from(l3 + l4).ok()?,
        csum_offset: offset as u16,
        ..VnetHdr::NONE
    };
    if packet.len() > mtu_bytes {
        if upper.protocol != protocol::TCP {
            return None;
        }
        let tcp = tcp::Header::parse(segment).ok()?;
        let headers = l4 + tcp.len();
        header.gso_size = u16::try_from(mtu_bytes.checked_sub(headers)?).ok()?;
        if header.gso_size == 0 {
            return None;
        }
        header.hdr_len = u16::try_from(l3 + headers).ok()?;
        header.gso_type = match upper.source {
            IpAddr::V4(_) => virtio::GSO_TCPV4,
            IpAddr::V6(_) => virtio::GSO_TCPV6,
        };
        if tcp.flags & tcp::flag::CWR != 0 {
            header.gso_type |= virtio::GSO_ECN;
        }
    }
    Some(header)
}

/// Finds out whether a received run of datagrams is one datagram with a super-frame of UDP.
///
/// A peer's kernel vxlan device on a virtual link hands over an inner UDP super-frame uncut, too.
/// The socket takes it for outer segmentation and reports the segments of the inner datagram,
/// `size` bytes each without headers, as the length of the outer ones. But then the inner packet is
/// longer than that, and in a true run it is shorter.
///
/// Returns the segments of the frame behind the VXLAN header; None for a true run. But a container
/// may lie about a packet's length: see [`may_be_run`].
#[must_use]
pub fn datagram_super_frame(run: &[u8], size: usize) -> Option<Segments<'_>> {
    if run.len() <= size {
        return None;
    }
    let header = VnetHdr {
        gso_type: virtio::GSO_UDP_L4,
        gso_size: u16::try_from(size).ok()?,
        ..VnetHdr::NONE
    };
    let segments = Segments::new(&header, run.get(vxlan::HEADER_LEN..)?).ok()?;
    (segments.remaining() > 1 && !segments.is_padded()).then_some(segments)
}

/// Whether what [`datagram_super_frame`] takes for one datagram may be a run of several all the same.
///
/// Taken for one, a run whose first inner packet claims to be as long as all of it would hand what
/// follows, other networks' frames among it, to the liar's peer. Taken for a run, a super-frame whose
/// payload imitates VXLAN would reach other networks. Either is told by a VXLAN header of a network
/// that `is_known`, as senders make it, where another datagram would begin; bytes that nobody made
/// for it do not have one. Such a message is neither, and must be dropped.
#[must_use]
pub fn may_be_run(run: &[u8], size: usize, is_known: impl Fn(Vni) -> bool) -> bool {
    run.chunks(size).skip(1).any(|datagram| {
        vxlan::parse(datagram)
            .is_ok_and(|vni| datagram.starts_with(&vxlan::header(vni)) && is_known(vni))
    })
}

/// What the pseudo header is made of.
struct Upper {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
}

/// Only of packets that fill the frame: the kernel completes a checksum up to the frame's end.
fn upper_of_ipv4(packet: &[u8]) -> Option<(Upper, usize)> {
    let header = ipv4::Header::parse(packet).ok()?;
    let upper = Upper {
        source: header.source.into(),
        destination: header.destination.into(),
        protocol: header.protocol,
    };
    let whole = usize::from(header.total_len) == packet.len() && !header.is_fragment();
    whole.then(|| (upper, header.len()))
}

fn upper_of_ipv6(packet: &[u8]) -> Option<(Upper, usize)> {
    let header = ipv6::Header::parse(packet).ok()?;
    let walked = ipv6::upper(packet)?;
    let upper = Upper {
        source: header.source.into(),
        destination: header.destination.into(),
        protocol: walked.protocol,
    };
    let whole = ipv6::HEADER_LEN + usize::from(header.payload_len) == packet.len()
        && !walked.fragment
        && !walked.routed;
    whole.then_some((upper, walked.offset))
}
