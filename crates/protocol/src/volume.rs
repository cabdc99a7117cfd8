//! Keys that the broker makes for volumes: the messages.
//!
//! A guest opens a volume with the generation that is on its disk, and gets the
//! keys and a generation. It writes that generation to the disk, opens the volume
//! again with it, and only then writes data. As long as it uses the volume it
//! opens it anew after each attestation; when the lease of the last answer is over,
//! it writes no more. An older copy of the disk names an older generation, and gets
//! nothing.
//!
//! The answer is a JWE whose protected header holds the [`VolumeGrant`]: which
//! volume, which generation and which version of the key are authenticated with the
//! keys, and so is the request that it answers.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::rand;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::jwe::{Jwe, JweError, RecipientKey, TeePublicKey};

/// Path below which volumes are: `{namespace}/{deployment}/{volume}/open` and
/// `/close`.
pub const VOLUME_PATH: &str = "/assay/v1/volumes";
/// Highest generation: the largest integer that JSON carries exactly (RFC 8785
/// §3.2.2.3).
pub const MAX_GENERATION: u64 = (1 << 53) - 1;

const KEY_LEN: usize = 32;
const ID_LEN: usize = 16;

/// Why keys are not made, sent or taken.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// There is no randomness.
    #[error("the cryptography library has no randomness")]
    Generate,
    /// The keys cannot be encrypted or decrypted.
    #[error("cannot encrypt or decrypt the keys")]
    Jwe(#[source] JweError),
    /// The content has no keys.
    #[error("the content is not the keys of a volume")]
    Parse(#[source] serde_json::Error),
    /// The keys are of another volume.
    #[error("the keys are of volume {got:?}")]
    Resource {
        /// Which.
        got: String,
    },
    /// The answer is to another request.
    #[error("the answer is to another request")]
    Request,
    /// The broker's current key is not among the keys.
    #[error("key version {0} is not among the keys")]
    KeyMissing(u32),
}

/// A guest's request to open or close a volume. Both numbers must be there: a guest
/// without a disk says `null`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeRequest {
    /// What the request is known by: the answer repeats it.
    pub request: String,
    /// The generation that is on the disk; nothing on a disk that was never opened.
    #[serde(deserialize_with = "Option::deserialize")]
    pub generation: Option<u64>,
    /// The newest version of the key that opens the disk: older ones are forgotten.
    /// Nothing on a disk that was never opened.
    #[serde(deserialize_with = "Option::deserialize")]
    pub key_version: Option<u32>,
}

impl VolumeRequest {
    /// A request with a fresh name.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new(generation: Option<u64>, key_version: Option<u32>) -> Result<Self, VolumeError> {
        let mut id = [0; ID_LEN];
        rand::fill(&mut id).map_err(|_| VolumeError::Generate)?;
        Ok(Self {
            request: BASE64_STANDARD.encode(id),
            generation,
            key_version,
        })
    }
}

/// What a guest is granted, authenticated with the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeGrant {
    /// The volume, `{namespace}/{deployment}/{volume}`.
    pub resource: String,
    /// [`VolumeRequest::request`].
    pub request: String,
    /// The generation to write to the disk.
    pub generation: u64,
    /// The current version of the key.
    pub key_version: u32,
    /// Seconds, from when the request was sent, for which no other guest gets the
    /// keys.
    pub lease_seconds: u64,
}

/// A key of 32 random bytes.
#[derive(Clone)]
pub struct VolumeKey(Zeroizing<[u8; KEY_LEN]>);

impl VolumeKey {
    /// Makes a key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, VolumeError> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        rand::fill(key.as_mut_slice()).map_err(|_| VolumeError::Generate)?;
        Ok(Self(key))
    }

    /// The key.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// Without the key.
impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(…)")
    }
}

/// As base64.
impl Serialize for VolumeKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(BASE64_STANDARD.encode(self.0.as_slice()));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for VolumeKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = BASE64_STANDARD.decode(text.as_str()).map(Zeroizing::new);
        let key = bytes
            .ok()
            .and_then(|bytes| <[u8; KEY_LEN]>::try_from(bytes.as_slice()).ok());
        key.map(|key| Self(Zeroizing::new(key)))
            .ok_or_else(|| serde::de::Error::custom("a key of a volume is not 32 bytes in base64"))
    }
}

/// The keys of a volume, by version.
pub type VolumeKeys = BTreeMap<u32, VolumeKey>;

/// What the broker answers, decrypted.
#[derive(Debug, Clone)]
pub struct OpenVolume {
    /// What was granted.
    pub grant: VolumeGrant,
    /// The current key, and older ones that the disk may still need.
    pub keys: VolumeKeys,
}

impl OpenVolume {
    /// Encrypts the answer to the guest's key.
    ///
    /// # Errors
    /// When `recipient` is no key to encrypt to, or the cryptography library fails.
    pub fn encrypt(&self, recipient: &TeePublicKey) -> Result<Jwe, VolumeError> {
        let content = Zeroizing::new(serde_json::to_vec(&self.keys).map_err(VolumeError::Parse)?);
        Jwe::encrypt_volume(&content, recipient, &self.grant).map_err(VolumeError::Jwe)
    }

    /// Decrypts the answer to `request` for the volume `resource`.
    ///
    /// # Errors
    /// When it is not for this key, this request or this volume, or lacks the
    /// current key.
    pub fn decrypt(
        jwe: &Jwe,
        key: &RecipientKey,
        resource: &str,
        request: &VolumeRequest,
    ) -> Result<Self, VolumeError> {
        let (grant, content) = jwe.decrypt_volume(key).map_err(VolumeError::Jwe)?;
        let keys: VolumeKeys = serde_json::from_slice(&content).map_err(VolumeError::Parse)?;
        if grant.resource != resource {
            return Err(VolumeError::Resource {
                got: grant.resource,
            });
        }
        if grant.request != request.request {
            return Err(VolumeError::Request);
        }
        if !keys.contains_key(&grant.key_version) {
            return Err(VolumeError::KeyMissing(grant.key_version));
        }
        Ok(Self { grant, keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    const VOLUME: &str = "shop/web/data";

    struct World {
        key: RecipientKey,
        request: VolumeRequest,
        answer: OpenVolume,
    }

    fn world() -> World {
        let request = VolumeRequest::new(Some(6), None).unwrap();
        let keys = [1, 2].map(|version| (version, VolumeKey::generate().unwrap()));
        let answer = OpenVolume {
            grant: VolumeGrant {
                resource: VOLUME.to_owned(),
                request: request.request.clone(),
                generation: 7,
                key_version: 2,
                lease_seconds: 600,
            },
            keys: keys.into(),
        };
        World {
            key: RecipientKey::generate().unwrap(),
            request,
            answer,
        }
    }

    impl World {
        fn jwe(&self) -> Jwe {
            let recipient = TeePublicKey::new(&self.key.public_key().unwrap());
            self.answer.encrypt(&recipient).unwrap()
        }

        fn decrypt(&self, jwe: &Jwe) -> Result<OpenVolume, VolumeError> {
            OpenVolume::decrypt(jwe, &self.key, VOLUME, &self.request)
        }
    }

    #[test]
    fn keys_reach_the_guest_with_their_grant() {
        let world = world();
        let opened = world.decrypt(&world.jwe()).unwrap();
        assert_eq!(opened.grant, world.answer.grant);
        for (version, key) in &world.answer.keys {
            assert_eq!(opened.keys[version].as_bytes(), key.as_bytes());
        }
        assert_eq!(opened.keys.len(), 2);
    }

    #[test]
    fn a_changed_grant_does_not_authenticate() {
        let world = world();
        let mut jwe = world.jwe();
        let header = BASE64_URL_SAFE_NO_PAD.decode(&jwe.protected).unwrap();
        let header = String::from_utf8(header).unwrap();
        let changed = header.replace("\"generation\":7", "\"generation\":6");
        assert_ne!(header, changed);
        jwe.protected = BASE64_URL_SAFE_NO_PAD.encode(changed);
        assert!(matches!(
            world.decrypt(&jwe),
            Err(VolumeError::Jwe(JweError::Open))
        ));
    }

    #[test]
    fn an_answer_is_to_one_request_for_one_volume() {
        let mut world = world();
        let jwe = world.jwe();
        let other = OpenVolume::decrypt(&jwe, &world.key, "shop/web/other", &world.request);
        assert!(matches!(other, Err(VolumeError::Resource { .. })));
        world.request = VolumeRequest::new(Some(6), None).unwrap();
        assert!(matches!(world.decrypt(&jwe), Err(VolumeError::Request)));
        world.answer.keys.remove(&2);
        world
            .answer
            .grant
            .request
            .clone_from(&world.request.request);
        let jwe = world.jwe();
        assert!(matches!(
            world.decrypt(&jwe),
            Err(VolumeError::KeyMissing(2))
        ));
    }

    #[test]
    fn keys_and_secrets_are_not_taken_for_one_another() {
        let world = world();
        assert_eq!(world.jwe().decrypt(&world.key), Err(JweError::Header));
        let recipient = TeePublicKey::new(&world.key.public_key().unwrap());
        let secret = Jwe::encrypt(b"{}", &recipient).unwrap();
        assert!(matches!(
            world.decrypt(&secret),
            Err(VolumeError::Jwe(JweError::Header))
        ));
    }

    #[test]
    fn requests_say_everything() {
        let good = r#"{"request":"a","generation":null,"keyVersion":1}"#;
        let request: VolumeRequest = serde_json::from_str(good).unwrap();
        assert_eq!((request.generation, request.key_version), (None, Some(1)));
        assert_eq!(serde_json::to_string(&request).unwrap(), good);
        for bad in [
            r#"{"request":"a","keyVersion":1}"#,
            r#"{"request":"a","generation":null}"#,
            r#"{"request":"a","generation":-1,"keyVersion":1}"#,
            r#"{"request":"a","generation":null,"keyVersion":1,"more":1}"#,
        ] {
            assert!(serde_json::from_str::<VolumeRequest>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_32_bytes() {
        let text = |len: usize| format!("\"{}\"", BASE64_STANDARD.encode(vec![7; len]));
        let key: VolumeKey = serde_json::from_str(&text(32)).unwrap();
        assert_eq!(key.as_bytes(), &[7; 32]);
        assert_eq!(serde_json::to_string(&key).unwrap(), text(32));
        for len in [0, 31, 33, 64] {
            assert!(serde_json::from_str::<VolumeKey>(&text(len)).is_err());
        }
        assert_eq!(format!("{key:?}"), "VolumeKey(…)");
    }
}
