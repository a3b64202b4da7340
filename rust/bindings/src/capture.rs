//! Captured and dropped frames as tuples of plain values.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vxlan_dataplane::capture::{self, Direction, Verdict};
use vxlan_dataplane::engine::DroppedFrame;

use crate::convert;
use crate::errors::{Error, Result};

/// Time, direction, verdict, its reason or "", copies sent, VTEP or "", frames on the wire, bytes,
/// the first bytes.
type Captured<'py> = (
    u64,
    &'static str,
    &'static str,
    &'static str,
    u16,
    String,
    u16,
    u32,
    Bound<'py, PyBytes>,
);

/// Time, count, direction, reason, VNI if known, VTEP or "", bytes, headers.
pub type Dropped<'py> = (
    u64,
    u64,
    &'static str,
    &'static str,
    Option<u32>,
    String,
    u32,
    Bound<'py, PyBytes>,
);

#[pyfunction]
pub fn parse_capture<'py>(
    py: Python<'py>,
    message: &Bound<'py, PyAny>,
) -> Result<(u16, u64, Vec<Captured<'py>>)> {
    convert::with_bytes(message, |bytes| {
        let (prefix, records) = capture::parse(bytes).map_err(Error::value)?;
        let records = records.iter().map(|record| captured(py, record)).collect();
        Ok((prefix.worker, prefix.lost, records))
    })?
}

fn captured<'py>(py: Python<'py>, record: &capture::Record<'_>) -> Captured<'py> {
    let head = &record.head;
    let (verdict, reason, copies) = match head.verdict {
        Verdict::Forwarded => ("forwarded", "", 1),
        Verdict::Flooded(copies) => ("flooded", "", copies),
        Verdict::Delivered => ("delivered", "", 0),
        Verdict::Answered => ("answered", "", 0),
        Verdict::Answer => ("answer", "", 0),
        Verdict::Dropped(reason) => ("dropped", reason.name(), 0),
    };
    (
        head.time_ns,
        direction(head.direction),
        verdict,
        reason,
        copies,
        address(head.vtep),
        head.frames,
        head.frame_bytes,
        PyBytes::new(py, record.bytes),
    )
}

pub fn dropped<'py>(py: Python<'py>, dropped: &DroppedFrame) -> Dropped<'py> {
    (
        dropped.time_ns,
        dropped.count,
        direction(dropped.direction),
        dropped.reason.name(),
        dropped.vni.map(|vni| vni.value()),
        address(dropped.vtep),
        dropped.frame_bytes,
        PyBytes::new(py, dropped.headers()),
    )
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}

fn address(vtep: Option<std::net::IpAddr>) -> String {
    vtep.map(|vtep| vtep.to_string()).unwrap_or_default()
}
