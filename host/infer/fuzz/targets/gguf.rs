//! GGUF files: raw bytes, and a sound model with damage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millgate_infer::fuzzing::gguf(data));
