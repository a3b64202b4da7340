//! Nanoseconds per super-frame of 64,000 payload bytes: cutting it into segments of 1398 payload
//! bytes with all headers and checksums, and joining these segments again.

#![allow(clippy::unwrap_used)] // A panic is how a wrong result shows.
#![allow(missing_docs)] // The macros of criterion write a public function.

use std::hint::black_box;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use vxlan_dataplane::offload::{Coalescer, Output, Segments, MAX_HEADER_LEN};

#[path = "../tests/rust/support/mod.rs"]
mod support;

use support::Packet;

const PAYLOAD_LEN: usize = 64_000;
const SEGMENT_LEN: u16 = 1398;
const SEGMENTS: usize = PAYLOAD_LEN.div_ceil(SEGMENT_LEN as usize);

fn packet(ipv6: bool) -> Packet {
    let payload: Vec<u8> = (0..PAYLOAD_LEN).map(|n| (n % 251) as u8).collect();
    Packet::tcp(ipv6, 1, &payload)
}

fn segment(c: &mut Criterion) {
    let mut group = c.benchmark_group("offload");
    group.throughput(Throughput::Bytes(PAYLOAD_LEN as u64));
    for (name, ipv6) in [("ipv4", false), ("ipv6", true)] {
        let packet = packet(ipv6);
        let (hdr, frame) = packet.super_frame(SEGMENT_LEN);
        let expected: Vec<_> = packet
            .segments(SEGMENT_LEN.into())
            .iter()
            .map(Packet::frame)
            .collect();
        let mut scratch = vec![0; MAX_HEADER_LEN];
        let mut segments = Segments::new(&hdr, &frame).unwrap();
        for expected in &expected {
            let (len, payload) = segments.next_into(&mut scratch).unwrap();
            assert_eq!([&scratch[..len], &frame[payload]].concat(), *expected);
        }
        group.bench_function(format!("segment tcp over {name}"), |b| {
            b.iter(|| {
                let mut segments = Segments::new(&hdr, black_box(&frame)).unwrap();
                let mut count = 0;
                while let Some((_, payload)) = segments.next_into(&mut scratch) {
                    count += black_box(payload).len().min(1);
                }
                assert_eq!(count, SEGMENTS);
            })
        });
    }
    group.finish();
}

fn coalesce(c: &mut Criterion) {
    let mut group = c.benchmark_group("offload");
    group.throughput(Throughput::Bytes(PAYLOAD_LEN as u64));
    for (name, ipv6) in [("ipv4", false), ("ipv6", true)] {
        let frames: Vec<_> = packet(ipv6)
            .segments(SEGMENT_LEN.into())
            .iter()
            .map(Packet::frame)
            .collect();
        let mut coalescer = Coalescer::new();
        group.bench_function(format!("coalesce tcp over {name}"), |b| {
            b.iter(|| {
                let mut joined = 0;
                let mut emit = |output: Output<'_, usize>| {
                    if let Output::Joined(super_frame) = output {
                        joined += super_frame.pieces.len();
                    }
                };
                for (handle, frame) in black_box(&frames).iter().enumerate() {
                    coalescer.push(frame, handle, &mut emit);
                }
                coalescer.flush(&mut emit);
                assert_eq!(joined, SEGMENTS);
            })
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = segment, coalesce
}
criterion_main!(benches);
