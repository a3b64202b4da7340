//! A lane with its descriptors and its orders: what a worker thread serves. It is whole by itself, so
//! that one thread can give it to another between two batches, and with it the order of its flows.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::Arc;

use super::events::{Event, EventSender};
use super::lane::{Lane, Round};
use super::worker::Order;
use super::Network;
use crate::io::{TapQueue, UdpUnderlay};
use crate::sys::clock;
use crate::sys::poll::{Epoll, EventFd, Events};
use crate::wire::Vni;

/// Tokens of the two descriptors that are not queues.
const WAKE: u64 = u64::MAX;
const UNDERLAY: u64 = u64::MAX - 1;
/// Tokens from here up to those two are not the seat's, but those of the thread that has it.
pub(super) const FOREIGN: u64 = u64::MAX - 128;
/// Errors of one kind or another in a row after which a descriptor is given up.
const MAX_FAILURES: u32 = 1000;

/// See the module.
#[derive(Debug)]
pub(super) struct Seat {
    lane: Lane<TapQueue, UdpUnderlay>,
    pub epoll: Epoll,
    inbox: Receiver<Order>,
    wake: Arc<EventFd>,
    events: EventSender,
    /// Gives it to its own thread; the first one's has none, as it never leaves.
    pub home: Option<Sender<Box<Seat>>>,
    /// While paused, sockets and queues are held but not watched.
    paused: bool,
    /// Whether it was told to end.
    stopped: bool,
    failures: u32,
}

impl Seat {
    /// Takes orders from `inbox` when `wake` is signalled; moves nothing before [`Order::Resume`].
    pub fn new(
        lane: Lane<TapQueue, UdpUnderlay>,
        inbox: Receiver<Order>,
        wake: Arc<EventFd>,
        events: EventSender,
        home: Option<Sender<Box<Seat>>>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(wake.as_fd(), WAKE)?;
        Ok(Self {
            lane,
            epoll,
            inbox,
            wake,
            events,
            home,
            paused: true,
            stopped: false,
            failures: 0,
        })
    }

    /// Whether a token is the seat's own, not its thread's.
    pub fn is_own(token: u64) -> bool {
        !(FOREIGN..UNDERLAY).contains(&token)
    }

    /// The number of its worker.
    pub fn number(&self) -> usize {
        self.lane.worker
    }

    /// Whether it was told to end.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Moves one batch from each descriptor that is ready, then carries out orders; breaks off when it
    /// has ended.
    ///
    /// Level-triggered: who has more comes again, so nobody waits for a busy neighbour.
    pub fn serve(&mut self, ready: &Events) -> ControlFlow<()> {
        let mut ordered = false;
        for event in ready.iter() {
            match event.token {
                WAKE => ordered = true,
                UNDERLAY => self.ingress()?,
                FOREIGN.. => {}
                token => self.egress(token as usize, event.broken),
            }
        }
        // At the end, as orders may give tokens to other queues.
        if ordered {
            self.obey()?;
        }
        ControlFlow::Continue(())
    }

    /// Looks after the probes, if it is time. To look at the clock costs little, and less if it is not
    /// done after every small batch: only if `clock` or when a batch has brought some.
    pub fn probe(&mut self, clock: bool) {
        let due_ns = self.lane.probe_due_ns();
        let may_be_due = due_ns == 0 || (due_ns != u64::MAX && clock);
        if may_be_due && !self.paused {
            let now_ns = clock::monotonic_ns();
            if now_ns >= due_ns {
                self.lane.probe_round(now_ns);
            }
        }
    }

    /// When the probes are due; `u64::MAX` if they never are.
    pub fn probe_due_ns(&self) -> u64 {
        if self.paused {
            u64::MAX
        } else {
            self.lane.probe_due_ns()
        }
    }

    fn ingress(&mut self) -> ControlFlow<()> {
        let events = &self.events;
        match self
            .lane
            .ingress_round(|network| report_lost(network, events))
        {
            Round::Failed => self.failures += 1,
            _ => self.failures = 0,
        }
        if self.failures < MAX_FAILURES {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
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

    /// Carries out all orders; breaks off when told to stop.
    fn obey(&mut self) -> ControlFlow<()> {
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
                            return ControlFlow::Break(());
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
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
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

impl Drop for Seat {
    /// Tells that it ended, by a panic as well, unless it was told to.
    fn drop(&mut self) {
        if !self.stopped {
            self.events.raise(Event::WorkerLost(self.number()));
        }
    }
}

/// Tells once that a network's port is gone.
fn report_lost(network: &Network, events: &EventSender) {
    if network.mark_lost() {
        events.raise(Event::PortLost(network.config().vni));
    }
}
