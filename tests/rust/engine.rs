//! The engine with its threads, over sockets of the loopback and ports that are socket pairs.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use support::{Packet, MAC_A, MAC_B};
use vxlan_dataplane::engine::{Engine, EngineError, Event, NetworkConfig};
use vxlan_dataplane::io::{open_underlay, OpenError};
use vxlan_dataplane::wire::virtio::VnetHdr;
use vxlan_dataplane::wire::{vxlan, MacAddr, Vni};
use vxlan_dataplane::DropReason;

/// A port that no test but these uses; each test has addresses of its own.
const PORT: u16 = 14_789;
/// Longest wait for something that must come.
const LIMIT: Duration = Duration::from_secs(10);

fn address(test: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(127, 18, test, host).into()
}

fn vni(value: u32) -> Vni {
    Vni::new(value).unwrap()
}

fn config(value: u32) -> NetworkConfig {
    NetworkConfig {
        vni: vni(value),
        mtu_bytes: 1450,
        multicast: true,
        flood_rate: 100,
    }
}

fn engine(local: IpAddr, workers: usize) -> Engine {
    let sockets = open_underlay(local, PORT, workers, true, 4).unwrap();
    Engine::start(sockets, workers).unwrap()
}

/// A queue for the engine, and the container's end of it. A stream, but it gets one frame at a time.
fn queue() -> (OwnedFd, UnixStream) {
    let (inside, outside) = UnixStream::pair().unwrap();
    outside.set_read_timeout(Some(LIMIT)).unwrap();
    (inside.into(), outside)
}

fn frame(from: MacAddr, to: MacAddr) -> Vec<u8> {
    let mut frame = Packet::udp(false, b"hello").frame();
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame
}

fn send(container: &mut UnixStream, frame: &[u8]) {
    let bytes = [&VnetHdr::NONE.emit(), frame].concat();
    assert_eq!(container.write(&bytes).unwrap(), bytes.len());
}

fn receive(container: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 2000];
    let len = container.read(&mut bytes).unwrap();
    bytes[VnetHdr::NONE.emit().len()..len].to_vec()
}

/// Waits until the engine has something to tell, as an event loop does.
fn wait_for_event(engine: &Engine) -> Vec<Event> {
    let mut poll = libc::pollfd {
        fd: engine.event_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid entry until the call returns.
    let ready = unsafe { libc::poll(&raw mut poll, 1, LIMIT.as_millis() as libc::c_int) };
    assert_eq!(ready, 1, "no event came");
    engine.events()
}

#[test]
fn two_engines_carry_frames_in_both_directions() {
    let (a, b) = (engine(address(1, 1), 2), engine(address(1, 2), 2));
    let ((queue_a, mut at_a), (queue_b, mut at_b)) = (queue(), queue());
    a.attach(config(7), vec![queue_a]).unwrap();
    b.attach(config(7), vec![queue_b]).unwrap();
    a.apply(vni(7), &[(MAC_B, address(1, 2))], &[]).unwrap();
    b.apply(vni(7), &[(MAC_A, address(1, 1))], &[]).unwrap();
    for _ in 0..3 {
        send(&mut at_a, &frame(MAC_A, MAC_B));
        assert_eq!(receive(&mut at_b), frame(MAC_A, MAC_B));
        send(&mut at_b, &frame(MAC_B, MAC_A));
        assert_eq!(receive(&mut at_a), frame(MAC_B, MAC_A));
    }
    let stats = b.stats().unwrap();
    assert_eq!(stats.workers, 2);
    assert_eq!(stats.networks[0].1.ingress_frames, 3);
    assert_eq!(stats.underlay.received_datagrams, 3);
}

#[test]
fn what_waits_for_a_paused_engine_is_forwarded_when_it_resumes() {
    let own = address(6, 1);
    let sockets = open_underlay(own, PORT, 2, true, 4).unwrap();
    let engine = Engine::start_paused(sockets, 2).unwrap();
    let peer = UdpSocket::bind((address(6, 2), PORT)).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let (inside, mut container) = queue();
    send(&mut container, &frame(MAC_A, MAC_B));
    let datagram = [&vxlan::header(vni(7))[..], &frame(MAC_B, MAC_A)].concat();
    peer.send_to(&datagram, (own, PORT)).unwrap();
    engine.attach(config(7), vec![inside]).unwrap();
    // Were it not paused, both would be gone by now: attaching waits for the workers.
    engine
        .apply(vni(7), &[(MAC_B, address(6, 2))], &[])
        .unwrap();
    engine.resume().unwrap();
    assert_eq!(receive(&mut container), frame(MAC_B, MAC_A));
    let mut bytes = [0; 2000];
    let (len, _) = peer.recv_from(&mut bytes).unwrap();
    assert_eq!(bytes[8..len], frame(MAC_A, MAC_B));
    engine.resume().unwrap();
}

#[test]
fn every_datagram_is_received_or_counted_as_dropped_by_the_kernel() {
    const SENT: u64 = 40_000;
    let own = address(90, 1);
    let sockets = open_underlay(own, PORT, 1, true, 1).unwrap();
    let engine = Engine::start_paused(sockets, 1).unwrap();
    let peer = UdpSocket::bind((address(90, 2), PORT)).unwrap();
    for _ in 0..SENT {
        peer.send_to(b"x", (own, PORT)).unwrap();
    }
    let dropped = |engine: &Engine| {
        let drops = engine.stats().unwrap().underlay.drops;
        drops.count(DropReason::ReceiveFull)
    };
    assert!(dropped(&engine) > 0);
    engine.resume().unwrap();
    wait_until_received(&engine, SENT);
}

/// Whether the second worker's thread has had nothing to do while `during` ran.
fn second_slept(engine: &Engine, during: impl FnOnce()) -> bool {
    let idle_ns = || u128::from(engine.stats().unwrap().idle_ns[1]);
    let before_ns = idle_ns();
    let begin = Instant::now();
    during();
    let passed = begin.elapsed();
    idle_ns() - before_ns >= passed.as_nanos()
}

/// A paused engine whose second worker sleeps already: at first it serves what it has to know.
fn paused_with_second_asleep(own: IpAddr, queues: Vec<OwnedFd>) -> Engine {
    let engine = Engine::start_paused(open_underlay(own, PORT, 2, true, 4).unwrap(), 2).unwrap();
    engine.attach(config(7), queues).unwrap();
    let deadline = Instant::now() + LIMIT;
    while !second_slept(&engine, std::thread::yield_now) {
        assert!(Instant::now() < deadline, "it stays awake");
    }
    engine
}

#[test]
fn light_traffic_is_for_the_first_worker_whatever_socket_and_queue_it_takes() {
    let own = address(10, 1);
    let ((first, mut at_first), (second, mut at_second)) = (queue(), queue());
    let engine = paused_with_second_asleep(own, vec![first, second]);
    engine.resume().unwrap();
    let vtep = address(10, 2);
    engine.apply(vni(7), &[(MAC_B, vtep)], &[]).unwrap();
    let peer = UdpSocket::bind((vtep, PORT)).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    at_second.set_nonblocking(true).unwrap();
    let slept = second_slept(&engine, || {
        for round in 0..50 {
            let from = if round % 2 == 0 {
                &mut at_first
            } else {
                &mut at_second
            };
            send(from, &frame(MAC_A, MAC_B));
            peer.recv(&mut [0; 2000]).unwrap();
        }
        // Of many source ports some belong to each socket, whose worker writes to its queue.
        let mut seconds = 0;
        for port in 20_000..20_050 {
            let peer = UdpSocket::bind((vtep, port)).unwrap();
            let datagram = [&vxlan::header(vni(7))[..], &frame(MAC_B, MAC_A)].concat();
            peer.send_to(&datagram, (own, PORT)).unwrap();
            seconds += usize::from(in_either(&at_first, &mut at_second) == 1);
        }
        assert!(
            (1..50).contains(&seconds),
            "{seconds} of 50 by the second socket"
        );
    });
    assert!(slept);
    engine.close();
    assert!(engine.events().is_empty());
}

/// Waits for a frame in one of two containers' ends and takes it; which one had it.
fn in_either(first: &UnixStream, second: &mut UnixStream) -> usize {
    let poll = |stream: &UnixStream| libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls = [poll(first), poll(second)];
    // SAFETY: `polls` are two valid entries until the call returns.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), 2, LIMIT.as_millis() as libc::c_int) };
    assert_eq!(ready, 1, "no frame came");
    let had = usize::from(polls[1].revents != 0);
    let mut stream = if had == 1 { &*second } else { first };
    assert!(stream.read(&mut [0; 2000]).unwrap() > 0);
    had
}

#[test]
fn heavy_traffic_wakes_the_second_worker_and_stays_in_order() {
    const FLOWS: u8 = 32;
    const ROUNDS: u32 = 250;
    let own = address(11, 1);
    let queues = [(); 2].map(|()| UnixDatagram::pair().unwrap());
    let [(first, at_first), (second, at_second)] = queues;
    let engine = paused_with_second_asleep(own, vec![first.into(), second.into()]);
    let vtep = address(11, 2);
    engine.apply(vni(7), &[(MAC_B, vtep)], &[]).unwrap();
    let flows = (0..FLOWS).map(|flow| UdpSocket::bind((vtep, 21_000 + u16::from(flow))).unwrap());
    let flows: Vec<_> = flows.collect();
    // Each container's end reads until nothing more comes; per flow the last number.
    let readers = [at_first, at_second].map(|end| std::thread::spawn(move || read_in_order(&end)));
    let mut number = 0_u32;
    let mut flood = || {
        for _ in 0..ROUNDS {
            number += 1;
            for (flow, socket) in (0..FLOWS).zip(&flows) {
                let mut frame = frame(MAC_B, MAC_A);
                let end = frame.len();
                frame[end - 5] = flow;
                frame[end - 4..].copy_from_slice(&number.to_be_bytes());
                let datagram = [&vxlan::header(vni(7))[..], &frame].concat();
                socket.send_to(&datagram, (own, PORT)).unwrap();
            }
        }
        u64::from(number) * u64::from(FLOWS)
    };
    // So much waits for both sockets that one thread would be busy for long.
    let mut sent = flood();
    let resume = || {
        engine.resume().unwrap();
        wait_until_received(&engine, sent);
    };
    assert!(!second_slept(&engine, resume), "one worker does it all");
    for _ in 0..3 {
        sent = flood();
    }
    wait_until_received(&engine, sent);
    engine.close();
    assert!(engine.events().is_empty());
    let flows_seen: usize = readers.map(|reader| reader.join().unwrap()).iter().sum();
    assert_eq!(flows_seen, usize::from(FLOWS));
}

/// Waits until all datagrams were received or counted as dropped by the kernel.
fn wait_until_received(engine: &Engine, sent: u64) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let underlay = engine.stats().unwrap().underlay;
        if underlay.received_datagrams + underlay.drops.count(DropReason::ReceiveFull) >= sent {
            return;
        }
        assert!(Instant::now() < deadline, "some are in no counter");
        std::thread::yield_now();
    }
}

/// Reads frames until nothing more can come, and checks that each flow's numbers grow; how many flows
/// there were.
fn read_in_order(end: &UnixDatagram) -> usize {
    end.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut last = BTreeMap::new();
    let mut bytes = [0; 2000];
    while let Ok(len) = end.recv(&mut bytes) {
        if len == 0 {
            break;
        }
        let number = u32::from_be_bytes(bytes[len - 4..len].try_into().unwrap());
        let before = last.insert(bytes[len - 5], number);
        assert!(before < Some(number), "{before:?} before {number}");
    }
    last.len()
}

#[test]
fn source_port_is_in_the_dynamic_range_and_not_the_one_to_receive_on() {
    let engine = engine(address(2, 1), 1);
    let peer = UdpSocket::bind((address(2, 2), PORT)).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let (inside, mut container) = queue();
    engine.attach(config(7), vec![inside]).unwrap();
    engine
        .apply(vni(7), &[(MAC_B, address(2, 2))], &[])
        .unwrap();
    send(&mut container, &frame(MAC_A, MAC_B));
    let mut bytes = [0; 2000];
    let (len, source) = peer.recv_from(&mut bytes).unwrap();
    assert_eq!(bytes[..8], vxlan::header(vni(7)));
    assert_eq!(bytes[8..len], frame(MAC_A, MAC_B));
    assert_eq!(source.ip(), address(2, 1));
    assert!(source.port() >= 49_152);
}

#[test]
fn lost_port_is_reported_once_and_can_be_replaced_with_its_tables_kept() {
    let engine = engine(address(3, 1), 2);
    let peer = UdpSocket::bind((address(3, 2), PORT)).unwrap();
    let ((first, container), (second, other)) = (queue(), queue());
    engine.attach(config(7), vec![first, second]).unwrap();
    engine
        .apply(vni(7), &[(MAC_B, address(3, 2))], &[])
        .unwrap();
    drop((container, other));
    assert_eq!(wait_for_event(&engine), [Event::PortLost(vni(7))]);
    assert!(!engine.dump(vni(7)).unwrap().port_alive);
    let (inside, mut container) = queue();
    engine.attach(config(7), vec![inside]).unwrap();
    let dump = engine.dump(vni(7)).unwrap();
    assert!(dump.port_alive);
    assert_eq!(dump.fdb, [(MAC_B, address(3, 2))]);
    let datagram = [&vxlan::header(vni(7)), &*frame(MAC_B, MAC_A)].concat();
    peer.send_to(&datagram, (address(3, 1), PORT)).unwrap();
    assert_eq!(receive(&mut container), frame(MAC_B, MAC_A));
    assert!(engine.events().is_empty());
}

#[test]
fn detach_and_close_let_go_of_every_queue() {
    let engine = engine(address(4, 1), 2);
    let ((first, mut at_first), (second, mut at_second)) = (queue(), queue());
    engine.attach(config(7), vec![first]).unwrap();
    engine.attach(config(8), vec![second]).unwrap();
    engine.detach(vni(7)).unwrap();
    assert_eq!(at_first.read(&mut [0; 1]).unwrap(), 0, "end of stream");
    assert_eq!(engine.vnis().unwrap(), [vni(8)]);
    engine.close();
    engine.close();
    assert_eq!(at_second.read(&mut [0; 1]).unwrap(), 0, "end of stream");
    assert!(matches!(engine.stats(), Err(EngineError::Closed)));
    assert!(engine.events().is_empty());
    UdpSocket::bind((address(4, 1), PORT)).unwrap();
}

#[test]
fn refused_change_leaves_tables_as_they_were() {
    let engine = engine(address(5, 1), 1);
    let (inside, _container) = queue();
    engine.attach(config(7), vec![inside]).unwrap();
    let good = [(MAC_B, address(5, 2))];
    engine.apply(vni(7), &good, &[]).unwrap();
    let bad_mac = [(MAC_A, address(5, 2)), (MacAddr::BROADCAST, address(5, 2))];
    let error = engine.apply(vni(7), &bad_mac, &[MAC_B]).unwrap_err();
    assert!(matches!(error, EngineError::Table(_)), "{error}");
    let other_family = [(MAC_A, "2001:db8::1".parse().unwrap())];
    let error = engine.apply(vni(7), &other_family, &[MAC_B]).unwrap_err();
    assert!(matches!(error, EngineError::Family { .. }), "{error}");
    assert_eq!(engine.dump(vni(7)).unwrap().fdb, good);
    let error = engine.apply(vni(8), &good, &[]).unwrap_err();
    assert!(matches!(error, EngineError::NotAttached(_)), "{error}");
}

#[test]
fn settings_out_of_range_are_refused_and_attach_nothing() {
    let engine = engine(address(6, 1), 1);
    let small = NetworkConfig {
        mtu_bytes: 67,
        ..config(7)
    };
    let still = NetworkConfig {
        flood_rate: 0,
        ..config(7)
    };
    for settings in [small, still] {
        let error = engine.attach(settings, vec![queue().0]).unwrap_err();
        assert!(matches!(error, EngineError::Invalid(_)), "{error}");
    }
    let error = engine.attach(config(7), vec![]).unwrap_err();
    assert!(matches!(error, EngineError::Invalid(_)), "{error}");
    assert!(engine.vnis().unwrap().is_empty());
}

#[test]
fn taken_port_is_an_error_that_names_it_even_if_its_owner_would_share() {
    let _engine = engine(address(7, 1), 1);
    let error = open_underlay(address(7, 1), PORT, 1, true, 1).unwrap_err();
    assert!(matches!(error, OpenError::PortTaken { .. }));
    let text = error.to_string();
    assert!(
        text.contains("14789") && text.contains("127.18.7.1"),
        "{text}"
    );
}

#[test]
fn sockets_that_do_not_fit_together_are_refused() {
    let mut sockets = open_underlay(address(8, 1), PORT, 1, true, 1).unwrap();
    let error = Engine::start(sockets.split_off(1), 1).unwrap_err();
    assert!(matches!(error, EngineError::Invalid(_)), "{error}");
    let other = open_underlay(address(8, 2), PORT, 1, true, 1).unwrap();
    sockets.extend(other);
    let error = Engine::start(sockets, 2).unwrap_err();
    assert!(matches!(error, EngineError::Invalid(_)), "{error}");
}

#[test]
fn sockets_to_send_with_receive_nothing() {
    let sockets = open_underlay(address(9, 1), PORT, 1, true, 1).unwrap();
    let send = UdpSocket::from(sockets.into_iter().nth(1).unwrap());
    let peer = UdpSocket::bind((address(9, 2), 0)).unwrap();
    assert_eq!(peer.send_to(b"x", send.local_addr().unwrap()).unwrap(), 1);
    // Loopback delivers within the call, so that what is not there now never will be.
    let error = send.recv(&mut [0; 1]).unwrap_err();
    assert_eq!(
        error.kind(),
        std::io::ErrorKind::WouldBlock,
        "{}",
        send.as_raw_fd()
    );
}
