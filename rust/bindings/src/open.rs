//! Opening of ports and sockets, and the end of all privileges.

use std::os::fd::{IntoRawFd, OwnedFd, RawFd};

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use vxlan_dataplane::io::{self, TapOffloads};

use crate::convert::{self, Flag, Number};
use crate::errors::{Error, Result};

#[pyfunction]
#[pyo3(
    signature = (netns_fd, name, queues, mtu, *, without=Vec::new()),
    text_signature = "(netns_fd, name, queues, mtu, *, without=())"
)]
pub fn open_tap(
    py: Python<'_>,
    netns_fd: Number,
    name: String,
    queues: Number,
    mtu: Number,
    without: Vec<PyBackedStr>,
) -> Result<Vec<RawFd>> {
    let queues = queues.within("number of queues", 1, 256)? as usize;
    let mtu_bytes = mtu.within("MTU", 68, 65_521)?;
    let wanted = TapOffloads::all_but(&without)?;
    let netns_fd = netns_fd.descriptor()?;
    let opened = py.detach(|| {
        let mut opened = Ok(Vec::new());
        io::borrow(netns_fd, |netns| {
            opened = io::open_tap(netns, &name, queues, mtu_bytes, wanted);
            Ok(())
        })
        .map_err(|error| Error::descriptor(netns_fd, "network namespace", &error))?;
        opened.map_err(Error::from)
    })?;
    Ok(released(opened))
}

#[pyfunction]
#[pyo3(
    signature = (fd, *, without=Vec::new()),
    text_signature = "(fd, *, without=())"
)]
pub fn tap_offloads(fd: Number, without: Vec<PyBackedStr>) -> Result<Vec<&'static str>> {
    let wanted = TapOffloads::all_but(&without)?;
    let fd = fd.descriptor()?;
    let granted = io::borrow(fd, |queue| io::ensure_offloads(queue, wanted))
        .map_err(|error| Error::descriptor(fd, "queue of a TAP", &error))?;
    Ok(granted.names().collect())
}

#[pyfunction]
#[pyo3(signature = (fd, *, on), text_signature = "(fd, *, on)")]
pub fn receive_offload(fd: Number, on: Flag) -> Result<bool> {
    let (fd, on) = (fd.descriptor()?, on.named("on")?);
    io::borrow(fd, |socket| io::ensure_receive_offload(socket, on))
        .map_err(|error| Error::descriptor(fd, "receiving socket", &error))
}

#[pyfunction]
#[pyo3(
    signature = (address, port, workers, *, checksum=Flag::Known(true), send_sockets=Number::Small(32)),
    text_signature = "(address, port, workers, *, checksum=True, send_sockets=32)"
)]
pub fn open_underlay(
    py: Python<'_>,
    address: &str,
    port: Number,
    workers: Number,
    checksum: Flag,
    send_sockets: Number,
) -> Result<Vec<RawFd>> {
    let address = convert::address(address)?;
    let port = port.within("UDP port", 1, u16::MAX)?;
    let workers = workers.within("number of workers", 1, 64)? as usize;
    let send_sockets = send_sockets.within("number of send sockets", 1, 1024)? as usize;
    let checksum = checksum.named("checksum")?;
    let opened = py.detach(|| io::open_underlay(address, port, workers, checksum, send_sockets))?;
    Ok(released(opened))
}

#[pyfunction]
pub fn confine(uid: u32, gid: u32) -> Result<()> {
    Ok(vxlan_dataplane::engine::confine(uid, gid)?)
}

/// Gives the descriptors to Python, which closes them.
fn released(opened: Vec<OwnedFd>) -> Vec<RawFd> {
    opened.into_iter().map(IntoRawFd::into_raw_fd).collect()
}
