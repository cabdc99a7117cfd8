//! Trust anchors: which root keys are believed.

use assay_tee::{Product, Sha256Digest};
use serde::{Deserialize, Serialize};

use crate::domain::TrustDomain;

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

/// SHA-256 of the DER of AMD's root certificate of a product, as its key
/// distribution service publishes them (`/vcek/v1/{product}/cert_chain`).
pub(crate) const fn amd_root(product: Product) -> Sha256Digest {
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

#[cfg(test)]
mod tests {
    use super::*;

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
