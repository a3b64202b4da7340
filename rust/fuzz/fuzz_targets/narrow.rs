//! `cargo fuzz run narrow`: see `vxlan_fuzz::narrow`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::narrow(data));
