//! The certificates that AMD publishes and that are part of the program.

use std::sync::LazyLock;

use assay_tee::Sha256Digest;

use crate::certificate::Certificate;

/// DER of the certificates that AMD publishes; `anchors/README.md` says where
/// they come from. The intermediates for VLEKs are not among them.
const PUBLISHED: [&[u8]; 6] = [
    include_bytes!("anchors/milan.ark.der"),
    include_bytes!("anchors/milan.ask.der"),
    include_bytes!("anchors/genoa.ark.der"),
    include_bytes!("anchors/genoa.ask.der"),
    include_bytes!("anchors/turin.ark.der"),
    include_bytes!("anchors/turin.ask.der"),
];

fn publications() -> &'static [Certificate] {
    static CERTIFICATES: LazyLock<Vec<Certificate>> = LazyLock::new(|| {
        let parsed = PUBLISHED.iter().map(|der| Certificate::parse(der));
        parsed.filter_map(Result::ok).collect()
    });
    &CERTIFICATES
}

/// The certificate that AMD publishes with this common name. It is a hint like
/// those that a host supplies: signatures and anchors are checked all the same.
pub(crate) fn published(common_name: &str) -> Option<&'static Certificate> {
    publications()
        .iter()
        .find(|certificate| certificate.common_name == common_name)
}

/// The certificate that AMD publishes with these very bytes.
pub(crate) fn published_der(der: &[u8]) -> Option<&'static Certificate> {
    publications()
        .iter()
        .find(|certificate| certificate.der() == der)
}

/// As [`published`], if its name is the one that `issued` says issued it.
pub(crate) fn published_issuer(
    issued: &Certificate,
    common_name: &str,
) -> Option<&'static Certificate> {
    published(common_name).filter(|published| published.subject() == issued.issuer())
}

/// Whether AMD publishes both certificates and the signature of `issuer` on
/// `issued` holds. It is verified once in a process: these bytes never change.
pub(crate) fn is_published_issue(issued: &Certificate, issuer: &Certificate) -> bool {
    static ISSUES: LazyLock<Vec<[Sha256Digest; 2]>> = LazyLock::new(|| {
        let pairs = publications().iter().flat_map(|issued| {
            let issuers = publications().iter();
            issuers.map(move |issuer| (issued, issuer))
        });
        pairs
            .filter(|(issued, issuer)| issued.verify_issued_by(issuer).is_ok())
            .map(|(issued, issuer)| [issued.fingerprint, issuer.fingerprint])
            .collect()
    });
    ISSUES.contains(&[issued.fingerprint, issuer.fingerprint])
}

#[cfg(test)]
mod tests {
    use assay_tee::Product;

    use super::*;
    use crate::anchors::amd_root;

    #[test]
    fn published_certificates_end_in_the_pinned_roots() {
        for (product, [ark, ask]) in Product::ALL.into_iter().zip(PUBLISHED.as_chunks().0) {
            assert_eq!(Sha256Digest::of(ark), amd_root(product));
            let [ark, ask] = [ark, ask].map(|der| Certificate::parse(der).unwrap());
            assert_eq!(ark.verify_issued_by(&ark), Ok(()));
            assert_eq!(ask.verify_issued_by(&ark), Ok(()));
            assert_eq!(ask.common_name, format!("SEV-{product}"));
            let name = format!("ARK-{product}");
            let found = published_issuer(&ask, &name).unwrap();
            assert_eq!(found.fingerprint, amd_root(product));
            assert!(published_issuer(&ask, "ARK-Other").is_none());
        }
    }

    #[test]
    fn only_what_is_published_and_signed_counts_as_verified() {
        let mut issues = 0;
        for issued in PUBLISHED {
            let certificate = Certificate::parse(issued).unwrap();
            // The last byte is one of the signature.
            let mut changed = issued.to_vec();
            *changed.last_mut().unwrap() ^= 1;
            let changed = Certificate::parse(&changed).unwrap();
            for issuer in PUBLISHED {
                let issuer = Certificate::parse(issuer).unwrap();
                let holds = certificate.verify_issued_by(&issuer).is_ok();
                assert_eq!(is_published_issue(&certificate, &issuer), holds);
                assert!(!is_published_issue(&changed, &issuer));
                assert!(changed.verify_issued_by(&issuer).is_err());
                issues += usize::from(holds);
            }
        }
        assert_eq!(issues, PUBLISHED.len());
    }
}
