//! The tokens that agents hold in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use coral_core::{Caller, Error, ErrorKind};

use crate::access::Access;
use crate::token::{Token, TokenTerms, Tokens};

/// More than any process needs; forgetting one would widen rights.
const MAX: usize = 100_000;

type Key = (String, String);

/// A token, and whether it was handed in from outside: such a one is never made anew.
#[derive(Clone)]
struct Held {
    token: Token,
    is_foreign: bool,
}

/// Tokens by run and agent.
pub(super) struct Leases {
    tokens: Arc<dyn Tokens>,
    held: Mutex<HashMap<Key, Held>>,
    /// Whether nobody acts without a token that was handed in, or was made from one.
    required: bool,
}

fn key(caller: &Caller) -> Key {
    (caller.run.to_string(), caller.agent.to_string())
}

impl Leases {
    pub(super) fn new(tokens: Arc<dyn Tokens>, required: bool) -> Self {
        Leases { tokens, held: Mutex::default(), required }
    }

    /// The name of the token in the hand of the caller, if it has one.
    pub(super) fn id(&self, caller: &Caller) -> Option<String> {
        self.get(caller).map(|held| held.token.id())
    }

    /// When the token in the hand of the caller ends, if it has one.
    pub(super) fn until_ms(&self, caller: &Caller) -> Option<u64> {
        self.get(caller).and_then(|held| self.tokens.until_ms(&held.token).ok())
    }

    /// Takes a token that came from elsewhere.
    pub(super) fn present(&self, caller: &Caller, token: Token) -> Result<(), Error> {
        let holder = self.tokens.holder(&token)?;
        if holder != *caller.agent {
            return Err(Error::invalid("capability token", format!("it is in the hand of `{holder}`"))
                .with_help("narrow it for the agent that it is given to"));
        }
        self.put(caller, Held { token, is_foreign: true })
    }

    fn get(&self, caller: &Caller) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(&key(caller)).cloned()
    }

    fn put(&self, caller: &Caller, held: Held) -> Result<(), Error> {
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX && !all.contains_key(&key(caller)) {
            let max = u64::try_from(MAX).unwrap_or(u64::MAX);
            return Err(Error::new(ErrorKind::Limit { limit: "tokens".to_owned(), max }));
        }
        all.insert(key(caller), held);
        Ok(())
    }

    /// The caller's token. `principals` are the caller and all for whom it acts, near ones first:
    /// the token holds the rights of each, and nothing beyond them.
    pub(super) fn token(
        &self,
        principals: &[Caller],
        terms: &dyn Fn(&Caller) -> TokenTerms,
    ) -> Result<Token, Error> {
        let Some(caller) = principals.first() else {
            return Err(Error::invalid("capability token", "nobody calls"));
        };
        let own = self.get(caller);
        // A token is of one run; rights that come from another are taken in by name.
        let elders = principals.iter().skip(1).filter(|principal| principal.run == caller.run);
        let inherited = || elders.clone().find_map(|principal| self.get(principal));
        let held = own.clone().or_else(inherited);
        // What is made from a token of elsewhere is of elsewhere too: it can't be made anew.
        let is_foreign = held.as_ref().is_some_and(|held| held.is_foreign);
        if self.required && !is_foreign {
            return Err(Error::invalid(
                "capability token",
                format!("`{}` has none, and nobody acts without one", caller.agent),
            )
            .with_help("hand its token in by `present`, after a restart too"));
        }
        let before = own.as_ref().map(|held| held.token.clone());
        let mut token = match held {
            Some(held) => held.token,
            None => {
                let origin = principals.last().unwrap_or(caller);
                self.tokens.issue(&Caller { run: caller.run.clone(), ..origin.clone() }, &terms(origin))?
            }
        };
        let known = self.tokens.holds_rights_of(&token)?;
        let missing =
            principals.iter().rev().filter(|principal| !known.iter().any(|of| *of == *principal.agent));
        let mut is_in_hand = before.is_some() || principals.len() == 1;
        for principal in missing {
            token = self.tokens.narrow(&token, caller, &terms(principal))?;
            is_in_hand = true;
        }
        if !is_in_hand {
            // It changes hands, with no rights to be taken from it.
            token = self.tokens.narrow(&token, caller, &terms(caller))?;
        }
        if before.as_ref() != Some(&token) {
            self.put(caller, Held { token: token.clone(), is_foreign })?;
        }
        Ok(token)
    }

    pub(super) fn check(&self, token: &Token, access: &Access<'_>) -> Result<(), String> {
        self.tokens.check(token, access)
    }

    /// Drops what was made here, so that it is made anew; what came from outside stays.
    pub(super) fn renew(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, held| held.is_foreign);
    }

    /// Drops the tokens that were made here for a run that is over or waits. Others stay: without them it
    /// would go on with more rights than it had.
    pub(super) fn forget(&self, run: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|(of, _), held| of != run || held.is_foreign);
    }
}
