//! The control side of captures, and of the memory of drops: orders to the workers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::channel;
use std::sync::Arc;

use super::worker::Order;
use super::{Capture, CaptureConfig, DroppedFrame, Engine, EngineError};
use crate::sys::socket::is_kind;

/// Captures that may run at once.
pub const MAX_CAPTURES: usize = 16;

impl Engine {
    /// Begins a capture: records of its frames go to the peer of `socket` from now on, as messages
    /// of [`crate::capture`], and are lost while that does not take them.
    ///
    /// `socket` keeps messages apart (SOCK_SEQPACKET), and takes 128 KiB at once. The capture ends
    /// when its peer has gone, or with [`Engine::end_capture`] of the number that is returned.
    ///
    /// # Errors
    ///
    /// [`EngineError::Invalid`] if it is of another kind or [`MAX_CAPTURES`] run,
    /// [`EngineError::Closed`]. The socket is closed.
    pub fn begin_capture(
        &self,
        config: CaptureConfig,
        socket: OwnedFd,
    ) -> Result<u64, EngineError> {
        let mut control = self.open()?;
        if !is_kind(socket.as_fd(), libc::SOCK_SEQPACKET) {
            return Err(EngineError::Invalid(
                "a capture needs a socket that keeps messages apart: SOCK_SEQPACKET".into(),
            ));
        }
        control
            .captures
            .retain(|_, socket| socket.strong_count() > 0);
        if control.captures.len() >= MAX_CAPTURES {
            return Err(EngineError::Invalid(format!(
                "{MAX_CAPTURES} captures run already: end one first"
            )));
        }
        let socket = Arc::new(socket);
        let id = control.captures_begun;
        control.captures_begun += 1;
        control.captures.insert(id, Arc::downgrade(&socket));
        control.order_all(|number, done| Order::BeginCapture {
            capture: Capture::new(id, number, config, Arc::clone(&socket)),
            done,
        });
        Ok(id)
    }

    /// Ends a capture. One that has ended is no error.
    ///
    /// # Errors
    ///
    /// [`EngineError::Closed`] only.
    pub fn end_capture(&self, id: u64) -> Result<(), EngineError> {
        let mut control = self.open()?;
        if control.captures.remove(&id).is_some() {
            control.order_all(|_, done| Order::EndCapture { id, done });
        }
        Ok(())
    }

    /// The last frames that were dropped, the oldest first: some of each reason.
    ///
    /// # Errors
    ///
    /// [`EngineError::Closed`] only.
    pub fn recent_drops(&self) -> Result<Vec<DroppedFrame>, EngineError> {
        let control = self.open()?;
        let (to, told) = channel();
        for worker in &control.workers {
            worker.order(Order::TellDrops { to: to.clone() });
        }
        drop(to);
        let mut drops: Vec<_> = told.iter().flatten().collect();
        drops.sort_by_key(|dropped| dropped.time_ns);
        Ok(drops)
    }
}
