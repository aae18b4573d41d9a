//! Tokens for one server, by OAuth 2.1.
//!
//! Discovery, registration, PKCE, resource indicators and refreshing are the SDK's; here is when a token
//! is asked for, on whose word, where it is kept, and where all of that may go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::Clock;
use rmcp::transport::auth::{
    AuthError, AuthorizationManager, AuthorizationRequest, ClientCredentialsConfig, CredentialStore,
    OAuthClientConfig, OAuthHttpClient, OAuthHttpClientFuture, OAuthHttpRedirectPolicy, OAuthHttpRequest,
    OAuthState, StoredCredentials,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::assertion;
use super::guard::Guard;
use super::tokens::{Consent, ConsentRequest, TokenStore};
use crate::config::OAuth;
use crate::health::Health;

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY: usize = 1024 * 1024;
/// How often a person is asked within [`CONSENT_SPAN`]: a server must not wear them down.
const MAX_CONSENTS: usize = 5;
const CONSENT_SPAN: Duration = Duration::from_secs(600);
/// How long a person may take.
const CONSENT_TIME: Duration = Duration::from_secs(600);

/// Sends what precedes a token, where the guard lets it go.
pub(super) struct Carrier {
    guard: Guard,
    follow: reqwest::Client,
    stop: reqwest::Client,
}

impl Carrier {
    pub(super) fn new(guard: Guard) -> Result<Self, coral_core::Error> {
        Ok(Carrier { guard, follow: guard.plain_client(5)?, stop: guard.plain_client(0)? })
    }

    async fn send(
        &self,
        request: reqwest::Request,
        policy: OAuthHttpRedirectPolicy,
    ) -> Result<http::Response<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        self.guard.check(request.url())?;
        let client = match policy {
            OAuthHttpRedirectPolicy::Follow => &self.follow,
            _ => &self.stop,
        };
        let answer = async {
            let mut response = client.execute(request).await?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > MAX_BODY {
                    return Err(format!("the answer has more than {MAX_BODY} bytes").into());
                }
                body.extend_from_slice(&chunk);
            }
            let mut built = http::Response::builder().status(response.status());
            for (name, value) in response.headers() {
                built = built.header(name, value);
            }
            Ok(built.body(body)?)
        };
        tokio::time::timeout(TIMEOUT, answer).await?
    }
}

impl OAuthHttpClient for Carrier {
    fn execute(&self, request: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(async move {
            let wanted = reqwest::Request::try_from(request.request)?;
            self.send(wanted, request.redirect_policy).await
        })
    }
}

/// What is kept, with the address that it is for.
#[derive(Serialize, Deserialize)]
struct Kept {
    address: String,
    credentials: StoredCredentials,
}

/// The store that embedders implement, as the SDK sees it.
#[derive(Clone)]
struct Store {
    server: String,
    address: String,
    tokens: Arc<dyn TokenStore>,
    health: Arc<StdMutex<Option<Arc<Health>>>>,
}

fn store_error(error: &dyn std::fmt::Display) -> AuthError {
    AuthError::CredentialStoreError(error.to_string())
}

impl Store {
    /// Has the tokens blotted out of what the server answers.
    fn hide(&self, credentials: &StoredCredentials) {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(health), Some(token)) = (health, &credentials.token_response) else { return };
        // The response's fields are reached as the JSON that they came as.
        let Ok(json) = serde_json::to_value(token) else { return };
        for field in ["access_token", "refresh_token", "id_token"] {
            if let Some(secret) = json.get(field).and_then(serde_json::Value::as_str) {
                health.hide(secret);
            }
        }
    }
}

#[async_trait]
impl CredentialStore for Store {
    async fn load(&self) -> Result<Option<StoredCredentials>, AuthError> {
        let kept = self.tokens.load(&self.server).await.map_err(|error| store_error(&error))?;
        let Some(kept) = kept else { return Ok(None) };
        // What can't be read is as good as none: it will be asked for again.
        let Ok(kept) = serde_json::from_str::<Kept>(kept.expose_secret()) else { return Ok(None) };
        if kept.address != self.address {
            return Ok(None);
        }
        self.hide(&kept.credentials);
        Ok(Some(kept.credentials))
    }

    async fn save(&self, credentials: StoredCredentials) -> Result<(), AuthError> {
        self.hide(&credentials);
        let kept = Kept { address: self.address.clone(), credentials };
        let text = serde_json::to_string(&kept).map_err(|error| store_error(&error))?;
        self.tokens.save(&self.server, SecretString::from(text)).await.map_err(|error| store_error(&error))
    }

    async fn clear(&self) -> Result<(), AuthError> {
        self.tokens.clear(&self.server).await.map_err(|error| store_error(&error))
    }
}

/// Where the tokens of one server are had from.
pub(super) struct Authority {
    url: Url,
    settings: OAuth,
    consent: Option<Arc<dyn Consent>>,
    clock: Arc<dyn Clock>,
    carrier: Arc<Carrier>,
    guard: Guard,
    store: Store,
    manager: Mutex<Option<AuthorizationManager>>,
    /// Whether a handshake is under way, which does not wait for people.
    handshake: AtomicBool,
    /// The challenge that a handshake could not answer.
    challenge: StdMutex<Option<String>>,
    consents: StdMutex<Vec<Instant>>,
}

/// What an [`Authority`] works with.
pub(super) struct Means {
    pub(super) consent: Option<Arc<dyn Consent>>,
    pub(super) tokens: Arc<dyn TokenStore>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Authority {
    pub(super) fn new(
        server: &str,
        url: &Url,
        guard: Guard,
        settings: OAuth,
        means: Means,
    ) -> Result<Self, coral_core::Error> {
        let store = Store {
            server: server.to_owned(),
            address: url.to_string(),
            tokens: means.tokens,
            health: Arc::default(),
        };
        Ok(Authority {
            url: url.clone(),
            settings,
            consent: means.consent,
            clock: means.clock,
            carrier: Arc::new(Carrier::new(guard)?),
            guard,
            store,
            manager: Mutex::default(),
            handshake: AtomicBool::new(false),
            challenge: StdMutex::default(),
            consents: StdMutex::default(),
        })
    }

    /// A connection begins to shake hands: what it needs of a person must wait until it is over.
    pub(super) fn begin(&self, health: &Arc<Health>) {
        *self.store.health.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(health));
        self.handshake.store(true, Ordering::Relaxed);
    }

    /// The handshake is over. What could not be answered in it, if anything.
    pub(super) fn end(&self) -> Option<String> {
        self.handshake.store(false, Ordering::Relaxed);
        self.challenge.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The token to use, refreshed if need be; `None` if there is none.
    pub(super) async fn token(&self) -> Result<Option<String>, AuthError> {
        let mut manager = self.manager.lock().await;
        if manager.is_none() {
            let mut fresh = self.manager().await?;
            if self.store.load().await?.is_none() || !fresh.initialize_from_store().await? {
                return Ok(None);
            }
            self.identify(&mut fresh)?;
            *manager = Some(fresh);
        }
        let Some(manager) = manager.as_ref() else { return Ok(None) };
        match manager.get_access_token().await {
            Ok(token) => Ok(Some(token)),
            Err(AuthError::AuthorizationRequired) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Another token, in the place of the one that the server did not take.
    pub(super) async fn renew(&self, sent: Option<&str>, challenge: &str) -> Result<String, AuthError> {
        let mut manager = self.manager.lock().await;
        if let Some(manager) = manager.as_ref() {
            // Another request was quicker.
            if let Ok(token) = manager.get_access_token().await
                && Some(token.as_str()) != sent
            {
                return Ok(token);
            }
            if sent.is_some() && manager.refresh_token().await.is_ok() {
                return manager.get_access_token().await;
            }
        }
        if sent.is_some() {
            // It may be another authority by now, to which what was kept means nothing.
            self.store.clear().await?;
        }
        self.authorize(&mut manager, challenge, Vec::new()).await
    }

    /// A token for more; `None` if the one that was sent should have been enough.
    pub(super) async fn widen(
        &self,
        sent: Option<&str>,
        scope: Option<&str>,
        challenge: &str,
    ) -> Result<Option<String>, AuthError> {
        let mut manager = self.manager.lock().await;
        let Some(current) = manager.as_ref() else { return Ok(None) };
        if let Ok(token) = current.get_access_token().await
            && Some(token.as_str()) != sent
        {
            return Ok(Some(token));
        }
        let mut scopes = current.get_current_scopes().await;
        let known = scopes.len();
        for wanted in scope.unwrap_or_default().split_whitespace() {
            if !scopes.iter().any(|scope| scope == wanted) {
                scopes.push(wanted.to_owned());
            }
        }
        if scopes.len() == known {
            return Ok(None);
        }
        self.authorize(&mut manager, challenge, scopes).await.map(Some)
    }

    /// Asks for a token, of a person where it takes one.
    pub(super) async fn obtain(&self, challenge: &str) -> Result<(), AuthError> {
        let mut manager = self.manager.lock().await;
        self.authorize(&mut manager, challenge, Vec::new()).await.map(drop)
    }

    async fn manager(&self) -> Result<AuthorizationManager, AuthError> {
        let carrier: Arc<dyn OAuthHttpClient> = self.carrier.clone();
        let mut manager =
            AuthorizationManager::new_with_oauth_http_client(self.url.as_str(), carrier).await?;
        manager.set_credential_store(self.store.clone());
        Ok(manager)
    }

    fn redirect_uri(&self) -> String {
        self.consent.as_ref().map(|consent| consent.redirect_uri()).unwrap_or_default()
    }

    /// Has a client that was registered beforehand prove that it is itself.
    fn identify(&self, manager: &mut AuthorizationManager) -> Result<(), AuthError> {
        let (Some(id), false) = (&self.settings.client_id, self.settings.is_for_itself()) else {
            return Ok(());
        };
        let mut client =
            OAuthClientConfig::new(id, self.redirect_uri()).with_scopes(self.settings.scopes.clone());
        if let Some(secret) = &self.settings.client_secret {
            client = client.with_client_secret(secret.expose_secret());
        }
        manager.configure_client(client)
    }

    async fn authorize(
        &self,
        manager: &mut Option<AuthorizationManager>,
        challenge: &str,
        scopes: Vec<String>,
    ) -> Result<String, AuthError> {
        let scopes = if scopes.is_empty() { self.settings.scopes.clone() } else { scopes };
        let fresh = self.manager().await?;
        let ready = if self.settings.is_for_itself() {
            self.for_itself(fresh, challenge, scopes).await?
        } else {
            self.for_a_person(fresh, challenge, scopes).await?
        };
        let token = ready.get_access_token().await?;
        *manager = Some(ready);
        Ok(token)
    }

    async fn for_a_person(
        &self,
        fresh: AuthorizationManager,
        challenge: &str,
        scopes: Vec<String>,
    ) -> Result<AuthorizationManager, AuthError> {
        let Some(consent) = &self.consent else { return Err(AuthError::AuthorizationRequired) };
        if self.handshake.load(Ordering::Relaxed) {
            let mut kept = self.challenge.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = Some(challenge.to_owned());
            return Err(AuthError::AuthorizationRequired);
        }
        self.count_consent()?;
        let mut request = AuthorizationRequest::new(consent.redirect_uri()).with_client_name("coral");
        if !challenge.is_empty() {
            request = request.with_challenge(challenge);
        }
        if !scopes.is_empty() {
            request = request.with_scopes(scopes);
        }
        if let Some(id) = &self.settings.client_id {
            request = request.with_preregistered_client(id);
            if let Some(secret) = &self.settings.client_secret {
                request = request.with_client_secret(secret.expose_secret());
            }
        }
        if let Some(url) = &self.settings.client_metadata_url {
            request = request.with_client_metadata_url(url);
        }
        let mut state = OAuthState::Unauthorized(fresh);
        state.start_authorization(request).await?;
        let page = state.get_authorization_url().await?;
        self.guard.check(&Url::parse(&page)?).map_err(AuthError::AuthorizationFailed)?;
        let question = ConsentRequest { server: self.store.server.clone(), page };
        // While a person reads, the calls that wait for it are not late.
        let health = self.store.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let _waiting = health.as_ref().map(|health| health.calls().hold());
        let answer = tokio::time::timeout(CONSENT_TIME, consent.authorize(&question)).await;
        let came_back = match answer {
            Ok(Ok(came_back)) => came_back,
            Ok(Err(error)) => return Err(AuthError::AuthorizationFailed(error.to_string())),
            Err(_) => return Err(AuthError::AuthorizationFailed("nobody agreed in time".to_owned())),
        };
        state.handle_callback_url(came_back.expose_secret()).await?;
        state.into_authorization_manager().ok_or(AuthError::AuthorizationRequired)
    }

    fn count_consent(&self) -> Result<(), AuthError> {
        let mut consents = self.consents.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        consents.retain(|asked| now - *asked < CONSENT_SPAN);
        if consents.len() >= MAX_CONSENTS {
            return Err(AuthError::AuthorizationFailed("a person was asked too often for it".to_owned()));
        }
        consents.push(now);
        Ok(())
    }

    /// The token of a program that acts for itself (`client_credentials`).
    async fn for_itself(
        &self,
        mut fresh: AuthorizationManager,
        challenge: &str,
        scopes: Vec<String>,
    ) -> Result<AuthorizationManager, AuthError> {
        let challenge = Some(challenge).filter(|challenge| !challenge.is_empty());
        let metadata = fresh.resolve_metadata_from_challenge(challenge).await?.metadata;
        let id = self.settings.client_id.clone().ok_or(AuthError::AuthorizationRequired)?;
        let endpoint = Url::parse(&metadata.token_endpoint)?;
        self.guard.check(&endpoint).map_err(AuthError::AuthorizationFailed)?;
        let audience = metadata.issuer.clone().unwrap_or_else(|| endpoint.to_string());
        let issuer = metadata.issuer.clone();
        fresh.set_metadata(metadata);
        let resource = Some(self.url.to_string());
        if let Some(secret) = &self.settings.client_secret {
            let config = ClientCredentialsConfig::ClientSecret {
                client_id: id,
                client_secret: secret.expose_secret().to_owned(),
                scopes,
                resource,
            };
            fresh.validate_client_credentials_metadata(&config)?;
            fresh.configure_client_credentials(&config)?;
            fresh.exchange_client_credentials(&config).await?;
            return Ok(fresh);
        }
        let key = self.settings.private_key.as_ref().ok_or(AuthError::AuthorizationRequired)?;
        let now_s = self.clock.now_ms() / 1_000;
        let assertion = assertion::signed(key.expose_secret(), &id, &audience, now_s)
            .map_err(AuthError::ClientCredentialsError)?;
        let scope = scopes.join(" ");
        let mut fields = vec![
            ("grant_type", "client_credentials"),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
            ("client_assertion", &assertion),
            ("resource", self.url.as_str()),
        ];
        if !scope.is_empty() {
            fields.push(("scope", &scope));
        }
        let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let failed = |problem: String| AuthError::TokenExchangeFailed(problem);
        let mut request = reqwest::Request::new(reqwest::Method::POST, endpoint);
        let kind = http::HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        *request.body_mut() = Some(form.into());
        let answer = self.carrier.send(request, OAuthHttpRedirectPolicy::Stop).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        if !answer.status().is_success() {
            return Err(failed(format!("the token endpoint answered {}", answer.status())));
        }
        let token = serde_json::from_slice(answer.body()).map_err(|error| failed(error.to_string()))?;
        let stored = StoredCredentials::new(id.clone(), Some(token), scopes, Some(now_s)).with_issuer(issuer);
        self.store.save(stored).await?;
        fresh.configure_client_id(&id)?;
        Ok(fresh)
    }
}
