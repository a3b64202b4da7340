//! Giving up every privilege of the process.

use std::io;

use crate::sys::confine as steps;

/// Why the process was not confined, or not wholly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfineError {
    /// To become root gives up nothing. Nothing was done.
    #[error("uid {uid} and gid {gid}: both must differ from 0")]
    Root {
        /// The uid that was asked for.
        uid: u32,
        /// The gid that was asked for.
        gid: u32,
    },
    /// Capabilities belong to threads, so there must be one only. Nothing was done.
    #[error("{threads} threads run; privileges are given up before the first is started")]
    Threads {
        /// How many there are.
        threads: usize,
    },
    /// The kernel refused a step; those before it are done.
    #[error("{step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Gives up groups, `gid` and `uid` in favour of those given, all capabilities, the way to get any
/// again, and all system calls that running an [`super::Engine`] and serving an open Unix socket
/// do not need.
///
/// # Errors
///
/// [`ConfineError`]; after [`ConfineError::Step`] the process should end.
pub fn confine(uid: u32, gid: u32) -> Result<(), ConfineError> {
    if uid == 0 || gid == 0 {
        return Err(ConfineError::Root { uid, gid });
    }
    let step = |step| move |source| ConfineError::Step { step, source };
    match steps::threads().map_err(step("counting threads"))? {
        1 => {}
        threads => return Err(ConfineError::Threads { threads }),
    }
    // In this order, since each needs what a later one takes away.
    steps::drop_capability_bounds().map_err(step("dropping bounding capabilities"))?;
    steps::drop_credentials(uid, gid).map_err(step("changing uid and gid"))?;
    steps::drop_capabilities().map_err(step("dropping capabilities"))?;
    steps::forbid_new_privileges().map_err(step("forbidding new privileges"))?;
    steps::restrict_system_calls().map_err(step("restricting system calls"))
}
