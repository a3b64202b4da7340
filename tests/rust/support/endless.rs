//! A lane whose ports and underlay never run out and take everything: for counting and measuring.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use vxlan_dataplane::engine::{Lane, Network, NetworkConfig, Round};
use vxlan_dataplane::io::{FrameBatch, Memory, Message, Piece, Port, Received, Underlay};
use vxlan_dataplane::table::Tables;
use vxlan_dataplane::wire::Vni;

use super::MAC_B;

/// The VTEP that MAC_B is behind, and that all comes from.
pub const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2));

/// A port that gives the same frames again and again.
#[derive(Clone)]
pub struct Source(Arc<[Vec<u8>]>);

impl Port for Source {
    fn read_batch(&self, batch: &mut FrameBatch) -> io::Result<()> {
        for frame in self.0.iter().cycle() {
            let Some(slot) = batch.free_slot() else {
                break;
            };
            slot[..frame.len()].copy_from_slice(frame);
            batch.push(frame.len());
        }
        Ok(())
    }

    fn write_frame(&self, _pieces: &[IoSlice<'_>]) -> io::Result<()> {
        Ok(())
    }
}

/// An underlay that receives the same runs again and again.
pub struct Wire(Vec<(Vec<u8>, usize)>);

impl Underlay for Wire {
    fn send_sockets(&self) -> usize {
        32
    }

    fn send_batch(
        &mut self,
        _socket: usize,
        _memory: Memory<'_>,
        _pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize> {
        Ok(messages.len())
    }

    fn send_whole(&mut self, _destination: SocketAddr, _payload: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn recv_batch(&mut self) -> io::Result<usize> {
        Ok(self.0.len())
    }

    fn received(&self, index: usize) -> Option<Received<'_>> {
        let (payload, segment) = self.0.get(index)?;
        Some(Received {
            source: PEER,
            payload,
            segment: *segment,
            truncated: false,
        })
    }
}

/// A lane of one network.
pub struct Endless {
    pub lane: Lane<Source, Wire>,
    pub network: Arc<Network>,
    token: usize,
}

impl Endless {
    /// The container sends `frames`, each behind its virtio-net header; from the underlay come
    /// `runs` of datagrams, each with the size of one.
    pub fn new(vni: Vni, frames: Vec<Vec<u8>>, runs: Vec<(Vec<u8>, usize)>) -> Self {
        let config = NetworkConfig {
            vni,
            mtu_bytes: 1450,
            multicast: true,
            flood_rate: 10_000,
        };
        let network = Arc::new(Network::new(config, 1).unwrap());
        let tables = Tables::new(vni, true).with_changes(&[(MAC_B, PEER)], &[]);
        network.publish(tables.unwrap());
        let port = Source(frames.into());
        let mut lane = Lane::new(0, Wire(runs), 4789);
        let token = lane.attach(&network, vec![port.clone()], port)[0];
        Self {
            lane,
            network,
            token,
        }
    }

    /// Moves one batch from the container.
    pub fn egress(&mut self) {
        assert_eq!(self.lane.egress_round(self.token, 1), Round::Moved);
    }

    /// Moves one batch from the underlay.
    pub fn ingress(&mut self) {
        assert_eq!(self.lane.ingress_round(|_| ()), Round::Moved);
    }
}
