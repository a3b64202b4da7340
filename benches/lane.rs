//! Nanoseconds per frame for a worker's whole round, without system calls of ports and underlay.
//!
//! A round moves 32 frames of 64 bytes between ports and underlays that do nothing. Beside
//! forwarding: what a capture adds, and what a dropped frame costs, alike the one before or not.

#![allow(clippy::unwrap_used)] // A panic is how a wrong result shows.
#![allow(missing_docs)] // The macros of criterion write a public function.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use vxlan_dataplane::capture::MAX_KEPT;
use vxlan_dataplane::engine::{Capture, CaptureConfig};
use vxlan_dataplane::wire::virtio::VnetHdr;
use vxlan_dataplane::wire::{vxlan, MacAddr, Vni};

#[path = "../tests/rust/support/mod.rs"]
mod support;

use support::endless::Endless;
use support::{Packet, MAC_A, MAC_B};

const FRAMES: usize = 32;

fn vni() -> Vni {
    Vni::new(4097).unwrap()
}

/// Frames of as many flows, from one MAC to `destinations` in turn.
fn frames(source: MacAddr, destinations: &[MacAddr]) -> Vec<Vec<u8>> {
    let numbers = (0..FRAMES).zip(destinations.iter().cycle());
    let frame = |(number, destination): (usize, &MacAddr)| {
        let mut packet = Packet::udp(false, &[7; 22]);
        packet.source_port = 1000 + number as u16;
        let mut frame = packet.frame();
        frame[..6].copy_from_slice(&destination.0);
        frame[6..12].copy_from_slice(&source.0);
        frame
    };
    numbers.map(frame).collect()
}

/// A lane whose container sends to `destinations`, of which the FDB knows MAC_B alone.
fn lane(destinations: &[MacAddr]) -> Endless {
    let sent = frames(MAC_A, destinations);
    let sent = sent
        .iter()
        .map(|frame| [&VnetHdr::NONE.emit(), &frame[..]].concat());
    let received = frames(MAC_B, &[MAC_A]);
    let received = received.iter().map(|frame| {
        let datagram = [&vxlan::header(vni())[..], frame].concat();
        let size = datagram.len();
        (datagram, size)
    });
    Endless::new(vni(), sent.collect(), received.collect())
}

fn measure(c: &mut Criterion, name: &str, round: impl FnMut()) {
    let mut group = c.benchmark_group("lane");
    group.throughput(Throughput::Elements(FRAMES as u64));
    let mut round = round;
    group.bench_function(name, |b| b.iter(&mut round));
}

fn forwarded(c: &mut Criterion) {
    let mut lane = lane(&[MAC_B]);
    measure(c, "egress", || lane.egress());
    measure(c, "ingress", || lane.ingress());
    let stats = lane.network.stats();
    assert_eq!(stats.egress_drops.total() + stats.ingress_drops.total(), 0);
    assert!(stats.egress_frames > 0 && stats.ingress_frames > 0);
}

fn dropped(c: &mut Criterion) {
    let strangers = (0..FRAMES as u8).map(|n| MacAddr([2, 0, 0, 0, 0, n]));
    let strangers: Vec<_> = strangers.collect();
    for (name, unlike) in [("alike", 1), ("all unlike", FRAMES)] {
        let mut lane = lane(&strangers[..unlike]);
        measure(c, &format!("egress dropped, {name}"), || lane.egress());
        assert_eq!(lane.network.stats().egress_frames, 0);
        assert!(!lane.lane.recent_drops().is_empty());
    }
}

/// With a reader that takes all, and one that takes nothing.
fn captured(c: &mut Criterion) {
    let config = CaptureConfig {
        vni: vni(),
        mac: None,
        snap_bytes: MAX_KEPT,
        drops_only: false,
    };
    let mut captured = |name: &str, writer: &UnixDatagram| {
        let mut lane = lane(&[MAC_B]);
        let socket = Arc::new(OwnedFd::from(writer.try_clone().unwrap()));
        lane.lane.begin_capture(Capture::new(0, 0, config, socket));
        measure(c, name, || lane.egress());
    };
    let (reader, writer) = UnixDatagram::pair().unwrap();
    let reading = std::thread::spawn(move || {
        let mut buffer = vec![0; 256 * 1024];
        let mut messages = 0;
        while reader.recv(&mut buffer).is_ok_and(|len| len > 0) {
            messages += 1;
        }
        messages
    });
    captured("egress captured", &writer);
    writer.send(&[]).unwrap();
    assert!(reading.join().unwrap() > 0);
    let (_reader, writer) = UnixDatagram::pair().unwrap();
    captured("egress captured, all lost", &writer);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = forwarded, dropped, captured
}
criterion_main!(benches);
