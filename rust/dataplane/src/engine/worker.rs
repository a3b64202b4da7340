//! Worker threads. Each has a [`Seat`] of its own, and the first one serves those of all others as
//! well until it can't keep up: then it gives a seat to its thread, which serves it until nothing more
//! comes, gives it back, and sleeps. So light traffic keeps one thread awake and meets it looking,
//! whichever sockets and queues it takes, and heavy traffic has all threads. Seats move by channels,
//! whole and between two batches: nothing is shared, and frames of a flow stay in order.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::mpsc::{channel, Receiver, SendError, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::counters::UnderlayCounters;
use super::events::EventSender;
use super::idle::{Idle, IdleReader};
use super::lane::Lane;
use super::patience::Patience;
use super::seat::{Seat, FOREIGN};
use super::segmentation::Segmentation;
use super::vteps::{MetVteps, VtepStats};
use super::watch::Capture;
use super::{DroppedFrame, Network};
use crate::io::{TapQueue, UdpUnderlay};
use crate::sys::poll::{Epoll, EventFd, Events};
use crate::sys::{clock, signal};
use crate::wire::Vni;

/// Token of the eventfd that says that a seat came back; those of covered seats follow, by number.
const BACK: u64 = FOREIGN;
/// Descriptors that one wait returns; those that are left out come first the next time.
const EVENTS: usize = 64;
/// Turns of a busy loop after which the time is looked at, for the probes.
const CLOCK_TURNS: u32 = 16;
/// Turns in a row that found something at once after which a thread counts as unable to keep up.
const BUSY_TURNS: u32 = 64;

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
    /// Starts the workers of these lanes, which move nothing before [`Order::Resume`].
    ///
    /// On failure those that run already end.
    pub fn start_all(
        lanes: Vec<Lane<TapQueue, UdpUnderlay>>,
        events: &EventSender,
    ) -> io::Result<Vec<Self>> {
        let (give_back, returns) = channel();
        let back = Arc::new(EventFd::new()?);
        let first = ToFirst { give_back, back };
        let mut returns = Some(returns);
        let mut workers = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let events = events.clone();
            let started = if let Some(returns) = returns.take() {
                let back = Arc::clone(&first.back);
                Self::start(lane, None, events, move |seat, wait| {
                    First::run(*seat, returns, back, wait);
                })
            } else {
                let first = first.clone();
                let (home, given) = channel();
                Self::start(lane, Some(home), events, move |seat, wait| {
                    other(seat, &given, &first, wait);
                })
            };
            match started {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    drop(first); // The first ends only when nobody can give it a seat any more.
                    Self::stop_all(workers);
                    return Err(error);
                }
            }
        }
        Ok(workers)
    }

    /// Ends the workers of one engine, and waits until they have.
    pub fn stop_all(workers: Vec<Self>) {
        for worker in &workers {
            worker.order(Order::Stop);
        }
        for worker in workers {
            // A panic was reported as an event already.
            let _ = worker.thread.join();
        }
    }

    fn start(
        mut lane: Lane<TapQueue, UdpUnderlay>,
        home: Option<Sender<Box<Seat>>>,
        events: EventSender,
        run: impl FnOnce(Box<Seat>, Wait) + Send + 'static,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new()?);
        let (orders, inbox) = channel();
        let counters = Arc::clone(&lane.counters.sockets);
        let met = lane.met.take();
        let segmentation = lane.segmentation.clone();
        let idle = Arc::<Idle>::default();
        let wait = Wait {
            patience: Patience::default(),
            idle: Arc::clone(&idle),
        };
        let name = format!("vxlan-{}", lane.worker);
        let seat = Box::new(Seat::new(lane, inbox, Arc::clone(&wake), events, home)?);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            signal::block_all();
            run(seat, wait);
        })?;
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

    /// How long its thread has had nothing to do, in nanoseconds.
    pub fn idle_ns(&mut self, now_ns: u64) -> u64 {
        self.idle.read(now_ns)
    }
}

/// How a thread waits.
struct Wait {
    patience: Patience,
    idle: Arc<Idle>,
}

impl Wait {
    /// Fills `ready` with what is ready, for which it looks for a while and then sleeps, until `due_ns`
    /// at most; whether something was ready at once. A signal ends it with nothing.
    ///
    /// Given `sleeps` false it does not sleep.
    fn fill(
        &mut self,
        epoll: &Epoll,
        ready: &mut Events,
        due_ns: impl FnOnce() -> u64,
        sleeps: bool,
    ) -> io::Result<bool> {
        epoll.look(ready)?;
        if !ready.is_empty() {
            return Ok(true);
        }
        let begin = clock::monotonic_ns();
        self.idle.begin(begin);
        let look_ns = self.patience.look_ns();
        let mut wait_ns = 0;
        while ready.is_empty() && wait_ns < look_ns {
            // Whoever else has to run on this processor, perhaps to give us work, runs first.
            std::thread::yield_now();
            epoll.look(ready)?;
            wait_ns = clock::monotonic_ns() - begin;
        }
        if ready.is_empty() && sleeps {
            let most_ns = match due_ns() {
                u64::MAX => None,
                due_ns => Some(due_ns.saturating_sub(begin + wait_ns)),
            };
            epoll.wait(ready, most_ns)?;
            wait_ns = clock::monotonic_ns() - begin;
        }
        self.patience.waited(wait_ns);
        self.idle.end(wait_ns);
        Ok(false)
    }
}

/// What the first worker's thread has.
struct First {
    seat: Seat,
    /// Those of other threads that it has, by number less one.
    covered: Vec<Option<Box<Seat>>>,
    returns: Receiver<Box<Seat>>,
    back: Arc<EventFd>,
    /// Turns in a row that found something at once.
    busy: u32,
}

impl First {
    fn run(seat: Seat, returns: Receiver<Box<Seat>>, back: Arc<EventFd>, mut wait: Wait) {
        if seat.epoll.add(back.as_fd(), BACK).is_err() {
            return; // The seat's end tells.
        }
        let mut first = Self {
            seat,
            covered: Vec::new(),
            returns,
            back,
            busy: 0,
        };
        let mut ready = Events::new(EVENTS);
        let mut inner = Events::new(EVENTS);
        let mut turns = 0_u32;
        loop {
            let found = wait.fill(&first.seat.epoll, &mut ready, || first.due_ns(), true);
            let Ok(at_once) = found else { break };
            first.busy = if at_once {
                first.busy.saturating_add(1)
            } else {
                0
            };
            turns = turns.wrapping_add(1);
            if first.seat.serve(&ready).is_break() {
                break;
            }
            first.serve_covered(&ready, &mut inner);
            // Whoever has waited looks for what has become due meanwhile.
            let clock = !at_once || turns % CLOCK_TURNS == 0;
            first.seat.probe(clock);
            for seat in first.covered.iter_mut().flatten() {
                seat.probe(clock);
            }
        }
        first.end();
    }

    /// When the next probe of any seat is due.
    fn due_ns(&self) -> u64 {
        let covered = self.covered.iter().flatten();
        let due = covered.map(|seat| seat.probe_due_ns());
        due.fold(self.seat.probe_due_ns(), u64::min)
    }

    /// Serves those of the other seats that are ready, or gives them to their threads if that is more
    /// than one thread can do.
    fn serve_covered(&mut self, ready: &Events, inner: &mut Events) {
        let mut before = ready.iter().any(|event| Seat::is_own(event.token));
        for event in ready.iter() {
            match event.token {
                BACK => self.take_back(),
                token if token > BACK && (token - BACK) as usize <= self.covered.len() => {
                    let place = (token - BACK) as usize - 1;
                    if before && self.busy >= BUSY_TURNS {
                        self.give(place);
                    } else {
                        self.serve_one(place, inner);
                    }
                    before = true;
                }
                _ => {}
            }
        }
    }

    fn serve_one(&mut self, place: usize, inner: &mut Events) {
        let Some(seat) = &mut self.covered[place] else {
            return;
        };
        let looked = seat.epoll.look(inner);
        if looked.is_err() || seat.serve(inner).is_break() {
            // Its epoll ends with it, and so does its thread, which nobody can give anything.
            self.covered[place] = None;
        }
    }

    /// Gives a seat to its own thread.
    fn give(&mut self, place: usize) {
        let Some(seat) = self.covered[place].take() else {
            return;
        };
        // Fails only if it is not watched, which is what we want.
        let _ = self.seat.epoll.remove(seat.epoll.as_fd());
        go_home(seat);
    }

    /// Takes the seats that came back.
    fn take_back(&mut self) {
        self.back.clear();
        while let Ok(seat) = self.returns.try_recv() {
            let number = seat.number();
            let token = BACK + number as u64;
            if self.seat.epoll.add(seat.epoll.as_fd(), token).is_err() {
                continue; // The seat's end tells; unseen, it would be a deaf one.
            }
            if self.covered.len() < number {
                self.covered.resize_with(number, || None);
            }
            self.covered[number - 1] = Some(seat);
        }
    }

    /// Gives all seats to their threads, which from now on keep them.
    fn end(mut self) {
        for place in 0..self.covered.len() {
            self.give(place);
        }
        if self.seat.stopped() {
            // All are told to stop: until they have ended, none may be lost on its way.
            drop(self.seat);
            self.returns.into_iter().for_each(go_home);
        }
    }
}

/// Gives a seat to its own thread, which waits for it.
fn go_home(seat: Box<Seat>) {
    if let Some(home) = seat.home.clone() {
        // Fails only if its thread was lost: then the seat ends, which tells.
        let _ = home.send(seat);
    }
}

/// What another worker's thread knows of the first.
#[derive(Clone)]
struct ToFirst {
    give_back: Sender<Box<Seat>>,
    back: Arc<EventFd>,
}

/// Another worker's thread: serves its seat while there is much to do.
fn other(seat: Box<Seat>, given: &Receiver<Box<Seat>>, first: &ToFirst, mut wait: Wait) {
    let mut ready = Events::new(EVENTS);
    let mut next = Some(seat);
    while let Some(mut seat) = next {
        if serve(&mut seat, &mut wait, &mut ready, false).is_break() {
            return;
        }
        let begin = clock::monotonic_ns();
        wait.idle.begin(begin);
        match first.give_back.send(seat) {
            Ok(()) => first.back.signal(),
            Err(SendError(mut seat)) => {
                // The first worker is lost, which it has told: this one goes on alone.
                let _ = serve(&mut seat, &mut wait, &mut ready, true);
                return;
            }
        }
        next = given.recv().ok();
        wait.idle.end(clock::monotonic_ns() - begin);
        // Whoever is given a seat has traffic, and looks for more.
        wait.patience.waited(0);
    }
}

/// Serves a seat until it has ended, which breaks off, or, unless the thread `sleeps`, until nothing
/// more comes.
fn serve(seat: &mut Seat, wait: &mut Wait, ready: &mut Events, sleeps: bool) -> ControlFlow<()> {
    let mut turns = 0_u32;
    loop {
        let found = wait.fill(&seat.epoll, ready, || seat.probe_due_ns(), sleeps);
        let Ok(at_once) = found else {
            return ControlFlow::Break(());
        };
        if ready.is_empty() && !sleeps {
            return ControlFlow::Continue(());
        }
        seat.serve(ready)?;
        turns = turns.wrapping_add(1);
        seat.probe(!at_once || turns % CLOCK_TURNS == 0);
    }
}
