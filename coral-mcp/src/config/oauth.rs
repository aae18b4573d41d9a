//! How tokens for a server are had.

use std::fmt;

use secrecy::SecretString;

/// OAuth 2.1 for one server, where its defaults do not do.
///
/// Without any of it the server says where its tokens are had, this client registers itself there, and a
/// person agrees, who is asked through a `Consent`.
#[derive(Clone, Default)]
pub struct OAuth {
    pub(crate) client_id: Option<String>,
    pub(crate) client_secret: Option<SecretString>,
    pub(crate) private_key: Option<SecretString>,
    pub(crate) client_metadata_url: Option<String>,
    pub(crate) scopes: Vec<String>,
    for_itself: bool,
}

impl fmt::Debug for OAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuth")
            .field("client_id", &self.client_id)
            .field("client_metadata_url", &self.client_metadata_url)
            .field("scopes", &self.scopes)
            .field("for_itself", &self.for_itself)
            .finish_non_exhaustive()
    }
}

impl OAuth {
    /// The defaults.
    pub fn new() -> Self {
        OAuth::default()
    }

    /// Uses a client that was registered with the authorization server beforehand.
    #[must_use]
    pub fn client(mut self, id: impl Into<String>, secret: Option<SecretString>) -> Self {
        self.client_id = Some(id.into());
        self.client_secret = secret;
        self
    }

    /// Acts for the program itself, not for a person (`client_credentials`): with the secret of
    /// [`client`](Self::client), or with [`private_key`](Self::private_key).
    #[must_use]
    pub fn for_itself(mut self) -> Self {
        self.for_itself = true;
        self
    }

    /// Acts for the program itself, which proves who it is with a private key: P-256 or RSA, as PKCS #8
    /// in PEM.
    #[must_use]
    pub fn private_key(mut self, pem: SecretString) -> Self {
        self.private_key = Some(pem);
        self.for_itself()
    }

    /// Names the client by the `https` address of a document about it, where the authorization server
    /// takes that.
    #[must_use]
    pub fn client_metadata_url(mut self, url: impl Into<String>) -> Self {
        self.client_metadata_url = Some(url.into());
        self
    }

    /// Asks for these scopes, in the place of those that the server names.
    #[must_use]
    pub fn scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.scopes = scopes.into_iter().map(Into::into).collect();
        self
    }

    #[cfg(feature = "http")]
    pub(crate) fn is_for_itself(&self) -> bool {
        self.for_itself
    }
}
