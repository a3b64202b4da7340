//! A worker thread: waits for its descriptors and lets its [`Lane`] move what is ready.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::counters::UnderlayCounters;
use super::events::{Event, EventSender};
use super::idle::{Idle, IdleReader};
use super::lane::{Lane, Round};
use super::patience::Patience;
use super::segmentation::Segmentation;
use super::vteps::{MetVteps, VtepStats};
use super::watch::Capture;
use super::{DroppedFrame, Network};
use crate::io::{TapQueue, UdpUnderlay};
use crate::sys::poll::{Epoll, EventFd, Events};
use crate::sys::{clock, signal};
use crate::wire::Vni;

/// Tokens of the two descriptors that are not queues.
const WAKE: u64 = u64::MAX;
const UNDERLAY: u64 = u64::MAX - 1;
/// Descriptors that one wait returns; those that are left out come first the next time.
const EVENTS: usize = 64;
/// Turns of a busy loop after which the time is looked at, for the probes.
const CLOCK_TURNS: u32 = 16;
/// Errors of one kind or another in a row after which a descriptor is given up.
const MAX_FAILURES: u32 = 1000;

/// What a worker is told to do. Dropping an order says that it was carried out.
#[derive(Debug)]
pub(super) enum Order {
    Attach {
        network: Arc<Network>,
        queues: Vec<TapQueue>,
        writer: TapQueue,
        done: Sender<()>,
    },
    Detach {
        vni: Vni,
        done: Sender<()>,
    },
    Tunnels {
        done: Sender<()>,
    },
    Resume {
        done: Sender<()>,
    },
    BeginCapture {
        capture: Capture,
        done: Sender<()>,
    },
    EndCapture {
        id: u64,
        done: Sender<()>,
    },
    TellDrops {
        to: Sender<Vec<DroppedFrame>>,
    },
    Stop,
}

/// The control side's view of a worker.
#[derive(Debug)]
pub(super) struct Worker {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    counters: Arc<UnderlayCounters>,
    met: Option<MetVteps>,
    segmentation: Segmentation,
    idle: IdleReader,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the worker of a lane, which moves nothing before [`Order::Resume`].
    pub fn start(mut lane: Lane<TapQueue, UdpUnderlay>, events: EventSender) -> io::Result<Self> {
        let number = lane.worker;
        let wake = Arc::new(EventFd::new()?);
        let epoll = Epoll::new()?;
        epoll.add(wake.as_fd(), WAKE)?;
        let (orders, inbox) = channel();
        let counters = Arc::clone(&lane.counters.sockets);
        let met = lane.met.take();
        let segmentation = lane.segmentation.clone();
        let idle = Arc::<Idle>::default();
        let running = Running {
            lane,
            epoll,
            patience: Patience::default(),
            idle: Arc::clone(&idle),
            inbox,
            wake: Arc::clone(&wake),
            events,
            paused: true,
            stopped: false,
            failures: 0,
            turns: 0,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vxlan-{number}"))
            .spawn(move || running.run())?;
        Ok(Self {
            orders,
            wake,
            counters,
            met,
            segmentation,
            idle: IdleReader::new(idle),
            thread,
        })
    }

    /// Gives an order. A worker that is lost drops it, and so nobody waits for it.
    pub fn order(&self, order: Order) {
        let _ = self.orders.send(order);
        self.wake.signal();
    }

    /// The counters of its sockets.
    pub fn counters(&self) -> &UnderlayCounters {
        &self.counters
    }

    /// Whether the kernel cuts datagrams for it.
    pub fn segmentation(&self) -> &Segmentation {
        &self.segmentation
    }

    /// Adds what it has counted by VTEP.
    pub fn sum_vteps(&mut self, sums: &mut BTreeMap<IpAddr, VtepStats>) {
        if let Some(met) = &mut self.met {
            met.sum_into(sums);
        }
    }

    /// How long it has had nothing to do, in nanoseconds.
    pub fn idle_ns(&mut self, now_ns: u64) -> u64 {
        self.idle.read(now_ns)
    }

    /// Waits until the thread has ended, which [`Order::Stop`] makes it do.
    pub fn join(self) {
        // A panic was reported as an event already.
        let _ = self.thread.join();
    }
}

/// What lives in the thread.
struct Running {
    lane: Lane<TapQueue, UdpUnderlay>,
    epoll: Epoll,
    patience: Patience,
    idle: Arc<Idle>,
    inbox: Receiver<Order>,
    wake: Arc<EventFd>,
    events: EventSender,
    /// While paused, sockets and queues are held but not watched.
    paused: bool,
    /// Whether it was told to end.
    stopped: bool,
    failures: u32,
    /// Turns of the loop; at each multiple of [`CLOCK_TURNS`] the clock is looked at.
    turns: u32,
}

impl Running {
    fn run(mut self) {
        signal::block_all();
        let mut alarm = Alarm {
            worker: self.lane.worker,
            events: self.events.clone(),
            armed: true,
        };
        let mut ready = Events::new(EVENTS);
        // Level-triggered: each descriptor gets one batch per turn, and who has more comes again,
        // so nobody waits for a busy neighbour and the thread blocks only when nothing is left.
        while self.wait(&mut ready).is_ok() {
            let mut ordered = false;
            for event in ready.iter() {
                match event.token {
                    WAKE => ordered = true,
                    UNDERLAY => {
                        if self.ingress().is_break() {
                            return;
                        }
                    }
                    token => self.egress(token as usize, event.broken),
                }
            }
            if ordered && self.obey().is_break() {
                alarm.armed = !self.stopped;
                return;
            }
            self.probe();
        }
    }

    /// Looks after the probes, if it is time.
    fn probe(&mut self) {
        let due_ns = self.lane.probe_due_ns();
        self.turns = self.turns.wrapping_add(1);
        // To look at the clock costs little, and less if it is not done after every small batch.
        let may_be_due = due_ns == 0 || (due_ns != u64::MAX && self.turns % CLOCK_TURNS == 0);
        if may_be_due && !self.paused {
            let now_ns = clock::monotonic_ns();
            if now_ns >= due_ns {
                self.lane.probe_round(now_ns);
            }
        }
    }

    /// Returns when something is ready, or after a signal.
    fn wait(&mut self, ready: &mut Events) -> io::Result<()> {
        self.epoll.look(ready)?;
        if !ready.is_empty() {
            return Ok(());
        }
        let begin = clock::monotonic_ns();
        self.idle.begin(begin);
        let look_ns = self.patience.look_ns();
        let mut wait_ns = 0;
        while ready.is_empty() && wait_ns < look_ns {
            // Whoever else has to run on this processor, perhaps to give us work, runs first.
            std::thread::yield_now();
            self.epoll.look(ready)?;
            wait_ns = clock::monotonic_ns() - begin;
        }
        if ready.is_empty() {
            self.epoll.wait(ready, self.probe_in(begin + wait_ns))?;
            wait_ns = clock::monotonic_ns() - begin;
        }
        // Whoever has waited looks for what has become due meanwhile.
        self.turns = u32::MAX;
        self.patience.waited(wait_ns);
        self.idle.end(wait_ns);
        Ok(())
    }

    /// Time until the probes are due; none if they never are.
    fn probe_in(&self, now_ns: u64) -> Option<u64> {
        match self.lane.probe_due_ns() {
            u64::MAX => None,
            _ if self.paused => None,
            due_ns => Some(due_ns.saturating_sub(now_ns)),
        }
    }

    fn ingress(&mut self) -> std::ops::ControlFlow<()> {
        let events = &self.events;
        match self
            .lane
            .ingress_round(|network| report_lost(network, events))
        {
            Round::Failed => self.failures += 1,
            _ => self.failures = 0,
        }
        if self.failures < MAX_FAILURES {
            std::ops::ControlFlow::Continue(())
        } else {
            std::ops::ControlFlow::Break(())
        }
    }

    fn egress(&mut self, token: usize, broken: bool) {
        match self.lane.egress_round(token, clock::monotonic_ns()) {
            Round::Moved => self.failures = 0,
            // A queue that is broken stays readable for ever and must not keep us busy.
            Round::Idle if !broken => self.failures = 0,
            Round::Failed if self.failures < MAX_FAILURES => self.failures += 1,
            Round::Idle | Round::Failed | Round::Lost => self.lose(token),
        }
    }

    fn lose(&mut self, token: usize) {
        if let Some((port, network)) = self.lane.reader(token) {
            // Fails only if it is not watched, which is what we want.
            let _ = self.epoll.remove(port.as_fd());
            report_lost(network, &self.events);
        }
        self.lane.remove_reader(token);
    }

    /// Carries out all orders; breaks off when told to stop or when nobody is left to order.
    fn obey(&mut self) -> std::ops::ControlFlow<()> {
        self.wake.clear();
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Attach {
                    network,
                    queues,
                    writer,
                    done,
                } => {
                    self.detach(network.config().vni);
                    let tokens = self.lane.attach(&network, queues, writer);
                    if !self.paused {
                        self.watch(&tokens);
                    }
                    drop(done);
                }
                Order::Resume { done } => {
                    if self.paused {
                        let underlay = self.lane.underlay.as_fd();
                        if self.epoll.add(underlay, UNDERLAY).is_err() {
                            // The alarm tells; a deaf worker is worse than none.
                            return std::ops::ControlFlow::Break(());
                        }
                        self.paused = false;
                        self.watch(&self.lane.tokens());
                    }
                    drop(done);
                }
                Order::Detach { vni, done } => {
                    self.detach(vni);
                    drop(done);
                }
                Order::BeginCapture { capture, done } => {
                    self.lane.begin_capture(capture);
                    drop(done);
                }
                Order::EndCapture { id, done } => {
                    self.lane.end_capture(id);
                    drop(done);
                }
                Order::TellDrops { to } => {
                    // Fails only if nobody waits for it any more.
                    let _ = to.send(self.lane.recent_drops());
                }
                Order::Tunnels { done } => {
                    self.lane.reload_tunnels(clock::monotonic_ns());
                    drop(done);
                }
                Order::Stop => {
                    self.stopped = true;
                    return std::ops::ControlFlow::Break(());
                }
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    /// Begins to read these queues.
    fn watch(&mut self, tokens: &[usize]) {
        for &token in tokens {
            let Some((port, _)) = self.lane.reader(token) else {
                continue;
            };
            if self.epoll.add(port.as_fd(), token as u64).is_err() {
                self.lose(token);
            }
        }
    }

    fn detach(&mut self, vni: Vni) {
        for port in self.lane.detach(vni) {
            // Needed, since others may hold the descriptor, and then closing ours is not enough.
            let _ = self.epoll.remove(port.as_fd());
        }
    }
}

/// Tells once that a network's port is gone.
fn report_lost(network: &Network, events: &EventSender) {
    if network.mark_lost() {
        events.raise(Event::PortLost(network.config().vni));
    }
}

/// Tells that a worker ended, unless it was told to.
struct Alarm {
    worker: usize,
    events: EventSender,
    armed: bool,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if self.armed {
            self.events.raise(Event::WorkerLost(self.worker));
        }
    }
}
