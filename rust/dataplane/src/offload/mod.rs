//! What a network card would do: checksums, segmentation, coalescing. Pure.

mod checksum;
mod coalesce;
mod group;
mod segment;
mod unfinished;

pub use checksum::complete_checksum;
pub use coalesce::{Coalescer, Joined, Output, Piece};
pub use segment::Segments;
pub use unfinished::{datagram_super_frame, may_be_run, unfinished};

/// Longest headers (Ethernet to TCP) of a super-frame that is segmented, in bytes.
pub const MAX_HEADER_LEN: usize = 256;

/// Segments that one super-frame may have; 64 KiB in the smallest segments that Linux makes
/// (`TCP_MIN_GSO_SIZE`).
pub const MAX_SEGMENTS: usize = 8192;

/// Most payloads in one super-frame that a [`Coalescer`] joined.
pub const MAX_PIECES: usize = 64;

/// Offsets within the headers that are patched; each counts from the beginning of its header.
mod field {
    pub(super) const IPV4_LEN: usize = 2;
    pub(super) const IPV4_ID: usize = 4;
    pub(super) const IPV4_CHECKSUM: usize = 10;
    pub(super) const IPV6_LEN: usize = 4;
    pub(super) const TCP_SEQUENCE: usize = 4;
    pub(super) const TCP_FLAGS: usize = 13;
    pub(super) const TCP_CHECKSUM: usize = 16;
    pub(super) const UDP_LEN: usize = 4;
    pub(super) const UDP_CHECKSUM: usize = 6;
}

/// Flags in the byte at [`field::TCP_FLAGS`].
mod flag {
    use crate::wire::tcp::flag;

    pub(super) const CWR: u8 = flag::CWR as u8;
    pub(super) const FIN_PSH: u8 = (flag::FIN | flag::PSH) as u8;
    /// A segment with one of these begins no super-frame and ends one.
    pub(super) const LONE: u8 =
        (flag::FIN | flag::SYN | flag::RST | flag::PSH | flag::URG | flag::CWR) as u8;
}

/// Writes a big-endian number at `at`, which lies within `bytes`.
#[inline]
fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
