//! One prompt, streamed, on whichever model provider is configured.
//!
//! ```text
//! cargo run --example providers -- "Name three corals."
//! ANTHROPIC_API_KEY=… cargo run --example providers
//! OLLAMA_HOST=127.0.0.1 CORAL_MODEL=qwen3 cargo run --example providers
//! OPENAI_BASE_URL=http://127.0.0.1:8080/v1 CORAL_MODEL=any cargo run --example providers
//! ```
//! Without a variable the offline model answers. All variables: see `coral_llm::from_env`.

use std::io::Write as _;
use std::process::ExitCode;

use coral_core::{CallContext, Caller, ChatModel, ChatRequest, ChatResponse, Error};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let prompt: Vec<String> = std::env::args().skip(1).collect();
    let prompt =
        if prompt.is_empty() { "Name three corals, one line each.".to_owned() } else { prompt.join(" ") };
    let answer = match coral_llm::from_env() {
        Ok(model) => ask(&model, &prompt).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn ask(model: &impl ChatModel, prompt: &str) -> Result<ChatResponse, Error> {
    eprintln!("model: {}", model.name());
    let cx = CallContext::new(Caller::agent("example")).on_delta(|delta| {
        print!("{delta}");
        // A terminal that is gone is no reason to stop an answer that is paid for.
        let _ = std::io::stdout().flush();
    });
    let answer = model.chat(&ChatRequest::new("Answer briefly.", prompt), &cx).await?;
    let usage = answer.usage;
    let cost = answer.cost.map_or("unknown".to_owned(), |cost| cost.to_string());
    println!();
    eprintln!(
        "{} answered: {} tokens in ({} cached), {} out, cost {cost}, stopped by {:?}",
        answer.model, usage.input_tokens, usage.cache_read_tokens, usage.output_tokens, answer.stop
    );
    Ok(answer)
}

#[cfg(test)]
#[allow(dead_code, reason = "not every test that shares this file needs all of it")]
#[path = "../../coral-llm/tests/peers/peer.rs"]
mod peer;

#[cfg(test)]
mod tests {
    use super::*;

    /// The variables that choose each provider, with `URL` for where it is.
    const CHOICES: [&[(&str, &str)]; 6] = [
        &[("ANTHROPIC_API_KEY", "k"), ("ANTHROPIC_BASE_URL", "URL")],
        &[("OPENAI_API_KEY", "k"), ("OPENAI_BASE_URL", "URL/v1")],
        &[
            ("OPENAI_API_KEY", "k"),
            ("OPENAI_BASE_URL", "URL/v1"),
            ("CORAL_MODEL", "openai_responses/some-model"),
        ],
        &[("GEMINI_API_KEY", "k"), ("GEMINI_BASE_URL", "URL/v1beta")],
        &[("OLLAMA_HOST", "URL"), ("CORAL_MODEL", "ollama/some-model")],
        &[("VLLM_BASE_URL", "URL/v1"), ("CORAL_MODEL", "vllm/some-model")],
    ];

    #[tokio::test]
    async fn every_provider_answers() {
        let aimock = peer::aimock();
        for variables in CHOICES {
            let model = coral_llm::from_vars(|name| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(value.replace("URL", &aimock.url))
            });
            let answer = ask(&model.unwrap(), "Name three corals.").await.unwrap();
            assert_eq!(answer.message.text(), "Hello from a server that speaks as many.", "{variables:?}");
        }
    }
}
