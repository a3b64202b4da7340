//! Nanoseconds per frame for all that is decided and written on the way of one frame, without I/O.

#![allow(clippy::unwrap_used)] // A panic is how a wrong result shows.
#![allow(missing_docs)] // The macros of criterion write a public function.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion};
use vxlan_dataplane::egress::{self, Egress, ReplyBuffer};
use vxlan_dataplane::ingress::{self, Ingress};
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::{flow_hash, source_port, vxlan, MacAddr, Vni};

#[path = "../tests/rust/support/mod.rs"]
mod support;

use support::{Packet, MAC_A, MAC_B};

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 2));

/// 1000 endpoints on 250 hosts.
fn tables() -> Tables {
    let vtep = |n: u16| IpAddr::from([198, 18, 1, (n % 250) as u8]);
    let mut entries: Vec<_> = (0..1000u16)
        .map(|n| {
            let [a, b] = n.to_be_bytes();
            (MacAddr([2, 0x42, 10, 1, a, b]), vtep(n))
        })
        .collect();
    entries.push((MAC_B, HERE));
    let tables = Tables::new(Vni::new(4097).unwrap(), true);
    tables.with_changes(&entries, &[]).unwrap()
}

/// Decision, flow hash and VXLAN header of a 64-byte UDP frame.
fn encap(c: &mut Criterion) {
    for (name, ipv6) in [("ipv4", false), ("ipv6", true)] {
        let tables = tables();
        let mut datagram = vec![0; vxlan::HEADER_LEN];
        datagram.extend(Packet::udp(ipv6, &[7; 22]).frame());
        let mut reply = ReplyBuffer::new();
        let mut encap = |datagram: &mut [u8]| {
            let (headroom, frame) = datagram.split_at_mut(vxlan::HEADER_LEN);
            match egress::decide(frame, &tables, &mut reply) {
                Egress::Unicast { vtep } => {
                    headroom.copy_from_slice(&vxlan::header(tables.vni()));
                    Some((vtep, source_port(flow_hash(frame))))
                }
                _ => None,
            }
        };
        assert_eq!(encap(&mut datagram).map(|(vtep, _)| vtep), Some(HERE));
        assert_eq!(vxlan::parse(&datagram), Ok(tables.vni()));
        c.bench_function(&format!("forward/encap udp over {name}"), |b| {
            b.iter(|| encap(black_box(&mut datagram)))
        });
    }
}

/// VXLAN header and decision of a datagram with a 64-byte UDP frame.
fn decap(c: &mut Criterion) {
    let tables = tables();
    let mut frame = Packet::udp(false, &[7; 22]).frame();
    frame[..6].copy_from_slice(&MAC_A.0);
    frame[6..12].copy_from_slice(&MAC_B.0);
    let datagram = [&vxlan::header(tables.vni())[..], &frame].concat();
    let decap = |datagram: &[u8]| {
        let vni = vxlan::parse(datagram).ok()?;
        let decision = ingress::decide(&datagram[vxlan::HEADER_LEN..], HERE, &tables);
        Some((vni, decision))
    };
    assert_eq!(decap(&datagram), Some((tables.vni(), Ingress::Deliver)));
    c.bench_function("forward/decap udp over ipv4", |b| {
        b.iter(|| decap(black_box(&datagram)))
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = encap, decap
}
criterion_main!(benches);
