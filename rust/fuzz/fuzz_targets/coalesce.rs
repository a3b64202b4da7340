//! `cargo fuzz run coalesce`: see `vxlan_fuzz::coalesce`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::coalesce(data));
