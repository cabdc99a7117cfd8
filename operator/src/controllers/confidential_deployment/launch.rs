//! The launch specification of a deployment, and the ConfigMap that carries it.

use std::collections::BTreeMap;

use assay_crds::names;
use assay_crds::v1alpha1::ConfidentialDeployment;
use assay_launcher::spec::LAUNCH_SPEC_KEY;
use assay_tee::Sha256Digest;
use assay_tee::canonical::encode_canonical;
use assay_workload::launch::build_spec;
use assay_workload::validate::Valid;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;

use crate::manifest::child_metadata;

/// Hexadecimal digits of a revision: 40 bits tell the revisions of one
/// deployment apart.
const REVISION_LEN: usize = 10;

/// The launch specification of one revision.
pub(super) struct Launch {
    /// Digest of the specification, abbreviated.
    pub(super) revision: String,
    /// The ConfigMap that carries it.
    pub(super) config_map: ConfigMap,
}

pub(super) fn build_launch(deployment: &ConfidentialDeployment, valid: &Valid) -> Launch {
    let spec = build_spec(deployment, valid);
    // A LaunchSpec has string keys only, so it always has a canonical form.
    let document = encode_canonical(&spec).unwrap_or_default();
    let digest = Sha256Digest::of(&document).to_hex();
    let revision = digest.get(..REVISION_LEN).unwrap_or_default().to_owned();
    let document = String::from_utf8(document).unwrap_or_default();
    let name = deployment.name_any();
    let labels = [
        (names::DEPLOYMENT_LABEL, name.as_str()),
        (names::IMAGE_LABEL, deployment.spec.image_ref.name.as_str()),
        (names::REVISION_LABEL, revision.as_str()),
    ];
    let config_map = ConfigMap {
        metadata: child_metadata(deployment, format!("{name}-launch-{revision}"), &labels),
        data: Some(BTreeMap::from([(LAUNCH_SPEC_KEY.to_owned(), document)])),
        immutable: Some(true),
        ..ConfigMap::default()
    };
    Launch {
        revision,
        config_map,
    }
}
