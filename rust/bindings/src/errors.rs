//! Errors become exceptions here and nowhere else.

use std::fmt::Display;
use std::io;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::PyErr;
use vxlan_dataplane::engine::{ConfineError, EngineError};
use vxlan_dataplane::io::OpenError;
use vxlan_dataplane::table::TableError;
use vxlan_dataplane::wire::WireError;

/// What every function of the module fails with: an exception, made from any error below.
#[derive(Debug)]
pub struct Error(PyErr);

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// ValueError.
    pub fn value(message: impl Display) -> Self {
        Self(PyValueError::new_err(message.to_string()))
    }

    /// TypeError.
    pub fn wrong_type(message: impl Display) -> Self {
        Self(PyTypeError::new_err(message.to_string()))
    }

    /// OSError for a descriptor that is not the `wanted`, or not open.
    pub fn descriptor(number: impl Display, wanted: &str, error: &io::Error) -> Self {
        let wanted = if wanted.is_empty() {
            String::new()
        } else {
            format!(" as {wanted}")
        };
        let message = format_args!("descriptor {number}{wanted}: {error}");
        Self::system(message, error.raw_os_error())
    }

    /// The same exception for one of several inputs.
    pub fn at(self, index: usize, py: pyo3::Python<'_>) -> Self {
        let message = format!("index {index}: {}", self.0.value(py));
        Self(PyErr::from_type(self.0.get_type(py), message))
    }

    /// ValueError for bytes that are not `what`.
    pub fn malformed(what: &str) -> impl FnOnce(WireError) -> Self + '_ {
        move |error| Self::value(format_args!("{what}: {error}"))
    }

    /// OSError with errno; the interpreter picks the subclass.
    fn system(message: impl Display, errno: Option<i32>) -> Self {
        let message = message.to_string();
        Self(match errno {
            Some(errno) => PyOSError::new_err((errno, message)),
            None => PyOSError::new_err(message),
        })
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        error.0
    }
}

impl From<PyErr> for Error {
    fn from(error: PyErr) -> Self {
        Self(error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::system(&error, error.raw_os_error())
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        Self::value(error)
    }
}

impl From<TableError> for Error {
    fn from(error: TableError) -> Self {
        Self::value(error)
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        match &error {
            EngineError::System { source, .. } => Self::system(&error, source.raw_os_error()),
            EngineError::Closed | EngineError::Forked { .. } => {
                Self(PyRuntimeError::new_err(error.to_string()))
            }
            _ => Self::value(error),
        }
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        match &error {
            OpenError::System { source, .. } => Self::system(&error, source.raw_os_error()),
            OpenError::PortTaken { .. } => Self::system(&error, Some(libc::EADDRINUSE)),
            _ => Self::value(error),
        }
    }
}

impl From<ConfineError> for Error {
    fn from(error: ConfineError) -> Self {
        match &error {
            ConfineError::Step { source, .. } => Self::system(&error, source.raw_os_error()),
            ConfineError::Threads { .. } => Self(PyRuntimeError::new_err(error.to_string())),
            _ => Self::value(error),
        }
    }
}
