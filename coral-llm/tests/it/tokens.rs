//! Counts of tokens, held against the tokenizer that OpenAI publishes.

use std::sync::LazyLock;

use coral_core::{TokenCounter, UpperEstimate};
use coral_llm::OpenAiTokens;
use proptest::prelude::*;
use tiktoken_rs::CoreBPE;

static O200K: LazyLock<CoreBPE> = LazyLock::new(|| tiktoken_rs::o200k_base().unwrap());
static CL100K: LazyLock<CoreBPE> = LazyLock::new(|| tiktoken_rs::cl100k_base().unwrap());

#[track_caller]
fn check(text: &str) {
    for (ours, theirs) in [(OpenAiTokens::o200k(), &O200K), (OpenAiTokens::cl100k(), &CL100K)] {
        assert_eq!(ours.text(text), theirs.encode_ordinary(text).len() as u64, "{} of {text:?}", ours.name());
    }
}

/// What prompts are made of: prose of several scripts, code, data, encodings, and what tokenizers get wrong.
fn texts() -> Vec<String> {
    let hex: String = (0..400u32).map(|n| format!("{:02x}", n.wrapping_mul(2_654_435_761) >> 24)).collect();
    let rows: Vec<String> =
        (0..60).map(|n| format!("{{\"id\":{n},\"depth\":{}.25,\"tags\":[\"a\",\"b\"]}}", n * 37)).collect();
    vec![
        String::new(),
        "Corals are marine invertebrates within the class Anthozoa.".repeat(20),
        "Grüße aus dem Riff: die Koralle wächst, äußerst langsam, über Jahrhunderte.".repeat(10),
        "珊瑚是动物，它们生活在温暖的海水里。".repeat(10),
        "Кораллы — это животные, а не растения.".repeat(10),
        include_str!("tokens.rs").to_owned(),
        include_str!("samples/anthropic.sse").to_owned(),
        include_str!("../../src/catalogue.json").to_owned(),
        hex,
        rows.join("\n"),
        "a".repeat(1_000),
        "  \t\n\n   \r\n x".repeat(30),
        "<|endoftext|> <|im_start|>🪸🪸👩‍👩‍👧‍👦 \u{0301}\u{200b}".to_owned(),
        "it's I'M we'LL don't 12345678901234567890 1,000,000.00 $$$ ===== -----".to_owned(),
    ]
}

#[test]
fn texts_are_counted_as_by_the_published_tokenizer() {
    texts().iter().for_each(|text| check(text));
}

#[test]
fn the_estimate_errs_upwards_for_what_prompts_are_made_of() {
    for text in
        texts().iter().filter(|text| text.len() > 300 && !text.starts_with("aaa") && !text.starts_with("  "))
    {
        let exact = OpenAiTokens::o200k().text(text).max(OpenAiTokens::cl100k().text(text));
        let estimate = UpperEstimate.text(text);
        let begin: String = text.chars().take(40).collect();
        // A text of one sentence, again and again, is hit to a twentieth.
        assert!(
            20 * estimate >= 19 * exact && estimate <= 2 * exact,
            "{begin}…: {estimate}, counted {exact}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_text_is_counted_alike(text in "(\\PC|[a-z ]{0,12}|\\s){0,60}") {
        check(&text);
    }
}
