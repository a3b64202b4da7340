//! The VTEPs of one VNI, each with a small number and a count of its uses.

use std::net::IpAddr;

use ahash::{AHashMap, RandomState};

/// Numbers of VTEPs. An FDB slot holds two bytes instead of an address.
#[derive(Clone, Debug)]
pub(super) struct Vteps {
    entries: Vec<Entry>,
    index: AHashMap<IpAddr, u16>,
    free: Vec<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: IpAddr,
    uses: usize,
}

impl Vteps {
    pub(super) fn new(hasher: RandomState) -> Self {
        Vteps {
            entries: Vec::new(),
            index: AHashMap::with_hasher(hasher),
            free: Vec::new(),
        }
    }

    /// Adds one use of `address` and returns its number; none if all numbers are taken.
    pub(super) fn acquire(&mut self, address: IpAddr) -> Option<u16> {
        if let Some(&index) = self.index.get(&address) {
            self.entries[usize::from(index)].uses += 1;
            return Some(index);
        }
        let entry = Entry { address, uses: 1 };
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[usize::from(index)] = entry;
                index
            }
            None => {
                let index = u16::try_from(self.entries.len()).ok()?;
                self.entries.push(entry);
                index
            }
        };
        self.index.insert(address, index);
        Some(index)
    }

    /// Takes back one use.
    pub(super) fn release(&mut self, index: u16) {
        let entry = &mut self.entries[usize::from(index)];
        entry.uses -= 1;
        if entry.uses == 0 {
            self.index.remove(&entry.address);
            self.free.push(index);
        }
    }

    /// Takes back one use of `address`, if it is there.
    pub(super) fn release_address(&mut self, address: IpAddr) {
        if let Some(&index) = self.index.get(&address) {
            self.release(index);
        }
    }

    #[inline]
    pub(super) fn address(&self, index: u16) -> Option<IpAddr> {
        self.entries
            .get(usize::from(index))
            .map(|entry| entry.address)
    }

    #[inline]
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.index.contains_key(&address)
    }
}
