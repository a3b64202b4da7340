//! Frames for tunnels that are too narrow: who is told, and what; the MSS; super-frames.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;
use support::{arb_packet, naive_checksum, Packet, Transport, MAC_A, MAC_B};
use vxlan_dataplane::engine::{Lane, Network, NetworkConfig, TunnelConfig};
use vxlan_dataplane::io::mem::{MemPort, MemUnderlay};
use vxlan_dataplane::narrow::{answer, clamp_mss, may_be_syn, ANSWER_LEN};
use vxlan_dataplane::probe::{Kind, Probe, MIN_LEN};
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::virtio::VnetHdr;
use vxlan_dataplane::wire::{ethernet, ipv4, ipv6, protocol, tcp, vxlan, Vni};
use vxlan_dataplane::DropReason;

const MS: u64 = 1_000_000;
const LONGEST: usize = 1314;

fn told(frame: &[u8]) -> Option<Vec<u8>> {
    let mut room = [0; ANSWER_LEN];
    answer(frame, LONGEST, &mut room).map(|len| room[..len].to_vec())
}

#[test]
fn sender_of_ipv4_is_told_the_mtu_by_the_destination() {
    let frame = Packet::tcp(false, 5, &[7; 1400]).frame();
    let answer = told(&frame).unwrap();
    assert_eq!(ethernet::addresses(&answer), Some((MAC_A, MAC_B)));
    let packet = &answer[14..];
    let header = ipv4::Header::parse(packet).unwrap();
    assert_eq!(
        (header.source, header.destination),
        (Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 2))
    );
    assert_eq!((header.protocol, usize::from(header.total_len)), (1, 576));
    assert!(ipv4::checksum_is_right(packet));
    assert_eq!(naive_checksum(&packet[20..]), 0);
    assert_eq!(packet[20..22], [3, 4]);
    assert_eq!(u16::from_be_bytes([packet[26], packet[27]]), 1300);
    assert_eq!(packet[28..], frame[14..14 + 548]);
}

#[test]
fn sender_of_ipv6_is_told_at_least_1280() {
    for (longest, mtu) in [(LONGEST, 1300u32), (1000, 1280)] {
        let frame = Packet::tcp(true, 5, &[7; 1400]).frame();
        let mut room = [0; ANSWER_LEN];
        let len = answer(&frame, longest, &mut room).unwrap();
        let packet = &room[14..len];
        let header = ipv6::Header::parse(packet).unwrap();
        assert_eq!((packet.len(), header.next_header), (1280, protocol::ICMPV6));
        assert_eq!(packet[40..42], [2, 0]);
        assert_eq!(packet[44..48], mtu.to_be_bytes());
        let mut pseudo = packet[8..40].to_vec();
        pseudo.extend([0, 0, 4, 216, 0, 0, 0, 58]); // 1240 bytes of ICMPv6
        pseudo.extend(&packet[40..]);
        assert_eq!(naive_checksum(&pseudo), 0);
    }
}

#[test]
fn nobody_is_told_who_need_not_or_must_not_be() {
    let mut fragmentable = Packet::tcp(false, 5, &[7; 1400]);
    fragmentable.dont_fragment = false;
    let mut group = Packet::udp(false, &[7; 1400]).frame();
    group[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 1]);
    let mut error = Packet::udp(false, &[7; 1400]).frame();
    error[23] = 1; // ICMP
    error[34] = 3; // destination unreachable
    let short = Packet::tcp(true, 5, &[7; 1200]).frame(); // IPv6 of 1260 bytes
    let mut unknown = Packet::tcp(false, 5, &[7; 1400]).frame();
    unknown[12..14].copy_from_slice(&[0x88, 0xb5]);
    for frame in [fragmentable.frame(), group, error, short, unknown] {
        assert_eq!(told(&frame), None);
    }
}

fn syn(ipv6: bool, options: Vec<u8>) -> Packet {
    let mut packet = Packet::tcp(ipv6, 1, &[]).with_flags(tcp::flag::SYN);
    if let Transport::Tcp { options: own, .. } = &mut packet.transport {
        *own = options;
    }
    packet
}

#[test]
fn mss_is_lowered_and_the_checksum_stays_right() {
    for (ipv6, most) in [(false, 1260u16), (true, 1240)] {
        for (at, options) in [
            (0, vec![2, 4, 5, 0xb4]),
            (1, vec![1, 2, 4, 5, 0xb4, 1, 1, 0]),
            (2, vec![4, 2, 2, 4, 5, 0xb4, 1, 0]),
        ] {
            let before = syn(ipv6, options.clone());
            let mut after = options;
            after[at + 2..at + 4].copy_from_slice(&most.to_be_bytes());
            let mut frame = before.frame();
            assert!(may_be_syn(&frame) && clamp_mss(&mut frame, LONGEST));
            assert_eq!(frame, syn(ipv6, after.clone()).frame());
            assert!(!clamp_mss(&mut frame, LONGEST), "once is enough");
            let (_, mut partial) = before.partial();
            assert!(clamp_mss(&mut partial, LONGEST));
            assert_eq!(partial, syn(ipv6, after).partial().1);
        }
    }
}

#[test]
fn other_segments_keep_what_they_have() {
    let ack = {
        let mut packet = syn(false, vec![2, 4, 5, 0xb4]);
        packet = packet.with_flags(tcp::flag::ACK);
        packet.frame()
    };
    for frame in [
        ack,
        syn(false, vec![2, 4, 1, 0]).frame(),
        syn(true, vec![2, 9, 1, 0]).frame(),
    ] {
        let mut copy = frame.clone();
        assert!(!clamp_mss(&mut copy, LONGEST));
        assert_eq!(copy, frame);
    }
}

proptest! {
    #[test]
    fn any_frame_is_survived(packet in arb_packet(0..1500), cut in 0usize..1500, longest in 0usize..1500) {
        let mut frame = packet.frame();
        frame.truncate(cut);
        let mut room = [0; ANSWER_LEN];
        let _ = answer(&frame, longest, &mut room);
        let _ = clamp_mss(&mut frame, longest);
    }
}

// A lane whose tunnel has become narrow.

struct Bench {
    lane: Lane<MemPort, MemUnderlay>,
    port: MemPort,
    underlay: MemUnderlay,
    network: Arc<Network>,
    token: usize,
}

const VTEP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2));
/// Frames of 1314 bytes.
const PATH: usize = LONGEST + vxlan::HEADER_LEN;

/// A lane that has found by its probes that PATH bytes get through, of 1472.
fn narrow_bench() -> Bench {
    let vni = Vni::new(42).unwrap();
    let (port, underlay) = (MemPort::default(), MemUnderlay::default());
    let mut lane = Lane::new(0, underlay.clone(), vxlan::PORT);
    let config = NetworkConfig {
        vni,
        mtu_bytes: 1450,
        multicast: true,
        flood_rate: 10,
    };
    let network = Arc::new(Network::new(config, 1).unwrap());
    let tables = Tables::new(vni, true).with_changes(&[(MAC_B, VTEP)], &[]);
    network.publish(tables.unwrap());
    let token = lane.attach(&network, vec![port.clone()], port.clone())[0];
    let tunnel = TunnelConfig {
        vtep: VTEP,
        mtu_bytes: 1450,
    };
    lane.set_tunnels(1000 * MS, &[tunnel], 0);
    for now_ms in (10..1500).step_by(10) {
        lane.probe_round(now_ms * MS);
        for datagram in underlay.take() {
            assert_eq!(datagram.destination, SocketAddr::new(VTEP, vxlan::PORT));
            let probe = Probe::parse(&datagram.payload).unwrap();
            assert_eq!(probe.kind, Kind::Request);
            if datagram.payload.len() <= PATH {
                let mut bytes = [0; MIN_LEN as usize];
                probe.answer().emit(&mut bytes).unwrap();
                underlay.inject(VTEP, &bytes, bytes.len());
                lane.ingress_round(|_| ());
            }
        }
        lane.probe_round(now_ms * MS + 1);
    }
    let longest = lane.tunnel_stats(0)[0].1.path_mtu_bytes as usize - 28;
    assert!((PATH - 4..=PATH).contains(&longest), "{longest}");
    Bench {
        lane,
        port,
        underlay,
        network,
        token,
    }
}

impl Bench {
    fn egress(&mut self, header: VnetHdr, frame: &[u8]) -> Vec<usize> {
        self.port.inject(header.emit(), frame);
        self.lane.egress_round(self.token, 2000 * MS);
        let sent = self.underlay.take();
        sent.iter().map(|d| d.payload.len()).collect()
    }
}

#[test]
fn a_frame_that_is_too_long_is_answered_and_not_sent() {
    let mut bench = narrow_bench();
    let frame = Packet::tcp(false, 5, &[7; 1300]).frame();
    assert_eq!(bench.egress(VnetHdr::NONE, &frame), []);
    let stats = bench.network.stats();
    assert_eq!(stats.egress_drops.count(DropReason::PathMtu), 1);
    assert_eq!(stats.path_mtu_replies, 1);
    let told = &bench.port.take()[0][10..];
    assert_eq!(ethernet::addresses(told), Some((MAC_A, MAC_B)));
    let fits = Packet::tcp(false, 5, &[7; 1200]).frame();
    assert_eq!(bench.egress(VnetHdr::NONE, &fits).len(), 1);
}

#[test]
fn a_super_frame_of_tcp_is_cut_smaller_and_its_sender_told() {
    let mut bench = narrow_bench();
    let (header, frame) = Packet::tcp(false, 5, &[7; 5000]).super_frame(1410);
    let sent = bench.egress(header, &frame);
    assert_eq!(sent.len(), 4);
    assert!(sent.iter().all(|&len| len <= PATH));
    let stats = bench.network.stats();
    assert_eq!((stats.egress_drops.total(), stats.path_mtu_replies), (0, 1));
    assert_eq!(bench.port.take().len(), 1);
}

#[test]
fn what_nobody_can_be_told_of_is_sent() {
    let mut bench = narrow_bench();
    let mut packet = Packet::udp(false, &[7; 1400]);
    packet.dont_fragment = false;
    assert_eq!(bench.egress(VnetHdr::NONE, &packet.frame()).len(), 1);
    assert_eq!(bench.port.take().len(), 0);
}

#[test]
fn senders_are_told_only_so_often() {
    let mut bench = narrow_bench();
    let frame = Packet::tcp(true, 5, &[7; 1380]).frame();
    for _ in 0..150 {
        bench.egress(VnetHdr::NONE, &frame);
    }
    let stats = bench.network.stats();
    assert_eq!(stats.path_mtu_replies, 100);
    assert_eq!(stats.egress_drops.count(DropReason::PathMtu), 150);
}

#[test]
fn the_mss_is_lowered_in_both_directions() {
    let mut bench = narrow_bench();
    bench.egress(VnetHdr::NONE, &syn(false, vec![2, 4, 5, 0xb4]).frame());
    let mut back = syn(true, vec![2, 4, 5, 0xb4]).frame();
    back[..6].copy_from_slice(&MAC_A.0);
    back[6..12].copy_from_slice(&MAC_B.0);
    let datagram = [&vxlan::header(Vni::new(42).unwrap()), &back[..]].concat();
    bench.underlay.inject(VTEP, &datagram, datagram.len());
    bench.lane.ingress_round(|_| ());
    let got = bench.port.take();
    assert_eq!(got.len(), 1);
    let mss = u16::from_be_bytes([got[0][10 + 76], got[0][10 + 77]]);
    assert!((1236..=1240).contains(&mss), "{mss}");
    assert_eq!(bench.network.stats().mss_clamped, 2);
}
