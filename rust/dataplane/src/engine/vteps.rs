//! What a worker counts by VTEP, and how the control side learns of it.
//!
//! A worker has counters of its own for each VTEP that it has met. The first datagram makes them
//! and tells the control side; from then on both hold them. VTEPs come from the tables alone, so
//! nobody on the underlay can make more.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;

use ahash::AHashMap;

use super::counters::Counter;
use super::narrow::Narrow;
use super::tunnels::Tunnels;

/// What one worker counts for one VTEP. Aligned so that workers share no cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct VtepCounters {
    sent_datagrams: Counter,
    sent_bytes: Counter,
    received_datagrams: Counter,
    received_bytes: Counter,
}

impl VtepCounters {
    #[inline]
    pub fn sent(&self, datagrams: u64, bytes: u64) {
        self.sent_datagrams.add(datagrams);
        self.sent_bytes.add(bytes);
    }

    /// Datagrams sent so far.
    pub fn sent_datagrams(&self) -> u64 {
        self.sent_datagrams.value()
    }

    #[inline]
    pub fn received(&self, datagrams: u64, bytes: u64) {
        self.received_datagrams.add(datagrams);
        self.received_bytes.add(bytes);
    }
}

/// Datagrams exchanged with one VTEP and the bytes of their UDP payload, summed over the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VtepStats {
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Bytes of these.
    pub sent_bytes: u64,
    /// Datagrams received whose frames the tables let in.
    pub received_datagrams: u64,
    /// Bytes of these.
    pub received_bytes: u64,
}

type Met = (IpAddr, Arc<VtepCounters>);

/// The worker's end.
#[derive(Debug)]
pub(super) struct VtepBook {
    met: Vec<Met>,
    places: AHashMap<IpAddr, usize>,
    /// Where the one before was: most often it is the same.
    last: usize,
    tell: Sender<Met>,
    worker: usize,
    tunnels: Arc<Tunnels>,
}

impl VtepBook {
    /// The counters of a VTEP, which is canonical.
    #[inline]
    pub fn of(&mut self, vtep: IpAddr) -> &VtepCounters {
        if !matches!(self.met.get(self.last), Some((address, _)) if *address == vtep) {
            self.last = match self.places.get(&vtep) {
                Some(&place) => place,
                None => self.meet(vtep),
            };
        }
        &self.met[self.last].1
    }

    /// The tunnels, if one of them is narrower than the networks need.
    #[inline]
    pub fn narrow(&self) -> Option<Narrow> {
        self.tunnels.narrow()
    }

    /// The VTEPs met, with their counters.
    pub fn met(&self) -> impl Iterator<Item = (&IpAddr, &Arc<VtepCounters>)> {
        self.met.iter().map(|(vtep, counters)| (vtep, counters))
    }

    #[cold]
    fn meet(&mut self, vtep: IpAddr) -> usize {
        let counters = Arc::<VtepCounters>::default();
        // Fails only if nobody is left to hear it.
        let _ = self.tell.send((vtep, Arc::clone(&counters)));
        if let Some(tunnel) = self.tunnels.list().tunnels.get(&vtep) {
            tunnel.meet(self.worker, &counters);
        }
        self.met.push((vtep, counters));
        self.places.insert(vtep, self.met.len() - 1);
        self.met.len() - 1
    }
}

/// The control side's end.
#[derive(Debug)]
pub(super) struct MetVteps {
    met: Vec<Met>,
    news: Receiver<Met>,
}

impl MetVteps {
    /// Adds what the worker has counted.
    pub fn sum_into(&mut self, sums: &mut BTreeMap<IpAddr, VtepStats>) {
        self.met.extend(self.news.try_iter());
        for (vtep, counters) in &self.met {
            let sum = sums.entry(*vtep).or_default();
            sum.sent_datagrams += counters.sent_datagrams.value();
            sum.sent_bytes += counters.sent_bytes.value();
            sum.received_datagrams += counters.received_datagrams.value();
            sum.received_bytes += counters.received_bytes.value();
        }
    }
}

pub(super) fn vteps(worker: usize, tunnels: Arc<Tunnels>) -> (VtepBook, MetVteps) {
    let (tell, news) = channel();
    let book = VtepBook {
        met: Vec::new(),
        places: AHashMap::new(),
        last: 0,
        tell,
        worker,
        tunnels,
    };
    let met = MetVteps {
        met: Vec::new(),
        news,
    };
    (book, met)
}
