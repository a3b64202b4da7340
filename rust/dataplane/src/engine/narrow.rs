//! What a batch does about tunnels that are narrower than the networks need. None of it is reached
//! while there is no such tunnel.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::Guard;

use super::counters::NetworkCounters;
use super::ingress::write_plain;
use super::tunnels::TunnelList;
use crate::io::Port;
use crate::narrow::{answer, clamp_mss, may_be_syn, ANSWER_LEN};
use crate::offload::Segments;
use crate::wire::virtio::{self, VnetHdr};
use crate::wire::vxlan;
use crate::DropReason;

/// The container that sent a frame, as far as it takes to tell it something.
#[derive(Clone, Copy)]
pub(super) struct Teller<'a, P> {
    pub port: &'a P,
    pub counters: &'a NetworkCounters,
    pub now_ns: u64,
}

/// The tunnels, of which at least one is narrow.
pub(super) struct Narrow(pub Guard<Arc<TunnelList>>);

impl Narrow {
    /// Longest frame that gets through to a VTEP, in bytes; none if all do.
    pub fn longest(&self, vtep: IpAddr) -> Option<usize> {
        let tunnel = self.0.tunnels.get(&vtep)?;
        let path = tunnel.narrow_path()?;
        Some(usize::from(path) - vxlan::HEADER_LEN)
    }

    /// Makes a frame fit the tunnel to a VTEP, or tells its sender that it does not.
    ///
    /// TCP's super-frames are cut into smaller segments than was asked for, and their sender is
    /// told as well.
    ///
    /// # Errors
    ///
    /// [`DropReason::PathMtu`] if the sender was told, or would have been but for the rate.
    pub fn fit<P: Port>(
        &self,
        vtep: IpAddr,
        header: &mut VnetHdr,
        frame: &mut [u8],
        teller: Teller<'_, P>,
    ) -> Result<(), DropReason> {
        let Some(longest) = self.longest(vtep) else {
            return Ok(());
        };
        if !header.is_gso() {
            if may_be_syn(frame) && clamp_mss(frame, longest) {
                teller.counters.mss_clamped.add(1);
            }
            if frame.len() <= longest {
                return Ok(());
            }
            return if self.tell(vtep, frame, longest, teller) {
                Err(DropReason::PathMtu)
            } else {
                Ok(())
            };
        }
        let segments = Segments::new(header, frame)?;
        if segments.frame_len() <= longest {
            return Ok(());
        }
        let told = self.tell(vtep, frame, longest, teller);
        let size = longest.checked_sub(segments.header_len());
        let tcp = header.gso_type & !virtio::GSO_ECN != virtio::GSO_UDP_L4;
        match size.and_then(|size| u16::try_from(size).ok()) {
            Some(size @ 1..) if tcp => {
                header.gso_size = size;
                Ok(())
            }
            _ if told => Err(DropReason::PathMtu),
            _ => Ok(()),
        }
    }

    /// Tells the sender of a frame, if anybody can be told and the rate allows. Says whether
    /// anybody can.
    fn tell<P: Port>(
        &self,
        vtep: IpAddr,
        frame: &[u8],
        longest: usize,
        teller: Teller<'_, P>,
    ) -> bool {
        let Teller {
            port,
            counters,
            now_ns,
        } = teller;
        let mut room = [0; ANSWER_LEN];
        let Some(len) = answer(frame, longest, &mut room) else {
            return false;
        };
        let tunnel = self.0.tunnels.get(&vtep);
        if tunnel.is_some_and(|tunnel| tunnel.told.admit(now_ns)) {
            match write_plain(port, &room[..len]) {
                Ok(()) => counters.path_mtu_replies.add(1),
                Err(reason) => counters.egress_drops.add(reason, 1),
            }
        }
        true
    }
}
