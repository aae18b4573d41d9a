//! What looks like a secret.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
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

/// What a key in a file begins with, a JSON object in base64, and the login of an address.
const PRIVATE_KEY: &str = "-----BEGIN ";
const JSON_OBJECT: &str = "eyJ";
const LOGIN: &str = "://";

/// Names that passwords go by, in lower case.
const PASSWORDS: [&str; 10] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "api_key",
    "apikey",
    "api-key",
    "access_token",
    "auth_token",
    "access_key",
];

/// What no text lacks that [`find`] finds a secret in. Nearly all texts have nothing of it, which is found out at once.
static MARKS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    let marks = [PRIVATE_KEY, JSON_OBJECT, LOGIN].into_iter();
    let marks = marks.chain(PREFIXES.iter().map(|(prefix, ..)| *prefix)).chain(PASSWORDS);
    AhoCorasick::builder().ascii_case_insensitive(true).build(marks).ok()
});

/// The secrets that a sandbox holds itself, and what others look like.
#[derive(Default)]
pub(crate) struct Secrets(Vec<String>);

impl Secrets {
    /// With these values; short ones would be found in words that merely look like them.
    pub(crate) fn of(values: impl IntoIterator<Item = String>) -> Self {
        Secrets(values.into_iter().filter(|value| value.len() >= 6).collect())
    }

    /// What kind of secret `text` holds in the clear, if it seems to hold one.
    pub(crate) fn find(&self, text: &str) -> Option<&'static str> {
        if self.holds_own(text) {
            return Some("a secret of one of the servers");
        }
        find(text)
    }

    fn holds_own(&self, text: &str) -> bool {
        self.0.iter().any(|value| text.contains(value.as_str()))
    }

    /// As [`find`](Self::find), in every text of a value.
    pub(crate) fn find_in(&self, value: &Value) -> Option<&'static str> {
        match value {
            Value::String(text) => self.find(text),
            Value::Array(items) => items.iter().find_map(|item| self.find_in(item)),
            Value::Object(map) => {
                map.iter().find_map(|(key, value)| self.find(key).or_else(|| self.find_in(value)))
            }
            _ => None,
        }
    }

    /// `text`, unless it seems to hold a secret: then what kind of secret it held.
    pub(crate) fn redacted(&self, text: String) -> String {
        match self.find(&text) {
            None => text,
            Some(what) => format!("[a text that held {what}]"),
        }
    }

    /// The same for a name of parts, each of which may hold one.
    pub(crate) fn redacted_name(&self, name: String) -> String {
        if !self.holds_own(&name) && !is_marked(&name) {
            return name;
        }
        let parts: Vec<String> = name.split("__").map(|part| self.redacted(part.to_owned())).collect();
        self.redacted(parts.join("__"))
    }
}

/// Whether `text` has a mark, without which it holds no secret.
fn is_marked(text: &str) -> bool {
    MARKS.as_ref().is_none_or(|marks| marks.is_match(text))
}

fn find(text: &str) -> Option<&'static str> {
    if !is_marked(text) {
        return None;
    }
    let private_key = text.match_indices(PRIVATE_KEY).any(|(at, _)| {
        text.get(at..).and_then(|rest| rest.lines().next()).is_some_and(|l| l.contains("PRIVATE KEY-----"))
    });
    if private_key {
        return Some("a private key");
    }
    if holds_jwt(text) {
        return Some("a signed web token");
    }
    if let Some((_, _, what)) = PREFIXES.iter().find(|(prefix, length, _)| holds(text, prefix, *length)) {
        return Some(what);
    }
    if holds_login(text) {
        return Some("a password in an address");
    }
    holds_assignment(text).then_some("a password")
}

/// `eyJ….eyJ….…`: three parts, of which the first two are JSON objects.
fn holds_jwt(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    text.match_indices(JSON_OBJECT).any(|(at, _)| {
        let mut parts = text.get(at..).unwrap_or_default().splitn(3, '.');
        let (Some(head), Some(body), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            return false;
        };
        let signature = rest.chars().take_while(|c| is_part(*c)).count();
        let whole = |part: &str| part.len() >= 10 && part.chars().all(is_part);
        whole(head) && body.starts_with(JSON_OBJECT) && whole(body) && signature >= 20
    })
}

/// Whether a value could be a password, and not a name, a call or a place for one.
fn is_password(value: &str) -> bool {
    let distinct = value.chars().collect::<std::collections::BTreeSet<_>>().len();
    let lower = value.to_lowercase();
    value.len() >= 8
        && distinct >= 6
        && value.chars().any(|c| c.is_ascii_alphabetic())
        && value.chars().any(|c| !c.is_ascii_alphabetic() && !matches!(c, '_' | '-' | '.' | ' '))
        && !value.contains(['(', '<', '{', '[', '$'])
        && !["example", "changeme", "placeholder", "redacted", "your", "xxx"]
            .iter()
            .any(|w| lower.contains(w))
}

/// `password = "…"` and its like.
fn holds_assignment(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    PASSWORDS.iter().any(|name| {
        lower.match_indices(name).any(|(at, _)| {
            let rest = text.get(at + name.len()..).unwrap_or_default();
            let rest = rest.trim_start_matches(['"', '\'', ' ', '\t']);
            let Some(value) = rest.strip_prefix([':', '=']) else { return false };
            // `==` compares, and `:=` assigns.
            if value.starts_with('=') && rest.starts_with('=') {
                return false;
            }
            let value = value.trim_start_matches(['=', ' ', '\t']);
            match value.strip_prefix(['"', '\'']) {
                Some(quoted) => quoted.split(['"', '\'', '\n']).next().is_some_and(is_password),
                None => value.split([' ', '\t', '\n', '\r', ',', ';', '#']).next().is_some_and(is_password),
            }
        })
    })
}

/// `scheme://name:password@host`.
fn holds_login(text: &str) -> bool {
    text.match_indices(LOGIN).any(|(at, mark)| {
        let rest = text.get(at + mark.len()..).unwrap_or_default();
        let login = rest.split(['/', ' ', '"', '\'', '\n']).next().and_then(|all| all.rsplit_once('@'));
        login.and_then(|(login, _)| login.split_once(':')).is_some_and(|(_, password)| is_password(password))
    })
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
        let jwt =
            format!("{}.{}.{}", "eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTY3ODkwIn0", "a1B2".repeat(8));
        assert_eq!(find(&format!("Bearer {jwt}")), Some("a signed web token"));
        for assigned in [
            "password = \"Tr0ub4dor&3\"",
            "DB_PASSWORD=Tr0ub4dor3",
            "\"secret\": \"9f8e7d6c5b4a\"",
            "api_key: 9f8e7d6c5b4a",
        ] {
            assert_eq!(find(assigned), Some("a password"), "{assigned}");
        }
        assert_eq!(find("postgres://app:Tr0ub4dor3@db/x"), Some("a password in an address"));
        let known = Secrets::of(["correct horse".to_owned(), "x".to_owned()]);
        assert_eq!(known.find("a correct horse"), Some("a secret of one of the servers"));
        assert_eq!(known.find("x"), None);
        for harmless in [
            "password = get_password()",
            "let password = \"\";",
            "password: ${DB_PASSWORD}",
            "if password == \"Tr0ub4dor&3x\" {",
            "secret: your-secret-1",
            "the password: at least 8 characters",
            "postgres://app:${PASSWORD}@db/x",
            "http://example.com:8080/a@b",
            "eyJhbGciOiJIUzI1NiJ9",
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
