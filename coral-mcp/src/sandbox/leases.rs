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
}

fn key(caller: &Caller) -> Key {
    (caller.run.to_string(), caller.agent.to_string())
}

impl Leases {
    pub(super) fn new(tokens: Arc<dyn Tokens>) -> Self {
        Leases { tokens, held: Mutex::default() }
    }

    /// Takes a token that came from elsewhere.
    pub(super) fn present(&self, caller: &Caller, token: Token) -> Result<(), Error> {
        // Read once, so that what is no token is told here.
        self.tokens.holds_rights_of(&token)?;
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
        // Of those for whom it acts the farthest is where the rights come from.
        let (mut token, mut is_foreign) = match &own {
            Some(held) => (held.token.clone(), held.is_foreign),
            None => match principals.iter().skip(1).find_map(|principal| self.get(principal)) {
                Some(held) => (held.token, held.is_foreign),
                None => {
                    let origin = principals.last().unwrap_or(caller);
                    (self.tokens.issue(origin, &terms(origin))?, false)
                }
            },
        };
        let mut known = self.tokens.holds_rights_of(&token)?;
        let before = token.clone();
        for principal in principals.iter().rev() {
            if !known.iter().any(|of| *of == *principal.agent) {
                token = self.tokens.narrow(&token, caller, &terms(principal))?;
                known.push(principal.agent.to_string());
            }
        }
        if own.is_none() && token == before && principals.len() > 1 {
            // It changes hands, with no rights to be taken from it.
            token = self.tokens.narrow(&token, caller, &terms(caller))?;
        }
        if own.is_none() || token != before {
            is_foreign &= own.is_some() || principals.len() > 1;
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

    /// Drops the tokens of a run that is over.
    pub(super) fn forget(&self, run: &str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| of != run);
    }
}
