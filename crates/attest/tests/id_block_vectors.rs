//! Known answers for ID blocks from public projects. The files with keys and
//! signatures are skipped, loudly, where the vectors are absent.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Write as _;
use std::path::PathBuf;

use assay_attest::id_block::{PrivateKey, read_public_key, sign, verify};
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
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no {} (set ASSAY_VECTORS)",
            path.display()
        );
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

/// The test keys of sev-snp-measure 0.0.13 (tests/keyfile) and what its tests
/// (tests/test_id_block.py) say of them.
#[test]
fn sev_snp_measure_agrees_on_keys_and_block() {
    const ID_KEY: &str = "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEsg/RocK9K2UYOnbiOQrIBfbY5eKvcl5a
jpPPh+wCn51F6zJrBLkr63FOFPqYb4qaLJSguKswzHY1JnWUSHaJHpVP9u9YJqYj
G6bW1/br+2jOMw4eWTlO+3CAiD3caTZL
-----END PUBLIC KEY-----
";
    const AUTHOR_KEY: &str = "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEBoEfxiQJvy2a5RwHQjJU2JPGwj+/Fkrz
ODsPgTpifmFo2QZ6f0vZeZBYjBhBEhCgMrQgoiZW0nHc/U4lZoxy/Vi7X2hR/kcv
nRYPiAsU30w2IwaJYs3k1gjnNzQtqRLJ
-----END PUBLIC KEY-----
";
    for (pem, expected) in [
        (
            ID_KEY,
            "870b7e35c53f8a72d0d322f75ab2af8262792aaf6579622ce4131c3f21f289e7\
             7cb0560a5e3b90b3932e674ec709cb14",
        ),
        (
            AUTHOR_KEY,
            "63111c34bbfc0a4938f9a009bd074980d8172323e61599c9fd336da8673248e1\
             dca98d0be8f76376a106b8afd4c0a057",
        ),
    ] {
        let key = read_public_key(pem.as_bytes()).unwrap();
        assert_eq!(key.digest().to_hex(), expected);
    }
    let digest: LaunchDigest =
        "sha384:076f052d08bda7a700aa2a608c5caa6b00ebad297b6d68a85a45b1e669a558b6\
                                7e1b91d284a301fe63c4fa0750467eed"
            .parse()
            .unwrap();
    let block = IdBlock::new(digest, GuestPolicy(0x3_0000)).encode();
    let (head, tail) = block.split_at(LaunchDigest::LEN + 32);
    assert_eq!(head[..48], *digest.as_bytes());
    assert_eq!(head[48..], [0; 32]);
    assert_eq!(tail, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0]);
}
