//! Tokens as Biscuits: signed blocks of Datalog, each of which can only add conditions.

mod shape;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use biscuit_auth::builder::{AuthorizerBuilder, BiscuitBuilder, BlockBuilder, Term};
use biscuit_auth::{Algorithm, AuthorizerLimits, Biscuit, KeyPair, PrivateKey, PublicKey};
use coral_core::{Caller, Error, hex};
use serde::{Deserialize, Serialize};

use self::shape::Conditions;
use super::{Token, TokenRight, TokenTerms, Tokens};
use crate::access::Access;
use crate::path::ProjectPath;

/// A longer token is not read.
const MAX: usize = 256 * 1_024;
/// Tokens that are kept as they were read; when there are more, all are forgotten.
const MAX_TOKENS: usize = 1_024;
/// How long the conditions of one token may be looked at: a holder can add any.
const MAX_TIME: Duration = Duration::from_millis(500);
/// Stands for no path in the place of directories.
const NOWHERE: &str = "-";

/// What each block says of itself, signed with it.
#[derive(Serialize, Deserialize)]
struct Label {
    holder: String,
    of: String,
    run: String,
    #[serde(default)]
    from_ms: u64,
    until_ms: u64,
}

/// A token that was read: its signatures are good.
struct Read {
    biscuit: Biscuit,
    labels: Vec<Label>,
    /// The names of its blocks, by which it can be revoked.
    ids: Vec<String>,
    /// Its conditions, where all have the shape of those made here.
    conditions: Option<Conditions>,
}

impl Read {
    fn holder(&self) -> &str {
        self.labels.last().map(|label| label.holder.as_str()).unwrap_or_default()
    }

    fn until_ms(&self) -> u64 {
        self.labels.iter().map(|label| label.until_ms).min().unwrap_or(0)
    }
}

/// [`Tokens`] as [Biscuits](https://www.biscuitsec.org): a chain of blocks, each signed with a key
/// that the block before made for it. Whoever holds a token can add a block, nobody can take one
/// away.
///
/// ```
/// use coral_core::Caller;
/// use coral_mcp::{Access, BiscuitTokens, Operation, TokenRight, TokenTerms, Tokens};
///
/// let tokens = BiscuitTokens::generate();
/// let (parent, child) = (Caller::agent("backend_developer"), Caller::agent("qa_testing"));
/// let terms = |of: &str, path: &str| TokenTerms {
///     of: of.to_owned(),
///     rights: vec![TokenRight { paths: vec![path.parse().unwrap()], ..TokenRight::everything() }],
///     from_ms: 0,
///     until_ms: 60_000,
/// };
/// let token = tokens.issue(&parent, &terms("backend_developer", "src"))?;
/// // The child's own rights are wider, and gain it nothing.
/// let token = tokens.narrow(&token, &child, &terms("qa_testing", "/project"))?;
///
/// // Checked elsewhere, with the public key alone.
/// let elsewhere = BiscuitTokens::verifier(&tokens.public_key())?;
/// let check = |path: &str, now_ms| {
///     let paths = [path.parse().unwrap()];
///     let access = Access::new(&child, "filesystem", "read_file", Operation::Read);
///     elsewhere.check(&token, &access.on(&paths).at_ms(now_ms))
/// };
/// assert!(check("src/main.rs", 0).is_ok());
/// assert!(check("docs/plan.md", 0).is_err());
/// assert!(check("src/main.rs", 60_000).is_err());
/// # Ok::<(), coral_core::Error>(())
/// ```
pub struct BiscuitTokens {
    /// The key that signs first blocks; none where tokens are only checked and narrowed.
    root: Option<KeyPair>,
    public: PublicKey,
    known: Mutex<HashMap<Token, Arc<Read>>>,
    /// The names of blocks that do not count any more, nor what was made from them.
    revoked: Mutex<BTreeSet<String>>,
}

impl fmt::Debug for BiscuitTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BiscuitTokens({})", self.public_key())
    }
}

fn failed(error: impl fmt::Display) -> Error {
    Error::invalid("capability token", error.to_string())
}

impl BiscuitTokens {
    /// A new key from the system's randomness: its tokens end with this process.
    pub fn generate() -> Self {
        let root = KeyPair::new();
        BiscuitTokens::with(root.public(), Some(root))
    }

    /// The key of another process, to check and narrow its tokens.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for what is not a key.
    pub fn verifier(public_key: &str) -> Result<Self, Error> {
        Ok(BiscuitTokens::with(public_key.parse().map_err(failed)?, None))
    }

    fn with(public: PublicKey, root: Option<KeyPair>) -> Self {
        BiscuitTokens { root, public, known: Mutex::default(), revoked: Mutex::default() }
    }

    /// The key in a file, which is made the first time, readable by its owner alone: its tokens outlive
    /// this process.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) or [`Invalid`](coral_core::ErrorKind::Invalid).
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = crate::text::secret_file(path, || KeyPair::new().private().to_bytes_hex())
            .map_err(|error| Error::storage("opening the token key", error).at(path.display().to_string()))?;
        let key = PrivateKey::from_bytes_hex(text.trim(), Algorithm::Ed25519).map_err(|_| {
            Error::invalid("token key", "it is not 64 hexadecimal digits").at(path.display().to_string())
        })?;
        let root = KeyPair::from(&key);
        Ok(BiscuitTokens::with(root.public(), Some(root)))
    }

    /// The name by which a token is revoked, with all that was or will be made from it. Keep the names of
    /// those that were, and [`revoke`](Self::revoke) them again after a restart.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for a token that is not signed.
    pub fn revocation_id(&self, token: &Token) -> Result<String, Error> {
        Ok(self.read(token).map_err(failed)?.ids.last().cloned().unwrap_or_default())
    }

    /// From now on refuses the token of this name and what was made from it.
    pub fn revoke(&self, id: impl Into<String>) {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner).insert(id.into());
    }

    /// The key that checks the tokens, such as `ed25519/…`. It is no secret.
    pub fn public_key(&self) -> String {
        self.public.to_string()
    }

    fn read(&self, token: &Token) -> Result<Arc<Read>, String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = known.get(token) {
            return Ok(Arc::clone(read));
        }
        if token.text.len() > MAX {
            return Err(format!("the token is longer than {MAX} bytes"));
        }
        let biscuit = Biscuit::from_base64(token.text.as_ref(), self.public)
            .map_err(|error| format!("the token is not one of this key: {error}"))?;
        let label = |context: Option<String>| serde_json::from_str(context.as_deref()?).ok();
        let labels = biscuit.context().into_iter().map(label).collect::<Option<Vec<Label>>>();
        let labels = labels.ok_or("a block of the token does not say whose it is")?;
        let ids = biscuit.revocation_identifiers().iter().map(|id| hex(id)).collect();
        let conditions = shape::read(&biscuit);
        let read = Arc::new(Read { biscuit, labels, ids, conditions });
        if known.len() >= MAX_TOKENS {
            known.clear();
        }
        known.insert(token.clone(), Arc::clone(&read));
        Ok(read)
    }
}

fn text(text: &str) -> Term {
    Term::Str(text.to_owned())
}

fn set<'a>(texts: impl Iterator<Item = &'a str>) -> Term {
    Term::Set(texts.map(text).collect::<BTreeSet<Term>>())
}

/// How the name of an operation is spelled.
fn named(name: &str) -> String {
    format!("named {name}")
}

/// A place and all above it.
fn dirs(whole: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(whole), |dir| {
        let dir: &str = dir;
        dir.rsplit_once('/').map(|(above, _)| above).filter(|above| !above.is_empty())
    })
}

fn number(ms: u64) -> Term {
    Term::Integer(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// The conditions of one block: code with holes, and what stands in them, so that no name can be
/// taken for code.
fn conditions(holder: &Caller, terms: &TokenTerms) -> (String, HashMap<String, Term>) {
    let mut holes =
        HashMap::from([("run".to_owned(), text(&holder.run)), ("until".to_owned(), number(terms.until_ms))]);
    let mut alternatives = Vec::new();
    for (i, TokenRight { servers, operations, named, paths }) in terms.rights.iter().enumerate() {
        let mut alternative = format!("operation($o), {{o{i}}}.contains($o), dir($d), {{d{i}}}.contains($d)");
        if !servers.iter().any(|server| server == "*") {
            alternative.push_str(&format!(", server($s), {{s{i}}}.contains($s)"));
            holes.insert(format!("s{i}"), set(servers.iter().map(String::as_str)));
        }
        // A class can't be taken for a name: they are spelled apart.
        let names: Vec<String> = named.iter().map(|name| self::named(name)).collect();
        let classes = operations.iter().map(|operation| operation.as_str());
        holes.insert(format!("o{i}"), set(classes.chain(names.iter().map(String::as_str))));
        let dirs: Vec<String> = paths.iter().map(ToString::to_string).collect();
        holes.insert(format!("d{i}"), set(dirs.iter().map(String::as_str).chain([NOWHERE])));
        alternatives.push(alternative);
    }
    let rights = if alternatives.is_empty() { "false".to_owned() } else { alternatives.join(" or ") };
    holes.insert("from".to_owned(), number(terms.from_ms));
    let code = format!(
        "check if run({{run}}); check if now($n), $n >= {{from}}, $n < {{until}}; check if {rights};"
    );
    (code, holes)
}

fn label(holder: &Caller, terms: &TokenTerms) -> Result<String, Error> {
    let label = Label {
        holder: holder.agent.to_string(),
        of: terms.of.clone(),
        run: holder.run.to_string(),
        from_ms: terms.from_ms,
        until_ms: terms.until_ms,
    };
    serde_json::to_string(&label).map_err(failed)
}

impl Tokens for BiscuitTokens {
    fn issue(&self, holder: &Caller, terms: &TokenTerms) -> Result<Token, Error> {
        let root = self.root.as_ref().ok_or_else(|| {
            failed("there is no key to sign with").with_help("issue tokens where the key was made")
        })?;
        let (code, holes) = conditions(holder, terms);
        let biscuit = BiscuitBuilder::new()
            .code_with_params(code, holes, HashMap::new())
            .map_err(failed)?
            .context(label(holder, terms)?)
            .build(root)
            .map_err(failed)?;
        Ok(Token::new(biscuit.to_base64().map_err(failed)?))
    }

    fn narrow(&self, token: &Token, holder: &Caller, terms: &TokenTerms) -> Result<Token, Error> {
        let read = self.read(token).map_err(failed)?;
        let (code, holes) = conditions(holder, terms);
        let block = BlockBuilder::new()
            .code_with_params(code, holes, HashMap::new())
            .map_err(failed)?
            .context(label(holder, terms)?);
        let biscuit = read.biscuit.append(block).map_err(failed)?;
        Ok(Token::new(biscuit.to_base64().map_err(failed)?))
    }

    fn holds_rights_of(&self, token: &Token) -> Result<Vec<String>, Error> {
        let read = self.read(token).map_err(failed)?;
        Ok(read.labels.iter().map(|label| label.of.clone()).collect())
    }

    fn holder(&self, token: &Token) -> Result<String, Error> {
        Ok(self.read(token).map_err(failed)?.holder().to_owned())
    }

    fn until_ms(&self, token: &Token) -> Result<u64, Error> {
        Ok(self.read(token).map_err(failed)?.until_ms())
    }

    fn check(&self, token: &Token, access: &Access<'_>) -> Result<(), String> {
        let read = self.read(token)?;
        let holder = read.holder();
        if holder != access.caller.agent.as_ref() {
            return Err(format!("the token is in the hand of `{holder}`"));
        }
        let until_ms = read.until_ms();
        if access.now_ms >= until_ms {
            return Err(format!("the token ended at {}", coral_core::rfc3339(until_ms)));
        }
        let from_ms = read.labels.iter().map(|label| label.from_ms).max().unwrap_or(0);
        if access.now_ms < from_ms {
            return Err(format!("the token does not hold before {}", coral_core::rfc3339(from_ms)));
        }
        {
            let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
            if !revoked.is_empty() && read.ids.iter().any(|id| revoked.contains(id)) {
                return Err("the token was revoked".to_owned());
            }
        }
        for path in crate::permissions::places(access) {
            let allowed = match &read.conditions {
                Some(conditions) => conditions.allow(access, path),
                None => evaluated(&read.biscuit, access, path)?,
            };
            if !allowed {
                return Err(match path {
                    Some(path) => format!("the token does not allow `{}` on `{path}`", access.operation),
                    None => format!("the token does not allow `{}` at `{}`", access.operation, access.server),
                });
            }
        }
        Ok(())
    }
}

/// Whether a token allows the call as far as it concerns `path`, by the conditions of whatever shape its
/// holders gave it.
fn evaluated(biscuit: &Biscuit, access: &Access<'_>, path: Option<&ProjectPath>) -> Result<bool, String> {
    let mut code = "run({run}); now({now}); server({server}); operation({class}); ".to_owned();
    let mut holes = HashMap::from([
        ("run".to_owned(), text(&access.caller.run)),
        ("now".to_owned(), number(access.now_ms)),
        ("server".to_owned(), text(access.server)),
        ("class".to_owned(), text(access.operation.as_str())),
    ]);
    if let Some(name) = access.named.filter(|_| !access.raised) {
        code.push_str("operation({named}); ");
        holes.insert("named".to_owned(), text(&named(name)));
    }
    let whole = path.map_or_else(|| NOWHERE.to_owned(), ToString::to_string);
    for (i, dir) in dirs(&whole).enumerate() {
        code.push_str(&format!("dir({{d{i}}}); "));
        holes.insert(format!("d{i}"), text(dir));
    }
    code.push_str("allow if true;");
    let mut authorizer = AuthorizerBuilder::new()
        .set_limits(AuthorizerLimits { max_time: MAX_TIME, ..AuthorizerLimits::default() })
        .code_with_params(code, holes, HashMap::new())
        .and_then(|builder| builder.build(biscuit))
        .map_err(|error| error.to_string())?;
    Ok(authorizer.authorize().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::access::Operation;

    const DIRS: [&str; 4] = ["", "a", "a/b", "c d\u{e9}"];

    fn terms() -> impl Strategy<Value = TokenTerms> {
        let right = (
            proptest::sample::subsequence(vec!["s", "t", "*"], 1..=2),
            proptest::sample::subsequence(Operation::ALL.to_vec(), 0..=2),
            proptest::sample::subsequence(vec!["push", "read"], 0..=1),
            proptest::sample::subsequence(DIRS.to_vec(), 0..=2),
        );
        let right = right.prop_map(|(servers, operations, named, paths)| TokenRight {
            servers: servers.into_iter().map(str::to_owned).collect(),
            operations,
            named: named.into_iter().map(str::to_owned).collect(),
            paths: paths.into_iter().map(|path| path.parse().unwrap()).collect(),
        });
        (prop::collection::vec(right, 0..3), 0..3_u64, 1..5_u64).prop_map(|(rights, from_ms, until_ms)| {
            TokenTerms { of: "x".to_owned(), rights, from_ms, until_ms }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        /// What is read back decides as the engine does.
        #[test]
        fn the_shape_says_what_the_code_does(blocks in prop::collection::vec(terms(), 1..4)) {
            let tokens = BiscuitTokens::generate();
            let caller = Caller::agent("x");
            let (first, more) = blocks.split_first().unwrap();
            let mut token = tokens.issue(&caller, first).unwrap();
            for terms in more {
                token = tokens.narrow(&token, &caller, terms).unwrap();
            }
            let read = tokens.read(&token).unwrap();
            let conditions = read.conditions.as_ref().unwrap();
            for path in ["", "a", "a/b/c", "ab", "c d\u{e9}/x"].map(|path| path.parse().unwrap()) {
                for path in [Some(&path), None] {
                    for (server, operation, named, raised, now_ms) in [
                        ("s", Operation::Read, None, false, 0),
                        ("t", Operation::Write, Some("push"), false, 2),
                        ("u", Operation::Execute, Some("push"), true, 3),
                        ("s", Operation::Execute, Some("read"), false, 2),
                    ] {
                        let access = Access { named, raised, now_ms, ..Access::new(&caller, server, "t", operation) };
                        let here = conditions.allow(&access, path);
                        prop_assert_eq!(here, evaluated(&read.biscuit, &access, path).unwrap(), "{:?} {:?}", access, path);
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_holder_adds_by_hand_is_left_to_the_engine() {
        let tokens = BiscuitTokens::generate();
        let caller = Caller::agent("x");
        let terms = TokenTerms {
            of: "x".to_owned(),
            rights: vec![TokenRight::everything()],
            from_ms: 0,
            until_ms: 9,
        };
        let read = tokens.read(&tokens.issue(&caller, &terms).unwrap()).unwrap();
        assert!(read.conditions.is_some());
        for code in [
            "check all operation($o), {\"read\"}.contains($o);",
            "reject if operation(\"write\");",
            "check if run(\"\") trusting previous;",
            "check if operation($o), dir($o);",
            "check if operation($o), {\"read\"}.contains($o), {\"write\"}.contains($o);",
            "operation(\"write\");",
            "check if run(\"\"); check if now($n), $n >= 0, $n < 9; check if true;",
        ] {
            let block = BlockBuilder::new().code(code).unwrap().context(label(&caller, &terms).unwrap());
            let more = Token::new(read.biscuit.append(block).unwrap().to_base64().unwrap());
            assert!(tokens.read(&more).unwrap().conditions.is_none(), "{code}");
        }
    }
}
