//! Worker threads, publishing of tables, counters and events.
//!
//! The control side ([`Engine`]) may lock; workers never do. A worker is told of ports by orders,
//! for which it looks only after its eventfd woke it, and finds new tables by loading one pointer
//! per batch.

mod captures;
mod confine;
mod counters;
mod droplog;
mod egress;
mod events;
mod idle;
mod ingress;
mod lane;
mod narrow;
mod network;
mod patience;
mod prober;
mod seat;
mod segmentation;
mod tunnels;
mod vteps;
mod watch;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::mpsc::{channel, Sender};
// No packet passes the control side's lock: workers do not know it.
#[allow(clippy::disallowed_types)]
use std::sync::Mutex;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

pub use captures::MAX_CAPTURES;
pub use confine::{confine, ConfineError};
pub use counters::{Drops, NetworkStats, UnderlayStats};
pub use droplog::DroppedFrame;
pub use events::Event;
pub use lane::{Lane, Round};
pub use network::{Network, NetworkConfig};
pub use tunnels::{TunnelConfig, TunnelStats};
pub use vteps::VtepStats;
pub use watch::{Capture, CaptureConfig};

use crate::io::{can_segment, check_mtu, ReceiveDrops, TapQueue, UdpUnderlay};
use crate::sys::{clock, socket};
use crate::table::{check_address, TableError, Tables};
use crate::wire::{MacAddr, Vni};
use crate::DropReason;
use events::EventReceiver;
use tunnels::Tunnels;
use worker::{Order, Worker};

/// Why the engine refused; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A value out of range.
    #[error("{0}")]
    Invalid(String),
    /// An entry that no table may hold.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A VTEP that the underlay cannot reach.
    #[error("VTEP {vtep} is not of the underlay's address family, which is that of {local}")]
    Family {
        /// The VTEP.
        vtep: IpAddr,
        /// Our own address.
        local: IpAddr,
    },
    /// The VNI has no port.
    #[error("VNI {0} is not attached")]
    NotAttached(Vni),
    /// The engine was closed.
    #[error("engine is closed")]
    Closed,
    /// The workers are threads of another process, of which this one is a fork.
    #[error(
        "the engine is that of process {0}, from which this one was forked without its threads: \
         start another engine here"
    )]
    Forked(u32),
    /// A system call was refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::System { what, source }
}

/// What the tables of a VNI hold, and whether its port is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// MAC and VTEP, sorted.
    pub fdb: Vec<(MacAddr, IpAddr)>,
    /// Overlay address and MAC, sorted.
    pub neighbours: Vec<(IpAddr, MacAddr)>,
    /// VTEPs in the order in which they were given.
    pub flood: Vec<IpAddr>,
    /// Whether the port is there.
    pub port_alive: bool,
}

/// One reading of all counters.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Number of workers.
    pub workers: usize,
    /// How long each worker has had nothing to do since it began, in nanoseconds.
    pub idle_ns: Vec<u64>,
    /// Whether the kernel cuts datagrams for each worker (UDP_SEGMENT).
    pub segmentation: Vec<bool>,
    /// By VNI, in order.
    pub networks: Vec<(Vni, NetworkStats)>,
    /// The sockets.
    pub underlay: UnderlayStats,
    /// By VTEP, in order; those that datagrams went to or came from.
    pub vteps: Vec<(IpAddr, VtepStats)>,
    /// By VTEP, in order; those that [`Engine::set_tunnels`] named last.
    pub tunnels: Vec<(IpAddr, TunnelStats)>,
}

/// Worker threads that forward between ports and underlay. May be shared by threads.
#[derive(Debug)]
pub struct Engine {
    workers: usize,
    /// The process that the workers are threads of.
    process: u32,
    local: SocketAddr,
    event_fd: RawFd,
    /// Whether the kernel knows UDP_SEGMENT at all (Linux 4.18).
    can_segment: bool,
    tunnels: Arc<Tunnels>,
    #[allow(clippy::disallowed_types)]
    control: Mutex<Control>,
}

/// What the lock protects.
#[derive(Debug)]
struct Control {
    /// Empty once closed.
    workers: Vec<Worker>,
    receive_drops: Vec<ReceiveDrops>,
    networks: BTreeMap<Vni, Arc<Network>>,
    /// By number; the workers hold the socket, and give it up when its reader has gone.
    captures: BTreeMap<u64, Weak<OwnedFd>>,
    captures_begun: u64,
    events: EventReceiver,
}

impl Engine {
    /// Starts `workers` workers on sockets as [`crate::io::open_underlay`] opened them.
    ///
    /// They send to the UDP port that the first socket is bound to.
    ///
    /// # Errors
    ///
    /// [`EngineError::Invalid`] if the numbers or the sockets do not fit together,
    /// [`EngineError::System`] if there are no descriptors or threads left. The sockets are closed.
    pub fn start(underlay: Vec<OwnedFd>, workers: usize) -> Result<Self, EngineError> {
        let engine = Self::start_paused(underlay, workers)?;
        engine.resume()?;
        Ok(engine)
    }

    /// Like [`Engine::start`], but nothing is read before [`Engine::resume`].
    ///
    /// For an engine that takes over descriptors from another: what the kernel has queued meanwhile
    /// stays there until the tables are filled, instead of being dropped for want of them.
    ///
    /// # Errors
    ///
    /// As [`Engine::start`].
    pub fn start_paused(underlay: Vec<OwnedFd>, workers: usize) -> Result<Self, EngineError> {
        if !(1..=64).contains(&workers) {
            return Err(EngineError::Invalid(format!(
                "{workers} workers: must be 1 to 64"
            )));
        }
        if underlay.len() <= workers {
            return Err(EngineError::Invalid(format!(
                "{} underlay sockets: {workers} workers need {workers} to receive and at least 1 \
                 to send",
                underlay.len()
            )));
        }
        let (mut receive, local) = inspect(underlay, workers)?;
        let send: Arc<[OwnedFd]> = receive.split_off(workers).into();
        let (sender, receiver) = events::events().map_err(system("opening an eventfd"))?;
        let receive_drops = receive
            .iter()
            .map(|socket| ReceiveDrops::new(socket.as_fd()))
            .collect::<io::Result<_>>()
            .map_err(system("duplicating a socket"))?;
        let engine = Self {
            workers,
            process: std::process::id(),
            local,
            event_fd: receiver.descriptor(),
            can_segment: can_segment(send[0].as_fd()),
            tunnels: Arc::new(Tunnels::new(workers)),
            control: new_lock(Control {
                workers: Vec::new(),
                receive_drops,
                networks: BTreeMap::new(),
                captures: BTreeMap::new(),
                captures_begun: 0,
                events: receiver,
            }),
        };
        let lane = |(number, socket)| {
            let underlay = UdpUnderlay::new(socket, Arc::clone(&send))?;
            let tunnels = Arc::clone(&engine.tunnels);
            Ok(Lane::sharing(number, underlay, local.port(), tunnels))
        };
        let lanes = receive.into_iter().enumerate().map(lane);
        let lanes = lanes
            .collect::<io::Result<_>>()
            .map_err(system("preparing an underlay socket"))?;
        engine.lock().workers =
            Worker::start_all(lanes, &sender).map_err(system("starting a worker"))?;
        engine.switch_segmentation(true)?;
        Ok(engine)
    }

    /// Lets the workers begin, if the engine was started paused. Returns once all have.
    ///
    /// # Errors
    ///
    /// [`EngineError::Closed`] only.
    pub fn resume(&self) -> Result<(), EngineError> {
        let control = self.open()?;
        control.order_all(|_, done| Order::Resume { done });
        Ok(())
    }

    /// Lets the kernel cut datagrams for the workers (UDP_SEGMENT), or not; at first it does, where
    /// it can. A worker to which it refuses goes on without, which [`Engine::stats`] tells.
    ///
    /// # Errors
    ///
    /// [`EngineError::Closed`] only.
    pub fn switch_segmentation(&self, on: bool) -> Result<(), EngineError> {
        for worker in &self.open()?.workers {
            worker.segmentation().switch(on && self.can_segment);
        }
        Ok(())
    }

    /// Forwards for a VNI between `queues`, opened by [`crate::io::open_tap`], and the underlay.
    ///
    /// If it is attached already, queues and settings are replaced, tables and counters stay.
    /// Queue i belongs to worker i modulo the number of workers. Returns once all workers know.
    ///
    /// # Errors
    ///
    /// [`EngineError::Invalid`] for settings out of range or no queues. The queues are closed.
    pub fn attach(&self, config: NetworkConfig, queues: Vec<OwnedFd>) -> Result<(), EngineError> {
        let mut control = self.open()?;
        if queues.is_empty() {
            return Err(EngineError::Invalid(format!(
                "VNI {} has no queues to attach",
                config.vni
            )));
        }
        let queues = queues
            .into_iter()
            .map(TapQueue::new)
            .collect::<io::Result<Vec<_>>>()
            .map_err(system("preparing a queue"))?;
        let network = Arc::new(match control.networks.get(&config.vni) {
            Some(before) => before.reattached(config)?,
            None => Network::new(config, self.workers)?,
        });
        control.networks.insert(config.vni, Arc::clone(&network));
        control.order_all(|number, done| {
            let own = queues.iter().skip(number).step_by(self.workers);
            Order::Attach {
                network: Arc::clone(&network),
                queues: own.cloned().collect(),
                writer: queues[number % queues.len()].clone(),
                done,
            }
        });
        Ok(())
    }

    /// Stops forwarding for a VNI and closes its queues. Returns once no worker uses them.
    ///
    /// # Errors
    ///
    /// [`EngineError::Closed`] only; a VNI that is not attached stays so.
    pub fn detach(&self, vni: Vni) -> Result<(), EngineError> {
        let mut control = self.open()?;
        if control.networks.remove(&vni).is_some() {
            control.order_all(|_, done| Order::Detach { vni, done });
        }
        Ok(())
    }

    /// Removes FDB entries, then adds or moves some.
    ///
    /// # Errors
    ///
    /// [`EngineError::Table`] or [`EngineError::Family`] for a bad entry,
    /// [`EngineError::NotAttached`].
    pub fn apply(
        &self,
        vni: Vni,
        add: &[(MacAddr, IpAddr)],
        remove: &[MacAddr],
    ) -> Result<(), EngineError> {
        self.check_families(add.iter().map(|&(_, vtep)| vtep))?;
        self.change(vni, |tables| tables.with_changes(add, remove))
    }

    /// Replaces the flood list.
    ///
    /// # Errors
    ///
    /// As [`Engine::apply`].
    pub fn set_flood(&self, vni: Vni, vteps: &[IpAddr]) -> Result<(), EngineError> {
        self.check_families(vteps.iter().copied())?;
        self.change(vni, |tables| tables.with_flood(vteps))
    }

    /// Replaces the neighbours.
    ///
    /// # Errors
    ///
    /// As [`Engine::apply`].
    pub fn set_neighbours(
        &self,
        vni: Vni,
        entries: &[(IpAddr, MacAddr)],
    ) -> Result<(), EngineError> {
        self.change(vni, |tables| tables.with_neighbours(entries))
    }

    /// Probes these VTEPs every `interval_ns` (0: not at all), and answers their probes.
    ///
    /// Replaces those before; those that stay keep what is known of them. With many tunnels the
    /// interval is longer: a thousand are begun with a second at most.
    ///
    /// # Errors
    ///
    /// [`EngineError::Invalid`] for a VTEP that is no host's address or an MTU out of range,
    /// [`EngineError::Family`], [`EngineError::Closed`].
    pub fn set_tunnels(
        &self,
        interval_ns: u64,
        tunnels: &[TunnelConfig],
    ) -> Result<(), EngineError> {
        let control = self.open()?;
        self.check_families(tunnels.iter().map(|tunnel| tunnel.vtep))?;
        for tunnel in tunnels {
            check_mtu(tunnel.mtu_bytes).map_err(EngineError::Invalid)?;
            check_address(tunnel.vtep).map_err(TableError::Vtep)?;
        }
        self.tunnels.set(interval_ns, tunnels);
        let (done, all_done) = channel();
        for worker in &control.workers {
            let done = done.clone();
            worker.order(Order::Tunnels { done });
        }
        drop(done);
        let _ = all_done.recv();
        Ok(())
    }

    /// What the workers use now.
    ///
    /// # Errors
    ///
    /// [`EngineError::NotAttached`].
    pub fn dump(&self, vni: Vni) -> Result<Dump, EngineError> {
        let network = self.network(vni)?;
        let tables = network.tables();
        let mut dump = Dump {
            fdb: tables.fdb().collect(),
            neighbours: tables.neighbours().collect(),
            flood: tables.flood().to_vec(),
            port_alive: network.is_alive(),
        };
        dump.fdb.sort_unstable();
        dump.neighbours.sort_unstable();
        Ok(dump)
    }

    /// How a VNI is attached.
    ///
    /// # Errors
    ///
    /// [`EngineError::NotAttached`].
    pub fn config(&self, vni: Vni) -> Result<NetworkConfig, EngineError> {
        Ok(*self.network(vni)?.config())
    }

    /// The attached VNIs, in order.
    ///
    /// # Errors
    ///
    /// [`EngineError::Closed`].
    pub fn vnis(&self) -> Result<Vec<Vni>, EngineError> {
        Ok(self.open()?.networks.keys().copied().collect())
    }

    /// Reads all counters.
    ///
    /// # Errors
    ///
    /// [`EngineError::Closed`].
    pub fn stats(&self) -> Result<Stats, EngineError> {
        let mut control = self.open()?;
        let now_ns = clock::monotonic_ns();
        let workers = control.workers.iter_mut();
        let idle_ns = workers.map(|worker| worker.idle_ns(now_ns)).collect();
        let workers = control.workers.iter();
        let segmentation = workers
            .map(|worker| worker.segmentation().is_on())
            .collect();
        let mut vteps = BTreeMap::new();
        for worker in &mut control.workers {
            worker.sum_vteps(&mut vteps);
        }
        let networks = control.networks.iter();
        let mut underlay = counters::sum_underlay(control.workers.iter().map(Worker::counters));
        let unseen = control.receive_drops.iter().map(ReceiveDrops::count);
        underlay.drops.add(DropReason::ReceiveFull, unseen.sum());
        Ok(Stats {
            workers: self.workers,
            idle_ns,
            segmentation,
            networks: networks
                .map(|(&vni, network)| (vni, network.stats()))
                .collect(),
            underlay,
            vteps: vteps.into_iter().collect(),
            tunnels: self.tunnels.stats(now_ns),
        })
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// An eventfd that is readable while there are events; open as long as the engine lives.
    #[must_use]
    pub fn event_fd(&self) -> RawFd {
        self.event_fd
    }

    /// Takes the events since the last call; also after closing. None in a fork.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        if self.is_forked() {
            return Vec::new();
        }
        self.lock().events.take()
    }

    /// Ends and joins the workers and closes sockets and queues. May be repeated. Whoever waits for
    /// events is woken.
    ///
    /// In a fork it does nothing: the workers are not there to be ended, and what it has descriptors
    /// of is theirs.
    pub fn close(&self) {
        if self.is_forked() {
            return;
        }
        let mut control = self.lock();
        control.networks.clear();
        control.receive_drops.clear();
        let workers = std::mem::take(&mut control.workers);
        if !workers.is_empty() {
            Worker::stop_all(workers);
            control.events.wake();
        }
    }

    fn is_forked(&self) -> bool {
        std::process::id() != self.process
    }

    fn check_families(&self, vteps: impl Iterator<Item = IpAddr>) -> Result<(), EngineError> {
        let local = self.local.ip();
        for vtep in vteps {
            if vtep.to_canonical().is_ipv4() != local.is_ipv4() {
                return Err(EngineError::Family { vtep, local });
            }
        }
        Ok(())
    }

    /// Publishes the tables that `change` makes from those before, under the lock: one writer.
    fn change(
        &self,
        vni: Vni,
        change: impl FnOnce(&Tables) -> Result<Tables, TableError>,
    ) -> Result<(), EngineError> {
        let control = self.open()?;
        let network = control.networks.get(&vni);
        let network = network.ok_or(EngineError::NotAttached(vni))?;
        network.publish(change(&network.tables())?);
        Ok(())
    }

    fn network(&self, vni: Vni) -> Result<Arc<Network>, EngineError> {
        let control = self.open()?;
        let network = control.networks.get(&vni);
        network.cloned().ok_or(EngineError::NotAttached(vni))
    }

    fn open(&self) -> Result<MutexGuard<'_, Control>, EngineError> {
        // Before the lock, which another thread may have had at the fork, and has there for ever.
        if self.is_forked() {
            return Err(EngineError::Forked(self.process));
        }
        let control = self.lock();
        if control.workers.is_empty() {
            return Err(EngineError::Closed);
        }
        Ok(control)
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        // Whoever panicked inside left values that are whole: each is changed in one step.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Gives every worker the order that `make` makes for its number, and waits until all have
    /// carried it out.
    fn order_all(&self, make: impl Fn(usize, Sender<()>) -> Order) {
        let (done, all_done) = channel();
        for (number, worker) in self.workers.iter().enumerate() {
            worker.order(make(number, done.clone()));
        }
        drop(done);
        // Ends, with an error that says nothing, when every worker has dropped its end.
        let _ = all_done.recv();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

#[allow(clippy::disallowed_types)]
fn new_lock(control: Control) -> Mutex<Control> {
    Mutex::new(control)
}

/// Checks that the sockets are UDP ones of one family, and the first `workers` of one port.
fn inspect(
    underlay: Vec<OwnedFd>,
    workers: usize,
) -> Result<(Vec<OwnedFd>, SocketAddr), EngineError> {
    let mut checked = Vec::with_capacity(underlay.len());
    let mut first = None;
    for (index, descriptor) in underlay.into_iter().enumerate() {
        if !socket::is_kind(descriptor.as_fd(), libc::SOCK_DGRAM) {
            return Err(EngineError::Invalid(format!(
                "underlay socket {index} is no UDP socket"
            )));
        }
        let socket = UdpSocket::from(descriptor);
        let address = socket
            .local_addr()
            .map_err(system("asking an underlay socket for its address"))?;
        let local = *first.get_or_insert(address);
        if address.is_ipv4() != local.is_ipv4() || (index < workers && address != local) {
            return Err(EngineError::Invalid(format!(
                "underlay socket {index} has address {address}, which does not fit {local}"
            )));
        }
        socket
            .set_nonblocking(true)
            .map_err(system("preparing an underlay socket"))?;
        checked.push(OwnedFd::from(socket));
    }
    first
        .map(|local| (checked, local))
        .ok_or_else(|| EngineError::Invalid("there are no underlay sockets".into()))
}
