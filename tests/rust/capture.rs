//! What a worker tells of single frames: captures and the memory of drops, over memory.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use support::{arb_packet, Packet, MAC_A, MAC_B};
use vxlan_dataplane::capture::{self, CaptureError, Direction, Head, Prefix, Verdict};
use vxlan_dataplane::engine::{
    Capture, CaptureConfig, DroppedFrame, Lane, Network, NetworkConfig, Round,
};
use vxlan_dataplane::io::mem::{MemPort, MemUnderlay};
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::virtio::VnetHdr;
use vxlan_dataplane::wire::{arp, ethernet, headers_len, vxlan, MacAddr, Vni};
use vxlan_dataplane::DropReason;

const SECOND: u64 = 1_000_000_000;

fn vtep(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 0, last).into()
}

fn vni(value: u32) -> Vni {
    Vni::new(value).unwrap()
}

/// What a capture has got of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    direction: Direction,
    verdict: Verdict,
    vtep: Option<IpAddr>,
    frames: u16,
    frame_bytes: usize,
    bytes: Vec<u8>,
}

impl Got {
    fn of(direction: Direction, verdict: Verdict, vtep: Option<IpAddr>, frame: &[u8]) -> Self {
        Self {
            direction,
            verdict,
            vtep,
            frames: 1,
            frame_bytes: frame.len(),
            bytes: frame.to_vec(),
        }
    }
}

/// MAC_A is the container here, MAC_B one behind VTEP 2.
struct Bench {
    lane: Lane<MemPort, MemUnderlay>,
    port: MemPort,
    underlay: MemUnderlay,
    token: usize,
}

fn bench() -> Bench {
    let underlay = MemUnderlay::default();
    let port = MemPort::default();
    let mut lane = Lane::new(3, underlay.clone(), 4789);
    let config = NetworkConfig {
        vni: vni(7),
        mtu_bytes: 1450,
        multicast: true,
        flood_rate: 1_000_000,
    };
    let network = Arc::new(Network::new(config, 4).unwrap());
    let tables = Tables::new(vni(7), true)
        .with_changes(&[(MAC_B, vtep(2))], &[])
        .and_then(|tables| tables.with_flood(&[vtep(2), vtep(3)]))
        .and_then(|tables| tables.with_neighbours(&[(Ipv4Addr::new(10, 0, 0, 3).into(), MAC_B)]))
        .unwrap();
    network.publish(tables);
    let token = lane.attach(&network, vec![port.clone()], port.clone())[0];
    Bench {
        lane,
        port,
        underlay,
        token,
    }
}

fn all() -> CaptureConfig {
    CaptureConfig {
        vni: vni(7),
        mac: None,
        snap_bytes: capture::MAX_KEPT,
        drops_only: false,
    }
}

impl Bench {
    fn capture(&mut self, config: CaptureConfig) -> UnixDatagram {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = Arc::new(OwnedFd::from(theirs));
        self.lane.begin_capture(Capture::new(1, 3, config, socket));
        ours
    }

    fn egress<F: AsRef<[u8]>>(&mut self, frames: &[F]) {
        for frame in frames {
            self.port.inject(VnetHdr::NONE.emit(), frame.as_ref());
        }
        assert_eq!(self.lane.egress_round(self.token, SECOND), Round::Moved);
    }

    fn ingress<F: AsRef<[u8]>>(&mut self, source: IpAddr, value: u32, frames: &[F]) {
        let header = vxlan::header(vni(value));
        let datagrams = frames
            .iter()
            .map(|frame| [&header, frame.as_ref()].concat());
        let run: Vec<u8> = datagrams.flatten().collect();
        let segment = frames[0].as_ref().len() + vxlan::HEADER_LEN;
        self.underlay.inject(source, &run, segment);
        assert_eq!(self.lane.ingress_round(|_| ()), Round::Moved);
    }
}

/// Reads the next message, and then what it has lost, its records, and their times.
fn message(reader: &UnixDatagram) -> (u64, Vec<Got>, Vec<u64>) {
    let mut buffer = vec![0; 256 * 1024];
    let len = reader.recv(&mut buffer).unwrap();
    let (prefix, records) = capture::parse(&buffer[..len]).unwrap();
    assert_eq!(prefix.worker, 3);
    let times = records.iter().map(|record| record.head.time_ns).collect();
    let got = records.iter().map(|record| Got {
        direction: record.head.direction,
        verdict: record.head.verdict,
        vtep: record.head.vtep,
        frames: record.head.frames,
        frame_bytes: record.head.frame_bytes as usize,
        bytes: record.bytes.to_vec(),
    });
    (prefix.lost, got.collect(), times)
}

fn got(reader: &UnixDatagram) -> Vec<Got> {
    message(reader).1
}

fn udp(payload: &[u8]) -> Vec<u8> {
    Packet::udp(false, payload).frame()
}

fn to(mac: MacAddr, mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac.0);
    frame
}

/// The frame with both MAC addresses exchanged: from MAC_B to MAC_A.
fn turned(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&MAC_A.0);
    frame[6..12].copy_from_slice(&MAC_B.0);
    frame
}

fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; 42];
    let header = ethernet::Header::new(MacAddr::BROADCAST, MAC_A, ethernet::ethertype::ARP);
    header.emit(&mut frame).unwrap();
    let message = arp::Message {
        operation: arp::REQUEST,
        sender_mac: MAC_A,
        sender_ip: Ipv4Addr::new(10, 0, 0, 2),
        target_mac: MacAddr::ZERO,
        target_ip: target,
    };
    message.emit(&mut frame[14..]).unwrap();
    frame
}

const UNKNOWN: MacAddr = MacAddr([2, 0x42, 9, 9, 9, 9]);

#[test]
fn capture_tells_what_became_of_each_frame_from_a_container() {
    let mut bench = bench();
    let reader = bench.capture(all());
    let frames = [
        udp(b"known"),
        to(MacAddr::BROADCAST, udp(b"all")),
        arp_request(Ipv4Addr::new(10, 0, 0, 3)),
        to(UNKNOWN, udp(b"unknown")),
    ];
    bench.egress(&frames);
    let (_, records, times) = message(&reader);
    let egress = Direction::Egress;
    let unknown = Verdict::Dropped(DropReason::DestinationUnknown);
    assert_eq!(records[0].verdict, Verdict::Answer);
    assert_eq!(records[0].direction, Direction::Ingress);
    assert_eq!(records[0].bytes[6..12], MAC_B.0);
    assert_eq!(
        records[1..],
        [
            Got::of(egress, Verdict::Forwarded, Some(vtep(2)), &frames[0]),
            Got::of(egress, Verdict::Flooded(2), None, &frames[1]),
            Got::of(egress, Verdict::Answered, None, &frames[2]),
            Got::of(egress, unknown, None, &frames[3]),
        ]
    );
    assert_eq!(
        times[0],
        times[3] + 1,
        "an answer stands behind its question"
    );
}

#[test]
fn capture_tells_what_became_of_each_frame_from_a_vtep() {
    let mut bench = bench();
    let reader = bench.capture(all());
    let frame = turned(udp(b"in"));
    let ingress = Direction::Ingress;
    bench.ingress(vtep(2), 7, &[&frame]);
    let expected = Got::of(ingress, Verdict::Delivered, Some(vtep(2)), &frame);
    assert_eq!(got(&reader), [expected]);
    bench.ingress(vtep(9), 7, &[&frame]);
    let verdict = Verdict::Dropped(DropReason::SourceNotVtep);
    let expected = Got::of(ingress, verdict, Some(vtep(9)), &frame);
    assert_eq!(got(&reader), [expected]);
    bench.port.fail_writes(Some(libc::EAGAIN));
    bench.ingress(vtep(2), 7, &[&frame]);
    let verdict = Verdict::Dropped(DropReason::PortFull);
    let expected = Got::of(ingress, verdict, Some(vtep(2)), &frame);
    assert_eq!(got(&reader), [expected]);
    let big = turned(udp(&[7; 2000]));
    bench.ingress(vtep(2), 7, &[&big]);
    let verdict = Verdict::Dropped(DropReason::FrameTooBig);
    assert_eq!(
        got(&reader),
        [Got::of(ingress, verdict, Some(vtep(2)), &big)]
    );
}

#[test]
fn frame_that_the_underlay_refuses_is_told_to_be_dropped() {
    let mut bench = bench();
    let reader = bench.capture(all());
    bench.underlay.script([None, Some(libc::EMSGSIZE)]);
    // Of two sizes, the second longer: two messages.
    let frames = [udp(b"a"), udp(b"longer")];
    bench.egress(&frames);
    let verdict = Verdict::Dropped(DropReason::UnderlayMtu);
    let egress = Direction::Egress;
    assert_eq!(
        got(&reader),
        [
            Got::of(egress, Verdict::Forwarded, Some(vtep(2)), &frames[0]),
            Got::of(egress, verdict, Some(vtep(2)), &frames[1]),
        ]
    );
    let drops = bench.lane.recent_drops();
    assert_eq!(drops.len(), 1);
    assert_eq!(drops[0].reason, DropReason::UnderlayMtu);
    assert_eq!(drops[0].headers(), &frames[1][..42]);
}

#[test]
fn super_frame_is_one_record_that_says_how_many_frames_it_stands_for() {
    let mut bench = bench();
    let reader = bench.capture(all());
    let packet = Packet::tcp(false, 1, &[1; 10_000]);
    let (header, frame) = packet.super_frame(1000);
    bench.port.inject(header.emit(), &frame);
    bench.lane.egress_round(bench.token, SECOND);
    let out = got(&reader);
    assert_eq!((out.len(), out[0].frames), (1, 10));
    assert_eq!(out[0].bytes, frame);
    let segments = packet.segments(1000);
    let segments: Vec<_> = segments.iter().map(|p| turned(p.frame())).collect();
    bench.ingress(vtep(2), 7, &segments);
    let joined = got(&reader);
    assert_eq!((joined.len(), joined[0].frames), (1, 10));
    assert_eq!(joined[0].bytes.len(), 54 + 10_000);
    assert_eq!(joined[0].vtep, Some(vtep(2)));
    bench.underlay.script([Some(libc::ENETUNREACH); 3]);
    bench.port.inject(header.emit(), &frame);
    bench.lane.egress_round(bench.token, SECOND);
    let refused = got(&reader);
    let verdict = Verdict::Dropped(DropReason::UnderlayError);
    assert_eq!((refused.len(), refused[0].verdict), (1, verdict));
}

#[test]
fn capture_keeps_as_much_of_a_frame_as_it_was_told_to() {
    let mut bench = bench();
    let snap_bytes = 60;
    let reader = bench.capture(CaptureConfig {
        snap_bytes,
        ..all()
    });
    let frame = udp(&[9; 500]);
    bench.egress(&[&frame]);
    let records = got(&reader);
    assert_eq!(records[0].bytes, frame[..60]);
    assert_eq!(records[0].frame_bytes, frame.len());
}

#[test]
fn capture_of_a_mac_has_its_frames_and_what_is_for_all() {
    let mut bench = bench();
    let mac = Some(MAC_A);
    let reader = bench.capture(CaptureConfig { mac, ..all() });
    let mut other = udp(b"of another");
    other[6..12].copy_from_slice(&UNKNOWN.0);
    bench.egress(&[udp(b"its own"), other]);
    assert_eq!(got(&reader).len(), 1);
    let to_other = to(UNKNOWN, turned(udp(b"for another")));
    bench.ingress(vtep(2), 7, &[to_other]);
    let to_all = to(MacAddr::BROADCAST, turned(udp(b"for all")));
    bench.ingress(vtep(2), 7, &[&to_all]);
    assert_eq!(got(&reader)[0].bytes, to_all);
    bench.ingress(vtep(2), 7, &[turned(udp(b"for it"))]);
    assert_eq!(got(&reader).len(), 1);
}

#[test]
fn capture_of_drops_has_nothing_else() {
    let mut bench = bench();
    let drops_only = true;
    let reader = bench.capture(CaptureConfig {
        drops_only,
        ..all()
    });
    bench.egress(&[udp(b"known"), to(UNKNOWN, udp(b"unknown"))]);
    let records = got(&reader);
    assert_eq!(records.len(), 1);
    assert!(matches!(records[0].verdict, Verdict::Dropped(_)));
}

#[test]
fn captures_run_beside_each_other_and_each_has_its_own_network() {
    let mut bench = bench();
    let one = bench.capture(all());
    let two = bench.capture(all());
    let other = bench.capture(CaptureConfig {
        vni: vni(8),
        ..all()
    });
    bench.egress(&[udp(b"a")]);
    assert_eq!((got(&one).len(), got(&two).len()), (1, 1));
    assert!(other.recv(&mut [0; 64]).is_err());
}

#[test]
fn slow_reader_loses_records_which_are_counted_and_forwarding_goes_on() {
    let mut bench = bench();
    let reader = bench.capture(all());
    let frame = udp(&[7; 1000]);
    let rounds = 10_000;
    for _ in 0..rounds {
        bench.egress(&[&frame]);
    }
    assert_eq!(bench.underlay.take().len(), rounds);
    let mut read = 0;
    while reader.recv(&mut [0; 2000]).is_ok() {
        read += 1;
    }
    assert!(read < rounds);
    bench.egress(&[&frame]);
    assert_eq!(message(&reader).0, (rounds - read) as u64);
}

#[test]
fn capture_ends_when_its_reader_goes() {
    let mut bench = bench();
    let reader = bench.capture(all());
    bench.egress(&[udp(b"a")]);
    drop(reader);
    bench.egress(&[udp(b"b")]);
    // The number is free again, so nothing is left of it.
    let again = bench.capture(all());
    bench.egress(&[udp(b"c")]);
    assert_eq!(got(&again).len(), 1);
    bench.lane.end_capture(1);
    bench.egress(&[udp(b"d")]);
    assert!(again.recv(&mut [0; 64]).is_err());
}

#[test]
fn turn_with_more_than_fits_a_message_leaves_in_several() {
    let mut bench = bench();
    let reader = bench.capture(all());
    let packet = Packet::tcp(false, 1, &vec![1; 60_000]);
    let (header, frame) = packet.super_frame(1390);
    for _ in 0..4 {
        bench.port.inject(header.emit(), &frame);
    }
    bench.lane.egress_round(bench.token, SECOND);
    let mut records = 0;
    let mut messages = 0;
    while records < 4 {
        records += got(&reader).len();
        messages += 1;
    }
    assert!(messages > 1);
    assert_eq!(records, 4);
}

// The memory of drops.

fn only(drops: &[DroppedFrame], reason: DropReason) -> Vec<DroppedFrame> {
    let mut found: Vec<_> = drops
        .iter()
        .filter(|d| d.reason == reason)
        .copied()
        .collect();
    found.sort_by_key(|dropped| dropped.time_ns);
    found
}

#[test]
fn dropped_frame_is_remembered_without_its_payload() {
    let mut bench = bench();
    let frame = to(UNKNOWN, udp(b"a secret"));
    bench.egress(&[&frame]);
    let drops = bench.lane.recent_drops();
    assert_eq!(drops.len(), 1);
    let dropped = &drops[0];
    assert_eq!(dropped.reason, DropReason::DestinationUnknown);
    assert_eq!((dropped.vni, dropped.vtep), (Some(vni(7)), None));
    assert_eq!(dropped.direction, Direction::Egress);
    assert_eq!(dropped.frame_bytes as usize, frame.len());
    assert_eq!(dropped.headers(), &frame[..42]);
}

#[test]
fn datagram_of_no_network_is_remembered_with_its_sender() {
    let mut bench = bench();
    let frame = turned(udp(b"in"));
    bench.ingress(vtep(9), 99, &[&frame]);
    bench.underlay.inject(vtep(8), &[0; 40], 40);
    bench.lane.ingress_round(|_| ());
    let drops = bench.lane.recent_drops();
    let unknown = only(&drops, DropReason::VniUnknown);
    assert_eq!(
        (unknown[0].vni, unknown[0].vtep),
        (Some(vni(99)), Some(vtep(9)))
    );
    assert_eq!(unknown[0].headers(), &frame[..42]);
    let foreign = only(&drops, DropReason::VxlanFlags);
    assert_eq!((foreign[0].vni, foreign[0].vtep), (None, Some(vtep(8))));
    assert_eq!(foreign[0].headers(), b"");
}

#[test]
fn drops_that_are_alike_are_one_entry_and_none_drives_out_another_reason() {
    let mut bench = bench();
    bench.ingress(vtep(9), 7, &[turned(udp(b"spoofed"))]);
    let unknown = to(UNKNOWN, udp(b"unknown"));
    for _ in 0..10 {
        bench.egress(&vec![unknown.clone(); 32]);
    }
    for last in 0..100 {
        let frame = to(MacAddr([2, 0, 0, 0, 0, last]), udp(b"unknown"));
        bench.egress(&[frame]);
    }
    let drops = bench.lane.recent_drops();
    let unknown = only(&drops, DropReason::DestinationUnknown);
    assert_eq!(unknown.len(), 16);
    assert_eq!(only(&drops, DropReason::SourceNotVtep).len(), 1);
    bench.egress(&vec![to(UNKNOWN, udp(b"unknown")); 32]);
    let drops = bench.lane.recent_drops();
    let unknown = only(&drops, DropReason::DestinationUnknown);
    assert_eq!(unknown.iter().filter(|d| d.count == 32).count(), 1);
}

#[test]
fn one_turn_remembers_few_drops_however_many_there_are() {
    let mut bench = bench();
    let frames: Vec<_> = (0..32)
        .map(|last| to(MacAddr([2, 0, 0, 0, 0, last]), udp(b"unknown")))
        .collect();
    bench.egress(&frames);
    let first = bench.lane.recent_drops().len();
    assert!(0 < first && first < 16, "{first}");
    bench.egress(&frames);
    assert!(bench.lane.recent_drops().len() > first);
}

#[test]
fn headers_end_where_payload_begins() {
    let payload = [0xaa; 99];
    for ipv6 in [false, true] {
        let l3 = if ipv6 { 40 } else { 20 };
        let frame = Packet::udp(ipv6, &payload).frame();
        assert_eq!(headers_len(&frame), 14 + l3 + 8);
        let frame = Packet::tcp(ipv6, 1, &payload).frame();
        assert_eq!(headers_len(&frame), 14 + l3 + 20);
    }
    assert_eq!(headers_len(&arp_request(Ipv4Addr::LOCALHOST)), 42);
    let mut fragment = Packet::udp(false, &payload).frame();
    fragment[21] = 9;
    assert_eq!(
        headers_len(&fragment),
        34,
        "of a later fragment all is payload"
    );
    let mut unknown = Packet::udp(false, &payload).frame();
    unknown[12..14].copy_from_slice(&[0x88, 0xb5]);
    assert_eq!(headers_len(&unknown), 14);
}

// The format.

fn arb_head() -> impl Strategy<Value = Head> {
    let verdict = prop_oneof![
        Just(Verdict::Forwarded),
        any::<u16>().prop_map(Verdict::Flooded),
        Just(Verdict::Delivered),
        Just(Verdict::Answered),
        Just(Verdict::Answer),
        (0..DropReason::COUNT).prop_map(|number| Verdict::Dropped(DropReason::ALL[number])),
    ];
    let vtep = prop_oneof![
        Just(None),
        any::<Ipv4Addr>().prop_map(|vtep| Some(vtep.into())),
        any::<Ipv6Addr>().prop_map(|vtep| Some(vtep.into())),
    ];
    let times = (any::<u64>(), any::<bool>(), any::<u16>());
    (times, verdict, vtep).prop_map(|((time_ns, inward, frames), verdict, vtep)| Head {
        time_ns,
        direction: if inward {
            Direction::Ingress
        } else {
            Direction::Egress
        },
        verdict,
        vtep,
        frames,
        frame_bytes: 0,
        kept_bytes: 0,
    })
}

proptest! {
    #[test]
    fn message_holds_what_was_put_into_it(
        heads in vec((arb_head(), vec(any::<u8>(), 0..100), 0..9u32), 0..9),
        lost in any::<u64>(),
        worker in any::<u16>(),
    ) {
        let prefix = Prefix { lost, worker, records: heads.len() as u16 };
        let mut message = prefix.emit().to_vec();
        let mut expected = vec![];
        for (mut head, bytes, more) in heads {
            head.kept_bytes = bytes.len() as u32;
            head.frame_bytes = head.kept_bytes + more;
            message.extend(head.emit());
            message.extend(&bytes);
            expected.push((head, bytes));
        }
        let (read, records) = capture::parse(&message).unwrap();
        let records: Vec<_> = records.iter().map(|r| (r.head, r.bytes.to_vec())).collect();
        prop_assert_eq!((read, records), (prefix, expected));
        prop_assert_eq!(capture::parse(&message[..message.len() - 1]), Err(CaptureError::Short));
        message.push(0);
        prop_assert_eq!(capture::parse(&message), Err(CaptureError::Long(1)));
    }

    #[test]
    fn headers_are_within_the_frame_and_end_at_the_payload(packet in arb_packet(1..500)) {
        let frame = packet.frame();
        prop_assert_eq!(headers_len(&frame), frame.len() - packet.payload.len());
        for end in 0..frame.len() {
            prop_assert!(headers_len(&frame[..end]) <= end);
        }
    }
}
