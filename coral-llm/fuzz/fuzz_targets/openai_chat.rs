#![no_main]

#[path = "../outcome.rs"]
mod outcome;

libfuzzer_sys::fuzz_target!(|data: &[u8]| outcome::check(coral_llm::Protocol::OpenAiChat, data));
