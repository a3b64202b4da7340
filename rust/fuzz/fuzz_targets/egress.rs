//! `cargo fuzz run egress`: see `vxlan_fuzz::egress`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::egress(data));
