//! ID blocks, their authentication, keys and signatures.
#![no_main]

use assay_attest::id_block::{PrivateKey, read_public_key, read_signature, verify};
use assay_tee::id_block::{ID_BLOCK_LEN, IdAuth, IdBlock};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (head, tail) = data.split_at(data.len().min(ID_BLOCK_LEN));
    let block = IdBlock::parse(head);
    let auth = IdAuth::parse(tail);
    if let Ok(block) = &block {
        assert_eq!(block.encode().as_slice(), head);
    }
    if let Ok(auth) = &auth {
        assert_eq!(auth.encode().as_slice(), tail);
    }
    if let (Ok(block), Ok(auth)) = (block, auth) {
        let _ = verify(&block, &auth);
    }
    if let Ok(text) = str::from_utf8(data) {
        let _ = PrivateKey::from_pem(text);
    }
    let _ = read_public_key(data);
    if let Ok(signature) = read_signature(data) {
        assert_eq!(read_signature(&signature.to_fixed()), Ok(signature));
    }
});
