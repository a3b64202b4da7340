//! Offloads, against a model that builds every segment from nothing.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use proptest::collection::vec;
use proptest::prelude::*;
use support::{arb_packet, arb_tags, arb_words, naive_checksum, Packet, Transport};
use vxlan_dataplane::offload::{
    complete_checksum, unfinished, Coalescer, Output, Segments, MAX_PIECES,
};
use vxlan_dataplane::wire::ethernet::Tag;
use vxlan_dataplane::wire::ipv4;
use vxlan_dataplane::wire::tcp::flag::{ACK, CWR, FIN, PSH, RST, SYN, URG};
use vxlan_dataplane::wire::virtio::{self, VnetHdr};
use vxlan_dataplane::DropReason;

const MALFORMED: DropReason = DropReason::OffloadMalformed;

/// All segments of a super-frame as frames.
fn segmented(hdr: &VnetHdr, frame: &[u8]) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut segments = Segments::new(hdr, frame)?;
    let mut scratch = [0xee; 300];
    let mut frames = vec![];
    let (count, frame_len) = (segments.remaining(), segments.frame_len());
    while let Some((header_len, payload)) = segments.next_into(&mut scratch) {
        assert_eq!(header_len, segments.header_len());
        assert_eq!(
            scratch[header_len], 0xee,
            "nothing is written behind the headers"
        );
        frames.push([&scratch[..header_len], &frame[payload]].concat());
    }
    assert_eq!(frames.len(), count);
    let (last, others) = frames.split_last().unwrap();
    assert!(others.iter().all(|frame| frame.len() == frame_len) && last.len() <= frame_len);
    Ok(frames)
}

fn frames_of(packets: &[Packet]) -> Vec<Vec<u8>> {
    packets.iter().map(Packet::frame).collect()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 256) as u8).collect()
}

#[test]
fn super_frame_of_64_kib_becomes_46_segments() {
    for ipv6 in [false, true] {
        let packet = Packet::tcp(ipv6, u32::MAX - 10_000, &pattern(64_000)).with_flags(ACK | PSH);
        let (hdr, frame) = packet.super_frame(1398);
        let segments = segmented(&hdr, &frame).unwrap();
        assert_eq!(segments.len(), 46);
        assert_eq!(segments, frames_of(&packet.segments(1398)));
    }
}

#[test]
fn padding_behind_the_packet_is_not_sent() {
    let packet = Packet::tcp(false, 1, b"payload");
    let (hdr, mut frame) = packet.super_frame(4);
    frame.extend([0xaa; 9]);
    assert_eq!(
        segmented(&hdr, &frame).unwrap(),
        frames_of(&packet.segments(4))
    );
}

#[test]
fn super_frame_without_payload_is_one_segment() {
    let packet = Packet::tcp(false, 1, b"");
    let (hdr, frame) = packet.super_frame(100);
    assert_eq!(segmented(&hdr, &frame).unwrap(), [packet.frame()]);
}

#[test]
fn ecn_super_frame_keeps_cwr_on_its_first_segment() {
    let packet = Packet::tcp(false, 1, &pattern(100)).with_flags(ACK | CWR);
    let (mut hdr, frame) = packet.super_frame(40);
    hdr.gso_type |= virtio::GSO_ECN;
    assert_eq!(
        segmented(&hdr, &frame).unwrap(),
        frames_of(&packet.segments(40))
    );
}

#[test]
fn checksum_is_completed_though_the_sender_does_not_ask() {
    let packet = Packet::tcp(true, 1, &pattern(100));
    let (mut hdr, frame) = packet.super_frame(40);
    hdr.flags = 0;
    assert_eq!(
        segmented(&hdr, &frame).unwrap(),
        frames_of(&packet.segments(40))
    );
}

#[test]
fn scratch_that_is_too_short_loses_no_segment() {
    let packet = Packet::tcp(false, 1, &pattern(100));
    let (hdr, frame) = packet.super_frame(60);
    let mut segments = Segments::new(&hdr, &frame).unwrap();
    assert_eq!(segments.next_into(&mut [0; 53]), None);
    assert_eq!(segments.remaining(), 2);
    assert_eq!(segments.next_into(&mut [0; 54]), Some((54, 54..114)));
}

#[test]
fn source_routed_segments_keep_the_senders_pseudo_header() {
    // Destination of the pseudo header: not that of the packet, known to the sender alone.
    let mut last_hop = Packet::tcp(false, 5, &pattern(100));
    last_hop.extra = vec![131, 7, 4, 10, 9, 9, 9, 0];
    let [far, near] = [last_hop.destination, [10, 1, 1, 1].into()];
    let via = |mut packet: Packet| {
        let mut frame = packet.frame();
        packet.destination = near;
        frame[14..42].copy_from_slice(&packet.frame()[14..42]);
        frame
    };
    assert_ne!(far, near);
    let (hdr, mut frame) = last_hop.super_frame(40);
    frame[14..42].copy_from_slice(&via(last_hop.clone())[14..42]);
    let expected: Vec<_> = last_hop.segments(40).into_iter().map(via).collect();
    assert_eq!(segmented(&hdr, &frame).unwrap(), expected);
    let hdr = VnetHdr { flags: 0, ..hdr };
    assert_eq!(segmented(&hdr, &frame), Err(MALFORMED));
}

#[test]
fn super_frames_that_cannot_be_are_refused() {
    let (hdr, frame) = Packet::tcp(false, 1, &pattern(100)).super_frame(40);
    let refused = |hdr: VnetHdr| assert_eq!(segmented(&hdr, &frame), Err(MALFORMED), "{hdr:?}");
    for gso_type in [
        0,
        virtio::GSO_UDP,
        virtio::GSO_TCPV6,
        virtio::GSO_UDP_L4,
        2,
        0x21,
        0x41,
    ] {
        refused(VnetHdr { gso_type, ..hdr });
    }
    refused(VnetHdr { gso_size: 0, ..hdr });
    let (csum_start, csum_offset) = (hdr.csum_start + 1, hdr.csum_offset + 1);
    refused(VnetHdr { csum_start, ..hdr });
    refused(VnetHdr { csum_offset, ..hdr });
    let spoilt = |at: usize, value: u8| {
        let mut frame = frame.clone();
        frame[at] = value;
        assert_eq!(segmented(&hdr, &frame), Err(MALFORMED), "byte {at}");
    };
    spoilt(14, 0x44); // header length
    spoilt(14, 0x4f);
    spoilt(16, 1); // total length
    spoilt(20, 0x20); // fragment
    spoilt(21, 1);
    spoilt(23, 17); // protocol
    spoilt(46, 0x40); // data offset
    for len in 0..frame.len() {
        assert_eq!(segmented(&hdr, &frame[..len]), Err(MALFORMED));
    }
}

#[test]
fn super_frame_of_too_many_segments_is_refused() {
    let (hdr, frame) = Packet::tcp(false, 1, &pattern(8193)).super_frame(1);
    assert_eq!(segmented(&hdr, &frame), Err(MALFORMED));
    let (hdr, frame) = Packet::tcp(false, 1, &pattern(8192)).super_frame(1);
    assert_eq!(segmented(&hdr, &frame).unwrap().len(), 8192);
}

#[test]
fn udp_checksum_of_zero_is_sent_as_its_other_form() {
    // Searches a payload whose checksum is zero, so that a naive sender would send "none".
    let packet = (0..=u16::MAX)
        .map(|n| Packet::udp(false, &n.to_be_bytes()))
        .find(|packet| packet.frame()[40..42] == [0xff, 0xff])
        .unwrap();
    let (hdr, mut frame) = packet.partial();
    complete_checksum(&hdr, &mut frame).unwrap();
    assert_eq!(frame, packet.frame());
    let (hdr, frame) = packet.super_frame(2);
    assert_eq!(segmented(&hdr, &frame).unwrap(), [packet.frame()]);
}

#[test]
fn tcp_checksum_of_zero_is_sent_as_zero() {
    let packet = (0..=u16::MAX)
        .map(|n| Packet::tcp(true, 1, &n.to_be_bytes()))
        .find(|packet| packet.frame()[70..72] == [0, 0])
        .unwrap();
    let (hdr, mut frame) = packet.partial();
    complete_checksum(&hdr, &mut frame).unwrap();
    assert_eq!(frame, packet.frame());
    let (hdr, frame) = packet.super_frame(2);
    assert_eq!(segmented(&hdr, &frame).unwrap(), [packet.frame()]);
}

#[test]
fn checksum_outside_the_frame_is_refused() {
    let (hdr, frame) = Packet::udp(false, b"payload").partial();
    let len = frame.len() as u16;
    for (csum_start, csum_offset) in [(len, 0), (len - 1, 0), (34, len - 34 - 1), (u16::MAX, 6)] {
        let hdr = VnetHdr {
            csum_start,
            csum_offset,
            ..hdr
        };
        let mut spoilt = frame.clone();
        assert_eq!(complete_checksum(&hdr, &mut spoilt), Err(MALFORMED));
        assert_eq!(spoilt, frame);
    }
}

#[test]
fn frame_that_asks_for_nothing_stays_as_it_is() {
    let frame = Packet::udp(false, b"payload").frame();
    let mut same = frame.clone();
    assert_eq!(complete_checksum(&VnetHdr::NONE, &mut same), Ok(()));
    assert_eq!(same, frame);
}

/// What left a coalescer: the frames' numbers, and the frame or super-frame.
#[derive(Clone, Debug, PartialEq)]
struct Written {
    handles: Vec<usize>,
    vnet: VnetHdr,
    frame: Vec<u8>,
}

fn coalesced(frames: &[Vec<u8>]) -> Vec<Written> {
    let mut written = vec![];
    let mut coalescer = Coalescer::new();
    let mut emit = |output: Output<'_, usize>| match output {
        Output::Single(handle) => written.push(Written {
            handles: vec![handle],
            vnet: VnetHdr::NONE,
            frame: frames[handle].clone(),
        }),
        Output::Joined(joined) => {
            let mut frame = joined.header.to_vec();
            for piece in joined.pieces {
                let payload = piece.payload.start as usize..piece.payload.end as usize;
                frame.extend(&frames[piece.handle][payload]);
            }
            written.push(Written {
                handles: joined.pieces.iter().map(|piece| piece.handle).collect(),
                vnet: joined.vnet,
                frame,
            });
        }
    };
    for (handle, frame) in frames.iter().enumerate() {
        coalescer.push(frame, handle, &mut emit);
    }
    coalescer.flush(&mut emit);
    written
}

/// Which frames were joined with which.
fn groups(frames: &[Vec<u8>]) -> Vec<Vec<usize>> {
    coalesced(frames)
        .into_iter()
        .map(|written| written.handles)
        .collect()
}

/// Segments of `size` bytes each, but the last of `last`.
fn stream(ipv6: bool, count: usize, size: usize, last: usize) -> Vec<Packet> {
    let payload = pattern((count - 1) * size + last);
    Packet::tcp(ipv6, u32::MAX - 3000, &payload).segments(size)
}

#[test]
fn segments_in_sequence_become_the_super_frame_they_came_from() {
    for ipv6 in [false, true] {
        let packet = Packet::tcp(ipv6, 77, &pattern(20_000)).with_flags(ACK | PSH);
        let (hdr, frame) = packet.super_frame(1398);
        let written = coalesced(&frames_of(&packet.segments(1398)));
        let handles = (0..15).collect();
        assert_eq!(
            written,
            [Written {
                handles,
                vnet: hdr,
                frame
            }]
        );
    }
}

#[test]
fn lone_segment_passes_unchanged() {
    let frames = frames_of(&stream(false, 1, 100, 100));
    let written = coalesced(&frames);
    assert_eq!(written[0].vnet, VnetHdr::NONE);
    assert_eq!(written[0].frame, frames[0]);
}

#[test]
fn shorter_segment_ends_a_super_frame_and_a_longer_one_begins_another() {
    let mut packets = stream(false, 3, 100, 50);
    packets.extend(
        Packet::tcp(false, packets[2].sequence().wrapping_add(50), &pattern(50)).segments(50),
    );
    assert_eq!(groups(&frames_of(&packets)), [vec![0, 1, 2], vec![3]]);
    let mut packets = stream(false, 2, 100, 100);
    packets.push(Packet::tcp(
        false,
        packets[1].sequence().wrapping_add(100),
        &pattern(101),
    ));
    packets[2].id = packets[1].id + 1;
    assert_eq!(groups(&frames_of(&packets)), [vec![0, 1], vec![2]]);
}

#[test]
fn gap_repetition_and_disorder_are_not_joined() {
    let frames = frames_of(&stream(false, 4, 100, 100));
    let pick = |order: &[usize]| {
        let frames: Vec<_> = order.iter().map(|&n| frames[n].clone()).collect();
        groups(&frames)
    };
    assert_eq!(pick(&[0, 1, 3]), [vec![0, 1], vec![2]]);
    assert_eq!(pick(&[0, 0, 1]), [vec![0], vec![1, 2]]);
    assert_eq!(pick(&[1, 0, 1]), [vec![0], vec![1, 2]]);
}

#[test]
fn segments_with_other_headers_are_not_joined() {
    let base = stream(false, 2, 100, 100);
    let joined = |change: &dyn Fn(&mut Packet)| {
        let mut packets = base.clone();
        change(&mut packets[1]);
        groups(&frames_of(&packets)).len() == 1
    };
    assert!(joined(&|_| {}));
    assert!(
        joined(&|packet| packet.id = 999),
        "with DF the identification means nothing"
    );
    assert!(!joined(&|packet| packet.ttl = 63));
    assert!(!joined(&|packet| packet.traffic_class = 3));
    assert!(!joined(&|packet| packet.dont_fragment = false));
    assert!(!joined(&|packet| packet.extra = vec![1; 4]));
    assert!(!joined(&|packet| packet.tags = vec![Tag {
        protocol: 0x8100,
        control: 5
    }]));
    assert!(!joined(&|packet| packet.payload.clear()));
    let tcp = |change: &dyn Fn(&mut u32, &mut u16, &mut Vec<u8>)| {
        joined(&|packet| {
            if let Transport::Tcp {
                acknowledgement,
                window,
                options,
                ..
            } = &mut packet.transport
            {
                change(acknowledgement, window, options);
            }
        })
    };
    assert!(!tcp(&|acknowledgement, _, _| *acknowledgement += 1));
    assert!(!tcp(&|_, window, _| *window += 1));
    assert!(!tcp(&|_, _, options| *options = vec![1; 4]));
    for flag in [SYN, RST, URG, CWR, 0x040, 0x100] {
        assert!(!joined(
            &|packet| *packet = packet.clone().with_flags(ACK | flag)
        ));
    }
    for flag in [PSH, FIN] {
        assert!(joined(
            &|packet| *packet = packet.clone().with_flags(ACK | flag)
        ));
    }
}

/// With Accurate ECN the flag is part of a counter of which nothing may be lost.
#[test]
fn segment_with_cwr_passes_alone() {
    for at in 0..3 {
        let mut packets = stream(false, 5, 100, 100);
        packets[at] = packets[at].clone().with_flags(ACK | CWR);
        let before: Vec<usize> = (0..at).collect();
        let after: Vec<usize> = (at + 1..5).collect();
        let expected = [before, vec![at], after];
        let expected: Vec<_> = expected.into_iter().filter(|g| !g.is_empty()).collect();
        assert_eq!(groups(&frames_of(&packets)), expected);
    }
}

#[test]
fn without_df_identifications_must_count_up() {
    let mut packets = stream(false, 3, 100, 100);
    packets
        .iter_mut()
        .for_each(|packet| packet.dont_fragment = false);
    assert_eq!(groups(&frames_of(&packets)).len(), 1);
    packets[2].id += 1;
    assert_eq!(groups(&frames_of(&packets)), [vec![0, 1], vec![2]]);
}

/// Datagrams of `size` bytes each, but the last of `last`.
fn datagrams(ipv6: bool, count: usize, size: usize, last: usize) -> Vec<Packet> {
    Packet::udp(ipv6, &pattern((count - 1) * size + last)).segments(size)
}

#[test]
fn datagrams_of_one_flow_become_the_super_frame_they_came_from() {
    for ipv6 in [false, true] {
        let packet = Packet::udp(ipv6, &pattern(20_000));
        let (vnet, frame) = packet.super_frame(1398);
        let written = coalesced(&frames_of(&packet.segments(1398)));
        let handles = (0..15).collect();
        assert_eq!(
            written,
            [Written {
                handles,
                vnet,
                frame
            }]
        );
    }
}

#[test]
fn datagrams_with_other_headers_are_not_joined() {
    let base = datagrams(false, 2, 100, 100);
    let joined = |change: &dyn Fn(&mut Packet)| {
        let mut packets = base.clone();
        change(&mut packets[1]);
        groups(&frames_of(&packets)).len() == 1
    };
    assert!(joined(&|_| {}));
    assert!(joined(&|packet| packet.payload.truncate(99)));
    assert!(!joined(&|packet| packet.payload.push(1)));
    assert!(!joined(&|packet| packet.payload.clear()));
    assert!(!joined(&|packet| packet.ttl = 63));
    assert!(!joined(&|packet| packet.traffic_class = 3));
    assert!(!joined(&|packet| packet.dont_fragment = false));
    assert!(!joined(&|packet| packet.extra = vec![1; 4]));
    assert!(!joined(&|packet| packet.source_port += 1));
    assert!(
        !joined(&|packet| packet.transport = Transport::Udp { checksum: false }),
        "a missing checksum would be made up"
    );
    assert!(!joined(
        &|packet| packet.transport = Packet::tcp(false, 0, b"").transport
    ));
}

#[test]
fn datagrams_that_differ_in_length_keep_their_order_and_their_ends() {
    let lens = [100, 100, 40, 40, 100, 0, 100, 100];
    let frames: Vec<_> = lens
        .iter()
        .map(|&len| Packet::udp(true, &pattern(len)).frame())
        .collect();
    assert_eq!(
        groups(&frames),
        [vec![0, 1, 2], vec![3], vec![4], vec![5], vec![6, 7]]
    );
}

#[test]
fn datagrams_are_left_alone_where_the_kernel_takes_no_super_frames_of_them() {
    let frames = frames_of(&[datagrams(false, 2, 9, 9), stream(false, 2, 9, 9)].concat());
    let mut coalescer = Coalescer::new();
    coalescer.leave_datagrams();
    let mut seen = vec![];
    let mut emit = |output: Output<'_, usize>| match output {
        Output::Single(handle) => seen.push(vec![handle]),
        Output::Joined(joined) => seen.push(joined.pieces.iter().map(|p| p.handle).collect()),
    };
    for (handle, frame) in frames.iter().enumerate() {
        coalescer.push(frame, handle, &mut emit);
    }
    coalescer.flush(&mut emit);
    assert_eq!(seen, [vec![0], vec![1], vec![2, 3]]);
}

#[test]
fn push_ends_a_super_frame() {
    let mut packets = stream(false, 4, 100, 100);
    packets[1] = packets[1].clone().with_flags(ACK | PSH);
    assert_eq!(groups(&frames_of(&packets)), [vec![0, 1], vec![2, 3]]);
}

#[test]
fn segment_with_a_wrong_checksum_is_never_joined() {
    let kinds = [stream(false, 3, 100, 100), datagrams(false, 3, 100, 100)];
    for (at, packets) in [24, 40, 60, 100]
        .iter()
        .flat_map(|at| kinds.iter().map(move |k| (*at, k)))
    {
        for victim in 0..3 {
            let mut frames = frames_of(packets);
            frames[victim][at] ^= 1;
            let written = coalesced(&frames);
            let alone = written.iter().find(|written| written.handles == [victim]);
            assert_eq!(
                alone.unwrap().frame,
                frames[victim],
                "byte {at} of {victim}"
            );
        }
    }
}

#[test]
fn frames_of_one_flow_never_overtake_each_other() {
    let mut packets = stream(false, 2, 100, 100);
    packets.push(Packet::tcp(false, 5, b"")); // acknowledgement
    packets.push(Packet::udp(false, b"datagram")); // another flow
    let mut frames = frames_of(&packets);
    assert_eq!(groups(&frames), [vec![0, 1], vec![2], vec![3]]);
    frames[2].extend([0; 6]); // padded to the minimum of Ethernet
    assert_eq!(groups(&frames), [vec![0, 1], vec![2], vec![3]]);
    frames[2] = frames[0].clone();
    frames[2][20] = 0x20; // first fragment
    assert_eq!(groups(&frames), [vec![0, 1], vec![2], vec![3]]);
}

#[test]
fn interleaved_flows_are_joined_each_by_itself() {
    let flows: Vec<Vec<Packet>> = (0..3)
        .map(|flow| {
            let mut packets = stream(flow == 2, 3, 100, 100);
            packets
                .iter_mut()
                .for_each(|packet| packet.source_port += flow);
            packets
        })
        .collect();
    let frames: Vec<_> = (0..9).map(|n| flows[n % 3][n / 3].frame()).collect();
    assert_eq!(
        groups(&frames),
        [vec![0, 3, 6], vec![1, 4, 7], vec![2, 5, 8]]
    );
}

#[test]
fn oldest_flow_makes_room_for_a_ninth() {
    let first = |flow: u16| {
        let mut packet = stream(false, 2, 100, 100).remove(0);
        packet.source_port += flow;
        packet.frame()
    };
    let frames: Vec<_> = (0..9).map(first).collect();
    assert_eq!(groups(&frames).concat(), (0..9).collect::<Vec<_>>());
}

#[test]
fn super_frame_never_outgrows_ip_and_its_pieces() {
    let written = coalesced(&frames_of(&stream(false, 100, 1398, 1398)));
    assert!(written
        .iter()
        .all(|written| written.frame.len() <= 14 + 65535));
    assert_eq!(written[0].handles.len(), 46);
    let written = coalesced(&frames_of(&stream(true, 100, 10, 10)));
    assert_eq!(written[0].handles.len(), MAX_PIECES);
}

/// What is wrong with a frame beside its headers' values.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    /// Its checksum does not hold.
    Spoilt,
    /// Something follows the packet.
    Padded,
    /// It is the first fragment of a packet.
    Fragment,
}

impl Flaw {
    fn on(self, packet: &Packet) -> Vec<u8> {
        let mut frame = packet.frame();
        match self {
            Flaw::None => {}
            Flaw::Spoilt => {
                let last = frame.len() - 1;
                frame[last] ^= 0x10;
            }
            Flaw::Padded => frame.extend([0; 4]),
            Flaw::Fragment => {
                let l3 = 14 + 4 * packet.tags.len();
                frame[l3 + 6] |= 0x20;
                let sum = naive_checksum(&{
                    let mut header = frame[l3..l3 + 20].to_vec();
                    header[10..12].fill(0);
                    header
                });
                frame[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
            }
        }
        frame
    }
}

/// Makes one thing of a packet another than its flow has.
fn change(packet: &mut Packet, kind: u8, value: u16) -> Flaw {
    let size = packet.payload.len();
    let v4 = packet.source.is_ipv4();
    match kind {
        0 => packet.traffic_class ^= (value as u8).max(1),
        1 => packet.ttl = value as u8,
        2 => packet.id = value,
        3 => packet.dont_fragment = !packet.dont_fragment,
        4 if v4 => packet.extra = vec![1; 4 + usize::from(value % 10) * 4],
        4 => packet.extra = vec![0; 8],
        5 => packet.tags.clear(),
        6 => packet.tags.push(Tag {
            protocol: 0x8100,
            control: value,
        }),
        7 => packet.payload.truncate(usize::from(value) % (size + 1)),
        8 => packet.payload.push(7),
        9 => packet.payload.clear(),
        10 => return Flaw::Spoilt,
        11 => return Flaw::Padded,
        12 if v4 => return Flaw::Fragment,
        13 => {
            if let Transport::Udp { checksum } = &mut packet.transport {
                *checksum = false;
            }
        }
        14..=40 => {
            if let Transport::Tcp {
                sequence,
                acknowledgement,
                flags,
                window,
                options,
            } = &mut packet.transport
            {
                match kind {
                    14 => *sequence = sequence.wrapping_add(value.into()),
                    15 => *sequence = sequence.wrapping_sub(size as u32),
                    16 => *acknowledgement ^= u32::from(value),
                    17 => *window = value,
                    18 => *window = 0,
                    19 => options.clear(),
                    20 if options.len() < 40 => options.extend([1; 4]),
                    21 => options.iter_mut().take(1).for_each(|byte| *byte ^= 1),
                    22 => *flags = value & 0xfff,
                    // One of the twelve bits behind the data offset.
                    23..=34 => *flags ^= 1 << (kind - 23),
                    _ => *flags |= PSH,
                }
            }
        }
        _ => {}
    }
    packet.tags.truncate(2);
    Flaw::None
}

/// The rules of joining, on packets instead of bytes.
#[derive(Default)]
struct Model {
    open: Vec<(Vec<Packet>, Vec<usize>)>,
    groups: Vec<Vec<usize>>,
}

impl Model {
    fn push(&mut self, packet: &Packet, flaw: Flaw, handle: usize) {
        let simple = packet.extra.is_empty() && !matches!(flaw, Flaw::Padded | Flaw::Fragment);
        if !simple {
            // May be of any flow between the two.
            self.close(|first| {
                (first.source, first.destination) == (packet.source, packet.destination)
            });
            return self.groups.push(vec![handle]);
        }
        let is_same = |first: &Packet| key(first) == key(packet);
        if let Some(at) = self.open.iter().position(|(held, _)| is_same(&held[0])) {
            let (held, handles) = &mut self.open[at];
            if follows(held, packet) && has_checksum(packet, flaw) {
                handles.push(handle);
                held.push(packet.clone());
                let shorter = packet.payload.len() < held[0].payload.len();
                if shorter || flags(packet) & (PSH | FIN) != 0 || held.len() == MAX_PIECES {
                    self.close(is_same);
                }
                return;
            }
            self.close(is_same);
        }
        let lone = flags(packet) & (FIN | SYN | RST | PSH | URG | CWR) != 0;
        if packet.payload.is_empty() || lone || !has_checksum(packet, flaw) {
            return self.groups.push(vec![handle]);
        }
        self.open.push((vec![packet.clone()], vec![handle]));
    }

    fn close(&mut self, which: impl Fn(&Packet) -> bool) {
        let (closed, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(held, _)| which(&held[0]));
        self.open = open;
        self.groups
            .extend(Vec::into_iter(closed).map(|(_, handles)| handles));
    }
}

fn key(packet: &Packet) -> (bool, std::net::IpAddr, std::net::IpAddr, u16, u16) {
    let udp = matches!(packet.transport, Transport::Udp { .. });
    let ports = (packet.source_port, packet.destination_port);
    (udp, packet.source, packet.destination, ports.0, ports.1)
}

fn flags(packet: &Packet) -> u16 {
    match packet.transport {
        Transport::Tcp { flags, .. } => flags,
        Transport::Udp { .. } => 0,
    }
}

fn has_checksum(packet: &Packet, flaw: Flaw) -> bool {
    flaw != Flaw::Spoilt && !matches!(packet.transport, Transport::Udp { checksum: false })
}

/// Whether `packet` may be joined to those that are `held` of its flow.
fn follows(held: &[Packet], packet: &Packet) -> bool {
    let (first, last) = (&held[0], &held[held.len() - 1]);
    let mut like = packet.clone();
    like.payload.clone_from(&first.payload);
    like.id = first.id;
    if let (
        Transport::Tcp {
            sequence, flags, ..
        },
        Transport::Tcp {
            sequence: begin,
            flags: wanted,
            ..
        },
    ) = (&mut like.transport, &first.transport)
    {
        if *sequence != last.sequence().wrapping_add(last.payload.len() as u32) {
            return false;
        }
        (*sequence, *flags) = (*begin, *flags & !(FIN | PSH));
        if *flags != *wanted {
            return false;
        }
    }
    let v4_without_df = first.source.is_ipv4() && !first.dont_fragment;
    let len: usize = held.iter().map(|packet| packet.payload.len()).sum();
    let headers = first.header_len() - 14 - 4 * first.tags.len();
    // IPv6 has neither identification nor DF.
    if first.source.is_ipv6() {
        like.dont_fragment = first.dont_fragment;
    }
    format!("{like:?}") == format!("{first:?}")
        && (!v4_without_df || packet.id == last.id.wrapping_add(1))
        && (1..=first.payload.len()).contains(&packet.payload.len())
        && headers + len + packet.payload.len() <= 65535
}

proptest! {
    #[test]
    fn segments_are_those_of_the_model(
        packet in arb_packet(0..3000),
        size in 1..1500u16,
        padding in 0..4usize,
    ) {
        let (hdr, mut frame) = packet.super_frame(size);
        frame.resize(frame.len() + padding, 0xaa);
        let expected = frames_of(&packet.segments(usize::from(size)));
        prop_assert_eq!(segmented(&hdr, &frame), Ok(expected));
    }

    #[test]
    fn completed_checksum_is_that_of_the_model(packet in arb_packet(0..300)) {
        let (hdr, mut frame) = packet.partial();
        let expected = packet.frame();
        prop_assert_eq!(complete_checksum(&hdr, &mut frame), Ok(()));
        prop_assert_eq!(frame, expected);
    }

    #[test]
    fn frame_whose_checksum_was_left_open_is_found(packet in arb_packet(0..300)) {
        let (hdr, frame) = packet.partial();
        prop_assume!(hdr.needs_csum());
        prop_assert_eq!(unfinished(&frame, 1450), Some(hdr));
        // A finished one is none, or completes to itself.
        let mut finished = packet.frame();
        if let Some(hdr) = unfinished(&finished, 1450) {
            prop_assert_eq!(complete_checksum(&hdr, &mut finished), Ok(()));
        }
        prop_assert_eq!(finished, packet.frame());
    }

    #[test]
    fn super_frame_from_the_wire_is_segmented_for_the_mtu(packet in arb_packet(1500..3000)) {
        let (_, frame) = packet.super_frame(1);
        let hdr = unfinished(&frame, 1450);
        if !matches!(packet.transport, Transport::Tcp { .. }) {
            prop_assert_eq!(hdr, None);
            return Ok(());
        }
        let size = usize::from(hdr.unwrap().gso_size);
        let l2 = 14 + 4 * packet.tags.len();
        prop_assert_eq!(packet.header_len() - l2 + size, 1450);
        prop_assert_eq!(segmented(&hdr.unwrap(), &frame), Ok(frames_of(&packet.segments(size))));
    }

    #[test]
    fn spoilt_super_frames_make_no_panic(
        packet in arb_packet(0..300),
        spoils in vec((0..200usize, any::<u8>()), 0..6),
        hdr_bytes in any::<[u8; 10]>(),
        keep in any::<u16>(),
        cut in 0..400usize,
    ) {
        let (hdr, mut frame) = packet.super_frame(50);
        for (at, value) in spoils {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let mut bytes = hdr.emit();
        for (at, byte) in bytes.iter_mut().enumerate() {
            if keep & (1 << at) == 0 && keep & 0x8000 != 0 {
                *byte = hdr_bytes[at];
            }
        }
        let hdr = VnetHdr::parse(&bytes).unwrap();
        frame.truncate(cut.max(10));
        let _ = segmented(&hdr, &frame);
        let _ = unfinished(&frame, cut);
        let _ = complete_checksum(&hdr, &mut frame);
    }

    /// Segments of several flows that differ from the one before in something, or in nothing: those
    /// are joined that the model joins, and cut again they are what they were.
    #[test]
    fn what_is_joined_is_what_the_model_joins(
        packets in vec((0..6usize, 0..64u8, 0..16u8, any::<u16>()), 0..150),
        size in 1..1460usize,
        options in arb_words(0..=10),
        tags in arb_tags(),
        chance in 1..16u8,
    ) {
        let mut flows: Vec<Packet> = (0..6u16)
            .map(|flow| {
                let mut packet = match flow {
                    4 | 5 => Packet::udp(flow == 5, &[]),
                    _ => Packet::tcp(flow & 1 == 1, u32::MAX - 5000, &[]),
                };
                packet.source_port += flow / 2;
                packet.dont_fragment = flow & 2 == 0;
                packet.tags.clone_from(&tags);
                if let Transport::Tcp { options: own, .. } = &mut packet.transport {
                    own.clone_from(&options);
                }
                packet
            })
            .collect();
        let mut model = Model::default();
        let mut frames = vec![];
        for &(flow, kind, odds, value) in &packets {
            let base = &mut flows[flow];
            let mut packet = base.clone();
            packet.payload = pattern(size);
            let mut flaw = Flaw::None;
            if odds < chance {
                flaw = change(&mut packet, kind, value);
            }
            base.id = base.id.wrapping_add(1);
            if let Transport::Tcp { sequence, .. } = &mut base.transport {
                let len = packet.payload.len() as u32;
                *sequence = u32::wrapping_add(*sequence, len);
            }
            model.push(&packet, flaw, frames.len());
            frames.push(flaw.on(&packet));
        }
        let written = coalesced(&frames);
        let mut joined: Vec<Vec<usize>> = written.iter().map(|w| w.handles.clone()).collect();
        joined.sort();
        model.close(|_| true);
        model.groups.sort();
        prop_assert_eq!(&joined, &model.groups);
        for Written { handles, vnet, frame } in written {
            if handles.len() == 1 {
                continue;
            }
            prop_assert!(frame.len() <= 65535 + 14 + 4 * tags.len());
            let mut after = segmented(&vnet, &frame).unwrap();
            prop_assert_eq!(after.len(), handles.len());
            for (after, &handle) in after.iter_mut().zip(&handles) {
                let mut before = frames[handle].clone();
                let l3 = 14 + 4 * tags.len();
                if before[l3] == 0x45 && before[l3 + 6] & 0x40 != 0 {
                    // With DF the identification means nothing, and the checksum covers it.
                    for frame in [&mut before, after] {
                        prop_assert!(ipv4::checksum_is_right(&frame[l3..]));
                        frame[l3 + 4..l3 + 6].fill(0);
                        frame[l3 + 10..l3 + 12].fill(0);
                    }
                }
                prop_assert_eq!(&before, after);
            }
        }
    }

    /// Frames in any order, some spoilt: every one leaves once, those of a flow in order, and what
    /// was joined is segmented into exactly the frames that went in.
    #[test]
    fn coalescing_loses_changes_and_reorders_nothing(
        packets in vec((any::<bool>(), 0..3u16, 0..6u8, 0..8u8, any::<bool>()), 0..40),
        size in 1..200usize,
    ) {
        let mut next = [[[(1u32, 1u16); 3]; 2]; 2];
        let frames: Vec<Vec<u8>> = packets
            .iter()
            .map(|&(ipv6, flow, kind, flags, udp)| {
                let (sequence, id) = &mut next[usize::from(udp)][usize::from(ipv6)][usize::from(flow)];
                let len = match kind {
                    0 => 0,
                    1 => size / 2,
                    _ => size,
                };
                let mut packet = if udp {
                    Packet::udp(ipv6, &pattern(len))
                } else {
                    Packet::tcp(ipv6, *sequence, &pattern(len))
                };
                packet.source_port += flow;
                packet.id = *id;
                packet = match flags {
                    0 => packet.with_flags(ACK | PSH),
                    1 => packet.with_flags(ACK | FIN),
                    _ => packet,
                };
                *sequence = sequence.wrapping_add(len as u32);
                *id += 1;
                if kind == 2 && flags == 2 {
                    packet.ttl = 63;
                }
                packet.frame()
            })
            .collect();
        let written = coalesced(&frames);
        let mut left: Vec<usize> = written.iter().flat_map(|written| written.handles.clone()).collect();
        for flow in 0..12 {
            let of_flow = |handle: &&usize| {
                let (ipv6, port, .., udp) = packets[**handle];
                usize::from(port) + 3 * usize::from(ipv6) + 6 * usize::from(udp) == flow
            };
            let order: Vec<_> = left.iter().filter(of_flow).collect();
            prop_assert!(order.is_sorted());
        }
        left.sort();
        prop_assert_eq!(left, (0..frames.len()).collect::<Vec<_>>());
        for Written { handles, vnet, frame } in written {
            let before: Vec<_> = handles.iter().map(|&handle| frames[handle].clone()).collect();
            let after = if handles.len() == 1 {
                vec![frame]
            } else {
                segmented(&vnet, &frame).unwrap()
            };
            prop_assert_eq!(after, before);
        }
    }
}
