//! The broker's side of the handshake that needs no Kubernetes: nonces.
//!
//! A nonce authenticates itself: it carries its time and a MAC over itself and
//! the session, so that any replica with the key verifies a nonce that another
//! one issued. What a MAC cannot show is that a nonce was used already;
//! [`NonceCache`] does.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::hmac;
use aws_lc_rs::rand;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

/// Seconds for which a nonce may be answered.
pub const NONCE_LIFETIME_SECONDS: u64 = 300;
/// Seconds by which the clocks of replicas may differ.
const CLOCK_SKEW_SECONDS: u64 = 5;

const TIME_LEN: usize = 8;
const RANDOM_LEN: usize = 24;
const MAC_LEN: usize = 32;

/// The random part of a nonce: what it is known by.
pub type NonceId = [u8; RANDOM_LEN];

/// How a session binds its evidence. Neither a nonce nor a token of one profile is any
/// good in the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// As KBS 0.4.0 says: [`crate::messages`].
    #[default]
    Kbs,
    /// As COCONUT-SVSM's attestation proxy does: [`crate::svsm`].
    Svsm,
}

impl Profile {
    /// Whether it is the one that goes without saying.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What its nonces are authenticated under.
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Kbs => b"assay.dev/nonce/v1\0",
            Self::Svsm => b"assay.dev/nonce/svsm/v1\0",
        }
    }
}

/// Why a nonce is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NonceError {
    /// The cryptography library has no randomness.
    #[error("the cryptography library made no nonce")]
    Generate,
    /// It is not a nonce of this broker for this session.
    #[error("the nonce was not issued to this session")]
    NotIssued,
    /// Its time is over, or has not come.
    #[error("the nonce is outside its lifetime")]
    Expired,
    /// It was answered already.
    #[error("the nonce was used already")]
    Replayed,
    /// Too many nonces were answered within their lifetime.
    #[error("too many attestations at once")]
    CacheFull,
}

/// A nonce that was issued to the session and may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuedNonce {
    /// What it is known by.
    pub id: NonceId,
    /// When it was issued, in seconds since 1970.
    pub issued_at: u64,
}

impl IssuedNonce {
    /// The last second at which it may be answered.
    pub const fn expires_at(&self) -> u64 {
        self.issued_at.saturating_add(NONCE_LIFETIME_SECONDS)
    }
}

/// Issues and verifies nonces.
pub struct NonceIssuer {
    key: hmac::Key,
}

impl NonceIssuer {
    /// An issuer with a key that replicas share: 32 random bytes.
    pub fn new(key: &[u8; 32]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
        }
    }

    /// Issues a nonce of `profile` to `session` at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn issue(&self, profile: Profile, session: &str, now: u64) -> Result<String, NonceError> {
        let mut id = [0; RANDOM_LEN];
        rand::fill(&mut id).map_err(|_| NonceError::Generate)?;
        let body = [&now.to_be_bytes()[..], &id].concat();
        let mac = hmac::sign(&self.key, &mac_input(profile, &body, session));
        Ok(BASE64_STANDARD.encode([&body, mac.as_ref()].concat()))
    }

    /// Verifies that `nonce` of `profile` was issued to `session` and may be answered
    /// at `now`. It may still have been used: see [`NonceCache`].
    ///
    /// # Errors
    /// When it was not issued by this broker to this session, or its time is
    /// over.
    pub fn verify(
        &self,
        profile: Profile,
        nonce: &str,
        session: &str,
        now: u64,
    ) -> Result<IssuedNonce, NonceError> {
        let bytes = BASE64_STANDARD
            .decode(nonce)
            .map_err(|_| NonceError::NotIssued)?;
        let (body, mac) = bytes
            .split_at_checked(TIME_LEN + RANDOM_LEN)
            .ok_or(NonceError::NotIssued)?;
        if mac.len() != MAC_LEN {
            return Err(NonceError::NotIssued);
        }
        hmac::verify(&self.key, &mac_input(profile, body, session), mac)
            .map_err(|_| NonceError::NotIssued)?;
        let (time, id) = body.split_at(TIME_LEN);
        let issued_at = time.try_into().map(u64::from_be_bytes);
        let nonce = IssuedNonce {
            id: id.try_into().map_err(|_| NonceError::NotIssued)?,
            issued_at: issued_at.map_err(|_| NonceError::NotIssued)?,
        };
        let early = now.saturating_add(CLOCK_SKEW_SECONDS) < nonce.issued_at;
        if early || now > nonce.expires_at() {
            return Err(NonceError::Expired);
        }
        Ok(nonce)
    }
}

/// The body has a fixed length and a label ends with a zero, so that none of them can
/// be shifted into another.
fn mac_input(profile: Profile, body: &[u8], session: &str) -> Vec<u8> {
    [profile.label(), body, session.as_bytes()].concat()
}

/// Remembers which nonces were answered.
///
/// # Guarantees
/// [`NonceCache::consume`] succeeds at most once for a nonce within its
/// lifetime, also when called concurrently.
pub trait NonceCache: Send + Sync {
    /// Marks `nonce` as used at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// When it was used already, or when the cache cannot remember it.
    fn consume(&self, nonce: &IssuedNonce, now: u64) -> Result<(), NonceError>;

    /// Used nonces that could be answered at `now`, were they not remembered.
    fn in_use(&self, now: u64) -> usize;
}

/// A cache in this process's memory, bounded in number. A full cache refuses:
/// forgetting an unexpired nonce would allow it a second time.
pub struct BoundedNonceCache {
    capacity: usize,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    ids: HashSet<NonceId>,
    by_expiry: BTreeMap<u64, Vec<NonceId>>,
}

impl BoundedNonceCache {
    /// A cache that remembers at most `capacity` unexpired nonces.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            used: Mutex::default(),
        }
    }
}

impl NonceCache for BoundedNonceCache {
    fn consume(&self, nonce: &IssuedNonce, now: u64) -> Result<(), NonceError> {
        if now > nonce.expires_at() {
            return Err(NonceError::Expired);
        }
        // Each mutation below leaves the sets consistent, so a panic elsewhere
        // while the lock was held does not make them wrong.
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = used.by_expiry.split_off(&now);
        for id in std::mem::replace(&mut used.by_expiry, alive)
            .into_values()
            .flatten()
        {
            used.ids.remove(&id);
        }
        if used.ids.contains(&nonce.id) {
            return Err(NonceError::Replayed);
        }
        if used.ids.len() >= self.capacity {
            return Err(NonceError::CacheFull);
        }
        used.ids.insert(nonce.id);
        used.by_expiry
            .entry(nonce.expires_at())
            .or_default()
            .push(nonce.id);
        Ok(())
    }

    fn in_use(&self, now: u64) -> usize {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.by_expiry.range(now..).map(|(_, ids)| ids.len()).sum()
    }
}

/// Makes a session's name: 128 random bits, as hexadecimal.
///
/// # Errors
/// When there is no randomness.
pub fn new_session() -> Result<String, NonceError> {
    use std::fmt::Write as _;
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| NonceError::Generate)?;
    Ok(bytes
        .iter()
        .fold(String::with_capacity(32), |mut name, byte| {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
            name
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KBS: Profile = Profile::Kbs;

    const NOW: u64 = 1_800_000_000;

    fn issuer() -> NonceIssuer {
        NonceIssuer::new(&[7; 32])
    }

    #[test]
    fn another_replica_verifies() {
        let nonce = issuer().issue(KBS, "session", NOW).unwrap();
        let issued = issuer().verify(KBS, &nonce, "session", NOW + 10).unwrap();
        assert_eq!(issued.issued_at, NOW);
    }

    #[test]
    fn nonces_differ() {
        assert_ne!(issuer().issue(KBS, "s", NOW), issuer().issue(KBS, "s", NOW));
    }

    #[test]
    fn another_session_key_or_text_is_refused() {
        let nonce = issuer().issue(KBS, "session", NOW).unwrap();
        assert_eq!(
            issuer().verify(KBS, &nonce, "sessio", NOW),
            Err(NonceError::NotIssued)
        );
        assert_eq!(
            NonceIssuer::new(&[8; 32]).verify(KBS, &nonce, "session", NOW),
            Err(NonceError::NotIssued)
        );
        for text in ["", "bm9uY2U=", &nonce[..nonce.len() - 4], "not base64"] {
            assert_eq!(
                issuer().verify(KBS, text, "session", NOW),
                Err(NonceError::NotIssued),
                "{text}"
            );
        }
    }

    #[test]
    fn a_nonce_is_of_one_profile() {
        for (profile, other) in [(KBS, Profile::Svsm), (Profile::Svsm, KBS)] {
            let nonce = issuer().issue(profile, "session", NOW).unwrap();
            assert!(issuer().verify(profile, &nonce, "session", NOW).is_ok());
            assert_eq!(
                issuer().verify(other, &nonce, "session", NOW),
                Err(NonceError::NotIssued)
            );
        }
    }

    #[test]
    fn every_byte_is_authenticated() {
        let nonce = issuer().issue(KBS, "session", NOW).unwrap();
        let bytes = BASE64_STANDARD.decode(&nonce).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert_eq!(
                issuer().verify(KBS, &BASE64_STANDARD.encode(changed), "session", NOW),
                Err(NonceError::NotIssued),
                "byte {index}"
            );
        }
    }

    #[test]
    fn a_nonce_lives_five_minutes() {
        let nonce = issuer().issue(KBS, "s", NOW).unwrap();
        assert!(
            issuer()
                .verify(KBS, &nonce, "s", NOW + NONCE_LIFETIME_SECONDS)
                .is_ok()
        );
        let after = NOW + NONCE_LIFETIME_SECONDS + 1;
        assert_eq!(
            issuer().verify(KBS, &nonce, "s", after),
            Err(NonceError::Expired)
        );
        assert!(
            issuer()
                .verify(KBS, &nonce, "s", NOW - CLOCK_SKEW_SECONDS)
                .is_ok()
        );
        let before = NOW - CLOCK_SKEW_SECONDS - 1;
        assert_eq!(
            issuer().verify(KBS, &nonce, "s", before),
            Err(NonceError::Expired)
        );
    }

    #[test]
    fn a_nonce_is_used_once() {
        let cache = BoundedNonceCache::new(8);
        let nonce = IssuedNonce {
            id: [1; RANDOM_LEN],
            issued_at: NOW,
        };
        assert_eq!(cache.consume(&nonce, NOW), Ok(()));
        assert_eq!(cache.consume(&nonce, NOW), Err(NonceError::Replayed));
        assert_eq!(
            cache.consume(&nonce, nonce.expires_at()),
            Err(NonceError::Replayed)
        );
        assert_eq!(
            cache.consume(&nonce, nonce.expires_at() + 1),
            Err(NonceError::Expired)
        );
    }

    #[test]
    fn a_full_cache_refuses_until_something_expires() {
        let cache = BoundedNonceCache::new(1);
        let first = IssuedNonce {
            id: [1; RANDOM_LEN],
            issued_at: NOW,
        };
        let second = IssuedNonce {
            id: [2; RANDOM_LEN],
            issued_at: NOW + 100,
        };
        cache.consume(&first, NOW).unwrap();
        assert_eq!(
            cache.consume(&second, NOW + 100),
            Err(NonceError::CacheFull)
        );
        assert_eq!(cache.in_use(first.expires_at()), 1);
        assert_eq!(cache.in_use(first.expires_at() + 1), 0);
        assert_eq!(cache.consume(&second, first.expires_at() + 1), Ok(()));
    }

    #[test]
    fn sessions_are_hexadecimal_and_differ() {
        let (a, b) = (new_session().unwrap(), new_session().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), 32);
        assert!(a.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
