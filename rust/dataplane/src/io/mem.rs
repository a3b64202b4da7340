//! Ports and underlays in memory: what a test puts in comes out, and nothing moves by itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use crate::wire::virtio::{self, VnetHdr};

use super::{FrameBatch, Memory, Message, Piece, Port, Received, Underlay};

/// A port in memory; clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemPort(Rc<RefCell<PortState>>);

#[derive(Debug, Default)]
struct PortState {
    from_container: VecDeque<Vec<u8>>,
    to_container: Vec<Vec<u8>>,
    read_error: Option<i32>,
    write_error: Option<i32>,
    refuses_datagrams: bool,
    refusals: usize,
}

impl MemPort {
    /// Queues a frame as the container sends it; its virtio-net header goes first.
    pub fn inject(&self, header: [u8; FrameBatch::FRAME_OFFSET], frame: &[u8]) {
        let bytes = [header.as_slice(), frame].concat();
        self.0.borrow_mut().from_container.push_back(bytes);
    }

    /// Takes all that the container has got, headers first.
    #[must_use]
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.borrow_mut().to_container)
    }

    /// Lets every later read fail with this `errno` once nothing waits, or no more.
    pub fn fail_reads(&self, errno: Option<i32>) {
        self.0.borrow_mut().read_error = errno;
    }

    /// Lets every later write fail with this `errno`, or no more.
    pub fn fail_writes(&self, errno: Option<i32>) {
        self.0.borrow_mut().write_error = errno;
    }

    /// Refuses super-frames of UDP with EINVAL, as a TAP before Linux 6.2 does.
    pub fn refuse_datagrams(&self) {
        self.0.borrow_mut().refuses_datagrams = true;
    }

    /// How many super-frames of UDP were refused.
    #[must_use]
    pub fn refusals(&self) -> usize {
        self.0.borrow().refusals
    }
}

impl Port for MemPort {
    fn read_batch(&self, batch: &mut FrameBatch) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        while let Some(slot) = batch.free_slot() {
            let Some(frame) = state.from_container.pop_front() else {
                break;
            };
            let len = frame.len().min(slot.len());
            slot[..len].copy_from_slice(&frame[..len]);
            batch.push(len);
        }
        if batch.is_empty() {
            let errno = state.read_error.unwrap_or(libc::EAGAIN);
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(())
    }

    fn write_frame(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if let Some(errno) = state.write_error {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let frame: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| piece.iter().copied())
            .collect();
        let datagrams = VnetHdr::parse(&frame).is_ok_and(|h| h.gso_type == virtio::GSO_UDP_L4);
        if state.refuses_datagrams && datagrams {
            state.refusals += 1;
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        state.to_container.push(frame);
        Ok(())
    }
}

/// The [`Datagram::socket`] of what no router may fragment.
pub const WHOLE: usize = usize::MAX;

/// A datagram on the memory underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Index of the socket that sent it.
    pub socket: usize,
    /// Where it was sent to.
    pub destination: SocketAddr,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

/// An underlay in memory; clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemUnderlay {
    state: Rc<RefCell<UnderlayState>>,
    batch: Vec<(IpAddr, Vec<u8>, usize)>,
}

#[derive(Debug, Default)]
struct UnderlayState {
    arriving: VecDeque<(IpAddr, Vec<u8>, usize)>,
    sent: Vec<Datagram>,
    send_calls: usize,
    errors: VecDeque<Option<i32>>,
    refuses_segmentation: Option<i32>,
    mtu_bytes: Option<usize>,
}

impl MemUnderlay {
    /// Queues a run of datagrams of `segment` bytes (the last may be shorter) as one message.
    pub fn inject(&self, source: IpAddr, run: &[u8], segment: usize) {
        let mut state = self.state.borrow_mut();
        state.arriving.push_back((source, run.to_vec(), segment));
    }

    /// Takes all datagrams that were sent, cut as the kernel would cut them.
    #[must_use]
    pub fn take(&self) -> Vec<Datagram> {
        std::mem::take(&mut self.state.borrow_mut().sent)
    }

    /// Number of send calls so far.
    #[must_use]
    pub fn send_calls(&self) -> usize {
        self.state.borrow().send_calls
    }

    /// Decides on the next messages, one by one: None is sent, an `errno` is refused.
    pub fn script(&self, outcomes: impl IntoIterator<Item = Option<i32>>) {
        self.state.borrow_mut().errors.extend(outcomes);
    }

    /// Refuses messages of more than one datagram with this `errno`, as a kernel without
    /// UDP_SEGMENT does.
    pub fn refuse_segmentation(&self, errno: i32) {
        self.state.borrow_mut().refuses_segmentation = Some(errno);
    }

    /// Refuses datagrams of more than `mtu_bytes` of payload: EINVAL in a run, EMSGSIZE alone.
    pub fn limit(&self, mtu_bytes: usize) {
        self.state.borrow_mut().mtu_bytes = Some(mtu_bytes);
    }
}

impl UnderlayState {
    fn refusal(&mut self, message: &Message) -> Option<i32> {
        if let Some(Some(errno)) = self.errors.pop_front() {
            return Some(errno);
        }
        let run = message.segments > 1;
        if run && self.refuses_segmentation.is_some() {
            return self.refuses_segmentation;
        }
        match self.mtu_bytes {
            Some(limit) if usize::from(message.segment) > limit => {
                Some(if run { libc::EINVAL } else { libc::EMSGSIZE })
            }
            _ => None,
        }
    }
}

impl Underlay for MemUnderlay {
    fn send_sockets(&self) -> usize {
        8
    }

    fn send_batch(
        &mut self,
        socket: usize,
        memory: Memory<'_>,
        pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize> {
        let mut state = self.state.borrow_mut();
        state.send_calls += 1;
        for (index, message) in messages.iter().enumerate() {
            if let Some(errno) = state.refusal(message) {
                if index > 0 {
                    // Like sendmmsg: the next call, which begins with this message, reports it.
                    state.errors.push_front(Some(errno));
                    return Ok(index);
                }
                return Err(io::Error::from_raw_os_error(errno));
            }
            let first = message.first_piece as usize;
            let payload: Vec<u8> = pieces[first..first + message.pieces as usize]
                .iter()
                .flat_map(|piece| memory.bytes(piece))
                .copied()
                .collect();
            for datagram in payload.chunks(usize::from(message.segment)) {
                state.sent.push(Datagram {
                    socket,
                    destination: message.destination,
                    payload: datagram.to_vec(),
                });
            }
        }
        Ok(messages.len())
    }

    fn send_whole(&mut self, destination: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        if state.mtu_bytes.is_some_and(|limit| payload.len() > limit) {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        state.sent.push(Datagram {
            socket: WHOLE,
            destination,
            payload: payload.to_vec(),
        });
        Ok(())
    }

    fn recv_batch(&mut self) -> io::Result<usize> {
        self.batch.clear();
        let mut state = self.state.borrow_mut();
        let room = state.arriving.len().min(32);
        self.batch.extend(state.arriving.drain(..room));
        if self.batch.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        Ok(self.batch.len())
    }

    fn received(&self, index: usize) -> Option<Received<'_>> {
        let (source, payload, segment) = self.batch.get(index)?;
        Some(Received {
            source: *source,
            payload,
            segment: *segment,
            truncated: false,
        })
    }
}
