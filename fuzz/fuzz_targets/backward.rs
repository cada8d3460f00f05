#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| chunkwise_fuzz::checks::backward(bytes));
