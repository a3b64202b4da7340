//! Tables: snapshots, their entries and the flood limiter.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;
use support::{MAC_A, MAC_B};
use vxlan_dataplane::table::{FloodLimiter, TableError, Tables};
use vxlan_dataplane::wire::{MacAddr, Vni};

fn empty() -> Tables {
    Tables::new(Vni::new(1).unwrap(), true)
}

fn vtep(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 0, last).into()
}

/// The `n`th of many MAC addresses.
fn mac(n: u32) -> MacAddr {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddr([2, 0x42, a, b, c, d])
}

#[test]
fn added_entry_is_found_and_a_removed_one_is_not() {
    let one = empty().with_changes(&[(MAC_A, vtep(1))], &[]).unwrap();
    assert_eq!(one.lookup(&MAC_A), Some(vtep(1)));
    assert_eq!(one.lookup(&MAC_B), None);
    let none = one.with_changes(&[], &[MAC_A, MAC_B]).unwrap();
    assert_eq!(none.lookup(&MAC_A), None);
    assert_eq!((one.fdb_len(), none.fdb_len()), (1, 0));
    assert_eq!(
        one.lookup(&MAC_A),
        Some(vtep(1)),
        "a snapshot never changes"
    );
}

#[test]
fn moved_entry_frees_its_old_vtep() {
    let before = empty().with_changes(&[(MAC_A, vtep(1))], &[]).unwrap();
    let after = before.with_changes(&[(MAC_A, vtep(2))], &[]).unwrap();
    assert_eq!(after.lookup(&MAC_A), Some(vtep(2)));
    assert!(!after.is_vtep(vtep(1)) && after.is_vtep(vtep(2)));
    assert_eq!(after.fdb_len(), 1);
}

#[test]
fn entry_that_is_removed_and_added_at_once_stays() {
    let tables = empty().with_changes(&[(MAC_A, vtep(1))], &[]).unwrap();
    let tables = tables.with_changes(&[(MAC_A, vtep(2))], &[MAC_A]).unwrap();
    assert_eq!(tables.lookup(&MAC_A), Some(vtep(2)));
}

#[test]
fn zero_is_never_found() {
    let tables = empty().with_changes(&[(MAC_A, vtep(1))], &[]).unwrap();
    assert_eq!(empty().lookup(&MacAddr::ZERO), None);
    assert_eq!(tables.lookup(&MacAddr::ZERO), None);
    assert_eq!(
        tables
            .with_changes(&[], &[MacAddr::ZERO])
            .unwrap()
            .fdb_len(),
        1
    );
}

#[test]
fn entries_that_cannot_be_are_refused_by_name() {
    let tables = empty();
    for bad in [
        MacAddr::ZERO,
        MacAddr::BROADCAST,
        MacAddr([1, 0, 0x5e, 0, 0, 1]),
    ] {
        let error = tables
            .with_changes(&[(MAC_A, vtep(1)), (bad, vtep(1))], &[])
            .unwrap_err();
        assert_eq!(error, TableError::Mac(bad));
        assert!(error.to_string().contains(&bad.to_string()));
        assert_eq!(
            tables.with_neighbours(&[(vtep(1), bad)]).unwrap_err(),
            TableError::Mac(bad)
        );
    }
    for bad in [
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "ff02::1",
        "::ffff:224.0.0.1",
    ] {
        let address: IpAddr = bad.parse().unwrap();
        let error = tables.with_changes(&[(MAC_A, address)], &[]).unwrap_err();
        assert_eq!(error, TableError::Vtep(address));
        assert!(error.to_string().contains(&address.to_string()));
        assert_eq!(
            tables.with_flood(&[address]).unwrap_err(),
            TableError::Vtep(address)
        );
        assert_eq!(
            tables.with_neighbours(&[(address, MAC_A)]).unwrap_err(),
            TableError::Neighbour(address)
        );
    }
}

#[test]
fn flood_list_keeps_its_order_and_drops_doubles() {
    let tables = empty().with_flood(&[vtep(3), vtep(1), vtep(3)]).unwrap();
    assert_eq!(tables.flood(), [vtep(3), vtep(1)]);
    assert!(tables.is_vtep(vtep(3)));
    let tables = tables.with_flood(&[vtep(1)]).unwrap();
    assert!(!tables.is_vtep(vtep(3)) && tables.is_vtep(vtep(1)));
}

#[test]
fn vtep_of_flood_list_and_fdb_stays_until_it_is_in_neither() {
    let both = empty()
        .with_flood(&[vtep(1)])
        .unwrap()
        .with_changes(&[(MAC_A, vtep(1))], &[])
        .unwrap();
    let fdb = both.with_flood(&[]).unwrap();
    assert!(fdb.is_vtep(vtep(1)));
    let none = fdb.with_changes(&[], &[MAC_A]).unwrap();
    assert!(!none.is_vtep(vtep(1)));
}

#[test]
fn mapped_addresses_are_ipv4() {
    let mapped = IpAddr::V6(Ipv4Addr::new(198, 18, 0, 1).to_ipv6_mapped());
    let tables = empty()
        .with_changes(&[(MAC_A, mapped)], &[])
        .unwrap()
        .with_flood(&[mapped])
        .unwrap()
        .with_neighbours(&[(mapped, MAC_A)])
        .unwrap();
    assert_eq!(tables.lookup(&MAC_A), Some(vtep(1)));
    assert_eq!(tables.flood(), [vtep(1)]);
    assert_eq!(tables.neighbour(vtep(1)), Some(MAC_A));
}

#[test]
fn neighbours_are_replaced_as_a_whole() {
    let v6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9));
    let tables = empty()
        .with_neighbours(&[(vtep(1), MAC_A), (v6, MAC_A)])
        .unwrap();
    assert_eq!(tables.neighbours_len(), 2);
    let tables = tables.with_neighbours(&[(v6, MAC_B)]).unwrap();
    assert_eq!(tables.neighbours().collect::<Vec<_>>(), [(v6, MAC_B)]);
    assert_eq!(tables.neighbour(vtep(1)), None);
}

#[test]
fn multicast_setting_changes_alone() {
    let tables = empty().with_changes(&[(MAC_A, vtep(1))], &[]).unwrap();
    let off = tables.with_multicast(false);
    assert!(tables.multicast() && !off.multicast());
    assert_eq!(off.lookup(&MAC_A), Some(vtep(1)));
}

#[test]
fn a_hundred_thousand_entries_are_found_and_can_be_removed_again() {
    const COUNT: u32 = 100_000;
    let entries: Vec<_> = (0..COUNT)
        .map(|n| (mac(n), vtep((n % 200) as u8 + 1)))
        .collect();
    let mut tables = empty();
    for part in entries.chunks(7_777) {
        tables = tables.with_changes(part, &[]).unwrap();
    }
    assert_eq!(tables.fdb_len(), COUNT as usize);
    assert!(entries
        .iter()
        .all(|(mac, vtep)| tables.lookup(mac) == Some(*vtep)));
    assert_eq!(tables.lookup(&mac(COUNT)), None);
    let mut dump: Vec<_> = tables.fdb().collect();
    dump.sort();
    assert_eq!(dump, entries);
    let (stay, go) = entries.split_at(1000);
    let go: Vec<_> = go.iter().map(|(mac, _)| *mac).collect();
    let few = tables.with_changes(&[], &go).unwrap();
    assert_eq!(few.fdb_len(), 1000);
    assert!(stay
        .iter()
        .all(|(mac, vtep)| few.lookup(mac) == Some(*vtep)));
    assert!(go.iter().all(|mac| few.lookup(mac).is_none()));
}

#[test]
fn one_vtep_more_than_65536_is_refused() {
    let vtep = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
    let flood: Vec<_> = (0..0x1_0000).map(vtep).collect();
    let full = empty().with_flood(&flood).unwrap();
    let error = full
        .with_changes(&[(MAC_A, vtep(0x1_0000))], &[])
        .unwrap_err();
    assert_eq!(error, TableError::TooManyVteps(vtep(0x1_0000)));
    assert!(full.with_changes(&[(MAC_A, vtep(0xffff))], &[]).is_ok());
}

proptest! {
    #[test]
    fn tables_are_what_a_map_would_be(
        steps in vec(
            (
                vec((0..600u32, 1..6u8), 0..300),
                vec(0..600u32, 0..200),
                vec(1..6u8, 0..4),
            ),
            1..8,
        ),
    ) {
        let mut tables = empty();
        let mut model = BTreeMap::new();
        for (add, remove, flood) in steps {
            let add: Vec<_> = add.into_iter().map(|(n, v)| (mac(n), vtep(v))).collect();
            let remove: Vec<_> = remove.into_iter().map(mac).collect();
            let flood: Vec<_> = flood.into_iter().map(vtep).collect();
            tables = tables.with_changes(&add, &remove).unwrap().with_flood(&flood).unwrap();
            for mac in &remove {
                model.remove(mac);
            }
            model.extend(add);
            prop_assert_eq!(tables.fdb_len(), model.len());
            prop_assert_eq!(tables.fdb().collect::<BTreeMap<_, _>>(), model.clone());
            for n in 0..600 {
                prop_assert_eq!(tables.lookup(&mac(n)), model.get(&mac(n)).copied());
            }
            for last in 0..8 {
                let used = flood.contains(&vtep(last)) || model.values().any(|v| *v == vtep(last));
                prop_assert_eq!(tables.is_vtep(vtep(last)), used);
            }
        }
    }

    #[test]
    fn limiter_never_admits_more_than_rate_and_burst(
        rate in 1..100_000u32,
        burst in 1..1_000u32,
        gaps in vec(0..20_000_000u64, 1..200),
    ) {
        let limiter = FloodLimiter::new(rate, burst);
        let start = 5_000_000_000;
        let mut now = start;
        let mut admitted = 0u64;
        for gap in gaps {
            now += gap;
            while limiter.admit(now) {
                admitted += 1;
                let interval = 1_000_000_000 / u64::from(rate);
                let allowed = u64::from(burst) + (now - start) / interval;
                prop_assert!(admitted <= allowed, "{} frames, {} allowed", admitted, allowed);
            }
        }
    }
}

#[test]
fn limiter_admits_its_burst_and_then_its_rate() {
    let limiter = FloodLimiter::new(1000, 10);
    let second = 1_000_000_000;
    assert_eq!((0..100).filter(|_| limiter.admit(second)).count(), 10);
    let steady = (1..=1000u64)
        .filter(|ms| limiter.admit(second + ms * 1_000_000))
        .count();
    assert_eq!(steady, 1000);
    assert!(!limiter.admit(2 * second));
    assert!(limiter.admit(2 * second + 1_000_000));
    assert!(
        !limiter.admit(second),
        "a clock that went back admits nothing"
    );
}

#[test]
fn limiter_of_rate_zero_admits_nothing() {
    let limiter = FloodLimiter::new(0, 100);
    assert!(!limiter.admit(0) && !limiter.admit(u64::MAX));
}

#[test]
fn workers_share_one_limit() {
    let limiter = FloodLimiter::new(1, 1000);
    let admitted: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..1000).filter(|_| limiter.admit(1)).count()))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum()
    });
    assert_eq!(admitted, 1000);
}
