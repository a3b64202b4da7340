//! epoll and eventfd.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// A level-triggered epoll instance for readability.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

/// One descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token given at [`Epoll::add`].
    pub token: u64,
    /// EPOLLERR or EPOLLHUP was set.
    pub broken: bool,
}

/// Room for what one [`Epoll::wait`] returns.
#[derive(Debug)]
pub struct Events(Vec<libc::epoll_event>);

impl Events {
    /// Makes room for `capacity` events at once, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity.max(1)))
    }

    /// Whether the last wait found nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the last wait found.
    pub fn iter(&self) -> impl Iterator<Item = Ready> + '_ {
        self.0.iter().map(|event| Ready {
            token: event.u64,
            broken: event.events & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0,
        })
    }
}

impl Epoll {
    /// Opens an instance.
    ///
    /// # Errors
    ///
    /// EMFILE or ENFILE if there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: Takes no pointer.
        let number = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: The kernel just gave us this descriptor; nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Watches `descriptor` for readability under `token`.
    ///
    /// # Errors
    ///
    /// EPERM if its kind cannot be watched, EEXIST if it is watched already.
    pub fn add(&self, descriptor: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: token,
        };
        // SAFETY: Both descriptors are open while borrowed; `event` is valid during the call.
        check(unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                descriptor.as_raw_fd(),
                &raw mut event,
            )
        })?;
        Ok(())
    }

    /// Stops watching `descriptor`.
    ///
    /// # Errors
    ///
    /// ENOENT if it is not watched.
    pub fn remove(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: Both descriptors are open while borrowed; no event is needed to remove.
        check(unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                descriptor.as_raw_fd(),
                std::ptr::null_mut(),
            )
        })?;
        Ok(())
    }

    /// Waits until something is ready, or for `most_ns` nanoseconds, rounded up to milliseconds,
    /// and fills `events` with what is ready.
    ///
    /// A signal ends the wait with no events.
    ///
    /// # Errors
    ///
    /// EBADF or EINVAL, which mean a defect.
    pub fn wait(&self, events: &mut Events, most_ns: Option<u64>) -> io::Result<()> {
        let most_ms = most_ns.map_or(-1, |most_ns| {
            libc::c_int::try_from(most_ns.div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
        });
        self.fill(events, most_ms)
    }

    /// Fills `events` with what is ready, without waiting.
    ///
    /// # Errors
    ///
    /// As [`Epoll::wait`] has them.
    pub fn look(&self, events: &mut Events) -> io::Result<()> {
        self.fill(events, 0)
    }

    fn fill(&self, events: &mut Events, timeout_ms: libc::c_int) -> io::Result<()> {
        events.0.clear();
        let room = libc::c_int::try_from(events.0.capacity()).unwrap_or(libc::c_int::MAX);
        // SAFETY: The kernel writes at most `room` events to the vector's own memory, which has
        // that capacity and is exclusively borrowed.
        let found = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.0.as_mut_ptr(), room, timeout_ms)
        };
        match check(found) {
            Ok(found) => {
                // SAFETY: The kernel has initialised this many events, at most the capacity.
                unsafe { events.0.set_len(found as usize) };
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A counter to wait for, shared by threads.
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    /// Opens one, quiet.
    ///
    /// # Errors
    ///
    /// EMFILE or ENFILE if there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: Takes no pointer.
        let number = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: The kernel just gave us this descriptor; nobody else knows it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(number) })))
    }

    /// Makes it readable.
    pub fn signal(&self) {
        // Fails only with EAGAIN when the counter is full, and then it is readable anyway.
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }

    /// Makes it quiet.
    pub fn clear(&self) {
        // Fails only with EAGAIN when it is quiet already.
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsFd for Epoll {
    /// Readable while something is ready, so that another instance can watch it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
