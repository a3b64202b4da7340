//! The whole packet on the underlay: IPv4 or IPv6, UDP, VXLAN, frame (RFC 7348, section 5).
//!
//! The engine leaves the outer headers to the kernel; this is for users of the codec alone.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::checksum::Sum;
use super::{ethernet, ipv4, ipv6, protocol, udp, vxlan, Vni, WireError};

/// Time to live of the outer packet, in hops.
const TTL: u8 = 64;

/// A VXLAN packet on the underlay, without its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Address of the sending VTEP and the port that carries the flow's hash.
    pub source: SocketAddr,
    /// Address of the receiving VTEP and its UDP port.
    pub destination: SocketAddr,
    /// The VNI.
    pub vni: Vni,
}

impl Datagram {
    /// Length of the packet that [`Datagram::emit`] writes around a frame, in bytes.
    #[must_use]
    pub const fn packet_len(&self, frame_len: usize) -> usize {
        let ip = match self.source {
            SocketAddr::V4(_) => ipv4::HEADER_LEN,
            SocketAddr::V6(_) => ipv6::HEADER_LEN,
        };
        ip + udp::HEADER_LEN + vxlan::HEADER_LEN + frame_len
    }

    /// Writes the packet around `frame` to the beginning of `out`; returns its length.
    ///
    /// DF is clear (RFC 7348, section 4.3, forbids VTEPs to fragment, not routers). Without
    /// `checksum` the UDP checksum is zero (over IPv6: RFC 6935).
    ///
    /// # Errors
    ///
    /// [`WireError::Malformed`] if the addresses are of two families or the packet would be longer
    /// than 65535 bytes, [`WireError::Short`] if `frame` is shorter than an Ethernet header or
    /// `out` than the packet.
    pub fn emit(&self, frame: &[u8], checksum: bool, out: &mut [u8]) -> Result<usize, WireError> {
        if frame.len() < ethernet::HEADER_LEN {
            return Err(WireError::Short {
                need: ethernet::HEADER_LEN,
                have: frame.len(),
            });
        }
        let len = self.packet_len(frame.len());
        let total_len = u16::try_from(len).map_err(|_| WireError::Malformed("packet length"))?;
        let have = out.len();
        let out = out
            .get_mut(..len)
            .ok_or(WireError::Short { need: len, have })?;
        let udp_len = (udp::HEADER_LEN + vxlan::HEADER_LEN + frame.len()) as u16;
        let at = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4::Header {
                traffic_class: 0,
                total_len,
                id: 0,
                dont_fragment: false,
                more_fragments: false,
                fragment_offset: 0,
                ttl: TTL,
                protocol: protocol::UDP,
                source,
                destination,
                options: &[],
            }
            .emit(out)?,
            (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6::Header {
                traffic_class: 0,
                flow_label: 0,
                payload_len: udp_len,
                next_header: protocol::UDP,
                hop_limit: TTL,
                source,
                destination,
            }
            .emit(out)?,
            _ => return Err(WireError::Malformed("pair of addresses of two families")),
        };
        let datagram = &mut out[at..];
        let mut header = udp::Header {
            source_port: self.source.port(),
            destination_port: self.destination.port(),
            len: udp_len,
            checksum: 0,
        };
        let payload = header.emit(datagram)?;
        datagram[payload..payload + vxlan::HEADER_LEN].copy_from_slice(&vxlan::header(self.vni));
        datagram[payload + vxlan::HEADER_LEN..].copy_from_slice(frame);
        if checksum {
            header.checksum = self.sum(datagram).finish_nonzero();
            header.emit(datagram)?;
        }
        Ok(len)
    }

    /// Reads the packet at the beginning of `packet`; returns where its frame lies, too.
    ///
    /// # Errors
    ///
    /// [`WireError`] if it is not one whole UDP packet with right checksums and a VXLAN header with
    /// the I flag, or if its frame is shorter than an Ethernet header.
    pub fn parse(packet: &[u8]) -> Result<(Self, Range<usize>), WireError> {
        let (source, destination, start, end) = match packet.first().map(|byte| byte >> 4) {
            Some(4) => parse_ipv4(packet)?,
            Some(6) => parse_ipv6(packet)?,
            _ => return Err(WireError::Malformed("IP version")),
        };
        let header = udp::Header::parse(&packet[start..end])?;
        let datagram = &packet[start..start + usize::from(header.len)];
        let payload = &datagram[udp::HEADER_LEN..];
        let parsed = Self {
            source: SocketAddr::new(source, header.source_port),
            destination: SocketAddr::new(destination, header.destination_port),
            vni: vxlan::parse(payload)?,
        };
        if header.checksum != 0 && parsed.sum(datagram).finish() != 0 {
            return Err(WireError::Malformed("UDP checksum"));
        }
        let frame_len = payload.len() - vxlan::HEADER_LEN;
        if frame_len < ethernet::HEADER_LEN {
            return Err(WireError::Short {
                need: ethernet::HEADER_LEN,
                have: frame_len,
            });
        }
        let frame = start + udp::HEADER_LEN + vxlan::HEADER_LEN;
        Ok((parsed, frame..frame + frame_len))
    }

    /// The sum over pseudo header and datagram.
    fn sum(&self, datagram: &[u8]) -> Sum {
        Sum::new()
            .pseudo_header(self.source.ip(), self.destination.ip(), protocol::UDP)
            .word(datagram.len() as u16)
            .bytes(datagram)
    }
}

type Outer = (IpAddr, IpAddr, usize, usize);

/// Addresses, and where the UDP header begins and the packet ends.
fn parse_ipv4(packet: &[u8]) -> Result<Outer, WireError> {
    let header = ipv4::Header::parse(packet)?;
    if !ipv4::checksum_is_right(packet) {
        return Err(WireError::Malformed("IPv4 checksum"));
    }
    if header.is_fragment() {
        return Err(WireError::Malformed("packet: a fragment"));
    }
    if header.protocol != protocol::UDP {
        return Err(WireError::Malformed("packet: not UDP"));
    }
    let end = usize::from(header.total_len);
    Ok((
        header.source.into(),
        header.destination.into(),
        header.len(),
        end,
    ))
}

fn parse_ipv6(packet: &[u8]) -> Result<Outer, WireError> {
    let header = ipv6::Header::parse(packet)?;
    let end = ipv6::HEADER_LEN + usize::from(header.payload_len);
    let upper = ipv6::upper(&packet[..end]).ok_or(WireError::Malformed("extension headers"))?;
    if upper.fragment {
        return Err(WireError::Malformed("packet: a fragment"));
    }
    if upper.protocol != protocol::UDP {
        return Err(WireError::Malformed("packet: not UDP"));
    }
    Ok((
        header.source.into(),
        header.destination.into(),
        upper.offset,
        end,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: [u8; 60] = [0x42; 60];

    fn datagram(source: &str, destination: &str) -> Datagram {
        Datagram {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            vni: Vni::new(0x0012_3456).unwrap(),
        }
    }

    #[test]
    fn parse_gives_back_what_emit_took() {
        for (source, destination) in [
            ("198.18.0.1:50000", "198.18.0.2:4789"),
            ("[2001:db8::1]:50000", "[2001:db8::2]:4789"),
        ] {
            for checksum in [true, false] {
                let sent = datagram(source, destination);
                let mut packet = [0; 200];
                let len = sent.emit(&FRAME, checksum, &mut packet).unwrap();
                let (read, frame) = Datagram::parse(&packet[..len]).unwrap();
                assert_eq!(read, sent);
                assert_eq!(packet[frame], FRAME);
            }
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let sent = datagram("198.18.0.1:50000", "198.18.0.2:4789");
        let mut packet = [0; 200];
        let len = sent.emit(&FRAME, true, &mut packet).unwrap();
        packet[len - 1] ^= 1;
        let error = Datagram::parse(&packet[..len]).unwrap_err();
        assert_eq!(error, WireError::Malformed("UDP checksum"));
    }

    #[test]
    fn no_prefix_of_a_packet_is_a_packet() {
        let sent = datagram("[2001:db8::1]:50000", "[2001:db8::2]:4789");
        let mut packet = [0; 200];
        let len = sent.emit(&FRAME, true, &mut packet).unwrap();
        for end in 0..len {
            assert!(Datagram::parse(&packet[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn addresses_of_two_families_make_no_packet() {
        let sent = datagram("198.18.0.1:50000", "[2001:db8::2]:4789");
        assert!(sent.emit(&FRAME, true, &mut [0; 200]).is_err());
    }
}
