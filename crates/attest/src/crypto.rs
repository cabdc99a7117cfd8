//! The cryptographic primitives that appraisal needs, and nothing else, so that
//! another implementation can take the place of this one where aws-lc does not
//! compile.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED,
    RSA_PSS_2048_8192_SHA384, UnparsedPublicKey,
};

/// Bytes of an RSA-4096 modulus, and so of a signature.
const RSA_4096_LEN: usize = 512;

/// A signature does not verify, or key or signature are malformed. Says no more
/// on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct VerifySignatureError;

/// Verifies RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes.
/// `public_key` is a PKCS#1 `RSAPublicKey`; only RSA-4096 is accepted, as all of
/// AMD's keys are.
///
/// # Errors
/// When the signature does not verify.
pub fn verify_rsa_pss_sha384(
    public_key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), VerifySignatureError> {
    if signature.len() != RSA_4096_LEN {
        return Err(VerifySignatureError);
    }
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, public_key)
        .verify(message, signature)
        .map_err(|_| VerifySignatureError)
}

/// Verifies ECDSA on P-384 with SHA-384. `public_key` is an uncompressed point,
/// `signature` is `r || s`, big-endian.
///
/// # Errors
/// When the signature does not verify.
pub fn verify_ecdsa_p384_sha384(
    public_key: &[u8; 97],
    message: &[u8],
    signature: &[u8; 96],
) -> Result<(), VerifySignatureError> {
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, public_key)
        .verify(message, signature)
        .map_err(|_| VerifySignatureError)
}

/// Verifies ECDSA on P-256 with SHA-256, as quotes have it. `public_key` is
/// `x || y`, `signature` is `r || s`, both big-endian.
///
/// # Errors
/// When the signature does not verify.
pub fn verify_ecdsa_p256_sha256(
    public_key: &[u8; 64],
    message: &[u8],
    signature: &[u8; 64],
) -> Result<(), VerifySignatureError> {
    const UNCOMPRESSED: u8 = 4;
    let point = [&[UNCOMPRESSED], &public_key[..]].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(message, signature)
        .map_err(|_| VerifySignatureError)
}

/// Verifies ECDSA on P-256 with SHA-256, as certificates have it. `public_key` is
/// an uncompressed point, `signature` is DER.
///
/// # Errors
/// When the signature does not verify.
pub fn verify_ecdsa_p256_sha256_der(
    public_key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), VerifySignatureError> {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key)
        .verify(message, signature)
        .map_err(|_| VerifySignatureError)
}
