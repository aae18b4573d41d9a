//! Agent definitions, briefs and the agent files of other tools, made of anything.
//!
//! `cargo +nightly fuzz run definitions` in `coral-agents/fuzz`.
#![no_main]

use coral_agents::{Imported, import_instructions, import_skill, import_subagent, parse_agent, parse_brief};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse_agent("fuzz.md", text) {
        Ok(spec) => assert!(spec.validate().is_ok()),
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("fuzz.md:"), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
    if let Ok(Imported::Agent { spec, .. }) = import_subagent("dir/fuzz.md", text) {
        assert!(spec.validate().is_ok());
    }
    let _ = import_skill("dir/SKILL.md", text, &[]);
    let _ = import_instructions("AGENTS.md", text);
    let _ = parse_brief("fuzz.md", text);
});
