#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stillhouse_datasets::fuzz::gif(bytes));
