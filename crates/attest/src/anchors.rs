//! Trust anchors: which root keys are believed, and what a chain that ends in
//! one of them proves.

use std::fmt;
use std::sync::LazyLock;

use assay_tee::{Product, Sha256Digest, Tee};
use serde::{Deserialize, Serialize};

use crate::certificate::Certificate;

/// The roots that evidence may chain to. AMD's are part of the program; one
/// simulated root may be added by configuration, never from evidence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustAnchors {
    /// SHA-256 of the DER of a simulated ARK, where simulation is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulated: Option<Sha256Digest>,
}

impl TrustAnchors {
    /// AMD's roots alone.
    pub const fn amd() -> Self {
        Self { simulated: None }
    }

    /// AMD's roots and a simulated one.
    pub const fn with_simulated(anchor: Sha256Digest) -> Self {
        Self {
            simulated: Some(anchor),
        }
    }

    /// What a chain of `product` that ends in `ark` proves: nothing, if `ark` is
    /// not an anchor.
    pub fn domain_of(&self, product: Product, ark: Sha256Digest) -> Option<TrustDomain> {
        if ark == amd_root(product) {
            Some(TrustDomain::Amd)
        } else if self.simulated == Some(ark) {
            Some(TrustDomain::Simulated { anchor: ark })
        } else {
            None
        }
    }
}

/// Whose word the evidence rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum TrustDomain {
    /// AMD vouches for the processor.
    #[serde(rename = "AMD")]
    Amd,
    /// A development root vouches for a simulation. It proves that the logic
    /// works and protects nothing.
    Simulated {
        /// SHA-256 of the root's DER.
        anchor: Sha256Digest,
    },
}

impl TrustDomain {
    /// The TEE that evidence of this domain comes from.
    pub const fn tee(self) -> Tee {
        match self {
            Self::Amd => Tee::Snp,
            Self::Simulated { .. } => Tee::SimulatedSnp,
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amd => f.write_str("AMD"),
            Self::Simulated { anchor } => write!(f, "Simulated {anchor}"),
        }
    }
}

/// SHA-256 of the DER of AMD's root certificate of a product, as its key
/// distribution service publishes them (`/vcek/v1/{product}/cert_chain`).
const fn amd_root(product: Product) -> Sha256Digest {
    Sha256Digest::new(match product {
        Product::Milan => {
            *b"\x69\xd0\x63\xb4\x53\x44\xd2\x6a\x2e\x94\xe1\xf4\x21\x0d\xe4\x9e\
               \xf5\x55\x30\x82\x87\xd4\xc1\x74\x44\x5c\x95\x63\x9a\x54\x0b\xcd"
        }
        Product::Genoa => {
            *b"\x4c\x65\x98\xd1\x9c\x18\x71\x9c\x5d\xfd\x4a\x7d\x33\x5f\x67\x4e\
               \x5b\xfe\x1d\x8f\x80\x0c\xea\x2c\xf2\x70\xc1\x0d\x10\x3d\xb2\xf1"
        }
        Product::Turin => {
            *b"\x1f\x08\x41\x61\xa4\x4b\xb6\xd9\x37\x78\xa9\x04\x87\x7d\x48\x19\
               \xca\xfa\x5d\x05\xef\x41\x93\xb2\xde\xd9\xdd\x9c\x73\xdd\x3f\x6a"
        }
    })
}

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
    use super::*;

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

    #[test]
    fn a_root_counts_for_its_own_product_only() {
        let anchors = TrustAnchors::amd();
        for product in Product::ALL {
            for root in Product::ALL {
                let domain = (product == root).then_some(TrustDomain::Amd);
                assert_eq!(anchors.domain_of(product, amd_root(root)), domain);
            }
        }
    }

    #[test]
    fn a_simulated_root_counts_only_where_configured() {
        let root = Sha256Digest::of(b"root");
        let domain = Some(TrustDomain::Simulated { anchor: root });
        let anchors = TrustAnchors::with_simulated(root);
        assert_eq!(anchors.domain_of(Product::Genoa, root), domain);
        assert_eq!(
            anchors.domain_of(Product::Genoa, Sha256Digest::of(b"other")),
            None
        );
        assert_eq!(TrustAnchors::amd().domain_of(Product::Genoa, root), None);
    }
}
