//! How long a worker has had nothing to do, its present wait included. Pure.
//!
//! The worker measures its waits anyway, and writes them here with plain stores. It may be read at
//! any moment: between two of the stores less than the truth is seen, never more, and a reader
//! keeps the most that it has seen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// The worker's end, and what both share.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// Of all waits that are over.
    waited_ns: AtomicU64,
    /// When the present wait began; 0 while there is none.
    since_ns: AtomicU64,
}

impl Idle {
    /// Notes that a wait begins. Only the worker may call this, and `end`.
    pub fn begin(&self, now_ns: u64) {
        self.since_ns.store(now_ns, Ordering::Relaxed);
    }

    /// Notes that the wait is over.
    pub fn end(&self, wait_ns: u64) {
        let sum = self.waited_ns.load(Ordering::Relaxed) + wait_ns;
        self.since_ns.store(0, Ordering::Relaxed);
        // Whoever sees the sum sees the line above, too, and so counts no wait twice.
        self.waited_ns.store(sum, Ordering::Release);
    }
}

/// The control side's end.
#[derive(Debug)]
pub(super) struct IdleReader {
    shared: Arc<Idle>,
    most_ns: u64,
}

impl IdleReader {
    pub fn new(shared: Arc<Idle>) -> Self {
        Self { shared, most_ns: 0 }
    }

    /// Nanoseconds without anything to do, since the worker began; never less than before.
    pub fn read(&mut self, now_ns: u64) -> u64 {
        let waited_ns = self.shared.waited_ns.load(Ordering::Acquire);
        let since_ns = self.shared.since_ns.load(Ordering::Relaxed);
        let present_ns = match since_ns {
            0 => 0,
            since_ns => now_ns.saturating_sub(since_ns),
        };
        self.most_ns = self.most_ns.max(waited_ns + present_ns);
        self.most_ns
    }
}

#[cfg(test)]
mod tests {
    use super::{Idle, IdleReader};
    use std::sync::atomic::Ordering;
    use std::sync::Arc;

    #[test]
    fn waits_are_summed_with_the_present_one() {
        let idle = Arc::new(Idle::default());
        let mut reader = IdleReader::new(Arc::clone(&idle));
        assert_eq!(reader.read(100), 0);
        idle.begin(100);
        assert_eq!(reader.read(130), 30);
        idle.end(50);
        assert_eq!(reader.read(1000), 50);
        idle.begin(1000);
        assert_eq!(reader.read(1001), 51);
    }

    #[test]
    fn reading_never_goes_back_in_the_middle_of_an_end() {
        let idle = Arc::new(Idle::default());
        let mut reader = IdleReader::new(Arc::clone(&idle));
        idle.begin(100);
        assert_eq!(reader.read(200), 100);
        idle.since_ns.store(0, Ordering::Relaxed); // the first half of `end`
        assert_eq!(reader.read(300), 100);
        idle.end(150);
        assert_eq!(reader.read(300), 150);
    }
}
