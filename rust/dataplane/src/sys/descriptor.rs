//! Ownership of descriptors that come from outside, as numbers.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// Takes ownership of descriptor `number`, which some other code opened and now gives up.
///
/// # Errors
///
/// EBADF if no such descriptor is open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD takes no pointer and is defined for any number.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: `number` is open, as was just seen, and the caller's contract is that nobody else
    // closes it from here on.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Borrows descriptor `number` for the length of `use_it`, during which the caller keeps it open.
///
/// # Errors
///
/// EBADF if no such descriptor is open.
pub fn borrow<T>(
    number: RawFd,
    use_it: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> io::Result<T> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD takes no pointer and is defined for any number.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: `number` is open, as was just seen, and the caller's contract is that it stays so
    // until this function returns; the borrow does not outlive it.
    use_it(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Makes reads and writes of `descriptor` return EAGAIN where they would wait.
///
/// # Errors
///
/// What fcntl reports.
pub fn ensure_nonblocking(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: F_GETFL takes no pointer; the descriptor is open while borrowed.
    let flags = check(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL) })?;
    if flags & libc::O_NONBLOCK == 0 {
        let flags = flags | libc::O_NONBLOCK;
        // SAFETY: F_SETFL takes an integer; the descriptor is open while borrowed.
        check(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, flags) })?;
    }
    Ok(())
}
