//! One worker's share of the forwarding, without its thread: what to do when something is ready.
//!
//! Generic over [`Port`] and [`Underlay`], so that tests drive it over memory and force the order.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::AHashMap;

use super::counters::{sum_underlay, LaneCounters, UnderlayStats};
use super::egress::EgressPath;
use super::ingress::IngressPath;
use super::prober::Prober;
use super::segmentation::Segmentation;
use super::tunnels::{TunnelConfig, TunnelStats, Tunnels};
use super::vteps::{vteps, MetVteps, VtepStats};
use super::watch::{Capture, Watch};
use super::{DroppedFrame, Network};
use crate::io::{Port, Underlay};
use crate::wire::Vni;

/// What a round has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Something was moved; there may be more.
    Moved,
    /// Nothing waited.
    Idle,
    /// An error of this one call, perhaps of what waited; the next call may do better.
    Failed,
    /// The port was deleted; nothing will ever come from it again.
    Lost,
}

/// A worker's ports, sockets and memory.
#[derive(Debug)]
pub struct Lane<P, U> {
    pub(super) worker: usize,
    pub(super) underlay: U,
    pub(super) counters: LaneCounters,
    /// Until the control side takes it.
    pub(super) met: Option<MetVteps>,
    /// By token; None once removed. Tokens are used again.
    readers: Vec<Option<Reader<P>>>,
    pub(super) writers: AHashMap<Vni, Writer<P>>,
    pub(super) segmentation: Segmentation,
    egress: EgressPath,
    ingress: IngressPath,
    prober: Prober,
    tunnels: Arc<Tunnels>,
}

/// A queue that this worker reads.
#[derive(Debug)]
struct Reader<P> {
    network: Arc<Network>,
    port: P,
}

/// The queue that this worker writes a network's frames to.
#[derive(Debug)]
pub(super) struct Writer<P> {
    pub network: Arc<Network>,
    pub port: P,
}

impl<P: Port, U: Underlay> Lane<P, U> {
    /// Makes the lane of worker number `worker`, which sends to UDP port `destination_port`.
    #[must_use]
    pub fn new(worker: usize, underlay: U, destination_port: u16) -> Self {
        let alone = Arc::new(Tunnels::new(worker + 1));
        Self::sharing(worker, underlay, destination_port, alone)
    }

    /// Like [`Lane::new`], with the tunnels of an engine.
    pub(super) fn sharing(
        worker: usize,
        underlay: U,
        destination_port: u16,
        tunnels: Arc<Tunnels>,
    ) -> Self {
        let (book, met) = vteps(worker, Arc::clone(&tunnels));
        let segmentation = Segmentation::new();
        Self {
            worker,
            underlay,
            counters: LaneCounters {
                sockets: Arc::default(),
                vteps: book,
                watch: Watch::new(),
            },
            met: Some(met),
            readers: Vec::new(),
            writers: AHashMap::new(),
            egress: EgressPath::new(destination_port, segmentation.clone()),
            segmentation,
            ingress: IngressPath::new(),
            prober: Prober::new(worker, destination_port, Arc::clone(&tunnels)),
            tunnels,
        }
    }

    /// Forwards for a network: reads `queues`, whose tokens it returns, and writes to `writer`.
    ///
    /// A network with that VNI must have been detached before.
    pub fn attach(&mut self, network: &Arc<Network>, queues: Vec<P>, writer: P) -> Vec<usize> {
        self.writers.insert(
            network.config().vni,
            Writer {
                network: Arc::clone(network),
                port: writer,
            },
        );
        let readers = queues.into_iter().map(|port| Reader {
            network: Arc::clone(network),
            port,
        });
        let mut tokens = Vec::new();
        for reader in readers {
            let free = self.readers.iter().position(Option::is_none);
            let token = free.unwrap_or_else(|| {
                self.readers.push(None);
                self.readers.len() - 1
            });
            self.readers[token] = Some(reader);
            tokens.push(token);
        }
        tokens
    }

    /// Forgets a network; returns the queues that were read for it.
    pub fn detach(&mut self, vni: Vni) -> Vec<P> {
        self.writers.remove(&vni);
        self.readers
            .iter_mut()
            .filter_map(|slot| slot.take_if(|reader| reader.network.config().vni == vni))
            .map(|reader| reader.port)
            .collect()
    }

    /// The queue behind a token, with its network.
    #[must_use]
    pub fn reader(&self, token: usize) -> Option<(&P, &Arc<Network>)> {
        let reader = self.readers.get(token)?.as_ref()?;
        Some((&reader.port, &reader.network))
    }

    /// The tokens of all queues that are read.
    #[must_use]
    pub fn tokens(&self) -> Vec<usize> {
        let readers = self.readers.iter().enumerate();
        readers
            .filter_map(|(token, reader)| reader.as_ref().map(|_| token))
            .collect()
    }

    /// Stops reading the queue behind a token.
    pub fn remove_reader(&mut self, token: usize) {
        if let Some(slot) = self.readers.get_mut(token) {
            *slot = None;
        }
    }

    /// Container to wire: moves one batch from the queue behind `token`.
    ///
    /// `now_ns` is the time on a clock that does not go back, for the flood limiter.
    pub fn egress_round(&mut self, token: usize, now_ns: u64) -> Round {
        let Some(Some(reader)) = self.readers.get(token) else {
            return Round::Idle;
        };
        match self.egress.fill(&reader.port) {
            Ok(()) => {}
            Err(error) => return outcome_of(&error),
        }
        self.counters.watch.begin_turn();
        self.egress.forward(
            &reader.network,
            self.worker,
            &reader.port,
            &mut self.underlay,
            &mut self.counters,
            now_ns,
        );
        self.counters.watch.end_turn();
        Round::Moved
    }

    /// Wire to container: moves one batch from the underlay. `lost` hears of ports found deleted.
    pub fn ingress_round(&mut self, lost: impl FnMut(&Arc<Network>)) -> Round {
        self.counters.sockets.received_syscalls.add(1);
        let messages = match self.underlay.recv_batch() {
            Ok(messages) => messages,
            Err(error) => return outcome_of(&error),
        };
        self.counters.sockets.received_batches.add(1);
        self.counters.watch.begin_turn();
        self.ingress.deliver(
            messages,
            self.worker,
            &self.underlay,
            &self.writers,
            &mut self.counters,
            &mut self.prober,
            lost,
        );
        self.counters.watch.end_turn();
        Round::Moved
    }

    /// Begins to record for a capture, until it is ended or its reader has gone.
    pub fn begin_capture(&mut self, capture: Capture) {
        self.counters.watch.begin_capture(capture);
    }

    /// Ends a capture; one that ended already is no error.
    pub fn end_capture(&mut self, id: u64) {
        self.counters.watch.end_capture(id);
    }

    /// The last frames that were dropped here, in no order.
    #[must_use]
    pub fn recent_drops(&self) -> Vec<DroppedFrame> {
        self.counters.watch.recent_drops()
    }

    /// Lets the kernel cut datagrams from now on, or not.
    pub fn switch_segmentation(&self, on: bool) {
        self.segmentation.switch(on);
    }

    /// Whether it does: it may have refused.
    #[must_use]
    pub fn segmentation(&self) -> bool {
        self.segmentation.is_on()
    }

    /// When [`Lane::probe_round`] has something to do: at once if a batch brought probes.
    #[inline]
    #[must_use]
    pub fn probe_due_ns(&self) -> u64 {
        if self.prober.has_arrived() {
            return 0;
        }
        self.prober.due_ns()
    }

    /// Answers the probes of the last batches, and asks the VTEPs whose turn it is.
    pub fn probe_round(&mut self, now_ns: u64) {
        self.prober
            .round(&mut self.underlay, &self.counters, now_ns);
    }

    /// Takes up the tunnels that there are now.
    pub fn reload_tunnels(&mut self, now_ns: u64) {
        self.prober.reload(&self.counters, now_ns);
    }

    /// Replaces the tunnels, for a lane that shares them with no other.
    pub fn set_tunnels(&mut self, interval_ns: u64, tunnels: &[TunnelConfig], now_ns: u64) {
        self.tunnels.set(interval_ns, tunnels);
        self.reload_tunnels(now_ns);
    }

    /// What is known of the tunnels, by VTEP.
    #[must_use]
    pub fn tunnel_stats(&self, now_ns: u64) -> Vec<(IpAddr, TunnelStats)> {
        self.tunnels.stats(now_ns)
    }

    /// Reads the counters of the sockets.
    #[must_use]
    pub fn underlay_stats(&self) -> UnderlayStats {
        sum_underlay([&*self.counters.sockets])
    }

    /// Reads the counters by VTEP. Nothing if a worker's control side has them.
    pub fn vtep_stats(&mut self) -> BTreeMap<IpAddr, VtepStats> {
        let mut sums = BTreeMap::new();
        if let Some(met) = &mut self.met {
            met.sum_into(&mut sums);
        }
        sums
    }
}

/// EBADFD means a deleted TAP; other errors are those of one call, and over with its report.
fn outcome_of(error: &io::Error) -> Round {
    match error.raw_os_error() {
        Some(libc::EBADFD) => Round::Lost,
        Some(libc::EAGAIN) => Round::Idle,
        _ => Round::Failed,
    }
}
