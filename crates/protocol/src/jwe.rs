//! Encryption of resources to the key in the guest's evidence: flattened JWE with
//! A256GCM, and ECDH-ES+A256KW or RSA-OAEP-256 (RFC 7516, RFC 7518 §4.3 and §4.6).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{Algorithm, ECDH_P256, ECDH_P521, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents,
};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::volume::VolumeGrant;

/// `alg` for an EC key: agreement with an ephemeral key, then AES key wrap.
pub const ECDH_ALGORITHM: &str = "ECDH-ES+A256KW";
/// `alg` for an RSA key: OAEP with SHA-256.
pub const RSA_ALGORITHM: &str = "RSA-OAEP-256";
/// `enc`: content encryption.
pub const CONTENT_ALGORITHM: &str = "A256GCM";

const KEY_TYPE: &str = "EC";
const KEY_LEN: usize = 32;
const WRAPPED_KEY_LEN: usize = KEY_LEN + 8;
const TAG_LEN: usize = 16;

/// Why a JWE was not made or not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// Making a key or a nonce failed.
    #[error("the cryptography library made no key")]
    Generate,
    /// The public key is of no kind that this crate encrypts to.
    #[error(
        "neither a key on P-256 or P-521 for {ECDH_ALGORITHM} nor an RSA key of 2048 to 8192 bits \
         for {RSA_ALGORITHM}"
    )]
    PublicKey,
    /// The protected header is not one that this crate writes or reads.
    #[error("the protected header is not {ECDH_ALGORITHM} with {CONTENT_ALGORITHM}")]
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

/// The curves of keys that resources are encrypted to (RFC 7518 §6.2.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-521.
    P521,
}

impl Curve {
    const ALL: [Self; 2] = [Self::P256, Self::P521];

    /// Its name as a JWK has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of a coordinate.
    pub const fn coordinate_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P521 => 66,
        }
    }

    fn by_name(name: &str) -> Result<Self, JweError> {
        let mut curves = Self::ALL.into_iter();
        let found = curves.find(|curve| curve.name() == name);
        found.ok_or(JweError::PublicKey)
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::P256 => &ECDH_P256,
            Self::P521 => &ECDH_P521,
        }
    }
}

/// An EC public key as a JWK. Its members are sorted: clients of other key brokers
/// write the header again before they authenticate it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EcPublicKey {
    /// Name of the [`Curve`].
    pub crv: String,
    /// `EC`.
    pub kty: String,
    /// The x coordinate, base64url without padding.
    pub x: String,
    /// The y coordinate, base64url without padding.
    pub y: String,
}

impl EcPublicKey {
    /// From an uncompressed point (SEC 1 §2.3.3).
    fn from_point(curve: Curve, point: &[u8]) -> Result<Self, JweError> {
        let [0x04, coordinates @ ..] = point else {
            return Err(JweError::PublicKey);
        };
        let len = curve.coordinate_len();
        if coordinates.len() != 2 * len {
            return Err(JweError::PublicKey);
        }
        let (x, y) = coordinates.split_at(len);
        Ok(Self {
            kty: KEY_TYPE.to_owned(),
            crv: curve.name().to_owned(),
            x: BASE64_URL_SAFE_NO_PAD.encode(x),
            y: BASE64_URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// As an uncompressed point. Whether it is on the curve is checked when it
    /// is used.
    ///
    /// # Errors
    /// When its curve is unknown or a coordinate has another length.
    pub fn to_point(&self) -> Result<Vec<u8>, JweError> {
        let curve = self.curve()?;
        let mut point = vec![0x04];
        for coordinate in [&self.x, &self.y] {
            let bytes = BASE64_URL_SAFE_NO_PAD
                .decode(coordinate)
                .map_err(|_| JweError::PublicKey)?;
            if bytes.len() != curve.coordinate_len() {
                return Err(JweError::PublicKey);
            }
            point.extend(bytes);
        }
        Ok(point)
    }

    fn curve(&self) -> Result<Curve, JweError> {
        if self.kty != KEY_TYPE {
            return Err(JweError::PublicKey);
        }
        Curve::by_name(&self.crv)
    }
}

/// The guest's public key as a JWK that names its algorithm. It is hashed as it
/// was parsed, so that unknown members are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty", deny_unknown_fields)]
pub enum TeePublicKey {
    /// A key on a curve.
    #[serde(rename = "EC")]
    Ec {
        /// Name of the [`Curve`].
        crv: String,
        /// [`ECDH_ALGORITHM`].
        alg: String,
        /// The x coordinate, base64url without padding.
        x: String,
        /// The y coordinate, base64url without padding.
        y: String,
    },
    /// An RSA key.
    #[serde(rename = "RSA")]
    Rsa {
        /// [`RSA_ALGORITHM`].
        alg: String,
        /// The modulus, base64url without padding.
        n: String,
        /// The public exponent, base64url without padding.
        e: String,
    },
}

/// A public key that was read.
enum Recipient {
    Ec(EcPublicKey),
    Rsa(OaepPublicEncryptingKey),
}

impl TeePublicKey {
    /// An EC key with its algorithm.
    pub fn new(key: &EcPublicKey) -> Self {
        let EcPublicKey { crv, x, y, .. } = key.clone();
        let alg = ECDH_ALGORITHM.to_owned();
        Self::Ec { crv, alg, x, y }
    }

    /// Checks that resources can be encrypted to the key. Whether a point is on
    /// its curve is checked when it is used.
    ///
    /// # Errors
    /// When it is of another kind or malformed.
    pub fn validate(&self) -> Result<(), JweError> {
        self.recipient().map(drop)
    }

    fn recipient(&self) -> Result<Recipient, JweError> {
        match self {
            Self::Ec { crv, alg, x, y } if alg == ECDH_ALGORITHM => {
                let key = EcPublicKey {
                    crv: crv.clone(),
                    kty: KEY_TYPE.to_owned(),
                    x: x.clone(),
                    y: y.clone(),
                };
                key.to_point()?;
                Ok(Recipient::Ec(key))
            }
            Self::Rsa { alg, n, e } if alg == RSA_ALGORITHM => {
                let number = |text: &str| {
                    BASE64_URL_SAFE_NO_PAD
                        .decode(text)
                        .map_err(|_| JweError::PublicKey)
                };
                let (n, e) = (number(n)?, number(e)?);
                let key: PublicEncryptingKey = PublicKeyComponents { n, e }
                    .try_into()
                    .map_err(|_| JweError::PublicKey)?;
                OaepPublicEncryptingKey::new(key)
                    .map(Recipient::Rsa)
                    .map_err(|_| JweError::PublicKey)
            }
            Self::Ec { .. } | Self::Rsa { .. } => Err(JweError::PublicKey),
        }
    }
}

/// A recipient's private key. It never leaves this type.
pub struct RecipientKey {
    key: PrivateKey,
    curve: Curve,
}

impl RecipientKey {
    /// Makes a key on P-256.
    ///
    /// # Errors
    /// When the cryptography library has no randomness.
    pub fn generate() -> Result<Self, JweError> {
        Self::generate_on(Curve::P256)
    }

    /// Makes a key on `curve`.
    ///
    /// # Errors
    /// When the cryptography library has no randomness.
    pub fn generate_on(curve: Curve) -> Result<Self, JweError> {
        let key = PrivateKey::generate(curve.algorithm()).map_err(|_| JweError::Generate)?;
        Ok(Self { key, curve })
    }

    /// The public part.
    ///
    /// # Errors
    /// When the cryptography library fails.
    pub fn public_key(&self) -> Result<EcPublicKey, JweError> {
        let point = self
            .key
            .compute_public_key()
            .map_err(|_| JweError::Generate)?;
        EcPublicKey::from_point(self.curve, point.as_ref())
    }
}

/// The protected header. Unknown members are refused: `crit` and `zip` among
/// them would change how the content is to be read.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    enc: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epk: Option<EcPublicKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    apu: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    apv: Option<String>,
    /// What the keys of a volume are for; a private name (RFC 7516 §4.3).
    #[serde(
        default,
        rename = "dev.assay.volume",
        skip_serializing_if = "Option::is_none"
    )]
    volume: Option<VolumeGrant>,
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
    /// When `recipient` is no key to encrypt to or the cryptography library fails.
    pub fn encrypt(content: &[u8], recipient: &TeePublicKey) -> Result<Self, JweError> {
        Self::seal(content, recipient, None)
    }

    /// Encrypts the keys of a volume to `recipient`; `grant` is authenticated with
    /// them.
    pub(crate) fn encrypt_volume(
        content: &[u8],
        recipient: &TeePublicKey,
        grant: &VolumeGrant,
    ) -> Result<Self, JweError> {
        Self::seal(content, recipient, Some(grant.clone()))
    }

    fn seal(
        content: &[u8],
        recipient: &TeePublicKey,
        volume: Option<VolumeGrant>,
    ) -> Result<Self, JweError> {
        let mut content_key = Zeroizing::new([0; KEY_LEN]);
        rand::fill(content_key.as_mut_slice()).map_err(|_| JweError::Generate)?;
        let mut iv = [0; NONCE_LEN];
        rand::fill(&mut iv).map_err(|_| JweError::Generate)?;

        let (mut header, encrypted_key) = match recipient.recipient()? {
            Recipient::Ec(key) => wrap_by_agreement(&content_key, &key)?,
            Recipient::Rsa(key) => wrap_by_oaep(&content_key, &key)?,
        };
        header.volume = volume;
        let header = serde_json::to_vec(&header).map_err(|_| JweError::Header)?;
        let protected = BASE64_URL_SAFE_NO_PAD.encode(header);

        let mut in_out = Zeroizing::new(content.to_vec());
        let tag = content_cipher(&content_key)?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(iv),
                Aad::from(protected.as_bytes()),
                in_out.as_mut_slice(),
            )
            .map_err(|_| JweError::Seal)?;
        Ok(Self {
            encrypted_key: BASE64_URL_SAFE_NO_PAD.encode(encrypted_key),
            iv: BASE64_URL_SAFE_NO_PAD.encode(iv),
            ciphertext: BASE64_URL_SAFE_NO_PAD.encode(in_out.as_slice()),
            tag: BASE64_URL_SAFE_NO_PAD.encode(tag.as_ref()),
            protected,
        })
    }

    /// Decrypts with the recipient's key.
    ///
    /// # Errors
    /// When any part is malformed, changed, or meant for another key, or the
    /// content is the keys of a volume.
    pub fn decrypt(&self, key: &RecipientKey) -> Result<Zeroizing<Vec<u8>>, JweError> {
        match self.open(key)? {
            (None, content) => Ok(content),
            (Some(_), _) => Err(JweError::Header),
        }
    }

    /// Decrypts the keys of a volume, with what they are for.
    pub(crate) fn decrypt_volume(
        &self,
        key: &RecipientKey,
    ) -> Result<(VolumeGrant, Zeroizing<Vec<u8>>), JweError> {
        let (grant, content) = self.open(key)?;
        Ok((grant.ok_or(JweError::Header)?, content))
    }

    fn open(
        &self,
        key: &RecipientKey,
    ) -> Result<(Option<VolumeGrant>, Zeroizing<Vec<u8>>), JweError> {
        let header = decode("protected", &self.protected)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| JweError::Header)?;
        if header.alg != ECDH_ALGORITHM || header.enc != CONTENT_ALGORITHM {
            return Err(JweError::Header);
        }
        let epk = header.epk.ok_or(JweError::Header)?;
        let apu = decode("apu", header.apu.as_deref().unwrap_or_default())?;
        let apv = decode("apv", header.apv.as_deref().unwrap_or_default())?;

        let wrapped: [u8; WRAPPED_KEY_LEN] = decode_array("encrypted_key", &self.encrypted_key)?;
        let mut content_key = Zeroizing::new([0; KEY_LEN]);
        key_encryption_key(key, &epk, &apu, &apv)?
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
        Ok((header.volume, content))
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

fn wrap_by_agreement(
    content_key: &[u8; KEY_LEN],
    recipient: &EcPublicKey,
) -> Result<(Header, Vec<u8>), JweError> {
    let ephemeral = RecipientKey::generate_on(recipient.curve()?)?;
    let mut wrapped = [0; WRAPPED_KEY_LEN];
    let wrapped = key_encryption_key(&ephemeral, recipient, &[], &[])?
        .wrap(content_key, &mut wrapped)
        .map_err(|_| JweError::Seal)?;
    let header = Header {
        alg: ECDH_ALGORITHM.to_owned(),
        enc: CONTENT_ALGORITHM.to_owned(),
        epk: Some(ephemeral.public_key()?),
        apu: None,
        apv: None,
        volume: None,
    };
    Ok((header, wrapped.to_vec()))
}

fn wrap_by_oaep(
    content_key: &[u8; KEY_LEN],
    recipient: &OaepPublicEncryptingKey,
) -> Result<(Header, Vec<u8>), JweError> {
    let mut encrypted = vec![0; recipient.ciphertext_size()];
    recipient
        .encrypt(&OAEP_SHA256_MGF1SHA256, content_key, &mut encrypted, None)
        .map_err(|_| JweError::Seal)?;
    let header = Header {
        alg: RSA_ALGORITHM.to_owned(),
        enc: CONTENT_ALGORITHM.to_owned(),
        epk: None,
        apu: None,
        apv: None,
        volume: None,
    };
    Ok((header, encrypted))
}

/// Agrees with the peer, whose key must be on the same curve, and derives the key that wraps the content key.
fn key_encryption_key(
    own: &RecipientKey,
    peer: &EcPublicKey,
    apu: &[u8],
    apv: &[u8],
) -> Result<AesKek, JweError> {
    if peer.curve()? != own.curve {
        return Err(JweError::PublicKey);
    }
    let peer = UnparsedPublicKey::new(own.curve.algorithm(), peer.to_point()?);
    agree(&own.key, peer, JweError::PublicKey, |shared| {
        let key = concat_kdf(shared, ECDH_ALGORITHM, apu, apv, KEY_LEN);
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
    use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use aws_lc_rs::signature::KeyPair as _;

    fn pair() -> (RecipientKey, TeePublicKey) {
        let key = RecipientKey::generate().unwrap();
        let public = TeePublicKey::new(&key.public_key().unwrap());
        (key, public)
    }

    fn rsa_pair(size: KeySize) -> (OaepPrivateDecryptingKey, TeePublicKey) {
        let key = KeyPair::generate(size).unwrap();
        let components = PublicKeyComponents::<Vec<u8>>::from(key.public_key());
        let public = TeePublicKey::Rsa {
            alg: RSA_ALGORITHM.to_owned(),
            n: BASE64_URL_SAFE_NO_PAD.encode(components.n),
            e: BASE64_URL_SAFE_NO_PAD.encode(components.e),
        };
        let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
        let key = PrivateDecryptingKey::from_pkcs8(der.as_ref()).unwrap();
        (OaepPrivateDecryptingKey::new(key).unwrap(), public)
    }

    /// RFC 7518, Appendix C.
    #[test]
    fn concat_kdf_known_answer() {
        let d = "0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo";
        let d = BASE64_URL_SAFE_NO_PAD.decode(d).unwrap();
        let alice = PrivateKey::from_private_key(&ECDH_P256, &d).unwrap();
        let bob = EcPublicKey {
            crv: "P-256".to_owned(),
            kty: "EC".to_owned(),
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
    fn round_trip_on_p_521() {
        let key = RecipientKey::generate_on(Curve::P521).unwrap();
        let public = key.public_key().unwrap();
        assert_eq!(public.crv, "P-521");
        let jwe = Jwe::encrypt(b"secret", &TeePublicKey::new(&public)).unwrap();
        assert_eq!(*jwe.decrypt(&key).unwrap(), b"secret");
        // The ephemeral key is on the recipient's curve, and no other.
        let (other, _) = pair();
        assert_eq!(jwe.decrypt(&other), Err(JweError::PublicKey));
        let header = BASE64_URL_SAFE_NO_PAD.decode(&jwe.protected).unwrap();
        let header: Header = serde_json::from_slice(&header).unwrap();
        assert_eq!(header.epk.unwrap().to_point().unwrap().len(), 133);
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
            ("ECDH-ES+A256KW", "RSA-OAEP-256"),
            (r#""epk""#, r#""kid""#),
            (r#"{"alg""#, r#"{"crit":["x"],"alg""#),
            (r#"{"alg""#, r#"{"zip":"DEF","alg""#),
        ] {
            let mut changed = good.clone();
            changed.protected = BASE64_URL_SAFE_NO_PAD.encode(header.replacen(from, to, 1));
            assert_eq!(changed.decrypt(&key), Err(JweError::Header), "{to}");
        }
    }

    #[test]
    fn other_keys_are_refused() {
        let changed = |good: &TeePublicKey, field: &str, value: &str| {
            let mut key = serde_json::to_value(good).unwrap();
            key[field] = value.into();
            serde_json::from_value::<TeePublicKey>(key).unwrap()
        };
        let (_, ec) = pair();
        let TeePublicKey::Ec { y, .. } = &ec else {
            unreachable!()
        };
        let (_, rsa) = rsa_pair(KeySize::Rsa2048);
        for key in [
            changed(&ec, "y", &flip(y)),
            changed(&ec, "crv", "P-384"),
            changed(&ec, "alg", "ECDH-ES"),
            changed(&ec, "x", "AAAA"),
            changed(&rsa, "alg", "RSA1_5"),
            changed(&rsa, "alg", "RSA-OAEP"),
            changed(&rsa, "n", "AQAB"),
            changed(&rsa, "e", "?"),
        ] {
            assert_eq!(
                Jwe::encrypt(b"secret", &key),
                Err(JweError::PublicKey),
                "{key:?}"
            );
        }
        for (good, kty) in [(ec, "RSA"), (rsa, "EC")] {
            let mut key = serde_json::to_value(&good).unwrap();
            key["use"] = "enc".into();
            assert!(serde_json::from_value::<TeePublicKey>(key.take()).is_err());
            let mut key = serde_json::to_value(&good).unwrap();
            key["kty"] = kty.into();
            assert!(serde_json::from_value::<TeePublicKey>(key).is_err());
        }
    }

    /// A client of Confidential Containers reads the JWE, writes the header again
    /// and takes that for the authenticated data.
    #[test]
    fn another_client_reads_it() {
        for size in [KeySize::Rsa2048, KeySize::Rsa4096] {
            let (key, public) = rsa_pair(size);
            let jwe = Jwe::encrypt(b"secret", &public).unwrap();
            let response: kbs_types::Response =
                serde_json::from_value(serde_json::to_value(&jwe).unwrap()).unwrap();
            assert_eq!(response.protected.alg, "RSA-OAEP-256");
            let aad = response.protected.generate_aad().unwrap();
            assert_eq!(aad, jwe.protected.as_bytes());
            let mut content_key = vec![0; key.min_output_size()];
            let content_key = key
                .decrypt(
                    &OAEP_SHA256_MGF1SHA256,
                    &response.encrypted_key,
                    &mut content_key,
                    None,
                )
                .unwrap();
            let mut content = [response.ciphertext, response.tag].concat();
            let content = content_cipher((&*content_key).try_into().unwrap())
                .unwrap()
                .open_in_place(
                    Nonce::try_assume_unique_for_key(&response.iv).unwrap(),
                    Aad::from(aad),
                    &mut content,
                )
                .unwrap();
            assert_eq!(content, b"secret");
        }
        let (_, public) = pair();
        let jwe = Jwe::encrypt(b"secret", &public).unwrap();
        let response: kbs_types::Response =
            serde_json::from_value(serde_json::to_value(&jwe).unwrap()).unwrap();
        assert_eq!(
            response.protected.generate_aad().unwrap(),
            jwe.protected.as_bytes()
        );
    }
}
