//! What one VNI forwards by: FDB, flood list and neighbours, as an immutable snapshot.
//!
//! There is one writer, the control plane; nothing is learnt from frames. A change makes a new
//! snapshot that shares what did not change with the old one, so that it costs little beside a
//! million entries. A worker reads a snapshot without locks and without reference counting.

mod fdb;
mod limiter;
mod vteps;

use std::net::IpAddr;
use std::sync::Arc;

use ahash::{AHashMap, RandomState};

pub use limiter::FloodLimiter;

use crate::wire::{MacAddr, Vni};
use fdb::Fdb;
use vteps::Vteps;

/// An entry that no table may hold; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The MAC address is zero or a multicast address.
    #[error("MAC address {0} is not that of a station: zero, multicast or broadcast")]
    Mac(MacAddr),
    /// The VTEP cannot be the address of one host.
    #[error("VTEP {0} is not a host's address: unspecified, multicast or broadcast")]
    Vtep(IpAddr),
    /// The neighbour's address cannot be the address of one endpoint.
    #[error("neighbour {0} is not an endpoint's address: unspecified, multicast or broadcast")]
    Neighbour(IpAddr),
    /// The VTEP would be one more than a VNI can have.
    #[error("VTEP {0} is one more than the 65536 that a VNI can have")]
    TooManyVteps(IpAddr),
}

/// Tables of one VNI.
///
/// FDB and neighbours hold endpoints on other hosts only.
#[derive(Clone, Debug)]
pub struct Tables {
    vni: Vni,
    multicast: bool,
    fdb: Fdb,
    vteps: Arc<Vteps>,
    flood: Arc<[IpAddr]>,
    neighbours: Arc<AHashMap<IpAddr, MacAddr>>,
}

impl Tables {
    /// Empty tables; `multicast` tells whether broadcast and multicast frames are carried.
    ///
    /// The hash of the FDB gets a random key of its own, since MAC addresses come from tenants.
    #[must_use]
    pub fn new(vni: Vni, multicast: bool) -> Self {
        let hasher = RandomState::new();
        Tables {
            vni,
            multicast,
            fdb: Fdb::new(hasher.clone()),
            vteps: Arc::new(Vteps::new(hasher.clone())),
            flood: Arc::from([]),
            neighbours: Arc::new(AHashMap::with_hasher(hasher)),
        }
    }

    /// The VNI.
    #[must_use]
    pub fn vni(&self) -> Vni {
        self.vni
    }

    /// Whether broadcast and multicast frames are carried.
    #[must_use]
    pub fn multicast(&self) -> bool {
        self.multicast
    }

    /// The same tables with that setting.
    #[must_use]
    pub fn with_multicast(&self, multicast: bool) -> Self {
        Tables {
            multicast,
            ..self.clone()
        }
    }

    /// The same tables without the FDB entries `remove` and with the entries `add`, in this order:
    /// a MAC in both ends up in the FDB.
    ///
    /// An entry that is there already gets its new VTEP; removing one that is not there does
    /// nothing. Of several additions of one MAC the last counts. IPv4-mapped IPv6 addresses become
    /// IPv4 addresses, here as everywhere in the tables.
    ///
    /// # Errors
    ///
    /// [`TableError`] for the first bad entry.
    pub fn with_changes(
        &self,
        add: &[(MacAddr, IpAddr)],
        remove: &[MacAddr],
    ) -> Result<Self, TableError> {
        for (mac, vtep) in add {
            check_mac(*mac)?;
            check_address(*vtep).map_err(TableError::Vtep)?;
        }
        let mut tables = self.clone();
        let vteps = Arc::make_mut(&mut tables.vteps);
        for mac in remove {
            if let Some(index) = tables.fdb.remove(*mac) {
                vteps.release(index);
            }
        }
        tables.fdb.reserve(add.len());
        for (mac, vtep) in add {
            let index = vteps
                .acquire(vtep.to_canonical())
                .ok_or(TableError::TooManyVteps(*vtep))?;
            if let Some(before) = tables.fdb.insert(*mac, index) {
                vteps.release(before);
            }
        }
        tables.fdb.shrink();
        Ok(tables)
    }

    /// The same tables with this flood list; doubles are dropped, the order stays.
    ///
    /// # Errors
    ///
    /// [`TableError::Vtep`] for the first bad address.
    pub fn with_flood(&self, flood: &[IpAddr]) -> Result<Self, TableError> {
        let mut tables = self.clone();
        let vteps = Arc::make_mut(&mut tables.vteps);
        let mut list: Vec<IpAddr> = Vec::with_capacity(flood.len());
        let mut seen = ahash::AHashSet::with_capacity(flood.len());
        for vtep in flood {
            check_address(*vtep).map_err(TableError::Vtep)?;
            let vtep = vtep.to_canonical();
            if seen.insert(vtep) {
                list.push(vtep);
                vteps.acquire(vtep).ok_or(TableError::TooManyVteps(vtep))?;
            }
        }
        for vtep in &*self.flood {
            vteps.release_address(*vtep);
        }
        tables.flood = list.into();
        Ok(tables)
    }

    /// The same tables with these neighbours instead of those before; of several entries of one
    /// address the last counts.
    ///
    /// # Errors
    ///
    /// [`TableError`] for the first bad entry.
    pub fn with_neighbours(&self, entries: &[(IpAddr, MacAddr)]) -> Result<Self, TableError> {
        let mut neighbours =
            AHashMap::with_capacity_and_hasher(entries.len(), self.neighbours.hasher().clone());
        for (address, mac) in entries {
            check_address(*address).map_err(TableError::Neighbour)?;
            check_mac(*mac)?;
            neighbours.insert(address.to_canonical(), *mac);
        }
        Ok(Tables {
            neighbours: Arc::new(neighbours),
            ..self.clone()
        })
    }

    /// The VTEP behind which `mac` is.
    #[inline]
    #[must_use]
    pub fn lookup(&self, mac: &MacAddr) -> Option<IpAddr> {
        self.vteps.address(self.fdb.lookup(*mac)?)
    }

    /// Whether `address` is in the flood list or in the FDB.
    #[inline]
    #[must_use]
    pub fn is_vtep(&self, address: IpAddr) -> bool {
        self.vteps.contains(address)
    }

    /// The MAC address of the endpoint that has `address`.
    #[inline]
    #[must_use]
    pub fn neighbour(&self, address: IpAddr) -> Option<MacAddr> {
        self.neighbours.get(&address).copied()
    }

    /// The flood list.
    #[inline]
    #[must_use]
    pub fn flood(&self) -> &[IpAddr] {
        &self.flood
    }

    /// The FDB's entries, in no order.
    pub fn fdb(&self) -> impl Iterator<Item = (MacAddr, IpAddr)> + '_ {
        self.fdb
            .iter()
            .filter_map(|(mac, index)| Some((mac, self.vteps.address(index)?)))
    }

    /// The neighbours, in no order.
    pub fn neighbours(&self) -> impl Iterator<Item = (IpAddr, MacAddr)> + '_ {
        self.neighbours
            .iter()
            .map(|(address, mac)| (*address, *mac))
    }

    /// Number of FDB entries.
    #[must_use]
    pub fn fdb_len(&self) -> usize {
        self.fdb.len()
    }

    /// Number of neighbours.
    #[must_use]
    pub fn neighbours_len(&self) -> usize {
        self.neighbours.len()
    }
}

fn check_mac(mac: MacAddr) -> Result<(), TableError> {
    if mac.is_station() {
        Ok(())
    } else {
        Err(TableError::Mac(mac))
    }
}

pub(crate) fn check_address(address: IpAddr) -> Result<(), IpAddr> {
    let canonical = address.to_canonical();
    let broadcast = matches!(canonical, IpAddr::V4(v4) if v4.is_broadcast());
    if canonical.is_unspecified() || canonical.is_multicast() || broadcast {
        Err(address)
    } else {
        Ok(())
    }
}
