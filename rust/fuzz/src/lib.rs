//! Fuzz targets of the data plane: one per parser, one per decision, one per offload.
//!
//! A target takes any bytes and panics if a property does not hold. They are plain functions, so
//! that `cargo test` runs them over the corpus on a stable toolchain (`tests/rust/fuzz.rs`), and
//! `cargo fuzz run <target> --features libfuzzer` searches with coverage on a nightly one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vxlan_dataplane::capture;
use vxlan_dataplane::egress::{self, Egress, ReplyBuffer};
use vxlan_dataplane::ingress::{self, Ingress};
use vxlan_dataplane::narrow::{answer, clamp_mss, ANSWER_LEN};
use vxlan_dataplane::offload::{
    complete_checksum, unfinished, Coalescer, Output, Segments, MAX_HEADER_LEN,
};
use vxlan_dataplane::probe::Probe;
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::virtio::{self, VnetHdr};
use vxlan_dataplane::wire::{
    arp, ethernet, flow_hash, headers_len, icmpv6, ipv4, ipv6, source_port, tcp, udp, vxlan,
    MacAddr, Vni,
};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus directory.
pub const TARGETS: &[(&str, Target)] = &[
    ("headers", headers),
    ("datagram", datagram),
    ("egress", egress),
    ("ingress", ingress),
    ("segment", segment),
    ("checksum", checksum),
    ("coalesce", coalesce),
    ("unfinished", unfinished_frame),
    ("capture", capture_message),
    ("probe", probe),
    ("narrow", narrow),
];

/// MAC address that the tables know.
const KNOWN_MAC: MacAddr = MacAddr([2, 0x42, 10, 0, 0, 3]);
const VTEP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2));

/// A datagram through the parser of probes: what parses is emitted to the same head, and its answer
/// is a probe that is not longer.
pub fn probe(datagram: &[u8]) {
    let Ok(probe) = Probe::parse(datagram) else {
        return;
    };
    let mut room = vec![0; usize::from(u16::MAX)];
    assert_eq!(probe.emit(&mut room), Ok(datagram.len()));
    assert_eq!(Probe::parse(&room[..datagram.len()]), Ok(probe));
    let len = probe.answer().emit(&mut room).unwrap_or(usize::MAX);
    assert!(len <= datagram.len());
    assert_eq!(Probe::parse(&room[..len]), Ok(probe.answer()));
}

/// A frame that is too long for its tunnel, and one that may begin a TCP connection: who sent it is
/// told by one whole frame, and nothing but the MSS and the checksum changes.
pub fn narrow(frame: &[u8]) {
    let longest = frame.len().saturating_sub(20);
    let mut room = [0; ANSWER_LEN];
    if let Some(len) = answer(frame, longest, &mut room) {
        let told = &room[..len];
        assert_eq!(
            ethernet::addresses(told),
            ethernet::addresses(frame).map(|(to, from)| (from, to))
        );
        let (kind, at) = ethernet::payload(told).unwrap_or_default();
        let whole = if kind == ethernet::ethertype::IPV4 {
            ipv4::checksum_is_right(&told[at..]) && ipv4::Header::parse(&told[at..]).is_ok()
        } else {
            ipv6::Header::parse(&told[at..]).is_ok()
        };
        assert!(whole);
    }
    let mut clamped = frame.to_vec();
    let changed = clamp_mss(&mut clamped, longest);
    let differences = frame.iter().zip(&clamped).filter(|(a, b)| a != b).count();
    assert!(differences <= 4 && (changed || differences == 0));
}

/// A frame through every header parser: what parses is emitted to the same bytes, where the format
/// leaves no choice.
pub fn headers(frame: &[u8]) {
    let _ = source_port(flow_hash(frame));
    assert!(headers_len(frame) <= frame.len());
    let mut out = [0; 64];
    if let Ok(header) = ethernet::Header::parse(frame) {
        let len = header.emit(&mut out).unwrap_or_default();
        assert_eq!(frame[..len], out[..header.len()]);
    }
    let Some((_, offset)) = ethernet::payload(frame) else {
        return;
    };
    let packet = &frame[offset..];
    if let Ok(message) = arp::Message::parse(packet) {
        let len = message.emit(&mut out).unwrap_or_default();
        assert_eq!(packet[..arp::LEN], out[..len]);
    }
    if let Ok(header) = ipv4::Header::parse(packet) {
        let len = header.emit(&mut out).unwrap_or_default();
        assert_eq!(
            ipv4::Header::parse(&packet[..header.total_len.into()]),
            Ok(header)
        );
        assert!(ipv4::checksum_is_right(&out[..len]));
        transport(&packet[header.len()..header.total_len.into()]);
    }
    if let Ok(header) = ipv6::Header::parse(packet) {
        let len = header.emit(&mut out).unwrap_or_default();
        assert_eq!(packet[..ipv6::HEADER_LEN], out[..len]);
    }
    if let Some(upper) = ipv6::upper(packet) {
        transport(&packet[upper.offset..]);
        let message = &packet[upper.offset..];
        let _ = icmpv6::Solicitation::parse(message);
        let _ = icmpv6::Advertisement::parse(message);
    }
    let _ = icmpv6::solicitation(packet);
}

fn transport(segment: &[u8]) {
    let mut out = [0; tcp::MAX_HEADER_LEN];
    if let Ok(header) = tcp::Header::parse(segment) {
        let len = header.emit(&mut out).unwrap_or_default();
        assert_eq!(segment[..header.len()], out[..len]);
    }
    if let Ok(header) = udp::Header::parse(segment) {
        let len = header.emit(&mut out).unwrap_or_default();
        assert_eq!(segment[..udp::HEADER_LEN], out[..len]);
    }
}

/// A UDP payload from the underlay, through to the decision.
pub fn datagram(payload: &[u8]) {
    let Ok(vni) = vxlan::parse(payload) else {
        assert!(payload.len() < vxlan::HEADER_LEN || payload[0] & vxlan::FLAG_VNI == 0);
        return;
    };
    assert_eq!(vxlan::parse(&vxlan::header(vni)), Ok(vni));
    ingress(&payload[vxlan::HEADER_LEN..]);
}

/// A frame from the underlay: delivered only if its MAC is the known one.
pub fn ingress(frame: &[u8]) {
    let known = frame.len() >= ethernet::HEADER_LEN && frame[6..12] == KNOWN_MAC.0;
    let tables = tables();
    let decision = ingress::decide(frame, VTEP, &tables);
    assert_eq!(decision == Ingress::Deliver, known);
    let elsewhere = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 9));
    assert_ne!(ingress::decide(frame, elsewhere, &tables), Ingress::Deliver);
}

/// A frame from a port: goes to the known VTEP or nowhere; a reply is a frame.
pub fn egress(frame: &[u8]) {
    let tables = tables();
    let mut reply = ReplyBuffer::new();
    match egress::decide(frame, &tables, &mut reply) {
        Egress::Unicast { vtep } => {
            assert_eq!(vtep, VTEP);
            assert_eq!(frame[..6], KNOWN_MAC.0);
        }
        Egress::Flood { vteps } => {
            assert_eq!(vteps, [VTEP]);
            assert_eq!(frame[0] & 1, 1);
        }
        Egress::Reply => {
            assert_eq!(reply.frame()[6..12], KNOWN_MAC.0);
            headers(reply.frame());
        }
        _ => {}
    }
}

/// A virtio-net header and a super-frame: the segments hold the payload in order, and every one is
/// a frame that parses.
pub fn segment(data: &[u8]) {
    let Some((hdr, frame)) = split(data) else {
        return;
    };
    let Ok(mut segments) = Segments::new(&hdr, frame) else {
        return;
    };
    let mut scratch = [0; MAX_HEADER_LEN];
    let mut next = segments.header_len();
    let mut left = segments.remaining();
    while let Some((header_len, payload)) = segments.next_into(&mut scratch) {
        assert_eq!(payload.start, next);
        assert!(header_len + payload.len() <= segments.frame_len());
        next = payload.end;
        left -= 1;
        if left % 512 == 0 {
            headers(&[&scratch[..header_len], &frame[payload]].concat());
        }
    }
    assert_eq!((left, segments.remaining()), (0, 0));
    assert!(next <= frame.len());
}

/// A virtio-net header and a frame whose checksum is completed: only the field changes.
pub fn checksum(data: &[u8]) {
    let Some((hdr, frame)) = split(data) else {
        return;
    };
    let mut completed = frame.to_vec();
    let result = complete_checksum(&hdr, &mut completed);
    let field = usize::from(hdr.csum_start) + usize::from(hdr.csum_offset);
    if result.is_ok() && hdr.needs_csum() {
        completed[field..field + 2].copy_from_slice(&frame[field..field + 2]);
    }
    assert_eq!(completed, frame);
}

/// A batch of frames, each after its length in two bytes: all leave once; what was joined is
/// segmented into exactly what went in.
pub fn coalesce(data: &[u8]) {
    let mut frames = vec![];
    let mut rest = data;
    while let [a, b, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*a, *b])).min(tail.len());
        let (frame, tail) = tail.split_at(len);
        frames.push(frame);
        rest = tail;
    }
    let mut seen = vec![false; frames.len()];
    let mut emit = |output: Output<'_, usize>| match output {
        Output::Single(handle) => assert!(!std::mem::replace(&mut seen[handle], true)),
        Output::Joined(joined) => {
            let mut whole = joined.header.to_vec();
            for piece in joined.pieces {
                assert!(!std::mem::replace(&mut seen[piece.handle], true));
                let payload = piece.payload.start as usize..piece.payload.end as usize;
                whole.extend(&frames[piece.handle][payload]);
            }
            let mut scratch = [0; MAX_HEADER_LEN];
            let mut segments = Segments::new(&joined.vnet, &whole).ok();
            for piece in joined.pieces {
                let next = segments.as_mut().and_then(|s| s.next_into(&mut scratch));
                let (header_len, payload) = next.unwrap_or_default();
                let frame = [&scratch[..header_len], &whole[payload]].concat();
                same_but_identification(&frame, frames[piece.handle]);
            }
            assert_eq!(segments.map_or(1, |segments| segments.remaining()), 0);
        }
    };
    let mut coalescer = Coalescer::new();
    for (handle, frame) in frames.iter().enumerate() {
        coalescer.push(frame, handle, &mut emit);
    }
    coalescer.flush(&mut emit);
    assert!(seen.iter().all(|seen| *seen));
}

/// A frame from the wire that may lack a card's work: what it lacks can then be done.
pub fn unfinished_frame(frame: &[u8]) {
    const MTU: usize = 100;
    let Some(hdr) = unfinished(frame, MTU) else {
        return;
    };
    assert!(hdr.needs_csum());
    if hdr.is_gso() {
        segment(&[&hdr.emit()[..], frame].concat());
    } else {
        assert_eq!(complete_checksum(&hdr, &mut frame.to_vec()), Ok(()));
    }
}

/// A message of a capture: what parses is emitted to the same bytes, but for those that are free.
pub fn capture_message(message: &[u8]) {
    let Ok((prefix, records)) = capture::parse(message) else {
        return;
    };
    let mut emitted = prefix.emit().to_vec();
    for record in &records {
        emitted.extend(record.head.emit());
        emitted.extend(record.bytes);
    }
    assert_eq!(emitted.len(), message.len());
    assert_eq!(capture::parse(&emitted), Ok((prefix, records)));
}

/// Compares up to what GRO does not keep either: the identification of an IPv4 packet with DF (and
/// so the header's checksum), and which of two zeros a checksum is.
fn same_but_identification(made: &[u8], came: &[u8]) {
    assert_eq!(made.len(), came.len());
    let Some((kind, l3)) = ethernet::payload(came) else {
        return;
    };
    let ipv4 = kind == ethernet::ethertype::IPV4;
    let checksum = l3 + if ipv4 { 20 } else { 40 } + 16;
    for (at, (a, b)) in made.iter().zip(came).enumerate() {
        let free = ipv4 && at > l3 && matches!(at - l3, 4 | 5 | 10 | 11);
        let zero = (checksum..checksum + 2).contains(&at) && [*a, *b].iter().all(is_zero);
        assert!(
            a == b || free || zero,
            "byte {at}: {a:#x} made, {b:#x} came"
        );
    }
}

fn is_zero(byte: &u8) -> bool {
    matches!(byte, 0 | 0xff)
}

fn split(data: &[u8]) -> Option<(VnetHdr, &[u8])> {
    let hdr = VnetHdr::parse(data).ok()?;
    Some((hdr, &data[virtio::HEADER_LEN..]))
}

fn tables() -> Tables {
    let neighbours = [
        (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)), KNOWN_MAC),
        (
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3)),
            KNOWN_MAC,
        ),
    ];
    Vni::new(7)
        .ok()
        .map(|vni| Tables::new(vni, true))
        .and_then(|tables| tables.with_changes(&[(KNOWN_MAC, VTEP)], &[]).ok())
        .and_then(|tables| tables.with_flood(&[VTEP]).ok())
        .and_then(|tables| tables.with_neighbours(&neighbours).ok())
        .unwrap_or_else(|| unreachable!("constants are valid"))
}
