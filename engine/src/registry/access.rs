//! Access tokens: who calls, and what they may do.
//!
//! A token is 256 random bits with the id of its record before them. Only its SHA-256 is stored, which
//! is enough for what nobody can guess; it is compared in constant time.

use super::{Error, Registry, not_found, written};
use crate::clock::now_ms;
use crate::id::{Hash, Name};
use crate::secret::Secret;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::PoisonError;
use subtle::ConstantTimeEq as _;
use utoipa::ToSchema;

/// What a token may be used for; each may do what those before it may, but for one: to send events takes
/// `ingest-only`, or more than to see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Send events to its tenant's sources that take access tokens, and nothing else.
    IngestOnly,
    /// See what its tenant has, and what became of its events.
    ReadOnly,
    /// Upload modules, change rules, release held events, redrive and purge dead letters.
    Author,
    /// Set up its tenant's sources and channels, test and enable channels, make and revoke tokens.
    TenantAdmin,
    /// Everything, of every tenant.
    Operator,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::IngestOnly => "ingest-only",
            Scope::ReadOnly => "read-only",
            Scope::Author => "author",
            Scope::TenantAdmin => "tenant-admin",
            Scope::Operator => "operator",
        })
    }
}

/// A token as it is stored: without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Token {
    pub id: String,
    /// SHA-256 of the whole token.
    pub hash: Hash,
    pub scope: Scope,
    /// Whose it is; none for an operator.
    pub tenant: Option<Name>,
    pub label: String,
    pub created_ms: i64,
    pub expires_ms: Option<i64>,
}

/// A token that is to be made.
#[derive(Clone, Debug)]
pub struct NewToken {
    pub scope: Scope,
    pub tenant: Option<Name>,
    pub label: String,
    pub expires_ms: Option<i64>,
}

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    pub scope: Scope,
    /// Whose things it may touch; none for all.
    pub tenant: Option<Name>,
    /// For the audit log: a token's label and id.
    pub who: String,
    pub expires_ms: Option<i64>,
    /// The id of its token; none for the one that the engine was started with.
    token: Option<String>,
}

impl Caller {
    /// Who has the token that the engine was started with.
    pub fn root() -> Self {
        Self {
            scope: Scope::Operator,
            tenant: None,
            who: "the operator token".to_owned(),
            expires_ms: None,
            token: None,
        }
    }

    /// The id of its token.
    pub(crate) fn token_id(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }
}

/// What tokens begin with, so that people and scanners know one when they see it.
const PREFIX: &str = "hooksieve_";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;
/// How long a label is.
const LABEL_CHARS_MAX: usize = 100;
/// How many tokens a tenant has.
pub(super) const TOKENS_MAX: usize = 100;

impl Registry {
    /// Who has this token, if it is one of ours and still good.
    pub fn caller(&self, given: &str) -> Option<Caller> {
        let (id, _) = given.strip_prefix(PREFIX)?.split_once('_')?;
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let token = tokens.get(id)?;
        let same: bool = Hash::of(given.as_bytes()).0.ct_eq(&token.hash.0).into();
        let good = token.expires_ms.is_none_or(|expires| now_ms() < expires);
        (same && good).then(|| Caller {
            scope: token.scope,
            tenant: token.tenant.clone(),
            who: format!("{} ({})", token.label, token.id),
            expires_ms: token.expires_ms,
            token: Some(token.id.clone()),
        })
    }

    /// Whether this token may send a tenant's events.
    pub(crate) fn may_send(&self, given: &str, tenant: &Name) -> bool {
        self.caller(given).is_some_and(|caller| {
            let sends = caller.scope == Scope::IngestOnly || caller.scope >= Scope::Author;
            sends && caller.tenant.as_ref() == Some(tenant)
        })
    }

    /// Whether a caller's token is good still: what goes on for long asks again.
    pub fn still_good(&self, caller: &Caller) -> bool {
        let there = caller
            .token
            .as_ref()
            .is_none_or(|id| self.token(id).is_some());
        there && caller.expires_ms.is_none_or(|expires| now_ms() < expires)
    }

    /// Makes a token; its text is given this once.
    ///
    /// # Errors
    /// When it would belong to nobody or to too many, its label is too long, or the store fails.
    pub async fn make_token(&self, new: NewToken, by: &Caller) -> Result<(Token, Secret), Error> {
        match (&new.tenant, new.scope) {
            (Some(_), Scope::Operator) => {
                return Err(Error::Invalid(
                    "an operator's token belongs to no tenant: leave `tenant` out".to_owned(),
                ));
            }
            (None, Scope::Operator) => {}
            (None, scope) => {
                return Err(Error::Invalid(format!(
                    "a token with the scope {scope} belongs to a tenant: name it in `tenant`"
                )));
            }
            (Some(tenant), _) => drop(self.fixed(tenant)?),
        }
        let label = new.label.trim();
        if label.is_empty() || new.label.chars().count() > LABEL_CHARS_MAX {
            return Err(Error::Invalid(format!(
                "`label` says what the token is for, in 1 to {LABEL_CHARS_MAX} characters"
            )));
        }
        if new.expires_ms.is_some_and(|expires| expires <= now_ms()) {
            return Err(Error::Invalid("it would have expired already".to_owned()));
        }
        // One change at a time, so that what is counted is what there is.
        let _rules = self.rules.lock().await;
        // Both may have gone while this waited.
        if let Some(tenant) = &new.tenant {
            self.fixed(tenant)?;
        }
        if !self.still_good(by) {
            return Err(Error::Conflict(
                "the token that makes it is not good any more".to_owned(),
            ));
        }
        let of_tenant = self.tokens(new.tenant.as_ref());
        if of_tenant.len() >= TOKENS_MAX {
            return Err(Error::Conflict(format!(
                "there are {TOKENS_MAX} tokens, which is the limit; revoke one"
            )));
        }
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|it| format!("{it:02x}")).collect() };
        let id = hex(&rand::random::<[u8; ID_BYTES]>());
        let text = format!(
            "{PREFIX}{id}_{}",
            hex(&rand::random::<[u8; SECRET_BYTES]>())
        );
        let token = Token {
            hash: Hash::of(text.as_bytes()),
            scope: new.scope,
            tenant: new.tenant,
            label: label.to_owned(),
            created_ms: now_ms(),
            expires_ms: new.expires_ms,
            id: id.clone(),
        };
        let change = (format!("token/{id}"), Some(written(&token)));
        self.store.set_records(vec![change]).await?;
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(id, token.clone());
        Ok((token, Secret::new(text)))
    }

    /// A tenant's tokens, or the operators', oldest first.
    pub fn tokens(&self, tenant: Option<&Name>) -> Vec<Token> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let own = tokens.values().filter(|it| it.tenant.as_ref() == tenant);
        let mut own: Vec<Token> = own.cloned().collect();
        own.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        own
    }

    /// The records of a tenant's tokens.
    pub(super) fn token_keys(&self, tenant: &Name) -> Vec<String> {
        let tokens = self.tokens(Some(tenant)).into_iter();
        tokens.map(|token| format!("token/{}", token.id)).collect()
    }

    /// Makes a tenant's tokens worthless; their records are gone already.
    pub(super) fn forget_tokens(&self, tenant: &Name) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, token| token.tenant.as_ref() != Some(tenant));
    }

    /// A token by its id.
    pub fn token(&self, id: &str) -> Option<Token> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.get(id).cloned()
    }

    /// Makes a token worthless, from the next call on.
    ///
    /// # Errors
    /// When there is none, or the store fails; then it is still good.
    pub async fn revoke(&self, id: &str) -> Result<(), Error> {
        let _rules = self.rules.lock().await;
        if self.token(id).is_none() {
            return Err(not_found("token", id));
        }
        self.store
            .set_records(vec![(format!("token/{id}"), None)])
            .await?;
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.remove(id);
        Ok(())
    }
}
