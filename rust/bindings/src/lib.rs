//! Extension module `pyvxlan._dataplane`: converts between Python and [`vxlan_dataplane`].
//!
//! Nothing is decided here. Exceptions are made in `errors` alone. Calls that can wait release the
//! interpreter lock; no worker thread ever takes it. What is public, and what it promises, stands
//! in the stub `pyvxlan/_dataplane.pyi`.

// Python sees the stub's documentation; `missing_docs` would ask for it a second time.
#![allow(missing_docs)]

mod capture;
mod codec;
mod convert;
mod engine;
mod errors;
mod open;
mod stats;
mod table;

#[pyo3::pymodule]
mod _dataplane {
    #[pymodule_export]
    use crate::capture::parse_capture;
    #[pymodule_export]
    use crate::codec::{
        decap, decap_batch, decap_datagram, encap, encap_batch, encap_datagram, flow_hash,
        parse_arp, parse_ethernet, parse_ipv4, parse_ipv6, parse_tcp, parse_udp, parse_vxlan,
        source_port, vxlan_header,
    };
    #[pymodule_export]
    use crate::engine::Engine;
    #[pymodule_export]
    use crate::open::{confine, open_tap, open_underlay, receive_offload, tap_offloads};
    #[pymodule_export]
    use crate::stats::{drop_reasons, Stats};
    #[pymodule_export]
    use crate::table::ForwardingTable;

    #[pymodule_export]
    const HEADER_LEN: usize = vxlan_dataplane::wire::vxlan::HEADER_LEN;
    #[pymodule_export]
    const MAX_SNAP_BYTES: u32 = vxlan_dataplane::capture::MAX_KEPT;
    #[pymodule_export]
    const DEFAULT_PORT: u16 = vxlan_dataplane::wire::vxlan::PORT;
}
