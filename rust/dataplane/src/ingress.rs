//! Decision for a decapsulated frame: wire to container.

use std::net::IpAddr;

use crate::drop::DropReason;
use crate::table::Tables;
use crate::wire::ethernet;

/// What becomes of a frame from the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ingress {
    /// Write it to the port of the VNI.
    Deliver,
    /// Count it and forget it.
    Drop(DropReason),
}

/// Decides about the inner frame of a datagram that came from `source`.
///
/// A frame passes only if its source MAC is in the FDB with exactly the sending VTEP; so no host
/// can speak for an endpoint of another one, and nobody outside the network gets anything in.
/// `source` is canonical: IPv4, never IPv4-mapped IPv6.
#[inline]
#[must_use]
pub fn decide(frame: &[u8], source: IpAddr, tables: &Tables) -> Ingress {
    let Some((_, mac)) = ethernet::addresses(frame) else {
        return Ingress::Drop(DropReason::FrameMalformed);
    };
    match tables.lookup(&mac) {
        Some(vtep) if vtep == source => Ingress::Deliver,
        found => Ingress::Drop(reason(found.is_some(), mac.is_station(), source, tables)),
    }
}

#[cold]
fn reason(known: bool, station: bool, source: IpAddr, tables: &Tables) -> DropReason {
    if !tables.is_vtep(source) {
        DropReason::SourceNotVtep
    } else if known {
        DropReason::SourceMacElsewhere
    } else if station {
        DropReason::SourceMacUnknown
    } else {
        DropReason::FrameMalformed
    }
}
