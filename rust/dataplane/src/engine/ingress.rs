//! Wire to container: one batch of datagrams becomes writes to the ports.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use ahash::AHashMap;
use arc_swap::Guard;

use super::counters::{LaneCounters, NetworkCounters};
use super::droplog::Sight;
use super::lane::Writer;
use super::prober::Prober;
use super::watch::Watch;
use super::Network;
use crate::capture::{Direction, Verdict};
use crate::ingress::{decide, Ingress};
use crate::io::{Port, Underlay};
use crate::narrow::clamp_mss;
use crate::offload::{datagram_super_frame, may_be_run, unfinished};
use crate::offload::{Coalescer, Joined, Output, Segments, MAX_HEADER_LEN, MAX_PIECES};
use crate::probe;
use crate::table::Tables;
use crate::wire::virtio::{self, VnetHdr};
use crate::wire::{vxlan, Vni};
use crate::DropReason;

/// virtio-net header, headers and payloads of a joined frame, at most.
const MAX_SLICES: usize = 2 + MAX_PIECES;

/// Where a frame lies in the batch.
#[derive(Clone, Copy, Debug)]
struct Place {
    message: u32,
    offset: u32,
    len: u32,
}

impl Place {
    /// The VTEP that sent it.
    fn source<U: Underlay>(self, underlay: &U) -> Option<IpAddr> {
        let received = underlay.received(self.message as usize)?;
        Some(received.source.to_canonical())
    }

    /// The bytes of the frame in `range`.
    fn bytes<U: Underlay>(self, underlay: &U, range: Range<u32>) -> &[u8] {
        let payload = underlay
            .received(self.message as usize)
            .map_or(&[][..], |received| received.payload);
        let start = self.offset as usize;
        payload
            .get(start + range.start as usize..start + range.end as usize)
            .unwrap_or_default()
    }
}

/// Memory for frames on their way in. Allocated once.
#[derive(Debug)]
pub(super) struct IngressPath {
    coalescer: Coalescer<Place>,
    /// Whether the ports' kernel takes super-frames of UDP, as far as we know (Linux 6.2).
    datagrams: Cell<bool>,
    /// Headers of one segment of a super-frame that is cut here.
    header: [u8; MAX_HEADER_LEN],
}

/// The network that the datagrams just now belong to.
struct Current<'a, P> {
    vni: Vni,
    writer: &'a Writer<P>,
    tables: Guard<Arc<Tables>>,
    counters: &'a NetworkCounters,
    captured: bool,
}

impl IngressPath {
    pub fn new() -> Self {
        Self {
            coalescer: Coalescer::new(),
            datagrams: Cell::new(true),
            header: [0; MAX_HEADER_LEN],
        }
    }

    /// Gives the `messages` that the underlay has received to the ports; what fails is counted.
    #[allow(clippy::too_many_arguments)]
    pub fn deliver<P: Port, U: Underlay>(
        &mut self,
        messages: usize,
        worker: usize,
        underlay: &U,
        writers: &AHashMap<Vni, Writer<P>>,
        lane: &mut LaneCounters,
        prober: &mut Prober,
        mut lost: impl FnMut(&Arc<Network>),
    ) {
        let LaneCounters {
            sockets,
            vteps,
            watch,
        } = lane;
        let narrow = vteps.narrow();
        let mut current: Option<Current<'_, P>> = None;
        for message in 0..messages {
            let Some(received) = underlay.received(message) else {
                sockets.drops.add(DropReason::Truncated, 1);
                continue;
            };
            let source = received.source.to_canonical();
            let longest = narrow.as_ref().and_then(|narrow| narrow.longest(source));
            if received.truncated || received.payload.is_empty() {
                sockets.drops.add(DropReason::Truncated, 1);
                note_stray(watch, DropReason::Truncated, source, None, &[]);
                continue;
            }
            sockets.received_bytes.add(received.payload.len() as u64);
            // A peer's super-frame of UDP looks like a run of datagrams, but is one.
            let whole = datagram_super_frame(received.payload, received.segment);
            let step = whole
                .as_ref()
                .map_or(received.segment, |_| received.payload.len());
            let (mut admitted, mut admitted_bytes) = (0, 0);
            for (index, datagram) in received.payload.chunks(step).enumerate() {
                sockets.received_datagrams.add(1);
                let vni = match vxlan::parse(datagram) {
                    Ok(vni) => vni,
                    Err(error) => {
                        sockets.drops.add(error.into(), 1);
                        note_stray(watch, error.into(), source, None, &[]);
                        continue;
                    }
                };
                if current.as_ref().is_none_or(|current| current.vni != vni) {
                    if let Some(before) = current.take() {
                        self.flush(&before, underlay, watch, &mut lost);
                    }
                    current = writers.get(&vni).map(|writer| Current {
                        vni,
                        writer,
                        tables: writer.network.snapshot(),
                        counters: writer.network.counters(worker),
                        captured: watch.is_capturing(vni),
                    });
                }
                let frame = &datagram[vxlan::HEADER_LEN..];
                let Some(current) = &current else {
                    if vni == probe::VNI && prober.note(source, datagram) {
                        continue;
                    }
                    sockets.drops.add(DropReason::VniUnknown, 1);
                    note_stray(watch, DropReason::VniUnknown, source, Some(vni), frame);
                    continue;
                };
                if let Ingress::Drop(reason) = decide(frame, source, &current.tables) {
                    current.drop_frame(reason, 1, Some(source), &[IoSlice::new(frame)], watch);
                    continue;
                }
                admitted += 1;
                admitted_bytes += datagram.len() as u64;
                if let Some(segments) = whole.clone() {
                    let is_here = |vni| writers.contains_key(&vni);
                    if may_be_run(received.payload, received.segment, is_here) {
                        let (count, parts) = (segments.remaining() as u64, [IoSlice::new(frame)]);
                        let reason = DropReason::FrameMalformed;
                        current.drop_frame(reason, count, Some(source), &parts, watch);
                        continue;
                    }
                    // What came before it goes first.
                    self.flush(current, underlay, watch, &mut lost);
                    let header = &mut self.header;
                    current.write_segments(segments, frame, source, header, watch, &mut lost);
                    continue;
                }
                if current.writer.network.is_too_big(frame, frame.len()) {
                    // What came before it goes first.
                    self.flush(current, underlay, watch, &mut lost);
                    current.write_big(frame, source, watch, &mut lost);
                    continue;
                }
                if let Some(longest) = longest {
                    if let Some(room) = self.header.get_mut(..frame.len()) {
                        // What is answered goes back through the same tunnel.
                        room.copy_from_slice(frame);
                        if clamp_mss(room, longest) {
                            current.counters.mss_clamped.add(1);
                            self.flush(current, underlay, watch, &mut lost);
                            let frame = &self.header[..frame.len()];
                            current.write_whole(frame, source, watch, &mut lost);
                            continue;
                        }
                    }
                }
                let place = Place {
                    message: message as u32,
                    offset: (index * received.segment + vxlan::HEADER_LEN) as u32,
                    len: frame.len() as u32,
                };
                self.coalescer.push(frame, place, |output| {
                    current.write(&output, underlay, &self.datagrams, watch, &mut lost);
                });
            }
            // Strangers are not counted: each would get counters of its own.
            if admitted > 0 {
                vteps.of(source).received(admitted, admitted_bytes);
            }
        }
        if let Some(last) = current {
            self.flush(&last, underlay, watch, &mut lost);
        }
        if !self.datagrams.get() {
            self.coalescer.leave_datagrams();
        }
    }

    fn flush<P: Port, U: Underlay>(
        &mut self,
        current: &Current<'_, P>,
        underlay: &U,
        watch: &mut Watch,
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        self.coalescer
            .flush(|output| current.write(&output, underlay, &self.datagrams, watch, lost));
    }
}

impl<P: Port> Current<'_, P> {
    /// Gives the port a frame that is longer than the MTU, if it is a super-frame.
    fn write_big(
        &self,
        frame: &[u8],
        source: IpAddr,
        watch: &mut Watch,
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        let Some(header) = unfinished(frame, self.mtu_bytes()) else {
            let parts = [IoSlice::new(frame)];
            return self.drop_frame(DropReason::FrameTooBig, 1, Some(source), &parts, watch);
        };
        let header = header.emit();
        let slices = [IoSlice::new(&header), IoSlice::new(frame)];
        let result = self.writer.port.write_frame(&slices);
        let load = (1, frame.len() as u64);
        self.settle(result, load, || Some(source), &slices, watch, lost);
    }

    /// Gives the port a frame that lies elsewhere than where it was received.
    fn write_whole(
        &self,
        frame: &[u8],
        source: IpAddr,
        watch: &mut Watch,
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        let header = unfinished(frame, self.mtu_bytes()).unwrap_or(VnetHdr::NONE);
        let header = header.emit();
        let slices = [IoSlice::new(&header), IoSlice::new(frame)];
        let result = self.writer.port.write_frame(&slices);
        let load = (1, frame.len() as u64);
        self.settle(result, load, || Some(source), &slices, watch, lost);
    }

    /// Gives the port the segments of a super-frame one by one: TAPs before Linux 6.2 take no such
    /// super-frame of UDP.
    fn write_segments(
        &self,
        mut segments: Segments<'_>,
        frame: &[u8],
        source: IpAddr,
        room: &mut [u8; MAX_HEADER_LEN],
        watch: &mut Watch,
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        let frame_len = segments.frame_len();
        if self.writer.network.is_too_big(frame, frame_len) {
            let count = segments.remaining() as u64;
            let parts = [IoSlice::new(frame)];
            return self.drop_frame(DropReason::FrameTooBig, count, Some(source), &parts, watch);
        }
        let vnet = VnetHdr::NONE.emit();
        while let Some((header_len, payload)) = segments.next_into(room) {
            let len = header_len + payload.len();
            let slices = [
                IoSlice::new(&vnet),
                IoSlice::new(&room[..header_len]),
                IoSlice::new(&frame[payload]),
            ];
            let result = self.writer.port.write_frame(&slices);
            let load = (1, len as u64);
            self.settle(result, load, || Some(source), &slices, watch, lost);
        }
    }

    /// Gives the port one frame, joined or as it came.
    ///
    /// A super-frame of UDP that the port refuses goes as the datagrams that it was joined from; if
    /// that goes well, it was the joining, and `datagrams` says so from then on.
    fn write<U: Underlay>(
        &self,
        output: &Output<'_, Place>,
        underlay: &U,
        datagrams: &Cell<bool>,
        watch: &mut Watch,
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        let joined = match output {
            Output::Single(place) => {
                self.write_single(*place, underlay, watch, lost);
                return;
            }
            Output::Joined(joined) => joined,
        };
        if !self.write_joined(joined, underlay, watch, lost) {
            let mut whole = true;
            for piece in joined.pieces {
                whole &= self.write_single(piece.handle, underlay, watch, lost);
            }
            datagrams.set(datagrams.get() && !whole);
        }
    }

    /// Gives the port a frame as it came; false if that failed.
    fn write_single<U: Underlay>(
        &self,
        place: Place,
        underlay: &U,
        watch: &mut Watch,
        lost: &mut impl FnMut(&Arc<Network>),
    ) -> bool {
        let frame = place.bytes(underlay, 0..place.len);
        let header = unfinished(frame, self.mtu_bytes()).unwrap_or(VnetHdr::NONE);
        let header = header.emit();
        let slices = [IoSlice::new(&header), IoSlice::new(frame)];
        let result = self.writer.port.write_frame(&slices);
        let written = result.is_ok();
        let load = (1, u64::from(place.len));
        self.settle(
            result,
            load,
            || place.source(underlay),
            &slices,
            watch,
            lost,
        );
        written
    }

    /// Gives the port a joined frame; false if that is a super-frame of UDP that it refused.
    fn write_joined<U: Underlay>(
        &self,
        joined: &Joined<'_, Place>,
        underlay: &U,
        watch: &mut Watch,
        lost: &mut impl FnMut(&Arc<Network>),
    ) -> bool {
        let vnet = joined.vnet.emit();
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        slices[0] = IoSlice::new(&vnet);
        slices[1] = IoSlice::new(joined.header);
        for (slice, piece) in slices[2..].iter_mut().zip(joined.pieces) {
            *slice = IoSlice::new(piece.handle.bytes(underlay, piece.payload.clone()));
        }
        let used = joined.pieces.len() + 2;
        debug_assert!(used <= MAX_SLICES, "the coalescer keeps to its limit");
        let used = &slices[..used.min(MAX_SLICES)];
        let result = self.writer.port.write_frame(used);
        let refused = matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EINVAL));
        if refused && joined.vnet.gso_type == virtio::GSO_UDP_L4 {
            return false;
        }
        let bytes = joined.pieces.iter().map(|p| u64::from(p.handle.len)).sum();
        let load = (joined.pieces.len() as u64, bytes);
        let source = || joined.pieces.first()?.handle.source(underlay);
        self.settle(result, load, source, used, watch, lost);
        true
    }

    /// Counts and notes what became of a frame that the port was given as `slices`, of which the
    /// first is its header. It stands for so many `frames` and `bytes` on the wire.
    fn settle(
        &self,
        result: io::Result<()>,
        (frames, bytes): (u64, u64),
        source: impl FnOnce() -> Option<IpAddr>,
        slices: &[IoSlice<'_>],
        watch: &mut Watch,
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        match result {
            Ok(()) => {
                self.counters.ingress_frames.add(frames);
                self.counters.ingress_bytes.add(bytes);
                if self.captured {
                    let sight = self.sight(frames, source(), &slices[1..]);
                    watch.record(&sight, Verdict::Delivered);
                }
            }
            Err(error) => {
                if error.raw_os_error() == Some(libc::EBADFD) {
                    lost(&self.writer.network);
                }
                self.drop_frame(reason_of(&error), frames, source(), &slices[1..], watch);
            }
        }
    }

    /// Counts and notes a frame that goes nowhere.
    #[cold]
    fn drop_frame(
        &self,
        reason: DropReason,
        frames: u64,
        source: Option<IpAddr>,
        parts: &[IoSlice<'_>],
        watch: &mut Watch,
    ) {
        self.counters.ingress_drops.add(reason, frames);
        let sight = self.sight(frames, source, parts);
        watch.dropped(reason, &sight);
        if self.captured {
            watch.record(&sight, Verdict::Dropped(reason));
        }
    }

    fn sight<'a>(&self, frames: u64, vtep: Option<IpAddr>, parts: &'a [IoSlice<'a>]) -> Sight<'a> {
        Sight {
            vni: Some(self.vni),
            direction: Direction::Ingress,
            vtep,
            frames,
            parts,
        }
    }

    fn mtu_bytes(&self) -> usize {
        self.writer.network.config().mtu_bytes as usize
    }
}

/// Notes a datagram that belongs to no network here.
#[cold]
fn note_stray(
    watch: &mut Watch,
    reason: DropReason,
    source: IpAddr,
    vni: Option<Vni>,
    frame: &[u8],
) {
    let sight = Sight {
        vni,
        direction: Direction::Ingress,
        vtep: Some(source),
        frames: 1,
        parts: &[IoSlice::new(frame)],
    };
    watch.dropped(reason, &sight);
}

/// Gives a port one whole frame that asks for no offload.
pub(super) fn write_plain(port: &impl Port, frame: &[u8]) -> Result<(), DropReason> {
    let header = VnetHdr::NONE.emit();
    port.write_frame(&[IoSlice::new(&header), IoSlice::new(frame)])
        .map_err(|error| reason_of(&error))
}

fn reason_of(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::PortFull,
        // It is not the port that is wrong.
        Some(libc::EINVAL) => DropReason::FrameMalformed,
        _ => DropReason::PortDown,
    }
}
