//! `cargo fuzz run unfinished`: see `vxlan_fuzz::unfinished_frame`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vxlan_fuzz::unfinished_frame(data));
