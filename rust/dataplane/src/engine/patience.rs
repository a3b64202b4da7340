//! How long a worker that finds nothing to do goes on looking before it sleeps. Pure.

/// Longest time that a worker looks. To wake a thread takes tens of microseconds, so that what comes
/// within this time costs less when it is found than when it has to wake us.
pub(super) const LOOK_NS: u64 = 100_000;

/// Expects of a wait what the one before was like: a worker looks only if the last thing to do came
/// within [`LOOK_NS`]. One who has traffic looks, one who is idle sleeps at once, and when traffic
/// ends a worker looks in vain once.
#[derive(Debug, Default)]
pub(super) struct Patience {
    short: bool,
}

impl Patience {
    /// How long to look before sleeping this time, in nanoseconds.
    pub fn look_ns(&self) -> u64 {
        if self.short {
            LOOK_NS
        } else {
            0
        }
    }

    /// Learns how long it took until there was something to do, asleep or not.
    pub fn waited(&mut self, wait_ns: u64) {
        self.short = wait_ns <= LOOK_NS;
    }
}

#[cfg(test)]
mod tests {
    use super::{Patience, LOOK_NS};

    #[test]
    fn idle_worker_sleeps_at_once_and_looks_again_after_a_short_wait() {
        let mut patience = Patience::default();
        assert_eq!(patience.look_ns(), 0);
        patience.waited(1_000_000_000);
        assert_eq!(patience.look_ns(), 0);
        patience.waited(LOOK_NS / 2);
        assert_eq!(patience.look_ns(), LOOK_NS);
    }

    #[test]
    fn worker_looks_in_vain_once_when_traffic_ends() {
        let mut patience = Patience::default();
        let mut looked_ns = 0;
        for wait_ns in [LOOK_NS, 5_000, 1_000_000, 1_000_000, 1_000_000] {
            looked_ns += patience.look_ns().min(wait_ns);
            patience.waited(wait_ns);
        }
        assert_eq!(looked_ns, 5_000 + LOOK_NS);
    }
}
