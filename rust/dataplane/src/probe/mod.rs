//! Probes of tunnels: what they look like, when they are sent, and what their answers tell. Pure.
//!
//! A probe is a VXLAN datagram of the reserved [`VNI`], so that it takes the way of the traffic. A
//! request is answered by any VTEP that knows probes; one that does not drops it as the datagram of
//! a VNI that it has no network for. The answerer keeps nothing: an answer says what the request
//! said. See docs/tunnels.md.

mod course;
mod mailbox;
mod report;
mod wire;

pub use course::{Ask, Course, Way, FAST_NS, MAX_ASKS};
pub use mailbox::Mailbox;
pub use report::{Report, BUCKETS, BUCKETS_NS};
pub use wire::{Kind, Probe, MIN_LEN, VNI};
