//! Ports that are TAP queues.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{FrameBatch, OpenError, Port};
use crate::sys;

/// Offloads of a TAP by name.
const OFFLOADS: [(&str, libc::c_uint); 6] = [
    ("csum", libc::TUN_F_CSUM),
    ("tso4", libc::TUN_F_TSO4),
    ("tso6", libc::TUN_F_TSO6),
    ("tso_ecn", libc::TUN_F_TSO_ECN),
    ("uso4", libc::TUN_F_USO4),
    ("uso6", libc::TUN_F_USO6),
];

/// What is asked for step by step where a kernel does not grant everything at once: Linux grants
/// nothing without csum, tso_ecn with a tso only, and neither uso without the other.
const STEPS: [libc::c_uint; 7] = [
    libc::TUN_F_CSUM,
    libc::TUN_F_TSO4,
    libc::TUN_F_TSO6,
    libc::TUN_F_TSO_ECN,
    libc::TUN_F_USO4 | libc::TUN_F_USO6,
    libc::TUN_F_USO4,
    libc::TUN_F_USO6,
];

/// A set of offloads of a TAP: what it may leave to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapOffloads(libc::c_uint);

impl TapOffloads {
    /// None.
    pub const NONE: Self = Self(0);

    /// All but those of these names.
    ///
    /// # Errors
    ///
    /// [`OpenError::Invalid`] for a name that no offload has.
    pub fn all_but<S: AsRef<str>>(names: &[S]) -> Result<Self, OpenError> {
        let mut wanted = OFFLOADS.iter().fold(0, |bits, (_, bit)| bits | bit);
        for name in names.iter().map(AsRef::as_ref) {
            let Some((_, bit)) = OFFLOADS.iter().find(|(known, _)| *known == name) else {
                let known = OFFLOADS.map(|(name, _)| name).join(", ");
                return Err(OpenError::Invalid(format!(
                    "{name:?} is no offload of a TAP: there are {known}"
                )));
            };
            wanted &= !bit;
        }
        Ok(Self(wanted))
    }

    /// The names of those in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let within = OFFLOADS
            .into_iter()
            .filter(move |(_, bit)| self.0 & bit != 0);
        within.map(|(name, _)| name)
    }

    fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

/// Frames that each queue holds back while its worker does something else, perhaps not running at
/// all for some milliseconds. The kernel's own 1000 are gone in 5 ms of small frames.
const QUEUE_LEN: u16 = 4096;

/// One queue of a TAP. Clones share the descriptor, which is closed with the last of them.
#[derive(Clone, Debug)]
pub struct TapQueue(Arc<File>);

impl TapQueue {
    /// Takes over a queue as [`open_tap`] opened it and makes sure that it never blocks.
    ///
    /// # Errors
    ///
    /// What fcntl reports.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        sys::descriptor::ensure_nonblocking(descriptor.as_fd())?;
        Ok(Self(Arc::new(File::from(descriptor))))
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Port for TapQueue {
    fn read_batch(&self, batch: &mut FrameBatch) -> io::Result<()> {
        while let Some(slot) = batch.free_slot() {
            match (&*self.0).read(slot) {
                // A TAP never ends; whatever does will never have a frame again.
                Ok(0) if batch.is_empty() => {
                    return Err(io::Error::from_raw_os_error(libc::EBADFD));
                }
                Ok(0) => break,
                Ok(len) => batch.push(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if batch.is_empty() => return Err(error),
                // It will be reported by the next call, when there is nothing else to report.
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn write_frame(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        // A TAP takes a frame whole or not at all.
        (&*self.0).write_vectored(pieces).map(drop)
    }
}

/// Opens `queues` queues of the TAP `name` in a network namespace, creating it if it is missing.
///
/// Each queue is non-blocking and close-on-exec and has a virtio-net header and as many of the
/// `wanted` offloads as the kernel grants. The link stays down. The calling thread never leaves its
/// namespace.
///
/// # Errors
///
/// [`OpenError::Invalid`] for a name of no or more than 15 bytes or with "/", ":" or white space,
/// for queues outside 1-256 and an MTU outside 68-65521; [`OpenError::System`] otherwise.
pub fn open_tap(
    netns: BorrowedFd<'_>,
    name: &str,
    queues: usize,
    mtu_bytes: u32,
    wanted: TapOffloads,
) -> Result<Vec<OwnedFd>, OpenError> {
    let odd = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(odd) {
        return Err(OpenError::Invalid(format!(
            "{name:?} is no interface name: 1 to 15 bytes without \"/\", \":\", \"%\" and spaces"
        )));
    }
    if !(1..=256).contains(&queues) {
        return Err(OpenError::Invalid(format!(
            "{queues} queues: a TAP has 1 to 256"
        )));
    }
    check_mtu(mtu_bytes).map_err(OpenError::Invalid)?;
    // A thread of its own enters the namespace and ends there, so that nobody has to come back.
    std::thread::scope(|scope| {
        let opener = std::thread::Builder::new().name("open-tap".into());
        let opened = opener
            .spawn_scoped(scope, || {
                open_inside(netns, name, queues, mtu_bytes, wanted)
            })
            .map_err(OpenError::system("start of a thread"))?;
        opened.join().unwrap_or_else(|_| {
            Err(OpenError::Invalid(format!(
                "opening {name:?} failed by a defect"
            )))
        })
    })
}

/// Says what is wrong with an MTU of an overlay network: IPv4's least, a TAP's most.
pub(crate) fn check_mtu(mtu_bytes: u32) -> Result<(), String> {
    if (68..=65_521).contains(&mtu_bytes) {
        Ok(())
    } else {
        Err(format!("MTU {mtu_bytes} is not in 68-65521"))
    }
}

fn open_inside(
    netns: BorrowedFd<'_>,
    name: &str,
    queues: usize,
    mtu_bytes: u32,
    wanted: TapOffloads,
) -> Result<Vec<OwnedFd>, OpenError> {
    // To enter one's own takes CAP_SYS_ADMIN as well, and is of no use.
    if !sys::tap::is_inside(netns) {
        sys::tap::enter_netns(netns).map_err(|error| {
            let why = match error.raw_os_error() {
                Some(libc::EPERM) => " (needs CAP_SYS_ADMIN)",
                Some(libc::EINVAL) => " (it is none)",
                _ => "",
            };
            let what = format!("entering the network namespace{why}");
            OpenError::system(what)(error)
        })?;
    }
    let mut opened = Vec::with_capacity(queues);
    for index in 0..queues {
        let driver = sys::tap::open_driver();
        let what = "opening /dev/net/tun (of the kernel's module tun)";
        let driver = driver.map_err(OpenError::system(what))?;
        sys::tap::ensure_queue(&driver, name).map_err(|error| {
            let why = refusal(&error);
            let what = format!("opening queue {index} of TAP {name:?}{why}");
            OpenError::system(what)(error)
        })?;
        opened.push(OwnedFd::from(driver));
    }
    ensure_offloads(opened[0].as_fd(), wanted)
        .map_err(OpenError::system(format!("offloads of TAP {name:?}")))?;
    let what = format!("MTU {mtu_bytes} of TAP {name:?}");
    sys::tap::set_mtu(name, mtu_bytes).map_err(OpenError::system(what))?;
    let what = format!("queue length of TAP {name:?}");
    sys::tap::set_queue_len(name, QUEUE_LEN).map_err(OpenError::system(what))?;
    Ok(opened)
}

/// What the kernel means by the error of [`sys::tap::ensure_queue`], where that does not say it.
fn refusal(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (needs CAP_NET_ADMIN)",
        Some(libc::EINVAL) => {
            " (the name is kept by the kernel, or an interface has it that is no TAP of several \
             queues: choose another, or delete that one)"
        }
        Some(libc::E2BIG) => " (a TAP has at most 256, those that others hold counted in)",
        _ => "",
    }
}

/// Asks the TAP behind a queue, and so behind all of its queues, for offloads; gives those that it
/// grants. Those that it had before and that are not `wanted` end. May be done while it is in use.
///
/// # Errors
///
/// EBADFD if it was deleted, ENOTTY if it is no TAP.
pub fn ensure_offloads(queue: BorrowedFd<'_>, wanted: TapOffloads) -> io::Result<TapOffloads> {
    if grants(queue, wanted)? {
        return Ok(wanted);
    }
    let mut granted = TapOffloads::NONE;
    sys::tap::set_offloads(queue, granted.0)?;
    for step in STEPS.map(TapOffloads) {
        let more = granted.with(step);
        if wanted.contains(step) && more != granted && grants(queue, more)? {
            granted = more;
        }
    }
    Ok(granted)
}

/// Whether the TAP takes exactly these; if not, it keeps those that it has.
fn grants(queue: BorrowedFd<'_>, offloads: TapOffloads) -> io::Result<bool> {
    match sys::tap::set_offloads(queue, offloads.0) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}
