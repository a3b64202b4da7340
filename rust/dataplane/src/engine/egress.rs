//! Container to wire: one batch of frames from a port becomes few system calls on the underlay.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};

use super::counters::{LaneCounters, NetworkCounters};
use super::droplog::Sight;
use super::ingress::write_plain;
use super::narrow::Teller;
use super::segmentation::Segmentation;
use super::Network;
use crate::capture::{Direction, Verdict};
use crate::egress::{decide, Egress, ReplyBuffer};
use crate::io::{Area, FrameBatch, Memory, Message, Piece, Port, Underlay};
use crate::io::{MAX_MESSAGE_BYTES, MAX_SEGMENTS};
use crate::offload::{complete_checksum, Segments};
use crate::wire::virtio::VnetHdr;
use crate::wire::{flow_hash, vxlan, Vni};
use crate::DropReason;

/// What is handed to the underlay at once, at most.
const MAX_MESSAGES: usize = 256;
const MAX_PIECES: usize = 2048;
/// Room for the headers of segments; a message's worth and far more.
const HEADER_BYTES: usize = 128 * 1024;

/// A message and the socket that sends it.
#[derive(Clone, Copy, Debug)]
struct Queued {
    socket: usize,
    message: Message,
}

/// Memory for frames on their way out. Allocated once.
#[derive(Debug)]
pub(super) struct EgressPath {
    batch: FrameBatch,
    reply: ReplyBuffer,
    out: Outbox,
}

impl EgressPath {
    pub fn new(destination_port: u16, segmentation: Segmentation) -> Self {
        Self {
            batch: FrameBatch::default(),
            reply: ReplyBuffer::new(),
            out: Outbox::new(destination_port, segmentation),
        }
    }

    /// Reads a batch from a port. Errors as [`Port::read_batch`] has them.
    pub fn fill(&mut self, port: &impl Port) -> io::Result<()> {
        self.batch.clear();
        port.read_batch(&mut self.batch)
    }

    /// Sends the batch on, frame by frame in order; what fails is counted.
    pub fn forward<U: Underlay>(
        &mut self,
        network: &Network,
        worker: usize,
        port: &impl Port,
        underlay: &mut U,
        lane: &mut LaneCounters,
        now_ns: u64,
    ) {
        let Self { batch, reply, out } = self;
        let counters = network.counters(worker);
        let tables = network.snapshot();
        let vni = network.config().vni;
        let captured = lane.watch.is_capturing(vni);
        let narrow = lane.vteps.narrow();
        if captured {
            lane.watch.begin_batch();
        }
        let mut wire = Wire {
            underlay,
            vni,
            counters,
            lane,
        };
        for index in 0..batch.len() {
            if captured {
                let frames =
                    inspect(batch, index).map_or(1, |(header, frame)| segments_of(&header, frame));
                wire.lane.watch.expect(frames);
            }
            let mut destination = None;
            let outcome = match inspect(batch, index) {
                Err(reason) => Err(reason),
                Ok((mut header, frame)) => match decide(frame, &tables, reply) {
                    Egress::Unicast { vtep } => {
                        destination = Some(vtep);
                        let fits = narrow.as_ref().map_or(Ok(()), |narrow| {
                            let frame = &mut batch.slot_mut(index)[FrameBatch::FRAME_OFFSET..];
                            let teller = Teller {
                                port,
                                counters,
                                now_ns,
                            };
                            narrow.fit(vtep, &mut header, frame, teller)
                        });
                        let copies = fits.and_then(|()| {
                            out.push(batch, index, &header, vni, &[vtep], &mut wire)
                        });
                        copies.map(|_| Verdict::Forwarded)
                    }
                    Egress::Flood { vteps } if is_admitted(network, &header, frame, now_ns) => {
                        let copies = out.push(batch, index, &header, vni, vteps, &mut wire);
                        copies.map(|copies| {
                            counters.flood_frames.add(copies);
                            Verdict::Flooded(vteps.len().try_into().unwrap_or(u16::MAX))
                        })
                    }
                    Egress::Flood { .. } => Err(DropReason::FloodRate),
                    Egress::Reply => write_plain(port, reply.frame()).map(|()| {
                        counters.replies.add(1);
                        if captured {
                            wire.lane.watch.record_answer(vni, reply.frame());
                        }
                        Verdict::Answered
                    }),
                    Egress::Drop(reason) => Err(reason),
                },
            };
            if let Err(reason) = outcome {
                counters.egress_drops.add(reason, 1);
                wire.note_drop(reason, destination, frame_of(batch, index), 1);
            }
            if captured {
                let verdict = outcome.unwrap_or_else(Verdict::Dropped);
                wire.lane.watch.settle(index, verdict, destination);
            }
        }
        out.flush(batch, &mut wire);
        if captured {
            lane.watch.record_batch(vni, batch);
        }
    }
}

/// Whether the flood limiter lets a frame pass; a super-frame is as many as it has segments.
fn is_admitted(network: &Network, header: &VnetHdr, frame: &[u8], now_ns: u64) -> bool {
    (0..segments_of(header, frame)).all(|_| network.limiter().admit(now_ns))
}

/// How many frames on the wire a frame stands for.
fn segments_of(header: &VnetHdr, frame: &[u8]) -> usize {
    match Segments::new(header, frame) {
        Ok(segments) if header.is_gso() => segments.remaining(),
        _ => 1,
    }
}

/// What the port gave behind the header, whole or not.
fn frame_of(batch: &FrameBatch, index: usize) -> &[u8] {
    let slot = batch.slot(index);
    slot.get(FrameBatch::FRAME_OFFSET..).unwrap_or_default()
}

/// Splits what the port gave into header and frame.
fn inspect(batch: &FrameBatch, index: usize) -> Result<(VnetHdr, &[u8]), DropReason> {
    if batch.is_cut(index) {
        return Err(DropReason::FrameTooBig);
    }
    let slot = batch.slot(index);
    let header = VnetHdr::parse(slot).map_err(|_| DropReason::FrameMalformed)?;
    Ok((header, &slot[FrameBatch::FRAME_OFFSET..]))
}

/// Datagrams that wait to be sent with one call per socket.
#[derive(Debug)]
struct Outbox {
    destination_port: u16,
    segmentation: Segmentation,
    headers: Vec<u8>,
    headers_used: usize,
    pieces: Vec<Piece>,
    queued: Vec<Queued>,
    messages: Vec<Message>,
}

impl Outbox {
    fn new(destination_port: u16, segmentation: Segmentation) -> Self {
        Self {
            destination_port,
            segmentation,
            headers: vec![0; HEADER_BYTES],
            headers_used: 0,
            pieces: Vec::with_capacity(MAX_PIECES),
            queued: Vec::with_capacity(MAX_MESSAGES),
            messages: Vec::with_capacity(MAX_MESSAGES),
        }
    }

    /// Queues frame `index` of the batch for each VTEP; returns the number of datagrams.
    fn push<U: Underlay>(
        &mut self,
        batch: &mut FrameBatch,
        index: usize,
        header: &VnetHdr,
        vni: Vni,
        vteps: &[IpAddr],
        wire: &mut Wire<'_, U>,
    ) -> Result<u64, DropReason> {
        let frame = &mut batch.slot_mut(index)[FrameBatch::FRAME_OFFSET..];
        let hash = u64::from(flow_hash(frame));
        // Scales the hash to the number of sockets.
        let socket = ((hash * wire.underlay.send_sockets() as u64) >> 32) as usize;
        if header.is_gso() {
            return self.push_segments(batch, index, header, vni, vteps, socket, wire);
        }
        complete_checksum(header, frame)?;
        let slot = batch.slot_mut(index);
        let len = slot.len();
        // The virtio-net header has been read; the VXLAN header takes its place.
        let start = vxlan::emit(vni, &mut slot[..FrameBatch::FRAME_OFFSET])
            .map_err(|_| DropReason::FrameMalformed)?;
        let datagram = Piece {
            area: Area::Frames,
            offset: (FrameBatch::slot_offset(index) + start) as u32,
            len: (len - start) as u32,
        };
        for &vtep in vteps {
            if !self.has_room(0) {
                self.flush(batch, wire);
            }
            self.queue(&[datagram], vtep, socket);
        }
        Ok(vteps.len() as u64)
    }

    /// Cuts a super-frame into the segments that the container's stack left to us.
    #[allow(clippy::too_many_arguments)]
    fn push_segments<U: Underlay>(
        &mut self,
        batch: &FrameBatch,
        index: usize,
        header: &VnetHdr,
        vni: Vni,
        vteps: &[IpAddr],
        socket: usize,
        wire: &mut Wire<'_, U>,
    ) -> Result<u64, DropReason> {
        let frame = &batch.slot(index)[FrameBatch::FRAME_OFFSET..];
        let frame_offset = FrameBatch::slot_offset(index) + FrameBatch::FRAME_OFFSET;
        let whole = Segments::new(header, frame)?;
        let need = vxlan::HEADER_LEN + whole.header_len();
        let mut count = 0;
        for &vtep in vteps {
            let mut segments = whole.clone();
            loop {
                if !self.has_room(need) {
                    self.flush(batch, wire);
                }
                let room = &mut self.headers[self.headers_used..];
                let Some((header_len, payload)) =
                    segments.next_into(&mut room[vxlan::HEADER_LEN..])
                else {
                    break;
                };
                room[..vxlan::HEADER_LEN].copy_from_slice(&vxlan::header(vni));
                let header = Piece {
                    area: Area::Headers,
                    offset: self.headers_used as u32,
                    len: (vxlan::HEADER_LEN + header_len) as u32,
                };
                let payload = Piece {
                    area: Area::Frames,
                    offset: (frame_offset + payload.start) as u32,
                    len: payload.len() as u32,
                };
                self.headers_used += header.len as usize;
                self.queue(&[header, payload], vtep, socket);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Whether one more datagram fits, with `header_bytes` of headers.
    fn has_room(&self, header_bytes: usize) -> bool {
        self.queued.len() < MAX_MESSAGES
            && self.pieces.len() + 2 <= MAX_PIECES
            && self.headers_used + header_bytes <= HEADER_BYTES
    }

    /// Queues one datagram; it joins the one before it if the kernel can cut both from one message.
    fn queue(&mut self, pieces: &[Piece], vtep: IpAddr, socket: usize) {
        let bytes: u32 = pieces.iter().map(|piece| piece.len).sum();
        let destination = SocketAddr::new(vtep, self.destination_port);
        let first_piece = self.pieces.len() as u32;
        self.pieces.extend_from_slice(pieces);
        if self.segmentation.is_on() {
            if let Some(last) = self.queued.last_mut().filter(|last| last.socket == socket) {
                let last = &mut last.message;
                let all_equal = last.bytes == u32::from(last.segment) * u32::from(last.segments);
                if last.destination == destination
                    && all_equal
                    && bytes <= u32::from(last.segment)
                    && last.segments < MAX_SEGMENTS
                    && last.bytes + bytes <= MAX_MESSAGE_BYTES
                {
                    last.pieces += pieces.len() as u32;
                    last.bytes += bytes;
                    last.segments += 1;
                    return;
                }
            }
        }
        let message = Message {
            destination,
            first_piece,
            pieces: pieces.len() as u32,
            bytes,
            // No frame that fits its slot is longer.
            segment: u16::try_from(bytes).unwrap_or(u16::MAX),
            segments: 1,
        };
        self.queued.push(Queued { socket, message });
    }

    /// Sends all that is queued.
    fn flush<U: Underlay>(&mut self, batch: &FrameBatch, wire: &mut Wire<'_, U>) {
        // Within a socket, and so within a flow, the order stays.
        self.queued
            .sort_unstable_by_key(|queued| (queued.socket, queued.message.first_piece));
        for group in self.queued.chunk_by(|a, b| a.socket == b.socket) {
            self.messages.clear();
            self.messages
                .extend(group.iter().map(|queued| queued.message));
            let load = Load {
                socket: group[0].socket,
                memory: Memory {
                    frames: batch.memory(),
                    headers: &self.headers,
                },
                pieces: &self.pieces,
            };
            wire.send(&load, &self.messages, &self.segmentation);
        }
        self.queued.clear();
        self.pieces.clear();
        self.headers_used = 0;
    }
}

/// What the messages of one socket consist of.
#[derive(Clone, Copy)]
struct Load<'a> {
    socket: usize,
    memory: Memory<'a>,
    pieces: &'a [Piece],
}

/// The underlay, with the counters of what happens to it.
struct Wire<'a, U> {
    underlay: &'a mut U,
    vni: Vni,
    counters: &'a NetworkCounters,
    lane: &'a mut LaneCounters,
}

impl<U: Underlay> Wire<'_, U> {
    /// Sends messages in order and counts; returns how many datagrams were sent.
    fn send(&mut self, load: &Load<'_>, messages: &[Message], segmentation: &Segmentation) -> u64 {
        let mut rest = messages;
        let mut sent = 0;
        while let Some(first) = rest.first() {
            self.lane.sockets.sent_syscalls.add(1);
            let result = self
                .underlay
                .send_batch(load.socket, load.memory, load.pieces, rest);
            let done = match result {
                Ok(taken) => {
                    let taken = taken.clamp(1, rest.len());
                    sent += self.count_sent(&rest[..taken]);
                    taken
                }
                Err(error) if first.segments > 1 && may_refuse_segmentation(&error) => {
                    sent += self.send_cut(load, first, segmentation);
                    1
                }
                Err(error) => {
                    let reason = reason_of(&error);
                    // A full socket is full for those behind, too.
                    let full = reason == DropReason::UnderlayFull;
                    let dropped = if full { rest } else { &rest[..1] };
                    self.counters
                        .egress_drops
                        .add(reason, datagrams_of(dropped));
                    self.note_unsent(load, dropped, reason);
                    dropped.len()
                }
            };
            rest = &rest[done..];
        }
        sent
    }

    /// Sends the datagrams of one message by themselves, after the kernel refused to cut it.
    ///
    /// If that goes well, it was the cutting, and it is not asked for again.
    fn send_cut(&mut self, load: &Load<'_>, message: &Message, segmentation: &Segmentation) -> u64 {
        let mut cut = [*message; MAX_SEGMENTS as usize];
        let mut count = 0;
        let mut next_piece = message.first_piece;
        let end = message.first_piece + message.pieces;
        while next_piece < end && count < cut.len() {
            let datagram = &mut cut[count];
            datagram.first_piece = next_piece;
            datagram.bytes = 0;
            // Datagrams begin where pieces begin: that is how `queue` builds messages.
            while next_piece < end && datagram.bytes < u32::from(message.segment) {
                datagram.bytes += load.pieces[next_piece as usize].len;
                next_piece += 1;
            }
            datagram.pieces = next_piece - datagram.first_piece;
            // Not more than that of the whole.
            datagram.segment = datagram.bytes as u16;
            datagram.segments = 1;
            count += 1;
        }
        // No message of one datagram is cut.
        let sent = self.send(load, &cut[..count], segmentation);
        if sent == u64::from(message.segments) {
            segmentation.switch(false);
        }
        sent
    }

    /// Notes messages that the underlay did not take, and that their frames were dropped.
    #[cold]
    fn note_unsent(&mut self, load: &Load<'_>, messages: &[Message], reason: DropReason) {
        for message in messages {
            let vtep = message.destination.ip();
            let first = message.first_piece as usize;
            let pieces = &load.pieces[first..first + message.pieces as usize];
            for piece in pieces.iter().filter(|piece| piece.area == Area::Frames) {
                let index = FrameBatch::slot_at(piece.offset as usize);
                let watch = &mut self.lane.watch;
                watch.settle(index, Verdict::Dropped(reason), Some(vtep));
            }
            // All are of one flow's socket and, but for the last, of one size: the first tells.
            if let Some(datagram) = pieces.first().map(|piece| load.memory.bytes(piece)) {
                let frame = datagram.get(vxlan::HEADER_LEN..).unwrap_or_default();
                self.note_drop(reason, Some(vtep), frame, message.segments.into());
            }
        }
    }

    fn note_drop(&mut self, reason: DropReason, vtep: Option<IpAddr>, frame: &[u8], frames: u64) {
        let sight = Sight {
            vni: Some(self.vni),
            direction: Direction::Egress,
            vtep,
            frames,
            parts: &[IoSlice::new(frame)],
        };
        self.lane.watch.dropped(reason, &sight);
    }

    fn count_sent(&mut self, messages: &[Message]) -> u64 {
        let mut datagrams = 0;
        let mut bytes = 0;
        for message in messages {
            let (count, octets) = (u64::from(message.segments), u64::from(message.bytes));
            self.lane
                .vteps
                .of(message.destination.ip())
                .sent(count, octets);
            datagrams += count;
            bytes += octets;
        }
        let sockets = &self.lane.sockets;
        sockets.sent_batches.add(1);
        sockets.sent_datagrams.add(datagrams);
        sockets.sent_bytes.add(bytes);
        self.counters.egress_frames.add(datagrams);
        self.counters
            .egress_bytes
            .add(bytes - datagrams * vxlan::HEADER_LEN as u64);
        datagrams
    }
}

fn datagrams_of(messages: &[Message]) -> u64 {
    messages.iter().map(|m| u64::from(m.segments)).sum()
}

/// Whether the error can mean that the kernel cannot cut messages, here or at all.
fn may_refuse_segmentation(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::ENOPROTOOPT | libc::EMSGSIZE)
    )
}

fn reason_of(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => DropReason::UnderlayFull,
        Some(libc::EMSGSIZE) => DropReason::UnderlayMtu,
        _ => DropReason::UnderlayError,
    }
}
