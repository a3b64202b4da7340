//! Completion of a checksum that the sender left to the card.

use super::field;
use crate::drop::DropReason;
use crate::wire::{array, checksum::Sum, virtio::VnetHdr};

/// Completes the checksum that `hdr` asks for, in place; without NEEDS_CSUM it does nothing.
///
/// The field holds the sum of the pseudo header; the checksum covers all from `csum_start` to the
/// end of the frame (virtio 1.2, section 5.1.6.2). In UDP's field, where zero means "none", zero
/// becomes 0xffff (RFC 768); elsewhere that would pass, too, but is not what the sender computes.
/// For super-frames use [`super::Segments`].
///
/// # Errors
///
/// [`DropReason::OffloadMalformed`] if the field is not within the frame or `hdr` tells of a
/// super-frame; nothing is written.
pub fn complete_checksum(hdr: &VnetHdr, frame: &mut [u8]) -> Result<(), DropReason> {
    if hdr.is_gso() {
        return Err(DropReason::OffloadMalformed);
    }
    if !hdr.needs_csum() {
        return Ok(());
    }
    let covered = frame
        .get_mut(usize::from(hdr.csum_start)..)
        .ok_or(DropReason::OffloadMalformed)?;
    let at = usize::from(hdr.csum_offset);
    if array::<2>(covered, at).is_none() {
        return Err(DropReason::OffloadMalformed);
    }
    // With the sum of the pseudo header in the field, the sum over all is that of the packet; an
    // odd offset of the field would turn its bytes, but no protocol has one.
    let sum = Sum::new().bytes(covered);
    let sum = if at == field::UDP_CHECKSUM {
        sum.finish_nonzero()
    } else {
        sum.finish()
    };
    covered[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}
