//! What is left out of a prompt that does not fit its model, and that it is no more than must be.

use coral_core::{
    AgentSpec, Brief, DynamicSection, ErrorKind, Fit, Fitted, HandoffMessage, MessageContext, MessageType,
    ModelFault, PromptAgent, PromptInput, PromptService, Task, TaskInput, TokenCounter, UpperEstimate,
};
use proptest::prelude::*;
use serde_json::json;

/// A section, a log that was handed over, or the brief.
#[derive(Clone, Debug)]
struct Piece {
    lines: usize,
    fit: Fit,
}

fn text(name: usize, lines: usize) -> String {
    (0..lines).map(|line| format!("line {line} of part {name}\n")).collect()
}

fn agent(sections: &[Piece]) -> PromptAgent {
    let mut spec = AgentSpec::new("keeper", "Keeper");
    spec.role_description = "You keep what fits.".into();
    // The logs are said twice, and escaped: what a value takes is not what it is.
    spec.prompt.task_template = "Do: {{ brief.text }}".into();
    spec.prompt.context_integration =
        "{% for input in inputs %}{{ input.preserved }}{% endfor %}{{ inputs|length }}".into();
    let builder = sections.iter().enumerate().fold(PromptService::builder(), |builder, (n, piece)| {
        builder.section(DynamicSection::new(format!("part_{n}"), text(n, piece.lines)).fit(piece.fit))
    });
    PromptAgent::with_prompts(spec, &builder.build().unwrap()).unwrap()
}

fn input(brief: usize, logs: &[usize], context_tokens: Option<u64>) -> PromptInput {
    let handed = |lines: &usize| TaskInput {
        message: HandoffMessage {
            message_id: "1".into(),
            timestamp: "2026-01-01T00:00:00Z".into(),
            from_agent: "writer".into(),
            to_agent: "keeper".into(),
            message_type: MessageType::Handoff,
            context: MessageContext::default(),
            next_tasks: Vec::new(),
        },
        preserved: [("data".to_owned(), json!({ "log": text(99, *lines) }))].into(),
    };
    PromptInput {
        task: Task {
            brief: Brief { text: text(98, brief).into(), ..Brief::default() },
            inputs: logs.iter().map(handed).collect(),
            ..Task::default()
        },
        context_tokens,
        ..PromptInput::default()
    }
}

fn fit() -> impl Strategy<Value = Fit> {
    prop_oneof![
        1 => Just(Fit::Pinned),
        2 => (0u8..90).prop_map(|priority| Fit::Drop { priority }),
        2 => (0u8..90, 0u64..300).prop_map(|(priority, min_tokens)| Fit::Shorten { priority, min_tokens }),
    ]
}

fn shown(fitted: &Fitted, name: &str) -> Option<u64> {
    fitted.left_out.iter().find(|left| left.part == name).map(|left| left.tokens_after)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_kept_fits_and_what_is_left_out_would_not_have(
        sections in prop::collection::vec((1usize..400, fit()).prop_map(|(lines, fit)| Piece { lines, fit }), 0..6),
        logs in prop::collection::vec(1usize..400, 0..4),
        brief in 1usize..600,
        context in 1_000u64..40_000,
    ) {
        let agent = agent(&sections);
        let all = agent.prompt(&input(brief, &logs, None)).unwrap();
        let prompt = match agent.prompt(&input(brief, &logs, Some(context))) {
            Ok(prompt) => prompt,
            Err(error) => {
                let too_long =
                    matches!(error.kind(), ErrorKind::Model { fault: ModelFault::ContextTooLong, .. });
                prop_assert!(too_long, "{error}");
                return Ok(());
            }
        };
        let taken: u64 = prompt.messages.iter().map(|message| UpperEstimate.message(message)).sum();
        prop_assert!(taken <= prompt.limit.unwrap());
        let Some(fitted) = &prompt.fitted else {
            prop_assert_eq!(prompt.messages, all.messages);
            return Ok(());
        };
        prop_assert!(fitted.tokens_before > fitted.limit && fitted.tokens_after <= fitted.limit);
        prop_assert!(taken <= fitted.limit, "{} {:?}", taken, fitted);
        let room = fitted.limit - fitted.tokens_after;
        let said = prompt.messages[1].text();
        for (n, piece) in sections.iter().enumerate() {
            let name = format!("part_{n}");
            let whole = text(n, piece.lines);
            match (piece.fit, shown(fitted, &name)) {
                (_, None) => prop_assert!(said.contains(whole.trim()), "{name} is not whole"),
                (Fit::Drop { .. }, Some(after)) => {
                    prop_assert_eq!(after, 0);
                    prop_assert!(UpperEstimate.text(whole.trim()) > room, "{name} would have fitted: {fitted:?}");
                }
                (fit, after) => prop_assert!(matches!(fit, Fit::Shorten { .. }), "{name}: {after:?}"),
            }
        }
        // Where something was shortened, the room is used up but for what is not worth a further guess.
        let shortened = fitted.left_out.iter().any(|left| left.tokens_after > 0);
        prop_assert!(!shortened || room <= fitted.limit / 50 + 64, "{room} left: {fitted:?}");
    }
}

#[test]
fn what_goes_first_has_the_lowest_priority_and_what_was_cut_in_vain_comes_back() {
    let drop = |lines, priority| Piece { lines, fit: Fit::Drop { priority } };
    let agent = agent(&[drop(60, 1), drop(300, 2), drop(1_000, 3)]);
    let prompt = |context| agent.prompt(&input(1, &[], Some(context))).unwrap();
    // The context whose prompts may have so many tokens: a small context is shared out otherwise.
    let besides = 100_000 - prompt(100_000).limit.unwrap();
    let context = |limit: u64| (limit * 100).div_ceil(75) + besides;
    let all = prompt(besides + 6_000).fitted.unwrap().tokens_before;
    let large = UpperEstimate.text(text(1, 300).trim());
    let left_out = |limit| -> Vec<String> {
        let fitted = prompt(context(limit)).fitted;
        fitted.into_iter().flat_map(|fitted| fitted.left_out).map(|left| left.part).collect()
    };
    assert_eq!(left_out(all), [""; 0]);
    assert_eq!(left_out(all - 10), ["part_0"]);
    // Without the large one there is room again for the small one that went before it.
    assert_eq!(left_out(all - large + 90), ["part_1"]);
    assert_eq!(left_out(all - large - 100), ["part_0", "part_1"]);
}

#[test]
fn a_context_that_is_far_too_long_is_used_up() {
    let agent = agent(&[]);
    let fitted = agent.prompt(&input(1, &[8_000; 12], Some(60_000))).unwrap().fitted.unwrap();
    assert!(fitted.tokens_before > 10 * fitted.limit, "{fitted:?}");
    assert!(fitted.tokens_after * 100 >= fitted.limit * 98, "{fitted:?}");
    assert_eq!(fitted.left_out.len(), 1);
}
