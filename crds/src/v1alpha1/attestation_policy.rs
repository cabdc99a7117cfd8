//! `AttestationPolicy`: what evidence is acceptable, how fresh it must be, and
//! what is released on it.

use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use assay_tee::{Sha256Digest, Sha384Digest};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TeeType;
use super::measured_image::LifecycleState;
use crate::conditions::reasons;
use crate::digest::{IdBlockIdText, Sha256Text, Sha384Text};
use crate::duration::Duration;

/// What evidence is acceptable. What is not named is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "assay.dev",
    version = "v1alpha1",
    kind = "AttestationPolicy",
    namespaced,
    plural = "attestationpolicies",
    shortname = "ap",
    category = "assay",
    status = "AttestationPolicyStatus",
    derive = "PartialEq",
    doc = "What evidence is acceptable, how fresh it must be, and what is released on it.",
    printcolumn(name = "TEEs", type_ = "string", json_path = ".spec.tees"),
    printcolumn(
        name = "Max-Age",
        type_ = "string",
        json_path = ".spec.freshness.maxAge"
    ),
    printcolumn(
        name = "Bound",
        type_ = "integer",
        json_path = ".status.boundDeployments",
        description = "ConfidentialDeployments that use this policy"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct AttestationPolicySpec {
    /// Trusted execution environments to accept. `SimulatedSNP` also needs the
    /// operator's consent, and protects nothing.
    #[schemars(length(max = 4))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.size() > 0").message("tees names no TEE, so no evidence would be accepted: name at least one, such as SNP")
    )]
    pub tees: Vec<TeeType>,
    /// What SEV-SNP evidence must show.
    pub snp: SnpPolicy,
    /// How often guests attest, and how long an accepted attestation holds.
    #[serde(default)]
    pub freshness: Freshness,
    /// What is released to an accepted guest. Nothing else is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["resource".to_owned()]))]
    #[schemars(length(max = 64))]
    pub release: Vec<ReleaseRule>,
}

impl AttestationPolicySpec {
    /// Digest of the canonical specification: what instance data and records
    /// name the policy by. Fields that came later are left out at their defaults,
    /// so that policies which do not use them keep their digest.
    ///
    /// # Errors
    /// Never for a value of this type; the encoder's error is passed on.
    pub fn hash(&self) -> Result<Sha256Digest, EncodeCanonicalError> {
        Ok(Sha256Digest::of(&encode_canonical(self)?))
    }
}

/// What SEV-SNP evidence must show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnpPolicy {
    /// Processor products to accept, each with its minimum TCB. A product
    /// without an entry is refused.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub products: Vec<ProductPolicy>,
    /// Which of the report's TCB versions must reach the minimum.
    #[serde(default = "default_tcb_against")]
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub tcb_against: Vec<TcbKind>,
    /// Keys that may sign reports; without this field the chip's own, VCEK, alone.
    #[serde(default = "chip_keys", skip_serializing_if = "is_chip_keys")]
    #[schemars(length(max = 2))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["type".to_owned()]),
        validation = Rule::new("self.size() > 0").message("snp.signingKeys names no key, so no evidence would be accepted: name VCEK, VLEK or both, or leave it out for VCEK alone")
    )]
    pub signing_keys: Vec<SigningKeyRule>,
    /// Chips to accept, by the SHA-256 of CHIP_ID, as records show it; without this
    /// field any. A report that a VLEK signed names no chip and is refused then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Sha256Text>>", length(max = 256))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.size() > 0").message("snp.allowedChips names no chip, so no evidence would be accepted: name at least one, or leave it out to accept any")
    )]
    pub allowed_chips: Option<Vec<Sha256Digest>>,
    /// What is refused although the vendor vouches for it: the vendor's revocation
    /// list cannot name a VCEK or VLEK.
    #[serde(default, skip_serializing_if = "is_default")]
    pub denied: DenyList,
    /// Privilege levels that a report may come from, exactly.
    #[serde(default = "default_vmpls")]
    #[schemars(length(min = 1, max = 4), inner(range(min = 0, max = 3)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub vmpls: Vec<u32>,
    /// What the guest policy may allow.
    #[serde(default)]
    pub guest_policy: GuestPolicyRules,
    /// What the platform must show.
    #[serde(default)]
    pub platform: PlatformRules,
    /// Who must have signed the launch, and for which guest. Nothing is asked for
    /// by default: the launch digest alone says what runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub id_block: IdBlockRules,
    /// Revocation lists of the processor's vendor.
    #[serde(default)]
    pub crl: CrlRules,
}

fn default_tcb_against() -> Vec<TcbKind> {
    vec![TcbKind::Reported, TcbKind::Committed, TcbKind::Launch]
}

fn chip_keys() -> Vec<SigningKeyRule> {
    vec![SigningKeyRule {
        type_: SigningKeyType::Vcek,
        providers: None,
    }]
}

fn is_chip_keys(keys: &Vec<SigningKeyRule>) -> bool {
    *keys == chip_keys()
}

fn default_vmpls() -> Vec<u32> {
    vec![0]
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A key that may sign reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'VLEK') == has(self.providers)").message("signingKeys.providers must be set exactly when signingKeys.type is VLEK: a VLEK counts only from a provider that is named"),
)]
pub struct SigningKeyRule {
    /// Which key.
    #[serde(rename = "type")]
    pub type_: SigningKeyType,
    /// CSP_ID of the providers whose VLEK is accepted, such as
    /// `CN=cc-us-east-2.amazonaws.com`: one per region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub providers: Option<Vec<String>>,
}

/// The kinds of endorsement key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SigningKeyType {
    /// The chip's own key.
    #[serde(rename = "VCEK")]
    Vcek,
    /// A cloud provider's key, which names no chip.
    #[serde(rename = "VLEK")]
    Vlek,
}

/// What is refused although the vendor vouches for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DenyList {
    /// Chips, by the SHA-256 of CHIP_ID, as records show it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Sha256Text>", length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub chips: Vec<Sha256Digest>,
    /// Endorsement keys, by the SHA-256 of their SubjectPublicKeyInfo, as records
    /// show it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Sha256Text>", length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub keys: Vec<Sha256Digest>,
}

/// What the ID block of the launch must be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.idKeyDigests) || has(self.authorKeyDigests) || !(has(self.familyIds) || has(self.imageIds) || has(self.minimumGuestSvn))").message("snp.idBlock.familyIds, imageIds and minimumGuestSvn prove nothing alone, because a host can sign an ID block with a key of its own: set idKeyDigests or authorKeyDigests beside them"),
)]
pub struct IdBlockRules {
    /// ID_KEY_DIGEST to accept, `sha384:…`, as `assay id-block key-digest`
    /// prints it; without this field any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Sha384Text>>", length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub id_key_digests: Option<Vec<Sha384Digest>>,
    /// AUTHOR_KEY_DIGEST to accept, `sha384:…`; without this field any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Sha384Text>>", length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub author_key_digests: Option<Vec<Sha384Digest>>,
    /// FAMILY_ID to accept, 32 hex digits; without this field any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<IdBlockIdText>>", length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub family_ids: Option<Vec<String>>,
    /// IMAGE_ID to accept, 32 hex digits; without this field any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<IdBlockIdText>>", length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub image_ids: Option<Vec<String>>,
    /// The least GUEST_SVN. Raise it to refuse guests that were signed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_guest_svn: Option<u32>,
}

/// A processor product and the oldest firmware that is accepted on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.minimumTCB.fmc) == (self.name == 'Turin')").message("products.minimumTCB.fmc must be set exactly when products.name is Turin: no other product has an FMC, and no TCB would reach the minimum"),
)]
pub struct ProductPolicy {
    /// The product.
    pub name: Product,
    /// Every component must be at least this.
    #[serde(rename = "minimumTCB")]
    pub minimum_tcb: MinimumTcb,
    /// The oldest SNP firmware, current and committed; without this field the
    /// TCB alone decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_firmware: Option<FirmwareVersion>,
    /// Numbers of the mitigation bits that must be set at launch and now, as the
    /// vendor's bulletins give them for the product. Reports before version 5 have
    /// no such bits and are refused then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub mitigations: Vec<u8>,
    /// The least number of the product's revocation list: that of the newest one
    /// that was ever seen, so that no older list takes its place.
    #[serde(
        default,
        rename = "minimumCRLNumber",
        skip_serializing_if = "Option::is_none"
    )]
    pub minimum_crl_number: Option<u32>,
}

/// A version of the SNP firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FirmwareVersion {
    /// Major version.
    #[schemars(range(max = 255))]
    pub major: u8,
    /// Minor version.
    #[schemars(range(max = 255))]
    pub minor: u8,
    /// Build.
    #[schemars(range(max = 255))]
    pub build: u8,
}

/// Processor products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004.
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl From<Product> for assay_tee::Product {
    fn from(product: Product) -> Self {
        match product {
            Product::Milan => Self::Milan,
            Product::Genoa => Self::Genoa,
            Product::Turin => Self::Turin,
        }
    }
}

/// Security versions of the platform's firmware, compared one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MinimumTcb {
    /// The boot loader.
    #[schemars(range(max = 255))]
    pub boot_loader: u8,
    /// The secure processor's operating system.
    #[schemars(range(max = 255))]
    pub tee: u8,
    /// The SNP firmware.
    #[schemars(range(max = 255))]
    pub snp: u8,
    /// The microcode.
    #[schemars(range(max = 255))]
    pub microcode: u8,
    /// The FMC; on Turin only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 255))]
    pub fmc: Option<u8>,
}

impl From<MinimumTcb> for assay_tee::TcbVersion {
    fn from(minimum: MinimumTcb) -> Self {
        let MinimumTcb {
            boot_loader,
            tee,
            snp,
            microcode,
            fmc,
        } = minimum;
        Self {
            fmc,
            bootloader: boot_loader,
            tee,
            snp,
            microcode,
        }
    }
}

/// The TCB versions of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TcbKind {
    /// REPORTED_TCB, which the endorsement key is derived from.
    Reported,
    /// COMMITTED_TCB, below which the platform cannot be rolled back.
    Committed,
    /// LAUNCH_TCB, when the guest was launched.
    Launch,
    /// CURRENT_TCB.
    Current,
}

/// Whether something is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Permission {
    /// It may be.
    Allowed,
    /// It must not be.
    Forbidden,
}

/// What the guest policy may allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestPolicyRules {
    /// Debugging by the hypervisor: it can read the guest's memory.
    #[serde(default = "forbidden")]
    pub debug: Permission,
    /// A migration agent.
    #[serde(default = "forbidden")]
    pub migration_agent: Permission,
    /// Simultaneous multithreading.
    #[serde(default = "allowed")]
    pub smt: Permission,
    /// CXL devices.
    #[serde(default = "allowed", skip_serializing_if = "is_allowed")]
    pub cxl: Permission,
    /// Restrictions that the guest must insist on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub required: Vec<GuestRestriction>,
    /// The least firmware ABI that the guest must insist on; without this field
    /// any.
    #[serde(
        default,
        rename = "minimumABI",
        skip_serializing_if = "Option::is_none"
    )]
    pub minimum_abi: Option<AbiVersion>,
}

impl Default for GuestPolicyRules {
    fn default() -> Self {
        Self {
            debug: forbidden(),
            migration_agent: forbidden(),
            smt: allowed(),
            cxl: allowed(),
            required: Vec::new(),
            minimum_abi: None,
        }
    }
}

fn forbidden() -> Permission {
    Permission::Forbidden
}

fn allowed() -> Permission {
    Permission::Allowed
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_allowed(permission: &Permission) -> bool {
    *permission == Permission::Allowed
}

/// A restriction that a guest policy can put on the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum GuestRestriction {
    /// SINGLE_SOCKET: the guest stays on one socket.
    SingleSocket,
    /// MEM_AES_256_XTS: memory is encrypted with AES-256-XTS.
    Aes256Xts,
    /// RAPL_DIS: power is not measured while the guest runs.
    RaplDisabled,
    /// CIPHERTEXT_HIDING_DRAM: the host does not read ciphertext.
    CiphertextHiding,
    /// PAGE_SWAP_DISABLE: the host neither moves nor swaps pages.
    PageSwapDisabled,
}

/// A version of the firmware ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AbiVersion {
    /// Major version.
    #[schemars(range(max = 255))]
    pub major: u8,
    /// Minor version.
    #[schemars(range(max = 255))]
    pub minor: u8,
}

/// Whether a platform property is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Requirement {
    /// It must be there.
    #[default]
    Require,
    /// It does not matter.
    Any,
}

/// What the platform must show. Bits that have no meaning yet are tolerated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.required) || !has(self.forbidden) || !self.required.exists(bit, bit in self.forbidden)").message("snp.platform.required and snp.platform.forbidden name the same property, so no evidence would be accepted: remove it from one of them"),
)]
pub struct PlatformRules {
    /// ALIAS_CHECK_COMPLETE: memory aliasing was ruled out at boot
    /// (CVE-2024-21944).
    #[serde(default)]
    pub alias_check: Requirement,
    /// Properties that must be on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub required: Vec<PlatformProperty>,
    /// Properties that must be off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub forbidden: Vec<PlatformProperty>,
}

/// A property of the platform, as PLATFORM_INFO reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PlatformProperty {
    /// Simultaneous multithreading is on.
    Smt,
    /// Transparent SME is on.
    Tsme,
    /// Memory has ECC.
    Ecc,
    /// RAPL is off.
    RaplDisabled,
    /// Ciphertext hiding is on.
    CiphertextHiding,
    /// Trusted I/O is on.
    Tio,
}

/// Revocation lists of the processor's vendor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CrlRules {
    /// Whether a fresh list is needed.
    #[serde(default)]
    pub mode: CrlMode,
    /// How long after its next update a list still counts as fresh; without this
    /// field not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Duration>,
}

/// Whether a fresh revocation list is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CrlMode {
    /// Without a fresh list, evidence is refused.
    #[default]
    Require,
    /// None is needed, and every record without one says so. One that is supplied
    /// is checked all the same.
    NotRequired,
}

/// How often guests attest, and how long it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.interval) < duration(self.maxAge)").message("freshness.interval must be shorter than freshness.maxAge"))]
pub struct Freshness {
    /// Guests attest again after this time.
    #[serde(default = "default_interval")]
    pub interval: Duration,
    /// An accepted attestation that is older than this no longer holds: the pod
    /// leaves its Services.
    #[serde(default = "default_max_age")]
    pub max_age: Duration,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            interval: default_interval(),
            max_age: default_max_age(),
        }
    }
}

fn default_interval() -> Duration {
    Duration::from_secs(600)
}

fn default_max_age() -> Duration {
    Duration::from_secs(1800)
}

/// Something that is released to accepted guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseRule {
    /// Name of an entry of a ConfidentialDeployment's `secrets`.
    #[schemars(length(min = 1, max = 63))]
    pub resource: String,
    /// States of the guest's image in which it is released.
    #[serde(default = "default_image_states")]
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("!self.exists(s, s == 'Revoked')").message("nothing is released to a revoked image")
    )]
    pub image_states: Vec<LifecycleState>,
}

fn default_image_states() -> Vec<LifecycleState> {
    vec![LifecycleState::Active, LifecycleState::Deprecated]
}

/// What is known of the policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttestationPolicyStatus {
    /// Generation of the specification that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Digest of the canonical specification, `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_hash: Option<String>,
    /// ConfidentialDeployments that use this policy.
    #[serde(default)]
    pub bound_deployments: i32,
    /// States: Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

reasons! {
    /// Why an AttestationPolicy is as it is.
    AttestationPolicyReason {
        /// It is in force.
        InForce,
        /// It names the simulated TEE, which this installation refuses.
        SimulationDisabled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn minimal() -> AttestationPolicySpec {
        serde_json::from_value(json!({"tees": ["SNP"], "snp": {"products": [{
            "name": "Genoa",
            "minimumTCB": {"bootLoader": 10, "tee": 0, "snp": 25, "microcode": 84},
        }]}}))
        .unwrap()
    }

    /// Guests carry the hash of their policy: another one here refuses every guest
    /// that runs when the operator is upgraded.
    #[test]
    fn the_hash_of_a_policy_outlives_new_fields() {
        assert_eq!(
            minimal().hash().unwrap().to_hex(),
            "a100313c102eb781b9d54babd3317e7221dabef3a009716af71329db116b242a"
        );
    }

    #[test]
    fn a_spelled_out_default_is_the_default() {
        let mut spelled = serde_json::to_value(minimal()).unwrap();
        let snp = &mut spelled["snp"];
        snp["signingKeys"] = json!([{"type": "VCEK"}]);
        snp["denied"] = json!({"chips": [], "keys": []});
        snp["idBlock"] = json!({});
        snp["products"][0]["mitigations"] = json!([]);
        snp["guestPolicy"]["cxl"] = json!("Allowed");
        snp["guestPolicy"]["required"] = json!([]);
        snp["platform"]["forbidden"] = json!([]);
        let spelled: AttestationPolicySpec = serde_json::from_value(spelled).unwrap();
        assert_eq!(spelled, minimal());
        assert_eq!(spelled.hash().unwrap(), minimal().hash().unwrap());
    }

    #[test]
    fn every_new_field_changes_the_hash() {
        let chip = Sha256Digest::of(b"chip");
        let key = Sha384Digest::new([1; 48]);
        for (pointer, field, value) in [
            (
                "/snp",
                "signingKeys",
                json!([{"type": "VLEK", "providers": ["CN=a"]}]),
            ),
            ("/snp", "allowedChips", json!([chip])),
            ("/snp", "denied", json!({"chips": [chip]})),
            ("/snp", "idBlock", json!({"idKeyDigests": [key]})),
            (
                "/snp/products/0",
                "minimumFirmware",
                json!({"major": 1, "minor": 55, "build": 38}),
            ),
            ("/snp/products/0", "mitigations", json!([1])),
            ("/snp/products/0", "minimumCRLNumber", json!(3)),
            ("/snp/guestPolicy", "cxl", json!("Forbidden")),
            ("/snp/guestPolicy", "required", json!(["SingleSocket"])),
            (
                "/snp/guestPolicy",
                "minimumABI",
                json!({"major": 1, "minor": 55}),
            ),
            ("/snp/platform", "required", json!(["Ecc"])),
            ("/snp/platform", "forbidden", json!(["Smt"])),
            ("/snp/crl", "grace", json!("1h")),
        ] {
            let mut changed = serde_json::to_value(minimal()).unwrap();
            changed.pointer_mut(pointer).unwrap()[field] = value;
            let changed: AttestationPolicySpec = serde_json::from_value(changed).unwrap();
            assert_ne!(
                changed.hash().unwrap(),
                minimal().hash().unwrap(),
                "{pointer}/{field}"
            );
        }
    }
}
