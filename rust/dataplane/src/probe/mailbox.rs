//! Where answers wait for the worker that asked: any worker may receive them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// More than there are requests on the way at a time.
const SLOTS: usize = 128;

/// The answers of one VTEP, by sequence number; written by any thread, read by one.
#[derive(Debug)]
pub struct Mailbox {
    /// Sequence number, and the time of arrival in microseconds modulo 2^32; 0 for none.
    slots: [AtomicU64; SLOTS],
    /// Of the shortest probes the last sequence number that arrived.
    last: AtomicU32,
    reordered: AtomicU64,
    arrived_ns: AtomicU64,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
            last: AtomicU32::new(0),
            reordered: AtomicU64::new(0),
            arrived_ns: AtomicU64::new(0),
        }
    }
}

impl Mailbox {
    /// Puts an answer in; `ordered` ones are counted if one that was asked later came before.
    ///
    /// Sequence numbers begin with 1.
    pub fn post(&self, sequence: u32, ordered: bool, now_ns: u64) {
        let slot = u64::from(sequence) << 32 | u64::from(micros(now_ns));
        self.slots[sequence as usize % SLOTS].store(slot, Ordering::Relaxed);
        self.arrived_ns.fetch_max(now_ns, Ordering::Relaxed);
        if ordered && self.last.fetch_max(sequence, Ordering::Relaxed) > sequence {
            self.reordered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The round trip of the request `sequence`, sent at `sent_ns`, in nanoseconds, if its answer
    /// is there. Takes it out.
    #[must_use]
    pub fn take(&self, sequence: u32, sent_ns: u64) -> Option<u64> {
        let slot = &self.slots[sequence as usize % SLOTS];
        let found = slot.load(Ordering::Relaxed);
        if found >> 32 != u64::from(sequence) {
            return None;
        }
        slot.store(0, Ordering::Relaxed);
        let round_trip_us = (found as u32).wrapping_sub(micros(sent_ns));
        Some(u64::from(round_trip_us) * 1000)
    }

    /// How many answers came behind one that was asked later.
    #[must_use]
    pub fn reordered(&self) -> u64 {
        self.reordered.load(Ordering::Relaxed)
    }

    /// When the last answer came; 0 if none ever did.
    #[must_use]
    pub fn arrived_ns(&self) -> u64 {
        self.arrived_ns.load(Ordering::Relaxed)
    }
}

const fn micros(ns: u64) -> u32 {
    (ns / 1000) as u32
}
