//! Load between two network namespaces, measured by whoever makes it.
//!
//! `net-load CLIENT_NETNS SERVER_NETNS ADDRESS KIND ARGUMENTS...` runs a client and a server, each in
//! threads that have entered a namespace (a path, as `ip netns` makes them), and prints one object
//! of JSON. `ADDRESS` is the server's. Everything is bounded in time and checked: bytes that differ
//! from what was sent, or that were not sent at all, end the program with an error.
//!
//! ```text
//! tcp STREAMS SECONDS              bytes a second, by so many connections at once
//! udp PAYLOAD_BYTES SECONDS LOSS   most datagrams a second that lose at most LOSS of them (0-1),
//!                                  found by trials of SECONDS; "flat_out" is without that limit
//! stream PAYLOAD_BYTES RATE SECONDS   what becomes of RATE datagrams a second
//! trip SECONDS                     round trips of a small datagram, one after another, in us
//! connect SECONDS                  connections a second: connect, one byte, close
//! ```
//!
//! `cpu_s` is what all processors did meanwhile, whoever they did it for; on an idle machine that is
//! load, forwarding and kernel together.

// What it prints is its result; a failed expectation is a wrong measurement and ends it.
#![allow(clippy::print_stdout, clippy::expect_used)]

use std::fs::{read_to_string, File};
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{setns, CloneFlags};
use nix::sys::prctl::set_timerslack;
use nix::sys::socket::{
    recvmmsg, sendmmsg, setsockopt, sockopt, MsgFlags, MultiHeaders, SockaddrStorage,
};

/// Bytes of one write to a TCP connection; each begins with its number.
const BLOCK: usize = 128 * 1024;
/// Datagrams of one system call.
const BATCH: usize = 32;
/// What runs before a measurement begins.
const WARM_UP: Duration = Duration::from_millis(300);
/// Steps of the search for a rate: from 0 to 2 times the first guess, to about one percent of it.
const STEPS: usize = 8;

fn main() {
    // Whoever fails, the other threads would wait for it in vain.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(1);
    }));
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [client, server, address, kind, arguments @ ..] = &words[..] else {
        usage();
    };
    let ends = Ends {
        client: (*client).into(),
        server: (*server).into(),
        address: address.parse().unwrap_or_else(|_| usage()),
    };
    let numbers: Option<Vec<f64>> = arguments.iter().map(|word| word.parse().ok()).collect();
    let line = match (*kind, numbers.unwrap_or_default().as_slice()) {
        ("tcp", &[streams, seconds]) => tcp(&ends, streams as usize, seconds),
        ("udp", &[bytes, seconds, loss]) => udp(&ends, bytes as usize, seconds, loss),
        ("stream", &[bytes, rate, seconds]) => stream(&ends, bytes as usize, rate, seconds),
        ("trip", &[seconds]) => trip(&ends, seconds),
        ("connect", &[seconds]) => connect(&ends, seconds),
        _ => usage(),
    };
    println!("{line}");
}

fn usage() -> ! {
    eprintln!(
        "usage: net-load CLIENT_NETNS SERVER_NETNS ADDRESS tcp|udp|stream|trip|connect ARGUMENTS..."
    );
    std::process::exit(2);
}

/// Where client and server run.
#[derive(Clone)]
struct Ends {
    client: String,
    server: String,
    address: IpAddr,
}

/// Runs `body` in a thread that has entered a network namespace.
fn inside<T: Send + 'static>(
    netns: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let netns = File::open(netns).expect("the network namespace can be opened");
    thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).expect("the network namespace can be entered");
        set_timerslack(1).expect("the slack of timers can be set");
        body()
    })
}

/// Waits; a client that waited by turning would take the processor that it measures.
#[allow(clippy::disallowed_methods)]
fn pause(duration: Duration) {
    thread::sleep(duration);
}

/// Seconds that all processors together were busy since the machine started.
fn busy_s() -> f64 {
    let stat = read_to_string("/proc/stat").expect("/proc is mounted");
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .expect("the first line is that of all processors")
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().expect("ticks are numbers"))
        .collect();
    // user, nice, system, (idle, iowait,) irq, softirq; a tick is 10 ms.
    (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / 100.0
}

fn tcp(ends: &Ends, streams: usize, seconds: f64) -> String {
    let (port_of, port) = channel();
    let received = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received);
    let address = ends.address;
    let sink = inside(&ends.server, move || {
        let listener = TcpListener::bind((address, 0)).expect("the server can listen");
        let local = listener.local_addr().expect("it is bound");
        port_of.send(local.port()).expect("somebody waits for it");
        let sinks: Vec<_> = (0..streams)
            .map(|_| {
                let (connection, _) = listener.accept().expect("a client connects");
                let counter = Arc::clone(&counter);
                thread::spawn(move || drain(connection, &counter))
            })
            .collect();
        sinks.into_iter().map(join).sum::<u64>()
    });
    let target = SocketAddr::new(address, port.recv().expect("the server listens"));
    let stop = Arc::new(AtomicBool::new(false));
    let sources: Vec<_> = (0..streams)
        .map(|_| {
            let stop = Arc::clone(&stop);
            inside(&ends.client, move || {
                let connection = TcpStream::connect(target).expect("the server accepts");
                // The same on every machine; BBR, where it is the default, paces by timers.
                setsockopt(&connection, sockopt::TcpCongestion, &"cubic".into())
                    .expect("the kernel has cubic");
                pour(connection, &stop)
            })
        })
        .collect();
    pause(WARM_UP);
    let (begin, busy, before) = (Instant::now(), busy_s(), received.load(Relaxed));
    pause(Duration::from_secs_f64(seconds));
    let bytes = received.load(Relaxed) - before;
    let (elapsed, cpu) = (begin.elapsed().as_secs_f64(), busy_s() - busy);
    stop.store(true, Relaxed);
    let sent: u64 = sources.into_iter().map(join).sum();
    let arrived = join(sink);
    assert_eq!(sent, arrived, "every byte that was sent arrives");
    assert!(bytes > 0, "something arrives within {seconds} s");
    format!(
        r#"{{"bytes_per_s": {:.0}, "bytes": {bytes}, "cpu_s": {cpu:.2}}}"#,
        bytes as f64 / elapsed
    )
}

/// Writes numbered blocks until told to stop; returns the number of bytes.
fn pour(mut connection: TcpStream, stop: &AtomicBool) -> u64 {
    let mut block: Vec<u8> = (0..BLOCK).map(|at| at as u8).collect();
    let mut number = 0u64;
    while !stop.load(Relaxed) {
        block[..8].copy_from_slice(&number.to_be_bytes());
        connection.write_all(&block).expect("the connection holds");
        number += 1;
    }
    number * BLOCK as u64
}

/// Reads numbered blocks to the end, adds each read to `counter`; returns the number of bytes.
fn drain(mut connection: TcpStream, counter: &AtomicU64) -> u64 {
    let mut buffer = vec![0; 2 * BLOCK];
    let mut total = 0;
    loop {
        let len = connection.read(&mut buffer).expect("the connection holds");
        if len == 0 {
            assert_eq!(total % BLOCK, 0, "no block is cut");
            return total as u64;
        }
        // Wherever the read begins and ends: the numbers of the blocks, and what follows them.
        let first = total / BLOCK;
        for number in first..=(total + len - 1) / BLOCK {
            let expected = (number as u64).to_be_bytes().into_iter().chain(8..=64);
            for (at, byte) in expected.enumerate() {
                let at = (number * BLOCK + at).checked_sub(total);
                if let Some(&found) = at.and_then(|at| buffer[..len].get(at)) {
                    assert_eq!(found, byte, "byte of block {number} arrives as it was sent");
                }
            }
        }
        total += len;
        counter.fetch_add(len as u64, Relaxed);
    }
}

/// What a datagram begins with: number of the trial, number in the trial.
const MARK: usize = 12;

/// The receiving end's counters of the trial that runs.
#[derive(Default)]
struct Tally {
    trial: AtomicU64,
    received: AtomicU64,
    disorder: AtomicU64,
    stop: AtomicBool,
}

/// One attempt at a rate.
struct Trial {
    sent: u64,
    received: u64,
    seconds: f64,
    cpu_s: f64,
}

impl Trial {
    fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent as f64
    }

    fn received_pps(&self) -> f64 {
        self.received as f64 / self.seconds
    }
}

fn udp(ends: &Ends, payload_bytes: usize, seconds: f64, loss: f64) -> String {
    let ((flat_out, best), disorder) = datagrams(ends, payload_bytes, move |source| {
        source.trial(f64::INFINITY, WARM_UP.as_secs_f64());
        source.search(seconds, loss)
    });
    let best = best.expect("there is a rate that loses little enough");
    format!(
        r#"{{"frames_per_s": {:.0}, "loss": {:.5}, "flat_out": {:.0}, "frames": {}, "disorder": {disorder}, "cpu_s": {:.2}}}"#,
        best.received_pps(),
        best.loss(),
        flat_out.received_pps(),
        best.received,
        best.cpu_s
    )
}

fn stream(ends: &Ends, payload_bytes: usize, rate: f64, seconds: f64) -> String {
    let (trial, disorder) = datagrams(ends, payload_bytes, move |source| {
        source.trial(rate, WARM_UP.as_secs_f64());
        source.trial(rate, seconds)
    });
    format!(
        r#"{{"frames_per_s": {:.0}, "sent": {}, "frames": {}, "disorder": {disorder}, "cpu_s": {:.2}}}"#,
        trial.received_pps(),
        trial.sent,
        trial.received,
        trial.cpu_s
    )
}

/// Lets `work` send datagrams of a size from one end to the other; also gives how many of them
/// arrived after a later one. That is a figure, no failure: a sender that the scheduler moves to
/// another processor leaves frames behind in the queue of the first, whoever carries them.
fn datagrams<T: Send + 'static>(
    ends: &Ends,
    payload_bytes: usize,
    work: impl FnOnce(&mut Source) -> T + Send + 'static,
) -> (T, u64) {
    assert!(payload_bytes > MARK, "a datagram has room for its mark");
    let tally = Arc::new(Tally::default());
    let (port_of, port) = channel();
    let address = ends.address;
    let sink = {
        let tally = Arc::clone(&tally);
        inside(&ends.server, move || {
            let socket = UdpSocket::bind((address, 0)).expect("the server can bind");
            let local = socket.local_addr().expect("it is bound");
            port_of.send(local.port()).expect("somebody waits for it");
            count(&socket, payload_bytes, &tally);
        })
    };
    let target = SocketAddr::new(address, port.recv().expect("the server is bound"));
    let found = {
        let tally = Arc::clone(&tally);
        inside(&ends.client, move || {
            let unspecified: IpAddr = match target {
                SocketAddr::V4(_) => [0; 4].into(),
                SocketAddr::V6(_) => [0; 16].into(),
            };
            let socket = UdpSocket::bind((unspecified, 0)).expect("the client can bind");
            socket.connect(target).expect("the server has an address");
            work(&mut Source {
                socket,
                tally,
                payload: (0..payload_bytes).map(|at| at as u8).collect(),
            })
        })
    };
    let found = join(found);
    tally.stop.store(true, Relaxed);
    join(sink);
    (found, tally.disorder.load(Relaxed))
}

/// Receives until told to stop, checks and counts what belongs to the trial that runs.
fn count(socket: &UdpSocket, payload_bytes: usize, tally: &Tally) {
    let _ = setsockopt(socket, sockopt::RcvBufForce, &(8 << 20));
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("a socket has a time limit");
    let rest: Vec<u8> = (MARK..payload_bytes).map(|at| at as u8).collect();
    let mut buffers = vec![[0u8; 2048]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut next = 0;
    let mut current = 0;
    while !tally.stop.load(Relaxed) {
        let mut slices: Vec<_> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let received = recvmmsg(
            socket.as_raw_fd(),
            &mut headers,
            slices.iter_mut(),
            MsgFlags::MSG_WAITFORONE,
            None,
        );
        let lens: Vec<usize> = match received {
            Ok(messages) => messages.map(|message| message.bytes).collect(),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => continue,
            Err(error) => panic!("receiving: {error}"),
        };
        let mut arrived = 0;
        for (buffer, len) in buffers.iter().zip(lens) {
            assert_eq!(len, payload_bytes, "a datagram arrives whole");
            assert_eq!(
                &buffer[MARK..len],
                rest,
                "a datagram arrives as it was sent"
            );
            let [trial, number] = marks(buffer);
            if trial != current {
                (current, next) = (trial, 0);
            }
            if number < next {
                tally.disorder.fetch_add(1, Relaxed);
            }
            next = number + 1;
            arrived += u64::from(trial == tally.trial.load(Relaxed));
        }
        tally.received.fetch_add(arrived, Relaxed);
    }
}

fn marks(datagram: &[u8]) -> [u64; 2] {
    let word = |at: usize, len: usize| {
        let bytes = datagram[at..at + len].iter();
        bytes.fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    };
    [word(0, 4), word(4, 8)]
}

struct Source {
    socket: UdpSocket,
    tally: Arc<Tally>,
    payload: Vec<u8>,
}

impl Source {
    /// Finds the highest rate that loses at most `loss`; also gives the trial without a limit.
    fn search(&mut self, seconds: f64, loss: f64) -> (Trial, Option<Trial>) {
        let flat_out = self.trial(f64::INFINITY, seconds);
        let guess = flat_out.received_pps();
        let (mut low, mut high) = (0.0, 2.0 * guess);
        let mut best: Option<Trial> = None;
        for _ in 0..STEPS {
            let rate = (low + high) / 2.0;
            let trial = self.trial(rate, seconds);
            if trial.loss() > loss {
                high = rate;
                continue;
            }
            low = rate;
            if best
                .as_ref()
                .is_none_or(|best| best.received_pps() < trial.received_pps())
            {
                best = Some(trial);
            }
        }
        if flat_out.loss() <= loss && best.as_ref().is_none_or(|best| best.received_pps() < guess) {
            let Trial {
                sent,
                received,
                seconds,
                cpu_s,
            } = flat_out;
            best = Some(Trial {
                sent,
                received,
                seconds,
                cpu_s,
            });
        }
        (flat_out, best)
    }

    /// Sends `rate` datagrams a second, or as many as it can, and waits for those under way.
    fn trial(&mut self, rate: f64, seconds: f64) -> Trial {
        let trial = self.tally.trial.fetch_add(1, Relaxed) + 1;
        self.tally.received.store(0, Relaxed);
        let mut datagrams = vec![self.payload.clone(); BATCH];
        for datagram in &mut datagrams {
            datagram[..4].copy_from_slice(&(trial as u32).to_be_bytes());
        }
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let (begin, busy) = (Instant::now(), busy_s());
        let mut sent = 0u64;
        loop {
            let elapsed = begin.elapsed().as_secs_f64();
            if elapsed >= seconds {
                break;
            }
            let early = (sent as f64 + BATCH as f64) / rate - elapsed;
            if early > 0.0 {
                pause(Duration::from_secs_f64(early));
            }
            for (datagram, number) in datagrams.iter_mut().zip(sent..) {
                datagram[4..MARK].copy_from_slice(&number.to_be_bytes());
            }
            let slices: Vec<_> = datagrams.iter().map(|d| [IoSlice::new(d)]).collect();
            let results = sendmmsg(
                self.socket.as_raw_fd(),
                &mut headers,
                &slices,
                [None; BATCH],
                [],
                MsgFlags::empty(),
            );
            sent += results.expect("the socket takes datagrams").count() as u64;
        }
        let (elapsed, cpu_s) = (begin.elapsed().as_secs_f64(), busy_s() - busy);
        let mut received = self.tally.received.load(Relaxed);
        loop {
            pause(Duration::from_millis(15));
            let now = self.tally.received.load(Relaxed);
            if now == received {
                break;
            }
            received = now;
        }
        assert!(received <= sent, "nothing arrives that was not sent");
        Trial {
            sent,
            received,
            seconds: elapsed,
            cpu_s,
        }
    }
}

fn trip(ends: &Ends, seconds: f64) -> String {
    let (port_of, port) = channel();
    let address = ends.address;
    let stop = Arc::new(AtomicBool::new(false));
    let echo = {
        let stop = Arc::clone(&stop);
        inside(&ends.server, move || {
            let socket = UdpSocket::bind((address, 0)).expect("the server can bind");
            let limit = Some(Duration::from_millis(50));
            socket
                .set_read_timeout(limit)
                .expect("a socket has a time limit");
            let local = socket.local_addr().expect("it is bound");
            port_of.send(local.port()).expect("somebody waits for it");
            let mut buffer = [0; 2048];
            while !stop.load(Relaxed) {
                match socket.recv_from(&mut buffer) {
                    Ok((len, from)) => {
                        socket.send_to(&buffer[..len], from).expect("it can answer");
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => panic!("receiving: {error}"),
                }
            }
        })
    };
    let target = SocketAddr::new(address, port.recv().expect("the server is bound"));
    let client = inside(&ends.client, move || {
        let socket = match target {
            SocketAddr::V4(_) => UdpSocket::bind("0.0.0.0:0"),
            SocketAddr::V6(_) => UdpSocket::bind("[::]:0"),
        }
        .expect("the client can bind");
        socket.connect(target).expect("the server has an address");
        let limit = Some(Duration::from_secs(1));
        socket
            .set_read_timeout(limit)
            .expect("a socket has a time limit");
        let mut trips = Vec::with_capacity(1 << 20);
        let begin = Instant::now();
        let end = WARM_UP + Duration::from_secs_f64(seconds);
        let mut busy = 0.0;
        for number in 0u64.. {
            let sent = Instant::now();
            if sent - begin >= end {
                break;
            }
            if sent - begin < WARM_UP {
                busy = busy_s();
            }
            let mut datagram = [0x5a; 22];
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            socket.send(&datagram).expect("the socket takes a datagram");
            let mut answer = [0; 64];
            let len = socket
                .recv(&mut answer)
                .expect("every datagram is answered within 1 s");
            assert_eq!(answer[..len], datagram, "the answer is what was sent");
            if sent - begin >= WARM_UP {
                trips.push(sent.elapsed());
            }
        }
        (trips, busy_s() - busy)
    });
    let (mut trips, cpu_s) = join(client);
    stop.store(true, Relaxed);
    join(echo);
    trips.sort_unstable();
    let at = |share: f64| trips[(trips.len() as f64 * share) as usize].as_nanos() as f64 / 1000.0;
    format!(
        r#"{{"p50_us": {:.2}, "p99_us": {:.2}, "trips": {}, "cpu_s": {cpu_s:.2}}}"#,
        at(0.5),
        at(0.99),
        trips.len()
    )
}

fn connect(ends: &Ends, seconds: f64) -> String {
    const BYTE: u8 = 0xa5;
    let (port_of, port) = channel();
    let address = ends.address;
    let whole = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&whole);
    let server = inside(&ends.server, move || {
        let listener = TcpListener::bind((address, 0)).expect("the server can listen");
        let local = listener.local_addr().expect("it is bound");
        port_of.send(local.port()).expect("somebody waits for it");
        loop {
            let (mut connection, _) = listener.accept().expect("a client connects");
            let mut bytes = [0; 2];
            match connection.read(&mut bytes).expect("the connection holds") {
                // The last connection says nothing: it ends the server.
                0 => return,
                len => assert_eq!(bytes[..len], [BYTE], "the byte is the one that was sent"),
            }
            counter.fetch_add(1, Relaxed);
        }
    });
    let target = SocketAddr::new(address, port.recv().expect("the server listens"));
    let client = inside(&ends.client, move || {
        let call = || {
            let mut connection = TcpStream::connect(target).expect("the server accepts");
            connection.write_all(&[BYTE]).expect("the connection holds");
        };
        let warm = Instant::now();
        let mut all = 0u64;
        while warm.elapsed() < WARM_UP {
            call();
            all += 1;
        }
        let (begin, busy, before) = (Instant::now(), busy_s(), all);
        while begin.elapsed().as_secs_f64() < seconds {
            call();
            all += 1;
        }
        let (elapsed, cpu_s) = (begin.elapsed().as_secs_f64(), busy_s() - busy);
        // Connections are different flows: the one that ends the server must not overtake another.
        let patience = Instant::now();
        while whole.load(Relaxed) < all && patience.elapsed() < Duration::from_secs(10) {
            pause(Duration::from_millis(1));
        }
        let arrived = whole.load(Relaxed);
        assert_eq!(arrived, all, "every connection arrives with its byte");
        drop(TcpStream::connect(target).expect("the server accepts"));
        (all - before, elapsed, cpu_s)
    });
    let (measured, elapsed, cpu_s) = join(client);
    join(server);
    format!(
        r#"{{"connections_per_s": {:.0}, "connections": {measured}, "cpu_s": {cpu_s:.2}}}"#,
        measured as f64 / elapsed
    )
}

/// The thread's result; its panic has been printed and ends this thread, too.
fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("the other end has not failed")
}
