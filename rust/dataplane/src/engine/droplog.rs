//! The last frames that a worker has dropped: always kept, headers only.

use std::io::IoSlice;
use std::net::IpAddr;

use crate::capture::Direction;
use crate::wire::{headers_len, Vni};
use crate::DropReason;

/// How many are kept of each reason, so that none drives out another.
const KEPT: usize = 16;
/// Most bytes kept of a frame.
const HEADERS: usize = 128;
/// What is compared to tell whether a frame is as the one before it: both MACs and the ethertype.
const ALIKE: usize = 14;
/// New entries a turn at most: a flood of drops, each unlike the one before, costs no more.
const PER_TURN: u32 = 8;

/// A frame that was dropped, or several in a row that were alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedFrame {
    /// When the last of them was dropped, in nanoseconds of Unix time.
    pub time_ns: u64,
    /// How many: from and to the same MACs, by the same VTEP, for the same reason. A super-frame
    /// counts as the frames that it stands for.
    pub count: u64,
    /// Why.
    pub reason: DropReason,
    /// The VNI, if it had one.
    pub vni: Option<Vni>,
    /// Which way it went.
    pub direction: Direction,
    /// Where it came from or was to go to, if that is one VTEP and known.
    pub vtep: Option<IpAddr>,
    /// Bytes of the first of them.
    pub frame_bytes: u32,
    headers: [u8; HEADERS],
    headers_len: u8,
}

impl DroppedFrame {
    /// The headers of the first of them: never its payload. Empty if it was no Ethernet frame.
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        &self.headers[..usize::from(self.headers_len)]
    }

    const NONE: Self = Self {
        time_ns: 0,
        count: 0,
        reason: DropReason::Truncated,
        vni: None,
        direction: Direction::Egress,
        vtep: None,
        frame_bytes: 0,
        headers: [0; HEADERS],
        headers_len: 0,
    };
}

/// What a worker has before it when it drops a frame, or records it.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    pub vni: Option<Vni>,
    pub direction: Direction,
    pub vtep: Option<IpAddr>,
    /// How many frames on the wire it stands for.
    pub frames: u64,
    /// The frame, the first part of which has its headers.
    pub parts: &'a [IoSlice<'a>],
}

impl Sight<'_> {
    /// Bytes of the frame.
    pub fn frame_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// The part with the headers.
    pub fn front(&self) -> &[u8] {
        self.parts.first().map_or(&[], |part| part)
    }
}

/// One worker's memory of what it dropped. Allocated once.
#[derive(Debug)]
pub(super) struct DropLog {
    /// [`KEPT`] entries for each reason; those with a count of zero are free.
    entries: Vec<DroppedFrame>,
    /// By reason: where the newest entry is.
    newest: [u8; DropReason::COUNT],
    left_this_turn: u32,
}

impl DropLog {
    pub fn new() -> Self {
        Self {
            entries: vec![DroppedFrame::NONE; KEPT * DropReason::COUNT],
            newest: [0; DropReason::COUNT],
            left_this_turn: PER_TURN,
        }
    }

    /// Begins a turn.
    #[inline]
    pub fn begin(&mut self) {
        self.left_this_turn = PER_TURN;
    }

    /// Notes a frame that was dropped.
    pub fn note(&mut self, reason: DropReason, sight: &Sight<'_>, now_ns: impl FnOnce() -> u64) {
        let newest = usize::from(self.newest[reason as usize]);
        let entries = &mut self.entries[reason as usize * KEPT..][..KEPT];
        let front = sight.front();
        let last = &mut entries[newest];
        let alike = last.count > 0
            && last.vni == sight.vni
            && last.direction == sight.direction
            && last.vtep == sight.vtep
            && head(front) == head(last.headers());
        if alike {
            last.count += sight.frames;
            last.time_ns = now_ns();
            return;
        }
        if self.left_this_turn == 0 {
            return;
        }
        self.left_this_turn -= 1;
        let next = if last.count == 0 {
            newest
        } else {
            (newest + 1) % KEPT
        };
        self.newest[reason as usize] = next as u8;
        let entry = &mut entries[next];
        let len = headers_len(front).min(HEADERS);
        entry.headers[..len].copy_from_slice(&front[..len]);
        entry.headers_len = len as u8;
        entry.time_ns = now_ns();
        entry.count = sight.frames;
        entry.reason = reason;
        entry.vni = sight.vni;
        entry.direction = sight.direction;
        entry.vtep = sight.vtep;
        entry.frame_bytes = sight.frame_bytes() as u32;
    }

    /// What is kept, in no order.
    pub fn entries(&self) -> Vec<DroppedFrame> {
        let entries = self.entries.iter().filter(|entry| entry.count > 0);
        entries.copied().collect()
    }
}

fn head(bytes: &[u8]) -> &[u8] {
    bytes.get(..ALIKE).unwrap_or(bytes)
}
