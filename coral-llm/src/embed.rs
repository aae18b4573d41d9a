//! Texts as vectors: the port, and the two wires that nearly all servers speak.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use coral_core::{Error, ModelFault, Usd};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use crate::failure::{self, Failure};
use crate::provider::{bearer, checked_url, read_error};
use crate::secrets::Secrets;
use crate::transport::net::HttpTransport;
use crate::transport::{Transport, read_whole};

/// Makes vectors of texts, so that texts that mean the same lie close to each other.
///
/// # Duties of an implementation
/// All vectors of one embedder have one length, are not all zeros, and can be compared by the angle between them.
#[async_trait]
pub trait Embedder: Send + Sync {
    /// The name: vectors of embedders with different names are never compared.
    fn name(&self) -> &str;

    /// The vector of one text.
    async fn embed(&self, text: &str) -> Result<Embedding, Error>;
}

#[async_trait]
impl<E: Embedder + ?Sized> Embedder for Arc<E> {
    fn name(&self) -> &str {
        (**self).name()
    }

    async fn embed(&self, text: &str) -> Result<Embedding, Error> {
        (**self).embed(text).await
    }
}

/// A text as a vector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedding {
    /// The vector.
    pub vector: Vec<f32>,
    /// Tokens of the text, where the server counted them.
    pub tokens: u64,
    /// What it cost, where the price is known.
    pub cost: Option<Usd>,
}

/// An [`Embedder`] on a server: OpenAI's `/embeddings`, which most others speak too, or Ollama's `/api/embed`.
///
/// ```no_run
/// use coral_llm::{Embedder, HttpEmbedder};
///
/// # async fn f() -> Result<(), coral_core::Error> {
/// let embedder = HttpEmbedder::openai("https://api.openai.com/v1", "text-embedding-3-small")?
///     .key("sk-…")?
///     .price(0.02);
/// let local = HttpEmbedder::ollama("http://127.0.0.1:11434", "nomic-embed-text")?;
/// assert_eq!(embedder.embed("reef").await?.vector.len(), 1_536);
/// # Ok(()) }
/// ```
pub struct HttpEmbedder {
    name: String,
    url: String,
    wire: Wire,
    model: String,
    auth: Option<(HeaderName, HeaderValue)>,
    secrets: Secrets,
    price: Option<f64>,
    timeout: Duration,
    transport: Arc<dyn Transport>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    OpenAi,
    Ollama,
}

/// An embedding is a short call: a server that is silent for longer does not come back.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longest answer that is read, in bytes: the longest vectors in use have 8,192 numbers.
const MAX_ANSWER: usize = 1024 * 1024;

impl HttpEmbedder {
    /// A server that speaks OpenAI's embeddings, such as OpenAI, vLLM, llama.cpp or LiteLLM, by its base URL, which
    /// mostly ends in `/v1`.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the URL can't be used.
    pub fn openai(base_url: &str, model: impl Into<String>) -> Result<Self, Error> {
        Self::new(Wire::OpenAi, base_url, model.into())
    }

    /// An Ollama server.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the URL can't be used.
    pub fn ollama(base_url: &str, model: impl Into<String>) -> Result<Self, Error> {
        Self::new(Wire::Ollama, base_url, model.into())
    }

    fn new(wire: Wire, base_url: &str, model: String) -> Result<Self, Error> {
        let base_url = checked_url(base_url).map_err(|problem| {
            Error::invalid("embedder", problem).with_help("give a URL such as `https://host/v1`")
        })?;
        let path = match wire {
            Wire::OpenAi => "/embeddings",
            Wire::Ollama => "/api/embed",
        };
        Ok(HttpEmbedder {
            name: format!("{base_url}/{model}"),
            transport: Arc::new(HttpTransport::for_url(&base_url)?),
            url: base_url + path,
            wire,
            model,
            auth: None,
            secrets: Secrets::default(),
            price: None,
            timeout: TIMEOUT,
        })
    }

    /// Sets the key. No `Debug`, error or log shows it.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if it can't stand in a header.
    pub fn key(mut self, key: impl Into<String>) -> Result<Self, Error> {
        let key = SecretString::from(key.into());
        let value = bearer(&key).ok_or_else(|| {
            Error::invalid("embedder", "the key has characters that can't stand in a header")
        })?;
        self.auth = Some((AUTHORIZATION, value));
        self.secrets = Secrets::new(Some(key), std::iter::empty());
        Ok(self)
    }

    /// Sets the price in USD per million tokens, so that [`Embedding::cost`] is known.
    #[must_use]
    pub fn price(mut self, dollars: f64) -> Self {
        self.price = Some(dollars);
        self
    }

    /// Carries requests by another transport than sockets of its own.
    #[must_use]
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = transport;
        self
    }

    fn request(&self, text: &str) -> Result<http::Request<Bytes>, Failure> {
        let body = match self.wire {
            Wire::OpenAi => json!({"model": self.model, "input": text, "encoding_format": "float"}),
            Wire::Ollama => json!({"model": self.model, "input": text}),
        };
        let mut http = http::Request::post(&self.url).header(CONTENT_TYPE, "application/json");
        if let Some((name, value)) = &self.auth {
            http = http.header(name.clone(), value.clone());
        }
        http.body(body.to_string().into())
            .map_err(|error| Failure::new(ModelFault::InvalidRequest, error.to_string()))
    }

    async fn exchange(&self, text: &str) -> Result<Embedding, Failure> {
        let (head, mut body) = self.transport.send(self.request(text)?).await?.into_parts();
        if !head.status.is_success() {
            return Err(failure::of_http(head.status, &head.headers, &read_error(&mut body).await));
        }
        let (vector, tokens) = self.read(&read_whole(&mut body, MAX_ANSWER).await?)?;
        let cost = self.price.map(|dollars| Usd::per_million(dollars, tokens));
        Ok(Embedding { vector, tokens, cost })
    }

    fn read(&self, body: &[u8]) -> Result<(Vec<f32>, u64), Failure> {
        let malformed =
            |error: serde_json::Error| Failure::malformed(format!("expected embeddings: {error}"));
        let (vector, tokens) = match self.wire {
            Wire::OpenAi => {
                let answer: OpenAiAnswer = serde_json::from_slice(body).map_err(malformed)?;
                let tokens = answer.usage.map_or(0, |usage| usage.prompt_tokens);
                (answer.data.into_iter().next().map(|first| first.embedding), tokens)
            }
            Wire::Ollama => {
                let answer: OllamaAnswer = serde_json::from_slice(body).map_err(malformed)?;
                (answer.embeddings.into_iter().next(), answer.prompt_eval_count)
            }
        };
        let vector = vector.unwrap_or_default();
        if vector.iter().any(|number| !number.is_finite()) || vector.iter().all(|number| *number == 0.0) {
            return Err(Failure::malformed("expected a vector that is not all zeros"));
        }
        Ok((vector, tokens))
    }
}

#[derive(Deserialize)]
struct OpenAiAnswer {
    data: Vec<OpenAiVector>,
    usage: Option<OpenAiUsage>,
}

#[derive(Deserialize)]
struct OpenAiVector {
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct OpenAiUsage {
    #[serde(default)]
    prompt_tokens: u64,
}

#[derive(Deserialize)]
struct OllamaAnswer {
    embeddings: Vec<Vec<f32>>,
    #[serde(default)]
    prompt_eval_count: u64,
}

#[async_trait]
impl Embedder for HttpEmbedder {
    fn name(&self) -> &str {
        &self.name
    }

    async fn embed(&self, text: &str) -> Result<Embedding, Error> {
        let outcome = timeout(self.timeout, self.exchange(text)).await.unwrap_or_else(|_| {
            let problem = format!("no vector came within {} s", self.timeout.as_secs());
            Err(Failure::new(ModelFault::Timeout, problem))
        });
        outcome.map_err(|failure| self.secrets.scrub(failure).into_error(&self.model))
    }
}

impl fmt::Debug for HttpEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpEmbedder")
            .field("url", &self.url)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
