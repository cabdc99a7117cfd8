//! Who asks: a registry's challenge (RFC 9110, 11.6.1), and what answers it, which
//! is a password (RFC 7617) or a token (distribution-spec, "token authentication").

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use serde::Deserialize;

/// What a token is good for at least, where its server does not say
/// (distribution-spec, "token authentication", `expires_in`).
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);
/// A token is not used in the last moments of its life.
const MARGIN: Duration = Duration::from_secs(5);

/// What somebody may do in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// Read.
    Pull,
    /// Read and write.
    Push,
}

impl Operation {
    /// The scope of a token for it.
    pub(crate) fn scope(self, repository: &str) -> String {
        match self {
            Self::Pull => format!("repository:{repository}:pull"),
            Self::Push => format!("repository:{repository}:pull,push"),
        }
    }
}

/// How a registry wants to be told who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// By user and password.
    Basic,
    /// By a token, which is to be had at `realm`.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Who the token is for.
        service: Option<String>,
    },
}

impl Challenge {
    /// The challenge of a `WWW-Authenticate` header; the token's first. `None` where
    /// it has none of these.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let challenges = http_auth::parse_challenges(header).ok()?;
        let of = |scheme: &str| {
            let mut challenges = challenges.iter();
            challenges.find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme))
        };
        let bearer = of("Bearer").and_then(|challenge| {
            let value = |wanted: &str| {
                let mut params = challenge.params.iter();
                let found = params.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                found.map(|(_, value)| value.to_unescaped())
            };
            Some(Self::Bearer {
                realm: value("realm")?,
                service: value("service"),
            })
        });
        bearer.or_else(|| of("Basic").map(|_| Self::Basic))
    }
}

/// A token server's answer.
#[derive(Deserialize)]
pub(crate) struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// What goes with a request, and until when; nothing where nothing is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) header: Option<HeaderValue>,
    expires: Option<Instant>,
}

impl Grant {
    /// The registry does not ask, or there is nothing to answer.
    pub(crate) fn none() -> Self {
        Self {
            header: None,
            expires: None,
        }
    }

    /// `None` where the password cannot be in a header.
    pub(crate) fn basic(user: &str, password: &str) -> Option<Self> {
        let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
        Some(Self {
            header: Some(secret(&format!("Basic {encoded}"))?),
            expires: None,
        })
    }

    /// `None` where the answer has no token.
    pub(crate) fn token(answer: Answer, now: Instant) -> Option<Self> {
        let token = answer.token.or(answer.access_token)?;
        let lifetime = answer
            .expires_in
            .map_or(DEFAULT_LIFETIME, Duration::from_secs);
        Some(Self {
            header: Some(secret(&format!("Bearer {token}"))?),
            expires: now.checked_add(lifetime.saturating_sub(MARGIN)),
        })
    }

    pub(crate) fn is_good(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether another may be had when this one is refused.
    pub(crate) fn is_token(&self) -> bool {
        self.expires.is_some()
    }
}

fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Grants by registry, repository and operation.
pub(crate) type Grants = HashMap<(String, String, Operation), Grant>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_challenge_is_understood() {
        let bearer = |service: Option<&str>| Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: service.map(str::to_owned),
        };
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.example/token",service="registry",scope="x""#,
                Some(bearer(Some("registry"))),
            ),
            (
                r#"bearer REALM="https://auth.example/token""#,
                Some(bearer(None)),
            ),
            (
                r#"Basic realm="x", Bearer realm="https://auth.example/token""#,
                Some(bearer(None)),
            ),
            (r#"Basic realm="Registry""#, Some(Challenge::Basic)),
            (r#"Bearer service="registry""#, None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
    }

    #[test]
    fn a_token_is_not_used_after_its_end() {
        let now = Instant::now();
        let answer = |text: &str| serde_json::from_str::<Answer>(text).unwrap();
        let grant = Grant::token(answer(r#"{"token": "t", "expires_in": 100}"#), now).unwrap();
        assert_eq!(grant.header.as_ref().unwrap(), "Bearer t");
        assert!(grant.is_good(now + Duration::from_secs(94)));
        assert!(!grant.is_good(now + Duration::from_secs(95)));
        let grant = Grant::token(answer(r#"{"access_token": "t"}"#), now).unwrap();
        assert!(!grant.is_good(now + Duration::from_mins(1)));
        assert!(Grant::token(answer("{}"), now).is_none());
        assert!(Grant::token(answer(r#"{"token": "a\nb"}"#), now).is_none());
    }

    #[test]
    fn credentials_are_not_printed() {
        let grant = Grant::basic("user", "hunter2").unwrap();
        assert!(!format!("{grant:?}").contains("aHVudGVy"));
        assert!(grant.is_good(Instant::now()) && !grant.is_token());
    }
}
