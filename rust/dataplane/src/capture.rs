//! The record of a captured frame, and the messages in which records leave a worker. Pure.
//!
//! A message is what one worker has seen in one turn: a prefix, then records one after another.
//! Everything is big-endian.
//!
//! ```text
//! prefix   u64 records lost so far   u16 worker   u16 records that follow
//! record   u64 time, Unix, ns        u32 bytes of the frame   u32 bytes kept of it
//!          u16 frames on the wire that it stands for
//!          u16 copies sent, or the number of the reason      u8 direction   u8 verdict
//!          u8 family of the VTEP: 0 for none, 4 or 6         u8 zero
//!          16 bytes VTEP, IPv4 in the first four             then the bytes kept
//! ```

use std::net::IpAddr;

use crate::wire::array;
use crate::DropReason;

/// Bytes of a message's prefix.
pub const PREFIX_LEN: usize = 12;
/// Bytes of a record in front of those of the frame.
pub const HEAD_LEN: usize = 40;
/// Most bytes that are kept of a frame: a super-frame of 64 KiB with its headers.
pub const MAX_KEPT: u32 = 65_600;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a container.
    Egress,
    /// To a container.
    Ingress,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Sent to the VTEP that the FDB names.
    Forwarded,
    /// Sent to so many VTEPs of the flood list.
    Flooded(u16),
    /// Given to the port.
    Delivered,
    /// Not sent on, since it was answered here: an ARP request or a neighbour solicitation.
    Answered,
    /// That answer, made here and given to the port.
    Answer,
    /// Dropped.
    Dropped(DropReason),
}

/// What is known of a captured frame beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// When a worker got it, in nanoseconds of Unix time.
    pub time_ns: u64,
    /// Which way it goes.
    pub direction: Direction,
    /// What became of it.
    pub verdict: Verdict,
    /// Where it went or came from, if that is one VTEP and known.
    pub vtep: Option<IpAddr>,
    /// How many frames on the wire it stands for: more than one is a super-frame.
    pub frames: u16,
    /// Bytes of the frame.
    pub frame_bytes: u32,
    /// How many of them were kept, the first.
    pub kept_bytes: u32,
}

/// A captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What is known of it.
    pub head: Head,
    /// Its first [`Head::kept_bytes`] bytes.
    pub bytes: &'a [u8],
}

/// What a message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// How many records this worker could not send since the capture began.
    pub lost: u64,
    /// Number of the worker.
    pub worker: u16,
    /// How many records follow.
    pub records: u16,
}

/// Why bytes are no message of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// It ends within a record, or before all of them.
    #[error("the message ends within its prefix or a record")]
    Short,
    /// There is more than its records.
    #[error("{0} bytes behind the last record")]
    Long(usize),
    /// A field has a value that it cannot have.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

impl Prefix {
    /// The prefix as bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; PREFIX_LEN] {
        let mut out = [0; PREFIX_LEN];
        out[..8].copy_from_slice(&self.lost.to_be_bytes());
        out[8..10].copy_from_slice(&self.worker.to_be_bytes());
        out[10..].copy_from_slice(&self.records.to_be_bytes());
        out
    }
}

impl Head {
    /// The head as bytes; those of the frame follow.
    #[must_use]
    pub fn emit(&self) -> [u8; HEAD_LEN] {
        let (verdict, argument) = match self.verdict {
            Verdict::Forwarded => (0, 0),
            Verdict::Flooded(copies) => (1, copies),
            Verdict::Delivered => (2, 0),
            Verdict::Answered => (3, 0),
            Verdict::Answer => (4, 0),
            Verdict::Dropped(reason) => (5, reason as u16),
        };
        let mut out = [0; HEAD_LEN];
        out[..8].copy_from_slice(&self.time_ns.to_be_bytes());
        out[8..12].copy_from_slice(&self.frame_bytes.to_be_bytes());
        out[12..16].copy_from_slice(&self.kept_bytes.to_be_bytes());
        out[16..18].copy_from_slice(&self.frames.to_be_bytes());
        out[18..20].copy_from_slice(&argument.to_be_bytes());
        out[20] = u8::from(self.direction == Direction::Ingress);
        out[21] = verdict;
        match self.vtep {
            None => {}
            Some(IpAddr::V4(vtep)) => {
                out[22] = 4;
                out[24..28].copy_from_slice(&vtep.octets());
            }
            Some(IpAddr::V6(vtep)) => {
                out[22] = 6;
                out[24..].copy_from_slice(&vtep.octets());
            }
        }
        out
    }

    /// Reads a head. None if `bytes` is too short.
    fn parse(bytes: &[u8]) -> Option<Result<Self, CaptureError>> {
        let &[direction, verdict, family, _] = bytes.get(20..24)?.first_chunk()?;
        let vtep: [u8; 16] = array(bytes, 24)?;
        let argument = u16::from_be_bytes(array(bytes, 18)?);
        Some(Ok(Self {
            time_ns: u64::from_be_bytes(array(bytes, 0)?),
            frame_bytes: u32::from_be_bytes(array(bytes, 8)?),
            kept_bytes: u32::from_be_bytes(array(bytes, 12)?),
            frames: u16::from_be_bytes(array(bytes, 16)?),
            direction: match direction {
                0 => Direction::Egress,
                1 => Direction::Ingress,
                _ => return Some(Err(CaptureError::Malformed("direction"))),
            },
            verdict: match (verdict, argument) {
                (0, _) => Verdict::Forwarded,
                (1, copies) => Verdict::Flooded(copies),
                (2, _) => Verdict::Delivered,
                (3, _) => Verdict::Answered,
                (4, _) => Verdict::Answer,
                (5, number) => match DropReason::ALL.get(usize::from(number)) {
                    Some(&reason) => Verdict::Dropped(reason),
                    None => return Some(Err(CaptureError::Malformed("drop reason"))),
                },
                _ => return Some(Err(CaptureError::Malformed("verdict"))),
            },
            vtep: match family {
                0 => None,
                4 => Some(IpAddr::from([vtep[0], vtep[1], vtep[2], vtep[3]])),
                6 => Some(IpAddr::from(vtep)),
                _ => return Some(Err(CaptureError::Malformed("address family"))),
            },
        }))
    }
}

/// Takes a message apart.
///
/// # Errors
///
/// [`CaptureError`] if it is none; it comes from a process that is not trusted.
pub fn parse(message: &[u8]) -> Result<(Prefix, Vec<Record<'_>>), CaptureError> {
    let prefix = parse_prefix(message).ok_or(CaptureError::Short)?;
    let mut rest = &message[PREFIX_LEN..];
    let mut records = Vec::new();
    for _ in 0..prefix.records {
        let head = Head::parse(rest).ok_or(CaptureError::Short)??;
        if head.kept_bytes > head.frame_bytes {
            return Err(CaptureError::Malformed("number of bytes kept"));
        }
        let end = HEAD_LEN + head.kept_bytes as usize;
        let bytes = rest.get(HEAD_LEN..end).ok_or(CaptureError::Short)?;
        records.push(Record { head, bytes });
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        return Err(CaptureError::Long(rest.len()));
    }
    Ok((prefix, records))
}

fn parse_prefix(message: &[u8]) -> Option<Prefix> {
    Some(Prefix {
        lost: u64::from_be_bytes(array(message, 0)?),
        worker: u16::from_be_bytes(array(message, 8)?),
        records: u16::from_be_bytes(array(message, 10)?),
    })
}
