//! Asks a server which models it has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bytes::Bytes;
use coral_core::{Error, Price, Tier};
use http::Method;
use serde_json::{Value, json};

use super::{MAX_LIST, Provider, ProviderBuilder};
use crate::catalogue::{Catalogue, CatalogueEntry};
use crate::failure::Failure;
use crate::transport::read_whole;
use crate::wire::Protocol;

/// Tokens of context where a server does not say how many there are: what Ollama gives a model unasked.
const USUAL_CONTEXT: u64 = 4_096;

/// Models of a server about which it is asked one by one.
const MAX_MODELS: usize = 200;

impl ProviderBuilder {
    /// Asks the server which models it has, such as one on this machine: Ollama, llama.cpp, vLLM, LM Studio. No model
    /// need be chosen for that.
    ///
    /// What a server does not say is taken for the least: a model is of the lowest tier, can nothing special and has
    /// room for 4,096 tokens. What answers on this machine costs nothing; of others the price is not known. Change in
    /// the list what you know better, and [extend](Catalogue::extended) a catalogue by it.
    ///
    /// ```no_run
    /// use coral_llm::{Catalogue, Provider};
    ///
    /// # async fn f() -> Result<(), coral_core::Error> {
    /// let local = Provider::vendor("ollama")?.discover().await?;
    /// let all = Catalogue::builtin().clone().extended(local);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`build`](ProviderBuilder::build), and [`ErrorKind::Model`](coral_core::ErrorKind::Model) if the server can't
    /// be asked.
    pub async fn discover(self) -> Result<Catalogue, Error> {
        let server = self.model("-").build()?;
        server.within_time(server.models()).await
    }
}

impl Provider {
    async fn models(&self) -> Result<Catalogue, Failure> {
        let list = self.value(Method::GET, models_path(self.protocol), Bytes::new()).await?;
        let listed = ["data", "models"].iter().find_map(|name| list.get(name)?.as_array());
        let listed = listed.ok_or_else(|| Failure::malformed("expected a list of models"))?;
        let mut models: Vec<CatalogueEntry> = Vec::new();
        for facts in listed.iter().take(MAX_MODELS) {
            let id = ["id", "model", "name"].iter().find_map(|name| facts.get(name)?.as_str());
            // Gemini writes what kind of thing the name is of before it.
            let Some(id) = id.map(|id| id.strip_prefix("models/").unwrap_or(id)) else { continue };
            if models.iter().any(|known| known.id == id) {
                continue;
            }
            let mut entry = CatalogueEntry {
                provider: self.vendor.clone(),
                id: id.to_owned(),
                tier: Tier::Basic,
                speed: 2,
                context_tokens: context_of(facts).unwrap_or(USUAL_CONTEXT),
                max_output_tokens: None,
                price: is_here(&self.base_url).then_some(FREE),
                long_input: None,
                long_cache: None,
                cache_marks: false,
                capabilities: BTreeSet::new(),
                refuses: BTreeSet::new(),
                efforts: Vec::new(),
                source: None,
            };
            if self.protocol == Protocol::Ollama {
                let asked = json!({"model": id}).to_string().into();
                // A server that can't tell more has told enough.
                let more = self.value(Method::POST, "/api/show", asked).await.unwrap_or_default();
                entry.capabilities = capabilities_of(&more);
            }
            models.push(entry);
        }
        Ok(Catalogue { format: crate::catalogue::FORMAT, date: String::new(), models })
    }

    async fn value(&self, method: Method, path: &str, body: Bytes) -> Result<Value, Failure> {
        let mut body = self.question(method, path, body).await?;
        let answer = read_whole(&mut body, MAX_LIST).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| Failure::malformed(format!("expected a list of models: {error}")))
    }
}

/// Where the protocol lists models.
pub(super) fn models_path(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Anthropic => "/v1/models",
        Protocol::Ollama => "/api/tags",
        Protocol::OpenAiChat | Protocol::OpenAiResponses | Protocol::Gemini => "/models",
    }
}

const FREE: Price = Price { input: 0.0, output: 0.0, cache_read: 0.0, cache_write: 0.0 };

/// The context that a server gives a model, in the words of vLLM, llama.cpp, LM Studio, OpenRouter, Groq, Anthropic and
/// Gemini.
fn context_of(facts: &Value) -> Option<u64> {
    const WORDS: [&str; 8] = [
        "/max_model_len",
        "/meta/n_ctx",
        "/meta/n_ctx_train",
        "/max_context_length",
        "/context_length",
        "/context_window",
        "/max_input_tokens",
        "/inputTokenLimit",
    ];
    WORDS.iter().find_map(|word| facts.pointer(word)?.as_u64()).filter(|tokens| *tokens > 0)
}

/// What Ollama says that a model can, in the words of the catalogue.
fn capabilities_of(shown: &Value) -> BTreeSet<String> {
    let said = shown.get("capabilities").and_then(Value::as_array).into_iter().flatten();
    let words = said.filter_map(|word| match word.as_str()? {
        "thinking" => Some("reasoning"),
        word @ ("tools" | "vision") => Some(word),
        _ => None,
    });
    // The server holds every model to a schema.
    words.chain(["structured"]).map(str::to_owned).collect()
}

/// Whether a URL is one of this machine.
fn is_here(url: &str) -> bool {
    let uri: Option<http::Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}
