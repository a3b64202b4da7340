//! What workers tell the control side: a queue, and an eventfd to wait for.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;

use crate::sys::poll::EventFd;
use crate::wire::Vni;

/// Something that the control side should react to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The port of this VNI was deleted under us. Tables stay; attach it again.
    PortLost(Vni),
    /// The worker of this number ended by a defect.
    WorkerLost(usize),
}

/// The workers' end.
#[derive(Clone, Debug)]
pub(super) struct EventSender {
    sender: Sender<Event>,
    wake: Arc<EventFd>,
}

impl EventSender {
    pub fn raise(&self, event: Event) {
        // Fails only if nobody is left to hear it.
        let _ = self.sender.send(event);
        self.wake.signal();
    }
}

/// The control side's end.
#[derive(Debug)]
pub(super) struct EventReceiver {
    receiver: Receiver<Event>,
    wake: Arc<EventFd>,
}

impl EventReceiver {
    /// Takes all that there is and makes the eventfd quiet.
    pub fn take(&self) -> Vec<Event> {
        // First quiet, then empty: what comes in between is taken now or signals again.
        self.wake.clear();
        self.receiver.try_iter().collect()
    }

    /// Lets whoever waits look, though there is no event.
    pub fn wake(&self) {
        self.wake.signal();
    }

    pub fn descriptor(&self) -> RawFd {
        self.wake.as_fd().as_raw_fd()
    }
}

pub(super) fn events() -> std::io::Result<(EventSender, EventReceiver)> {
    let wake = Arc::new(EventFd::new()?);
    let (sender, receiver) = channel();
    let events = EventSender {
        sender,
        wake: Arc::clone(&wake),
    };
    Ok((events, EventReceiver { receiver, wake }))
}
