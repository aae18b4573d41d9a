//! Sets up a provider.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use coral_core::resilience::Timers;
use coral_core::{Error, ModelInfo, digest};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

use super::{Provider, Timeouts};
use crate::catalogue::Catalogue;
use crate::dialect::Dialect;
use crate::secrets::Secrets;
use crate::transport::Transport;
use crate::transport::net::HttpTransport;
use crate::vendor::Vendor;
use crate::wire::Protocol;

/// Sets up a [`Provider`].
pub struct ProviderBuilder {
    vendor: String,
    protocol: Protocol,
    base_url: String,
    model: Option<String>,
    key: Option<SecretString>,
    headers: Vec<(String, SecretString)>,
    extra_body: Map<String, Value>,
    dialect: Dialect,
    changes: Vec<Change>,
    info: Option<ModelInfo>,
    timeouts: Timeouts,
    transport: Option<Arc<dyn Transport>>,
}

/// A change of the quirks, made after all that is known of the model.
type Change = Box<dyn FnOnce(&mut Dialect) + Send>;

impl Provider {
    /// A provider that is known by name, see [`Vendor`].
    ///
    /// # Errors
    /// [`NotFound`](coral_core::ErrorKind::NotFound) if the name is not known.
    pub fn vendor(id: &str) -> Result<ProviderBuilder, Error> {
        Ok(Self::of(Vendor::named(id)?))
    }

    /// A provider described by the user's own data.
    pub fn of(vendor: &Vendor) -> ProviderBuilder {
        ProviderBuilder {
            vendor: vendor.id.clone(),
            protocol: vendor.protocol,
            base_url: vendor.base_url.clone(),
            model: vendor.default_model.clone(),
            key: None,
            headers: Vec::new(),
            extra_body: Map::new(),
            dialect: vendor.dialect.clone(),
            changes: Vec::new(),
            info: None,
            timeouts: Timeouts::default(),
            transport: None,
        }
    }

    /// Any server that speaks OpenAI's chat completions.
    pub fn openai_compatible(base_url: impl Into<String>) -> ProviderBuilder {
        Self::of(&Vendor {
            id: "openai_compatible".to_owned(),
            protocol: Protocol::OpenAiChat,
            base_url: base_url.into(),
            base_url_env: None,
            key_env: Vec::new(),
            key_optional: true,
            default_model: None,
            dialect: Dialect {
                max_tokens_field: crate::dialect::MaxTokensField::MaxTokens,
                ..Dialect::default()
            },
        })
    }
}

impl ProviderBuilder {
    /// Chooses the model, by the provider's own name for it.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Sets the key. No `Debug`, error or log shows it.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(SecretString::from(key.into()));
        self
    }

    /// Says where the provider is.
    #[must_use]
    pub fn base_url(mut self, base_url: impl Into<String>) -> Self {
        self.base_url = base_url.into();
        self
    }

    /// Sends a header along. Its value is treated as a secret.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), SecretString::from(value.into())));
        self
    }

    /// Sends a field along in each request's body, for what a provider takes and [`ChatRequest`](coral_core::ChatRequest) does not know. An
    /// object is merged into what Coral sends under its name, such as Ollama's `options`; all else stands in its place.
    #[must_use]
    pub fn body_field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extra_body.insert(name.into(), value.into());
        self
    }

    /// Speaks another wire format to the same provider.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Changes the quirks of the endpoint. They are the vendor's, with what the built-in [`Catalogue`] says that the model
    /// refuses.
    #[must_use]
    pub fn dialect(mut self, change: impl FnOnce(&mut Dialect) + Send + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Says what the model can do and what it costs, in place of what the built-in [`Catalogue`] knows of it.
    #[must_use]
    pub fn info(mut self, info: ModelInfo) -> Self {
        self.info = Some(info);
        self
    }

    /// Says how long the provider may be silent.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Carries requests by another transport than sockets of its own.
    #[must_use]
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// Checks the settings and makes the model.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if no model is named, or the base URL, the key or a header
    /// can't be used.
    pub fn build(self) -> Result<Provider, Error> {
        let what = || format!("model provider `{}`", self.vendor);
        let Some(model) = self.model.filter(|model| !model.trim().is_empty()) else {
            return Err(Error::invalid(what(), "no model is named")
                .with_help(format!("set CORAL_MODEL to `{}/` and a model's name", self.vendor)));
        };
        let base_url = checked_base_url(&self.base_url, self.protocol).map_err(|problem| {
            Error::invalid(what(), problem).with_help("give a URL such as `https://host/v1`")
        })?;
        let known = Catalogue::known(&self.vendor, &model);
        let general = self.dialect;
        let mut dialect = general.clone();
        if let Some(known) = known {
            known.shape(&mut dialect);
        }
        self.changes.into_iter().for_each(|change| change(&mut dialect));
        let idempotency_header = match &dialect.idempotency_header {
            None => None,
            Some(name) => Some(HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                Error::invalid(what(), format!("`idempotency_header`: `{name}` is no name of a header"))
            })?),
        };
        let mut headers = Vec::new();
        if let Some(key) = &self.key {
            headers.push(auth_header(self.protocol, &dialect, key).ok_or_else(|| {
                Error::invalid(what(), "the key has characters that can't stand in a header")
            })?);
        }
        for (name, value) in &self.headers {
            let header =
                HeaderName::from_bytes(name.as_bytes()).ok().zip(secret_header(value.expose_secret()));
            headers.push(
                header.ok_or_else(|| Error::invalid(what(), format!("header `{name}` can't be sent")))?,
            );
        }
        let transport = match self.transport {
            Some(transport) => transport,
            None => Arc::new(HttpTransport::connecting_within(&base_url, self.timeouts.connect)?),
        };
        let identity = digest(&(&self.vendor, self.protocol, &base_url, &model, &dialect, &self.extra_body))?;
        Ok(Provider {
            name: format!("{}/{model}", self.vendor),
            info: self.info.or_else(|| known.map(|known| known.info_with(&dialect))).unwrap_or_default(),
            identity,
            vendor: self.vendor,
            protocol: self.protocol,
            base_url,
            model,
            secrets: Secrets::new(self.key, self.headers.into_iter().map(|(_, value)| value)),
            headers,
            idempotency_header,
            extra_body: self.extra_body,
            dialect,
            general,
            unsampled: AtomicBool::new(false),
            timeouts: self.timeouts,
            timers: Timers::default(),
            last_uri: Mutex::default(),
            transport,
        })
    }
}

fn checked_base_url(base_url: &str, protocol: Protocol) -> Result<String, String> {
    let url = checked_url(base_url)?;
    // The path of Messages begins with the version, and people write it at the end of the base too.
    let tail = match protocol {
        Protocol::Anthropic => "/v1",
        Protocol::Ollama => "/api",
        _ => return Ok(url),
    };
    Ok(url.strip_suffix(tail).map(str::to_owned).unwrap_or(url))
}

/// A base URL without the slash at its end, or what is wrong with it.
pub(crate) fn checked_url(base_url: &str) -> Result<String, String> {
    let trimmed = base_url.trim().trim_end_matches('/');
    // What follows is shown in errors and in `Debug`, so no secret may stand in it.
    if trimmed.contains(['@', '?']) {
        return Err(
            "the base URL holds a user, a password or a query; give secrets as a key or a header".to_owned()
        );
    }
    let uri: http::Uri =
        trimmed.parse().map_err(|error| format!("base URL `{base_url}` is not a URL: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() {
        return Err(format!("base URL `{base_url}` must begin with `http://` or `https://`"));
    }
    Ok(trimmed.to_owned())
}

fn auth_header(
    protocol: Protocol,
    dialect: &Dialect,
    secret: &SecretString,
) -> Option<(HeaderName, HeaderValue)> {
    let key = secret.expose_secret();
    // Since the version of 2026-10-21 Anthropic takes the key as every other provider does.
    if protocol == Protocol::Anthropic && dialect.anthropic_version.as_str() < "2026-10-21" {
        return Some((HeaderName::from_static("x-api-key"), secret_header(key)?));
    }
    if protocol == Protocol::Gemini {
        return Some((HeaderName::from_static("x-goog-api-key"), secret_header(key)?));
    }
    Some((AUTHORIZATION, bearer(secret)?))
}

/// A key as most providers take it. `None` if it can't stand in a header.
pub(crate) fn bearer(key: &SecretString) -> Option<HeaderValue> {
    secret_header(&format!("Bearer {}", key.expose_secret()))
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for ProviderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderBuilder")
            .field("vendor", &self.vendor)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
