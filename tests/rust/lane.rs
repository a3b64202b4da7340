//! One worker's forwarding over memory: no thread, no clock, the order of everything forced.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use support::{Packet, MAC_A, MAC_B};
use vxlan_dataplane::engine::{Lane, Network, NetworkConfig, Round};
use vxlan_dataplane::io::mem::{Datagram, MemPort, MemUnderlay};
use vxlan_dataplane::offload::{complete_checksum, Segments, MAX_HEADER_LEN};
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::virtio::{self, VnetHdr};
use vxlan_dataplane::wire::{arp, ethernet, vxlan, MacAddr, Vni};
use vxlan_dataplane::DropReason;

const VNI: u32 = 4097;
const MTU: u32 = 1450;
const PORT: u16 = 4789;
const SECOND: u64 = 1_000_000_000;

fn vtep(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 0, last).into()
}

fn vni(value: u32) -> Vni {
    Vni::new(value).unwrap()
}

/// MAC_A is the container here, MAC_B one behind VTEP 2.
struct Bench {
    lane: Lane<MemPort, MemUnderlay>,
    port: MemPort,
    underlay: MemUnderlay,
    network: Arc<Network>,
    token: usize,
}

fn config(value: u32) -> NetworkConfig {
    NetworkConfig {
        vni: vni(value),
        mtu_bytes: MTU,
        multicast: true,
        flood_rate: 10,
    }
}

fn tables() -> Tables {
    Tables::new(vni(VNI), true)
        .with_changes(&[(MAC_B, vtep(2))], &[])
        .unwrap()
        .with_flood(&[vtep(2), vtep(3)])
        .unwrap()
        .with_neighbours(&[(Ipv4Addr::new(10, 0, 0, 3).into(), MAC_B)])
        .unwrap()
}

fn bench() -> Bench {
    let underlay = MemUnderlay::default();
    let port = MemPort::default();
    let mut lane = Lane::new(0, underlay.clone(), PORT);
    let network = Arc::new(Network::new(config(VNI), 1).unwrap());
    network.publish(tables());
    let token = lane.attach(&network, vec![port.clone()], port.clone())[0];
    Bench {
        lane,
        port,
        underlay,
        network,
        token,
    }
}

impl Bench {
    /// Lets the container send frames and moves them; gives what is on the wire then.
    fn egress<F: AsRef<[u8]>>(&mut self, frames: &[F]) -> Vec<Datagram> {
        for frame in frames {
            self.port.inject(VnetHdr::NONE.emit(), frame.as_ref());
        }
        assert_eq!(self.lane.egress_round(self.token, SECOND), Round::Moved);
        self.underlay.take()
    }

    /// Lets a VTEP send a run of equal datagrams and moves them; gives what the container got.
    fn ingress<F: AsRef<[u8]>>(&mut self, source: IpAddr, frames: &[F]) -> Vec<Vec<u8>> {
        let run = frames.iter().flat_map(|frame| encap(VNI, frame.as_ref()));
        let run: Vec<u8> = run.collect();
        let segment = frames[0].as_ref().len() + vxlan::HEADER_LEN;
        self.arrive(source, &run, segment)
    }

    fn arrive(&mut self, source: IpAddr, run: &[u8], segment: usize) -> Vec<Vec<u8>> {
        self.underlay.inject(source, run, segment);
        assert_eq!(self.lane.ingress_round(|_| ()), Round::Moved);
        self.port.take()
    }

    fn egress_drops(&self, reason: DropReason) -> u64 {
        self.network.stats().egress_drops.count(reason)
    }

    fn ingress_drops(&self, reason: DropReason) -> u64 {
        self.network.stats().ingress_drops.count(reason)
    }

    fn strays(&self, reason: DropReason) -> u64 {
        self.lane.underlay_stats().drops.count(reason)
    }
}

fn encap(value: u32, frame: &[u8]) -> Vec<u8> {
    [&vxlan::header(vni(value)), frame].concat()
}

/// What a container gets for a frame that asks for nothing.
fn plain(frame: &[u8]) -> Vec<u8> {
    [&VnetHdr::NONE.emit(), frame].concat()
}

/// The frame with both MAC addresses exchanged: from MAC_B to MAC_A.
fn turned(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&MAC_A.0);
    frame[6..12].copy_from_slice(&MAC_B.0);
    frame
}

fn udp(source_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Packet::udp(false, payload);
    packet.source_port = source_port;
    packet.frame()
}

fn broadcast() -> Vec<u8> {
    let mut frame = udp(1000, b"to all");
    frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    frame
}

// Container to wire.

#[test]
fn frame_for_a_known_mac_leaves_to_its_vtep_behind_a_vxlan_header() {
    let frame = udp(1000, b"hello");
    let sent = bench().egress(&[&frame]);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].destination, SocketAddr::new(vtep(2), PORT));
    assert_eq!(sent[0].payload, encap(VNI, &frame));
}

#[test]
fn super_frame_leaves_as_the_segments_it_stands_for_in_one_call() {
    let mut bench = bench();
    let packet = Packet::tcp(false, 1, &[0x5a; 5000]);
    let (header, frame) = packet.super_frame(1400);
    bench.port.inject(header.emit(), &frame);
    bench.lane.egress_round(bench.token, SECOND);
    let sent: Vec<_> = bench.underlay.take().into_iter().collect();
    let expected = packet.segments(1400);
    let expected: Vec<_> = expected.iter().map(|p| encap(VNI, &p.frame())).collect();
    let payloads: Vec<_> = sent.iter().map(|d| d.payload.clone()).collect();
    assert_eq!(payloads, expected);
    assert_eq!(bench.underlay.send_calls(), 1);
    assert_eq!(bench.network.stats().egress_frames, 4);
}

#[test]
fn super_frame_of_more_segments_than_fit_one_message_leaves_whole_and_in_order() {
    let mut bench = bench();
    let packet = Packet::tcp(true, 1, &vec![0x5a; 60_000]);
    let (header, frame) = packet.super_frame(88);
    bench.port.inject(header.emit(), &frame);
    bench.lane.egress_round(bench.token, SECOND);
    let expected = packet.segments(88);
    let expected: Vec<_> = expected.iter().map(|p| encap(VNI, &p.frame())).collect();
    let sent: Vec<_> = bench
        .underlay
        .take()
        .into_iter()
        .map(|d| d.payload)
        .collect();
    assert_eq!(sent, expected);
}

#[test]
fn checksum_left_to_the_card_is_right_on_the_wire() {
    let mut bench = bench();
    let packet = Packet::udp(true, b"hello");
    let (header, frame) = packet.partial();
    bench.port.inject(header.emit(), &frame);
    bench.lane.egress_round(bench.token, SECOND);
    assert_eq!(
        bench.underlay.take()[0].payload,
        encap(VNI, &packet.frame())
    );
}

#[test]
fn equal_frames_of_one_flow_leave_with_one_call() {
    let mut bench = bench();
    let frames: Vec<_> = (0..20).map(|n: u8| udp(1000, &[n; 64])).collect();
    let sent = bench.egress(&frames);
    assert_eq!(sent.len(), 20);
    assert_eq!(bench.underlay.send_calls(), 1);
}

#[test]
fn order_within_a_flow_stays_when_flows_alternate() {
    let mut bench = bench();
    let frames: Vec<_> = (0..30)
        .map(|n: u8| udp(1000 + u16::from(n % 7), &vec![n; 20 + usize::from(n % 3)]))
        .collect();
    let sent = bench.egress(&frames);
    assert_eq!(sent.len(), 30);
    for flow in 0..7 {
        let of_flow =
            |payload: &[u8]| payload[8 + 34..8 + 36] == (1000 + flow as u16).to_be_bytes();
        let numbers: Vec<u8> = sent
            .iter()
            .filter(|datagram| of_flow(&datagram.payload))
            .map(|datagram| *datagram.payload.last().unwrap())
            .collect();
        let expected: Vec<u8> = (0..30).filter(|n| n % 7 == flow).collect();
        assert_eq!(numbers, expected);
    }
}

#[test]
fn one_flow_keeps_to_one_socket_and_many_flows_use_many() {
    let mut bench = bench();
    let same: Vec<_> = (0..10).map(|n: u8| udp(1000, &[n; 9])).collect();
    let mut sockets: Vec<_> = bench.egress(&same).iter().map(|d| d.socket).collect();
    sockets.dedup();
    assert_eq!(sockets.len(), 1);
    let many: Vec<_> = (0..30).map(|n| udp(1000 + n, b"many")).collect();
    let mut sockets: Vec<_> = bench.egress(&many).iter().map(|d| d.socket).collect();
    sockets.sort_unstable();
    sockets.dedup();
    assert!(sockets.len() > 3, "{sockets:?}");
}

#[test]
fn broadcast_goes_to_every_vtep_of_the_flood_list() {
    let mut bench = bench();
    let sent = bench.egress(&[broadcast()]);
    let mut to: Vec<_> = sent.iter().map(|d| d.destination.ip()).collect();
    to.sort_unstable();
    assert_eq!(to, [vtep(2), vtep(3)]);
    assert_eq!(bench.network.stats().flood_frames, 2);
}

#[test]
fn broadcast_above_the_rate_is_dropped_until_time_passes() {
    let mut bench = bench();
    assert_eq!(bench.egress(&[broadcast(), broadcast()]).len(), 2);
    assert_eq!(bench.egress_drops(DropReason::FloodRate), 1);
    bench.port.inject(VnetHdr::NONE.emit(), &broadcast());
    bench.lane.egress_round(bench.token, SECOND + SECOND / 10);
    assert_eq!(bench.underlay.take().len(), 2);
}

#[test]
fn arp_request_is_answered_to_the_container_and_nothing_leaves() {
    let mut bench = bench();
    let mut frame = vec![0; 42];
    let at = ethernet::Header::new(MacAddr::BROADCAST, MAC_A, ethernet::ethertype::ARP)
        .emit(&mut frame)
        .unwrap();
    arp::Message {
        operation: arp::REQUEST,
        sender_mac: MAC_A,
        sender_ip: Ipv4Addr::new(10, 0, 0, 2),
        target_mac: MacAddr::ZERO,
        target_ip: Ipv4Addr::new(10, 0, 0, 3),
    }
    .emit(&mut frame[at..])
    .unwrap();
    assert!(bench.egress(&[&frame]).is_empty());
    let answers = bench.port.take();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0][virtio::HEADER_LEN..][6..12], MAC_B.0);
    assert_eq!(bench.network.stats().replies, 1);
}

#[test]
fn what_is_no_frame_is_counted_and_the_next_one_goes_out() {
    let mut bench = bench();
    bench.port.inject([0; 10], &[]);
    bench.port.inject([0xff; 10], &udp(1000, b"bad header"));
    let sent = bench.egress(&[udp(1000, b"good")]);
    assert_eq!(sent.len(), 1);
    assert_eq!(bench.egress_drops(DropReason::FrameMalformed), 1);
    assert_eq!(bench.egress_drops(DropReason::OffloadMalformed), 1);
}

#[test]
fn kernel_without_segmentation_gets_single_datagrams_from_then_on() {
    for errno in [libc::EIO, libc::EINVAL, libc::ENOPROTOOPT] {
        let mut bench = bench();
        bench.underlay.refuse_segmentation(errno);
        let frames: Vec<_> = (0..5).map(|n: u8| udp(1000, &[n; 64])).collect();
        let expected: Vec<_> = frames.iter().map(|frame| encap(VNI, frame)).collect();
        for calls in [2, 3] {
            let sent: Vec<_> = bench
                .egress(&frames)
                .into_iter()
                .map(|d| d.payload)
                .collect();
            assert_eq!(sent, expected);
            assert_eq!(bench.underlay.send_calls(), calls, "one refusal, then none");
        }
        assert_eq!(bench.network.stats().egress_drops.total(), 0);
    }
}

#[test]
fn segmentation_that_is_switched_off_is_not_asked_for() {
    let mut bench = bench();
    let packet = Packet::tcp(false, 1, &[0x5a; 3000]);
    let (header, frame) = packet.super_frame(1400);
    // One that can't is found out only if it is asked.
    bench.underlay.refuse_segmentation(libc::EIO);
    for (on, calls) in [(false, 1), (true, 1 + 2)] {
        bench.lane.switch_segmentation(on);
        bench.port.inject(header.emit(), &frame);
        bench.lane.egress_round(bench.token, SECOND);
        assert_eq!(bench.underlay.take().len(), 3);
        assert_eq!(bench.underlay.send_calls(), calls);
        assert!(!bench.lane.segmentation(), "switched off, then refused");
    }
    assert_eq!(bench.network.stats().egress_drops.total(), 0);
}

#[test]
fn datagrams_above_the_underlays_mtu_are_counted_one_by_one() {
    let mut bench = bench();
    bench.underlay.limit(600);
    let packet = Packet::tcp(false, 1, &[0x5a; 3000]);
    let (header, frame) = packet.super_frame(1400);
    bench.port.inject(header.emit(), &frame);
    bench.lane.egress_round(bench.token, SECOND);
    assert_eq!(bench.underlay.take().len(), 1, "the last segment is short");
    assert_eq!(bench.egress_drops(DropReason::UnderlayMtu), 2);
    // Segmentation was not to blame and goes on.
    let before = bench.underlay.send_calls();
    let frames: Vec<_> = (0..5).map(|n: u8| udp(1000, &[n; 64])).collect();
    assert_eq!(bench.egress(&frames).len(), 5);
    assert_eq!(bench.underlay.send_calls(), before + 1);
}

#[test]
fn full_socket_drops_what_is_left_for_it_and_does_not_wait() {
    let mut bench = bench();
    let frames = [udp(1000, b"1"), udp(1000, b"22"), udp(1000, b"333")];
    bench.underlay.script([None, Some(libc::EAGAIN)]);
    assert_eq!(bench.egress(&frames).len(), 1);
    assert_eq!(bench.egress_drops(DropReason::UnderlayFull), 2);
    assert_eq!(bench.egress(&frames).len(), 3);
}

#[test]
fn refused_datagram_is_counted_and_those_behind_it_go_out() {
    for errno in [libc::EPERM, libc::ENETUNREACH, libc::ENOBUFS] {
        let mut bench = bench();
        let frames = [udp(1000, b"1"), udp(1000, b"22"), udp(1000, b"333")];
        bench.underlay.script([None, Some(errno), None]);
        assert_eq!(bench.egress(&frames).len(), 2);
        assert_eq!(bench.egress_drops(DropReason::UnderlayError), 1);
    }
}

#[test]
fn published_tables_hold_from_the_next_batch_on() {
    let mut bench = bench();
    let frame = udp(1000, b"hello");
    assert_eq!(bench.egress(&[&frame])[0].destination.ip(), vtep(2));
    let moved = tables().with_changes(&[(MAC_B, vtep(3))], &[]).unwrap();
    bench.network.publish(moved);
    assert_eq!(bench.egress(&[&frame])[0].destination.ip(), vtep(3));
}

#[test]
fn network_attached_anew_keeps_tables_and_counters() {
    let mut bench = bench();
    let frame = udp(1000, b"hello");
    bench.egress(&[&frame]);
    let settings = NetworkConfig {
        mtu_bytes: 9000,
        multicast: false,
        ..config(VNI)
    };
    bench.network = Arc::new(bench.network.reattached(settings).unwrap());
    bench.port = MemPort::default();
    assert_eq!(bench.lane.detach(vni(VNI)).len(), 1);
    let port = bench.port.clone();
    let tokens = bench.lane.attach(&bench.network, vec![port.clone()], port);
    assert_eq!(tokens, [bench.token], "the token is used again");
    assert_eq!(bench.egress(&[&frame]).len(), 1);
    assert_eq!(bench.network.stats().egress_frames, 2);
    assert!(bench.egress(&[broadcast()]).is_empty());
    assert_eq!(bench.egress_drops(DropReason::MulticastOff), 1);
}

#[test]
fn deleted_port_is_told_apart_from_an_idle_one() {
    let mut bench = bench();
    let round = bench.lane.egress_round(bench.token, SECOND);
    assert_eq!(round, Round::Idle);
    bench.port.fail_reads(Some(libc::EBADFD));
    bench.port.inject(VnetHdr::NONE.emit(), &udp(1000, b"last"));
    let round = bench.lane.egress_round(bench.token, SECOND);
    assert_eq!(round, Round::Moved, "what was read before is sent");
    let round = bench.lane.egress_round(bench.token, SECOND);
    assert_eq!(round, Round::Lost);
    bench.lane.remove_reader(bench.token);
    let round = bench.lane.egress_round(bench.token, SECOND);
    assert_eq!(round, Round::Idle);
}

// Wire to container.

#[test]
fn frame_from_its_vtep_reaches_the_container() {
    let mut bench = bench();
    let frame = turned(udp(1000, b"hello"));
    assert_eq!(bench.ingress(vtep(2), &[&frame]), [plain(&frame)]);
    let stats = bench.network.stats();
    assert_eq!(
        (stats.ingress_frames, stats.ingress_bytes),
        (1, frame.len() as u64)
    );
}

/// Datagrams of one flow and one size, each with another content.
fn run_of_datagrams() -> Vec<Vec<u8>> {
    (0..5).map(|n: u8| turned(udp(1000, &[n; 30]))).collect()
}

#[test]
fn run_of_datagrams_becomes_one_super_frame() {
    let mut bench = bench();
    let got = bench.ingress(vtep(2), &run_of_datagrams());
    let payload: Vec<u8> = (0..5).flat_map(|n| [n; 30]).collect();
    let (header, frame) = Packet {
        source_port: 1000,
        ..Packet::udp(false, &payload)
    }
    .super_frame(30);
    assert_eq!(got, [[&header.emit(), &*turned(frame)].concat()]);
    assert_eq!(bench.network.stats().ingress_frames, 5);
}

#[test]
fn port_that_refuses_super_frames_of_udp_gets_datagrams_in_their_order() {
    let mut bench = bench();
    bench.port.refuse_datagrams();
    let frames = run_of_datagrams();
    let bytes: usize = frames.iter().map(Vec::len).sum();
    let expected: Vec<_> = frames.iter().map(|frame| plain(frame)).collect();
    for round in 1..3 {
        assert_eq!(bench.ingress(vtep(2), &frames), expected);
        let stats = bench.network.stats();
        let counted = (stats.ingress_frames, stats.ingress_bytes);
        assert_eq!(counted, (5 * round, bytes as u64 * round));
        assert_eq!(stats.ingress_drops.total(), 0);
    }
    assert_eq!(bench.port.refusals(), 1, "it is asked once");
}

#[test]
fn port_that_refuses_everything_is_not_taken_for_one_without_super_frames_of_udp() {
    let mut bench = bench();
    bench.port.fail_writes(Some(libc::EINVAL));
    assert!(bench.ingress(vtep(2), &run_of_datagrams()).is_empty());
    assert_eq!(bench.ingress_drops(DropReason::FrameMalformed), 5);
    bench.port.fail_writes(None);
    assert_eq!(bench.ingress(vtep(2), &run_of_datagrams()).len(), 1);
}

#[test]
fn run_of_tcp_segments_becomes_one_super_frame() {
    let mut bench = bench();
    let packet = Packet::tcp(false, 1, &[0x5a; 5000]);
    let frames: Vec<_> = packet
        .segments(1400)
        .iter()
        .map(|p| turned(p.frame()))
        .collect();
    let got = bench.ingress(vtep(2), &frames);
    assert_eq!(got.len(), 1);
    let header = VnetHdr::parse(&got[0]).unwrap();
    assert_eq!(
        (header.gso_type, header.gso_size),
        (virtio::GSO_TCPV4, 1400)
    );
    assert!(got[0].ends_with(&[0x5a; 5000]));
    assert_eq!(bench.network.stats().ingress_frames, 4);
}

#[test]
fn frames_of_two_networks_in_one_run_reach_their_own_ports() {
    let mut bench = bench();
    let other = Arc::new(Network::new(config(5), 1).unwrap());
    other.publish(tables());
    let port = MemPort::default();
    bench.lane.attach(&other, vec![port.clone()], port.clone());
    let frame = turned(Packet::tcp(false, 1, &[1; 100]).frame());
    let next = turned(Packet::tcp(false, 101, &[2; 100]).frame());
    let run = [encap(VNI, &frame), encap(5, &next), encap(VNI, &next)].concat();
    assert_eq!(
        bench.arrive(vtep(2), &run, run.len() / 3),
        [plain(&frame), plain(&next)]
    );
    assert_eq!(port.take(), [plain(&next)]);
}

#[test]
fn strangers_and_malformed_datagrams_are_counted_by_reason() {
    let frame = turned(udp(1000, b"hello"));
    let mut bench = bench();
    let mut refuse = |source, datagram: &[u8]| {
        let got = bench.arrive(source, datagram, datagram.len().max(1));
        assert!(got.is_empty());
    };
    refuse(vtep(9), &encap(VNI, &frame));
    refuse(vtep(3), &encap(VNI, &frame));
    refuse(vtep(2), &encap(VNI, &udp(1000, b"MAC_A is not there")));
    refuse(vtep(2), &encap(VNI, &[0; 5]));
    refuse(vtep(2), &encap(99, &frame));
    refuse(vtep(2), &[0; 50]);
    refuse(vtep(2), &[8, 0, 0]);
    refuse(vtep(2), &[]);
    assert_eq!(bench.ingress_drops(DropReason::SourceNotVtep), 1);
    assert_eq!(bench.ingress_drops(DropReason::SourceMacElsewhere), 1);
    assert_eq!(bench.ingress_drops(DropReason::SourceMacUnknown), 1);
    assert_eq!(bench.ingress_drops(DropReason::FrameMalformed), 1);
    assert_eq!(bench.strays(DropReason::VniUnknown), 1);
    assert_eq!(bench.strays(DropReason::VxlanFlags), 1);
    assert_eq!(bench.strays(DropReason::Truncated), 2);
}

#[test]
fn frame_as_long_as_the_mtu_passes_and_a_longer_one_does_not() {
    let mut bench = bench();
    let longest = turned(udp(1000, &vec![0; MTU as usize - 28]));
    assert_eq!(bench.ingress(vtep(2), &[longest]).len(), 1);
    let longer = turned(udp(1000, &vec![0; MTU as usize - 27]));
    assert!(bench.ingress(vtep(2), &[longer]).is_empty());
    assert_eq!(bench.ingress_drops(DropReason::FrameTooBig), 1);
    let mut tagged = Packet::udp(false, &vec![0; MTU as usize - 28]);
    tagged.tags.push(ethernet::Tag {
        protocol: ethernet::ethertype::VLAN,
        control: 5,
    });
    assert_eq!(bench.ingress(vtep(2), &[turned(tagged.frame())]).len(), 1);
}

#[test]
fn checksum_that_a_virtual_link_left_unfinished_is_passed_on_as_such() {
    for packet in [Packet::tcp(false, 1, b"a"), Packet::udp(true, b"a")] {
        let mut bench = bench();
        let (header, frame) = packet.partial();
        let got = bench.ingress(vtep(2), &[turned(frame.clone())]);
        assert_eq!(got, [[&header.emit(), &*turned(frame)].concat()]);
    }
}

#[test]
fn super_frame_that_a_virtual_link_left_uncut_is_passed_on_as_such() {
    for ipv6 in [false, true] {
        let mut bench = bench();
        let packet = Packet::tcp(ipv6, 1, &[7; 9000]);
        let headers = if ipv6 { 60 } else { 40 };
        let (header, frame) = packet.super_frame(MTU as u16 - headers);
        let got = bench.ingress(vtep(2), &[turned(frame.clone())]);
        assert_eq!(got, [[&header.emit(), &*turned(frame)].concat()]);
    }
}

#[test]
fn udp_super_frame_that_looks_like_a_run_of_datagrams_arrives_as_its_segments() {
    for ipv6 in [false, true] {
        for partial in [true, false] {
            let mut bench = bench();
            let payload: Vec<u8> = (0..1200 * 20 + 77).map(|n| n as u8).collect();
            let packet = Packet::udp(ipv6, &payload);
            let frame = if partial {
                packet.super_frame(1200).1
            } else {
                packet.frame()
            };
            let expected: Vec<Vec<u8>> = payload
                .chunks(1200)
                .enumerate()
                .map(|(index, chunk)| {
                    let mut part = Packet::udp(ipv6, chunk);
                    part.id += index as u16;
                    plain(&turned(part.frame()))
                })
                .collect();
            // The socket reports the inner segments' size as that of the datagrams.
            let datagram = encap(VNI, &turned(frame));
            assert_eq!(bench.arrive(vtep(2), &datagram, 1200), expected);
            assert_eq!(bench.network.stats().ingress_frames, 21);
            assert_eq!(bench.strays(DropReason::VxlanFlags), 0);
        }
    }
}

#[test]
fn packet_that_claims_to_be_longer_than_its_datagram_gets_nothing_of_those_behind_it() {
    const UNKNOWN: u32 = 6;
    for others in [&[VNI][..], &[5], &[UNKNOWN, 5]] {
        let mut bench = bench();
        let network = Arc::new(Network::new(config(5), 1).unwrap());
        network.publish(tables());
        let port = MemPort::default();
        bench
            .lane
            .attach(&network, vec![port.clone()], port.clone());
        let secrets: Vec<_> = others
            .iter()
            .map(|&vni| encap(vni, &turned(udp(1000, &[0x5e; 600]))))
            .collect();
        let size = secrets[0].len();
        // What the liar's frame claims to hold ends where the run ends.
        let mut liar = Packet::udp(false, &vec![0; 600 + size * others.len()]).frame();
        liar.truncate(size - vxlan::HEADER_LEN);
        let run = [encap(VNI, &turned(liar)), secrets.concat()].concat();
        assert!(bench.arrive(vtep(2), &run, size).is_empty());
        assert!(port.take().is_empty());
        let pieces = 1 + others.len() as u64;
        assert_eq!(bench.ingress_drops(DropReason::FrameMalformed), pieces);
    }
}

#[test]
fn udp_super_frame_is_held_against_table_and_mtu() {
    let mut bench = bench();
    let frame = Packet::udp(false, &[7; 9000]).frame();
    let stranger = encap(VNI, &turned(frame.clone()));
    assert!(bench.arrive(vtep(9), &stranger, 1200).is_empty());
    assert_eq!(bench.ingress_drops(DropReason::SourceNotVtep), 1);
    let too_big = encap(VNI, &turned(frame));
    assert!(bench.arrive(vtep(2), &too_big, 4000).is_empty());
    assert_eq!(bench.ingress_drops(DropReason::FrameTooBig), 3);
}

#[test]
fn refusals_of_the_port_are_counted_by_reason() {
    let mut bench = bench();
    let frame = turned(udp(1000, b"hello"));
    bench.port.fail_writes(Some(libc::EAGAIN));
    bench.ingress(vtep(2), &[&frame]);
    bench.port.fail_writes(Some(libc::EIO));
    bench.ingress(vtep(2), &[&frame, &turned(udp(1001, b"hello"))]);
    bench.port.fail_writes(Some(libc::EINVAL));
    bench.ingress(vtep(2), &[&frame]);
    bench.port.fail_writes(None);
    assert_eq!(bench.ingress(vtep(2), &[frame]).len(), 1);
    assert_eq!(bench.ingress_drops(DropReason::PortFull), 1);
    assert_eq!(bench.ingress_drops(DropReason::PortDown), 2);
    assert_eq!(bench.ingress_drops(DropReason::FrameMalformed), 1);
}

#[test]
fn write_to_a_deleted_port_tells_whose_it_was() {
    let mut bench = bench();
    bench.port.fail_writes(Some(libc::EBADFD));
    let datagram = encap(VNI, &turned(udp(1000, b"hello")));
    bench.underlay.inject(vtep(2), &datagram, datagram.len());
    let mut lost = vec![];
    bench
        .lane
        .ingress_round(|network| lost.push(network.config().vni));
    assert_eq!(lost, [vni(VNI)]);
}

#[test]
fn detached_network_gets_nothing_more() {
    let mut bench = bench();
    bench.lane.detach(vni(VNI));
    assert!(bench
        .ingress(vtep(2), &[turned(udp(1000, b"hello"))])
        .is_empty());
    assert_eq!(bench.strays(DropReason::VniUnknown), 1);
}

// Counters by VTEP.

#[test]
fn datagrams_are_counted_for_the_vtep_they_go_to_and_come_from() {
    let mut bench = bench();
    let frame = udp(1000, b"hello");
    let len = (vxlan::HEADER_LEN + frame.len()) as u64;
    bench.egress(&[&frame, &frame]);
    bench.egress(&[broadcast()]);
    let flood = (vxlan::HEADER_LEN + broadcast().len()) as u64;
    let answer = turned(frame);
    bench.ingress(vtep(2), &[&answer, &answer, &answer]);
    let stats = bench.lane.vtep_stats();
    assert_eq!(
        stats.keys().copied().collect::<Vec<_>>(),
        [vtep(2), vtep(3)]
    );
    let second = stats[&vtep(2)];
    assert_eq!(
        (second.sent_datagrams, second.sent_bytes),
        (3, 2 * len + flood)
    );
    assert_eq!(
        (second.received_datagrams, second.received_bytes),
        (3, 3 * len)
    );
    let third = stats[&vtep(3)];
    assert_eq!((third.sent_datagrams, third.sent_bytes), (1, flood));
    assert_eq!((third.received_datagrams, third.received_bytes), (0, 0));
}

#[test]
fn what_the_tables_refuse_makes_no_counters() {
    let mut bench = bench();
    let frame = turned(udp(1000, b"hello"));
    bench.ingress(vtep(9), &[&frame]);
    bench.ingress(vtep(3), &[&frame]);
    bench.arrive(vtep(2), &[0; 4], 4);
    assert_eq!(bench.lane.vtep_stats().len(), 0);
}

#[test]
fn what_the_socket_refuses_is_not_counted_as_sent() {
    let mut bench = bench();
    bench.underlay.script([Some(libc::ENOBUFS)]);
    bench.egress(&[udp(1000, b"hello")]);
    assert_eq!(bench.lane.vtep_stats().len(), 0);
}

#[test]
fn sizes_of_the_tables_come_with_the_counters() {
    let stats = bench().network.stats();
    let sizes = (
        stats.fdb_entries,
        stats.neighbour_entries,
        stats.flood_vteps,
    );
    assert_eq!(sizes, (1, 1, 2));
}

/// The frames that a container's stack sees in what it is given: super-frames cut, checksums whole.
fn frames_in(given: &[u8]) -> Vec<Vec<u8>> {
    let header = VnetHdr::parse(given).unwrap();
    let mut frame = given[virtio::HEADER_LEN..].to_vec();
    if !header.is_gso() {
        complete_checksum(&header, &mut frame).unwrap();
        return vec![frame];
    }
    let mut segments = Segments::new(&header, &frame).unwrap();
    let mut room = [0; MAX_HEADER_LEN];
    let mut cut = vec![];
    while let Some((header_len, payload)) = segments.next_into(&mut room) {
        cut.push([&room[..header_len], &frame[payload]].concat());
    }
    cut
}

/// The frame without the identification of IPv4, which means nothing with DF (RFC 6864).
fn without_identification(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [8, 0] && frame[20] & 0x40 != 0 {
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Each pick is a datagram that arrives: those not picked are lost, those picked twice repeated.
    #[test]
    fn underlay_that_loses_repeats_and_reorders_changes_no_frame(
        ipv6 in any::<bool>(),
        size in 30..300u16,
        picks in vec((any::<prop::sample::Index>(), any::<bool>()), 1..150),
    ) {
        let mut sender = bench();
        let payload: Vec<u8> = (0..6000).map(|n| (n * 7 + n / 256) as u8).collect();
        for packet in [Packet::tcp(ipv6, 1, &payload), Packet::udp(ipv6, &payload)] {
            let (header, frame) = packet.super_frame(size);
            sender.port.inject(header.emit(), &frame);
        }
        sender.lane.egress_round(sender.token, SECOND);
        let sent = sender.underlay.take();
        prop_assert_eq!(sent.len(), 2 * 6000_usize.div_ceil(size.into()));
        // Every other pick is followed by its successor, so that there is something to join.
        let arriving: Vec<Vec<u8>> = picks
            .iter()
            .flat_map(|(index, more)| {
                let at = index.index(sent.len());
                &sent[at..sent.len().min(at + 1 + usize::from(*more))]
            })
            .map(|datagram| turned(datagram.payload[vxlan::HEADER_LEN..].to_vec()))
            .collect();
        let mut receiver = bench();
        let mut got = vec![];
        for run in arriving.chunk_by(|a, b| a.len() == b.len()) {
            got.extend(receiver.ingress(vtep(2), run));
        }
        let got: Vec<_> = got
            .iter()
            .flat_map(|given| frames_in(given))
            .map(without_identification)
            .collect();
        for protocol in [6, 17] {
            let of = |frame: &&Vec<u8>| frame[if ipv6 { 20 } else { 23 }] == protocol;
            let expected: Vec<_> = arriving
                .iter()
                .filter(of)
                .map(|frame| without_identification(frame.clone()))
                .collect();
            let got: Vec<_> = got.iter().filter(of).cloned().collect();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn no_bytes_from_a_container_harm(
        header in any::<[u8; 10]>(),
        tail in vec(any::<u8>(), 0..300),
        cut in 0usize..400,
    ) {
        let mut bench = bench();
        let mut frame = Packet::tcp(false, 1, &tail).frame();
        frame.truncate(cut);
        bench.port.inject(header, &frame);
        bench.port.inject([&header[..2], &[0; 8]].concat().try_into().unwrap(), &tail);
        bench.lane.egress_round(bench.token, SECOND);
        let stats = bench.network.stats();
        prop_assert!(stats.egress_frames + stats.egress_drops.total() + stats.replies >= 2);
    }

    #[test]
    fn no_bytes_from_the_wire_harm(
        run in vec(any::<u8>(), 0..300),
        tail in vec(any::<u8>(), 0..300),
        segment in 1usize..400,
    ) {
        let mut bench = bench();
        bench.arrive(vtep(2), &run, segment);
        let frame = turned(Packet::tcp(false, 1, &tail).frame());
        let mixed = [encap(VNI, &frame), encap(VNI, &run), run].concat();
        bench.arrive(vtep(2), &mixed, segment);
        // A UDP super-frame, if `segment` makes it one; whole, then cut.
        let whole = encap(VNI, &turned(Packet::udp(tail.len() % 2 == 0, &tail).frame()));
        bench.arrive(vtep(2), &whole, segment);
        bench.arrive(vtep(2), &whole[..whole.len() - tail.len() / 2 - 1], segment);
        let (stats, sockets) = (bench.network.stats(), bench.lane.underlay_stats());
        let counted = stats.ingress_frames + stats.ingress_drops.total() + sockets.drops.total();
        prop_assert!(counted >= sockets.received_datagrams);
    }
}
