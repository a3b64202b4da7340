//! MAC address to VTEP number: a two-level array of small open-addressed tables.
//!
//! One lookup is one keyed hash, two loads from arrays that stay in cache and one probe of the
//! slots: at a million entries, one cache miss. All three levels are shared between snapshots and
//! copied on the first write, so a change of one entry copies some kilobytes, whatever the size.

use std::sync::Arc;

use ahash::RandomState;

use crate::wire::MacAddr;

/// Average number of entries per shard above which there must be more shards.
const TARGET_PER_SHARD: usize = 128;
/// Slots of the smallest shard that holds an entry.
const MIN_SLOTS: usize = 8;

/// Slots of one shard: none, or a power of two of which at least half are vacant.
type Shard = Arc<[Slot]>;

/// MAC address in the upper 48 bits, VTEP number in the lower 16; eight to a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot(u64);

impl Slot {
    /// No entry: none has the MAC address zero.
    const VACANT: Slot = Slot(0);

    const fn new(mac: MacAddr, vtep: u16) -> Self {
        Slot(mac.to_u64() << 16 | vtep as u64)
    }

    const fn mac_number(self) -> u64 {
        self.0 >> 16
    }

    const fn mac(self) -> MacAddr {
        let [a, b, c, d, e, f, _, _] = self.0.to_be_bytes();
        MacAddr([a, b, c, d, e, f])
    }

    const fn vtep(self) -> u16 {
        self.0 as u16
    }

    fn is_vacant(self) -> bool {
        self.mac_number() == 0
    }
}

#[derive(Clone, Debug)]
pub(super) struct Fdb {
    hasher: RandomState,
    /// `1 << half_bits` nodes of `1 << half_bits` shards each.
    root: Arc<[Arc<[Shard]>]>,
    half_bits: u32,
    len: usize,
}

impl Fdb {
    pub(super) fn new(hasher: RandomState) -> Self {
        Fdb {
            hasher,
            root: vacant_root(0),
            half_bits: 0,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The number stored for `mac`.
    #[inline]
    pub(super) fn lookup(&self, mac: MacAddr) -> Option<u16> {
        let (node, shard, hash) = self.place(mac);
        let slots: &[Slot] = &self.root[node][shard];
        if slots.is_empty() || mac == MacAddr::ZERO {
            return None;
        }
        let slot = slots[find(slots, mac, hash)];
        (!slot.is_vacant()).then_some(slot.vtep())
    }

    /// Stores `vtep` for `mac`, which is not zero, and returns what was stored before.
    pub(super) fn insert(&mut self, mac: MacAddr, vtep: u16) -> Option<u16> {
        self.reserve(1);
        let (node, shard, hash) = self.place(mac);
        let hasher = &self.hasher;
        let shard = &mut Arc::make_mut(&mut Arc::make_mut(&mut self.root)[node])[shard];
        let slot = Slot::new(mac, vtep);
        if !shard.is_empty() {
            let at = find(shard, mac, hash);
            if !shard[at].is_vacant() {
                let before = std::mem::replace(&mut Arc::make_mut(shard)[at], slot);
                return Some(before.vtep());
            }
        }
        // Entries are counted rather than kept: writers are rare and shards small.
        let used = shard.iter().filter(|slot| !slot.is_vacant()).count();
        if (used + 1) * 2 > shard.len() {
            *shard = rebuilt(shard, (shard.len() * 2).max(MIN_SLOTS), hasher);
        }
        let slots = Arc::make_mut(shard);
        slots[find(slots, mac, hash)] = slot;
        self.len += 1;
        None
    }

    /// Removes `mac` and returns what was stored for it.
    pub(super) fn remove(&mut self, mac: MacAddr) -> Option<u16> {
        let before = self.lookup(mac)?;
        let (node, shard, hash) = self.place(mac);
        let hasher = &self.hasher;
        let shard = &mut Arc::make_mut(&mut Arc::make_mut(&mut self.root)[node])[shard];
        let slots = Arc::make_mut(shard);
        let mask = slots.len() - 1;
        let mut hole = find(slots, mac, hash);
        slots[hole] = Slot::VACANT;
        // Moves back what would no longer be found across the hole (Knuth, algorithm 6.4R).
        let mut at = (hole + 1) & mask;
        while !slots[at].is_vacant() {
            let home = hash_of(hasher, slots[at].mac_number()) as usize & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                slots[hole] = std::mem::replace(&mut slots[at], Slot::VACANT);
                hole = at;
            }
            at = (at + 1) & mask;
        }
        self.len -= 1;
        Some(before)
    }

    /// Makes room for `additional` entries.
    pub(super) fn reserve(&mut self, additional: usize) {
        let needed = self.len + additional;
        if needed > TARGET_PER_SHARD << (2 * self.half_bits) {
            let half_bits = half_bits_for(needed);
            self.redistribute(half_bits);
        }
    }

    /// Gives back memory after many removals.
    pub(super) fn shrink(&mut self) {
        if self.half_bits > 0 && self.len < (TARGET_PER_SHARD << (2 * self.half_bits)) / 32 {
            self.redistribute(half_bits_for(self.len));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (MacAddr, u16)> + '_ {
        self.root
            .iter()
            .flat_map(|node| node.iter())
            .flat_map(|shard| shard.iter())
            .filter(|slot| !slot.is_vacant())
            .map(|slot| (slot.mac(), slot.vtep()))
    }

    fn redistribute(&mut self, half_bits: u32) {
        let mut grown = Fdb {
            hasher: self.hasher.clone(),
            root: vacant_root(half_bits),
            half_bits,
            len: 0,
        };
        for (mac, vtep) in self.iter() {
            grown.insert(mac, vtep);
        }
        *self = grown;
    }

    /// Node, shard within the node, and the hash whose lower bits tell the slot.
    #[inline]
    fn place(&self, mac: MacAddr) -> (usize, usize, u64) {
        let hash = hash_of(&self.hasher, mac.to_u64());
        let mask = (1 << self.half_bits) - 1;
        let node = (hash >> 48) as usize & mask;
        let shard = (hash >> 32) as usize & mask;
        (node, shard, hash)
    }
}

/// Where `mac` is, or the vacant slot where it would be put. `slots` has a vacant slot.
#[inline]
fn find(slots: &[Slot], mac: MacAddr, hash: u64) -> usize {
    let wanted = mac.to_u64();
    let mask = slots.len() - 1;
    let mut at = hash as usize & mask;
    while slots[at & mask].mac_number() != wanted && !slots[at & mask].is_vacant() {
        at = (at + 1) & mask;
    }
    at
}

fn rebuilt(slots: &[Slot], len: usize, hasher: &RandomState) -> Shard {
    let mut larger = vec![Slot::VACANT; len];
    for slot in slots.iter().filter(|slot| !slot.is_vacant()) {
        let mac = slot.mac();
        let at = find(&larger, mac, hash_of(hasher, mac.to_u64()));
        larger[at] = *slot;
    }
    larger.into()
}

#[inline]
fn hash_of(hasher: &RandomState, mac_number: u64) -> u64 {
    hasher.hash_one(mac_number)
}

/// Smallest size whose shards hold `len` entries with room to double.
fn half_bits_for(len: usize) -> u32 {
    let mut half_bits = 0;
    while len > TARGET_PER_SHARD << (2 * half_bits) {
        half_bits += 1;
    }
    half_bits
}

fn vacant_root(half_bits: u32) -> Arc<[Arc<[Shard]>]> {
    let shard: Shard = Arc::from([]);
    let node: Arc<[Shard]> = (0..1 << half_bits).map(|_| Arc::clone(&shard)).collect();
    (0..1 << half_bits).map(|_| Arc::clone(&node)).collect()
}
