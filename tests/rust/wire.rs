//! Codecs: every parser is the inverse of its emitter, and no bytes make one panic.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;
use support::{
    arb_mac, arb_packet, arb_tags, arb_words, naive_checksum, Packet, Transport, MAC_A, MAC_B,
};
use vxlan_dataplane::wire::checksum::{self, Sum};
use vxlan_dataplane::wire::virtio::VnetHdr;
use vxlan_dataplane::wire::{
    arp, ethernet, flow_hash, icmpv6, ipv4, ipv6, protocol, source_port, tcp, udp, vxlan, MacAddr,
    Vni, WireError,
};

/// An IPv4 header of a SYN with its checksum: 172.16.10.99 to 172.16.10.12.
const IPV4_HEADER: &[u8] = &[
    0x45, 0x00, 0x00, 0x3c, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0xb1, 0xe6, 0xac, 0x10, 0x0a, 0x63,
    0xac, 0x10, 0x0a, 0x0c,
];

#[test]
fn known_ipv4_header_parses_with_a_right_checksum() {
    let mut packet = IPV4_HEADER.to_vec();
    packet.resize(60, 0);
    let header = ipv4::Header::parse(&packet).unwrap();
    assert!(ipv4::checksum_is_right(&packet));
    assert_eq!(header.source, Ipv4Addr::new(172, 16, 10, 99));
    assert_eq!(header.destination, Ipv4Addr::new(172, 16, 10, 12));
    assert_eq!((header.total_len, header.id, header.ttl), (60, 0x1c46, 64));
    assert!(header.dont_fragment && !header.is_fragment());
    let mut emitted = [0; 20];
    assert_eq!(header.emit(&mut emitted), Ok(20));
    assert_eq!(emitted, packet[..20]);
}

#[test]
fn checksum_of_the_rfcs_example_is_right() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(checksum::checksum(&bytes), !0xddf2);
}

#[test]
fn vxlan_header_is_that_of_the_rfc() {
    let vni = Vni::new(0x00ab_cdef).unwrap();
    let mut headroom = [0xee; 12];
    assert_eq!(vxlan::emit(vni, &mut headroom), Ok(4));
    assert_eq!(headroom[..4], [0xee; 4]);
    assert_eq!(headroom[4..], [0x08, 0, 0, 0, 0xab, 0xcd, 0xef, 0]);
    assert_eq!(
        vxlan::emit(vni, &mut [0; 7]),
        Err(WireError::Short { need: 8, have: 7 })
    );
}

#[test]
fn vxlan_without_the_vni_flag_is_refused() {
    let bytes = [0xf7, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(
        vxlan::parse(&bytes),
        Err(WireError::VxlanFlags { flags: 0xf7 })
    );
}

#[test]
fn vni_of_more_than_24_bits_is_refused() {
    assert_eq!(Vni::new(0x00ff_ffff), Ok(Vni::MAX));
    let error = Vni::new(0x0100_0000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "VNI 16777216 is above 16777215 (24 bits)"
    );
}

#[test]
fn arp_about_another_protocol_is_malformed() {
    let mut bytes = [0; arp::LEN];
    assert_eq!(
        arp::Message::parse(&bytes),
        Err(WireError::Malformed("ARP message"))
    );
    bytes[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    assert!(arp::Message::parse(&bytes).is_ok());
    assert!(arp::Message::parse(&bytes[..27]).is_err());
}

#[test]
fn extension_headers_are_walked_and_fragments_are_seen() {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 0, 255];
    packet.resize(40, 0);
    packet.extend([60, 0, 5, 2, 0, 0, 1, 0]); // hop-by-hop options: router alert
    packet.extend([43, 1, 1, 12]); // destination options of 16 bytes
    packet.resize(64, 0);
    packet.extend([44, 0, 4, 1, 0, 0, 0, 0]); // routing, one segment left
    packet.extend([6, 0, 0, 0, 0, 0, 0, 9]); // atomic fragment
    let upper = ipv6::upper(&packet).unwrap();
    assert_eq!((upper.protocol, upper.offset), (protocol::TCP, 80));
    assert!(upper.routed && upper.fragment_header && !upper.fragment);
    packet[75] = 1; // more fragments
    assert!(ipv6::upper(&packet).unwrap().fragment);
    assert_eq!(ipv6::upper(&packet[..79]), None);
}

#[test]
fn flow_keeps_its_port_whatever_its_payload_and_tags() {
    let a = Packet::tcp(false, 1, b"one");
    let mut b = Packet::tcp(false, 500, b"two").with_flags(tcp::flag::PSH);
    b.tags = vec![ethernet::Tag {
        protocol: ethernet::ethertype::VLAN,
        control: 7,
    }];
    assert_eq!(flow_hash(&a.frame()), flow_hash(&b.frame()));
    b.source_port += 1;
    assert_ne!(flow_hash(&a.frame()), flow_hash(&b.frame()));
}

#[test]
fn fragments_of_one_packet_keep_together() {
    let first = Packet::udp(false, b"12345678").frame();
    let (mut first, mut second) = (first.clone(), first);
    first[20] = 0x20; // more fragments
    second[21] = 1; // offset 8
    second[34..38].copy_from_slice(b"else");
    assert_eq!(flow_hash(&first), flow_hash(&second));
}

#[test]
fn flow_hash_is_the_same_in_every_release() {
    // A rolling upgrade must not move flows to other paths.
    assert_eq!(flow_hash(&Packet::tcp(false, 0, b"").frame()), V4_HASH);
    assert_eq!(flow_hash(&Packet::tcp(true, 0, b"").frame()), V6_HASH);
    assert_eq!(flow_hash(&[]), flow_hash(&[0; 5]));
}
const V4_HASH: u32 = 2_661_050_122;
const V6_HASH: u32 = 3_371_275_188;

/// Chi-square of the ports of 2^18 flows over 1024 buckets; 1023 degrees of freedom, so a mean of
/// 1023 and a standard deviation of 45.
fn spread(frame_of: impl Fn(u32) -> Vec<u8>) -> f64 {
    const FLOWS: u32 = 1 << 18;
    const BUCKETS: usize = 1024;
    let mut counts = [0u32; BUCKETS];
    for flow in 0..FLOWS {
        let port = source_port(flow_hash(&frame_of(flow)));
        assert!(port >= 49152);
        counts[usize::from(port) & (BUCKETS - 1)] += 1;
    }
    let mean = f64::from(FLOWS) / BUCKETS as f64;
    counts
        .iter()
        .map(|&n| (f64::from(n) - mean).powi(2) / mean)
        .sum()
}

#[test]
fn source_ports_are_spread_evenly_over_flows() {
    let limit = 1023.0 + 6.0 * 45.0;
    let frame = Packet::tcp(false, 0, b"").frame();
    let ports = spread(|flow| {
        let mut frame = frame.clone();
        frame[34..38].copy_from_slice(&(40000u32 << 16).wrapping_add(flow).to_be_bytes());
        frame
    });
    assert!(ports < limit, "consecutive ports: chi-square {ports}");
    let hosts = spread(|flow| {
        let mut frame = frame.clone();
        frame[27..30].copy_from_slice(&flow.to_be_bytes()[1..]);
        frame
    });
    assert!(
        hosts < limit,
        "consecutive IPv4 addresses: chi-square {hosts}"
    );
    let frame = Packet::tcp(true, 0, b"").frame();
    let hosts = spread(|flow| {
        let mut frame = frame.clone();
        frame[50..54].copy_from_slice(&flow.to_be_bytes());
        frame
    });
    assert!(
        hosts < limit,
        "consecutive IPv6 addresses: chi-square {hosts}"
    );
    let frame = [&MAC_B.0[..], &MAC_A.0, &[0x88, 0xcc, 0, 0]].concat();
    let stations = spread(|flow| {
        let mut frame = frame.clone();
        frame[8..12].copy_from_slice(&flow.to_be_bytes());
        frame
    });
    assert!(
        stations < limit,
        "consecutive MAC addresses: chi-square {stations}"
    );
}

#[test]
fn every_port_of_the_range_is_used() {
    let mut seen = vec![false; 1 << 16];
    for hash in (0..=u32::MAX).step_by(1 << 16) {
        seen[usize::from(source_port(hash))] = true;
    }
    assert!(seen[..49152].iter().all(|seen| !seen));
    assert!(seen[49152..].iter().all(|seen| *seen));
}

proptest! {
    #[test]
    fn ethernet_header_survives(
        (destination, source) in (arb_mac(), arb_mac()),
        tags in arb_tags(),
        kind in any::<u16>().prop_filter("no tag", |kind| ![0x8100, 0x88a8].contains(kind)),
        payload in vec(any::<u8>(), 0..32),
    ) {
        let header = ethernet::Header::new(destination, source, kind).with_tags(&tags).unwrap();
        let mut frame = vec![0; header.len()];
        prop_assert_eq!(header.emit(&mut frame), Ok(header.len()));
        prop_assert!(header.emit(&mut vec![0; header.len() - 1]).is_err());
        frame.extend(payload);
        prop_assert_eq!(ethernet::Header::parse(&frame), Ok(header));
        prop_assert_eq!(ethernet::addresses(&frame), Some((destination, source)));
        prop_assert_eq!(ethernet::payload(&frame), Some((kind, header.len())));
    }

    #[test]
    fn arp_message_survives(
        operation in any::<u16>(),
        (sender_mac, target_mac) in (arb_mac(), arb_mac()),
        (sender, target) in any::<(u32, u32)>(),
    ) {
        let message = arp::Message {
            operation,
            sender_mac,
            sender_ip: sender.into(),
            target_mac,
            target_ip: target.into(),
        };
        let mut bytes = [0; arp::LEN];
        prop_assert_eq!(message.emit(&mut bytes), Ok(arp::LEN));
        prop_assert_eq!(arp::Message::parse(&bytes), Ok(message));
    }

    #[test]
    fn ipv4_header_survives(
        (traffic_class, ttl, protocol, id) in any::<(u8, u8, u8, u16)>(),
        (dont_fragment, more_fragments) in any::<(bool, bool)>(),
        fragment_offset in 0..8192u16,
        (source, destination) in any::<(u32, u32)>(),
        options in arb_words(0..=10),
        payload in vec(any::<u8>(), 0..32),
    ) {
        let header = ipv4::Header {
            traffic_class,
            total_len: (20 + options.len() + payload.len()) as u16,
            id,
            dont_fragment,
            more_fragments,
            fragment_offset,
            ttl,
            protocol,
            source: source.into(),
            destination: destination.into(),
            options: &options,
        };
        let mut packet = vec![0; header.len()];
        prop_assert_eq!(header.emit(&mut packet), Ok(header.len()));
        prop_assert_eq!(naive_checksum(&packet), 0);
        packet.extend(&payload);
        prop_assert!(ipv4::checksum_is_right(&packet));
        prop_assert_eq!(ipv4::Header::parse(&packet), Ok(header));
        packet.pop();
        prop_assert!(ipv4::Header::parse(&packet).is_err());
    }

    #[test]
    fn ipv6_header_survives(
        (traffic_class, next_header, hop_limit) in any::<(u8, u8, u8)>(),
        flow_label in 0..1u32 << 20,
        (source, destination) in any::<([u8; 16], [u8; 16])>(),
        payload in vec(any::<u8>(), 0..32),
    ) {
        let header = ipv6::Header {
            traffic_class,
            flow_label,
            payload_len: payload.len() as u16,
            next_header,
            hop_limit,
            source: source.into(),
            destination: destination.into(),
        };
        let mut packet = vec![0; ipv6::HEADER_LEN];
        prop_assert_eq!(header.emit(&mut packet), Ok(ipv6::HEADER_LEN));
        packet.extend(&payload);
        prop_assert_eq!(ipv6::Header::parse(&packet), Ok(header));
        packet.pop();
        prop_assert!(ipv6::Header::parse(&packet).is_err());
    }

    #[test]
    fn udp_header_survives(
        (source_port, destination_port, checksum) in any::<(u16, u16, u16)>(),
        payload in vec(any::<u8>(), 0..32),
    ) {
        let len = (udp::HEADER_LEN + payload.len()) as u16;
        let header = udp::Header { source_port, destination_port, len, checksum };
        let mut datagram = vec![0; udp::HEADER_LEN];
        prop_assert_eq!(header.emit(&mut datagram), Ok(udp::HEADER_LEN));
        datagram.extend(&payload);
        prop_assert_eq!(udp::Header::parse(&datagram), Ok(header));
        datagram.pop();
        prop_assert!(udp::Header::parse(&datagram).is_err());
    }

    #[test]
    fn tcp_header_survives(
        (source_port, destination_port, sequence, acknowledgement) in any::<(u16, u16, u32, u32)>(),
        (window, checksum, urgent) in any::<(u16, u16, u16)>(),
        flags in 0..0x1000u16,
        options in arb_words(0..=10),
    ) {
        let header = tcp::Header {
            source_port,
            destination_port,
            sequence,
            acknowledgement,
            flags,
            window,
            checksum,
            urgent,
            options: &options,
        };
        let mut segment = vec![0; header.len()];
        prop_assert_eq!(header.emit(&mut segment), Ok(header.len()));
        prop_assert_eq!(tcp::Header::parse(&segment), Ok(header));
        segment.pop();
        prop_assert!(tcp::Header::parse(&segment).is_err());
    }

    #[test]
    fn vxlan_header_survives_and_reserved_bits_are_ignored(
        vni in 0..1u32 << 24,
        noise in any::<[u8; 8]>(),
    ) {
        let vni = Vni::new(vni).unwrap();
        let mut header = vxlan::header(vni);
        prop_assert_eq!(vxlan::parse(&header), Ok(vni));
        header[0] |= noise[0];
        header[1..4].copy_from_slice(&noise[1..4]);
        header[7] = noise[7];
        prop_assert_eq!(vxlan::parse(&header), Ok(vni));
    }

    #[test]
    fn virtio_header_survives(bytes in any::<[u8; 10]>()) {
        prop_assert_eq!(VnetHdr::parse(&bytes).unwrap().emit(), bytes);
    }

    #[test]
    fn neighbour_messages_survive(
        (router, solicited, replace) in any::<(bool, bool, bool)>(),
        target in any::<[u8; 16]>().prop_filter("unicast", |bytes| bytes[0] != 0xff),
        mac in proptest::option::of(arb_mac()),
        (source, destination) in any::<([u8; 16], [u8; 16])>(),
    ) {
        let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
        let target = Ipv6Addr::from(target);
        let mut bytes = [0; icmpv6::LEN_WITH_MAC];
        let asked = icmpv6::Solicitation { target, source_mac: mac };
        let len = asked.emit(source, destination, &mut bytes).unwrap();
        prop_assert_eq!(icmpv6::Solicitation::parse(&bytes[..len]), Ok(asked));
        let told = icmpv6::Advertisement { router, solicited, replace, target, target_mac: mac };
        let len = told.emit(source, destination, &mut bytes).unwrap();
        prop_assert_eq!(icmpv6::Advertisement::parse(&bytes[..len]), Ok(told));
        let sum = Sum::new()
            .pseudo_header(IpAddr::V6(source), IpAddr::V6(destination), protocol::ICMPV6)
            .word(len as u16)
            .bytes(&bytes[..len]);
        prop_assert_eq!(sum.finish(), 0);
        prop_assert!(told.emit(source, destination, &mut bytes[..len - 1]).is_err());
    }

    #[test]
    fn checksum_is_that_of_the_definition(bytes in vec(any::<u8>(), 0..300), cut in 0..300usize) {
        prop_assert_eq!(checksum::checksum(&bytes), naive_checksum(&bytes));
        let (head, tail) = bytes.split_at(cut.min(bytes.len()) & !1);
        prop_assert_eq!(Sum::new().bytes(head).bytes(tail).finish(), naive_checksum(&bytes));
    }

    #[test]
    fn updated_checksum_is_that_of_the_changed_bytes(
        mut bytes in any::<[u8; 20]>(),
        at in 0..10usize,
        new in any::<u16>(),
    ) {
        let before = naive_checksum(&bytes);
        let old = u16::from_be_bytes([bytes[2 * at], bytes[2 * at + 1]]);
        bytes[2 * at..][..2].copy_from_slice(&new.to_be_bytes());
        let updated = checksum::update(before, old, new);
        // Both representations of zero are the same number.
        prop_assert_eq!(updated % 0xffff, naive_checksum(&bytes) % 0xffff);
    }

    #[test]
    fn flow_hash_sees_no_more_than_addresses_and_ports(packet in arb_packet(0..64)) {
        let frame = packet.frame();
        let mut other = packet.clone();
        other.payload.push(1);
        other.id ^= 0xffff;
        other.ttl ^= 0xff;
        other.traffic_class ^= 0xff;
        other.tags.clear();
        other.extra.clear();
        if let Transport::Tcp { sequence, flags, .. } = &mut other.transport {
            *sequence ^= 1;
            *flags ^= 0xfff;
        }
        prop_assert_eq!(flow_hash(&frame), flow_hash(&other.frame()));
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in vec(any::<u8>(), 0..128)) {
        let _ = ethernet::Header::parse(&bytes);
        let _ = ethernet::payload(&bytes);
        let _ = arp::Message::parse(&bytes);
        let _ = ipv4::Header::parse(&bytes);
        let _ = ipv4::checksum_is_right(&bytes);
        let _ = ipv6::Header::parse(&bytes);
        let _ = ipv6::upper(&bytes);
        let _ = icmpv6::solicitation(&bytes);
        let _ = icmpv6::Solicitation::parse(&bytes);
        let _ = icmpv6::Advertisement::parse(&bytes);
        let _ = udp::Header::parse(&bytes);
        let _ = tcp::Header::parse(&bytes);
        let _ = vxlan::parse(&bytes);
        let _ = VnetHdr::parse(&bytes);
        let _ = source_port(flow_hash(&bytes));
    }

    #[test]
    fn a_frame_cut_anywhere_makes_no_parser_panic(packet in arb_packet(0..8), cut in 0..160usize) {
        let frame = packet.frame();
        let frame = &frame[..cut.min(frame.len())];
        let _ = flow_hash(frame);
        if let Some((_, offset)) = ethernet::payload(frame) {
            let _ = ipv4::Header::parse(&frame[offset..]);
            let _ = ipv6::upper(&frame[offset..]);
            let _ = icmpv6::solicitation(&frame[offset..]);
        }
    }
}

#[test]
fn mac_addresses_are_told_apart() {
    assert!(MacAddr::BROADCAST.is_multicast() && MacAddr::BROADCAST.is_broadcast());
    assert!(!MacAddr::ZERO.is_station() && !MacAddr::BROADCAST.is_station());
    assert!(MAC_A.is_station());
    assert_eq!(MAC_A.to_string(), "02:42:0a:00:00:02");
}
