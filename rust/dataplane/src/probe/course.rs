//! The course of the probes of one tunnel: what to send when, and what follows from the answers.
//!
//! Every interval two short requests go the way of the traffic (they tell round trip, loss and
//! order), and one as long as the longest datagram that is known to get through, which no router may
//! fragment. If the short ones are answered and the long one is not, the path has become narrower:
//! bursts of many lengths find its width (packetization layer path MTU discovery, RFC 8899), without
//! ICMP, which may be lost or forged. From time to time a narrow tunnel is tried for more.

use super::mailbox::Mailbox;
use super::report::Report;
use super::wire::MIN_LEN;

/// A tunnel with traffic is probed at least so often.
pub const FAST_NS: u64 = 250_000_000;
/// Most requests that [`Course::advance`] asks for at once.
pub const MAX_ASKS: usize = 2 + BURST + 1;

/// A request without an answer after this time is lost.
const VERDICT_NS: u64 = 1_000_000_000;
/// How long the answer to a long request may take: four round trips, but not less than this.
const LEAST_PATIENCE_NS: u64 = 100_000_000;
/// Time between attempts to send more through a narrow tunnel.
const WIDEN_NS: u64 = 10_000_000_000;
/// Lengths tried at once.
const BURST: usize = 15;
/// How exactly a path's width is found, in bytes.
const EXACT: u16 = 4;
/// More requests are not on the way at a time.
const MAX_PENDING: usize = 96;

/// How a request is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As the traffic, which routers may fragment.
    Traffic,
    /// Whole or not at all.
    Whole,
}

/// A request to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Its number.
    pub sequence: u32,
    /// Length of its datagram (UDP payload), in bytes.
    pub len: u16,
    /// How.
    pub way: Way,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Sign,
    Full,
    Search,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    sequence: u32,
    len: u16,
    role: Role,
    sent_ns: u64,
    /// The host's own device refused it.
    refused: bool,
}

/// A search for the longest datagram: `low` gets through, `high` does not.
#[derive(Clone, Copy, Debug)]
struct Search {
    low: u16,
    high: u16,
    /// Longest of the present burst that was answered; 0 for none.
    best: u16,
    /// Shortest of the present burst.
    least: u16,
    until_ns: u64,
    /// Whether it began because a full one was not answered, not to widen.
    narrowing: bool,
    first: bool,
}

/// State of one tunnel's probes.
#[derive(Debug)]
pub struct Course {
    floor: u16,
    full: u16,
    /// What is sent at most; believed until the contrary is shown.
    path: u16,
    sequence: u32,
    next_ns: u64,
    widen_ns: u64,
    smooth_ns: Option<u64>,
    /// When the youngest short request that was answered had been sent.
    alive_ns: u64,
    pending: Vec<Pending>,
    search: Option<Search>,
    report: Report,
}

impl Course {
    /// Begins at `start_ns`. Datagrams are not thought to be shorter than `floor` on any path, and
    /// longer than `full` none is needed.
    #[must_use]
    pub fn new(floor: u16, full: u16, start_ns: u64) -> Self {
        let floor = floor.max(MIN_LEN);
        let full = full.max(floor);
        Course {
            floor,
            full,
            path: full,
            sequence: 0,
            next_ns: start_ns,
            widen_ns: 0,
            smooth_ns: None,
            alive_ns: 0,
            pending: Vec::with_capacity(MAX_PENDING),
            search: None,
            report: Report::default(),
        }
    }

    /// Longest datagram that gets through, as far as is known; `full` until the contrary is shown.
    #[must_use]
    pub fn path(&self) -> u16 {
        self.path
    }

    /// Whether less gets through than is needed.
    #[must_use]
    pub fn is_narrow(&self) -> bool {
        self.path < self.full
    }

    /// What the probes have told.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Takes another longest length that is needed.
    pub fn set_full(&mut self, full: u16) {
        let full = full.max(self.floor);
        if full == self.full {
            return;
        }
        // A path that was wide enough is believed to be so for more, until shown; a narrow one is
        // tried for more soon.
        self.path = if self.is_narrow() {
            self.path.min(full)
        } else {
            full
        };
        self.full = full;
        self.search = None;
        self.widen_ns = 0;
        self.report.longest = self.report.longest.min(full);
    }

    /// When [`Course::advance`] has something to do again.
    #[must_use]
    pub fn due_ns(&self) -> u64 {
        let pending = self.pending.iter().map(|pending| match pending.role {
            Role::Full => pending.sent_ns + self.patience_ns(),
            Role::Sign | Role::Search => pending.sent_ns + VERDICT_NS,
        });
        let search = self.search.map(|search| search.until_ns);
        pending
            .chain(search)
            .fold(self.next_ns, |least, due_ns| least.min(due_ns))
    }

    /// Learns from the answers in `mail` and says what to send, at most [`MAX_ASKS`] requests.
    ///
    /// `interval_ns` is until the next regular requests. Whatever the host's own device refuses as
    /// too long goes to [`Course::refuse`].
    pub fn advance(&mut self, now_ns: u64, interval_ns: u64, mail: &Mailbox, out: &mut Vec<Ask>) {
        out.clear();
        self.read(now_ns, mail);
        self.conclude(now_ns, out);
        if now_ns >= self.next_ns {
            self.next_ns = now_ns + interval_ns;
            // The two of a pair differ in the last bit, by which both sides know them.
            self.sequence |= 1;
            self.ask(MIN_LEN, Role::Sign, now_ns, out);
            self.ask(MIN_LEN, Role::Sign, now_ns, out);
            if self.search.is_none() {
                if self.is_narrow() && now_ns >= self.widen_ns {
                    self.begin(self.path, self.full + 1, false, now_ns, out);
                } else {
                    self.ask(self.path, Role::Full, now_ns, out);
                }
            }
        }
    }

    /// Notes that the host's own device does not send a request that long.
    pub fn refuse(&mut self, sequence: u32) {
        let found = self.pending.iter_mut().find(|p| p.sequence == sequence);
        if let Some(pending) = found {
            pending.refused = true;
        }
    }

    /// Takes all answers that are there, and gives up what is too old.
    fn read(&mut self, now_ns: u64, mail: &Mailbox) {
        let Self {
            pending,
            report,
            search,
            smooth_ns,
            alive_ns,
            full,
            ..
        } = self;
        pending.retain(|one| {
            if let Some(round_trip_ns) = mail.take(one.sequence, one.sent_ns) {
                match one.role {
                    Role::Sign => {
                        report.answered(round_trip_ns);
                        *alive_ns = (*alive_ns).max(one.sent_ns);
                        // As TCP smoothes it (RFC 6298, section 2).
                        *smooth_ns = Some(match *smooth_ns {
                            Some(smooth_ns) => (7 * smooth_ns + round_trip_ns) / 8,
                            None => round_trip_ns,
                        });
                    }
                    Role::Full | Role::Search => {
                        report.longest = report.longest.max(one.len).min(*full);
                    }
                }
                if let (Role::Search, Some(search)) = (one.role, search.as_mut()) {
                    search.best = search.best.max(one.len);
                }
                return false;
            }
            let lost = now_ns >= one.sent_ns + VERDICT_NS;
            if lost && one.role == Role::Sign {
                report.lost();
            }
            !lost
        });
    }

    /// Draws conclusions from long requests whose time is over.
    fn conclude(&mut self, now_ns: u64, out: &mut Vec<Ask>) {
        let patience_ns = self.patience_ns();
        let alive_ns = self.alive_ns;
        let mut too_long = false;
        self.pending.retain(|one| {
            let over = one.refused || now_ns >= one.sent_ns + patience_ns;
            if one.role != Role::Full || !over {
                return true;
            }
            // Nothing is known if the short ones beside it were lost, too.
            too_long |= alive_ns >= one.sent_ns;
            one.refused && alive_ns < one.sent_ns && now_ns < one.sent_ns + patience_ns
        });
        match self.search {
            None if too_long => self.begin(self.floor - 1, self.path + 1, true, now_ns, out),
            Some(search) if now_ns >= search.until_ns => self.narrow_down(search, now_ns, out),
            _ => {}
        }
    }

    /// Begins a search between what gets through and what does not.
    fn begin(&mut self, low: u16, high: u16, narrowing: bool, now_ns: u64, out: &mut Vec<Ask>) {
        self.widen_ns = now_ns + WIDEN_NS;
        let search = Search {
            low,
            high,
            best: 0,
            least: 0,
            until_ns: 0,
            narrowing,
            first: true,
        };
        self.burst(search, now_ns, out);
    }

    /// Ends a search, or goes on with the part that the burst has left.
    fn narrow_down(&mut self, mut search: Search, now_ns: u64, out: &mut Vec<Ask>) {
        self.search = None;
        self.pending.retain(|one| one.role != Role::Search);
        if search.best == 0 && search.first {
            // Either nothing at all gets through now, or not more than is known.
            return;
        }
        if search.best == 0 {
            search.high = search.least;
        } else {
            let tried = lengths(search.low, search.high);
            let above = tried.into_iter().filter(|&len| len > search.best).min();
            search.low = search.best;
            search.high = above.unwrap_or(search.high);
        }
        if search.low + 1 < search.high && search.high - search.low > EXACT {
            search.first = false;
            self.burst(search, now_ns, out);
            return;
        }
        self.report.narrowed += u64::from(search.low < self.path);
        self.path = search.low;
        self.report.longest = search.low;
    }

    fn burst(&mut self, mut search: Search, now_ns: u64, out: &mut Vec<Ask>) {
        let tried = lengths(search.low, search.high);
        search.best = 0;
        search.least = tried[0];
        search.until_ns = now_ns + self.patience_ns();
        self.search = Some(search);
        for len in tried {
            self.ask(len, Role::Search, now_ns, out);
        }
        if search.narrowing && search.first {
            // Once more what was lost: by this it may turn out to have been lost by chance.
            self.ask(self.path, Role::Search, now_ns, out);
        }
    }

    fn ask(&mut self, len: u16, role: Role, now_ns: u64, out: &mut Vec<Ask>) {
        if self.pending.len() == MAX_PENDING || out.len() == MAX_ASKS {
            return;
        }
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.pending.push(Pending {
            sequence: self.sequence,
            len,
            role,
            sent_ns: now_ns,
            refused: false,
        });
        self.report.sent += u64::from(role == Role::Sign);
        out.push(Ask {
            sequence: self.sequence,
            len,
            way: if role == Role::Sign {
                Way::Traffic
            } else {
                Way::Whole
            },
        });
    }

    fn patience_ns(&self) -> u64 {
        self.smooth_ns.map_or(VERDICT_NS, |smooth_ns| {
            (4 * smooth_ns).clamp(LEAST_PATIENCE_NS, VERDICT_NS)
        })
    }
}

/// The lengths of a burst: even steps between what gets through and what does not, from the first
/// above `low` to the last below `high`. With few between them some come twice.
fn lengths(low: u16, high: u16) -> [u16; BURST] {
    let (first, last) = (u32::from(low) + 1, u32::from(high).saturating_sub(1));
    let span = last.saturating_sub(first);
    std::array::from_fn(|index| (first + span * index as u32 / (BURST as u32 - 1)) as u16)
}
