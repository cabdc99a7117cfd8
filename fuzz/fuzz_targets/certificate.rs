//! Certificates, PEM or DER: errors are fine, panics are bugs.
#![no_main]

use assay_attest::describe::describe_certificate;
use assay_attest::evidence::parse_certificates;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = describe_certificate(data);
    for der in parse_certificates(data).unwrap_or_default() {
        let _ = describe_certificate(&der);
    }
});
