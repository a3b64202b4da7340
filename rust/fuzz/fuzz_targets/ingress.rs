//! `cargo fuzz run ingress`: see `vxlan_fuzz::ingress`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::ingress(data));
