//! `cargo fuzz run checksum`: see `vxlan_fuzz::checksum`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::checksum(data));
