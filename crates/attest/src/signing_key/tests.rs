use super::*;

/// See `tests/keys/README.md`.
/// PKCS#8, SEC 1 and public form of one key.
const PKCS8: &str = include_str!("../../tests/keys/p384.pkcs8.pem");
const SEC1: &str = include_str!("../../tests/keys/p384.sec1.pem");
const PUBLIC: &str = include_str!("../../tests/keys/p384.public.pem");

#[test]
fn all_forms_of_a_key_are_the_same_key() {
    let key = PrivateKey::from_pem(PKCS8).unwrap().public_key();
    let with_parameters =
        format!("-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n{SEC1}");
    for text in [SEC1, &with_parameters, &format!("a comment\n{PKCS8}")] {
        assert_eq!(PrivateKey::from_pem(text).unwrap().public_key(), key);
    }
    let (_, der) = pem::decode_vec(PUBLIC.as_bytes()).unwrap();
    for bytes in [PUBLIC.as_bytes(), PKCS8.as_bytes(), SEC1.as_bytes(), &der] {
        assert_eq!(read_public_key(bytes), Ok(key));
    }
}

#[test]
fn each_wrong_file_gets_its_own_sentence() {
    let encrypted_sec1 = SEC1.replacen(
        "KEY-----\n",
        "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n",
        1,
    );
    let certificate = PUBLIC.replace("PUBLIC KEY", "CERTIFICATE");
    let cut = PKCS8.replacen('M', "", 1);
    for (text, error) in [
        ("", ReadKeyError::NotPem),
        ("-----BEGIN ", ReadKeyError::NotPem),
        ("-----BEGIN PRIVATE KEY-----\nAA==\n", ReadKeyError::NotPem),
        (
            include_str!("../../tests/keys/p384.encrypted.pem"),
            ReadKeyError::Encrypted,
        ),
        (&encrypted_sec1, ReadKeyError::Encrypted),
        (PUBLIC, ReadKeyError::NotPrivate),
        (&certificate, ReadKeyError::Label("CERTIFICATE".to_owned())),
        (
            &cut,
            ReadKeyError::Malformed {
                label: "PRIVATE KEY",
                at: None,
            },
        ),
        (
            include_str!("../../tests/keys/p256.sec1.pem"),
            ReadKeyError::Curve("on P-256".to_owned()),
        ),
        (
            include_str!("../../tests/keys/p256.pkcs8.pem"),
            ReadKeyError::Curve("on P-256".to_owned()),
        ),
        (
            include_str!("../../tests/keys/ed25519.pkcs8.pem"),
            ReadKeyError::Curve("an Ed25519 key".to_owned()),
        ),
    ] {
        assert_eq!(PrivateKey::from_pem(text).err(), Some(error), "{text}");
    }
    let public = read_public_key(include_bytes!("../../tests/keys/p256.public.pem"));
    assert_eq!(public, Err(ReadKeyError::Curve("on P-256".to_owned())));
}

#[test]
fn damaged_der_names_its_offset() {
    let (_, der) = pem::decode_vec(PUBLIC.as_bytes()).unwrap();
    let error = read_public_key(&der[..50]).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("\"PUBLIC KEY\" is damaged at byte "),
        "{said}"
    );
}

/// RFC 6979, A.2.6 (P-384, SHA-384, message "sample").
#[test]
fn signatures_are_those_of_rfc_6979() {
    let scalar = "6b9d3dad2e1b8c1c05b19875b6659f4de23c3b667bf297ba9aa47740787137d8\
                  96d5724e4c70a825f872c9ea60d2edf5";
    let expected = "94edbb92a5ecb8aad4736e56c691916b3f88140666ce9fa73d64c4ea95ad133c\
                    81a648152e44acf96e36dd1e80fabe4699ef4aeb15f178cea1fe40db2603138f\
                    130e740a19624526203b6351d0a3a94fa329c145786e679e7b82c71a38628ac8";
    let key = PrivateKey(SigningKey::from_slice(&hex::decode(scalar).unwrap()).unwrap());
    assert_eq!(hex::encode(key.sign(b"sample").to_fixed()), expected);
}

#[test]
fn signatures_are_read_in_both_forms() {
    let fixed = PrivateKey::from_pem(PKCS8).unwrap().sign(b"x").to_fixed();
    let der = Signature::from_slice(&fixed).unwrap().to_der().to_bytes();
    for bytes in [&fixed[..], &der] {
        assert_eq!(read_signature(bytes).unwrap().to_fixed(), fixed);
    }
    for bytes in [&[][..], &[0; 96], &[0xff; 96], &fixed[1..], &der[1..]] {
        assert_eq!(
            read_signature(bytes),
            Err(ReadSignatureError { got: bytes.len() })
        );
    }
}
