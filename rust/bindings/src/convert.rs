//! Values at the edge: numbers with their range, addresses, buffers.

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyMemoryView, PySlice};
use vxlan_dataplane::wire::{MacAddr, Vni};

use crate::errors::{Error, Result};

/// Any Python integer; one that is out of range is refused by name, with a ValueError.
#[derive(Debug)]
pub enum Number {
    Small(i64),
    Huge(String),
}

impl Display for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Small(value) => value.fmt(formatter),
            Self::Huge(text) => text.fmt(formatter),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Number {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract() {
            Ok(value) => Ok(Self::Small(value)),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
                Ok(Self::Huge(object.str()?.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}

impl Number {
    /// The value as a `T` within `low` to `high`; `what` is its name in the message.
    pub fn within<T>(&self, what: &str, low: T, high: T) -> Result<T>
    where
        T: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        let value = match self {
            Self::Small(value) => T::try_from(*value).ok(),
            Self::Huge(_) => None,
        };
        value
            .filter(|value| (low..=high).contains(value))
            .ok_or_else(|| Error::value(format_args!("{what} {self} is not in {low}-{high}")))
    }

    pub fn vni(&self) -> Result<Vni> {
        Ok(Vni::new(self.within("VNI", 0, Vni::MAX.value())?)?)
    }
}

/// Takes ownership of descriptors; those that are open are closed if one is not. If one is given
/// twice, all stay with the caller.
pub fn descriptors(numbers: &[i32]) -> Result<Vec<OwnedFd>> {
    let twice = |(index, number)| numbers[..index].contains(number).then_some(number);
    if let Some(number) = numbers.iter().enumerate().find_map(twice) {
        return Err(Error::value(format_args!(
            "descriptor {number} is given twice"
        )));
    }
    let adopted: Vec<_> = numbers
        .iter()
        .map(|&number| vxlan_dataplane::io::adopt(number))
        .collect();
    Ok(adopted.into_iter().collect::<std::io::Result<_>>()?)
}

pub fn mac(bytes: &[u8]) -> Result<MacAddr> {
    let six: [u8; 6] = bytes.try_into().map_err(|_| {
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Error::value(format_args!(
            "MAC address [{}] has {} bytes, not 6",
            hex.join(":"),
            bytes.len()
        ))
    })?;
    Ok(MacAddr(six))
}

pub fn macs(list: &[PyBackedBytes]) -> Result<Vec<MacAddr>> {
    list.iter().map(|bytes| mac(bytes)).collect()
}

pub fn address(text: &str) -> Result<IpAddr> {
    text.parse()
        .map_err(|_| Error::value(format_args!("{text:?} is no IP address")))
}

pub fn addresses(list: &[PyBackedStr]) -> Result<Vec<IpAddr>> {
    list.iter().map(|text| address(text)).collect()
}

/// Entries of an FDB, as they come from Python.
pub type MacEntries = Vec<(PyBackedBytes, PyBackedStr)>;
/// Entries of a neighbour table, as they come from Python.
pub type AddressEntries = Vec<(PyBackedStr, PyBackedBytes)>;

pub fn mac_entries(list: &MacEntries) -> Result<Vec<(MacAddr, IpAddr)>> {
    list.iter()
        .map(|(bytes, text)| Ok((mac(bytes)?, address(text)?)))
        .collect()
}

pub fn address_entries(list: &AddressEntries) -> Result<Vec<(IpAddr, MacAddr)>> {
    list.iter()
        .map(|(text, bytes)| Ok((address(text)?, mac(bytes)?)))
        .collect()
}

/// FDB, neighbours and flood list, as they go to Python.
pub type Tables<'py> = (
    Vec<(Bound<'py, PyBytes>, String)>,
    Vec<(String, Bound<'py, PyBytes>)>,
    Vec<String>,
);

pub fn tables<'py>(
    py: Python<'py>,
    fdb: &[(MacAddr, IpAddr)],
    neighbours: &[(IpAddr, MacAddr)],
    flood: &[IpAddr],
) -> Tables<'py> {
    let bytes = |mac: &MacAddr| PyBytes::new(py, &mac.0);
    (
        fdb.iter()
            .map(|(mac, vtep)| (bytes(mac), vtep.to_string()))
            .collect(),
        neighbours
            .iter()
            .map(|(address, mac)| (address.to_string(), bytes(mac)))
            .collect(),
        flood.iter().map(ToString::to_string).collect(),
    )
}

/// An object with the buffer protocol, as bytes. Read-only memory is borrowed; what another thread
/// could change under our eyes is copied once.
pub enum Input<'a, 'py> {
    Bytes(&'a Bound<'py, PyBytes>),
    Buffer(PyBuffer<u8>),
}

impl<'a, 'py> Input<'a, 'py> {
    pub fn new(object: &'a Bound<'py, PyAny>) -> Result<Self> {
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Self::Bytes(bytes));
        }
        Ok(Self::Buffer(PyBuffer::get(&view(object)?)?))
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.as_bytes().len(),
            Self::Buffer(buffer) => buffer.len_bytes(),
        }
    }

    /// Copies all bytes to `out`, which has room for exactly them.
    pub fn copy_to(&self, py: Python<'_>, out: &mut [u8]) -> Result<()> {
        match self {
            Self::Bytes(bytes) => out.copy_from_slice(bytes.as_bytes()),
            Self::Buffer(buffer) => buffer.copy_to_slice(py, out)?,
        }
        Ok(())
    }

    /// Shows the bytes to `see`.
    pub fn with<T>(&self, py: Python<'_>, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        match self {
            Self::Bytes(bytes) => Ok(see(bytes.as_bytes())),
            Self::Buffer(buffer) => Ok(see(&buffer.to_vec(py)?)),
        }
    }
}

/// Shows the bytes of any object with the buffer protocol to `see`.
pub fn with_bytes<T>(object: &Bound<'_, PyAny>, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
    Input::new(object)?.with(object.py(), see)
}

/// A flat view of bytes over an object with the buffer protocol. TypeError if there is none.
pub fn view<'py>(object: &Bound<'py, PyAny>) -> Result<Bound<'py, PyAny>> {
    let view = PyMemoryView::from(object)?;
    Ok(view.call_method1("cast", ("B",))?)
}

/// The part of a view from `start` to `end`.
pub fn slice<'py>(view: &Bound<'py, PyAny>, start: usize, end: usize) -> Result<Bound<'py, PyAny>> {
    let range = PySlice::new(view.py(), start as isize, end as isize, 1);
    Ok(view.get_item(range)?)
}
