//! The compiler of JSON Schemas, and the first tokens of an answer.
#![no_main]

libfuzzer_sys::fuzz_target!(
    // The grammar library's own panics are caught and become errors; the fuzzer's hook would abort at them.
    // One that is not caught still ends the run.
    init: std::panic::set_hook(Box::new(|_| ())),
    |data: &[u8]| millgate_infer::fuzzing::schema(data)
);
