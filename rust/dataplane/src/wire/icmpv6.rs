//! Neighbour solicitations and advertisements (RFC 4861, sections 4.3 and 4.4).

use std::net::{IpAddr, Ipv6Addr};

use super::{
    array,
    checksum::Sum,
    head, head_mut,
    ipv6::{self, Upper},
    protocol, MacAddr, WireError,
};

/// Length of a message without options, in bytes.
pub const LEN: usize = 24;
/// Length of a message with one link-layer address option, in bytes.
pub const LEN_WITH_MAC: usize = LEN + 8;
/// Type of a neighbour solicitation.
pub const SOLICITATION: u8 = 135;
/// Type of a neighbour advertisement.
pub const ADVERTISEMENT: u8 = 136;
/// Hop limit of every such message; another one came through a router.
pub const HOP_LIMIT: u8 = 255;

const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// A neighbour solicitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// The address that is asked for.
    pub target: Ipv6Addr,
    /// The sender's MAC address; none in duplicate address detection.
    pub source_mac: Option<MacAddr>,
}

/// A neighbour advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// R flag: the sender is a router.
    pub router: bool,
    /// S flag: this answers a solicitation that came from a specified address.
    pub solicited: bool,
    /// O flag: replace what is cached.
    pub replace: bool,
    /// The address that is told of.
    pub target: Ipv6Addr,
    /// The MAC address of `target`.
    pub target_mac: Option<MacAddr>,
}

impl Solicitation {
    /// Reads the ICMPv6 message `message`, which must end where its packet ends.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if it is too short, [`WireError::Malformed`] if type, code, target or
    /// options cannot be (RFC 4861, section 7.1.1). Checksum and hop limit are the caller's.
    pub fn parse(message: &[u8]) -> Result<Self, WireError> {
        let (target, source_mac) = parse(message, SOLICITATION, SOURCE_MAC)?;
        Ok(Solicitation { target, source_mac })
    }

    /// Writes the message with its checksum to the beginning of `out`; returns its length.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `out` is too short; nothing is written.
    pub fn emit(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        out: &mut [u8],
    ) -> Result<usize, WireError> {
        let option = self.source_mac.map(|mac| (SOURCE_MAC, mac));
        emit(
            SOLICITATION,
            0,
            self.target,
            option,
            source,
            destination,
            out,
        )
    }
}

impl Advertisement {
    /// Reads the ICMPv6 message `message`, which must end where its packet ends.
    ///
    /// # Errors
    ///
    /// As [`Solicitation::parse`] (RFC 4861, section 7.1.2).
    pub fn parse(message: &[u8]) -> Result<Self, WireError> {
        let (target, target_mac) = parse(message, ADVERTISEMENT, TARGET_MAC)?;
        let flags = message.get(4).copied().unwrap_or_default();
        Ok(Advertisement {
            router: flags & ROUTER != 0,
            solicited: flags & SOLICITED != 0,
            replace: flags & OVERRIDE != 0,
            target,
            target_mac,
        })
    }

    /// Writes the message with its checksum to the beginning of `out`; returns its length.
    ///
    /// # Errors
    ///
    /// [`WireError::Short`] if `out` is too short; nothing is written.
    pub fn emit(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        out: &mut [u8],
    ) -> Result<usize, WireError> {
        let flags = if self.router { ROUTER } else { 0 }
            | if self.solicited { SOLICITED } else { 0 }
            | if self.replace { OVERRIDE } else { 0 };
        let option = self.target_mac.map(|mac| (TARGET_MAC, mac));
        emit(
            ADVERTISEMENT,
            flags,
            self.target,
            option,
            source,
            destination,
            out,
        )
    }
}

/// The solicitation in the IPv6 packet at the beginning of `packet`, if it is one.
///
/// None if the packet is something else; an error if it claims to be a solicitation and is not a
/// valid one: hop limit, checksum, length, code, target and options are checked (RFC 4861, section
/// 7.1.1), and so is that it is no fragment (RFC 6980).
#[must_use]
pub fn solicitation(packet: &[u8]) -> Option<Result<(ipv6::Header, Solicitation), WireError>> {
    let Upper {
        protocol,
        offset,
        fragment,
        fragment_header,
        ..
    } = ipv6::upper(packet)?;
    if protocol != protocol::ICMPV6 || fragment || packet.get(offset) != Some(&SOLICITATION) {
        return None;
    }
    let checked = || {
        let header = ipv6::Header::parse(packet)?;
        let end = ipv6::HEADER_LEN + usize::from(header.payload_len);
        let malformed = WireError::Malformed("neighbour solicitation");
        let message = packet.get(offset..end).ok_or(malformed)?;
        let sum = message_sum(header.source, header.destination, message);
        if fragment_header || header.hop_limit != HOP_LIMIT || sum.finish() != 0 {
            return Err(malformed);
        }
        let solicitation = Solicitation::parse(message)?;
        if header.source.is_unspecified() && solicitation.source_mac.is_some() {
            return Err(malformed);
        }
        Ok((header, solicitation))
    };
    Some(checked())
}

/// Whether the IPv6 packet at the beginning of `packet` is a neighbour advertisement, valid or not.
#[must_use]
pub fn is_advertisement(packet: &[u8]) -> bool {
    ipv6::upper(packet).is_some_and(|upper| {
        upper.protocol == protocol::ICMPV6
            && !upper.fragment
            && packet.get(upper.offset) == Some(&ADVERTISEMENT)
    })
}

fn parse(message: &[u8], kind: u8, wanted: u8) -> Result<(Ipv6Addr, Option<MacAddr>), WireError> {
    let fixed: &[u8; LEN] = head(message)?;
    let target = array(fixed, 8).map_or(Ipv6Addr::UNSPECIFIED, <[u8; 16]>::into);
    if fixed[0] != kind || fixed[1] != 0 || target.is_multicast() {
        return Err(WireError::Malformed("neighbour discovery message"));
    }
    let mut mac = None;
    let mut options = &message[LEN..];
    while let [option, units, ..] = *options {
        let len = usize::from(units) * 8;
        if len == 0 || len > options.len() {
            return Err(WireError::Malformed("neighbour discovery option"));
        }
        if option == wanted && mac.is_none() {
            mac = array(options, 2).map(MacAddr);
        }
        options = &options[len..];
    }
    if options.is_empty() {
        Ok((target, mac))
    } else {
        Err(WireError::Malformed("neighbour discovery option"))
    }
}

fn emit(
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    option: Option<(u8, MacAddr)>,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    out: &mut [u8],
) -> Result<usize, WireError> {
    let mut message = [0; LEN_WITH_MAC];
    message[0] = kind;
    message[4] = flags;
    message[8..LEN].copy_from_slice(&target.octets());
    let mut len = LEN;
    if let Some((option, mac)) = option {
        message[LEN] = option;
        message[LEN + 1] = 1;
        message[LEN + 2..].copy_from_slice(&mac.0);
        len = LEN_WITH_MAC;
    }
    let sum = message_sum(source, destination, &message[..len]).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    if len == LEN {
        head_mut::<LEN>(out)?.copy_from_slice(&message[..LEN]);
    } else {
        *head_mut(out)? = message;
    }
    Ok(len)
}

/// Sum over pseudo header and message. The length of the message fits 16 bits in every caller.
fn message_sum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Sum {
    Sum::new()
        .pseudo_header(
            IpAddr::V6(source),
            IpAddr::V6(destination),
            protocol::ICMPV6,
        )
        .word(message.len() as u16)
        .bytes(message)
}
