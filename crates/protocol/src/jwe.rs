//! Flattened JWE with ECDH-ES+A256KW and A256GCM (RFC 7516, RFC 7518 §4.6):
//! how a resource travels to the key in the guest's evidence.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rand;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// `alg`: key agreement with an ephemeral key, then AES key wrap.
pub const KEY_ALGORITHM: &str = "ECDH-ES+A256KW";
/// `enc`: content encryption.
pub const CONTENT_ALGORITHM: &str = "A256GCM";

const KEY_TYPE: &str = "EC";
const CURVE: &str = "P-256";
const COORDINATE_LEN: usize = 32;
const KEY_LEN: usize = 32;
const WRAPPED_KEY_LEN: usize = KEY_LEN + 8;
const TAG_LEN: usize = 16;

/// Why a JWE was not made or not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// Making a key or a nonce failed.
    #[error("the cryptography library made no key")]
    Generate,
    /// The public key is not an EC key on P-256.
    #[error("not a public key on P-256")]
    PublicKey,
    /// The protected header is not one that this crate writes or reads.
    #[error("the protected header is not {KEY_ALGORITHM} with {CONTENT_ALGORITHM}")]
    Header,
    /// A part is not base64url of the expected length.
    #[error("malformed part {0}")]
    Part(&'static str),
    /// The content key does not unwrap: another recipient's, or changed.
    #[error("the content key does not unwrap with this key")]
    UnwrapKey,
    /// The content does not authenticate.
    #[error("the content does not authenticate")]
    Open,
    /// Encryption failed.
    #[error("the content could not be encrypted")]
    Seal,
}

/// An EC public key as a JWK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EcPublicKey {
    /// `EC`.
    pub kty: String,
    /// `P-256`.
    pub crv: String,
    /// The x coordinate, base64url without padding.
    pub x: String,
    /// The y coordinate, base64url without padding.
    pub y: String,
}

impl EcPublicKey {
    /// From an uncompressed point (SEC 1 §2.3.3).
    fn from_point(point: &[u8]) -> Result<Self, JweError> {
        let [0x04, coordinates @ ..] = point else {
            return Err(JweError::PublicKey);
        };
        if coordinates.len() != 2 * COORDINATE_LEN {
            return Err(JweError::PublicKey);
        }
        let (x, y) = coordinates.split_at(COORDINATE_LEN);
        Ok(Self {
            kty: KEY_TYPE.to_owned(),
            crv: CURVE.to_owned(),
            x: BASE64_URL_SAFE_NO_PAD.encode(x),
            y: BASE64_URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// As an uncompressed point. Whether it is on the curve is checked when it
    /// is used.
    ///
    /// # Errors
    /// When the key is not on P-256 or a coordinate has another length.
    pub fn to_point(&self) -> Result<Vec<u8>, JweError> {
        if self.kty != KEY_TYPE || self.crv != CURVE {
            return Err(JweError::PublicKey);
        }
        let mut point = vec![0x04];
        for coordinate in [&self.x, &self.y] {
            let bytes = BASE64_URL_SAFE_NO_PAD
                .decode(coordinate)
                .map_err(|_| JweError::PublicKey)?;
            if bytes.len() != COORDINATE_LEN {
                return Err(JweError::PublicKey);
            }
            point.extend(bytes);
        }
        Ok(point)
    }
}

/// A recipient's private key on P-256. It never leaves this type.
pub struct RecipientKey(PrivateKey);

impl RecipientKey {
    /// Makes a key.
    ///
    /// # Errors
    /// When the cryptography library has no randomness.
    pub fn generate() -> Result<Self, JweError> {
        PrivateKey::generate(&ECDH_P256)
            .map(Self)
            .map_err(|_| JweError::Generate)
    }

    /// The public part.
    ///
    /// # Errors
    /// When the cryptography library fails.
    pub fn public_key(&self) -> Result<EcPublicKey, JweError> {
        let point = self
            .0
            .compute_public_key()
            .map_err(|_| JweError::Generate)?;
        EcPublicKey::from_point(point.as_ref())
    }
}

/// The protected header. Unknown members are refused: `crit` and `zip` among
/// them would change how the content is to be read.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    enc: String,
    epk: EcPublicKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    apu: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    apv: Option<String>,
}

/// A flattened JWE, every part base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwe {
    /// The protected header.
    pub protected: String,
    /// The wrapped content key.
    pub encrypted_key: String,
    /// The initialization vector.
    pub iv: String,
    /// The encrypted content.
    pub ciphertext: String,
    /// The authentication tag.
    pub tag: String,
}

impl Jwe {
    /// Encrypts `content` to `recipient`.
    ///
    /// # Errors
    /// When `recipient` is no point on P-256 or the cryptography library fails.
    pub fn encrypt(content: &[u8], recipient: &EcPublicKey) -> Result<Self, JweError> {
        let ephemeral = RecipientKey::generate()?;
        let header = Header {
            alg: KEY_ALGORITHM.to_owned(),
            enc: CONTENT_ALGORITHM.to_owned(),
            epk: ephemeral.public_key()?,
            apu: None,
            apv: None,
        };
        let header = serde_json::to_vec(&header).map_err(|_| JweError::Header)?;
        let protected = BASE64_URL_SAFE_NO_PAD.encode(header);

        let mut content_key = Zeroizing::new([0; KEY_LEN]);
        rand::fill(content_key.as_mut_slice()).map_err(|_| JweError::Generate)?;
        let mut iv = [0; NONCE_LEN];
        rand::fill(&mut iv).map_err(|_| JweError::Generate)?;

        let mut wrapped = [0; WRAPPED_KEY_LEN];
        let wrapped = key_encryption_key(&ephemeral, recipient, &[], &[])?
            .wrap(content_key.as_slice(), &mut wrapped)
            .map_err(|_| JweError::Seal)?;

        let mut in_out = Zeroizing::new(content.to_vec());
        let tag = content_cipher(&content_key)?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(iv),
                Aad::from(protected.as_bytes()),
                in_out.as_mut_slice(),
            )
            .map_err(|_| JweError::Seal)?;
        Ok(Self {
            encrypted_key: BASE64_URL_SAFE_NO_PAD.encode(wrapped),
            iv: BASE64_URL_SAFE_NO_PAD.encode(iv),
            ciphertext: BASE64_URL_SAFE_NO_PAD.encode(in_out.as_slice()),
            tag: BASE64_URL_SAFE_NO_PAD.encode(tag.as_ref()),
            protected,
        })
    }

    /// Decrypts with the recipient's key.
    ///
    /// # Errors
    /// When any part is malformed, changed, or meant for another key.
    pub fn decrypt(&self, key: &RecipientKey) -> Result<Zeroizing<Vec<u8>>, JweError> {
        let header = decode("protected", &self.protected)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| JweError::Header)?;
        if header.alg != KEY_ALGORITHM || header.enc != CONTENT_ALGORITHM {
            return Err(JweError::Header);
        }
        let apu = decode("apu", header.apu.as_deref().unwrap_or_default())?;
        let apv = decode("apv", header.apv.as_deref().unwrap_or_default())?;

        let wrapped: [u8; WRAPPED_KEY_LEN] = decode_array("encrypted_key", &self.encrypted_key)?;
        let mut content_key = Zeroizing::new([0; KEY_LEN]);
        key_encryption_key(key, &header.epk, &apu, &apv)?
            .unwrap(&wrapped, content_key.as_mut_slice())
            .map_err(|_| JweError::UnwrapKey)?;

        let iv: [u8; NONCE_LEN] = decode_array("iv", &self.iv)?;
        let tag: [u8; TAG_LEN] = decode_array("tag", &self.tag)?;
        let mut content = Zeroizing::new(decode("ciphertext", &self.ciphertext)?);
        let plain_len = content.len();
        content.extend_from_slice(&tag);
        content_cipher(&content_key)?
            .open_in_place(
                Nonce::assume_unique_for_key(iv),
                Aad::from(self.protected.as_bytes()),
                content.as_mut_slice(),
            )
            .map_err(|_| JweError::Open)?;
        content.truncate(plain_len);
        Ok(content)
    }
}

fn decode(part: &'static str, text: &str) -> Result<Vec<u8>, JweError> {
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| JweError::Part(part))
}

fn decode_array<const N: usize>(part: &'static str, text: &str) -> Result<[u8; N], JweError> {
    decode(part, text)?
        .try_into()
        .map_err(|_| JweError::Part(part))
}

fn content_cipher(key: &[u8; KEY_LEN]) -> Result<LessSafeKey, JweError> {
    UnboundKey::new(&AES_256_GCM, key)
        .map(LessSafeKey::new)
        .map_err(|_| JweError::Seal)
}

/// Agrees with the peer and derives the key that wraps the content key.
fn key_encryption_key(
    own: &RecipientKey,
    peer: &EcPublicKey,
    apu: &[u8],
    apv: &[u8],
) -> Result<AesKek, JweError> {
    let peer = UnparsedPublicKey::new(&ECDH_P256, peer.to_point()?);
    agree(&own.0, peer, JweError::PublicKey, |shared| {
        let key = concat_kdf(shared, KEY_ALGORITHM, apu, apv, KEY_LEN);
        AesKek::new(&AES_256, &key).map_err(|_| JweError::PublicKey)
    })
}

/// One round of the Concat KDF with SHA-256 (NIST SP 800-56A §5.8.1, RFC 7518
/// §4.6.2). One round yields 32 bytes; `len` is at most that.
fn concat_kdf(
    shared: &[u8],
    algorithm: &str,
    apu: &[u8],
    apv: &[u8],
    len: usize,
) -> Zeroizing<Vec<u8>> {
    let mut hash = Sha256::new();
    hash.update(1_u32.to_be_bytes());
    hash.update(shared);
    for field in [algorithm.as_bytes(), apu, apv] {
        hash.update(length_prefix(field.len()));
        hash.update(field);
    }
    hash.update(length_prefix(len * 8));
    let mut key = Zeroizing::new(hash.finalize().to_vec());
    key.truncate(len);
    key
}

/// A 32-bit length. Header fields are bounded by the message's size, far below
/// `u32::MAX`; a longer one would derive a key that opens nothing.
fn length_prefix(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (RecipientKey, EcPublicKey) {
        let key = RecipientKey::generate().unwrap();
        let public = key.public_key().unwrap();
        (key, public)
    }

    /// RFC 7518, Appendix C.
    #[test]
    fn concat_kdf_known_answer() {
        let d = "0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo";
        let d = BASE64_URL_SAFE_NO_PAD.decode(d).unwrap();
        let alice = PrivateKey::from_private_key(&ECDH_P256, &d).unwrap();
        let bob = EcPublicKey {
            kty: "EC".to_owned(),
            crv: "P-256".to_owned(),
            x: "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ".to_owned(),
            y: "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck".to_owned(),
        };
        let bob = UnparsedPublicKey::new(&ECDH_P256, bob.to_point().unwrap());
        let key = agree(&alice, bob, (), |shared| {
            Ok(concat_kdf(shared, "A128GCM", b"Alice", b"Bob", 16))
        });
        assert_eq!(
            BASE64_URL_SAFE_NO_PAD.encode(key.unwrap().as_slice()),
            "VqqN6vgjbSBcIijNcacQGg"
        );
    }

    #[test]
    fn round_trip() {
        let (key, public) = pair();
        for content in [vec![], b"secret".to_vec(), vec![7; 65536]] {
            let jwe = Jwe::encrypt(&content, &public).unwrap();
            assert_eq!(*jwe.decrypt(&key).unwrap(), content);
        }
    }

    #[test]
    fn another_key_opens_nothing() {
        let (_, public) = pair();
        let (other, _) = pair();
        let jwe = Jwe::encrypt(b"secret", &public).unwrap();
        assert_eq!(jwe.decrypt(&other), Err(JweError::UnwrapKey));
    }

    fn flip(text: &str) -> String {
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(text).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    #[test]
    fn every_part_is_authenticated() {
        let (key, public) = pair();
        let good = Jwe::encrypt(b"secret", &public).unwrap();
        let mut wrapped = good.clone();
        wrapped.encrypted_key = flip(&good.encrypted_key);
        assert_eq!(wrapped.decrypt(&key), Err(JweError::UnwrapKey));
        let mut iv = good.clone();
        iv.iv = flip(&good.iv);
        assert_eq!(iv.decrypt(&key), Err(JweError::Open));
        let mut ciphertext = good.clone();
        ciphertext.ciphertext = flip(&good.ciphertext);
        assert_eq!(ciphertext.decrypt(&key), Err(JweError::Open));
        let mut tag = good.clone();
        tag.tag = flip(&good.tag);
        assert_eq!(tag.decrypt(&key), Err(JweError::Open));
        // Another spelling of the same header: same keys, other bytes.
        let header = BASE64_URL_SAFE_NO_PAD.decode(&good.protected).unwrap();
        let mut spaced = header.clone();
        spaced.push(b' ');
        let mut protected = good.clone();
        protected.protected = BASE64_URL_SAFE_NO_PAD.encode(spaced);
        assert_eq!(protected.decrypt(&key), Err(JweError::Open));
        let mut short = good;
        short.tag = "AAAA".to_owned();
        assert_eq!(short.decrypt(&key), Err(JweError::Part("tag")));
    }

    #[test]
    fn other_headers_are_refused() {
        let (key, public) = pair();
        let good = Jwe::encrypt(b"secret", &public).unwrap();
        let header = BASE64_URL_SAFE_NO_PAD.decode(&good.protected).unwrap();
        let header = String::from_utf8(header).unwrap();
        for (from, to) in [
            ("A256GCM", "A128GCM"),
            ("ECDH-ES+A256KW", "ECDH-ES"),
            (r#"{"alg""#, r#"{"crit":["x"],"alg""#),
            (r#"{"alg""#, r#"{"zip":"DEF","alg""#),
        ] {
            let mut changed = good.clone();
            changed.protected = BASE64_URL_SAFE_NO_PAD.encode(header.replacen(from, to, 1));
            assert_eq!(changed.decrypt(&key), Err(JweError::Header), "{to}");
        }
    }

    #[test]
    fn keys_off_the_curve_are_refused() {
        let (_, good) = pair();
        let mut off_curve = good.clone();
        off_curve.y = flip(&good.y);
        let mut other_curve = good.clone();
        other_curve.crv = "P-384".to_owned();
        let mut short = good.clone();
        short.x = "AAAA".to_owned();
        for key in [off_curve, other_curve, short] {
            assert_eq!(
                Jwe::encrypt(b"secret", &key),
                Err(JweError::PublicKey),
                "{key:?}"
            );
        }
    }
}
