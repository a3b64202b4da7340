//! Where frames and datagrams come from and go to.
//!
//! [`Port`] is one queue of an overlay network's TAP, [`Underlay`] the UDP sockets of one worker.
//! Both move whole batches and never wait; that is the engine's task. [`mem`] has doubles of both.

mod batch;
pub mod mem;
mod tap;
mod udp;

use std::io;

pub use batch::FrameBatch;
pub(crate) use tap::check_mtu;
pub use tap::{ensure_offloads, open_tap, TapOffloads, TapQueue};
pub(crate) use udp::{can_segment, ReceiveDrops};
pub use udp::{ensure_receive_offload, open_underlay, UdpUnderlay};

pub use crate::sys::descriptor::{adopt, borrow};
pub use crate::sys::message::{Area, Memory, Message, Piece, Received};

/// Most datagrams that one [`Message`] may have; older kernels refuse more.
pub const MAX_SEGMENTS: u16 = 64;
/// Most payload bytes of one [`Message`]; with headers it must stay below 64 KiB.
pub const MAX_MESSAGE_BYTES: u32 = 65_000;

/// One queue of a port. Frames carry a virtio-net header in front, in both directions.
pub trait Port: Clone {
    /// Moves waiting frames into `batch` until it is full or none waits.
    ///
    /// # Errors
    ///
    /// Only if nothing was moved: EAGAIN if none waits, EBADFD if the port was deleted.
    fn read_batch(&self, batch: &mut FrameBatch) -> io::Result<()>;

    /// Gives the container one frame, scattered over `pieces`; the first begins with the header.
    ///
    /// # Errors
    ///
    /// EAGAIN if it takes no more, EIO if the link is down, EBADFD if the port was deleted.
    fn write_frame(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<()>;
}

/// The sockets of one worker: one to receive, several to send with different source ports.
pub trait Underlay {
    /// Number of sockets to send with, at least one.
    fn send_sockets(&self) -> usize;

    /// Sends messages by one socket, in their order. Their pieces lie in `memory`.
    ///
    /// Returns how many were taken, at least one; those after it were not tried.
    ///
    /// # Errors
    ///
    /// That of the first message, of which nothing was sent.
    fn send_batch(
        &mut self,
        socket: usize,
        memory: Memory<'_>,
        pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize>;

    /// Sends one datagram that no router may fragment, from the port that receives.
    ///
    /// # Errors
    ///
    /// EMSGSIZE if it is too long for this host's own device.
    fn send_whole(&mut self, destination: std::net::SocketAddr, payload: &[u8]) -> io::Result<()>;

    /// Takes what waits, up to the room there is, and returns the number of messages.
    ///
    /// # Errors
    ///
    /// EAGAIN if nothing waits.
    fn recv_batch(&mut self) -> io::Result<usize>;

    /// Message `index` of the last [`Underlay::recv_batch`].
    fn received(&self, index: usize) -> Option<Received<'_>>;
}

/// Why a port or the underlay could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A value that the kernel would refuse or misunderstand.
    #[error("{0}")]
    Invalid(String),
    /// Somebody else has the UDP port.
    #[error(
        "UDP port {port} of {address} is in use by another program; end that program \
         (`ss -lunp sport = :{port}` names it) or choose another port"
    )]
    PortTaken {
        /// The VTEP's address.
        address: std::net::IpAddr,
        /// The port.
        port: u16,
    },
    /// A system call was refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl OpenError {
    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
