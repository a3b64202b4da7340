//! Counters as dictionaries of integers.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vxlan_dataplane::engine::{self, Drops};
use vxlan_dataplane::DropReason;

#[pyclass(frozen, module = "pyvxlan._dataplane")]
pub struct Stats(pub engine::Stats);

#[pymethods]
impl Stats {
    #[getter]
    fn workers(&self) -> usize {
        self.0.workers
    }

    #[getter]
    fn idle_s(&self) -> Vec<f64> {
        let seconds = |&idle_ns: &u64| idle_ns as f64 / 1e9;
        self.0.idle_ns.iter().map(seconds).collect()
    }

    #[getter]
    fn segmentation(&self) -> &[bool] {
        &self.0.segmentation
    }

    fn networks<'py>(&self, py: Python<'py>) -> PyResult<Vec<(u32, Bound<'py, PyDict>)>> {
        let mut networks = Vec::with_capacity(self.0.networks.len());
        for (vni, stats) in &self.0.networks {
            let counters = PyDict::new(py);
            for (name, value) in [
                ("egress_frames", stats.egress_frames),
                ("egress_bytes", stats.egress_bytes),
                ("ingress_frames", stats.ingress_frames),
                ("ingress_bytes", stats.ingress_bytes),
                ("flood_frames", stats.flood_frames),
                ("replies", stats.replies),
                ("fdb_entries", stats.fdb_entries),
                ("neighbour_entries", stats.neighbour_entries),
                ("flood_vteps", stats.flood_vteps),
            ] {
                counters.set_item(name, value)?;
            }
            counters.set_item("egress_drops", drops(py, &stats.egress_drops)?)?;
            counters.set_item("ingress_drops", drops(py, &stats.ingress_drops)?)?;
            networks.push((vni.value(), counters));
        }
        Ok(networks)
    }

    fn underlay<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = &self.0.underlay;
        let counters = PyDict::new(py);
        for (name, value) in [
            ("sent_datagrams", stats.sent_datagrams),
            ("sent_bytes", stats.sent_bytes),
            ("sent_syscalls", stats.sent_syscalls),
            ("sent_batches", stats.sent_batches),
            ("received_datagrams", stats.received_datagrams),
            ("received_bytes", stats.received_bytes),
            ("received_syscalls", stats.received_syscalls),
            ("received_batches", stats.received_batches),
        ] {
            counters.set_item(name, value)?;
        }
        counters.set_item("drops", drops(py, &stats.drops)?)?;
        Ok(counters)
    }

    fn vteps<'py>(&self, py: Python<'py>) -> PyResult<Vec<(String, Bound<'py, PyDict>)>> {
        let mut vteps = Vec::with_capacity(self.0.vteps.len());
        for (vtep, stats) in &self.0.vteps {
            let counters = PyDict::new(py);
            for (name, value) in [
                ("sent_datagrams", stats.sent_datagrams),
                ("sent_bytes", stats.sent_bytes),
                ("received_datagrams", stats.received_datagrams),
                ("received_bytes", stats.received_bytes),
            ] {
                counters.set_item(name, value)?;
            }
            vteps.push((vtep.to_string(), counters));
        }
        Ok(vteps)
    }
}

fn drops<'py>(py: Python<'py>, drops: &Drops) -> PyResult<Bound<'py, PyDict>> {
    let counters = PyDict::new(py);
    for (reason, count) in drops.iter() {
        counters.set_item(reason.name(), count)?;
    }
    Ok(counters)
}

#[pyfunction]
pub fn drop_reasons() -> Vec<&'static str> {
    DropReason::ALL.iter().map(|reason| reason.name()).collect()
}
