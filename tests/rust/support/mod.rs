//! Frames for the tests, built the slow and simple way, and what segmentation must make of them.

#![allow(dead_code, clippy::unwrap_used)] // Each binary uses a part; a panic is how a test fails.

pub mod endless;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;
use vxlan_dataplane::wire::ethernet::{self, ethertype, Tag};
use vxlan_dataplane::wire::virtio::{self, VnetHdr};
use vxlan_dataplane::wire::{ipv4, ipv6, protocol, tcp, udp, MacAddr};

/// MAC addresses of two containers.
pub const MAC_A: MacAddr = MacAddr([2, 0x42, 10, 0, 0, 2]);
pub const MAC_B: MacAddr = MacAddr([2, 0x42, 10, 0, 0, 3]);

/// The checksum as RFC 1071 defines it, word by word.
pub fn naive_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What a TCP or UDP packet is made of.
#[derive(Clone, Debug)]
pub struct Packet {
    pub tags: Vec<Tag>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub traffic_class: u8,
    pub ttl: u8,
    /// IPv4: identification and DF.
    pub id: u16,
    pub dont_fragment: bool,
    /// IPv4: options. IPv6: one whole destination options header. A multiple of 4, or of 8.
    pub extra: Vec<u8>,
    pub source_port: u16,
    pub destination_port: u16,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

/// The part of a packet that is TCP's or UDP's alone.
#[derive(Clone, Debug)]
pub enum Transport {
    Tcp {
        sequence: u32,
        acknowledgement: u32,
        flags: u16,
        window: u16,
        options: Vec<u8>,
    },
    Udp {
        checksum: bool,
    },
}

impl Packet {
    /// A TCP segment with ACK, DF and no options, over IPv4 or IPv6.
    pub fn tcp(ipv6: bool, sequence: u32, payload: &[u8]) -> Self {
        let (source, destination): (IpAddr, IpAddr) = if ipv6 {
            (
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into(),
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3).into(),
            )
        } else {
            (
                Ipv4Addr::new(10, 0, 0, 2).into(),
                Ipv4Addr::new(10, 0, 0, 3).into(),
            )
        };
        Packet {
            tags: vec![],
            source,
            destination,
            traffic_class: 0,
            ttl: 64,
            id: 7,
            dont_fragment: true,
            extra: vec![],
            source_port: 40000,
            destination_port: 80,
            transport: Transport::Tcp {
                sequence,
                acknowledgement: 99,
                flags: tcp::flag::ACK,
                window: 501,
                options: vec![],
            },
            payload: payload.to_vec(),
        }
    }

    /// A UDP datagram with a checksum.
    pub fn udp(ipv6: bool, payload: &[u8]) -> Self {
        Packet {
            transport: Transport::Udp { checksum: true },
            ..Packet::tcp(ipv6, 0, payload)
        }
    }

    pub fn with_flags(mut self, wanted: u16) -> Self {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = wanted;
        }
        self
    }

    pub fn sequence(&self) -> u32 {
        match self.transport {
            Transport::Tcp { sequence, .. } => sequence,
            Transport::Udp { .. } => 0,
        }
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => protocol::TCP,
            Transport::Udp { .. } => protocol::UDP,
        }
    }

    /// Pseudo header for a transport length.
    fn pseudo(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![];
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            _ => unreachable!("one family"),
        }
        bytes.extend([0, self.protocol()]);
        bytes.extend((len as u16).to_be_bytes());
        bytes
    }

    /// Transport header and payload with checksum zero.
    fn segment(&self) -> Vec<u8> {
        let mut bytes = vec![0; tcp::MAX_HEADER_LEN];
        let len = match &self.transport {
            Transport::Tcp {
                sequence,
                acknowledgement,
                flags,
                window,
                options,
            } => tcp::Header {
                source_port: self.source_port,
                destination_port: self.destination_port,
                sequence: *sequence,
                acknowledgement: *acknowledgement,
                flags: *flags,
                window: *window,
                checksum: 0,
                urgent: 0,
                options,
            }
            .emit(&mut bytes),
            Transport::Udp { .. } => udp::Header {
                source_port: self.source_port,
                destination_port: self.destination_port,
                len: (udp::HEADER_LEN + self.payload.len()) as u16,
                checksum: 0,
            }
            .emit(&mut bytes),
        };
        bytes.truncate(len.unwrap());
        bytes.extend(&self.payload);
        bytes
    }

    fn checksum_offset(&self) -> usize {
        match self.transport {
            Transport::Tcp { .. } => 16,
            Transport::Udp { .. } => 6,
        }
    }

    /// Offset of the transport header in the frame.
    pub fn l4(&self) -> usize {
        let ip = if self.source.is_ipv4() { 20 } else { 40 };
        ethernet::HEADER_LEN + self.tags.len() * 4 + ip + self.extra.len()
    }

    /// Length of all headers of the frame.
    pub fn header_len(&self) -> usize {
        self.l4() + self.segment().len() - self.payload.len()
    }

    /// Ethernet and IP headers for a transport length.
    fn network(&self, len: usize) -> Vec<u8> {
        let kind = match self.source {
            IpAddr::V4(_) => ethertype::IPV4,
            IpAddr::V6(_) => ethertype::IPV6,
        };
        let mut bytes = vec![0; 128];
        let mut at = ethernet::Header::new(MAC_B, MAC_A, kind)
            .with_tags(&self.tags)
            .unwrap()
            .emit(&mut bytes)
            .unwrap();
        at += match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4::Header {
                traffic_class: self.traffic_class,
                total_len: (20 + self.extra.len() + len) as u16,
                id: self.id,
                dont_fragment: self.dont_fragment,
                more_fragments: false,
                fragment_offset: 0,
                ttl: self.ttl,
                protocol: self.protocol(),
                source,
                destination,
                options: &self.extra,
            }
            .emit(&mut bytes[at..])
            .unwrap(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6::Header {
                traffic_class: self.traffic_class,
                flow_label: 0x12345,
                payload_len: (self.extra.len() + len) as u16,
                next_header: if self.extra.is_empty() {
                    self.protocol()
                } else {
                    60
                },
                hop_limit: self.ttl,
                source,
                destination,
            }
            .emit(&mut bytes[at..])
            .unwrap(),
            _ => unreachable!("one family"),
        };
        bytes.truncate(at);
        if self.source.is_ipv6() && !self.extra.is_empty() {
            let start = bytes.len();
            bytes.extend(&self.extra);
            bytes[start] = self.protocol();
            bytes[start + 1] = (self.extra.len() / 8 - 1) as u8;
        }
        bytes
    }

    /// The frame as a host without offloads sends it.
    pub fn frame(&self) -> Vec<u8> {
        let mut segment = self.segment();
        let without = matches!(self.transport, Transport::Udp { checksum: false });
        if !without {
            let mut covered = self.pseudo(segment.len());
            covered.extend(&segment);
            let mut sum = naive_checksum(&covered);
            if sum == 0 && self.protocol() == protocol::UDP {
                sum = 0xffff;
            }
            let at = self.checksum_offset();
            segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut frame = self.network(segment.len());
        frame.extend(segment);
        frame
    }

    /// The frame with its checksum left to the card, and the header that says so.
    pub fn partial(&self) -> (VnetHdr, Vec<u8>) {
        let mut segment = self.segment();
        let without = matches!(self.transport, Transport::Udp { checksum: false });
        let at = self.checksum_offset();
        if !without {
            let sum = !naive_checksum(&self.pseudo(segment.len()));
            segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut frame = self.network(segment.len());
        frame.extend(segment);
        let hdr = VnetHdr {
            flags: if without { 0 } else { virtio::FLAG_NEEDS_CSUM },
            csum_start: self.l4() as u16,
            csum_offset: at as u16,
            ..VnetHdr::NONE
        };
        (hdr, frame)
    }

    /// The packet as a super-frame of segments with `size` payload bytes.
    pub fn super_frame(&self, size: u16) -> (VnetHdr, Vec<u8>) {
        let (hdr, frame) = self.partial();
        let gso_type = match (&self.transport, self.source) {
            (Transport::Udp { .. }, _) => virtio::GSO_UDP_L4,
            (_, IpAddr::V4(_)) => virtio::GSO_TCPV4,
            (_, IpAddr::V6(_)) => virtio::GSO_TCPV6,
        };
        let hdr = VnetHdr {
            gso_type,
            gso_size: size,
            hdr_len: self.header_len() as u16,
            ..hdr
        };
        (hdr, frame)
    }

    /// The model of segmentation: each part of the payload as a packet of its own.
    pub fn segments(&self, size: usize) -> Vec<Packet> {
        use tcp::flag::{CWR, FIN, PSH};
        let mut parts: Vec<&[u8]> = self.payload.chunks(size).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let last = parts.len() - 1;
        let part = |(index, payload): (usize, &&[u8])| {
            let mut packet = self.clone();
            packet.payload = payload.to_vec();
            packet.id = self.id.wrapping_add(index as u16);
            if let Transport::Tcp {
                sequence, flags, ..
            } = &mut packet.transport
            {
                *sequence = sequence.wrapping_add((index * size) as u32);
                *flags &= if index == 0 { !0 } else { !CWR };
                *flags &= if index == last { !0 } else { !(FIN | PSH) };
            }
            packet
        };
        parts.iter().enumerate().map(part).collect()
    }
}

pub fn arb_mac() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 6]>().prop_map(MacAddr)
}

/// MAC addresses that a table takes.
pub fn arb_station() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 5]>().prop_map(|[a, b, c, d, e]| MacAddr([2, a, b, c, d, e]))
}

pub fn arb_tags() -> impl Strategy<Value = Vec<Tag>> {
    let protocol = prop_oneof![Just(ethertype::VLAN), Just(ethertype::SERVICE_VLAN)];
    let tag = (protocol, any::<u16>()).prop_map(|(protocol, control)| Tag { protocol, control });
    vec(tag, 0..=2)
}

/// Bytes of a length that is a multiple of 4.
pub fn arb_words(words: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<[u8; 4]>(), words).prop_map(|words| words.concat())
}

fn arb_addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (a.into(), b.into())),
        any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into())),
    ]
}

fn arb_transport() -> impl Strategy<Value = Transport> {
    let tcp = (any::<(u32, u32, u16)>(), 0..0x1000u16, arb_words(0..=10)).prop_map(
        |((sequence, acknowledgement, window), flags, options)| Transport::Tcp {
            sequence,
            acknowledgement,
            flags,
            window,
            options,
        },
    );
    let udp = any::<bool>().prop_map(|checksum| Transport::Udp { checksum });
    prop_oneof![3 => tcp, 1 => udp]
}

/// Any TCP or UDP packet, with tags, options and extension headers.
pub fn arb_packet(payload: std::ops::Range<usize>) -> impl Strategy<Value = Packet> {
    (
        arb_tags(),
        arb_addresses(),
        any::<(u8, u8, u16, bool, u16, u16)>(),
        0..=5usize,
        arb_transport(),
        vec(any::<u8>(), payload),
    )
        .prop_map(
            |(tags, (source, destination), numbers, extra, transport, payload)| {
                let (traffic_class, ttl, id, dont_fragment, source_port, destination_port) =
                    numbers;
                // IPv4: no-operation options. IPv6: PadN in a destination options header.
                let extra = if source.is_ipv4() {
                    vec![1; extra * 8]
                } else {
                    let mut bytes = vec![0; extra * 8];
                    if extra > 0 {
                        bytes[2] = 1;
                        bytes[3] = (extra * 8 - 4) as u8;
                    }
                    bytes
                };
                Packet {
                    tags,
                    source,
                    destination,
                    traffic_class,
                    ttl,
                    id,
                    dont_fragment,
                    extra,
                    source_port,
                    destination_port,
                    transport,
                    payload,
                }
            },
        )
}
