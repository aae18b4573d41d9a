//! Makes the calls of coral-llm's bench by other client libraries.
//!
//! Reads one JSON order per line from standard input, carries it out, and answers with one line: the CPU time of one
//! call in µs. The bench sends its orders in turn with its own rounds.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{BufRead, Write};
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use genai::adapter::AdapterKind;
use genai::chat::{ChatMessage, ChatRequest, ChatStreamEvent};
use genai::resolver::{AuthData, Endpoint};
use genai::{Client, ModelIden, ServiceTarget};
use rig_core::completion::CompletionRequest;
use rig_core::providers::openai::{OpenAIConfig, Route};
use rig_core::streaming::{Item, StreamEvent};
use serde::Deserialize;
use tokio::task::JoinSet;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What is to be done.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    peer: Peer,
    /// Where the server's `/v1` is.
    url: String,
    system: String,
    user: String,
    /// How long the text of the answer must be.
    answer: usize,
    stream: bool,
    calls: usize,
    at_once: usize,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Peer {
    Rig,
    Genai,
}

fn main() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let cost = runtime.block_on(carry_out(Arc::new(order)))?;
        println!("{cost}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

async fn carry_out(order: Arc<Order>) -> Outcome<f64> {
    let call = Call::new(&order)?;
    // What is built on a first call is not what a call costs.
    call.clone().make(order.clone()).await?;
    let began = cpu_ns()?;
    let mut running = JoinSet::new();
    for _ in 0..order.calls {
        if running.len() >= order.at_once
            && let Some(done) = running.join_next().await
        {
            done??;
        }
        running.spawn(call.clone().make(order.clone()));
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok((cpu_ns()? - began) as f64 / order.calls as f64 / 1_000.0)
}

/// Nanoseconds for which this thread ran.
fn cpu_ns() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split_whitespace().next().ok_or("no time")?.parse()?)
}

#[derive(Clone)]
enum Call {
    Rig(rig_core::providers::openai::OpenAI),
    Genai(Client, ServiceTarget),
}

impl Call {
    fn new(order: &Order) -> Outcome<Call> {
        Ok(match order.peer {
            Peer::Rig => {
                let config = OpenAIConfig::new("k").with_base_url(order.url.clone()).with_route(Route::Chat);
                Call::Rig(config.client())
            }
            Peer::Genai => {
                let target = ServiceTarget {
                    endpoint: Endpoint::from_owned(format!("{}/", order.url)),
                    auth: AuthData::from_single("k"),
                    model: ModelIden::new(AdapterKind::OpenAI, "m"),
                };
                Call::Genai(Client::new()?, target)
            }
        })
    }

    async fn make(self, order: Arc<Order>) -> Outcome {
        let length = match self {
            Call::Rig(rig) => {
                let model = rig.completion("m");
                let request = CompletionRequest::new(order.user.as_str()).preamble(order.system.as_str());
                if order.stream {
                    heard(model.stream(request)?, |item| match item {
                        Item::Event(StreamEvent::Text { text, .. }) => text.len(),
                        _ => 0,
                    })
                    .await?
                } else {
                    model.call(request).await?.text().len()
                }
            }
            Call::Genai(client, target) => {
                let messages =
                    vec![ChatMessage::system(order.system.as_str()), ChatMessage::user(order.user.as_str())];
                let request = ChatRequest::new(messages);
                if order.stream {
                    heard(client.exec_chat_stream(target, request, None).await?.stream, |event| match event {
                        ChatStreamEvent::Chunk(chunk) => chunk.content.len(),
                        _ => 0,
                    })
                    .await?
                } else {
                    client.exec_chat(target, request, None).await?.first_text().map_or(0, str::len)
                }
            }
        };
        if length == order.answer { Ok(()) } else { Err(format!("{length} bytes of text came").into()) }
    }
}

/// How much text came over a stream.
async fn heard<T, E>(
    stream: impl Stream<Item = Result<T, E>>,
    length: impl Fn(&T) -> usize,
) -> Result<usize, E> {
    let mut stream = std::pin::pin!(stream);
    let mut sum = 0;
    while let Some(item) = stream.next().await {
        sum += length(&item?);
    }
    Ok(sum)
}
