//! What holds for the codec of every protocol, by sample streams and random bytes.

use coral_core::{ChatResponse, Delta, ModelFault, Part, StopReason, Usage};
use coral_llm::{Dialect, Failure, Framing, Protocol};
use proptest::prelude::*;
use serde_json::json;

struct Sample {
    protocol: Protocol,
    framing: Framing,
    text: &'static str,
    /// How many bytes at the end may be missing from a whole answer: the marks after the last needed event.
    spare: usize,
}

/// A stream of each protocol: thinking, text with letters beyond ASCII, two tool calls, counts.
const SAMPLES: [Sample; 5] = [
    Sample {
        protocol: Protocol::Anthropic,
        framing: Framing::Sse,
        text: include_str!("samples/anthropic.sse"),
        spare: 2,
    },
    Sample {
        protocol: Protocol::OpenAiChat,
        framing: Framing::Sse,
        text: include_str!("samples/openai_chat.sse"),
        spare: 2,
    },
    Sample {
        protocol: Protocol::OpenAiResponses,
        framing: Framing::Sse,
        text: include_str!("samples/openai_responses.sse"),
        spare: 2,
    },
    Sample {
        protocol: Protocol::Gemini,
        framing: Framing::Sse,
        text: include_str!("samples/gemini.sse"),
        spare: 2,
    },
    Sample {
        protocol: Protocol::Ollama,
        framing: Framing::Lines,
        text: include_str!("samples/ollama.ndjson"),
        spare: 1,
    },
];

impl Sample {
    fn decode<'a>(
        &self,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Result<ChatResponse, Failure>, Vec<Delta>) {
        let mut decoder = self.protocol.decoder(self.framing, &Dialect::default());
        let mut deltas = Vec::new();
        for piece in pieces {
            let fed =
                decoder.feed(bytes::Bytes::copy_from_slice(piece), &mut |delta| deltas.push(delta.clone()));
            if let Err(failure) = fed {
                return (Err(failure), deltas);
            }
        }
        let outcome = decoder.finish(&mut |delta| deltas.push(delta.clone()));
        (outcome, deltas)
    }

    fn whole(&self) -> (ChatResponse, Vec<Delta>) {
        let (outcome, deltas) = self.decode([self.text.as_bytes()]);
        (outcome.unwrap(), deltas)
    }
}

#[test]
fn every_sample_says_the_same() {
    for sample in &SAMPLES {
        let (response, deltas) = sample.whole();
        assert_eq!(response.stop, StopReason::ToolCalls, "{:?}", sample.protocol);
        assert_eq!(response.message.text(), "Grüße 🪸 I look it up.", "{:?}", sample.protocol);
        let calls: Vec<(&str, String)> = response
            .message
            .tool_calls()
            .map(|call| (call.name.as_str(), call.arguments.to_string()))
            .collect();
        assert_eq!(
            calls,
            [("find", r#"{"q":"ü"}"#.to_owned()), ("list", "{}".to_owned())],
            "{:?}",
            sample.protocol
        );
        let ids: Vec<&str> = response.message.tool_calls().map(|call| call.id.as_str()).collect();
        assert!(ids[0] != ids[1] && !ids[0].is_empty(), "{:?}", sample.protocol);
        let Usage { input_tokens, output_tokens, .. } = response.usage;
        assert_eq!((input_tokens, output_tokens), (110, 42), "{:?}", sample.protocol);
        assert_eq!(response.model, "some-model", "{:?}", sample.protocol);
        let thought =
            deltas.iter().any(|delta| matches!(delta, Delta::Thinking(text) if text.contains("Hm")));
        assert!(thought, "{:?}", sample.protocol);
    }
}

#[test]
fn no_beginning_of_a_stream_is_a_whole_answer() {
    for sample in &SAMPLES {
        let text = sample.text.as_bytes();
        for end in 0..text.len() - sample.spare {
            let (outcome, deltas) = sample.decode([&text[..end]]);
            // An answer of Gemini has no mark beyond its finish reason, and what follows is counts.
            let enough =
                sample.protocol == Protocol::Gemini && text[..end].windows(12).any(|w| w == b"finishReason");
            match outcome {
                Ok(response) => {
                    assert!(enough, "{:?} took {end} bytes for whole: {response:?}", sample.protocol);
                }
                // What did not begin may be asked for again.
                Err(failure) => {
                    let again = failure.fault == ModelFault::Provider && deltas.is_empty();
                    let cut = failure.fault == ModelFault::Truncated;
                    assert!(cut || again, "{:?} {end}: {failure:?}", sample.protocol);
                }
            }
        }
    }
}

/// The text of all deltas of a kind.
fn joined(deltas: &[Delta]) -> String {
    let mut text = String::new();
    for delta in deltas {
        match delta {
            Delta::Text(more) | Delta::Thinking(more) | Delta::ToolArguments { fragment: more, .. } => {
                text.push_str(more);
            }
            Delta::ToolCall { name, .. } => text.push_str(name),
            _ => {}
        }
    }
    text
}

/// A stream that goes wrong in the middle, or ends as not all do.
fn ending(sample: &Sample, refused: bool) -> String {
    let event = match (sample.protocol, refused) {
        (Protocol::Anthropic, false) => {
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Überlastet"}}"#
        }
        (Protocol::Anthropic, true) => r#"{"type":"message_delta","delta":{"stop_reason":"refusal"}}"#,
        (Protocol::OpenAiChat, true) => {
            r#"{"choices":[{"index":0,"delta":{"refusal":"Nein, wäre falsch."}}]}"#
        }
        (Protocol::OpenAiResponses, false) => {
            r#"{"type":"error","code":"server_is_overloaded","message":"Überlastet"}"#
        }
        (Protocol::OpenAiResponses, true) => {
            r#"{"type":"response.refusal.delta","delta":"Nein, wäre falsch."}"#
        }
        (Protocol::Gemini, true) => r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#,
        _ => r#"{"error":{"code":503,"type":"overloaded","message":"Überlastet"}}"#,
    };
    match sample.framing {
        Framing::Sse => format!("data: {event}\n\n"),
        _ => format!("{event}\n"),
    }
}

/// The stream of a sample as another server may send it.
fn variant(sample: &Sample, number: usize) -> String {
    let blank = if sample.framing == Framing::Sse { "\n\n" } else { "\n" };
    let events: Vec<&str> = sample.text.split_inclusive(blank).collect();
    let half: String = events.iter().take(events.len() / 2).copied().collect();
    match number {
        0 => sample.text.to_owned(),
        1 => sample.text.replace('\n', "\r\n"),
        2 if sample.framing == Framing::Sse => {
            let blocks = ["id: 7\n\n", ": höre\n\n", "event: ping\n\n", "retry: 10\n\ndata:\n\n"];
            events.iter().zip(blocks.iter().cycle()).map(|(event, block)| format!("{block}{event}")).collect()
        }
        2 => events.iter().map(|event| format!("\r\n{event}\n")).collect(),
        3 => half + &ending(sample, false),
        4 => format!("{}{}", ending(sample, true), sample.text),
        _ => half,
    }
}

proptest! {
    #[test]
    fn any_chunking_of_any_stream_gives_the_same_outcome(
        which in 0..SAMPLES.len(), number in 0..6usize, cuts in prop::collection::vec(0.0..1.0f64, 0..40),
    ) {
        let sample = &SAMPLES[which];
        let text = variant(sample, number);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| (cut * text.len() as f64) as usize).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let bytes = text.as_bytes();
        let (outcome, deltas) = sample.decode(cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]));
        let (whole, heard) = sample.decode([bytes]);
        prop_assert_eq!(joined(&deltas), joined(&heard));
        match number {
            // These are the sample itself, however they are sent.
            0..=2 => prop_assert_eq!(whole.as_ref().unwrap(), &sample.whole().0),
            3 | 5 => prop_assert_eq!(whole.as_ref().unwrap_err().fault, ModelFault::Truncated),
            _ => {}
        }
        prop_assert_eq!(outcome, whole);
    }

    /// What is left out of an event that is like the one before it is what it has in common with that.
    #[test]
    fn events_that_are_alike_say_what_each_says(
        texts in prop::collection::vec(("[a-zé\"\\\\\n]{0,3}", 0..6usize), 0..12), cut in 0.0..1.0f64,
    ) {
        let mut stream = String::new();
        for (text, form) in &texts {
            let said = match form {
                0 | 1 => json!({"content": text}),
                2 => json!({"role": "assistant", "content": text}),
                3 => json!({"content": text, "refusal": null}),
                4 => json!({"content": text, "refusal": text}),
                _ => json!({"reasoning_content": text}),
            };
            let chunk = json!({"id": "c", "model": "m", "choices": [{"index": 0, "delta": said}]});
            stream.push_str(&format!("data: {chunk}\n\n"));
        }
        stream.push_str("data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n");
        let mut decoder = Protocol::OpenAiChat.decoder(Framing::Sse, &Dialect::default());
        let mut heard = String::new();
        let mut listener = |delta: &Delta| match delta {
            Delta::Text(text) | Delta::Thinking(text) => heard.push_str(text),
            _ => {}
        };
        let (begin, rest) = stream.as_bytes().split_at((cut * stream.len() as f64) as usize);
        for piece in [begin, rest] {
            decoder.feed(bytes::Bytes::copy_from_slice(piece), &mut listener).unwrap();
        }
        let answer = decoder.finish(&mut listener).unwrap();
        let said = |(text, form): &(String, usize)| text.repeat(if *form == 4 { 2 } else { 1 });
        prop_assert_eq!(heard, texts.iter().map(said).collect::<String>());
        let thought = |(text, form): &(String, usize)| if *form == 5 { String::new() } else { said(&(text.clone(), *form)) };
        prop_assert_eq!(answer.message.text(), texts.iter().map(thought).collect::<String>());
    }

    #[test]
    fn no_bytes_panic(which in 0..SAMPLES.len(), framing in 0..3, place in 0.0..1.0f64, noise in prop::collection::vec(any::<u8>(), 0..60)) {
        let sample = &SAMPLES[which];
        let framing = [Framing::Sse, Framing::Lines, Framing::Whole][framing as usize];
        let text = sample.text.as_bytes();
        let place = (place * text.len() as f64) as usize;
        let mut decoder = sample.protocol.decoder(framing, &Dialect::default());
        let pieces = [&text[..place], &noise, &text[(place + noise.len()).min(text.len())..]];
        let fed = pieces.iter().try_for_each(|piece| decoder.feed(bytes::Bytes::copy_from_slice(piece), &mut |_| {}));
        if fed.is_ok() {
            let _ = decoder.finish(&mut |_| {});
        }
    }

    #[test]
    fn no_json_event_panics(which in 0..SAMPLES.len(), cut in prop::collection::vec(0.0..1.0f64, 2)) {
        // Fields go missing and change their type: what is left must be refused or read, never worse.
        let sample = &SAMPLES[which];
        let mut places: Vec<usize> = cut.iter().map(|cut| (cut * sample.text.len() as f64) as usize).collect();
        places.sort_unstable();
        let mutated: String = sample.text.char_indices().map(|(at, c)| {
            if (places[0]..places[1]).contains(&at) && c.is_ascii_digit() { '"' } else if at == places[1] && c == '"' { '7' } else { c }
        }).collect();
        let _ = sample.decode([mutated.as_bytes()]);
    }
}

#[test]
fn signatures_and_sealed_reasoning_come_back_as_they_were() {
    for sample in &SAMPLES {
        let (response, _) = sample.whole();
        let kept = response
            .message
            .parts
            .iter()
            .any(|part| matches!(part, Part::Opaque { .. } | Part::Thinking { signature: Some(_), .. }));
        let has_them =
            matches!(sample.protocol, Protocol::Anthropic | Protocol::OpenAiResponses | Protocol::Gemini);
        assert_eq!(kept, has_them, "{:?}", sample.protocol);
        if !has_them {
            continue;
        }
        let request = coral_core::ChatRequest { messages: vec![response.message], ..Default::default() };
        let body = sample.protocol.encode(&request, "m", false, &Dialect::default()).unwrap().body;
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(body.contains("sealed-by-the-provider"), "{:?}: {body}", sample.protocol);
    }
}
