//! The tunnels to other VTEPs, as control side and workers share them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ahash::{AHashMap, RandomState};
use arc_swap::ArcSwap;

use super::narrow::Narrow;
use super::vteps::VtepCounters;
use crate::probe::{Mailbox, Report, BUCKETS, MIN_LEN};
use crate::table::FloodLimiter;
use crate::wire::{ethernet, udp, vxlan};

/// Requests of one VTEP that are answered a second, and at once. It sends three in 250 ms, or 54 in
/// a second while it searches.
const ANSWERS: u32 = 100;
/// Senders that are told a second, at most.
const TOLD: u32 = 1000;
/// Regular requests begin for so many tunnels a second at most.
const TUNNELS_PER_S: u64 = 1000;

/// A VTEP to probe, and the MTU that the overlay's networks promise on the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelConfig {
    /// The VTEP.
    pub vtep: IpAddr,
    /// Largest MTU of the networks that are shared with it, in bytes; 68 to 65521.
    pub mtu_bytes: u32,
}

/// What is known of the tunnel to one VTEP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelStats {
    /// What the probes have told.
    pub report: Report,
    /// Answers that came behind one that was asked later.
    pub reordered: u64,
    /// Requests of this VTEP that were answered.
    pub replies: u64,
    /// Since the last answer, in nanoseconds; none if there never was one.
    pub answer_age_ns: Option<u64>,
    /// Longest IP packet of the underlay that is known to get through, in bytes; at most
    /// `needed_mtu_bytes`. 0 until one did.
    pub path_mtu_bytes: u32,
    /// Longest one that the networks need.
    pub needed_mtu_bytes: u32,
}

/// One tunnel.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub vtep: IpAddr,
    pub mail: Mailbox,
    pub answers: FloodLimiter,
    /// Senders in containers that are told that less gets through.
    pub told: FloodLimiter,
    pub replies: AtomicU64,
    /// Longest datagram that the networks need.
    full: AtomicU16,
    /// Longest datagram that gets through, as far as is known.
    path: AtomicU16,
    report: Published,
    /// What each worker counts for the VTEP, once it has met it.
    counters: Box<[OnceLock<Arc<VtepCounters>>]>,
}

impl Tunnel {
    fn new(vtep: IpAddr, full: u16, workers: usize) -> Self {
        Self {
            vtep,
            mail: Mailbox::default(),
            answers: FloodLimiter::new(ANSWERS, ANSWERS),
            told: FloodLimiter::new(TOLD, TOLD / 10),
            replies: AtomicU64::new(0),
            full: AtomicU16::new(full),
            path: AtomicU16::new(full),
            report: Published::default(),
            counters: (0..workers).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Longest datagram (UDP payload) that the networks need, in bytes.
    pub fn full(&self) -> u16 {
        self.full.load(Ordering::Relaxed)
    }

    /// Longest datagram that no path is thought to be too narrow for: RFC 791's 576 bytes of
    /// IPv4, IPv6's least MTU of 1280.
    pub fn floor(&self) -> u16 {
        let least = if self.vtep.is_ipv4() { 576 } else { 1280 };
        least - ip_and_udp(self.vtep)
    }

    /// Longest datagram that gets through, in bytes, if the networks need more.
    pub fn narrow_path(&self) -> Option<u16> {
        let path = self.path.load(Ordering::Relaxed);
        (path < self.full()).then_some(path)
    }

    /// Tells everybody what its owner has found.
    pub fn publish(&self, path: u16, report: &Report) {
        self.path.store(path, Ordering::Relaxed);
        self.report.store(report);
    }

    /// Lets the owner see what worker `worker` counts.
    pub fn meet(&self, worker: usize, counters: &Arc<VtepCounters>) {
        if let Some(place) = self.counters.get(worker) {
            let _ = place.set(Arc::clone(counters));
        }
    }

    /// Datagrams that all workers have sent to it.
    pub fn sent_datagrams(&self) -> u64 {
        let met = self.counters.iter().filter_map(OnceLock::get);
        met.map(|counters| counters.sent_datagrams()).sum()
    }

    fn stats(&self, now_ns: u64) -> TunnelStats {
        let report = self.report.load();
        let overhead = u32::from(ip_and_udp(self.vtep));
        let arrived_ns = self.mail.arrived_ns();
        let mtu_of = |len: u16| {
            if len == 0 {
                0
            } else {
                u32::from(len) + overhead
            }
        };
        TunnelStats {
            reordered: self.mail.reordered(),
            replies: self.replies.load(Ordering::Relaxed),
            answer_age_ns: (arrived_ns > 0).then(|| now_ns.saturating_sub(arrived_ns)),
            path_mtu_bytes: mtu_of(report.longest),
            needed_mtu_bytes: mtu_of(self.full()),
            report,
        }
    }
}

/// The tunnels that there are now.
#[derive(Debug, Default)]
pub(super) struct TunnelList {
    /// Time between regular requests; 0 for none.
    pub interval_ns: u64,
    pub tunnels: AHashMap<IpAddr, Arc<Tunnel>>,
}

/// All tunnels. Workers read; only the control side changes which there are.
#[derive(Debug)]
pub(super) struct Tunnels {
    workers: usize,
    list: ArcSwap<TunnelList>,
    /// How many of them are narrower than the networks need.
    narrow: AtomicU32,
    /// Makes answers that nobody was asked for useless.
    pub token: u64,
}

impl Tunnels {
    /// No tunnels, for `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            list: ArcSwap::default(),
            narrow: AtomicU32::new(0),
            // Keyed by the system's randomness.
            token: RandomState::new().hash_one(workers),
        }
    }

    /// Replaces the tunnels; those that stay keep what is known of them.
    pub fn set(&self, interval_ns: u64, wanted: &[TunnelConfig]) {
        let before = self.list.load();
        let mut tunnels = AHashMap::with_capacity(wanted.len());
        for config in wanted {
            let vtep = config.vtep.to_canonical();
            let full = longest(config.mtu_bytes);
            let tunnel = match before.tunnels.get(&vtep) {
                Some(known) => Arc::clone(known),
                None => Arc::new(Tunnel::new(vtep, full, self.workers)),
            };
            tunnel.full.store(full, Ordering::Relaxed);
            tunnels.insert(vtep, tunnel);
        }
        let least_ns = tunnels.len() as u64 * (1_000_000_000 / TUNNELS_PER_S);
        self.list.store(Arc::new(TunnelList {
            interval_ns: if interval_ns == 0 {
                0
            } else {
                interval_ns.max(least_ns)
            },
            tunnels,
        }));
    }

    /// The tunnels, if one of them is narrower than the networks need.
    #[inline]
    pub fn narrow(&self) -> Option<Narrow> {
        (self.narrow.load(Ordering::Relaxed) > 0).then(|| Narrow(self.list.load()))
    }

    pub fn list(&self) -> arc_swap::Guard<Arc<TunnelList>> {
        self.list.load()
    }

    /// Which worker asks a VTEP. It stays the same whatever other VTEPs there are.
    pub fn owner(&self, vtep: IpAddr) -> usize {
        let last = match vtep {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        usize::from(last) % self.workers
    }

    /// Counts tunnels that have become narrow, or are no longer.
    pub fn count_narrow(&self, before: u32, now: u32) {
        // Wraps around where there are less than before.
        let change = now.wrapping_sub(before);
        self.narrow.fetch_add(change, Ordering::Relaxed);
    }

    /// By VTEP, in order.
    pub fn stats(&self, now_ns: u64) -> Vec<(IpAddr, TunnelStats)> {
        let list = self.list.load();
        let tunnels: BTreeMap<_, _> = list.tunnels.iter().collect();
        let stats = tunnels.into_iter();
        stats
            .map(|(&vtep, tunnel)| (vtep, tunnel.stats(now_ns)))
            .collect()
    }
}

/// Length of the UDP payload that carries a whole packet of an overlay's MTU, in bytes.
fn longest(mtu_bytes: u32) -> u16 {
    let len = mtu_bytes as usize + ethernet::HEADER_LEN + vxlan::HEADER_LEN;
    // No UDP over IPv6 or IPv4 carries more.
    len.clamp(MIN_LEN.into(), 65_000) as u16
}

/// Bytes of the underlay's headers in front of a datagram.
pub(super) fn ip_and_udp(vtep: IpAddr) -> u16 {
    let ip = if vtep.is_ipv4() { 20 } else { 40 };
    ip + udp::HEADER_LEN as u16
}

/// A report that one thread writes and others read. A reader may see some numbers one round older
/// than others.
#[derive(Debug, Default)]
struct Published {
    numbers: [AtomicU64; 7],
    round_trips: [AtomicU64; BUCKETS],
}

impl Published {
    fn store(&self, report: &Report) {
        let numbers = [
            report.sent,
            report.answered,
            report.lost,
            report.recent,
            report.round_trip_sum_ns,
            u64::from(report.longest),
            report.narrowed,
        ];
        for (place, number) in self.numbers.iter().zip(numbers) {
            place.store(number, Ordering::Relaxed);
        }
        for (place, number) in self.round_trips.iter().zip(report.round_trips) {
            place.store(number, Ordering::Relaxed);
        }
    }

    fn load(&self) -> Report {
        let load = |place: &AtomicU64| place.load(Ordering::Relaxed);
        let [sent, answered, lost, recent, round_trip_sum_ns, longest, narrowed] =
            self.numbers.each_ref().map(load);
        Report {
            sent,
            answered,
            lost,
            recent,
            round_trips: self.round_trips.each_ref().map(load),
            round_trip_sum_ns,
            longest: longest as u16,
            narrowed,
        }
    }
}
