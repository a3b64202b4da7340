//! A worker's part of the probes: asks the VTEPs that are its own, answers whoever asks, and passes
//! answers on to the worker that asked.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::counters::LaneCounters;
use super::tunnels::{Tunnel, Tunnels};
use crate::io::{Area, Memory, Message, Piece, Underlay};
use crate::probe::{Ask, Course, Kind, Probe, Way, FAST_NS, MAX_ASKS, MIN_LEN};
use crate::DropReason;

/// Probes of one batch that are looked at; what is more is dropped and counted.
const MAX_ARRIVED: usize = 256;
/// Tunnels are looked at at most so often, so that many do not wake a worker for each.
const GRID_NS: u64 = 10_000_000;

/// A tunnel that this worker asks.
#[derive(Debug)]
struct Own {
    tunnel: Arc<Tunnel>,
    course: Course,
    due_ns: u64,
    /// Datagrams of traffic that had been sent at the last look.
    traffic: u64,
}

/// The worker's end of the probes.
#[derive(Debug)]
pub(super) struct Prober {
    worker: usize,
    destination_port: u16,
    tunnels: Arc<Tunnels>,
    own: Vec<Own>,
    narrow: u32,
    /// Probes of the last batch, with who sent them.
    arrived: Vec<(IpAddr, Probe)>,
    /// Those that there was no room for.
    too_many: u64,
    asks: Vec<Ask>,
    /// A probe's head, and zeros behind it.
    datagram: Vec<u8>,
    due_ns: u64,
}

impl Prober {
    pub fn new(worker: usize, destination_port: u16, tunnels: Arc<Tunnels>) -> Self {
        Self {
            worker,
            destination_port,
            tunnels,
            own: Vec::new(),
            narrow: 0,
            arrived: Vec::with_capacity(MAX_ARRIVED),
            too_many: 0,
            asks: Vec::with_capacity(MAX_ASKS),
            datagram: vec![0; usize::from(u16::MAX)],
            due_ns: u64::MAX,
        }
    }

    /// Whether there are probes to look at.
    pub fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// When there is something to do, apart from what arrives.
    pub fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// Takes up the tunnels that there are now. Not for the packet path.
    pub fn reload(&mut self, lane: &LaneCounters, now_ns: u64) {
        let list = self.tunnels.list();
        let mut before = std::mem::take(&mut self.own);
        let mut mine: Vec<_> = list.tunnels.values().collect();
        mine.retain(|tunnel| self.tunnels.owner(tunnel.vtep) == self.worker);
        mine.sort_unstable_by_key(|tunnel| tunnel.vtep);
        for (vtep, counters) in lane.vteps.met() {
            if let Some(tunnel) = list.tunnels.get(vtep) {
                tunnel.meet(self.worker, counters);
            }
        }
        if list.interval_ns > 0 {
            let count = mine.len() as u64;
            for (index, tunnel) in mine.into_iter().enumerate() {
                let known = before.iter().position(|own| own.tunnel.vtep == tunnel.vtep);
                let own = known.map_or_else(
                    || {
                        // Spread over the interval.
                        let start_ns = now_ns + list.interval_ns * index as u64 / count;
                        Own {
                            tunnel: Arc::clone(tunnel),
                            course: Course::new(tunnel.floor(), tunnel.full(), start_ns),
                            due_ns: on_grid(start_ns),
                            traffic: tunnel.sent_datagrams(),
                        }
                    },
                    |place| before.swap_remove(place),
                );
                self.own.push(own);
            }
        }
        for own in before {
            // Nobody measures it any more.
            own.tunnel.publish(own.tunnel.full(), own.course.report());
        }
        for own in &mut self.own {
            own.course.set_full(own.tunnel.full());
            own.tunnel.publish(own.course.path(), own.course.report());
        }
        drop(list);
        self.conclude();
    }

    /// Notes a probe that a batch brought; says whether it is one.
    #[cold]
    pub fn note(&mut self, source: IpAddr, datagram: &[u8]) -> bool {
        let Ok(probe) = Probe::parse(datagram) else {
            return false;
        };
        if self.arrived.len() < MAX_ARRIVED {
            self.arrived.push((source, probe));
        } else {
            self.too_many += 1;
        }
        true
    }

    /// Does what is due: answers, and asks.
    pub fn round<U: Underlay>(&mut self, underlay: &mut U, lane: &LaneCounters, now_ns: u64) {
        self.answer(underlay, lane, now_ns);
        if now_ns >= self.due_ns {
            self.ask(underlay, lane, now_ns);
        }
    }

    fn answer<U: Underlay>(&mut self, underlay: &mut U, lane: &LaneCounters, now_ns: u64) {
        let list = self.tunnels.list();
        let drops = &lane.sockets.drops;
        drops.add(DropReason::ProbeRate, std::mem::take(&mut self.too_many));
        for (source, probe) in self.arrived.drain(..) {
            let Some(tunnel) = list.tunnels.get(&source) else {
                drops.add(DropReason::ProbeStranger, 1);
                continue;
            };
            match probe.kind {
                Kind::Request if !tunnel.answers.admit(now_ns) => {
                    drops.add(DropReason::ProbeRate, 1);
                }
                Kind::Request => {
                    tunnel.replies.fetch_add(1, Ordering::Relaxed);
                    let to = SocketAddr::new(source, self.destination_port);
                    let wire = Wire {
                        underlay,
                        lane,
                        datagram: &mut self.datagram,
                    };
                    // One that cannot be sent is a lost one for who asked, and so counted there.
                    let _ = wire.send(to, &probe.answer(), Way::Traffic);
                }
                Kind::Answer if probe.token != self.tunnels.token => {
                    drops.add(DropReason::ProbeStranger, 1);
                }
                Kind::Answer => {
                    let ordered = probe.len == MIN_LEN;
                    tunnel.mail.post(probe.sequence, ordered, now_ns);
                }
            }
        }
    }

    fn ask<U: Underlay>(&mut self, underlay: &mut U, lane: &LaneCounters, now_ns: u64) {
        let interval_ns = self.tunnels.list().interval_ns;
        let fast_ns = FAST_NS.clamp(interval_ns.min(FAST_NS), interval_ns);
        let least_ns = self.tunnels.list().tunnels.len() as u64 * 1_000_000;
        for own in &mut self.own {
            if now_ns < own.due_ns {
                continue;
            }
            let traffic = own.tunnel.sent_datagrams();
            let busy = traffic != std::mem::replace(&mut own.traffic, traffic);
            let interval_ns = if busy {
                fast_ns.max(least_ns)
            } else {
                interval_ns
            };
            own.course
                .advance(now_ns, interval_ns, &own.tunnel.mail, &mut self.asks);
            for ask in &self.asks {
                let probe = Probe {
                    kind: Kind::Request,
                    len: ask.len,
                    sequence: ask.sequence,
                    token: self.tunnels.token,
                };
                let to = SocketAddr::new(own.tunnel.vtep, self.destination_port);
                let wire = Wire {
                    underlay,
                    lane,
                    datagram: &mut self.datagram,
                };
                if let Err(error) = wire.send(to, &probe, ask.way) {
                    if error.raw_os_error() == Some(libc::EMSGSIZE) {
                        own.course.refuse(ask.sequence);
                    }
                }
            }
            own.tunnel.publish(own.course.path(), own.course.report());
            own.due_ns = on_grid(own.course.due_ns());
        }
        self.conclude();
    }

    fn conclude(&mut self) {
        let narrow = self.own.iter().filter(|own| own.course.is_narrow()).count() as u32;
        self.tunnels.count_narrow(self.narrow, narrow);
        self.narrow = narrow;
        let due = self.own.iter().map(|own| own.due_ns).min();
        self.due_ns = due.unwrap_or(u64::MAX);
    }
}

const fn on_grid(due_ns: u64) -> u64 {
    due_ns.div_ceil(GRID_NS) * GRID_NS
}

/// What a probe is sent with.
struct Wire<'a, U> {
    underlay: &'a mut U,
    lane: &'a LaneCounters,
    datagram: &'a mut [u8],
}

impl<U: Underlay> Wire<'_, U> {
    fn send(self, to: SocketAddr, probe: &Probe, way: Way) -> io::Result<()> {
        let len = probe
            .emit(self.datagram)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let sockets = &self.lane.sockets;
        sockets.sent_syscalls.add(1);
        match way {
            Way::Whole => self.underlay.send_whole(to, &self.datagram[..len])?,
            Way::Traffic => {
                // Both of a pair by one socket, and each pair by the next: in turn all ways on
                // which the flows of containers are spread.
                let socket = probe.sequence as usize / 2 % self.underlay.send_sockets();
                let piece = Piece {
                    area: Area::Headers,
                    offset: 0,
                    len: len as u32,
                };
                let message = Message {
                    destination: to,
                    first_piece: 0,
                    pieces: 1,
                    bytes: len as u32,
                    segment: len as u16,
                    segments: 1,
                };
                let memory = Memory {
                    frames: &[],
                    headers: self.datagram,
                };
                self.underlay
                    .send_batch(socket, memory, &[piece], &[message])?;
            }
        }
        sockets.sent_batches.add(1);
        sockets.sent_datagrams.add(1);
        sockets.sent_bytes.add(len as u64);
        Ok(())
    }
}
