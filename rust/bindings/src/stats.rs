//! Counters as dictionaries of integers.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vxlan_dataplane::engine::{self, Drops};
use vxlan_dataplane::probe;
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
                ("path_mtu_replies", stats.path_mtu_replies),
                ("mss_clamped", stats.mss_clamped),
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

    fn tunnels<'py>(&self, py: Python<'py>) -> PyResult<Vec<(String, Bound<'py, PyDict>)>> {
        let mut tunnels = Vec::with_capacity(self.0.tunnels.len());
        for (vtep, stats) in &self.0.tunnels {
            let report = &stats.report;
            let counters = PyDict::new(py);
            for (name, value) in [
                ("sent", report.sent),
                ("answered", report.answered),
                ("lost", report.lost),
                ("reordered", stats.reordered),
                ("replies", stats.replies),
                ("narrowed", report.narrowed),
                ("recent", (report.answered + report.lost).min(64)),
                ("recent_lost", report.recent.count_ones().into()),
                ("round_trip_sum_ns", report.round_trip_sum_ns),
                ("path_mtu_bytes", stats.path_mtu_bytes.into()),
                ("needed_mtu_bytes", stats.needed_mtu_bytes.into()),
            ] {
                counters.set_item(name, value)?;
            }
            let age_ns = stats.answer_age_ns.map_or(-1, |age_ns| age_ns as i64);
            counters.set_item("answer_age_ns", age_ns)?;
            counters.set_item("round_trips", round_trips(py, &report.round_trips)?)?;
            tunnels.push((vtep.to_string(), counters));
        }
        Ok(tunnels)
    }
}

fn round_trips<'py>(
    py: Python<'py>,
    counts: &[u64; probe::BUCKETS],
) -> PyResult<Bound<'py, PyDict>> {
    let buckets = PyDict::new(py);
    let bounds = probe::BUCKETS_NS.iter().map(|ns| (ns / 1000).to_string());
    let bounds = bounds.chain(std::iter::once("inf".to_owned()));
    for (bound, count) in bounds.zip(counts) {
        buckets.set_item(bound, count)?;
    }
    Ok(buckets)
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
