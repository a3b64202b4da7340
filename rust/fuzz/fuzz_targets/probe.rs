//! `cargo fuzz run probe`: see `vxlan_fuzz::probe`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::probe(data));
