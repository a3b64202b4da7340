//! Many datagrams per system call: recvmmsg with UDP_GRO, sendmmsg with UDP_SEGMENT.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;

use super::check;
use super::socket::RawAddress;

/// Room for one message on receipt: the longest UDP payload, rounded up to whole pages.
pub const RECEIVE_BYTES: usize = 65536;
/// From one message's room to the next. At a multiple of 64 KiB the short datagrams of a batch would
/// all want the same few sets of the processor's caches, and push each other out before they are read.
const RECEIVE_STRIDE: usize = RECEIVE_BYTES + 1600;

/// Room for the one control message we send or receive: an int, with its header and padding.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 32]);

/// The memory that pieces lie in.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    /// Frames as they were read.
    pub frames: &'a [u8],
    /// Headers that were made.
    pub headers: &'a [u8],
}

impl<'a> Memory<'a> {
    /// The bytes of a piece.
    ///
    /// # Panics
    ///
    /// If it lies outside its area.
    #[must_use]
    pub fn bytes(&self, piece: &Piece) -> &'a [u8] {
        let area = match piece.area {
            Area::Frames => self.frames,
            Area::Headers => self.headers,
        };
        &area[piece.offset as usize..][..piece.len as usize]
    }
}

/// One of the two areas of [`Memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// [`Memory::frames`].
    Frames,
    /// [`Memory::headers`].
    Headers,
}

/// A run of bytes in the [`Memory`] given to [`Sender::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where to look.
    pub area: Area,
    /// Where it begins there.
    pub offset: u32,
    /// How many bytes it has.
    pub len: u32,
}

/// One message to send: a datagram, or several equal ones that the kernel cuts (UDP_SEGMENT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub destination: SocketAddr,
    /// Index of the first piece of the payload.
    pub first_piece: u32,
    /// Number of pieces.
    pub pieces: u32,
    /// Bytes of all pieces together.
    pub bytes: u32,
    /// Payload bytes of each datagram but the last, which may be shorter.
    pub segment: u16,
    /// Number of datagrams. If it is 1, the kernel is not asked to cut.
    pub segments: u16,
}

/// Memory in which the kernel's description of a batch to send is built.
pub struct Sender {
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    addresses: Vec<RawAddress>,
    controls: Vec<Control>,
}

// SAFETY: The pointers in `headers` and `slices` are written anew by each `send` before the kernel
// reads them, and are never read otherwise.
unsafe impl Send for Sender {}

impl std::fmt::Debug for Sender {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    /// Makes room for `messages` messages with `pieces` pieces together.
    #[must_use]
    pub fn new(messages: usize, pieces: usize) -> Self {
        Self {
            headers: Vec::with_capacity(messages),
            slices: Vec::with_capacity(pieces),
            addresses: Vec::with_capacity(messages),
            controls: Vec::with_capacity(messages),
        }
    }

    /// Sends `messages`, whose pieces lie in `memory`, in their order.
    ///
    /// Returns how many messages were taken, at least one; those after it were not tried.
    ///
    /// # Errors
    ///
    /// That of the first message; none was taken then.
    ///
    /// # Panics
    ///
    /// If a piece lies outside `memory` or a message names a piece that is not there.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        memory: Memory<'_>,
        pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize> {
        self.slices.clear();
        self.addresses.clear();
        self.controls.clear();
        self.headers.clear();
        // First all that is pointed to, so that no vector grows while there are pointers into it.
        for message in messages {
            let first = message.first_piece as usize;
            for piece in &pieces[first..first + message.pieces as usize] {
                let bytes = memory.bytes(piece);
                self.slices.push(libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                });
            }
            self.addresses.push(RawAddress::new(message.destination).0);
            self.controls.push(segment_control(message.segment));
        }
        let mut slice = 0;
        for (index, message) in messages.iter().enumerate() {
            // SAFETY: `msghdr` is made of integers and pointers, for which all zero is a value.
            let mut header: libc::msghdr = unsafe { zeroed() };
            header.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_namelen = RawAddress::new(message.destination).1;
            header.msg_iov = self.slices[slice..].as_mut_ptr();
            header.msg_iovlen = message.pieces as _;
            slice += message.pieces as usize;
            if message.segments > 1 {
                header.msg_control = self.controls[index].0.as_mut_ptr().cast();
                header.msg_controllen = control_space(size_of::<u16>()) as _;
            }
            self.headers.push(libc::mmsghdr {
                msg_hdr: header,
                msg_len: 0,
            });
        }
        // SAFETY: Each header points to an address, slices and control of vectors that are not
        // touched until the call returns, and each slice to bytes of `memory`, borrowed that long.
        // The kernel only reads them, and writes `msg_len` of the headers.
        let sent = check(unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                0,
            )
        })?;
        Ok(sent as usize)
    }
}

/// Builds the control message that asks for segments of `segment` bytes.
fn segment_control(segment: u16) -> Control {
    let mut control = Control([0; 32]);
    let header = libc::cmsghdr {
        // SAFETY: CMSG_LEN only computes.
        cmsg_len: unsafe { libc::CMSG_LEN(size_of::<u16>() as libc::c_uint) } as _,
        cmsg_level: libc::SOL_UDP,
        cmsg_type: libc::UDP_SEGMENT,
    };
    // SAFETY: `control` is aligned for a header and has room for it; CMSG_DATA only computes.
    unsafe { control.0.as_mut_ptr().cast::<libc::cmsghdr>().write(header) };
    // SAFETY: CMSG_DATA only computes, from a header that lies in `control`.
    let data = unsafe { libc::CMSG_DATA(control.0.as_ptr().cast()) };
    // SAFETY: `data` points behind the header into `control`, which has room for two bytes there.
    unsafe { data.cast::<u16>().write_unaligned(segment) };
    control
}

fn control_space(len: usize) -> usize {
    // SAFETY: CMSG_SPACE only computes.
    unsafe { libc::CMSG_SPACE(len as libc::c_uint) as usize }
}

/// What one message on receipt holds: a datagram, or a run of equal ones (UDP_GRO).
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Who sent it.
    pub source: IpAddr,
    /// UDP payloads, one after another.
    pub payload: &'a [u8],
    /// Bytes of each datagram but the last, which may be shorter; at least 1.
    pub segment: usize,
    /// The kernel had more than fits; only of messages that no UDP can carry.
    pub truncated: bool,
}

/// Memory for a batch of received messages, with the kernel's description of it.
pub struct Receiver {
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    addresses: Vec<RawAddress>,
    controls: Vec<Control>,
    buffers: Vec<u8>,
    received: usize,
}

// SAFETY: The pointers in `headers` and `slices` point into vectors of the same struct, which are
// never resized, so that they stay where they are when the struct moves.
unsafe impl Send for Receiver {}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Receiver")
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// Makes room for `messages` messages of up to [`RECEIVE_BYTES`] each.
    #[must_use]
    pub fn new(messages: usize) -> Self {
        let mut receiver = Self {
            headers: Vec::with_capacity(messages),
            slices: Vec::with_capacity(messages),
            addresses: vec![RawAddress::empty(); messages],
            controls: vec![Control([0; 32]); messages],
            buffers: vec![0; messages * RECEIVE_STRIDE],
            received: 0,
        };
        for buffer in receiver.buffers.chunks_exact_mut(RECEIVE_STRIDE) {
            receiver.slices.push(libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: RECEIVE_BYTES,
            });
        }
        for index in 0..messages {
            // SAFETY: `msghdr` is made of integers and pointers, for which all zero is a value.
            let mut header: libc::msghdr = unsafe { zeroed() };
            header.msg_name = (&raw mut receiver.addresses[index]).cast();
            header.msg_iov = &raw mut receiver.slices[index];
            header.msg_iovlen = 1;
            header.msg_control = receiver.controls[index].0.as_mut_ptr().cast();
            receiver.headers.push(libc::mmsghdr {
                msg_hdr: header,
                msg_len: 0,
            });
        }
        receiver
    }

    /// Takes what waits at `socket`, up to the room there is, without waiting.
    ///
    /// Returns the number of messages, at least one.
    ///
    /// # Errors
    ///
    /// EAGAIN if nothing waits; else what the socket reports, which is over with that report.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        for header in &mut self.headers {
            let header = &mut header.msg_hdr;
            header.msg_namelen = size_of::<RawAddress>() as libc::socklen_t;
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
        self.received = 0;
        // SAFETY: Each header points to an address, a slice and a control of vectors of this
        // struct, which is exclusively borrowed, with the lengths that they have; each slice to
        // its own part of `buffers`. No timeout is given.
        let received = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                null_mut(),
            )
        })?;
        self.received = received as usize;
        Ok(self.received)
    }

    /// Message `index` of the last [`Receiver::receive`]; None for those without an IP source.
    #[must_use]
    pub fn message(&self, index: usize) -> Option<Received<'_>> {
        let header = self.headers[..self.received].get(index)?;
        let start = index * RECEIVE_STRIDE;
        let payload = &self.buffers[start..start + (header.msg_len as usize).min(RECEIVE_BYTES)];
        let segment = segment_size(&header.msg_hdr)
            .filter(|&size| size > 0)
            .unwrap_or(payload.len().max(1));
        Some(Received {
            source: self.addresses[index].ip()?,
            payload,
            segment,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }
}

/// The value of the UDP_GRO control message, if there is one.
fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: The header is one that the kernel has filled, with a control buffer that is alive.
    let control = unsafe { libc::CMSG_FIRSTHDR(header) };
    if control.is_null() {
        return None;
    }
    // SAFETY: Not null, so it points to a whole header in the control buffer, which is aligned.
    let found = unsafe { control.read() };
    if found.cmsg_level != libc::SOL_UDP || found.cmsg_type != libc::UDP_GRO {
        return None;
    }
    // SAFETY: CMSG_DATA only computes.
    let data = unsafe { libc::CMSG_DATA(control) };
    // SAFETY: The kernel puts an int behind the header of this type.
    let size = unsafe { data.cast::<libc::c_int>().read_unaligned() };
    usize::try_from(size).ok()
}
