//! Nanoseconds to parse the headers of one frame, to hash its flow and to sum one payload.

#![allow(clippy::unwrap_used)] // A panic is how a wrong result shows.
#![allow(missing_docs)] // The macros of criterion write a public function.

use std::hint::black_box;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use vxlan_dataplane::wire::checksum::checksum;
use vxlan_dataplane::wire::{ethernet, flow_hash, ipv4, source_port, tcp, vxlan, Vni};

#[path = "../tests/rust/support/mod.rs"]
mod support;

use support::{naive_checksum, Packet};

/// VXLAN, Ethernet, IPv4 and TCP header of a datagram with 64 payload bytes.
fn parse(c: &mut Criterion) {
    let vni = Vni::new(4097).unwrap();
    let frame = Packet::tcp(false, 1, &[7; 64]).frame();
    let datagram = [&vxlan::header(vni)[..], &frame].concat();
    let parse = |datagram: &[u8]| {
        let vni = vxlan::parse(datagram).ok()?;
        let frame = &datagram[vxlan::HEADER_LEN..];
        let (_, offset) = ethernet::payload(frame)?;
        let packet = &frame[offset..];
        let header = ipv4::Header::parse(packet).ok()?;
        let segment = tcp::Header::parse(&packet[header.len()..]).ok()?;
        Some((vni, header.source, segment.source_port))
    };
    assert_eq!(parse(&datagram), Some((vni, [10, 0, 0, 2].into(), 40000)));
    c.bench_function("wire/parse vxlan+ethernet+ipv4+tcp", |b| {
        b.iter(|| parse(black_box(&datagram)))
    });
}

/// Flow hash and outer source port of a TCP frame.
fn hash(c: &mut Criterion) {
    for (name, ipv6) in [("ipv4", false), ("ipv6", true)] {
        let frame = Packet::tcp(ipv6, 1, &[7; 64]).frame();
        assert!(source_port(flow_hash(&frame)) >= 49152);
        c.bench_function(&format!("wire/source port of tcp over {name}"), |b| {
            b.iter(|| source_port(flow_hash(black_box(&frame))))
        });
    }
}

/// The checksum of the payload of one full segment, 1398 bytes.
fn sum(c: &mut Criterion) {
    let bytes: Vec<u8> = (0..1398u32).map(|n| n as u8).collect();
    assert_eq!(checksum(&bytes), naive_checksum(&bytes));
    let mut group = c.benchmark_group("wire");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("checksum of 1398 bytes", |b| {
        b.iter(|| checksum(black_box(&bytes)))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = parse, hash, sum
}
criterion_main!(benches);
