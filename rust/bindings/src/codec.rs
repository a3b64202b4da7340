//! Frames and headers without engine or tables.

use std::net::SocketAddr;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};
use vxlan_dataplane::wire::datagram::Datagram;
use vxlan_dataplane::wire::{
    arp, ethernet, flow_hash as hash_of, ipv4, ipv6, source_port as port_of, tcp, udp, vxlan,
    MacAddr, Vni, WireError,
};

use crate::convert::{address, slice, view, with_bytes, Flag, Input, Number};
use crate::errors::{Error, Result};

/// A VXLAN header and an Ethernet header: the least that can be decapsulated.
const LEAST: usize = vxlan::HEADER_LEN + ethernet::HEADER_LEN;

#[pyfunction]
pub fn vxlan_header(py: Python<'_>, vni: Number) -> Result<Bound<'_, PyBytes>> {
    Ok(PyBytes::new(py, &vxlan::header(vni.vni()?)))
}

#[pyfunction]
pub fn encap<'py>(frame: &Bound<'py, PyAny>, vni: Number) -> Result<Bound<'py, PyBytes>> {
    encap_one(frame, vni.vni()?)
}

#[pyfunction]
pub fn encap_batch<'py>(
    py: Python<'py>,
    frames: Vec<Bound<'py, PyAny>>,
    vni: Number,
) -> Result<Vec<Bound<'py, PyBytes>>> {
    let vni = vni.vni()?;
    let each = frames.iter().enumerate();
    each.map(|(index, frame)| encap_one(frame, vni).map_err(|error| error.at(index, py)))
        .collect()
}

fn encap_one<'py>(frame: &Bound<'py, PyAny>, vni: Vni) -> Result<Bound<'py, PyBytes>> {
    let py = frame.py();
    let input = Input::new(frame)?;
    if input.len() < ethernet::HEADER_LEN {
        return Err(short("frame", ethernet::HEADER_LEN, input.len()));
    }
    let len = vxlan::HEADER_LEN + input.len();
    Ok(PyBytes::new_with(py, len, |payload| {
        let (header, frame) = payload.split_at_mut(vxlan::HEADER_LEN);
        header.copy_from_slice(&vxlan::header(vni));
        Ok(input.copy_to(py, frame)?)
    })?)
}

#[pyfunction]
pub fn decap<'py>(payload: &Bound<'py, PyAny>) -> Result<(u32, Bound<'py, PyAny>)> {
    let all = PyMemoryView::from(payload)?;
    let (head, all) = match payload.cast::<PyBytes>() {
        Ok(bytes) => (bytes.clone(), all.into_any()),
        Err(_) => {
            let flat = view(payload)?;
            let head = slice(&flat, 0, LEAST)?.call_method0("tobytes")?;
            (head.cast_into().map_err(PyErr::from)?, flat)
        }
    };
    let head = head.as_bytes();
    let vni = vxlan::parse(head).map_err(Error::malformed("UDP payload"))?;
    if head.len() < LEAST {
        return Err(short("UDP payload", LEAST, head.len()));
    }
    let frame = slice(&all, vxlan::HEADER_LEN, isize::MAX as usize)?;
    Ok((vni.value(), frame))
}

#[pyfunction]
pub fn decap_batch<'py>(
    py: Python<'py>,
    payloads: Vec<Bound<'py, PyAny>>,
) -> Result<Vec<(u32, Bound<'py, PyAny>)>> {
    let each = payloads.iter().enumerate();
    each.map(|(index, payload)| decap(payload).map_err(|error| error.at(index, py)))
        .collect()
}

#[pyfunction]
#[pyo3(
    signature = (frame, vni, src, dst, *, sport=None, dport=Number::Small(4789), checksum=Flag::Known(true)),
    text_signature = "(frame, vni, src, dst, *, sport=None, dport=4789, checksum=True)"
)]
#[allow(clippy::too_many_arguments)]
pub fn encap_datagram<'py>(
    frame: &Bound<'py, PyAny>,
    vni: Number,
    src: &str,
    dst: &str,
    sport: Option<Number>,
    dport: Number,
    checksum: Flag,
) -> Result<Bound<'py, PyBytes>> {
    let py = frame.py();
    let (source, destination) = (address(src)?, address(dst)?);
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(Error::value(format_args!(
            "{source} and {destination} are of two address families"
        )));
    }
    let sport = sport.map(|port| udp_port(&port)).transpose()?;
    let (vni, dport) = (vni.vni()?, udp_port(&dport)?);
    let checksum = checksum.named("checksum")?;
    with_bytes(frame, |frame| {
        let sport = sport.unwrap_or_else(|| port_of(hash_of(frame)));
        let datagram = Datagram {
            source: SocketAddr::new(source, sport),
            destination: SocketAddr::new(destination, dport),
            vni,
        };
        let len = datagram.packet_len(frame.len());
        if len > usize::from(u16::MAX) {
            return Err(Error::value(format_args!(
                "packet of {len} bytes: at most 65535 are possible"
            )));
        }
        Ok(PyBytes::new_with(py, len, |packet| {
            datagram
                .emit(frame, checksum, packet)
                .map_err(Error::malformed("packet"))?;
            Ok(())
        })?)
    })?
}

type Decapsulated<'py> = (String, String, u16, u16, u32, Bound<'py, PyAny>);

#[pyfunction]
pub fn decap_datagram<'py>(packet: &Bound<'py, PyAny>) -> Result<Decapsulated<'py>> {
    let (datagram, frame) =
        with_bytes(packet, Datagram::parse)?.map_err(Error::malformed("packet"))?;
    Ok((
        datagram.source.ip().to_string(),
        datagram.destination.ip().to_string(),
        datagram.source.port(),
        datagram.destination.port(),
        datagram.vni.value(),
        slice(&view(packet)?, frame.start, frame.end)?,
    ))
}

#[pyfunction]
pub fn flow_hash(frame: &Bound<'_, PyAny>) -> Result<u32> {
    with_bytes(frame, hash_of)
}

#[pyfunction]
pub fn source_port(frame: &Bound<'_, PyAny>) -> Result<u16> {
    with_bytes(frame, |frame| port_of(hash_of(frame)))
}

#[pyfunction]
pub fn parse_vxlan(payload: &Bound<'_, PyAny>) -> Result<(u8, u32)> {
    with_bytes(payload, |payload| {
        let &[flags, _, _, _, a, b, c, _] = payload
            .first_chunk::<{ vxlan::HEADER_LEN }>()
            .ok_or_else(|| short("UDP payload", vxlan::HEADER_LEN, payload.len()))?;
        Ok((flags, u32::from_be_bytes([0, a, b, c])))
    })?
}

type Ethernet<'py> = (
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
    Vec<u16>,
    u16,
    usize,
);

#[pyfunction]
pub fn parse_ethernet<'py>(frame: &Bound<'py, PyAny>) -> Result<Ethernet<'py>> {
    let header = with_bytes(frame, ethernet::Header::parse)?.map_err(Error::malformed("frame"))?;
    Ok((
        mac(frame.py(), header.destination),
        mac(frame.py(), header.source),
        header.tags().iter().map(|tag| tag.control).collect(),
        header.ethertype,
        header.len(),
    ))
}

type Arp<'py> = (
    u16,
    Bound<'py, PyBytes>,
    String,
    Bound<'py, PyBytes>,
    String,
);

#[pyfunction]
pub fn parse_arp<'py>(payload: &Bound<'py, PyAny>) -> Result<Arp<'py>> {
    let message =
        with_bytes(payload, arp::Message::parse)?.map_err(Error::malformed("ARP packet"))?;
    Ok((
        message.operation,
        mac(payload.py(), message.sender_mac),
        message.sender_ip.to_string(),
        mac(payload.py(), message.target_mac),
        message.target_ip.to_string(),
    ))
}

type Ipv4 = (String, String, u8, u8, u8, u16, u8, u32, u16, usize);

#[pyfunction]
pub fn parse_ipv4(packet: &Bound<'_, PyAny>) -> Result<Ipv4> {
    with_bytes(packet, |packet| {
        let header = ipv4::Header::parse(packet).map_err(Error::malformed("IPv4 packet"))?;
        let flags = u8::from(header.dont_fragment) << 1 | u8::from(header.more_fragments);
        Ok((
            header.source.to_string(),
            header.destination.to_string(),
            header.protocol,
            header.ttl,
            header.traffic_class,
            header.id,
            flags,
            u32::from(header.fragment_offset) * 8,
            header.total_len,
            header.len(),
        ))
    })?
}

type Ipv6 = (String, String, u8, u8, u8, u32, u16, usize, bool);

#[pyfunction]
pub fn parse_ipv6(packet: &Bound<'_, PyAny>) -> Result<Ipv6> {
    with_bytes(packet, |packet| {
        let header = ipv6::Header::parse(packet).map_err(Error::malformed("IPv6 packet"))?;
        let upper = ipv6::upper(packet)
            .ok_or(WireError::Malformed("extension headers"))
            .map_err(Error::malformed("IPv6 packet"))?;
        Ok((
            header.source.to_string(),
            header.destination.to_string(),
            upper.protocol,
            header.hop_limit,
            header.traffic_class,
            header.flow_label,
            header.payload_len,
            upper.offset,
            upper.fragment,
        ))
    })?
}

#[pyfunction]
pub fn parse_udp(segment: &Bound<'_, PyAny>) -> Result<(u16, u16, u16, u16)> {
    let header =
        with_bytes(segment, udp::Header::parse)?.map_err(Error::malformed("UDP datagram"))?;
    Ok((
        header.source_port,
        header.destination_port,
        header.len,
        header.checksum,
    ))
}

type Tcp = (u16, u16, u32, u32, u16, u16, u16, usize);

#[pyfunction]
pub fn parse_tcp(segment: &Bound<'_, PyAny>) -> Result<Tcp> {
    with_bytes(segment, |segment| {
        let header = tcp::Header::parse(segment).map_err(Error::malformed("TCP segment"))?;
        Ok((
            header.source_port,
            header.destination_port,
            header.sequence,
            header.acknowledgement,
            header.flags,
            header.window,
            header.checksum,
            header.len(),
        ))
    })?
}

fn udp_port(port: &Number) -> Result<u16> {
    port.within("UDP port", 1, u16::MAX)
}

fn mac(py: Python<'_>, mac: MacAddr) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &mac.0)
}

fn short(what: &str, need: usize, have: usize) -> Error {
    Error::malformed(what)(WireError::Short { need, have })
}
