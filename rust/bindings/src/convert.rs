//! Values at the edge: numbers with their range, addresses, buffers.

use std::fmt::{self, Display};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyMemoryView, PySlice};
use vxlan_dataplane::wire::{MacAddr, Vni};

use crate::errors::{Error, Result};

/// Any Python integer. What is none, or out of range, is refused by name when it is used, not when it
/// comes in: by then descriptors that came with it have an owner.
#[derive(Debug)]
pub enum Number {
    Small(i64),
    /// Of more bits; as text.
    Huge(String),
    /// No integer; as text.
    Other(String),
}

impl Display for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Small(value) => value.fmt(formatter),
            Self::Huge(text) | Self::Other(text) => text.fmt(formatter),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Number {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract() {
            Ok(value) => Ok(Self::Small(value)),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
                Ok(Self::Huge(shown(&object)))
            }
            Err(error) if error.is_instance_of::<PyTypeError>(object.py()) => {
                Ok(Self::Other(shown(&object)))
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
            Self::Other(_) => {
                return Err(Error::wrong_type(format_args!(
                    "{what} {self} is no integer"
                )));
            }
        };
        value
            .filter(|value| (low..=high).contains(value))
            .ok_or_else(|| Error::value(format_args!("{what} {self} is not in {low}-{high}")))
    }

    pub fn vni(&self) -> Result<Vni> {
        Ok(Vni::new(self.within("VNI", 0, Vni::MAX.value())?)?)
    }

    /// A descriptor's number, which may be that of none.
    pub fn descriptor(&self) -> Result<RawFd> {
        match self {
            Self::Small(value) => {
                RawFd::try_from(*value).map_err(|_| Error::descriptor(self, "", &closed()))
            }
            Self::Huge(_) => Err(Error::descriptor(self, "", &closed())),
            Self::Other(_) => Err(Error::wrong_type(format_args!(
                "descriptor {self} is no integer"
            ))),
        }
    }
}

/// `True` or `False`, refused like a [`Number`].
#[derive(Debug)]
pub enum Flag {
    Known(bool),
    /// Neither; as text.
    Other(String),
}

impl<'py> FromPyObject<'_, 'py> for Flag {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(object
            .extract()
            .map_or_else(|_: PyErr| Self::Other(shown(&object)), Self::Known))
    }
}

impl Flag {
    /// The value; `what` is its name in the message.
    pub fn named(&self, what: &str) -> Result<bool> {
        match self {
            Self::Known(value) => Ok(*value),
            Self::Other(text) => Err(Error::wrong_type(format_args!(
                "{what} {text} is neither True nor False"
            ))),
        }
    }
}

/// A value for a message: as Python writes it, if that is short.
fn shown(object: &Bound<'_, PyAny>) -> String {
    const LONGEST: usize = 60;
    let text = object.repr().map(|text| text.to_string()).ok();
    text.filter(|text| text.len() <= LONGEST)
        .unwrap_or_else(|| format!("of type {}", object.get_type()))
}

fn closed() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}

/// Takes ownership of descriptors; those that are open are closed if one is not, or is given twice.
pub fn descriptors(numbers: &[Number]) -> Result<Vec<OwnedFd>> {
    let mut adopted = Vec::with_capacity(numbers.len());
    let mut failure = None;
    for number in numbers {
        let one = number.descriptor().and_then(|number| {
            if adopted_before(&adopted, number) {
                return Err(Error::value(format_args!(
                    "descriptor {number} is given twice"
                )));
            }
            let one = vxlan_dataplane::io::adopt(number);
            one.map_err(|error| Error::descriptor(number, "", &error))
        });
        match one {
            Ok(one) => adopted.push(one),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(adopted),
    }
}

fn adopted_before(adopted: &[OwnedFd], number: RawFd) -> bool {
    adopted.iter().any(|one| one.as_raw_fd() == number)
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
    text.parse().map_err(|_| {
        Error::value(format_args!(
            "{text:?} is no IP address: write one such as 198.18.0.1 or fd00::1, without prefix \
             length or zone"
        ))
    })
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
