//! What a worker tells of single frames: the captures that run, and the last that it dropped.
//!
//! All of it is the worker's own; the control side asks by orders. A record leaves through a socket
//! that never makes the worker wait: what its reader is too slow for is lost, and counted.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::droplog::{DropLog, DroppedFrame, Sight};
use crate::capture::{Direction, Head, Prefix, Verdict, HEAD_LEN, MAX_KEPT, PREFIX_LEN};
use crate::io::FrameBatch;
use crate::sys::{clock, socket};
use crate::wire::{ethernet, MacAddr, Vni};
use crate::DropReason;

/// Room for the records of a turn; more go in several messages.
const MESSAGE_BYTES: usize = 128 * 1024;

/// Which frames a capture is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureConfig {
    /// The VNI. It need not be attached.
    pub vni: Vni,
    /// Only frames from and to this MAC, and broadcast and multicast from other hosts.
    pub mac: Option<MacAddr>,
    /// Most bytes that are kept of a frame, at most [`MAX_KEPT`].
    pub snap_bytes: u32,
    /// Only frames that were dropped.
    pub drops_only: bool,
}

/// One worker's end of a capture.
pub struct Capture {
    id: u64,
    config: CaptureConfig,
    socket: Arc<OwnedFd>,
    worker: u16,
    message: Box<[u8]>,
    used: usize,
    records: u16,
    lost: u64,
    /// Whether its reader has gone.
    ended: bool,
}

impl fmt::Debug for Capture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Capture")
            .field("id", &self.id)
            .field("config", &self.config)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// Makes worker number `worker`'s end of capture `id`, which sends to the peer of `socket`.
    ///
    /// `socket` keeps messages apart (SOCK_SEQPACKET).
    #[must_use]
    pub fn new(id: u64, worker: usize, config: CaptureConfig, socket: Arc<OwnedFd>) -> Self {
        Self {
            id,
            config,
            socket,
            worker: worker as u16,
            message: vec![0; MESSAGE_BYTES].into(),
            used: PREFIX_LEN,
            records: 0,
            lost: 0,
            ended: false,
        }
    }

    fn wants(&self, sight: &Sight<'_>, verdict: Verdict) -> bool {
        if self.config.drops_only && !matches!(verdict, Verdict::Dropped(_)) {
            return false;
        }
        let Some(mac) = self.config.mac else {
            return true;
        };
        ethernet::addresses(sight.front()).is_some_and(|(destination, source)| {
            let to_all = destination.is_multicast() && sight.direction == Direction::Ingress;
            source == mac || destination == mac || to_all
        })
    }

    fn record(&mut self, time_ns: u64, sight: &Sight<'_>, verdict: Verdict) {
        let frame_bytes = sight.frame_bytes();
        let mut left = frame_bytes.min(self.config.snap_bytes.min(MAX_KEPT) as usize);
        if self.used + HEAD_LEN + left > self.message.len() {
            self.send();
        }
        let head = Head {
            time_ns,
            direction: sight.direction,
            verdict,
            vtep: sight.vtep,
            frames: sight.frames.try_into().unwrap_or(u16::MAX),
            frame_bytes: frame_bytes as u32,
            kept_bytes: left as u32,
        };
        self.push(&head.emit());
        for part in sight.parts {
            let len = part.len().min(left);
            self.push(&part[..len]);
            left -= len;
        }
        self.records += 1;
    }

    fn push(&mut self, bytes: &[u8]) {
        self.message[self.used..][..bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    /// Hands over what was recorded.
    fn send(&mut self) {
        if self.records == 0 {
            return;
        }
        let prefix = Prefix {
            lost: self.lost,
            worker: self.worker,
            records: self.records,
        };
        self.message[..PREFIX_LEN].copy_from_slice(&prefix.emit());
        match socket::send_now(self.socket.as_fd(), &self.message[..self.used]) {
            Ok(()) => {}
            Err(error) if is_full(&error) => self.lost += u64::from(self.records),
            Err(_) => self.ended = true,
        }
        self.used = PREFIX_LEN;
        self.records = 0;
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EMSGSIZE | libc::EINTR)
    )
}

/// What became of one frame of a batch that is being sent.
#[derive(Clone, Copy, Debug)]
struct Fate {
    verdict: Verdict,
    vtep: Option<IpAddr>,
    frames: u64,
}

/// A worker's captures, and its memory of what it dropped.
#[derive(Debug)]
pub(super) struct Watch {
    captures: Vec<Capture>,
    drops: DropLog,
    /// When this turn began, once it was asked for.
    now_ns: Option<u64>,
    /// Of a batch that is captured: what has become of its frames so far, in order.
    fates: Vec<Fate>,
}

impl Watch {
    pub fn new() -> Self {
        Self {
            captures: Vec::new(),
            drops: DropLog::new(),
            now_ns: None,
            fates: Vec::with_capacity(FrameBatch::SLOTS),
        }
    }

    /// Begins to record for a capture.
    pub fn begin_capture(&mut self, capture: Capture) {
        self.captures.push(capture);
    }

    /// Ends a capture; one that ended already is no error.
    pub fn end_capture(&mut self, id: u64) {
        self.captures.retain(|capture| capture.id != id);
    }

    /// The last frames that were dropped, in no order.
    pub fn recent_drops(&self) -> Vec<DroppedFrame> {
        self.drops.entries()
    }

    /// Begins a turn: one batch of frames or messages.
    #[inline]
    pub fn begin_turn(&mut self) {
        self.now_ns = None;
        self.drops.begin();
    }

    /// Ends a turn: what was recorded leaves.
    #[inline]
    pub fn end_turn(&mut self) {
        if !self.captures.is_empty() {
            self.send();
        }
    }

    #[cold]
    fn send(&mut self) {
        self.captures.iter_mut().for_each(Capture::send);
        self.captures.retain(|capture| !capture.ended);
    }

    /// Whether the frames of a VNI are recorded. Asked once per batch, before anything is done with
    /// it: from then on its frames have their time.
    #[inline]
    pub fn is_capturing(&mut self, vni: Vni) -> bool {
        let mut captures = self.captures.iter();
        let found = captures.any(|capture| capture.config.vni == vni);
        if found {
            self.now_ns();
        }
        found
    }

    /// Notes a frame that was dropped in the memory of drops.
    #[cold]
    pub fn dropped(&mut self, reason: DropReason, sight: &Sight<'_>) {
        let now_ns = &mut self.now_ns;
        self.drops
            .note(reason, sight, || *now_ns.get_or_insert_with(clock::unix_ns));
    }

    /// Records a frame for the captures of its VNI.
    #[cold]
    pub fn record(&mut self, sight: &Sight<'_>, verdict: Verdict) {
        let mut time_ns = self.now_ns();
        if verdict == Verdict::Answer {
            // Behind what it answers, which is recorded with its batch.
            time_ns += 1;
        }
        for capture in &mut self.captures {
            if Some(capture.config.vni) == sight.vni && capture.wants(sight, verdict) {
                capture.record(time_ns, sight, verdict);
            }
        }
    }

    /// Begins with a batch of frames to send that is captured.
    pub fn begin_batch(&mut self) {
        self.fates.clear();
    }

    /// Makes room for the next frame of a batch, which stands for `frames`.
    pub fn expect(&mut self, frames: usize) {
        self.fates.push(Fate {
            verdict: Verdict::Forwarded,
            vtep: None,
            frames: frames as u64,
        });
    }

    /// Says what became of frame `index`, unless it is known already that it was dropped.
    pub fn settle(&mut self, index: usize, verdict: Verdict, vtep: Option<IpAddr>) {
        if let Some(fate) = self.fates.get_mut(index) {
            if !matches!(fate.verdict, Verdict::Dropped(_)) {
                fate.verdict = verdict;
                fate.vtep = vtep;
            }
        }
    }

    /// Records an answer to a frame of this batch, which was made here.
    #[cold]
    pub fn record_answer(&mut self, vni: Vni, frame: &[u8]) {
        let sight = Sight {
            vni: Some(vni),
            direction: Direction::Ingress,
            vtep: None,
            frames: 1,
            parts: &[IoSlice::new(frame)],
        };
        self.record(&sight, Verdict::Answer);
    }

    /// Records the frames of a batch, after all that can become of them has.
    #[cold]
    pub fn record_batch(&mut self, vni: Vni, batch: &FrameBatch) {
        for index in 0..self.fates.len().min(batch.len()) {
            let fate = self.fates[index];
            let frame = batch.slot(index).get(FrameBatch::FRAME_OFFSET..);
            let sight = Sight {
                vni: Some(vni),
                direction: Direction::Egress,
                vtep: fate.vtep,
                frames: fate.frames,
                parts: &[IoSlice::new(frame.unwrap_or_default())],
            };
            self.record(&sight, fate.verdict);
        }
        self.fates.clear();
    }

    fn now_ns(&mut self) -> u64 {
        *self.now_ns.get_or_insert_with(clock::unix_ns)
    }
}
