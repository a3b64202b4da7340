//! Why a frame or datagram was not carried on.
//!
//! Malformed input is not an error but a counted drop (house rule). The discriminant is the index
//! of the counter, so that counting is one addition in an array.

use crate::wire::WireError;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Reason of a drop; `reason as usize` indexes a counter array of length [`DropReason::COUNT`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(usize)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of the discriminants.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// Number of reasons.
            pub const COUNT: usize = Self::ALL.len();

            /// Name in metrics and in Python: snake case, stable between releases.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(DropReason::$variant => $name,)+
                }
            }
        }
    };
}

reasons! {
    /// Datagram shorter than the VXLAN header, or cut by the receive buffer.
    Truncated = "truncated",
    /// VXLAN header without the I flag (RFC 7348, section 5).
    VxlanFlags = "vxlan_flags",
    /// No port is attached for the VNI of the datagram.
    VniUnknown = "vni_unknown",
    /// The datagram's source address is no VTEP of that VNI.
    SourceNotVtep = "source_not_vtep",
    /// The inner source MAC is in no FDB entry.
    SourceMacUnknown = "source_mac_unknown",
    /// The inner source MAC belongs to another VTEP than the sender.
    SourceMacElsewhere = "source_mac_elsewhere",
    /// Frame without a whole Ethernet header, with a multicast or zero source MAC, or with a broken
    /// ARP or neighbour discovery message.
    FrameMalformed = "frame_malformed",
    /// Frame longer than the network's MTU allows.
    FrameTooBig = "frame_too_big",
    /// The virtio-net header asks for something that its frame does not allow.
    OffloadMalformed = "offload_malformed",
    /// Unicast to a MAC that is in no FDB entry.
    DestinationUnknown = "destination_unknown",
    /// ARP request or neighbour solicitation for an unknown address, or an announcement of a known
    /// one; never flooded.
    NeighbourUnknown = "neighbour_unknown",
    /// Broadcast or multicast on a network that forbids it.
    MulticastOff = "multicast_off",
    /// Broadcast or multicast above the network's rate.
    FloodRate = "flood_rate",
    /// Broadcast or multicast while no other VTEP is in the flood list.
    FloodEmpty = "flood_empty",
    /// The port took no more frames.
    PortFull = "port_full",
    /// The port is down or gone.
    PortDown = "port_down",
    /// The kernel dropped a datagram, or several that it had joined, before a worker received it:
    /// the socket's buffer was full, or the outer checksum wrong.
    ReceiveFull = "receive_full",
    /// The underlay socket took no more datagrams.
    UnderlayFull = "underlay_full",
    /// The datagram is longer than the underlay's MTU; VTEPs must not fragment (RFC 7348, 4.3).
    UnderlayMtu = "underlay_mtu",
    /// The underlay refused the datagram for another reason.
    UnderlayError = "underlay_error",
    /// The frame is longer than gets through to its VTEP; its sender was told.
    PathMtu = "path_mtu",
    /// A probe from no VTEP that shares a network with this host, or an answer to no request.
    ProbeStranger = "probe_stranger",
    /// More probes of a VTEP than are answered.
    ProbeRate = "probe_rate",
}

impl From<WireError> for DropReason {
    /// For errors of [`crate::wire::vxlan::parse`]: short is [`DropReason::Truncated`], a missing I
    /// flag [`DropReason::VxlanFlags`]; anything else is [`DropReason::FrameMalformed`].
    fn from(error: WireError) -> Self {
        match error {
            WireError::Short { .. } => DropReason::Truncated,
            WireError::VxlanFlags { .. } => DropReason::VxlanFlags,
            _ => DropReason::FrameMalformed,
        }
    }
}
