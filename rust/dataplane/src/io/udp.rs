//! The underlay as UDP sockets.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Memory, Message, OpenError, Piece, Received, Underlay};
use crate::sys::message::{Receiver, Sender};
use crate::sys::socket;

/// Source ports lie in 49152-65535 (RFC 7348, section 4.1)...
const FIRST_PORT: u16 = 49_152;
/// ...and the search for free ones begins above what Linux gives out by itself (32768-60999).
const FIRST_CANDIDATE: u16 = 61_440;
/// What every socket may hold back, in bytes, if the kernel lets us.
const BUFFER_BYTES: libc::c_int = 4 << 20;
/// Messages taken at once; each may be a run of up to 64 datagrams.
const RECEIVE_MESSAGES: usize = 32;
/// Messages and pieces handed over at once, at most; there is room for more.
const SEND_MESSAGES: usize = 256;
const SEND_PIECES: usize = 2048;

/// The sockets of one worker; the sending ones are shared by all.
#[derive(Debug)]
pub struct UdpUnderlay {
    receive: OwnedFd,
    send: Arc<[OwnedFd]>,
    receiver: Receiver,
    sender: Sender,
}

impl UdpUnderlay {
    /// Takes over sockets as [`open_underlay`] opened them. `send` is not empty.
    ///
    /// # Errors
    ///
    /// What setting an option of `receive` reports.
    pub fn new(receive: OwnedFd, send: Arc<[OwnedFd]>) -> io::Result<Self> {
        ensure_whole(receive.as_fd())?;
        Ok(Self {
            receive,
            send,
            receiver: Receiver::new(RECEIVE_MESSAGES),
            sender: Sender::new(SEND_MESSAGES, SEND_PIECES),
        })
    }
}

/// Counts what the kernel drops at a socket before anybody receives it.
#[derive(Debug)]
pub(crate) struct ReceiveDrops {
    socket: OwnedFd,
    last: Cell<u32>,
    sum: Cell<u64>,
}

impl ReceiveDrops {
    /// Begins with zero at `receive`, of which it keeps a duplicate.
    pub fn new(receive: BorrowedFd<'_>) -> io::Result<Self> {
        let socket = receive.try_clone_to_owned()?;
        let last = Cell::new(socket::drops(receive).unwrap_or_default());
        let sum = Cell::new(0);
        Ok(Self { socket, last, sum })
    }

    /// How many there were since; zero if the kernel does not tell.
    pub fn count(&self) -> u64 {
        if let Ok(now) = socket::drops(self.socket.as_fd()) {
            let new = now.wrapping_sub(self.last.replace(now));
            self.sum.set(self.sum.get() + u64::from(new));
        }
        self.sum.get()
    }
}

impl AsFd for UdpUnderlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receive.as_fd()
    }
}

impl Underlay for UdpUnderlay {
    fn send_sockets(&self) -> usize {
        self.send.len()
    }

    fn send_batch(
        &mut self,
        socket: usize,
        memory: Memory<'_>,
        pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize> {
        loop {
            let socket = self.send[socket].as_fd();
            match self.sender.send(socket, memory, pieces, messages) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn send_whole(&mut self, destination: SocketAddr, payload: &[u8]) -> io::Result<()> {
        socket::send_to(self.receive.as_fd(), payload, destination)
    }

    fn recv_batch(&mut self) -> io::Result<usize> {
        loop {
            match self.receiver.receive(self.receive.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn received(&self, index: usize) -> Option<Received<'_>> {
        self.receiver.message(index)
    }
}

/// Opens the UDP sockets of the VTEP `address`: `workers` to receive on `port`, then
/// `send_sockets` to send, on other ports, that receive nothing.
///
/// All are non-blocking and close-on-exec, have DF clear and never fragment (RFC 7348, section
/// 4.3: VTEPs must not). With `checksum` false the UDP checksum of IPv4 is sent as zero.
///
/// # Errors
///
/// [`OpenError::PortTaken`] if another program has the port, even one that would share it;
/// [`OpenError::Invalid`] for values out of range; [`OpenError::System`] otherwise.
pub fn open_underlay(
    address: IpAddr,
    port: u16,
    workers: usize,
    checksum: bool,
    send_sockets: usize,
) -> Result<Vec<OwnedFd>, OpenError> {
    check_values(address, port, workers, send_sockets).map_err(OpenError::Invalid)?;
    let vtep = SocketAddr::new(address, port);
    ensure_unused(vtep)?;
    let mut opened = Vec::with_capacity(workers + send_sockets);
    for _ in 0..workers {
        let receive = open_bound(vtep, checksum, true)
            .map_err(OpenError::system(format!("binding UDP {vtep}")))?;
        ensure_receiving(receive.as_fd()).map_err(OpenError::system("options for receiving"))?;
        opened.push(receive);
    }
    let mut candidates = (FIRST_CANDIDATE..=u16::MAX)
        .chain(FIRST_PORT..FIRST_CANDIDATE)
        .filter(|&candidate| candidate != port);
    while opened.len() < workers + send_sockets {
        let Some(candidate) = candidates.next() else {
            return Err(OpenError::Invalid(format!(
                "{address} has less than {send_sockets} free UDP ports in {FIRST_PORT}-65535"
            )));
        };
        let source = SocketAddr::new(address, candidate);
        match open_bound(source, checksum, false) {
            Ok(send) => {
                socket::refuse_all(send.as_fd())
                    .map_err(OpenError::system("filter of a socket to send with"))?;
                opened.push(send);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => {
                return Err(OpenError::system(format!("binding UDP {source}"))(error));
            }
        }
    }
    Ok(opened)
}

/// Says what is wrong with the values given to [`open_underlay`].
fn check_values(
    address: IpAddr,
    port: u16,
    workers: usize,
    send_sockets: usize,
) -> Result<(), String> {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(format!("{address} is no unicast address of a VTEP"));
    }
    if port == 0 {
        return Err("port 0 is not in 1-65535".into());
    }
    if !(1..=64).contains(&workers) {
        return Err(format!("{workers} workers: must be 1 to 64"));
    }
    if !(1..=1024).contains(&send_sockets) {
        return Err(format!("{send_sockets} send sockets: must be 1 to 1024"));
    }
    Ok(())
}

/// Fails if anybody has the port: sharing it (SO_REUSEPORT) would silently halve the traffic.
fn ensure_unused(vtep: SocketAddr) -> Result<(), OpenError> {
    let probe = socket::open_udp(vtep.ip()).map_err(OpenError::system("opening a UDP socket"))?;
    match socket::bind(probe.as_fd(), vtep) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(OpenError::PortTaken {
            address: vtep.ip(),
            port: vtep.port(),
        }),
        Err(error) => Err(OpenError::system(format!("binding UDP {vtep}"))(error)),
    }
}

fn open_bound(local: SocketAddr, checksum: bool, shared: bool) -> io::Result<OwnedFd> {
    let opened = socket::open_udp(local.ip())?;
    let set =
        |level, name, value: libc::c_int| socket::set_option(opened.as_fd(), level, name, value);
    match local {
        SocketAddr::V4(_) => {
            let interface = libc::IP_PMTUDISC_INTERFACE;
            set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, interface)?;
            if !checksum {
                set(libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
            }
        }
        SocketAddr::V6(_) => {
            set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            let interface = libc::IPV6_PMTUDISC_INTERFACE;
            set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, interface)?;
        }
    }
    // With CAP_NET_ADMIN beyond the limits of the system, else as far as they go.
    for (force, ask) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        if set(libc::SOL_SOCKET, force, BUFFER_BYTES).is_err() {
            set(libc::SOL_SOCKET, ask, BUFFER_BYTES)?;
        }
    }
    if shared {
        set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    socket::bind(opened.as_fd(), local)?;
    Ok(opened)
}

/// Makes a socket send with DF set, up to the device's MTU, whatever the kernel has learned of the
/// path. Not done where it is opened, since a forwarder may get it from another one.
fn ensure_whole(receive: BorrowedFd<'_>) -> io::Result<()> {
    let (probe, probe6) = (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE);
    match socket::set_option(receive, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe6) {
        // It is one of IPv4.
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            socket::set_option(receive, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe)
        }
        result => result,
    }
}

/// Sets what only sockets for receiving need.
fn ensure_receiving(receive: BorrowedFd<'_>) -> io::Result<()> {
    ensure_receive_offload(receive, true)?;
    // Others may leave out the checksum over IPv6, too (RFC 6935); the inner one protects it.
    socket::set_option(receive, libc::SOL_UDP, libc::UDP_NO_CHECK6_RX, 1)
}

/// Lets the kernel join datagrams for a receiving socket (UDP_GRO), or not; says whether it does now.
/// May be done while it is in use.
///
/// # Errors
///
/// ENOTSOCK and the like. Not before Linux 5.0, where there is none: it is off.
pub fn ensure_receive_offload(receive: BorrowedFd<'_>, on: bool) -> io::Result<bool> {
    match socket::set_option(receive, libc::SOL_UDP, libc::UDP_GRO, on.into()) {
        Ok(()) => Ok(on),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the kernel can cut what a socket sends into datagrams (UDP_SEGMENT); whether it will,
/// route and device decide as well.
pub(crate) fn can_segment(send: BorrowedFd<'_>) -> bool {
    // Zero says that every message shall say it for itself, which is how it is anyway.
    socket::set_option(send, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}
