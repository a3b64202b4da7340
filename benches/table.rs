//! Nanoseconds per FDB lookup, and per published change, at several table sizes; entries a second
//! that change in batches.

#![allow(clippy::unwrap_used)] // A panic is how a wrong result shows.
#![allow(missing_docs)] // The macros of criterion write a public function.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::{MacAddr, Vni};

const SIZES: [(&str, u32); 3] = [("1k", 1_000), ("100k", 100_000), ("1M", 1_000_000)];

/// The `n`th MAC address; `n` is scattered, so that neighbours in the table are none in time.
fn mac(n: u32) -> MacAddr {
    let [a, b, c, d] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
    MacAddr([2, 0x42, a, b, c, d])
}

fn vtep(n: u32) -> IpAddr {
    IpAddr::from([198, 18, (n % 4) as u8, (n % 250) as u8 + 1])
}

fn tables(size: u32) -> Tables {
    let entries: Vec<_> = (0..size).map(|n| (mac(n), vtep(n))).collect();
    let tables = Tables::new(Vni::new(1).unwrap(), true);
    let tables = tables.with_changes(&entries, &[]).unwrap();
    assert_eq!(tables.fdb_len(), size as usize);
    assert!(entries
        .iter()
        .all(|(mac, vtep)| tables.lookup(mac) == Some(*vtep)));
    tables
}

fn lookup_and_change(c: &mut Criterion) {
    for (name, size) in SIZES {
        let tables = tables(size);
        // Far from each other in the table, and near in the list that they are taken from.
        let step = |n: u32| (u64::from(n) * 7_919 % u64::from(size)) as u32;
        let known: Vec<_> = (0..size).map(|n| mac(step(n))).collect();
        let unknown: Vec<_> = (0..size).map(|n| mac(size + step(n))).collect();
        assert!(unknown.iter().all(|mac| tables.lookup(mac).is_none()));
        for (kind, macs) in [("a known", known), ("an unknown", unknown)] {
            let mut macs = macs.iter().cycle();
            c.bench_function(&format!("table/lookup of {kind} mac in {name}"), |b| {
                b.iter(|| macs.next().map(|mac| tables.lookup(black_box(mac))))
            });
        }
        let mut n = 0;
        let mut published = tables.clone();
        c.bench_function(&format!("table/publish one moved entry in {name}"), |b| {
            b.iter(|| {
                n = (n + 7_919) % size;
                published = published
                    .with_changes(&[(mac(n), vtep(n + 1))], &[])
                    .unwrap();
            })
        });
        assert_eq!(published.fdb_len(), size as usize);
    }
}

/// Moves 10,000 entries to another VTEP with one publication.
fn change_batch(c: &mut Criterion) {
    const BATCH: u32 = 10_000;
    let mut group = c.benchmark_group("table");
    group.throughput(Throughput::Elements(BATCH.into()));
    for (name, size) in SIZES {
        if size < BATCH {
            continue;
        }
        let mut published = tables(size);
        let moved = |to: u32| -> Vec<_> {
            let numbers = (0..BATCH).map(|n| (u64::from(n) * 7_919 % u64::from(size)) as u32);
            numbers.map(|n| (mac(n), vtep(n + to))).collect()
        };
        let mut batches = [moved(1), moved(2)].into_iter().cycle();
        group.bench_function(format!("publish 10k moved entries in {name}"), |b| {
            b.iter(|| {
                let batch = batches.next().unwrap_or_default();
                published = published.with_changes(&batch, &[]).unwrap();
            })
        });
        assert_eq!(published.fdb_len(), size as usize);
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = lookup_and_change, change_batch
}
criterion_main!(benches);
