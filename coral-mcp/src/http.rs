//! Servers behind an address: streamable HTTP, with bearer tokens and OAuth 2.1.

mod assertion;
mod guard;
mod oauth;
mod tokens;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use coral_core::{Clock, Error, ToolFault};
use http::{HeaderName, HeaderValue};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use secrecy::{ExposeSecret, SecretString};

use crate::config::{Generation, HttpSpec, ServerSpec};
use crate::health::Health;
use crate::path::ProjectPath;
use crate::pins;
use crate::pool::{Connector, Terms};
use crate::profile::Place;
use crate::server::{Connection, Opening, fault};

use self::guard::Guard;
use self::oauth::{Authority, Means};
use self::wire::{Streams, Wire};

pub use self::tokens::{Consent, ConsentRequest, LoopbackConsent, MemoryTokenStore, TokenStore};

/// How often a handshake is tried again after a person agreed to what it needs.
const MAX_CONSENTS: usize = 2;

/// What all servers behind an address share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) consent: Option<Arc<dyn Consent>>,
    pub(crate) tokens: Arc<dyn TokenStore>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// A server behind an address.
pub(crate) struct Http {
    address: Arc<str>,
    client: reqwest::Client,
    headers: HashMap<HeaderName, HeaderValue>,
    bearer: Option<SecretString>,
    authority: Option<Arc<Authority>>,
    secrets: Vec<String>,
    /// Whether the server turned out to speak only the older generation, and to answer the newer
    /// handshake with nonsense.
    older: AtomicBool,
}

impl Http {
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for an address that nothing is sent to, and for
    /// headers that are none.
    pub(crate) fn new(
        name: &str,
        spec: HttpSpec,
        secrets: Vec<String>,
        private: bool,
        shared: &Shared,
    ) -> Result<Self, Error> {
        let invalid = |problem: String| Error::invalid(format!("server `{name}`"), problem);
        let (url, guard) = Guard::of(&spec.url, private).map_err(invalid)?;
        let mut headers = HashMap::new();
        let mut bearer = None;
        for (key, value) in &spec.headers {
            let header = HeaderName::from_bytes(key.as_bytes())
                .map_err(|_| invalid(format!("`{}` is not a header's name", crate::text::clean(key, 100))))?;
            // The value is not shown: it may be a secret.
            let mut content = HeaderValue::from_str(value)
                .map_err(|_| invalid(format!("the value of header `{key}` is not one")))?;
            content.set_sensitive(true);
            let token =
                value.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("bearer ")).and(value.get(7..));
            match token {
                Some(token) if header == http::header::AUTHORIZATION => {
                    bearer = Some(SecretString::from(token.trim()));
                }
                _ => {
                    headers.insert(header, content);
                }
            }
        }
        let asks = shared.consent.is_some() || spec.oauth.as_ref().is_some_and(|oauth| oauth.is_for_itself());
        let has_token = bearer.is_some() || headers.contains_key(&http::header::AUTHORIZATION);
        if has_token && spec.oauth.is_some() {
            return Err(invalid("it has both an `Authorization` header and `oauth`".to_owned())
                .with_help("keep the one that the server wants"));
        }
        let authority = if asks && !has_token {
            let means = Means {
                consent: shared.consent.clone(),
                tokens: Arc::clone(&shared.tokens),
                clock: Arc::clone(&shared.clock),
            };
            Some(Arc::new(Authority::new(name, &url, guard, spec.oauth.unwrap_or_default(), means)?))
        } else {
            None
        };
        let client = guard.client(&url)?;
        let older = AtomicBool::new(false);
        Ok(Http { address: url.as_str().into(), client, headers, bearer, authority, secrets, older })
    }

    async fn open(&self, name: &str, terms: &Terms) -> Result<Connection, (Error, Option<String>)> {
        let health = Arc::new(Health::default());
        if let Some(bearer) = &self.bearer {
            health.hide(bearer.expose_secret());
        }
        if let Some(authority) = &self.authority {
            authority.begin(&health);
        }
        let streams = Arc::<Streams>::default();
        let wire = Wire {
            client: self.client.clone(),
            bearer: self.bearer.clone(),
            authority: self.authority.clone(),
            streams: Arc::clone(&streams),
            health: Arc::clone(&health),
        };
        let mut config = StreamableHttpClientTransportConfig::with_uri(Arc::clone(&self.address));
        config.custom_headers = self.headers.clone();
        config.max_json_response_size = terms.limits.max_line_bytes;
        config.max_sse_event_size = terms.limits.max_line_bytes;
        let transport = StreamableHttpClientTransport::with_client(wire, config);
        let mut opening = Opening { health, ..terms.opening(&self.secrets) };
        if self.older.load(Ordering::Relaxed) {
            opening.generation = Generation::WithHandshake;
        }
        let opened = Connection::open(name, transport, opening).await;
        let challenge = self.authority.as_ref().and_then(|authority| authority.end());
        if opened.is_ok() && terms.abilities.asks() {
            streams.ready().await;
        }
        opened.map_err(|error| (error, challenge))
    }
}

#[async_trait]
impl Connector for Http {
    async fn connect(&self, name: &str, terms: &Terms) -> Result<Connection, Error> {
        let mut tries = 0;
        loop {
            let (error, challenge) = match self.open(name, terms).await {
                Ok(connection) => return Ok(connection),
                Err(failed) => failed,
            };
            let (Some(authority), Some(challenge)) = (&self.authority, challenge) else {
                // Servers are known that answer any method at all, which passes for the newer handshake.
                if terms.generation == Generation::Any && !self.older.swap(true, Ordering::Relaxed) {
                    continue;
                }
                self.older.store(false, Ordering::Relaxed);
                return Err(error);
            };
            if tries == MAX_CONSENTS {
                return Err(error);
            }
            tries += 1;
            // No handshake waits for a person: the token is had first, and the handshake begins anew.
            authority.obtain(&challenge).await.map_err(|error| {
                let problem =
                    format!("no token was to be had: {}", crate::text::clean(error.to_string(), 1_000));
                fault(name, ToolFault::Unavailable, problem)
            })?;
        }
    }

    fn source(&self) -> Result<Option<String>, String> {
        let mut names: Vec<&str> = self.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let mut words = vec!["address", self.address.as_ref()];
        words.extend(names);
        pins::source(&words, None).map(Some)
    }
}

impl Place for Http {
    fn holds_git(&self, _path: &ProjectPath) -> bool {
        false
    }

    /// Elsewhere the project has another place: what is named there is named as it is here.
    fn spell(&self, path: &ProjectPath) -> Result<String, String> {
        Ok(path.to_string())
    }
}

/// A connector for a server that is configured with an address.
pub(crate) fn connector(
    name: &str,
    spec: &ServerSpec,
    http: HttpSpec,
    private: bool,
    shared: &Shared,
) -> Result<Arc<dyn Connector>, Error> {
    Ok(Arc::new(Http::new(name, http, spec.secrets.clone(), private, shared)?))
}
