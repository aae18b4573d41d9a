//! What looks like a secret.

use serde_json::Value;

/// A key's beginning, how many characters follow at least, and what it is.
const PREFIXES: [(&str, usize, &str); 16] = [
    ("AKIA", 16, "an AWS access key"),
    ("ASIA", 16, "an AWS access key"),
    ("ghp_", 36, "a GitHub token"),
    ("gho_", 36, "a GitHub token"),
    ("ghs_", 36, "a GitHub token"),
    ("ghu_", 36, "a GitHub token"),
    ("github_pat_", 40, "a GitHub token"),
    ("glpat-", 20, "a GitLab token"),
    ("sk-ant-", 32, "an Anthropic key"),
    ("sk-proj-", 32, "an OpenAI key"),
    ("xoxb-", 24, "a Slack token"),
    ("xoxp-", 24, "a Slack token"),
    ("sk_live_", 24, "a Stripe key"),
    ("rk_live_", 24, "a Stripe key"),
    ("AIza", 35, "a Google key"),
    ("npm_", 36, "an npm token"),
];

/// What kind of secret `text` holds in the clear, if it seems to hold one.
pub(crate) fn find(text: &str) -> Option<&'static str> {
    let private_key = text.match_indices("-----BEGIN ").any(|(at, _)| {
        text.get(at..).and_then(|rest| rest.lines().next()).is_some_and(|l| l.contains("PRIVATE KEY-----"))
    });
    if private_key {
        return Some("a private key");
    }
    PREFIXES.iter().find(|(prefix, length, _)| holds(text, prefix, *length)).map(|(_, _, what)| *what)
}

fn holds(text: &str, prefix: &str, length: usize) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    text.match_indices(prefix).any(|(at, _)| {
        let begins = text.get(..at).and_then(|t| t.chars().next_back()).is_none_or(|c| !is_part(c));
        let tail = text.get(at + prefix.len()..).unwrap_or_default();
        let key: Vec<char> = tail.chars().take_while(|c| is_part(*c)).take(length).collect();
        // A placeholder such as `ghp_xxxxxxxx` repeats itself; a key does not.
        let distinct = key.iter().collect::<std::collections::BTreeSet<_>>().len();
        begins && key.len() >= length && distinct >= 8
    })
}

/// `text`, unless it seems to hold a secret: then what kind of secret it held.
pub(crate) fn redacted(text: &str) -> String {
    match find(text) {
        None => text.to_owned(),
        Some(what) => format!("[a text that held {what}]"),
    }
}

/// As [`find`], in every text of a value.
pub(crate) fn find_in(value: &Value) -> Option<&'static str> {
    match value {
        Value::String(text) => find(text),
        Value::Array(items) => items.iter().find_map(find_in),
        Value::Object(map) => map.iter().find_map(|(key, value)| find(key).or_else(|| find_in(value))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_and_placeholders_are_not() {
        // Put together here, so that scanners do not take this file for a leak.
        let token = format!("token: {}{}", "ghp_", "a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6q7r8");
        assert_eq!(find(&token), Some("a GitHub token"));
        let key = format!("-----BEGIN {} PRIVATE KEY-----\nMIIE", "RSA");
        assert_eq!(find(&key), Some("a private key"));
        for harmless in [
            "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "AKIA",
            "the sk-ant-... key",
            "-----BEGIN PUBLIC KEY-----",
            "-----BEGIN CERTIFICATE-----\nPRIVATE KEY-----",
            "riskAKIAAKIAIOSFODNN7EXAMPLE1",
        ] {
            assert_eq!(find(harmless), None, "{harmless}");
        }
    }
}
