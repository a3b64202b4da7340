//! UDP sockets with options that must be set before they are bound, and sockets for messages.

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// A socket address in the kernel's form.
#[derive(Clone, Copy)]
#[repr(C)]
pub union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl std::fmt::Debug for RawAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.ip().fmt(formatter)
    }
}

impl RawAddress {
    /// An address of no family, to be filled by the kernel.
    #[must_use]
    pub fn empty() -> Self {
        // SAFETY: Both members are plain integers, for which all zero is a value.
        unsafe { zeroed() }
    }

    /// The kernel's form of an address, and its length in bytes.
    #[must_use]
    pub fn new(address: SocketAddr) -> (Self, libc::socklen_t) {
        let mut raw = Self::empty();
        match address {
            SocketAddr::V4(address) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(address.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                (raw, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(address) => {
                raw.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr {
                        s6_addr: address.ip().octets(),
                    },
                    sin6_scope_id: 0,
                };
                (raw, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// The IP address, if it is of a family that has one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        // SAFETY: Both members begin with the family, and all bytes are initialised (`empty`).
        let family = libc::c_int::from(unsafe { self.v4.sin_family });
        match family {
            libc::AF_INET => {
                // SAFETY: All bytes are initialised, and any bytes are a valid address.
                let bytes = unsafe { self.v4.sin_addr.s_addr }.to_ne_bytes();
                Some(IpAddr::from(bytes))
            }
            libc::AF_INET6 => {
                // SAFETY: All bytes are initialised, and any bytes are a valid address.
                let bytes = unsafe { self.v6.sin6_addr.s6_addr };
                Some(IpAddr::from(bytes))
            }
            _ => None,
        }
    }
}

/// Opens a UDP socket for the family of `address`: non-blocking, close-on-exec, not yet bound.
///
/// # Errors
///
/// EAFNOSUPPORT if the kernel lacks the family; EMFILE and the like.
pub fn open_udp(address: IpAddr) -> io::Result<OwnedFd> {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: Takes no pointer.
    let number = check(unsafe { libc::socket(family, kind, libc::IPPROTO_UDP) })?;
    // SAFETY: The kernel just gave us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Binds a socket.
///
/// # Errors
///
/// EADDRINUSE, EADDRNOTAVAIL, EACCES for ports below 1024.
pub fn bind(socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    let (raw, len) = RawAddress::new(address);
    // SAFETY: `raw` is valid during the call and `len` is the length of its active member.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), len) })?;
    Ok(())
}

/// Sets a socket option whose value is an integer.
///
/// # Errors
///
/// ENOPROTOOPT if the kernel does not know it, EPERM, EINVAL.
pub fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: The kernel reads at most the given length from `value`, valid during the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Whether a descriptor is a socket of this kind (SOCK_*).
#[must_use]
pub fn is_kind(descriptor: BorrowedFd<'_>, kind: libc::c_int) -> bool {
    let mut value: libc::c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: The kernel writes at most `len` bytes to `value`; both are valid during the call.
    let asked = unsafe {
        libc::getsockopt(
            descriptor.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    asked == 0 && value == kind
}

/// Sends one datagram.
///
/// # Errors
///
/// EMSGSIZE if it is too long for the way out, EAGAIN if the socket is full, and others.
pub fn send_to(socket: BorrowedFd<'_>, bytes: &[u8], address: SocketAddr) -> io::Result<()> {
    let (raw, len) = RawAddress::new(address);
    // SAFETY: `bytes` and `raw` are valid during the call, with the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const raw).cast(),
            len,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How many datagrams the kernel has dropped at a socket since it was opened, modulo 2^32.
///
/// # Errors
///
/// ENOPROTOOPT before Linux 4.12.
pub fn drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // `SK_MEMINFO_DROPS` and `SK_MEMINFO_VARS` (linux/sock_diag.h).
    const DROPS: usize = 8;
    let mut values = [0u32; DROPS + 1];
    let mut len = size_of_val(&values) as libc::socklen_t;
    // SAFETY: The kernel writes at most `len` bytes to `values`; both are valid during the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            (&raw mut values).cast(),
            &raw mut len,
        )
    })?;
    Ok(values[DROPS])
}

/// Attaches a classic BPF filter that drops all that arrives, so that nothing is queued.
///
/// # Errors
///
/// ENOMEM, or EPERM if filters are locked.
pub fn refuse_all(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut program = [libc::sock_filter {
        // BPF_RET | BPF_K: return 0 bytes.
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let description = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: The kernel copies the program that `description` describes; both are valid during
    // the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const description).cast(),
            size_of_val(&description) as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Sends one message on a connected socket without waiting; without a signal if nobody listens.
///
/// # Errors
///
/// EAGAIN if the peer has no room for it; EPIPE or ECONNRESET, or ECONNREFUSED, if it has gone.
pub fn send_now(socket: BorrowedFd<'_>, message: &[u8]) -> io::Result<()> {
    // SAFETY: The kernel reads `message.len()` bytes of `message`, borrowed until the call returns.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
