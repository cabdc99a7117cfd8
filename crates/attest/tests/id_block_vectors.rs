//! Known answers for ID blocks from public projects. The files with keys and
//! signatures are skipped, loudly, where the vectors are absent.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::PathBuf;

use assay_attest::id_block::{PrivateKey, sign, verify};
use assay_tee::id_block::{IdAuth, IdBlock};
use assay_tee::{GuestPolicy, LaunchDigest};

/// virtee/sev 8.0.0, tests/id-block.rs; snpguest prints the same, in base64.
const DIGEST: &str = "sha384:a14d638341e5674628fe1e02fbedebe5e5ab4faf1dd72d8966068e615bb99efd\
                      13d214b35c231715b38e263dc6059745";
const ID_KEY_DIGEST: &str = "59fb2c686dfa4fef49f38339aa775c90051c28d57383ddc3baf3b5eb4b14\
    96df3b0dbbdcbae5fe27677a644820773fe2";
const AUTHOR_KEY_DIGEST: &str = "eed81169fb0cb5e0ec34794f128fd4e0c4a46f67c65a1adfa81fcb24bcc0\
    88c272369b7ffc3eb2b6af6a4284a1b36c5f";

fn vector(name: &str) -> Option<Vec<u8>> {
    let directory = std::env::var_os("ASSAY_VECTORS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"),
        PathBuf::from,
    );
    let path = directory.join("idblock").join(name);
    let bytes = std::fs::read(&path).ok();
    if bytes.is_none() {
        eprintln!("SKIPPED: no {} (set ASSAY_VECTORS)", path.display());
    }
    bytes
}

#[test]
fn keys_have_the_known_digests() {
    for (file, expected) in [
        ("test_id_key.pem", ID_KEY_DIGEST),
        ("test_auth_key.pem", AUTHOR_KEY_DIGEST),
    ] {
        let Some(pem) = vector(file) else { return };
        let key = PrivateKey::from_pem(&String::from_utf8(pem).unwrap()).unwrap();
        assert_eq!(key.public_key().digest().to_hex(), expected, "{file}");
    }
}

/// The authentication that virtee/sev has for these keys, with signatures that
/// OpenSSL made of the known block and of the ID key.
#[test]
fn the_known_authentication_verifies_and_is_laid_out_as_ours() {
    let (Some(known), Some(id), Some(author)) = (
        vector("test_auth_block.bin"),
        vector("test_id_key.pem"),
        vector("test_auth_key.pem"),
    ) else {
        return;
    };
    let key = |pem: Vec<u8>| PrivateKey::from_pem(&String::from_utf8(pem).unwrap()).unwrap();
    let (id, author) = (key(id), key(author));
    let block = IdBlock::new(
        DIGEST.parse::<LaunchDigest>().unwrap(),
        GuestPolicy::default(),
    );

    let auth = IdAuth::parse(&known).unwrap();
    let signers = verify(&block, &auth).unwrap();
    assert_eq!(signers.id_key_digest.to_hex(), ID_KEY_DIGEST);
    assert_eq!(
        signers.author_key_digest.unwrap().to_hex(),
        AUTHOR_KEY_DIGEST
    );

    // With the known signatures in place of ours every byte is the same.
    let mut ours = sign(&block, &id, Some(&author));
    assert_eq!(verify(&block, &ours), Ok(signers));
    ours.id_block_signature = auth.id_block_signature;
    ours.id_key_signature = auth.id_key_signature;
    assert_eq!(ours.encode().as_slice(), known);
}
