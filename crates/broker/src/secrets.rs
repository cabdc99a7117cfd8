//! Where the values are that the broker releases.
//!
//! A store says which guests may have a value and what it is; whether to release
//! it is decided in [`crate::release`], for every store alike. What is not marked
//! for simulated guests is for hardware-backed guests alone.

pub mod config;
pub mod files;
pub mod kubernetes;
pub mod vault;

use std::fmt;

use assay_crds::names::RELEASE_CLASS_SIMULATED;
use assay_crds::v1alpha1::confidential_deployment::SecretKeyReference;
use futures::future::{BoxFuture, FutureExt as _, ready};
use zeroize::Zeroizing;

use crate::release::ResourcePath;

/// Which guests may have a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseClass {
    /// Those that hardware protects.
    Hardware,
    /// Simulated ones, too, which nothing protects.
    Simulated,
}

impl ReleaseClass {
    /// The class that a mark beside the value says; any other word than
    /// `simulated` is none.
    pub fn of_mark(mark: Option<&str>) -> Self {
        if mark == Some(RELEASE_CLASS_SIMULATED) {
            Self::Simulated
        } else {
            Self::Hardware
        }
    }
}

/// What a store has under a name.
pub struct StoredSecret {
    /// Which guests may have it.
    pub class: ReleaseClass,
    /// The value; nothing, where the secret has no such key.
    pub value: Option<Zeroizing<Vec<u8>>>,
}

/// Without the value.
impl fmt::Debug for StoredSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredSecret")
            .field("class", &self.class)
            .finish_non_exhaustive()
    }
}

/// Where a value is, in words for a person who has to mend it. Never the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The secret, such as `Secret "web-secrets"`.
    pub secret: String,
    /// Where that is, such as `in namespace shop`.
    pub place: String,
    /// The value within it, such as `key "greeting"`.
    pub value: String,
    /// What marks it for simulated guests, such as `label …=simulated`.
    pub mark: String,
}

/// The store cannot say what it has.
#[derive(Debug, thiserror::Error)]
#[error("cannot read a value from the {store} store")]
pub struct SecretStoreError {
    /// The store: one of few words, for metrics.
    pub store: &'static str,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Where values are.
///
/// # Guarantees
/// [`SecretStore::read`] gives nothing only when the store says that there is
/// nothing: a store that cannot be asked, or refuses, is an error. No error and no
/// [`Location`] holds a value or a credential.
pub trait SecretStore: Send + Sync {
    /// Reads what `reference` names, or what `path` does in stores that know
    /// resources by their paths.
    fn read<'a>(
        &'a self,
        path: &'a ResourcePath,
        reference: &'a SecretKeyReference,
    ) -> BoxFuture<'a, Result<Option<StoredSecret>, SecretStoreError>>;

    /// Opens a value that [`SecretStore::read`] gives sealed. Asked only for a
    /// value whose class allows its release.
    fn open<'a>(
        &'a self,
        path: &'a ResourcePath,
        value: Zeroizing<Vec<u8>>,
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, SecretStoreError>> {
        let _ = path;
        ready(Ok(value)).boxed()
    }

    /// Where a person finds it.
    fn locate(&self, path: &ResourcePath, reference: &SecretKeyReference) -> Location;
}
