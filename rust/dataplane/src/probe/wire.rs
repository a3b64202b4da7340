//! The bytes of a probe.
//!
//! Behind the VXLAN header comes an Ethernet frame of a local experimental ethertype (IEEE 802,
//! 9.2.3: 0x88b5), so that whoever looks inside finds nothing broken. Its payload, big-endian: the
//! letters `pvxp`, version 1, kind (1 request, 2 answer), length of the request's datagram (16
//! bits), sequence number (32 bits), token (64 bits), and zeros as far as the datagram goes.

use crate::wire::{array, ethernet, head, vxlan, MacAddr, Vni, WireError};

/// The VNI of probes, the last one; no network may have it.
pub const VNI: Vni = Vni::MAX;

/// Length of the shortest datagram (UDP payload), in bytes: the shortest Ethernet frame.
pub const MIN_LEN: u16 = (vxlan::HEADER_LEN + ethernet::HEADER_LEN + 46) as u16;

const ETHERTYPE: u16 = 0x88b5;
/// Locally administered; they end nowhere, since no probe gets to a network.
const ASKER: MacAddr = MacAddr([0x02, 0x70, 0x76, 0x78, 0x70, 0x01]);
const ANSWERER: MacAddr = MacAddr([0x02, 0x70, 0x76, 0x78, 0x70, 0x02]);
const MAGIC: [u8; 4] = *b"pvxp";
const VERSION: u8 = 1;
const BODY: usize = vxlan::HEADER_LEN + ethernet::HEADER_LEN;

/// What a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be answered.
    Request,
    /// The answer, which is never longer than its request.
    Answer,
}

/// A probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What it is.
    pub kind: Kind,
    /// Length of the request's datagram (UDP payload), in bytes; at least [`MIN_LEN`].
    pub len: u16,
    /// Number of the request, counted up by who asks.
    pub sequence: u32,
    /// What only who asks and who was asked can know.
    pub token: u64,
}

impl Probe {
    /// The answer to a request.
    #[must_use]
    pub const fn answer(self) -> Self {
        Probe {
            kind: Kind::Answer,
            ..self
        }
    }

    /// Length of its own datagram, in bytes.
    #[must_use]
    pub const fn datagram_len(&self) -> usize {
        match self.kind {
            Kind::Request => self.len as usize,
            Kind::Answer => MIN_LEN as usize,
        }
    }

    /// Reads a datagram (UDP payload) whose VNI is [`VNI`].
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if it is shorter than [`MIN_LEN`], [`WireError::Malformed`] if it is no
    /// probe of this version or has not the length that it says.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let bytes: &[u8; MIN_LEN as usize] = head(datagram)?;
        let malformed = WireError::Malformed("probe");
        let kind: [u8; 2] = array(bytes, BODY - 2).ok_or(malformed)?;
        let [a, b, c, d, version, kind_of, len @ ..]: [u8; 8] =
            array(bytes, BODY).ok_or(malformed)?;
        let probe = Probe {
            kind: match kind_of {
                1 => Kind::Request,
                2 => Kind::Answer,
                _ => return Err(malformed),
            },
            len: u16::from_be_bytes(len),
            sequence: u32::from_be_bytes(array(bytes, BODY + 8).ok_or(malformed)?),
            token: u64::from_be_bytes(array(bytes, BODY + 12).ok_or(malformed)?),
        };
        let known = kind == ETHERTYPE.to_be_bytes() && [a, b, c, d] == MAGIC && version == VERSION;
        if known && probe.len >= MIN_LEN && probe.datagram_len() == datagram.len() {
            Ok(probe)
        } else {
            Err(malformed)
        }
    }

    /// Writes its datagram to the beginning of `out` and returns the length.
    ///
    /// Only the first [`MIN_LEN`] bytes are written: what follows should be zeros.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `out` is too short, [`WireError::Malformed`] if the length of the
    /// request is below [`MIN_LEN`]; nothing is written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, WireError> {
        let (need, have) = (self.datagram_len(), out.len());
        if self.len < MIN_LEN {
            return Err(WireError::Malformed("probe"));
        }
        if have < need {
            return Err(WireError::Short { need, have });
        }
        let (destination, source, kind) = match self.kind {
            Kind::Request => (ANSWERER, ASKER, 1),
            Kind::Answer => (ASKER, ANSWERER, 2),
        };
        out[..vxlan::HEADER_LEN].copy_from_slice(&vxlan::header(VNI));
        ethernet::Header::new(destination, source, ETHERTYPE)
            .emit(&mut out[vxlan::HEADER_LEN..])?;
        let body = &mut out[BODY..MIN_LEN as usize];
        body.fill(0);
        body[..4].copy_from_slice(&MAGIC);
        body[4] = VERSION;
        body[5] = kind;
        body[6..8].copy_from_slice(&self.len.to_be_bytes());
        body[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        body[12..20].copy_from_slice(&self.token.to_be_bytes());
        Ok(need)
    }
}
