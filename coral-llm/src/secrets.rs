//! What must not be shown, and how it is taken out of what others say.

use http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};

use crate::failure::Failure;

/// A key that is shorter can't be a secret, and would be found in any text.
const MIN_KEY: usize = 4;

/// The same of the value of a header that holds no key: most of those are flags, versions and names.
const MIN_VALUE: usize = 8;

/// The headers that hold keys.
const KEYS: [&str; 3] = ["authorization", "x-api-key", "x-goog-api-key"];

/// What an endpoint is sent that nobody else may see.
#[derive(Default)]
pub(crate) struct Secrets(Vec<SecretString>);

impl Secrets {
    /// The key of an endpoint, and the values of the user's own headers.
    pub(crate) fn new(key: Option<SecretString>, values: impl Iterator<Item = SecretString>) -> Self {
        let key = key.filter(|key| key.expose_secret().len() >= MIN_KEY);
        Secrets(
            key.into_iter().chain(values.filter(|value| value.expose_secret().len() >= MIN_VALUE)).collect(),
        )
    }

    /// The failure without them: providers repeat keys in what they say of them.
    pub(crate) fn scrub(&self, mut failure: Failure) -> Failure {
        for secret in self.0.iter().map(ExposeSecret::expose_secret) {
            if failure.problem.contains(secret) {
                failure.problem = failure.problem.replace(secret, "[secret]");
            }
        }
        failure
    }
}

/// The values of sensitive headers, without their scheme.
pub(crate) fn in_headers(headers: &HeaderMap) -> Vec<String> {
    let sensitive = headers.iter().filter(|(_, value)| value.is_sensitive());
    let secrets = sensitive.filter_map(|(name, value)| {
        let value = value.to_str().ok()?;
        let secret = value.strip_prefix("Bearer ").unwrap_or(value);
        let least = if KEYS.contains(&name.as_str()) { MIN_KEY } else { MIN_VALUE };
        (secret.len() >= least).then(|| secret.to_owned())
    });
    secrets.collect()
}
