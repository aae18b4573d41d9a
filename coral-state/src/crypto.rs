//! Encryption at rest: master keys wrap data keys, data keys seal what is kept.
//!
//! Each project has data keys of its own, kept wrapped by a master key that lives elsewhere.
//! Changing the master key wraps the data keys anew and touches nothing that they sealed;
//! destroying a project's data keys makes all that they sealed unreadable, wherever copies of it
//! are, while the journal stays whole.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use aes_gcm_siv::aead::{Aead, AeadInOut, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use coral_core::{Error, hex};
use zeroize::Zeroizing;

const NONCE: usize = 12;
const TAG: usize = 16;

type Secret = Zeroizing<[u8; 32]>;

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::storage("make a key", format!("the system gives no random numbers: {e}")))?;
    Ok(bytes)
}

/// Random bytes asked for at once: a system call costs as much as sealing an event.
const DRAWN: usize = 64 * NONCE;

/// A nonce that nobody has used: random, and not secret.
fn nonce() -> Result<[u8; NONCE], Error> {
    thread_local! {
        static NONCES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    NONCES.with_borrow_mut(|left| {
        if left.is_empty() {
            *left = random::<DRAWN>()?.to_vec();
        }
        let mut nonce = [0; NONCE];
        let rest = left.len().saturating_sub(NONCE);
        nonce.copy_from_slice(left.get(rest..).unwrap_or_default());
        left.truncate(rest);
        Ok(nonce)
    })
}

fn cipher(secret: &Secret) -> Aes256GcmSiv {
    Aes256GcmSiv::new((&**secret).into())
}

/// A key that wraps the keys of projects, 32 bytes that never lie beside what they protect.
///
/// ```
/// use coral_state::MasterKey;
///
/// let key = MasterKey::generate()?;
/// let again = MasterKey::from_hex(&key.to_hex())?;
/// assert_eq!(key.id(), again.id());
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone)]
pub struct MasterKey {
    id: Arc<str>,
    secret: Secret,
}

impl MasterKey {
    /// A new key, drawn by the system.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the system gives no random numbers.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self::of(Zeroizing::new(random()?)))
    }

    fn of(secret: Secret) -> Self {
        // Names the key without telling anything of it.
        let mac = hmac_sha256::HMAC::mac(b"coral master key id", &secret[..]);
        let id = short(&mac);
        MasterKey { id: id.into(), secret }
    }

    /// The key written as 64 hexadecimal digits; space around them does not count.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if it is anything else. The error does not
    /// repeat the text.
    pub fn from_hex(text: &str) -> Result<Self, Error> {
        let bad = || {
            Error::invalid("master key", "it is not 64 hexadecimal digits")
                .with_help("make one with `openssl rand -hex 32`")
        };
        let mut secret = Zeroizing::new([0; 32]);
        let (pairs, rest) = text.trim().as_bytes().as_chunks::<2>();
        if pairs.len() != secret.len() || !rest.is_empty() {
            return Err(bad());
        }
        for (byte, [high, low]) in secret.iter_mut().zip(pairs) {
            let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            *byte = digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low).ok_or_else(bad)?;
        }
        Ok(Self::of(secret))
    }

    /// The key in an environment variable, as 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if it is not set or not a key.
    pub fn from_env(variable: &str) -> Result<Self, Error> {
        let place = || format!("environment variable `{variable}`");
        let text = std::env::var(variable)
            .map(Zeroizing::new)
            .map_err(|_| Error::invalid("master key", "there is none").at(place()))?;
        Self::from_hex(&text).map_err(|e| e.at(place()))
    }

    /// The key in a file, as 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if it can't be read or is not a key.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let place = || path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map(Zeroizing::new)
            .map_err(|e| Error::invalid("master key", format!("it can't be read: {e}")).at(place()))?;
        Self::from_hex(&text).map_err(|e| e.at(place()))
    }

    /// The key that a program writes to its standard output, as 64 hexadecimal digits: for key
    /// managers with a command line. Blocks until the program ends.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if it can't be run, fails or writes no key.
    pub fn from_command(program: &str, arguments: &[&str]) -> Result<Self, Error> {
        let place = || format!("command `{program}`");
        let output = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| Error::invalid("master key", format!("it can't be run: {e}")).at(place()))?;
        let text = Zeroizing::new(output.stdout);
        if !output.status.success() {
            return Err(Error::invalid("master key", format!("it ended with {}", output.status)).at(place()));
        }
        Self::from_hex(std::str::from_utf8(&text).unwrap_or_default()).map_err(|e| e.at(place()))
    }

    /// The key as 64 hexadecimal digits, for keeping it.
    pub fn to_hex(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(64));
        for nibble in self.secret.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
            text.extend(char::from_digit(nibble.into(), 16));
        }
        text
    }

    /// What the key is known by: the same for the same key, and tells nothing of it.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn wrap(&self, scope: &str, secret: &Secret) -> Result<Vec<u8>, Error> {
        let nonce = random::<NONCE>()?;
        let mut wrapped = nonce.to_vec();
        let payload = Payload { msg: &secret[..], aad: &about_key(scope) };
        wrapped.extend(cipher(&self.secret).encrypt(&Nonce::from(nonce), payload).map_err(|_| unsealable())?);
        Ok(wrapped)
    }

    fn unwrap(&self, scope: &str, wrapped: &[u8]) -> Option<Secret> {
        let (nonce, sealed) = wrapped.split_first_chunk::<NONCE>()?;
        let payload = Payload { msg: sealed, aad: &about_key(scope) };
        let plain = Zeroizing::new(cipher(&self.secret).decrypt(&Nonce::from(*nonce), payload).ok()?);
        Some(Zeroizing::new(plain[..].try_into().ok()?))
    }

    fn cache_keys(&self) -> CacheKeys {
        let derived = |what: &str| Zeroizing::new(hmac_sha256::HMAC::mac(what, &self.secret[..]));
        CacheKeys {
            names: derived("coral cache names"),
            values: DataKey { id: 0, cipher: cipher(&derived("coral cache values")) },
        }
    }

    /// What makes pseudonyms and turns them back.
    #[cfg(feature = "privacy")]
    pub(crate) fn pseudonyms(&self) -> Pseudonyms {
        let derived = Zeroizing::new(hmac_sha256::HMAC::mac(b"coral pseudonyms", &self.secret[..]));
        Pseudonyms(Arc::new(cipher(&derived)))
    }

    /// Signs `text`, so that who holds this key can tell that it was written by one who did.
    pub(crate) fn sign(&self, text: &str) -> [u8; 32] {
        hmac_sha256::HMAC::mac(text, hmac_sha256::HMAC::mac(b"coral tombstone", &self.secret[..]))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Deterministic encryption: the same text gives the same pseudonym, and nothing else is to be
/// learned from it. The construction allows for one nonce used always, at just that price.
#[cfg(feature = "privacy")]
#[derive(Clone)]
pub(crate) struct Pseudonyms(Arc<Aes256GcmSiv>);

#[cfg(feature = "privacy")]
impl Pseudonyms {
    /// The pseudonym of `text`, in hexadecimal.
    pub(crate) fn make(&self, kind: &str, text: &str) -> Option<String> {
        let payload = Payload { msg: text.as_bytes(), aad: kind.as_bytes() };
        let sealed = self.0.encrypt(&Nonce::from([0; NONCE]), payload).ok()?;
        Some(hex(&sealed))
    }

    /// What the pseudonym stands for, if this key made it.
    pub(crate) fn turn_back(&self, kind: &str, pseudonym: &str) -> Option<String> {
        let (pairs, []) = pseudonym.as_bytes().as_chunks::<2>() else { return None };
        let sealed: Vec<u8> = pairs
            .iter()
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect::<Option<_>>()?;
        let payload = Payload { msg: &sealed, aad: kind.as_bytes() };
        String::from_utf8(self.0.decrypt(&Nonce::from([0; NONCE]), payload).ok()?).ok()
    }
}

/// What the value under a key of a cache is sealed as.
pub(crate) fn about_entry(key: &str) -> Vec<u8> {
    [b"cache\0", key.as_bytes()].concat()
}

fn about_key(scope: &str) -> Vec<u8> {
    [b"coral data key 1\0", scope.as_bytes()].concat()
}

fn unsealable() -> Error {
    Error::invalid("value", "it is too large to be sealed")
}

/// The master keys that a process holds: one that wraps, and older ones that still unwrap.
///
/// To change the master key without a pause, open the store with the new key as current and the
/// old one as older, call [`rotate_master_key`](crate::SqliteStore::rotate_master_key), and leave
/// the old one out from then on.
#[derive(Clone, Debug)]
pub struct KeyRing {
    current: MasterKey,
    older: Vec<MasterKey>,
}

impl KeyRing {
    /// A ring of one key.
    pub fn new(current: MasterKey) -> Self {
        KeyRing { current, older: Vec::new() }
    }

    /// Adds a key that is no longer used for wrapping.
    #[must_use]
    pub fn and_older(mut self, key: MasterKey) -> Self {
        self.older.push(key);
        self
    }

    /// The key that wraps.
    pub fn current(&self) -> &MasterKey {
        &self.current
    }

    /// What seals caches, by the current key and by each older one.
    pub(crate) fn cache_keys(&self) -> Vec<CacheKeys> {
        std::iter::once(&self.current).chain(&self.older).map(MasterKey::cache_keys).collect()
    }

    /// The key of that id, if the ring has it.
    pub(crate) fn get(&self, id: &str) -> Option<&MasterKey> {
        std::iter::once(&self.current).chain(&self.older).find(|key| *key.id == *id)
    }

    /// A new secret for `scope`, wrapped.
    pub(crate) fn draw(&self, scope: &str) -> Result<Vec<u8>, Error> {
        self.current.wrap(scope, &Zeroizing::new(random()?))
    }

    /// The data key in `wrapped`, which the master key `master` wrapped.
    pub(crate) fn open(&self, id: u32, scope: &str, master: &str, wrapped: &[u8]) -> Result<DataKey, Error> {
        let secret = self.secret(scope, master, wrapped)?;
        Ok(DataKey { id, cipher: cipher(&secret) })
    }

    /// The same secret, wrapped by the current key.
    pub(crate) fn rewrap(&self, scope: &str, master: &str, wrapped: &[u8]) -> Result<Vec<u8>, Error> {
        let secret = self.secret(scope, master, wrapped)?;
        self.current.wrap(scope, &secret)
    }

    fn secret(&self, scope: &str, master: &str, wrapped: &[u8]) -> Result<Secret, Error> {
        let key = self.get(master).ok_or_else(|| {
            Error::invalid(
                "key ring",
                format!("the data key of `{scope}` is wrapped by master key `{master}`"),
            )
            .with_help("add that key to the ring as an older one")
        })?;
        key.unwrap(scope, wrapped).ok_or_else(|| {
            Error::storage("unwrap a data key", format!("the wrapped key of `{scope}` was tampered with"))
                .with_help("restore the store from a backup")
        })
    }
}

/// A key that seals what belongs to one project. Its memory is cleared when it is dropped.
pub(crate) struct DataKey {
    pub(crate) id: u32,
    cipher: Aes256GcmSiv,
}

/// What seals a cache that is no store's.
pub(crate) struct CacheKeys {
    pub(crate) names: Secret,
    pub(crate) values: DataKey,
}

/// The first byte of what is sealed; see [`crate::codec`].
pub(crate) const SEALED: u8 = 2;
const HEADER: usize = 1 + 4 + 4 + NONCE;
/// What sealing adds.
pub(crate) const OVERHEAD: i64 = (HEADER + TAG) as i64;

impl DataKey {
    /// `plain`, readable only with this key, and only as that which `about` names. `count` stays
    /// readable, so that a journal can be verified without keys.
    pub(crate) fn seal(&self, count: u32, about: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let nonce = nonce()?;
        let mut sealed = Vec::with_capacity(HEADER + plain.len() + TAG);
        sealed.push(SEALED);
        sealed.extend(count.to_le_bytes());
        sealed.extend(self.id.to_le_bytes());
        sealed.extend(nonce);
        sealed.extend_from_slice(plain);
        let about = about_sealed(count, self.id, about);
        let body = sealed.get_mut(HEADER..).unwrap_or_default();
        let tag = self.cipher.encrypt_inout_detached(&Nonce::from(nonce), &about, body.into());
        sealed.extend(tag.map_err(|_| unsealable())?);
        Ok(sealed)
    }

    /// What makes words into tokens that tell nothing but that two words are the same.
    pub(crate) fn tokens(&self) -> Result<Tokens, Error> {
        // One nonce used for one text: as good as a key drawn for this alone.
        let made = self.cipher.encrypt(&Nonce::from([0; NONCE]), &b"coral tokens 1"[..]);
        Ok(Tokens(Zeroizing::new(made.map_err(|_| unsealable())?)))
    }

    /// What was sealed as `about`, if it was by this key.
    pub(crate) fn unseal(&self, bytes: &[u8], about: &[u8]) -> Option<Vec<u8>> {
        self.open(&Sealed::parse(bytes)?, about).ok()
    }

    /// What was sealed as `about`.
    pub(crate) fn open(&self, sealed: &Sealed<'_>, about: &[u8]) -> Result<Vec<u8>, Error> {
        let about = about_sealed(sealed.count, sealed.key, about);
        let payload = Payload { msg: sealed.body, aad: &about };
        self.cipher.decrypt(&Nonce::from(*sealed.nonce), payload).map_err(|_| {
            Error::storage("unseal", "the data was tampered with, or put in another's place")
                .with_help("restore the store from a backup, and check who can write to it")
        })
    }
}

/// The beginning of a hash, which is enough to tell names apart.
fn short(mac: &[u8; 32]) -> String {
    let mut begin = hex(mac);
    begin.truncate(16);
    begin
}

/// A keyed hash for what must be found and not be read.
#[derive(Clone)]
pub(crate) struct Tokens(Zeroizing<Vec<u8>>);

impl Tokens {
    /// The token of a word in a field.
    pub(crate) fn of(&self, field: &str, word: &str) -> String {
        let mac = hmac_sha256::HMAC::mac([field.as_bytes(), b"\0", word.as_bytes()].concat(), &self.0[..]);
        short(&mac)
    }

    /// What stands for a name, as long as a SHA-256 in hexadecimal.
    pub(crate) fn name_of(&self, name: &str) -> String {
        let mac = hmac_sha256::HMAC::mac([b"name\0", name.as_bytes()].concat(), &self.0[..]);
        hex(&mac)
    }
}

fn about_sealed(count: u32, key: u32, about: &[u8]) -> Vec<u8> {
    [b"coral sealed 1\0", &count.to_le_bytes()[..], &key.to_le_bytes(), about].concat()
}

/// Sealed bytes, taken apart.
pub(crate) struct Sealed<'a> {
    pub(crate) count: u32,
    pub(crate) key: u32,
    nonce: &'a [u8; NONCE],
    body: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// `None` if `bytes` are not sealed.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&[SEALED])?;
        let (count, rest) = rest.split_first_chunk()?;
        let (key, rest) = rest.split_first_chunk()?;
        let (nonce, body) = rest.split_first_chunk()?;
        Some(Sealed { count: u32::from_le_bytes(*count), key: u32::from_le_bytes(*key), nonce, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_text_files_variables_and_commands() {
        let key = MasterKey::generate().unwrap();
        let hex = key.to_hex();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{}\n", *hex)).unwrap();
        assert_eq!(MasterKey::from_file(file.path()).unwrap().id(), key.id());
        let path = file.path().to_str().unwrap();
        assert_eq!(MasterKey::from_command("cat", &[path]).unwrap().id(), key.id());
        assert_ne!(MasterKey::generate().unwrap().id(), key.id());
        assert!(!format!("{key:?}").contains(&**hex));
        for (result, says) in [
            (MasterKey::from_hex("00ff"), "64 hexadecimal digits"),
            (MasterKey::from_hex(&"0g".repeat(32)), "64 hexadecimal digits"),
            (MasterKey::from_env("CORAL_NO_SUCH_VARIABLE"), "there is none"),
            (MasterKey::from_file("/no/such/file"), "/no/such/file"),
            (MasterKey::from_command("false", &[]), "ended with"),
            (MasterKey::from_command("/no/such/program", &[]), "can't be run"),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.code(), "CORAL0001");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn what_is_sealed_opens_only_in_its_place() {
        let ring = KeyRing::new(MasterKey::generate().unwrap());
        let wrapped = ring.draw("reef").unwrap();
        let key = ring.open(7, "reef", ring.current().id(), &wrapped).unwrap();
        let sealed = key.seal(3, b"run 1", b"plain").unwrap();
        let open = |bytes: &[u8], about: &[u8]| key.open(&Sealed::parse(bytes).unwrap(), about);
        assert_eq!(open(&sealed, b"run 1").unwrap(), b"plain");
        assert!(open(&sealed, b"run 2").is_err());
        for at in 1..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&changed, b"run 1").is_err(), "byte {at}");
        }
        assert!(ring.open(7, "kelp", ring.current().id(), &wrapped).is_err(), "a key of another project");
        assert_ne!(sealed, key.seal(3, b"run 1", b"plain").unwrap());
    }

    #[test]
    fn rotation_keeps_the_data_key() {
        let old = MasterKey::generate().unwrap();
        let wrapped = KeyRing::new(old.clone()).draw("reef").unwrap();
        let sealed = KeyRing::new(old.clone()).open(1, "reef", old.id(), &wrapped).unwrap();
        let sealed = sealed.seal(1, b"", b"plain").unwrap();
        let new = MasterKey::generate().unwrap();
        let both = KeyRing::new(new.clone()).and_older(old.clone());
        let rewrapped = both.rewrap("reef", old.id(), &wrapped).unwrap();
        let alone = KeyRing::new(new.clone());
        let key = alone.open(1, "reef", new.id(), &rewrapped).unwrap();
        assert_eq!(key.open(&Sealed::parse(&sealed).unwrap(), b"").unwrap(), b"plain");
        let error = alone.open(1, "reef", old.id(), &wrapped).err().unwrap();
        assert!(error.to_string().contains(old.id()), "{error}");
    }
}
