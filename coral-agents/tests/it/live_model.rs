//! An evaluation on a real llama-server: real HTTP, real tokens, and a tiny model that no prompt can teach anything.

use std::process::Command;

use coral_agents::{Candidate, CaseResult, EvaluationOptions, Registry, parse_agent, parse_cases};
use coral_core::{ModelInfo, Price, Runner};
use coral_llm::{Protocol, Provider};

use crate::peer::{INSTALLED, Peer, here};

const PRICE: Price = Price { input: 2.0, output: 8.0, cache_read: 0.5, cache_write: 2.5 };

/// The model behind the server's one slot, by one of its protocols.
fn model(peer: &Peer, protocol: Protocol) -> Provider {
    let base = if protocol == Protocol::Anthropic { peer.url.clone() } else { format!("{}/v1", peer.url) };
    let builder =
        Provider::vendor("llamacpp").unwrap().protocol(protocol).base_url(base).body_field("temperature", 0);
    let mut info = ModelInfo::default();
    info.price = Some(PRICE);
    builder.info(info).build().unwrap()
}

const AGENT: &str = "---
id: greeter
name: Greeter
limits: {max_repairs: 1}
---
## Task
Greet {{ brief.project }}.
";

const CASES: &str = "
name: greetings
cases:
  - name: plain
    brief: Ada
    expect:
      - holds: output.summary is string
      - contains: words that no table of letters would write
        weight: 3
      - rubric: It is a greeting.
  - name: again
    brief: Grace
    expect: [holds: output.decisions is sequence]
";

/// By the OpenAI protocol a grammar holds the answer to the report's form; by Anthropic's nothing does, and the model
/// says what it always says, which is no report.
#[tokio::test]
async fn an_agent_is_evaluated_on_a_real_model_server() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bigram.gguf");
    assert!(Command::new("python3").arg(here().join("bigram.py")).arg(&file).status().unwrap().success());
    let python = INSTALLED.join("xllamacpp/bin/python");
    let peer = Peer::start(Command::new(python).arg(here().join("serve.py")).arg(&file));

    let mut registry = Registry::new();
    registry.insert(parse_agent("greeter.md", AGENT).unwrap()).unwrap();
    let candidates =
        [("held", Protocol::OpenAiChat), ("free", Protocol::Anthropic)].map(|(name, protocol)| {
            let runner = Runner::builder().model(model(&peer, protocol)).build();
            Candidate::agent(name, &runner, &registry, "greeter", "").unwrap()
        });
    let options = EvaluationOptions::new().judge(model(&peer, Protocol::OpenAiChat)).parallel(2);
    let report = parse_cases("greetings.yaml", CASES).unwrap().run(&candidates, &options).await;

    let [held, free] = report.candidates.as_slice() else { panic!("{report}") };
    for result in held.results.iter().chain(&free.results) {
        let CaseResult { case, usage, cost, .. } = result;
        assert!(usage.input_tokens > 20 && usage.output_tokens > 0, "{case}: {usage:?}");
        assert_eq!(*cost, Some(PRICE.cost(usage)), "{case}: {usage:?}");
    }

    for result in &held.results {
        assert_eq!(result.error, None, "{}", result.case);
    }
    let [is_text, has_words, greets] = held.results[0].checks.as_slice() else { panic!("{report}") };
    assert_eq!((is_text.score, is_text.passed), (1.0, true), "{report}");
    assert_eq!((has_words.score, has_words.passed), (0.0, false), "{report}");
    // The judge is the same model: it gives a grade, or it is said why it gave none.
    assert!(greets.graded || greets.why.starts_with("the judge failed: "), "{report}");
    assert!((0.0..=1.0).contains(&greets.score) && !greets.why.is_empty() | greets.graded, "{report}");
    assert_eq!(held.case_score("again"), Some(1.0), "{report}");
    assert!(held.score().is_some_and(|score| score > 0.5 && score < 1.0), "{report}");

    for result in &free.results {
        let error = result.error.as_deref().unwrap();
        assert!(error.contains("JSON"), "{error}");
        assert!(result.checks.iter().all(|check| check.score == 0.0 && !check.passed), "{report}");
    }
    assert_eq!((free.score(), free.passed()), (Some(0.0), (0, 2)));
    // The first answer and one repair.
    assert_eq!(free.results[1].usage.output_tokens, 2 * 4, "{report}");

    let comparison = report.compare(0, 1).unwrap();
    assert_eq!((comparison.better, comparison.worse), (0, 2), "{report}");
    let text = report.to_string();
    for line in ["| held | ", "| free | 0.00 | 0 of 2 | ", "- plain: the run failed: "] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(report.json()["candidates"][1]["score"], 0.0);
    assert!(report.html().contains("free"));
}
