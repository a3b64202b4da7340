//! The memory that frames on their way out lie in.

use crate::wire::virtio;

/// Room for a super-frame of 64 KiB with virtio-net and VLAN headers.
const SLOT_BYTES: usize = 65_536 + 128;
/// Bytes after which a batch takes no more frames, so that it stays in the processor's cache.
const BATCH_BYTES: usize = 256 * 1024;

/// Frames read from a port, each in a slot of its own.
///
/// A slot holds the virtio-net header and then the frame; the eight bytes in front of the frame
/// become its VXLAN header, once the virtio-net header is parsed. All is allocated once.
#[derive(Debug)]
pub struct FrameBatch {
    memory: Vec<u8>,
    lens: Vec<usize>,
    bytes: usize,
}

impl Default for FrameBatch {
    fn default() -> Self {
        Self {
            memory: vec![0; Self::SLOTS * SLOT_BYTES],
            lens: Vec::with_capacity(Self::SLOTS),
            bytes: 0,
        }
    }
}

impl FrameBatch {
    /// Frames that one batch holds at most.
    pub const SLOTS: usize = 32;

    /// Where the frame begins in its slot, in bytes.
    pub const FRAME_OFFSET: usize = virtio::HEADER_LEN;

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.lens.clear();
        self.bytes = 0;
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lens.len()
    }

    /// Whether there is no frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// The slot for the next frame with its header, or None if the batch is full.
    pub fn free_slot(&mut self) -> Option<&mut [u8]> {
        let index = self.lens.len();
        if index == Self::SLOTS || self.bytes >= BATCH_BYTES {
            return None;
        }
        let start = index * SLOT_BYTES;
        self.memory.get_mut(start..start + SLOT_BYTES)
    }

    /// Says that the free slot now holds `len` bytes, header included.
    pub fn push(&mut self, len: usize) {
        debug_assert!(self.lens.len() < Self::SLOTS, "push follows a free slot");
        self.lens.push(len.min(SLOT_BYTES));
        self.bytes += len;
    }

    /// Header and frame `index`.
    ///
    /// # Panics
    ///
    /// If there is no such frame.
    #[must_use]
    pub fn slot(&self, index: usize) -> &[u8] {
        &self.memory[Self::slot_offset(index)..][..self.lens[index]]
    }

    /// Header and frame `index`, to write to.
    ///
    /// # Panics
    ///
    /// If there is no such frame.
    pub fn slot_mut(&mut self, index: usize) -> &mut [u8] {
        &mut self.memory[Self::slot_offset(index)..][..self.lens[index]]
    }

    /// Whether frame `index` fills its slot, so that there may have been more of it.
    #[must_use]
    pub fn is_cut(&self, index: usize) -> bool {
        self.lens[index] == SLOT_BYTES
    }

    /// Where slot `index` begins in the memory.
    #[must_use]
    pub const fn slot_offset(index: usize) -> usize {
        index * SLOT_BYTES
    }

    /// The slot that an offset in the memory lies in.
    #[must_use]
    pub const fn slot_at(offset: usize) -> usize {
        offset / SLOT_BYTES
    }

    /// The memory of all slots.
    #[must_use]
    pub fn memory(&self) -> &[u8] {
        &self.memory
    }
}
