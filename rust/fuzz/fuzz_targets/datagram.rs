//! `cargo fuzz run datagram`: see `vxlan_fuzz::datagram`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::datagram(data));
