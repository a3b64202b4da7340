//! Nothing on the packet path allocates, and tables stay small: counted by an allocator of our own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use vxlan_dataplane::capture::MAX_KEPT;
use vxlan_dataplane::engine::{Capture, CaptureConfig};
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::virtio::VnetHdr;
use vxlan_dataplane::wire::{vxlan, MacAddr, Vni};

mod support;

use support::endless::Endless;
use support::{Packet, MAC_A, MAC_B};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// What this thread has allocated and not given back, in bytes.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

fn hold(bytes: isize) {
    HELD.with(|held| held.set(held.get() + bytes));
}

// SAFETY: All is left to the system's allocator; counting touches a cell that needs no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        hold(layout.size() as isize);
        // SAFETY: The caller keeps to the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(-(layout.size() as isize));
        // SAFETY: The caller keeps to the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Frames of each kind: plain, super-frames, checksums left out, several flows.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = vec![];
    for ipv6 in [false, true] {
        let packet = Packet::tcp(ipv6, 1, &[1; 30_000]);
        for (header, frame) in [packet.super_frame(1390), Packet::udp(ipv6, b"a").partial()] {
            frames.push([&header.emit(), &*frame].concat());
        }
    }
    for source_port in 1000..1010 {
        let mut packet = Packet::udp(false, b"plain");
        packet.source_port = source_port;
        frames.push([&VnetHdr::NONE.emit(), &*packet.frame()].concat());
    }
    frames
}

/// Runs of TCP segments that can be joined, and of datagrams that cannot.
fn runs(vni: Vni) -> Vec<(Vec<u8>, usize)> {
    let packets = [
        Packet::tcp(false, 1, &[1; 30_000]).segments(1390),
        vec![Packet::udp(true, &[2; 99]); 20],
    ];
    let run = |packets: &Vec<Packet>| {
        let mut bytes = vec![];
        let mut segment = 0;
        for packet in packets {
            let mut frame = packet.frame();
            frame[..6].copy_from_slice(&MAC_A.0);
            frame[6..12].copy_from_slice(&MAC_B.0);
            segment = segment.max(frame.len() + vxlan::HEADER_LEN);
            bytes.extend(vxlan::header(vni));
            bytes.extend(frame);
        }
        (bytes, segment)
    };
    packets.iter().map(run).collect()
}

/// How often ten rounds both ways allocate. The first round may set up what belongs to the thread.
fn allocations_of(endless: &mut Endless) -> u64 {
    let mut round = || {
        endless.egress();
        endless.ingress();
    };
    round();
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..10 {
        round();
    }
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn forwarding_allocates_nothing_once_it_runs() -> Result<(), Box<dyn std::error::Error>> {
    let vni = Vni::new(7)?;
    let mut endless = Endless::new(vni, frames(), runs(vni));
    assert_eq!(allocations_of(&mut endless), 0);
    let stats = endless.network.stats();
    assert_eq!(stats.egress_drops.total() + stats.ingress_drops.total(), 0);
    Ok(())
}

/// Frames of all kinds, and one that is dropped; the capture's reader reads nothing.
#[test]
fn capturing_and_remembering_drops_allocates_nothing() -> Result<(), Box<dyn std::error::Error>> {
    let vni = Vni::new(7)?;
    let mut frames = frames();
    let mut unknown = frames[frames.len() - 1].clone();
    unknown[VnetHdr::NONE.emit().len()] ^= 4;
    frames.push(unknown);
    let mut endless = Endless::new(vni, frames, runs(vni));
    let (_reader, writer) = UnixDatagram::pair()?;
    let config = CaptureConfig {
        vni,
        mac: None,
        snap_bytes: MAX_KEPT,
        drops_only: false,
    };
    let socket = Arc::new(OwnedFd::from(writer));
    endless
        .lane
        .begin_capture(Capture::new(0, 0, config, socket));
    assert_eq!(allocations_of(&mut endless), 0);
    assert!(endless.network.stats().egress_drops.total() > 10);
    assert_eq!(endless.lane.recent_drops().len(), 1);
    Ok(())
}

/// As the control plane fills a table: in batches, each of which publishes a snapshot.
#[test]
fn million_entries_take_less_than_100_mb() -> Result<(), Box<dyn std::error::Error>> {
    const BATCHES: u32 = 100;
    const BATCH: u32 = 10_000;
    let before = HELD.with(Cell::get);
    let mut tables = Tables::new(Vni::new(7)?, true);
    for batch in 0..BATCHES {
        let numbers = batch * BATCH..(batch + 1) * BATCH;
        let entries: Vec<(MacAddr, IpAddr)> = numbers
            .map(|number| {
                let [a, b, c, d] = number.to_be_bytes();
                let host = IpAddr::from([198, 18, d, c]);
                (MacAddr([2, 0x42, a, b, c, d]), host)
            })
            .collect();
        tables = tables.with_changes(&entries, &[])?;
    }
    assert_eq!(tables.fdb_len(), (BATCHES * BATCH) as usize);
    let held = HELD.with(Cell::get) - before;
    assert!(held < 100_000_000, "{held} bytes");
    drop(tables);
    assert_eq!(HELD.with(Cell::get), before, "all of it is given back");
    Ok(())
}
