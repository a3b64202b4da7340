//! What is known of one tunnel.

/// Upper bounds of the buckets of round trips, in nanoseconds; one more bucket is for the rest.
pub const BUCKETS_NS: [u64; BUCKETS - 1] = [
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
];
/// Number of buckets.
pub const BUCKETS: usize = 15;

/// What the probes of one tunnel have told so far. Probes for sizes count for the path MTU only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Requests sent.
    pub sent: u64,
    /// Those that were answered in time.
    pub answered: u64,
    /// Those that were not; the rest of `sent` may still be.
    pub lost: u64,
    /// Of the last 64 requests that were answered or lost, the lost ones as bits, last one lowest.
    pub recent: u64,
    /// Round trips by bucket of [`BUCKETS_NS`], each counted once.
    pub round_trips: [u64; BUCKETS],
    /// All of them together, in nanoseconds.
    pub round_trip_sum_ns: u64,
    /// Longest datagram (UDP payload) that is known to get through, in bytes; at most what the
    /// networks need. 0 until one did.
    pub longest: u16,
    /// How often the path became too narrow for what got through before.
    pub narrowed: u64,
}

impl Report {
    /// Notes a round trip.
    pub(super) fn answered(&mut self, round_trip_ns: u64) {
        let bucket = BUCKETS_NS.partition_point(|&bound| bound < round_trip_ns);
        self.round_trips[bucket] += 1;
        self.round_trip_sum_ns += round_trip_ns;
        self.answered += 1;
        self.recent <<= 1;
    }

    /// Notes that a request was not answered.
    pub(super) fn lost(&mut self) {
        self.lost += 1;
        self.recent = self.recent << 1 | 1;
    }
}
