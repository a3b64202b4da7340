//! Whether a worker lets the kernel cut datagrams, as worker and control side share it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// On while several datagrams may be handed over as one message (UDP_SEGMENT): the control side
/// switches it, and the worker switches it off once the kernel has refused.
#[derive(Clone, Debug)]
pub(super) struct Segmentation(Arc<AtomicBool>);

impl Segmentation {
    pub fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    #[inline]
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub fn switch(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }
}
