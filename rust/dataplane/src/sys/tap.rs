//! The TUN/TAP driver (Linux, `Documentation/networking/tuntap.rst`).

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::{check, socket};

/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE`, as `linux/if_tun.h` has them.
const FLAGS: libc::c_int =
    libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// Moves the calling thread, and no other, into a network namespace.
///
/// # Errors
///
/// EINVAL if `netns` is none, EPERM without CAP_SYS_ADMIN.
pub fn enter_netns(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: Takes no pointer; the descriptor is open while borrowed.
    check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(())
}

/// Whether the calling thread is in this network namespace; false, too, if /proc does not tell.
#[must_use]
pub fn is_inside(netns: BorrowedFd<'_>) -> bool {
    let own = std::fs::metadata("/proc/thread-self/ns/net");
    let given = netns
        .try_clone_to_owned()
        .and_then(|netns| File::from(netns).metadata());
    match (own, given) {
        (Ok(own), Ok(given)) => (own.dev(), own.ino()) == (given.dev(), given.ino()),
        _ => false,
    }
}

/// Opens the driver: a queue of no TAP yet.
///
/// # Errors
///
/// ENOENT or ENODEV without the kernel's module, EACCES.
pub fn open_driver() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
}

/// Makes it one more queue of the TAP `name` in the calling thread's namespace, or creates the TAP.
///
/// `name` has 1 to 15 bytes.
///
/// # Errors
///
/// EPERM, EINVAL if a device of that name is another kind, E2BIG after 256 queues.
pub fn ensure_queue(driver: &File, name: &str) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(driver.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(())
}

/// Asks the TAP behind `queue` to hand out frames with these offloads (TUN_F_*) still to be done.
///
/// # Errors
///
/// EINVAL if it cannot do one of them; then nothing has changed.
pub fn set_offloads(queue: BorrowedFd<'_>, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes an integer.
    check(unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offloads),
        )
    })?;
    Ok(())
}

/// Sets the MTU of the interface `name` in the calling thread's namespace.
///
/// # Errors
///
/// EINVAL if the driver does not allow it, ENODEV if there is no such interface.
pub fn set_mtu(name: &str, mtu_bytes: u32) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = mtu_bytes as libc::c_int;
    let socket = socket::open_udp(std::net::Ipv4Addr::UNSPECIFIED.into())?;
    // SAFETY: SIOCSIFMTU reads one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw mut request) })?;
    Ok(())
}

/// Sets how many frames each queue of the interface `name` may hold back.
///
/// # Errors
///
/// ENOMEM, ENODEV if there is no such interface.
pub fn set_queue_len(name: &str, frames: u16) -> io::Result<()> {
    let mut request = interface_request(name)?;
    // `ifr_qlen` of `linux/if.h`, which lies where the MTU does.
    request.ifr_ifru.ifru_mtu = frames.into();
    let socket = socket::open_udp(std::net::Ipv4Addr::UNSPECIFIED.into())?;
    // SAFETY: SIOCSIFTXQLEN reads one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &raw mut request) })?;
    Ok(())
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is made of integers and pointers, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}
