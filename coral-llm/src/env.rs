//! The model that the environment asks for.

use std::sync::Arc;

use coral_core::{ChatModel, Error};

use crate::offline::OfflineModel;
use crate::provider::Provider;
use crate::vendor::Vendor;

/// The providers that need no `CORAL_MODEL`, in the order in which they are looked for.
const FIRST: [&str; 4] = ["anthropic", "openai", "gemini", "ollama"];

/// The model that the environment asks for.
///
/// | Variable | Meaning |
/// |---|---|
/// | `CORAL_MODEL` | `provider/model`, or a model of the provider found below, or `offline` |
/// | `ANTHROPIC_API_KEY`, `ANTHROPIC_BASE_URL` | Anthropic |
/// | `OPENAI_API_KEY`, `OPENAI_BASE_URL` | OpenAI, or any server that speaks like it; one of the two suffices |
/// | `GEMINI_API_KEY` or `GOOGLE_API_KEY`, `GEMINI_BASE_URL` | Gemini |
/// | `OLLAMA_HOST` | Ollama, such as `127.0.0.1:11434` |
///
/// Every provider of [`Vendor::all`] can be named in `CORAL_MODEL`; its key is looked for where the vendor's data
/// says. A model that is in the built-in [`Catalogue`](crate::Catalogue) brings its price along. Without any of these the [`OfflineModel`] answers. Nothing is sent yet: an endpoint that can't be
/// reached is an error of the first call.
///
/// # Errors
/// [`Invalid`](coral_core::ErrorKind::Invalid) if a provider is asked for and its key or its model is missing.
pub fn from_env() -> Result<Arc<dyn ChatModel>, Error> {
    from_vars(|name| std::env::var(name).ok())
}

/// The same with variables from elsewhere; empty ones count as not set.
///
/// ```
/// use coral_core::ChatModel;
///
/// let model = coral_llm::from_vars(|_| None)?;
/// assert!(model.info().offline);
/// let model = coral_llm::from_vars(|name| match name {
///     "CORAL_MODEL" => Some("ollama/some-model".into()),
///     "OLLAMA_HOST" => Some("127.0.0.1".into()),
///     _ => None,
/// })?;
/// assert_eq!(model.name(), "ollama/some-model");
/// # Ok::<(), coral_core::Error>(())
/// ```
///
/// # Errors
/// See [`from_env`].
pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Arc<dyn ChatModel>, Error> {
    let var = |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let asked = var("CORAL_MODEL");
    if asked.as_deref() == Some("offline") {
        return Ok(Arc::new(OfflineModel::new()));
    }
    if let Some((id, model)) = asked.as_deref().and_then(|asked| asked.split_once('/'))
        && let Ok(vendor) = Vendor::named(id)
    {
        return provider(vendor, Some(model), &var);
    }
    for id in FIRST {
        let vendor = Vendor::named(id)?;
        if is_configured(vendor, &var) {
            return provider(vendor, asked.as_deref(), &var);
        }
    }
    match asked {
        None => Ok(Arc::new(OfflineModel::new())),
        Some(model) => Err(Error::invalid(
            "CORAL_MODEL",
            format!("`{model}` names no provider, and no provider is configured"),
        )
        .with_help(
            "write `provider/model`, or set ANTHROPIC_API_KEY, OPENAI_API_KEY, OPENAI_BASE_URL or OLLAMA_HOST, \
             or set CORAL_MODEL to `offline`",
        )),
    }
}

fn is_configured(vendor: &Vendor, var: &dyn Fn(&str) -> Option<String>) -> bool {
    match vendor.id.as_str() {
        "openai" => var("OPENAI_API_KEY").is_some() || var("OPENAI_BASE_URL").is_some(),
        "ollama" => var("OLLAMA_HOST").is_some(),
        _ => vendor.key_env.iter().any(|name| var(name).is_some()),
    }
}

fn provider(
    vendor: &Vendor,
    model: Option<&str>,
    var: &dyn Fn(&str) -> Option<String>,
) -> Result<Arc<dyn ChatModel>, Error> {
    let mut builder = Provider::of(vendor);
    if let Some(model) = model {
        builder = builder.model(model);
    }
    let elsewhere = vendor.base_url_env.as_deref().and_then(var);
    // A server of one's own needs no key of the vendor.
    let key_optional = vendor.key_optional || vendor.key_env.is_empty() || elsewhere.is_some();
    if let Some(url) = elsewhere {
        builder = builder.base_url(url);
    }
    if vendor.id == "ollama"
        && let Some(host) = var("OLLAMA_HOST")
    {
        builder = builder.base_url(ollama_url(&host));
    }
    match vendor.key_env.iter().find_map(|name| var(name)) {
        Some(key) => builder = builder.key(key),
        None if key_optional => {}
        None => {
            return Err(Error::invalid(format!("model provider `{}`", vendor.id), "its key is not set")
                .with_help(format!("set {}", vendor.key_env.join(" or "))));
        }
    }
    Ok(Arc::new(builder.build()?))
}

/// The base URL that `OLLAMA_HOST` means: scheme and port may be left out, and `0.0.0.0` is where a server listens.
fn ollama_url(host: &str) -> String {
    let host = host.trim_end_matches('/');
    let (scheme, rest) = host.split_once("://").unwrap_or(("http", host));
    let rest = rest.replacen("0.0.0.0", "127.0.0.1", 1);
    let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let port = if has_port || scheme == "https" { "" } else { ":11434" };
    format!("{scheme}://{rest}{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "tls")]
    fn vars<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[cfg(feature = "tls")]
    #[track_caller]
    fn check(set: &[(&str, &str)], expected: &str) {
        let found = match from_vars(vars(set)) {
            Ok(model) => model.name().to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "{set:?}");
    }

    // Without HTTPS most of these providers can't be reached, and setting them up says so.
    #[cfg(feature = "tls")]
    #[test]
    fn the_environment_chooses_the_model() {
        check(&[], "offline");
        check(&[("ANTHROPIC_API_KEY", " ")], "offline");
        check(&[("CORAL_MODEL", "offline"), ("OPENAI_API_KEY", "k")], "offline");
        check(&[("ANTHROPIC_API_KEY", "k"), ("OPENAI_API_KEY", "k")], "anthropic/claude-sonnet-5-5");
        check(&[("OPENAI_API_KEY", "k"), ("CORAL_MODEL", "gpt-x")], "openai/gpt-x");
        check(&[("OPENAI_BASE_URL", "http://127.0.0.1:1/v1"), ("CORAL_MODEL", "m/n")], "openai/m/n");
        check(&[("OLLAMA_HOST", "127.0.0.1"), ("CORAL_MODEL", "qwen")], "ollama/qwen");
        check(
            &[("ANTHROPIC_API_KEY", "k"), ("OPENAI_API_KEY", "k"), ("CORAL_MODEL", "openai/x")],
            "openai/x",
        );
        check(
            &[("CORAL_MODEL", "groq/x")],
            "model provider `groq` is not valid: its key is not set; set GROQ_API_KEY",
        );
        check(
            &[("OLLAMA_HOST", "127.0.0.1")],
            "model provider `ollama` is not valid: no model is named; set CORAL_MODEL to `ollama/` and a model's name",
        );
        check(
            &[("OPENAI_BASE_URL", "localhost:80"), ("CORAL_MODEL", "x")],
            "model provider `openai` is not valid: base URL `localhost:80` must begin with `http://` or `https://`; \
             give a URL such as `https://host/v1`",
        );
        check(
            &[("CORAL_MODEL", "gpt-x")],
            "CORAL_MODEL is not valid: `gpt-x` names no provider, and no provider is configured; write \
             `provider/model`, or set ANTHROPIC_API_KEY, OPENAI_API_KEY, OPENAI_BASE_URL or OLLAMA_HOST, or set \
             CORAL_MODEL to `offline`",
        );
    }

    #[test]
    fn ollama_hosts_are_completed() {
        for (host, url) in [
            ("127.0.0.1", "http://127.0.0.1:11434"),
            ("0.0.0.0:9", "http://127.0.0.1:9"),
            ("https://ollama.example/", "https://ollama.example"),
        ] {
            assert_eq!(ollama_url(host), url);
        }
    }
}
