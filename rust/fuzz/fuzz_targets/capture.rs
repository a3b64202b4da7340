//! `cargo fuzz run capture`: see `vxlan_fuzz::capture_message`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::capture_message(data));
