//! Probes of tunnels: their bytes, their course in time, and two lanes that probe each other.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use vxlan_dataplane::engine::{Lane, Round, TunnelConfig, TunnelStats};
use vxlan_dataplane::io::mem::{Datagram, MemPort, MemUnderlay, WHOLE};
use vxlan_dataplane::probe::{Ask, Course, Kind, Mailbox, Probe, Way, FAST_NS, MIN_LEN, VNI};
use vxlan_dataplane::wire::{ethernet, vxlan};
use vxlan_dataplane::DropReason;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const FULL: u16 = 1472;
const FLOOR: u16 = 548;

// The bytes.

proptest! {
    #[test]
    fn parse_gives_what_emit_wrote(
        answer: bool, len in MIN_LEN..9000, sequence: u32, token: u64
    ) {
        let request = Probe { kind: Kind::Request, len, sequence, token };
        let probe = if answer { request.answer() } else { request };
        let mut room = vec![0; 9000];
        let len = probe.emit(&mut room).unwrap();
        prop_assert_eq!(vxlan::parse(&room), Ok(VNI));
        prop_assert_eq!(Probe::parse(&room[..len]), Ok(probe));
        prop_assert!(Probe::parse(&room[..len + 1]).is_err());
        prop_assert!(len <= request.datagram_len());
    }

    #[test]
    fn a_course_finds_any_width_and_never_more(
        width in FLOOR..=FULL, round_trip_us in 1u64..20_000, lost in 0u32..8
    ) {
        let mut tunnel = Tunnel::new(width);
        tunnel.round_trip_ns = round_trip_us * 1000;
        tunnel.lose_every = (lost > 3).then_some(lost + 8);
        tunnel.run(20 * SECOND, SECOND);
        let path = tunnel.course.path();
        prop_assert!(path <= width);
        prop_assert!(lost > 3 || path + 4 > width, "{} for {}", path, width);
    }
}

#[test]
fn a_probe_is_a_whole_ethernet_frame_of_an_experimental_type() {
    let mut room = [0; MIN_LEN as usize];
    let probe = request(1, MIN_LEN);
    assert_eq!(probe.emit(&mut room), Ok(68));
    let frame = &room[vxlan::HEADER_LEN..];
    assert_eq!(frame.len(), 60);
    assert_eq!(ethernet::Header::parse(frame).unwrap().ethertype, 0x88b5);
    let (to, from) = ethernet::addresses(frame).unwrap();
    assert!(to.is_station() && from.is_station());
}

// The course.

/// A tunnel of some width, played: requests are answered after the round trip.
struct Tunnel {
    course: Course,
    mail: Mailbox,
    width: u16,
    /// Longest that the host's own device sends.
    device: u16,
    up: bool,
    round_trip_ns: u64,
    lose_every: Option<u32>,
    now_ns: u64,
    coming: Vec<(u64, Ask)>,
    sent: Vec<Ask>,
}

impl Tunnel {
    fn new(width: u16) -> Self {
        Self {
            course: Course::new(FLOOR, FULL, SECOND),
            mail: Mailbox::default(),
            width,
            device: u16::MAX,
            up: true,
            round_trip_ns: 200_000,
            lose_every: None,
            now_ns: SECOND,
            coming: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// Lets time go by, in the steps of a worker that looks every 10 ms at most.
    fn run(&mut self, time_ns: u64, interval_ns: u64) {
        let end_ns = self.now_ns + time_ns;
        let mut asks = Vec::new();
        while self.now_ns < end_ns {
            let arrived = |&(at_ns, _): &(u64, Ask)| at_ns <= self.now_ns;
            for (at_ns, ask) in self.coming.iter().copied().filter(arrived) {
                self.mail.post(ask.sequence, ask.len == MIN_LEN, at_ns);
            }
            let now_ns = self.now_ns;
            self.coming.retain(|&(at_ns, _)| at_ns > now_ns);
            self.course
                .advance(now_ns, interval_ns, &self.mail, &mut asks);
            for &ask in &asks {
                self.sent.push(ask);
                let whole = ask.way == Way::Whole;
                if whole && ask.len > self.device {
                    self.course.refuse(ask.sequence);
                    continue;
                }
                let by_chance = self.lose_every.is_some_and(|n| ask.sequence % n == 0);
                if self.up && !by_chance && (!whole || ask.len <= self.width) {
                    self.coming.push((now_ns + self.round_trip_ns, ask));
                }
            }
            let due_ns = self.course.due_ns();
            assert!(due_ns > now_ns, "it would be asked again at once, for ever");
            self.now_ns = due_ns.div_ceil(10 * MS) * 10 * MS;
        }
    }
}

#[test]
fn a_wide_tunnel_costs_three_datagrams_an_interval() {
    let mut tunnel = Tunnel::new(FULL);
    tunnel.run(10 * SECOND, SECOND);
    let report = tunnel.course.report();
    assert_eq!((report.sent, report.lost, report.longest), (20, 0, FULL));
    assert!(report.answered >= 18);
    assert_eq!(tunnel.sent.len(), 30);
    assert_eq!(report.round_trips[2], report.answered); // 100 to 200 us
}

#[test]
fn a_path_that_becomes_narrow_is_known_within_600_ms() {
    let mut tunnel = Tunnel::new(FULL);
    tunnel.run(3 * SECOND, FAST_NS);
    tunnel.width = 1380;
    tunnel.run(600 * MS, FAST_NS);
    assert!((1377..=1380).contains(&tunnel.course.path()));
    assert_eq!(tunnel.course.report().narrowed, 1);
    assert_eq!(tunnel.course.report().longest, tunnel.course.path());
}

#[test]
fn a_smaller_mtu_of_the_own_device_is_known_as_well() {
    let mut tunnel = Tunnel::new(FULL);
    tunnel.run(3 * SECOND, FAST_NS);
    tunnel.device = 1252;
    tunnel.run(600 * MS, FAST_NS);
    assert!((1249..=1252).contains(&tunnel.course.path()));
}

#[test]
fn a_path_that_is_wide_again_is_used_again() {
    let mut tunnel = Tunnel::new(1000);
    tunnel.run(5 * SECOND, SECOND);
    assert!(tunnel.course.is_narrow());
    tunnel.width = FULL;
    tunnel.run(12 * SECOND, SECOND);
    assert!(!tunnel.course.is_narrow());
}

#[test]
fn a_tunnel_that_is_down_is_not_taken_for_a_narrow_one() {
    let mut tunnel = Tunnel::new(FULL);
    tunnel.run(3 * SECOND, SECOND);
    tunnel.up = false;
    tunnel.run(30 * SECOND, SECOND);
    assert!(!tunnel.course.is_narrow());
    let report = tunnel.course.report();
    assert!(report.lost >= 56, "{} lost", report.lost);
    assert_eq!(report.recent as u32, u32::MAX);
}

#[test]
fn one_long_request_lost_by_chance_changes_nothing() {
    let mut tunnel = Tunnel::new(FULL);
    tunnel.lose_every = Some(28); // a long one of some rounds
    tunnel.run(60 * SECOND, SECOND);
    assert_eq!(tunnel.course.path(), FULL);
}

#[test]
fn networks_that_need_more_or_less_are_heeded() {
    let mut tunnel = Tunnel::new(1200);
    tunnel.run(3 * SECOND, SECOND);
    let path = tunnel.course.path();
    tunnel.course.set_full(1100);
    assert_eq!(
        (tunnel.course.path(), tunnel.course.is_narrow()),
        (1100, false)
    );
    tunnel.course.set_full(FULL);
    tunnel.run(3 * SECOND, SECOND);
    assert_eq!(tunnel.course.path(), path);
}

#[test]
fn answers_in_the_wrong_order_are_counted() {
    let mail = Mailbox::default();
    for sequence in [2, 3, 5, 4, 7, 6, 8] {
        mail.post(sequence, true, SECOND);
    }
    assert_eq!(mail.reordered(), 2);
    assert_eq!(mail.take(4, SECOND - 70_000), Some(70_000));
    assert_eq!(mail.take(4, SECOND), None, "an answer counts once");
}

// Two lanes.

struct Side {
    lane: Lane<MemPort, MemUnderlay>,
    underlay: MemUnderlay,
    address: IpAddr,
}

impl Side {
    fn new(address: IpAddr) -> Self {
        let underlay = MemUnderlay::default();
        let lane = Lane::new(0, underlay.clone(), vxlan::PORT);
        Self {
            lane,
            underlay,
            address,
        }
    }

    fn probes(mut self, other: IpAddr, now_ns: u64) -> Self {
        let tunnel = TunnelConfig {
            vtep: other,
            mtu_bytes: 1450,
        };
        self.lane.set_tunnels(SECOND, &[tunnel], now_ns);
        self
    }

    fn stats(&self, now_ns: u64) -> TunnelStats {
        self.lane.tunnel_stats(now_ns)[0].1.clone()
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.lane.underlay_stats().drops.count(reason)
    }
}

/// Carries what one side has sent to the other, and gives it.
fn carry(from: &Side, to: &mut Side) -> Vec<Datagram> {
    let datagrams = from.underlay.take();
    for datagram in &datagrams {
        assert_eq!(datagram.destination.ip(), to.address);
        let payload = &datagram.payload;
        to.underlay.inject(from.address, payload, payload.len());
        assert_eq!(to.lane.ingress_round(|_| ()), Round::Moved);
    }
    datagrams
}

fn request(sequence: u32, len: u16) -> Probe {
    Probe {
        kind: Kind::Request,
        len,
        sequence,
        token: 7,
    }
}

fn datagram(probe: &Probe) -> Vec<u8> {
    let mut bytes = vec![0; probe.datagram_len()];
    probe.emit(&mut bytes).unwrap();
    bytes
}

fn arrive(side: &mut Side, from: IpAddr, bytes: &[u8], now_ns: u64) {
    side.underlay.inject(from, bytes, bytes.len());
    assert_eq!(side.lane.ingress_round(|_| ()), Round::Moved);
    side.lane.probe_round(now_ns);
}

fn pair() -> (IpAddr, IpAddr) {
    (
        Ipv4Addr::new(198, 18, 0, 1).into(),
        Ipv4Addr::new(198, 18, 0, 2).into(),
    )
}

#[test]
fn two_hosts_measure_each_other() {
    for (a, b, overhead) in [
        (pair().0, pair().1, 28),
        (
            IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
            IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
            48,
        ),
    ] {
        let mut near = Side::new(a).probes(b, 0);
        let mut far = Side::new(b).probes(a, 100 * SECOND);
        near.lane.probe_round(10 * MS);
        let requests = carry(&near, &mut far);
        let ways: Vec<_> = requests
            .iter()
            .map(|d| (d.socket, d.payload.len()))
            .collect();
        assert_eq!(ways, [(1, 68), (1, 68), (WHOLE, 1472)]);
        assert_eq!(far.lane.probe_due_ns(), 0, "requests are answered at once");
        far.lane.probe_round(11 * MS);
        assert_eq!(carry(&far, &mut near).len(), 3);
        near.lane.probe_round(12 * MS);
        near.lane.probe_round(1010 * MS);
        let stats = near.stats(1012 * MS);
        assert_eq!((stats.report.sent, stats.report.answered), (4, 2));
        assert_eq!(stats.report.round_trip_sum_ns, 4 * MS);
        assert_eq!(stats.path_mtu_bytes, 1472 + overhead);
        assert_eq!(stats.path_mtu_bytes, stats.needed_mtu_bytes);
        assert_eq!(stats.answer_age_ns, Some(SECOND));
        assert_eq!(stats.reordered, 0);
    }
}

#[test]
fn only_listed_vteps_are_answered_and_only_so_often() {
    let (a, b) = pair();
    let mut side = Side::new(a).probes(b, 10 * SECOND);
    let stranger = IpAddr::from(Ipv4Addr::new(198, 18, 0, 9));
    arrive(&mut side, stranger, &datagram(&request(1, 1472)), SECOND);
    assert_eq!(side.underlay.take().len(), 0);
    assert_eq!(side.drops(DropReason::ProbeStranger), 1);
    for sequence in 1..=150 {
        arrive(&mut side, b, &datagram(&request(sequence, 1472)), SECOND);
    }
    let answers = side.underlay.take();
    assert_eq!(answers.len(), 100);
    assert!(answers
        .iter()
        .all(|answer| answer.payload.len() == MIN_LEN.into()));
    assert_eq!(side.drops(DropReason::ProbeRate), 50);
    assert_eq!(side.stats(SECOND).replies, 100);
}

#[test]
fn a_batch_has_room_for_so_many_probes_and_the_rest_is_counted() {
    let (a, b) = pair();
    let mut side = Side::new(a).probes(b, 10 * SECOND);
    let stranger = IpAddr::from(Ipv4Addr::new(198, 18, 0, 9));
    let probe = datagram(&request(1, MIN_LEN));
    side.underlay
        .inject(stranger, &probe.repeat(300), probe.len());
    assert_eq!(side.lane.ingress_round(|_| ()), Round::Moved);
    side.lane.probe_round(SECOND);
    assert_eq!(side.drops(DropReason::ProbeStranger), 256);
    assert_eq!(side.drops(DropReason::ProbeRate), 44);
}

#[test]
fn an_answer_that_was_not_asked_for_changes_nothing() {
    let (a, b) = pair();
    let mut side = Side::new(a).probes(b, 0);
    side.lane.probe_round(10 * MS);
    arrive(
        &mut side,
        b,
        &datagram(&request(2, MIN_LEN).answer()),
        11 * MS,
    );
    assert_eq!(side.drops(DropReason::ProbeStranger), 1);
    assert_eq!(side.stats(12 * MS).answer_age_ns, None);
}

#[test]
fn what_is_no_probe_on_its_vni_is_an_unknown_vni() {
    let (a, b) = pair();
    let mut side = Side::new(a).probes(b, 10 * SECOND);
    let frame = [&vxlan::header(VNI)[..], &[0; 80]].concat();
    arrive(&mut side, b, &frame, SECOND);
    assert_eq!(side.drops(DropReason::VniUnknown), 1);
}

#[test]
fn a_host_that_does_not_probe_answers_and_never_wakes() {
    let (a, b) = pair();
    let mut side = Side::new(a);
    let tunnel = TunnelConfig {
        vtep: b,
        mtu_bytes: 1450,
    };
    side.lane.set_tunnels(0, &[tunnel], 0);
    assert_eq!(side.lane.probe_due_ns(), u64::MAX);
    arrive(&mut side, b, &datagram(&request(2, MIN_LEN)), SECOND);
    assert_eq!(side.underlay.take().len(), 1);
}

#[test]
fn a_thousand_tunnels_are_spread_over_the_interval() {
    let mut side = Side::new(pair().0);
    let tunnels: Vec<_> = (0..1000u32)
        .map(|n| TunnelConfig {
            vtep: Ipv4Addr::from(0xc612_0100 + n).into(),
            mtu_bytes: 1450,
        })
        .collect();
    side.lane.set_tunnels(SECOND, &tunnels, 0);
    let (mut now_ns, mut rounds, mut most, mut all) = (0, 0, 0, 0);
    while now_ns < 2 * SECOND {
        now_ns = side.lane.probe_due_ns().max(now_ns + 1);
        side.lane.probe_round(now_ns);
        let sent = side.underlay.take().len();
        (rounds, most, all) = (rounds + 1, most.max(sent), all + sent);
    }
    assert!(rounds <= 250, "{rounds} rounds");
    assert!(most <= 80, "{most} datagrams at once");
    assert!(
        (5900..=6100).contains(&all),
        "{all} datagrams in two seconds"
    );
}
