//! Wire to container: one batch of datagrams becomes writes to the ports.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use ahash::AHashMap;
use arc_swap::Guard;

use super::counters::{LaneCounters, NetworkCounters};
use super::lane::Writer;
use super::Network;
use crate::ingress::{decide, Ingress};
use crate::io::{Port, Underlay};
use crate::offload::{datagram_super_frame, unfinished};
use crate::offload::{Coalescer, Joined, Output, Segments, MAX_HEADER_LEN, MAX_PIECES};
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
    pub fn deliver<P: Port, U: Underlay>(
        &mut self,
        messages: usize,
        worker: usize,
        underlay: &U,
        writers: &AHashMap<Vni, Writer<P>>,
        lane: &mut LaneCounters,
        mut lost: impl FnMut(&Arc<Network>),
    ) {
        let LaneCounters { sockets, vteps } = lane;
        let mut current: Option<Current<'_, P>> = None;
        for message in 0..messages {
            let Some(received) = underlay.received(message) else {
                sockets.drops.add(DropReason::Truncated, 1);
                continue;
            };
            if received.truncated || received.payload.is_empty() {
                sockets.drops.add(DropReason::Truncated, 1);
                continue;
            }
            let source = received.source.to_canonical();
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
                        continue;
                    }
                };
                if current.as_ref().is_none_or(|current| current.vni != vni) {
                    if let Some(before) = current.take() {
                        self.flush(&before, underlay, &mut lost);
                    }
                    current = writers.get(&vni).map(|writer| Current {
                        vni,
                        writer,
                        tables: writer.network.snapshot(),
                        counters: writer.network.counters(worker),
                    });
                }
                let Some(current) = &current else {
                    sockets.drops.add(DropReason::VniUnknown, 1);
                    continue;
                };
                let frame = &datagram[vxlan::HEADER_LEN..];
                if let Ingress::Drop(reason) = decide(frame, source, &current.tables) {
                    current.counters.ingress_drops.add(reason, 1);
                    continue;
                }
                admitted += 1;
                admitted_bytes += datagram.len() as u64;
                if let Some(segments) = whole.clone() {
                    // What came before it goes first.
                    self.flush(current, underlay, &mut lost);
                    current.write_segments(segments, frame, &mut self.header, &mut lost);
                    continue;
                }
                if current.writer.network.is_too_big(frame, frame.len()) {
                    // What came before it goes first.
                    self.flush(current, underlay, &mut lost);
                    current.write_big(frame, &mut lost);
                    continue;
                }
                let place = Place {
                    message: message as u32,
                    offset: (index * received.segment + vxlan::HEADER_LEN) as u32,
                    len: frame.len() as u32,
                };
                self.coalescer.push(frame, place, |output| {
                    current.write(&output, underlay, &self.datagrams, &mut lost);
                });
            }
            // Strangers are not counted: each would get counters of its own.
            if admitted > 0 {
                vteps.of(source).received(admitted, admitted_bytes);
            }
        }
        if let Some(last) = current {
            self.flush(&last, underlay, &mut lost);
        }
        if !self.datagrams.get() {
            self.coalescer.leave_datagrams();
        }
    }

    fn flush<P: Port, U: Underlay>(
        &mut self,
        current: &Current<'_, P>,
        underlay: &U,
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        self.coalescer
            .flush(|output| current.write(&output, underlay, &self.datagrams, lost));
    }
}

impl<P: Port> Current<'_, P> {
    /// Gives the port a frame that is longer than the MTU, if it is a super-frame.
    fn write_big(&self, frame: &[u8], lost: &mut impl FnMut(&Arc<Network>)) {
        let Some(header) = unfinished(frame, self.mtu_bytes()) else {
            self.counters.ingress_drops.add(DropReason::FrameTooBig, 1);
            return;
        };
        let header = header.emit();
        let slices = [IoSlice::new(&header), IoSlice::new(frame)];
        let result = self.writer.port.write_frame(&slices);
        self.count(result, 1, frame.len() as u64, lost);
    }

    /// Gives the port the segments of a super-frame one by one: TAPs before Linux 6.2 take no such
    /// super-frame of UDP.
    fn write_segments(
        &self,
        mut segments: Segments<'_>,
        frame: &[u8],
        room: &mut [u8; MAX_HEADER_LEN],
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        let frame_len = segments.frame_len();
        if self.writer.network.is_too_big(frame, frame_len) {
            let count = segments.remaining() as u64;
            self.counters
                .ingress_drops
                .add(DropReason::FrameTooBig, count);
            return;
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
            self.count(result, 1, len as u64, lost);
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
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        let joined = match output {
            Output::Single(place) => {
                let result = self.write_single(*place, underlay);
                return self.count(result, 1, u64::from(place.len), lost);
            }
            Output::Joined(joined) => joined,
        };
        let result = self.write_joined(joined, underlay);
        let refused = matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EINVAL));
        if refused && joined.vnet.gso_type == virtio::GSO_UDP_L4 {
            let mut whole = true;
            for piece in joined.pieces {
                let result = self.write_single(piece.handle, underlay);
                whole &= result.is_ok();
                self.count(result, 1, u64::from(piece.handle.len), lost);
            }
            datagrams.set(datagrams.get() && !whole);
            return;
        }
        let bytes = joined.pieces.iter().map(|p| u64::from(p.handle.len)).sum();
        self.count(result, joined.pieces.len() as u64, bytes, lost);
    }

    fn write_single<U: Underlay>(&self, place: Place, underlay: &U) -> io::Result<()> {
        let frame = place.bytes(underlay, 0..place.len);
        let header = unfinished(frame, self.mtu_bytes()).unwrap_or(VnetHdr::NONE);
        let header = header.emit();
        let slices = [IoSlice::new(&header), IoSlice::new(frame)];
        self.writer.port.write_frame(&slices)
    }

    fn write_joined<U: Underlay>(
        &self,
        joined: &Joined<'_, Place>,
        underlay: &U,
    ) -> io::Result<()> {
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
        self.writer.port.write_frame(used)
    }

    fn count(
        &self,
        result: io::Result<()>,
        frames: u64,
        bytes: u64,
        lost: &mut impl FnMut(&Arc<Network>),
    ) {
        match result {
            Ok(()) => {
                self.counters.ingress_frames.add(frames);
                self.counters.ingress_bytes.add(bytes);
            }
            Err(error) => {
                if error.raw_os_error() == Some(libc::EBADFD) {
                    lost(&self.writer.network);
                }
                self.counters.ingress_drops.add(reason_of(&error), frames);
            }
        }
    }

    fn mtu_bytes(&self) -> usize {
        self.writer.network.config().mtu_bytes as usize
    }
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
