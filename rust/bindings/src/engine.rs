//! `Engine`: the facade of [`vxlan_dataplane::engine::Engine`].

use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::PyBytes;
use vxlan_dataplane::capture::MAX_KEPT;
use vxlan_dataplane::engine::{self, CaptureConfig, Event, NetworkConfig, TunnelConfig};

use crate::capture::{dropped, Dropped};
use crate::convert::{self, AddressEntries, Flag, MacEntries, Number};
use crate::errors::Result;
use crate::stats::Stats;

#[pyclass(frozen, module = "pyvxlan._dataplane")]
pub struct Engine(engine::Engine);

type Dump<'py> = (
    Vec<(Bound<'py, PyBytes>, String)>,
    Vec<(String, Bound<'py, PyBytes>)>,
    Vec<String>,
    bool,
);

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(
        signature = (underlay, workers, /, *, paused=Flag::Known(false)),
        text_signature = "(underlay, workers, /, *, paused=False)"
    )]
    fn new(py: Python<'_>, underlay: Vec<Number>, workers: Number, paused: Flag) -> Result<Self> {
        let sockets = convert::descriptors(&underlay)?;
        let workers = workers.within("number of workers", 1, 64)? as usize;
        let start = if paused.named("paused")? {
            engine::Engine::start_paused
        } else {
            engine::Engine::start
        };
        let engine = py.detach(|| start(sockets, workers))?;
        Ok(Self(engine))
    }

    fn resume(&self, py: Python<'_>) -> Result<()> {
        Ok(py.detach(|| self.0.resume())?)
    }

    #[pyo3(signature = (*, on), text_signature = "($self, *, on)")]
    fn switch_segmentation(&self, on: Flag) -> Result<()> {
        Ok(self.0.switch_segmentation(on.named("on")?)?)
    }

    #[getter]
    fn event_fd(&self) -> RawFd {
        self.0.event_fd()
    }

    #[getter]
    fn workers(&self) -> usize {
        self.0.workers()
    }

    #[pyo3(
        signature = (vni, queues, mtu, *, multicast=Flag::Known(true), flood_rate=Number::Small(10_000)),
        text_signature = "($self, vni, queues, mtu, *, multicast=True, flood_rate=10000)"
    )]
    fn attach(
        &self,
        py: Python<'_>,
        vni: Number,
        queues: Vec<Number>,
        mtu: Number,
        multicast: Flag,
        flood_rate: Number,
    ) -> Result<()> {
        let queues = convert::descriptors(&queues)?;
        let config = NetworkConfig {
            vni: vni.vni()?,
            mtu_bytes: mtu.within("MTU", 68, 65_521)?,
            multicast: multicast.named("multicast")?,
            flood_rate: flood_rate.within("flood rate", 1, 1_000_000_000)?,
        };
        Ok(py.detach(|| self.0.attach(config, queues))?)
    }

    fn detach(&self, py: Python<'_>, vni: Number) -> Result<()> {
        let vni = vni.vni()?;
        Ok(py.detach(|| self.0.detach(vni))?)
    }

    fn apply(&self, vni: Number, add: MacEntries, remove: Vec<PyBackedBytes>) -> Result<()> {
        let add = convert::mac_entries(&add)?;
        let remove = convert::macs(&remove)?;
        Ok(self.0.apply(vni.vni()?, &add, &remove)?)
    }

    fn set_flood(&self, vni: Number, vteps: Vec<PyBackedStr>) -> Result<()> {
        let vteps = convert::addresses(&vteps)?;
        Ok(self.0.set_flood(vni.vni()?, &vteps)?)
    }

    fn set_neighbours(&self, vni: Number, entries: AddressEntries) -> Result<()> {
        let entries = convert::address_entries(&entries)?;
        Ok(self.0.set_neighbours(vni.vni()?, &entries)?)
    }

    fn set_tunnels(
        &self,
        py: Python<'_>,
        interval_ms: Number,
        tunnels: Vec<(PyBackedStr, Number)>,
    ) -> Result<()> {
        let interval_ms = interval_ms.within("probe interval in ms", 0, 3_600_000_u64)?;
        let tunnels = tunnels.iter().map(|(vtep, mtu)| {
            Ok(TunnelConfig {
                vtep: convert::address(vtep)?,
                mtu_bytes: mtu.within("MTU", 68, 65_521)?,
            })
        });
        let tunnels = tunnels.collect::<Result<Vec<_>>>()?;
        Ok(py.detach(|| self.0.set_tunnels(interval_ms * 1_000_000, &tunnels))?)
    }

    fn dump<'py>(&self, py: Python<'py>, vni: Number) -> Result<Dump<'py>> {
        let vni = vni.vni()?;
        let dump = py.detach(|| self.0.dump(vni))?;
        let (fdb, neighbours, flood) =
            convert::tables(py, &dump.fdb, &dump.neighbours, &dump.flood);
        Ok((fdb, neighbours, flood, dump.port_alive))
    }

    fn port(&self, vni: Number) -> Result<(u32, bool, u32)> {
        let config = self.0.config(vni.vni()?)?;
        Ok((config.mtu_bytes, config.multicast, config.flood_rate))
    }

    fn vnis(&self) -> Result<Vec<u32>> {
        Ok(self.0.vnis()?.iter().map(|vni| vni.value()).collect())
    }

    fn stats(&self) -> Result<Stats> {
        Ok(Stats(self.0.stats()?))
    }

    #[pyo3(
        signature = (vni, socket, *, mac=None, snap_bytes=Number::Small(65_600), drops_only=Flag::Known(false)),
        text_signature = "($self, vni, socket, *, mac=None, snap_bytes=65600, drops_only=False)"
    )]
    fn begin_capture(
        &self,
        py: Python<'_>,
        vni: Number,
        socket: Number,
        mac: Option<PyBackedBytes>,
        snap_bytes: Number,
        drops_only: Flag,
    ) -> Result<u64> {
        let mut sockets = convert::descriptors(&[socket])?;
        let config = CaptureConfig {
            vni: vni.vni()?,
            mac: mac.map(|mac| convert::mac(&mac)).transpose()?,
            snap_bytes: snap_bytes.within("bytes kept of a frame", 14, MAX_KEPT)?,
            drops_only: drops_only.named("drops_only")?,
        };
        let socket = sockets.remove(0);
        Ok(py.detach(|| self.0.begin_capture(config, socket))?)
    }

    fn end_capture(&self, py: Python<'_>, number: Number) -> Result<()> {
        let number = number.within("number of a capture", 0, u64::MAX >> 1)?;
        Ok(py.detach(|| self.0.end_capture(number))?)
    }

    fn recent_drops<'py>(&self, py: Python<'py>) -> Result<Vec<Dropped<'py>>> {
        let drops = py.detach(|| self.0.recent_drops())?;
        Ok(drops.iter().map(|drop| dropped(py, drop)).collect())
    }

    fn events(&self) -> Vec<(&'static str, String)> {
        let events = self.0.events().into_iter();
        events
            .filter_map(|event| match event {
                Event::PortLost(vni) => Some(("port_lost", vni.to_string())),
                Event::WorkerLost(number) => Some(("worker_lost", number.to_string())),
                _ => None,
            })
            .collect()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (exc_type, exc, traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exc_type: &Bound<'_, PyAny>,
        exc: &Bound<'_, PyAny>,
        traceback: &Bound<'_, PyAny>,
    ) {
        let _ = (exc_type, exc, traceback);
        self.close(py);
    }
}
