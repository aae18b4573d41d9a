//! Where tokens are kept, and who agrees to their being asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use coral_core::Error;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Keeps the tokens of servers, as text that only this crate reads: put it where secrets are kept.
///
/// What is kept for a server is bound to the server's address: under another address it is not used.
#[async_trait]
pub trait TokenStore: Send + Sync {
    /// What was saved last for `server`.
    ///
    /// # Errors
    /// Any reason why it can't be read.
    async fn load(&self, server: &str) -> Result<Option<SecretString>, Error>;

    /// Keeps `tokens` in the place of what was kept for `server`.
    ///
    /// # Errors
    /// Any reason why they can't be kept.
    async fn save(&self, server: &str, tokens: SecretString) -> Result<(), Error>;

    /// Forgets what is kept for `server`.
    ///
    /// # Errors
    /// Any reason why it is still there.
    async fn clear(&self, server: &str) -> Result<(), Error>;
}

/// Tokens that end with the process.
#[derive(Default)]
pub struct MemoryTokenStore(Mutex<BTreeMap<String, SecretString>>);

impl fmt::Debug for MemoryTokenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTokenStore").finish_non_exhaustive()
    }
}

#[async_trait]
impl TokenStore for MemoryTokenStore {
    async fn load(&self, server: &str) -> Result<Option<SecretString>, Error> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(server).cloned())
    }

    async fn save(&self, server: &str, tokens: SecretString) -> Result<(), Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(server.to_owned(), tokens);
        Ok(())
    }

    async fn clear(&self, server: &str) -> Result<(), Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(server);
        Ok(())
    }
}

/// A wish for a token, which a person has to agree to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsentRequest {
    /// The server.
    pub server: String,
    /// The page at which the person agrees.
    pub page: String,
}

/// Leads a person to the page at which they agree to a token, and brings back where they were sent
/// from there.
#[async_trait]
pub trait Consent: Send + Sync {
    /// Where the person is to be sent when they agreed.
    fn redirect_uri(&self) -> String;

    /// Shows the page, and gives the whole address that the person was sent to: it holds the code for the
    /// token.
    ///
    /// # Errors
    /// Any reason why there is none: the server stays out of reach.
    async fn authorize(&self, request: &ConsentRequest) -> Result<SecretString, Error>;
}

type Show = Box<dyn Fn(&ConsentRequest) + Send + Sync>;

/// Consent in a browser on this machine: shows the page's address, and waits on a loopback port for the
/// browser to come back.
pub struct LoopbackConsent {
    listener: tokio::sync::Mutex<TcpListener>,
    redirect_uri: String,
    show: Show,
}

impl fmt::Debug for LoopbackConsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopbackConsent").field("redirect_uri", &self.redirect_uri).finish_non_exhaustive()
    }
}

/// The longest request that a browser may come back with.
const MAX_REQUEST: usize = 16 * 1_024;

impl LoopbackConsent {
    /// Waits on `port`, or on a free one if that is 0. `show` tells the person which page to open.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the port is taken.
    pub async fn bind(
        port: u16,
        show: impl Fn(&ConsentRequest) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let failed = |error: std::io::Error| {
            Error::storage("opening a port for the browser to come back to", error)
                .with_help("choose another port")
        };
        let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        Ok(LoopbackConsent {
            listener: tokio::sync::Mutex::new(listener),
            redirect_uri: format!("http://127.0.0.1:{port}/callback"),
            show: Box::new(show),
        })
    }
}

#[async_trait]
impl Consent for LoopbackConsent {
    fn redirect_uri(&self) -> String {
        self.redirect_uri.clone()
    }

    async fn authorize(&self, request: &ConsentRequest) -> Result<SecretString, Error> {
        // One person answers one question at a time.
        let listener = self.listener.lock().await;
        (self.show)(request);
        loop {
            let (mut stream, _) = listener
                .accept()
                .await
                .map_err(|error| Error::storage("waiting for the browser to come back", error))?;
            let mut head = Vec::new();
            let read = async {
                let mut chunk = [0; 1_024];
                while head.len() < MAX_REQUEST && !head.contains(&b'\n') {
                    match stream.read(&mut chunk).await {
                        Ok(n) if n > 0 => head.extend(chunk.iter().take(n)),
                        _ => break,
                    }
                }
            };
            let _ = tokio::time::timeout(std::time::Duration::from_secs(5), read).await;
            let target = target_of(&head);
            let (status, body) = match &target {
                Some(_) => ("200 OK", "You may close this page."),
                None => ("404 Not Found", "Nothing here."),
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
            if let Some(query) = target {
                return Ok(SecretString::from(format!("{}?{query}", self.redirect_uri)));
            }
        }
    }
}

/// The query that a browser brings back; `None` for whatever else knocks on the port.
fn target_of(head: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(head.split(|b| *b == b'\n').next()?).ok()?;
    let query = line.strip_prefix("GET /callback?")?.split(' ').next()?;
    let has = |key: &str| query.split('&').any(|pair| pair.starts_with(key));
    (has("state=") && (has("code=") || has("error="))).then(|| query.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_browser_is_told_from_what_else_knocks() {
        assert_eq!(
            target_of(b"GET /callback?code=a&state=b HTTP/1.1\r\n").as_deref(),
            Some("code=a&state=b")
        );
        assert_eq!(
            target_of(b"GET /callback?error=no&state=b HTTP/1.1\r\n").as_deref(),
            Some("error=no&state=b")
        );
        for other in [
            &b"GET /favicon.ico HTTP/1.1\r\n"[..],
            b"GET /callback?code=a HTTP/1.1",
            b"POST /callback?code=a&state=b",
            b"",
            b"\xff",
        ] {
            assert_eq!(target_of(other), None);
        }
    }

    proptest! {
        #[test]
        fn anything_may_knock(head in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = target_of(&head);
        }
    }
}
