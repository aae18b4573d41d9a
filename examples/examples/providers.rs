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

use coral_core::{CallContext, Caller, ChatModel, ChatRequest, Error};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let prompt: Vec<String> = std::env::args().skip(1).collect();
    let prompt =
        if prompt.is_empty() { "Name three corals, one line each.".to_owned() } else { prompt.join(" ") };
    match ask(&prompt).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn ask(prompt: &str) -> Result<(), Error> {
    let model = coral_llm::from_env()?;
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
    Ok(())
}
