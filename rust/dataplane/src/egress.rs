//! Decision for a frame that a port gave: container to wire.

use std::net::{IpAddr, Ipv6Addr};

use crate::drop::DropReason;
use crate::table::Tables;
use crate::wire::{
    arp,
    ethernet::{self, ethertype},
    icmpv6, ipv6, protocol, MacAddr, WireError,
};

/// Longest reply: Ethernet with two tags, IPv6, neighbour advertisement with one option.
const REPLY_LEN: usize = ethernet::HEADER_LEN
    + ethernet::MAX_TAGS * ethernet::TAG_LEN
    + ipv6::HEADER_LEN
    + icmpv6::LEN_WITH_MAC;

/// All nodes on the link (RFC 4291, section 2.7.1), and its MAC address (RFC 2464, section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// What becomes of a frame from a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Egress<'t> {
    /// Encapsulate it and send it to this VTEP.
    Unicast {
        /// Underlay address of the VTEP.
        vtep: IpAddr,
    },
    /// Encapsulate it and send a copy to each VTEP, if the rate limit allows.
    Flood {
        /// Underlay addresses of the VTEPs; at least one.
        vteps: &'t [IpAddr],
    },
    /// Write the frame in the reply buffer back to the port; the request goes nowhere.
    Reply,
    /// Count it and forget it.
    Drop(DropReason),
}

/// Room for the one frame that a decision may answer with. Lives as long as its worker.
#[derive(Clone, Debug)]
pub struct ReplyBuffer {
    bytes: [u8; REPLY_LEN],
    len: usize,
}

impl ReplyBuffer {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        ReplyBuffer {
            bytes: [0; REPLY_LEN],
            len: 0,
        }
    }

    /// The frame of the last [`Egress::Reply`]; empty before the first.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Default for ReplyBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// Decides about `frame`, which came from a port of the tables' VNI.
///
/// ARP requests (RFC 826) and neighbour solicitations (RFC 4861) for a known neighbour are answered
/// into `reply`, be they broadcast, unicast or probes; those that are not unicast and ask for an
/// unknown one are dropped, and so is every other ARP message and neighbour advertisement that is
/// not unicast: all hosts know all neighbours. Any other frame goes where its destination MAC says: to one VTEP, or to
/// all of the flood list for broadcast and multicast. VLAN tags are looked through, and a reply
/// carries those of its request.
#[inline]
#[must_use]
pub fn decide<'t>(frame: &[u8], tables: &'t Tables, reply: &mut ReplyBuffer) -> Egress<'t> {
    let Some(((destination, source), (kind, offset))) =
        ethernet::addresses(frame).zip(ethernet::payload(frame))
    else {
        return Egress::Drop(DropReason::FrameMalformed);
    };
    if !source.is_station() {
        return Egress::Drop(DropReason::FrameMalformed);
    }
    if tables.lookup(&source).is_some() {
        return Egress::Drop(DropReason::SourceMacElsewhere);
    }
    let question = match kind {
        ethertype::ARP => arp_question(&frame[offset..]),
        ethertype::IPV6 => solicitation(&frame[offset..]),
        _ => Question::None,
    };
    match question {
        Question::None | Question::Announcement => {}
        Question::Malformed => return Egress::Drop(DropReason::FrameMalformed),
        Question::Arp(request) => {
            if let Some(mac) = tables.neighbour(IpAddr::V4(request.target_ip)) {
                return answer(answer_arp(frame, &request, mac, reply));
            }
        }
        Question::Neighbour(asker, target) => {
            if let Some(mac) = tables.neighbour(IpAddr::V6(target)) {
                return answer(answer_solicitation(frame, asker, target, mac, reply));
            }
        }
    }
    if destination.is_multicast() {
        return flood(!matches!(question, Question::None), tables);
    }
    match tables.lookup(&destination) {
        Some(vtep) => Egress::Unicast { vtep },
        None => Egress::Drop(DropReason::DestinationUnknown),
    }
}

/// What a frame asks the neighbour table.
enum Question {
    None,
    /// It asks nothing, but tells what every host knows already.
    Announcement,
    Malformed,
    Arp(arp::Message),
    /// Source and target of a solicitation.
    Neighbour(Ipv6Addr, Ipv6Addr),
}

fn arp_question(bytes: &[u8]) -> Question {
    match arp::Message::parse(bytes) {
        Ok(message) if message.operation == arp::REQUEST => Question::Arp(message),
        Ok(_) => Question::Announcement,
        Err(_) => Question::Malformed,
    }
}

#[inline]
fn solicitation(packet: &[u8]) -> Question {
    // TCP and UDP without extension headers leave here.
    if matches!(packet.get(6), Some(&(protocol::TCP | protocol::UDP))) {
        return Question::None;
    }
    match icmpv6::solicitation(packet) {
        None if icmpv6::is_advertisement(packet) => Question::Announcement,
        None => Question::None,
        Some(Ok((header, message))) => Question::Neighbour(header.source, message.target),
        Some(Err(_)) => Question::Malformed,
    }
}

#[inline]
fn flood(about_neighbours: bool, tables: &Tables) -> Egress<'_> {
    if about_neighbours {
        Egress::Drop(DropReason::NeighbourUnknown)
    } else if !tables.multicast() {
        Egress::Drop(DropReason::MulticastOff)
    } else if tables.flood().is_empty() {
        Egress::Drop(DropReason::FloodEmpty)
    } else {
        Egress::Flood {
            vteps: tables.flood(),
        }
    }
}

fn answer(emitted: Result<usize, WireError>) -> Egress<'static> {
    match emitted {
        Ok(_) => Egress::Reply,
        Err(_) => Egress::Drop(DropReason::FrameMalformed),
    }
}

fn answer_arp(
    frame: &[u8],
    request: &arp::Message,
    mac: MacAddr,
    reply: &mut ReplyBuffer,
) -> Result<usize, WireError> {
    let mut header = ethernet::Header::parse(frame)?;
    header.destination = std::mem::replace(&mut header.source, mac);
    let message = arp::Message {
        operation: arp::REPLY,
        sender_mac: mac,
        sender_ip: request.target_ip,
        target_mac: request.sender_mac,
        target_ip: request.sender_ip,
    };
    let at = header.emit(&mut reply.bytes)?;
    reply.len = at + message.emit(&mut reply.bytes[at..])?;
    Ok(reply.len)
}

fn answer_solicitation(
    frame: &[u8],
    asker: Ipv6Addr,
    target: Ipv6Addr,
    mac: MacAddr,
    reply: &mut ReplyBuffer,
) -> Result<usize, WireError> {
    let mut header = ethernet::Header::parse(frame)?;
    // Duplicate address detection has no address yet to answer to (RFC 4861, section 7.2.4).
    let solicited = !asker.is_unspecified();
    let (destination, destination_mac) = if solicited {
        (asker, header.source)
    } else {
        (ALL_NODES, ALL_NODES_MAC)
    };
    header.destination = destination_mac;
    header.source = mac;
    let packet = ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: icmpv6::LEN_WITH_MAC as u16,
        next_header: protocol::ICMPV6,
        hop_limit: icmpv6::HOP_LIMIT,
        source: target,
        destination,
    };
    let message = icmpv6::Advertisement {
        router: false,
        solicited,
        replace: true,
        target,
        target_mac: Some(mac),
    };
    let at = header.emit(&mut reply.bytes)?;
    let at = at + packet.emit(&mut reply.bytes[at..])?;
    reply.len = at + message.emit(target, destination, &mut reply.bytes[at..])?;
    Ok(reply.len)
}
