//! Rate limit of flooded frames.

use std::sync::atomic::{AtomicU64, Ordering};

const NS_PER_S: u64 = 1_000_000_000;

/// Token bucket without tokens: the generic cell rate algorithm (ITU-T I.371) in one atomic word,
/// shared by all workers.
#[derive(Debug)]
pub struct FloodLimiter {
    /// Time at which the next frame is due at exactly the rate.
    due_ns: AtomicU64,
    interval_ns: u64,
    tolerance_ns: u64,
}

impl FloodLimiter {
    /// Admits `rate_per_s` frames a second in the long run and `burst` at once, at least one.
    ///
    /// Above 10^9 frames a second there is no limit; a rate of zero admits nothing.
    #[must_use]
    pub const fn new(rate_per_s: u32, burst: u32) -> Self {
        let interval_ns = match rate_per_s {
            0 => u64::MAX,
            rate => NS_PER_S / rate as u64,
        };
        let extra = burst.saturating_sub(1) as u64;
        FloodLimiter {
            due_ns: AtomicU64::new(0),
            interval_ns,
            tolerance_ns: interval_ns.saturating_mul(extra),
        }
    }

    /// Whether a frame may pass at `now_ns`, nanoseconds of a clock that does not go back.
    ///
    /// Wait-free but for the retry after another worker's success; never locks.
    #[inline]
    #[must_use]
    pub fn admit(&self, now_ns: u64) -> bool {
        if self.interval_ns == u64::MAX {
            return false;
        }
        self.due_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due_ns| {
                let early_ns = due_ns.saturating_sub(now_ns);
                (early_ns <= self.tolerance_ns)
                    .then(|| due_ns.max(now_ns).saturating_add(self.interval_ns))
            })
            .is_ok()
    }
}
