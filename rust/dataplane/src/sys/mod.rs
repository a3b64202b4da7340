//! System calls and ioctls as safe functions; the only module with `unsafe`.
//!
//! Nothing here decides: a function makes one call (or the few that are of no use apart), checks
//! its result and gives it back as an [`io::Result`]. For `io` and `engine` alone.

#![allow(unsafe_code)]

use std::io;

pub mod clock;
pub mod confine;
pub mod descriptor;
pub mod message;
pub mod poll;
pub mod signal;
pub mod socket;
pub mod tap;

/// Turns the -1 of a system call into the error that `errno` names.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
