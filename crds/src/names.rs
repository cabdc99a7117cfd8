//! Names that several programs must agree on: labels, annotations, conditions
//! of foreign objects, and the objects that make up an installation.

/// API group of every kind.
pub const GROUP: &str = "assay.dev";

/// Pod label: name of the ConfidentialDeployment.
pub const DEPLOYMENT_LABEL: &str = "assay.dev/deployment";
/// Pod and Job label: name of the MeasuredImage.
pub const IMAGE_LABEL: &str = "assay.dev/image";
/// Label of pods, ReplicaSets and launch ConfigMaps: the revision of the launch
/// specification.
pub const REVISION_LABEL: &str = "assay.dev/revision";
/// Pod annotation: the launch digest that the operator expects of this pod.
pub const EXPECTED_DIGEST_ANNOTATION: &str = "assay.dev/expected-launch-digest";

/// Pod condition and readiness gate: True only while the guest's latest
/// attestation is accepted, unexpired and unrevoked.
pub const ATTESTED_GATE: &str = "assay.dev/Attested";

/// Secret label that says which guests may receive the Secret's values.
pub const RELEASE_CLASS_LABEL: &str = "assay.dev/release-class";
/// Value of [`RELEASE_CLASS_LABEL`]: may be released to simulated guests. A
/// Secret without it is released to hardware-backed guests only.
pub const RELEASE_CLASS_SIMULATED: &str = "simulated";

/// ConfigMap in the installation's namespace with the broker's CA.
pub const BROKER_CA_CONFIG_MAP: &str = "assay-broker-ca";
/// Key of [`BROKER_CA_CONFIG_MAP`].
pub const BROKER_CA_KEY: &str = "ca.crt";
/// Secret in the installation's namespace with the broker's own keys.
pub const BROKER_SECRET: &str = "assay-broker-keys";
/// Name of the broker's Service and of its ServiceAccount.
pub const BROKER: &str = "assay-broker";
/// Port of the broker's Service.
pub const BROKER_PORT: u16 = 8443;
/// Secret in the installation's namespace with the development PKI; present
/// only where simulation is enabled.
pub const SIMULATION_SECRET: &str = "assay-simulation-pki";
/// ConfigMap in the installation's namespace with the simulated root, for the
/// broker; present only where simulation is enabled.
pub const SIMULATION_ROOT_CONFIG_MAP: &str = "assay-simulation-root";
/// Key of [`SIMULATION_ROOT_CONFIG_MAP`]: PEM of the development ARK.
pub const SIMULATION_ROOT_KEY: &str = "ark.pem";
