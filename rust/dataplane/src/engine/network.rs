//! One attached network, as control side and workers share it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::counters::{sum_networks, NetworkCounters, NetworkStats};
use super::EngineError;
use crate::probe;
use crate::table::{FloodLimiter, Tables};
use crate::wire::{ethernet, Vni};

/// How a network is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The VNI.
    pub vni: Vni,
    /// MTU of the overlay in bytes, 68 to 65521.
    pub mtu_bytes: u32,
    /// Whether broadcast and multicast frames are carried.
    pub multicast: bool,
    /// How many of them a second may be sent, 1 to 10^9; a tenth of it at once.
    pub flood_rate: u32,
}

impl NetworkConfig {
    fn check(&self) -> Result<(), EngineError> {
        crate::io::check_mtu(self.mtu_bytes).map_err(EngineError::Invalid)?;
        if self.vni == probe::VNI {
            return Err(EngineError::Invalid(format!(
                "VNI {} is that of probes between hosts: a network has one below it",
                self.vni
            )));
        }
        if !(1..=1_000_000_000).contains(&self.flood_rate) {
            return Err(EngineError::Invalid(format!(
                "flood rate {} is not in 1-1000000000 frames a second",
                self.flood_rate
            )));
        }
        Ok(())
    }
}

/// State of an attached network. Workers read it; only the control side changes its tables.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    limiter: FloodLimiter,
    alive: AtomicBool,
    /// Kept when the network is attached anew, and so are the counters.
    tables: Arc<ArcSwap<Tables>>,
    counters: Arc<[NetworkCounters]>,
}

impl Network {
    /// Makes a network with empty tables, for `workers` workers.
    ///
    /// # Errors
    ///
    /// [`EngineError::Invalid`] if a value of `config` is out of range.
    pub fn new(config: NetworkConfig, workers: usize) -> Result<Self, EngineError> {
        config.check()?;
        let tables = Tables::new(config.vni, config.multicast);
        Ok(Self {
            config,
            limiter: limiter(&config),
            alive: AtomicBool::new(true),
            tables: Arc::new(ArcSwap::from_pointee(tables)),
            counters: (0..workers).map(|_| NetworkCounters::default()).collect(),
        })
    }

    /// The same network, attached anew: its tables and counters are shared with this one.
    ///
    /// # Errors
    ///
    /// [`EngineError::Invalid`] if a value of `config` is out of range.
    pub fn reattached(&self, config: NetworkConfig) -> Result<Self, EngineError> {
        config.check()?;
        self.tables.store(Arc::new(
            self.tables.load().with_multicast(config.multicast),
        ));
        Ok(Self {
            config,
            limiter: limiter(&config),
            alive: AtomicBool::new(true),
            tables: Arc::clone(&self.tables),
            counters: Arc::clone(&self.counters),
        })
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Whether the port is there, as far as the workers have noticed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// The tables that the workers use from their next batch on.
    #[must_use]
    pub fn tables(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    /// Publishes other tables. One writer at a time; the engine's control lock sees to it.
    pub fn publish(&self, tables: Tables) {
        self.tables.store(Arc::new(tables));
    }

    /// Reads the counters, and the sizes of the tables.
    #[must_use]
    pub fn stats(&self) -> NetworkStats {
        let tables = self.tables.load();
        let mut stats = sum_networks(&*self.counters);
        stats.fdb_entries = tables.fdb_len() as u64;
        stats.neighbour_entries = tables.neighbours_len() as u64;
        stats.flood_vteps = tables.flood().len() as u64;
        stats
    }

    pub(super) fn snapshot(&self) -> arc_swap::Guard<Arc<Tables>> {
        self.tables.load()
    }

    pub(super) fn limiter(&self) -> &FloodLimiter {
        &self.limiter
    }

    pub(super) fn counters(&self, worker: usize) -> &NetworkCounters {
        &self.counters[worker]
    }

    /// Notes that the port is gone; true for the first to notice.
    pub(super) fn mark_lost(&self) -> bool {
        self.alive.swap(false, Ordering::Relaxed)
    }

    /// Whether a frame of `len` bytes that begins as `frame` is longer than the MTU allows, a VLAN
    /// tag not counted.
    pub(super) fn is_too_big(&self, frame: &[u8], len: usize) -> bool {
        let most = self.config.mtu_bytes as usize + ethernet::HEADER_LEN;
        len > most
            && (len > most + ethernet::TAG_LEN
                || !matches!(frame.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8])))
    }
}

fn limiter(config: &NetworkConfig) -> FloodLimiter {
    FloodLimiter::new(config.flood_rate, config.flood_rate.div_ceil(10))
}
