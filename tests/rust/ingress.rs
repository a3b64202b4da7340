//! Decisions from the wire to the container.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use support::{Packet, MAC_A, MAC_B};
use vxlan_dataplane::ingress::{decide, Ingress};
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::{MacAddr, Vni};
use vxlan_dataplane::DropReason;

const HERE: [u8; 4] = [198, 18, 0, 2];
const OTHER: [u8; 4] = [198, 18, 0, 3];
const FOREIGN: [u8; 4] = [203, 0, 113, 1];

/// MAC_A behind HERE; OTHER only in the flood list.
fn tables() -> Tables {
    Tables::new(Vni::new(7).unwrap(), true)
        .with_changes(&[(MAC_A, HERE.into())], &[])
        .unwrap()
        .with_flood(&[HERE.into(), OTHER.into()])
        .unwrap()
}

fn frame_from(source: MacAddr) -> Vec<u8> {
    let mut frame = Packet::tcp(false, 0, b"data").frame();
    frame[6..12].copy_from_slice(&source.0);
    frame
}

fn decision(source_mac: MacAddr, source: [u8; 4]) -> Ingress {
    decide(&frame_from(source_mac), source.into(), &tables())
}

#[test]
fn frame_of_an_endpoint_from_its_vtep_is_delivered() {
    assert_eq!(decision(MAC_A, HERE), Ingress::Deliver);
}

#[test]
fn frame_from_an_address_that_is_no_vtep_is_dropped() {
    for mac in [MAC_A, MAC_B, MacAddr::ZERO] {
        assert_eq!(
            decision(mac, FOREIGN),
            Ingress::Drop(DropReason::SourceNotVtep)
        );
    }
}

#[test]
fn frame_that_claims_another_vteps_mac_is_dropped() {
    assert_eq!(
        decision(MAC_A, OTHER),
        Ingress::Drop(DropReason::SourceMacElsewhere)
    );
}

#[test]
fn frame_of_an_unknown_mac_is_dropped() {
    assert_eq!(
        decision(MAC_B, HERE),
        Ingress::Drop(DropReason::SourceMacUnknown)
    );
}

#[test]
fn frame_with_an_impossible_source_is_malformed() {
    for mac in [MacAddr::ZERO, MacAddr::BROADCAST] {
        assert_eq!(
            decision(mac, HERE),
            Ingress::Drop(DropReason::FrameMalformed)
        );
    }
}

#[test]
fn frame_without_a_whole_header_is_malformed() {
    let frame = frame_from(MAC_A);
    for len in 0..14 {
        let decision = decide(&frame[..len], HERE.into(), &tables());
        assert_eq!(decision, Ingress::Drop(DropReason::FrameMalformed));
    }
    assert_eq!(
        decide(&frame[..14], HERE.into(), &tables()),
        Ingress::Deliver
    );
}

#[test]
fn vtep_without_any_entry_left_is_none() {
    let tables = tables()
        .with_changes(&[], &[MAC_A])
        .unwrap()
        .with_flood(&[OTHER.into()])
        .unwrap();
    let decision = decide(&frame_from(MAC_A), HERE.into(), &tables);
    assert_eq!(decision, Ingress::Drop(DropReason::SourceNotVtep));
}

proptest! {
    #[test]
    fn only_frames_of_the_fdb_from_the_right_vtep_are_delivered(
        frame in vec(any::<u8>(), 0..64),
        source in any::<[u8; 4]>(),
    ) {
        let tables = tables();
        let source = IpAddr::from(source);
        let right = frame.len() >= 14 && frame[6..12] == MAC_A.0 && source == IpAddr::from(HERE);
        prop_assert_eq!(decide(&frame, source, &tables) == Ingress::Deliver, right);
    }
}
