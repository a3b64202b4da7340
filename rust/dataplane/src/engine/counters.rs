//! Counters: each written by one worker only, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::vteps::VtepBook;
use super::watch::Watch;
use crate::DropReason;

/// A number that one thread adds to and others read. Adding needs no locked instruction.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the worker that the counter belongs to may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(n);
        self.0.store(sum, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Drops by reason.
#[derive(Debug)]
pub(super) struct DropCounters([Counter; DropReason::COUNT]);

impl Default for DropCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl DropCounters {
    #[inline]
    pub fn add(&self, reason: DropReason, n: u64) {
        self.0[reason as usize].add(n);
    }

    fn sum_into(&self, drops: &mut Drops) {
        for (sum, counter) in drops.0.iter_mut().zip(&self.0) {
            *sum += counter.value();
        }
    }
}

/// What one worker counts for one network. Aligned so that workers share no cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct NetworkCounters {
    pub egress_frames: Counter,
    pub egress_bytes: Counter,
    pub ingress_frames: Counter,
    pub ingress_bytes: Counter,
    pub flood_frames: Counter,
    pub replies: Counter,
    pub path_mtu_replies: Counter,
    pub mss_clamped: Counter,
    pub egress_drops: DropCounters,
    pub ingress_drops: DropCounters,
}

/// What one worker counts and notes beside its networks.
#[derive(Debug)]
pub(super) struct LaneCounters {
    pub sockets: Arc<UnderlayCounters>,
    pub vteps: VtepBook,
    pub watch: Watch,
}

/// What one worker counts for its sockets.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct UnderlayCounters {
    pub sent_datagrams: Counter,
    pub sent_bytes: Counter,
    pub sent_syscalls: Counter,
    pub sent_batches: Counter,
    pub received_datagrams: Counter,
    pub received_bytes: Counter,
    pub received_syscalls: Counter,
    pub received_batches: Counter,
    pub drops: DropCounters,
}

/// Drops by reason, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drops([u64; DropReason::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; DropReason::COUNT])
    }
}

impl Drops {
    /// Adds what others than the workers have counted.
    pub(super) fn add(&mut self, reason: DropReason, n: u64) {
        self.0[reason as usize] += n;
    }

    /// How often `reason` occurred.
    #[must_use]
    pub fn count(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// The reasons that occurred, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let counts = DropReason::ALL.iter().copied().zip(self.0);
        counts.filter(|&(_, count)| count > 0)
    }

    /// All reasons together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Counters of one network, summed over the workers.
///
/// Frames are counted as on the wire: a super-frame of ten segments counts ten. Bytes are those of
/// inner Ethernet frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkStats {
    /// Frames sent to VTEPs, copies included.
    pub egress_frames: u64,
    /// Bytes of these.
    pub egress_bytes: u64,
    /// Frames given to the port.
    pub ingress_frames: u64,
    /// Bytes of these.
    pub ingress_bytes: u64,
    /// Copies made for the VTEPs of the flood list.
    pub flood_frames: u64,
    /// ARP requests and neighbour solicitations answered here.
    pub replies: u64,
    /// Senders told that a frame is too long for its tunnel.
    pub path_mtu_replies: u64,
    /// TCP segments whose MSS was lowered to what gets through a tunnel, in both directions.
    pub mss_clamped: u64,
    /// Frames from the port that went nowhere.
    pub egress_drops: Drops,
    /// Frames from the underlay that went nowhere.
    pub ingress_drops: Drops,
    /// Entries in the FDB now.
    pub fdb_entries: u64,
    /// Entries in the table of neighbours now.
    pub neighbour_entries: u64,
    /// VTEPs in the flood list now.
    pub flood_vteps: u64,
}

/// Counters of the underlay sockets, summed over the workers; bytes are those of UDP payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnderlayStats {
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Bytes of these.
    pub sent_bytes: u64,
    /// Calls of sendmmsg.
    pub sent_syscalls: u64,
    /// Those of them that sent something.
    pub sent_batches: u64,
    /// Datagrams received.
    pub received_datagrams: u64,
    /// Bytes of these.
    pub received_bytes: u64,
    /// Calls of recvmmsg.
    pub received_syscalls: u64,
    /// Those of them that received something.
    pub received_batches: u64,
    /// Datagrams that belong to no attached VNI, by reason.
    pub drops: Drops,
}

pub(super) fn sum_networks<'a>(
    workers: impl IntoIterator<Item = &'a NetworkCounters>,
) -> NetworkStats {
    let mut stats = NetworkStats::default();
    for counters in workers {
        stats.egress_frames += counters.egress_frames.value();
        stats.egress_bytes += counters.egress_bytes.value();
        stats.ingress_frames += counters.ingress_frames.value();
        stats.ingress_bytes += counters.ingress_bytes.value();
        stats.flood_frames += counters.flood_frames.value();
        stats.replies += counters.replies.value();
        stats.path_mtu_replies += counters.path_mtu_replies.value();
        stats.mss_clamped += counters.mss_clamped.value();
        counters.egress_drops.sum_into(&mut stats.egress_drops);
        counters.ingress_drops.sum_into(&mut stats.ingress_drops);
    }
    stats
}

pub(super) fn sum_underlay<'a>(
    workers: impl IntoIterator<Item = &'a UnderlayCounters>,
) -> UnderlayStats {
    let mut stats = UnderlayStats::default();
    for counters in workers {
        stats.sent_datagrams += counters.sent_datagrams.value();
        stats.sent_bytes += counters.sent_bytes.value();
        stats.sent_syscalls += counters.sent_syscalls.value();
        stats.sent_batches += counters.sent_batches.value();
        stats.received_datagrams += counters.received_datagrams.value();
        stats.received_bytes += counters.received_bytes.value();
        stats.received_syscalls += counters.received_syscalls.value();
        stats.received_batches += counters.received_batches.value();
        counters.drops.sum_into(&mut stats.drops);
    }
    stats
}
