//! Data plane of a VXLAN overlay (RFC 7348).
//!
//! The pure part ([`wire`], [`table`], [`egress`], [`ingress`], [`offload`], [`capture`],
//! [`probe`]) takes bytes and values and returns values: no descriptor, clock, thread or
//! randomness, no panic on any input. [`io`] and [`engine`] move what it decides between ports and
//! the underlay.

#![deny(unsafe_code)]

pub mod capture;
pub mod drop;
pub mod egress;
pub mod engine;
pub mod ingress;
pub mod io;
pub mod narrow;
pub mod offload;
pub mod probe;
mod sys;
pub mod table;
pub mod wire;

pub use drop::DropReason;
