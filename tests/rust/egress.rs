//! Decisions from the container to the wire.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;
use support::{Packet, MAC_A, MAC_B};
use vxlan_dataplane::egress::{decide, Egress, ReplyBuffer};
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::ethernet::{self, ethertype, Tag};
use vxlan_dataplane::wire::{arp, icmpv6, ipv6, protocol, MacAddr, Vni};
use vxlan_dataplane::DropReason;

const ASKER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const KNOWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);
const ASKER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const KNOWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
const UNKNOWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 4);
const GROUP: MacAddr = MacAddr([1, 0, 0x5e, 0, 0, 0xfb]);
const MAC_C: MacAddr = MacAddr([2, 0x42, 10, 0, 0, 4]);

fn vtep(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 0, last).into()
}

/// MAC_B, with both known addresses, behind one VTEP of two.
fn tables() -> Tables {
    Tables::new(Vni::new(7).unwrap(), true)
        .with_changes(&[(MAC_B, vtep(2))], &[])
        .unwrap()
        .with_flood(&[vtep(2), vtep(3)])
        .unwrap()
        .with_neighbours(&[(KNOWN.into(), MAC_B), (KNOWN6.into(), MAC_B)])
        .unwrap()
}

/// The decision's text, without the tables' lifetime.
fn decision(frame: &[u8]) -> String {
    format!("{:?}", decide(frame, &tables(), &mut ReplyBuffer::new()))
}

fn dropped(reason: DropReason) -> String {
    format!("{:?}", Egress::Drop(reason))
}

fn unicast(last: u8) -> String {
    format!("{:?}", Egress::Unicast { vtep: vtep(last) })
}

fn flooded() -> String {
    let vteps = [vtep(2), vtep(3)];
    format!("{:?}", Egress::Flood { vteps: &vteps })
}

fn frame(destination: MacAddr, source: MacAddr) -> Vec<u8> {
    let mut frame = Packet::udp(false, b"data").frame();
    frame[..6].copy_from_slice(&destination.0);
    frame[6..12].copy_from_slice(&source.0);
    frame
}

fn arp_frame(destination: MacAddr, operation: u16, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; 60];
    let at = ethernet::Header::new(destination, MAC_A, ethertype::ARP)
        .emit(&mut frame)
        .unwrap();
    let message = arp::Message {
        operation,
        sender_mac: MAC_A,
        sender_ip: sender,
        target_mac: MacAddr::ZERO,
        target_ip: target,
    };
    message.emit(&mut frame[at..]).unwrap();
    frame
}

fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    arp_frame(MacAddr::BROADCAST, arp::REQUEST, ASKER, target)
}

/// A solicitation, multicast to the target's group; from the unspecified address it is one of
/// duplicate address detection.
fn solicitation(source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group_mac = MacAddr([0x33, 0x33, 0xff, a, b, c]);
    let [x, y] = [u16::from(a) | 0xff00, u16::from_be_bytes([b, c])];
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, x, y);
    solicitation_to(group_mac, group, source, target)
}

fn solicitation_to(
    destination_mac: MacAddr,
    destination: Ipv6Addr,
    source: Ipv6Addr,
    target: Ipv6Addr,
) -> Vec<u8> {
    let mut message = [0; icmpv6::LEN_WITH_MAC];
    let source_mac = (!source.is_unspecified()).then_some(MAC_A);
    let len = icmpv6::Solicitation { target, source_mac }
        .emit(source, destination, &mut message)
        .unwrap();
    let header = ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: len as u16,
        next_header: protocol::ICMPV6,
        hop_limit: 255,
        source,
        destination,
    };
    let mut frame = vec![0; 54];
    ethernet::Header::new(destination_mac, MAC_A, ethertype::IPV6)
        .emit(&mut frame)
        .unwrap();
    header.emit(&mut frame[14..]).unwrap();
    frame.extend(&message[..len]);
    frame
}

fn with_tag(frame: &[u8], tag: [u8; 4]) -> Vec<u8> {
    [&frame[..12], &tag, &frame[12..]].concat()
}

#[test]
fn unicast_goes_to_the_vtep_of_its_destination() {
    assert_eq!(decision(&frame(MAC_B, MAC_A)), unicast(2));
}

#[test]
fn unknown_unicast_is_dropped() {
    assert_eq!(
        decision(&frame(MAC_C, MAC_A)),
        dropped(DropReason::DestinationUnknown)
    );
    assert_eq!(
        decision(&frame(MacAddr::ZERO, MAC_A)),
        dropped(DropReason::DestinationUnknown)
    );
}

#[test]
fn source_that_lives_elsewhere_is_dropped() {
    for destination in [MAC_B, MAC_C, MacAddr::BROADCAST] {
        assert_eq!(
            decision(&frame(destination, MAC_B)),
            dropped(DropReason::SourceMacElsewhere)
        );
    }
}

#[test]
fn source_that_cannot_be_is_malformed() {
    for source in [MacAddr::ZERO, MacAddr::BROADCAST, GROUP] {
        assert_eq!(
            decision(&frame(MAC_B, source)),
            dropped(DropReason::FrameMalformed)
        );
    }
}

#[test]
fn frame_without_a_whole_header_is_malformed() {
    let tagged = with_tag(&frame(MAC_B, MAC_A), [0x81, 0, 0, 5]);
    for len in 0..18 {
        assert_eq!(
            decision(&tagged[..len]),
            dropped(DropReason::FrameMalformed)
        );
    }
    assert_eq!(decision(&tagged[..18]), unicast(2));
}

#[test]
fn broadcast_and_multicast_go_to_the_flood_list() {
    assert_eq!(decision(&frame(MacAddr::BROADCAST, MAC_A)), flooded());
    assert_eq!(decision(&frame(GROUP, MAC_A)), flooded());
}

#[test]
fn multicast_is_dropped_where_it_is_off() {
    let tables = tables().with_multicast(false);
    let mut reply = ReplyBuffer::new();
    let decision = decide(&frame(GROUP, MAC_A), &tables, &mut reply);
    assert_eq!(decision, Egress::Drop(DropReason::MulticastOff));
    let decision = decide(&arp_request(KNOWN), &tables, &mut reply);
    assert_eq!(decision, Egress::Reply, "neighbours do not need multicast");
}

#[test]
fn multicast_with_nobody_to_send_to_is_counted_as_such() {
    let tables = tables().with_flood(&[]).unwrap();
    let decision = decide(&frame(GROUP, MAC_A), &tables, &mut ReplyBuffer::new());
    assert_eq!(decision, Egress::Drop(DropReason::FloodEmpty));
}

#[test]
fn arp_request_for_a_known_address_is_answered() {
    let mut reply = ReplyBuffer::new();
    assert_eq!(
        decide(&arp_request(KNOWN), &tables(), &mut reply),
        Egress::Reply
    );
    let header = ethernet::Header::parse(reply.frame()).unwrap();
    assert_eq!(header, ethernet::Header::new(MAC_A, MAC_B, ethertype::ARP));
    let expected = arp::Message {
        operation: arp::REPLY,
        sender_mac: MAC_B,
        sender_ip: KNOWN,
        target_mac: MAC_A,
        target_ip: ASKER,
    };
    assert_eq!(arp::Message::parse(&reply.frame()[14..]), Ok(expected));
    assert_eq!(reply.frame().len(), 42);
}

#[test]
fn arp_requests_that_are_unicast_or_probes_are_answered_too() {
    let mut reply = ReplyBuffer::new();
    for frame in [
        arp_frame(MAC_B, arp::REQUEST, ASKER, KNOWN),
        arp_frame(
            MacAddr::BROADCAST,
            arp::REQUEST,
            Ipv4Addr::UNSPECIFIED,
            KNOWN,
        ),
        arp_frame(MacAddr::BROADCAST, arp::REQUEST, KNOWN, KNOWN),
    ] {
        assert_eq!(decide(&frame, &tables(), &mut reply), Egress::Reply);
        let message = arp::Message::parse(&reply.frame()[14..]).unwrap();
        assert_eq!((message.sender_mac, message.sender_ip), (MAC_B, KNOWN));
    }
}

#[test]
fn tagged_arp_request_gets_a_tagged_answer() {
    let mut reply = ReplyBuffer::new();
    let mut request = arp_request(KNOWN);
    request = with_tag(&request, [0x81, 0, 0, 5]);
    request = with_tag(&request, [0x88, 0xa8, 0, 6]);
    assert_eq!(decide(&request, &tables(), &mut reply), Egress::Reply);
    let header = ethernet::Header::parse(reply.frame()).unwrap();
    let tag = |protocol, control| Tag { protocol, control };
    assert_eq!(header.tags(), [tag(0x88a8, 6), tag(0x8100, 5)]);
}

#[test]
fn arp_about_unknown_addresses_is_never_flooded() {
    let unknown = dropped(DropReason::NeighbourUnknown);
    assert_eq!(decision(&arp_request(UNKNOWN)), unknown);
    assert_eq!(
        decision(&with_tag(&arp_request(UNKNOWN), [0x81, 0, 0, 5])),
        unknown
    );
    let announcement = arp_frame(MacAddr::BROADCAST, arp::REPLY, ASKER, ASKER);
    assert_eq!(decision(&announcement), unknown);
}

#[test]
fn unicast_arp_that_the_table_cannot_answer_goes_to_its_destination() {
    let request = arp_frame(MAC_B, arp::REQUEST, ASKER, UNKNOWN);
    assert_eq!(decision(&request), unicast(2));
    let answer = arp_frame(MAC_B, arp::REPLY, ASKER, KNOWN);
    assert_eq!(decision(&answer), unicast(2));
    let lost = arp_frame(MAC_C, arp::REQUEST, ASKER, UNKNOWN);
    assert_eq!(decision(&lost), dropped(DropReason::DestinationUnknown));
}

#[test]
fn broken_arp_is_malformed() {
    let mut request = arp_request(KNOWN);
    assert_eq!(
        decision(&request[..41]),
        dropped(DropReason::FrameMalformed)
    );
    request[18] = 8;
    assert_eq!(decision(&request), dropped(DropReason::FrameMalformed));
}

/// Checks a reply to a solicitation and returns its IPv6 header and message.
fn advertisement(reply: &ReplyBuffer) -> (ethernet::Header, ipv6::Header, icmpv6::Advertisement) {
    let frame = reply.frame();
    let header = ethernet::Header::parse(frame).unwrap();
    let packet = ipv6::Header::parse(&frame[14..]).unwrap();
    assert_eq!((packet.hop_limit, packet.next_header), (255, 58));
    assert_eq!(frame.len(), 14 + 40 + usize::from(packet.payload_len));
    let mut covered = [packet.source.octets(), packet.destination.octets()].concat();
    covered.extend([0, 58]);
    covered.extend(packet.payload_len.to_be_bytes());
    covered.extend(&frame[54..]);
    assert_eq!(support::naive_checksum(&covered), 0);
    let message = icmpv6::Advertisement::parse(&frame[54..]).unwrap();
    (header, packet, message)
}

#[test]
fn solicitation_for_a_known_address_is_answered() {
    let mut reply = ReplyBuffer::new();
    let request = solicitation(ASKER6, KNOWN6);
    assert_eq!(decide(&request, &tables(), &mut reply), Egress::Reply);
    let (header, packet, message) = advertisement(&reply);
    assert_eq!(header, ethernet::Header::new(MAC_A, MAC_B, ethertype::IPV6));
    assert_eq!((packet.source, packet.destination), (KNOWN6, ASKER6));
    let expected = icmpv6::Advertisement {
        router: false,
        solicited: true,
        replace: true,
        target: KNOWN6,
        target_mac: Some(MAC_B),
    };
    assert_eq!(message, expected);
}

#[test]
fn duplicate_address_detection_is_answered_to_all_nodes() {
    let mut reply = ReplyBuffer::new();
    let request = solicitation(Ipv6Addr::UNSPECIFIED, KNOWN6);
    assert_eq!(decide(&request, &tables(), &mut reply), Egress::Reply);
    let (header, packet, message) = advertisement(&reply);
    assert_eq!(header.destination, MacAddr([0x33, 0x33, 0, 0, 0, 1]));
    assert_eq!(
        packet.destination,
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
    );
    assert!(!message.solicited && message.replace);
}

#[test]
fn unicast_solicitation_is_answered_or_goes_to_its_destination() {
    let mut reply = ReplyBuffer::new();
    let known = solicitation_to(MAC_B, KNOWN6, ASKER6, KNOWN6);
    assert_eq!(decide(&known, &tables(), &mut reply), Egress::Reply);
    let unknown = solicitation_to(MAC_B, UNKNOWN6, ASKER6, UNKNOWN6);
    assert_eq!(decision(&unknown), unicast(2));
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

#[test]
fn solicitation_for_an_unknown_address_is_never_flooded() {
    let unknown = dropped(DropReason::NeighbourUnknown);
    assert_eq!(decision(&solicitation(ASKER6, UNKNOWN6)), unknown);
    assert_eq!(
        decision(&solicitation(Ipv6Addr::UNSPECIFIED, ASKER6)),
        unknown
    );
}

#[test]
fn neighbour_announcement_is_never_flooded_but_goes_to_one_host() {
    let mut frame = solicitation_to(ALL_NODES_MAC, ALL_NODES, ASKER6, ASKER6);
    frame[54] = icmpv6::ADVERTISEMENT;
    assert_eq!(decision(&frame), dropped(DropReason::NeighbourUnknown));
    frame[..6].copy_from_slice(&MAC_B.0);
    assert_eq!(decision(&frame), unicast(2));
}

#[test]
fn solicitation_hidden_behind_an_extension_header_is_seen() {
    let mut request = solicitation(ASKER6, UNKNOWN6);
    request[19] += 8;
    request[20] = 60;
    request.splice(54..54, [58, 0, 1, 4, 0, 0, 0, 0]);
    assert_eq!(decision(&request), dropped(DropReason::NeighbourUnknown));
}

#[test]
fn solicitation_that_a_host_must_ignore_is_malformed() {
    let good = solicitation(ASKER6, KNOWN6);
    let spoilt = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        decision(&frame)
    };
    let malformed = dropped(DropReason::FrameMalformed);
    assert_eq!(spoilt(21, 254), malformed, "hop limit");
    assert_eq!(spoilt(55, 1), malformed, "code");
    assert_eq!(spoilt(57, good[57] ^ 1), malformed, "checksum");
    assert_eq!(spoilt(62, 0xff), malformed, "multicast target");
    assert_eq!(spoilt(79, 0), malformed, "option of no length");
    assert_eq!(decision(&good[..85]), malformed, "cut short");
}

#[test]
fn other_icmpv6_is_carried_like_any_frame() {
    let mut echo = solicitation_to(MAC_B, KNOWN6, ASKER6, KNOWN6);
    echo[54] = 128;
    assert_eq!(decision(&echo), unicast(2));
}

proptest! {
    #[test]
    fn no_frame_makes_a_decision_panic_or_leaves_towards_nobody(
        bytes in vec(any::<u8>(), 0..160),
        kind in prop_oneof![Just(0x0806u16), Just(0x86dd), Just(0x8100), any::<u16>()],
    ) {
        let mut bytes = bytes;
        if let Some(field) = bytes.get_mut(12..14) {
            field.copy_from_slice(&kind.to_be_bytes());
        }
        let tables = tables();
        match decide(&bytes, &tables, &mut ReplyBuffer::new()) {
            Egress::Unicast { vtep } => prop_assert_eq!(tables.lookup(&MAC_B), Some(vtep)),
            Egress::Flood { vteps } => prop_assert!(bytes[0] & 1 == 1 && !vteps.is_empty()),
            _ => {}
        }
    }

    #[test]
    fn spoilt_neighbour_questions_make_no_panic(
        (at, value) in (0..90usize, any::<u8>()),
        cut in 0..90usize,
        arp in any::<bool>(),
    ) {
        let mut frame = if arp { arp_request(KNOWN) } else { solicitation(ASKER6, KNOWN6) };
        if let Some(byte) = frame.get_mut(at) {
            *byte = value;
        }
        let mut reply = ReplyBuffer::new();
        let tables = tables();
        let cut = cut.min(frame.len());
        let _ = decide(&frame[..cut], &tables, &mut reply);
        let _ = decide(&frame, &tables, &mut reply);
    }
}
