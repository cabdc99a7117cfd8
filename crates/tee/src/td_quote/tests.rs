use super::*;
use zerocopy::FromZeros as _;

/// A quote whose parts are told apart by their bytes.
fn quote(version: u16) -> Vec<u8> {
    let mut header = QuoteHeader::new_zeroed();
    header.version = version.into();
    header.attestation_key_type = KEY_TYPE_ECDSA_P256.into();
    header.tee_type = TEE_TYPE_TDX.into();
    header.qe_vendor_id = INTEL_QE_VENDOR;
    let mut bytes = header.as_bytes().to_vec();
    if version == 5 {
        bytes.extend([3, 0, 0x88, 2, 0, 0]);
    }
    let mut report = TdReport::new_zeroed();
    report.mr_td = [1; 48];
    report.report_data = [2; 64];
    bytes.extend(report.as_bytes());
    if version == 5 {
        bytes.extend([3; 64]);
    }
    let mut certification = vec![4; 384];
    certification.extend([5; 64]);
    certification.extend([2, 0, 6, 6]);
    certification.extend([5, 0, 3, 0, 0, 0]);
    certification.extend(b"PEM");
    let mut signature = vec![7; 64];
    signature.extend([8; 64]);
    signature.extend([6, 0]);
    signature.extend(u32::try_from(certification.len()).unwrap().to_le_bytes());
    signature.extend(certification);
    bytes.extend(u32::try_from(signature.len()).unwrap().to_le_bytes());
    bytes.extend(signature);
    bytes
}

#[test]
fn a_quote_has_its_parts() {
    for (version, signed) in [(4, 632), (5, 702)] {
        let bytes = quote(version);
        let quote = TdQuote::parse(&bytes).unwrap();
        assert_eq!(quote.report.mr_td, [1; 48]);
        assert_eq!(quote.report.report_data, [2; 64]);
        let tail = quote.report_15.map(|tail| tail.mr_service_td);
        assert_eq!(tail, (version == 5).then_some([3; 48]));
        assert_eq!(quote.signed_bytes, &bytes[..signed]);
        assert_eq!(quote.qe_report.mr_signer, [4; 32]);
        assert_eq!(quote.qe_report_signature, &[5; 64]);
        assert_eq!(quote.qe_authentication_data, [6, 6]);
        assert_eq!(
            (quote.signature, quote.attestation_key),
            (&[7; 64], &[8; 64])
        );
        assert_eq!(quote.pck_chain, b"PEM");
    }
}

#[test]
fn every_shorter_quote_is_refused() {
    for version in [4, 5] {
        let bytes = quote(version);
        for len in 0..bytes.len() {
            assert!(TdQuote::parse(&bytes[..len]).is_err(), "{version}, {len}");
        }
    }
}

#[test]
fn only_zeros_may_follow() {
    let mut bytes = quote(4);
    bytes.extend([0; 9]);
    assert!(TdQuote::parse(&bytes).is_ok());
    bytes.push(1);
    let error = TdQuote::parse(&bytes).unwrap_err();
    assert!(
        matches!(error, ParseQuoteError::LeftOver { count: 10, .. }),
        "{error}"
    );
}

#[test]
fn each_unknown_value_is_named() {
    let good = quote(5);
    let rows: [(usize, u8, &str); 8] = [
        (0, 3, "version 3"),
        (2, 3, "ATT_KEY_TYPE is 3"),
        (4, 0, "TEE type 0x0"),
        (12, 0, "not Intel's"),
        (48, 4, "the body's type is 4"),
        (50, 0x48, "the body's length is 584"),
        (702 + 4 + 128, 5, "certification data is 5"),
        (702 + 4 + 128 + 6 + 448 + 4, 1, "PCK's data is 1"),
    ];
    for (offset, value, text) in rows {
        let mut bytes = good.clone();
        bytes[offset] = value;
        let error = TdQuote::parse(&bytes).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_length_that_is_too_short_leaves_bytes_over() {
    let mut bytes = quote(4);
    // The chain's length, one less: its last byte belongs to nothing.
    let at = bytes.len() - 7;
    bytes[at] -= 1;
    let error = TdQuote::parse(&bytes).unwrap_err();
    assert!(
        matches!(error, ParseQuoteError::LeftOver { count: 1, .. }),
        "{error}"
    );
}

#[test]
fn attributes_without_a_meaning_are_unknown() {
    let known = [
        0, 4, 5, 6, 16, 17, 18, 19, 20, 21, 22, 27, 28, 29, 30, 31, 62, 63,
    ];
    for bit in 0..64 {
        let unknown = TdAttributes(1 << bit).unknown() != 0;
        assert_eq!(unknown, !known.contains(&bit), "{bit}");
    }
}

proptest::proptest! {
    #[test]
    fn damaged_quotes_give_a_value_or_an_error(
        version in 4_u16..=5,
        at: proptest::sample::Index,
        value: u8,
        cut: proptest::sample::Index,
    ) {
        let mut bytes = quote(version);
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok(quote) = TdQuote::parse(&bytes) {
            proptest::prop_assert!(bytes.starts_with(quote.signed_bytes));
        }
    }
}
