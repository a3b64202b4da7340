//! The VXLAN header (RFC 7348, section 5).

use super::{head, Vni, WireError};

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 8;
/// Destination port that IANA assigned.
pub const PORT: u16 = 4789;
/// The I flag: the VNI is valid.
pub const FLAG_VNI: u8 = 0x08;

/// The header for `vni`: flags `0x08`, 24 bits zero, 24-bit VNI, 8 bits zero.
#[inline]
#[must_use]
pub const fn header(vni: Vni) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = vni.value().to_be_bytes();
    [FLAG_VNI, 0, 0, 0, a, b, c, 0]
}

/// Writes the header for `vni` into the last 8 bytes of `headroom`.
///
/// Returns the offset in `headroom` at which the header begins.
///
/// # Errors
///
/// [`WireError::Short`] if `headroom` is shorter than [`HEADER_LEN`]; nothing is written.
#[inline]
pub fn emit(vni: Vni, headroom: &mut [u8]) -> Result<usize, WireError> {
    let have = headroom.len();
    let room = headroom
        .last_chunk_mut::<HEADER_LEN>()
        .ok_or(WireError::Short {
            need: HEADER_LEN,
            have,
        })?;
    *room = header(vni);
    Ok(have - HEADER_LEN)
}

/// Reads the header at the beginning of a UDP payload; the frame begins at [`HEADER_LEN`].
///
/// Reserved bits are ignored, as the RFC demands.
///
/// # Errors
///
/// [`WireError::Short`] for less than a header, [`WireError::VxlanFlags`] without the I flag.
#[inline]
pub fn parse(datagram: &[u8]) -> Result<Vni, WireError> {
    let &[flags, _, _, _, a, b, c, _]: &[u8; HEADER_LEN] = head(datagram)?;
    if flags & FLAG_VNI == 0 {
        return Err(WireError::VxlanFlags { flags });
    }
    Vni::new(u32::from_be_bytes([0, a, b, c]))
}
