//! `cargo fuzz run segment`: see `vxlan_fuzz::segment`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::segment(data));
