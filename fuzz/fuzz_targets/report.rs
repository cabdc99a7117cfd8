//! Attestation reports: what is read is written back byte for byte.
#![no_main]

use assay_tee::report::AttestationReport;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(mut report) = AttestationReport::parse(data) {
        assert_eq!(report.encode().as_slice(), data);
        let signature = report.signature_fixed();
        report.set_signature_fixed(&signature);
        assert_eq!(report.encode().as_slice(), data);
    }
});
