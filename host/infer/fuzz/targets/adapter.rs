//! LoRA adapters: a sound config and tensors with damage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millgate_infer::fuzzing::adapter(data));
