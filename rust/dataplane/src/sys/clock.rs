//! The clocks: one that the flood limiter is fed from, one for people.

/// Nanoseconds of CLOCK_MONOTONIC; through the vDSO, so without entering the kernel.
#[must_use]
pub fn monotonic_ns() -> u64 {
    // Cannot be negative: the monotonic clock begins at boot.
    read_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of Unix time (CLOCK_REALTIME); through the vDSO as well.
#[must_use]
pub fn unix_ns() -> u64 {
    read_ns(libc::CLOCK_REALTIME)
}

fn read_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writing until the call returns.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    (now.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(now.tv_nsec as u64)
}
