//! Capability tokens: rights in the hand of one who acts, which only shrink.

#[cfg(feature = "tokens")]
mod biscuit;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use coral_core::{Caller, Error, hex};
use sha2::{Digest, Sha256};

use crate::access::{Access, Operation};
use crate::path::ProjectPath;

#[cfg(feature = "tokens")]
pub use self::biscuit::BiscuitTokens;

/// A token as it is handed on: text that is a secret of whoever holds it.
#[derive(Clone)]
pub struct Token {
    text: Arc<str>,
    /// Its hash, by which it is told from others.
    hash: [u8; 32],
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Token {}

impl Hash for Token {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl Token {
    /// A token that came from elsewhere.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        let hash = Sha256::digest(text.as_bytes()).into();
        Token { text, hash }
    }

    /// The token as text, to be handed to its holder.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// A name for it that gives nothing away: the beginning of its hash. The audit calls it by that.
    pub fn id(&self) -> String {
        let mut begin = hex(&self.hash);
        begin.truncate(16);
        begin
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Servers × operations × paths; what a token holds of a grant.
///
/// What a grant says beside these (tools, arguments, hours, …) is left to the permissions: a call
/// needs both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRight {
    /// Names of servers; `*` for all.
    pub servers: Vec<String>,
    /// Classes of operations.
    pub operations: Vec<Operation>,
    /// Names of operations.
    pub named: Vec<String>,
    /// Directories of the project.
    pub paths: Vec<ProjectPath>,
}

impl TokenRight {
    /// Every call of every server.
    pub fn everything() -> Self {
        TokenRight {
            servers: vec!["*".to_owned()],
            operations: Operation::ALL.to_vec(),
            named: Vec::new(),
            paths: vec![ProjectPath::root()],
        }
    }
}

/// What a token is to allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenTerms {
    /// Whose rights these are.
    pub of: String,
    /// The rights; a call needs one of them. None allow nothing.
    pub rights: Vec<TokenRight>,
    /// When the token begins to hold, in milliseconds since the Unix epoch.
    pub from_ms: u64,
    /// When the token ends.
    pub until_ms: u64,
}

/// Makes, narrows and checks tokens.
///
/// # Duties of an implementation
/// - A narrowed token allows what the token before did *and* the new terms do, never more, whoever
///   narrowed it and whatever was added.
/// - Narrowing and checking need no secret and no server.
/// - A token that can't be read, is not signed, does not hold yet or any more, was revoked, is of
///   another run or in the hand of another agent is refused.
pub trait Tokens: Send + Sync {
    /// A first token, for what `holder` does in its run.
    ///
    /// # Errors
    /// Where there is no key to sign with.
    fn issue(&self, holder: &Caller, terms: &TokenTerms) -> Result<Token, Error>;

    /// A token for `holder` that allows what `token` does, within `terms`.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for a token that is not signed.
    fn narrow(&self, token: &Token, holder: &Caller, terms: &TokenTerms) -> Result<Token, Error>;

    /// Those whose rights the token holds, in the order in which they were added.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for a token that is not signed.
    fn holds_rights_of(&self, token: &Token) -> Result<Vec<String>, Error>;

    /// The agent in whose hand the token is.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for a token that is not signed.
    fn holder(&self, token: &Token) -> Result<String, Error>;

    /// When the token ends, in milliseconds since the Unix epoch: no call that it allows goes on after
    /// that.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for a token that is not signed.
    fn until_ms(&self, token: &Token) -> Result<u64, Error>;

    /// Whether `token` allows the call.
    ///
    /// # Errors
    /// Why it does not.
    fn check(&self, token: &Token, access: &Access<'_>) -> Result<(), String>;
}
