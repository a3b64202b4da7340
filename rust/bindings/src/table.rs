//! `ForwardingTable`: tables and decisions of one VNI, without engine.

use std::sync::Arc;

use arc_swap::ArcSwap;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::PyBytes;
use vxlan_dataplane::egress::{self, Egress, ReplyBuffer};
use vxlan_dataplane::ingress::{self, Ingress};
use vxlan_dataplane::table::{TableError, Tables};

use crate::convert::{self, AddressEntries, Flag, MacEntries, Number};
use crate::errors::Result;

#[pyclass(frozen, module = "pyvxlan._dataplane")]
pub struct ForwardingTable(ArcSwap<Tables>);

impl ForwardingTable {
    /// Swaps in what `change` makes of the tables, anew if another thread was faster.
    fn change(
        &self,
        change: impl Fn(&Tables) -> std::result::Result<Tables, TableError>,
    ) -> Result<()> {
        loop {
            let before = self.0.load_full();
            let after = Arc::new(change(&before)?);
            let found = self.0.compare_and_swap(&before, after);
            if Arc::ptr_eq(&found, &before) {
                return Ok(());
            }
        }
    }
}

#[pymethods]
impl ForwardingTable {
    #[new]
    #[pyo3(
        signature = (vni, *, multicast=Flag::Known(true)),
        text_signature = "(vni, *, multicast=True)"
    )]
    fn new(vni: Number, multicast: Flag) -> Result<Self> {
        let tables = Tables::new(vni.vni()?, multicast.named("multicast")?);
        Ok(Self(ArcSwap::from_pointee(tables)))
    }

    #[getter]
    fn vni(&self) -> u32 {
        self.0.load().vni().value()
    }

    #[getter]
    fn multicast(&self) -> bool {
        self.0.load().multicast()
    }

    fn __len__(&self) -> usize {
        self.0.load().fdb_len()
    }

    fn apply(&self, add: MacEntries, remove: Vec<PyBackedBytes>) -> Result<()> {
        let add = convert::mac_entries(&add)?;
        let remove = convert::macs(&remove)?;
        self.change(|tables| tables.with_changes(&add, &remove))
    }

    fn set_flood(&self, vteps: Vec<PyBackedStr>) -> Result<()> {
        let vteps = convert::addresses(&vteps)?;
        self.change(|tables| tables.with_flood(&vteps))
    }

    fn set_neighbours(&self, entries: AddressEntries) -> Result<()> {
        let entries = convert::address_entries(&entries)?;
        self.change(|tables| tables.with_neighbours(&entries))
    }

    fn lookup(&self, mac: PyBackedBytes) -> Result<Option<String>> {
        let vtep = self.0.load().lookup(&convert::mac(&mac)?);
        Ok(vtep.map(|vtep| vtep.to_string()))
    }

    fn neighbour<'py>(
        &self,
        py: Python<'py>,
        address: &str,
    ) -> Result<Option<Bound<'py, PyBytes>>> {
        let address = convert::address(address)?.to_canonical();
        let mac = self.0.load().neighbour(address);
        Ok(mac.map(|mac| PyBytes::new(py, &mac.0)))
    }

    fn is_vtep(&self, address: &str) -> Result<bool> {
        let address = convert::address(address)?.to_canonical();
        Ok(self.0.load().is_vtep(address))
    }

    fn dump<'py>(&self, py: Python<'py>) -> convert::Tables<'py> {
        let tables = self.0.load();
        let mut fdb: Vec<_> = tables.fdb().collect();
        let mut neighbours: Vec<_> = tables.neighbours().collect();
        fdb.sort_unstable();
        neighbours.sort_unstable();
        convert::tables(py, &fdb, &neighbours, tables.flood())
    }

    fn egress<'py>(
        &self,
        frame: &Bound<'py, PyAny>,
    ) -> Result<(&'static str, Vec<String>, Bound<'py, PyBytes>, &'static str)> {
        let tables = self.0.load();
        let mut reply = ReplyBuffer::new();
        let verdict =
            convert::with_bytes(frame, |frame| egress::decide(frame, &tables, &mut reply))?;
        let (name, vteps, reason) = match verdict {
            Egress::Unicast { vtep } => ("unicast", vec![vtep.to_string()], ""),
            Egress::Flood { vteps } => {
                ("flood", vteps.iter().map(ToString::to_string).collect(), "")
            }
            Egress::Reply => ("reply", Vec::new(), ""),
            Egress::Drop(reason) => ("drop", Vec::new(), reason.name()),
            _ => ("unknown", Vec::new(), ""),
        };
        let reply = if verdict == Egress::Reply {
            reply.frame()
        } else {
            &[]
        };
        Ok((name, vteps, PyBytes::new(frame.py(), reply), reason))
    }

    fn ingress(&self, frame: &Bound<'_, PyAny>, source: &str) -> Result<Option<&'static str>> {
        let tables = self.0.load();
        let source = convert::address(source)?.to_canonical();
        convert::with_bytes(frame, |frame| {
            match ingress::decide(frame, source, &tables) {
                Ingress::Drop(reason) => Some(reason.name()),
                _ => None,
            }
        })
    }
}
