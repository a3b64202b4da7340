//! `cargo fuzz run headers`: see `vxlan_fuzz::headers`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::headers(data));
