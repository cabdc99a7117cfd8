//! The appraisal policy: what evidence must show. What is not named is refused.

use std::fmt;

use assay_tee::report::PlatformInfo;
use assay_tee::{GuestPolicy, Product, Sha256Digest, Sha384Digest, TcbVersion, Tee};
use serde::{Deserialize, Serialize};

/// What evidence must show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppraisalPolicy {
    /// TEEs to accept. Simulated evidence needs `SimulatedSNP` here and an
    /// anchor in the configuration.
    pub tees: Vec<Tee>,
    /// Products to accept; one without an entry is refused. Of several entries
    /// for one product, all must hold.
    pub products: Vec<ProductPolicy>,
    /// Which TCB versions of the report must reach the product's minimum.
    pub tcb_against: Vec<TcbKind>,
    /// Keys that may sign reports.
    pub signing_keys: Vec<SigningKeyPolicy>,
    /// SHA-256 of the chip identities to accept, where the chip matters. A VLEK
    /// vouches for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_chips: Option<Vec<Sha256Digest>>,
    /// VMPLs that a report may come from, exactly.
    pub vmpls: Vec<u32>,
    /// What the guest policy must be.
    pub guest_policy: GuestPolicyRules,
    /// What the platform must be.
    pub platform: PlatformRules,
    /// Whether a revocation list of the vendor is needed.
    pub revocation_list: RevocationListMode,
    /// How long after its next update a revocation list still counts as fresh.
    #[serde(default)]
    pub revocation_list_grace_seconds: u32,
    /// What is refused although the vendor vouches for it.
    #[serde(default)]
    pub denied: DenyList,
    /// Who must have signed the launch, and for which guest.
    #[serde(default)]
    pub id_block: IdBlockPolicy,
}

impl AppraisalPolicy {
    /// The strict policy for `products`: real processors, VCEK, VMPL 0, no
    /// debugging, no migration, aliasing ruled out, every TCB at the minimum, a
    /// fresh revocation list.
    pub fn strict(products: Vec<ProductPolicy>) -> Self {
        Self {
            tees: vec![Tee::Snp],
            products,
            tcb_against: TcbKind::ALL.to_vec(),
            signing_keys: vec![SigningKeyPolicy::Vcek],
            allowed_chips: None,
            vmpls: vec![0],
            guest_policy: GuestPolicyRules::default(),
            platform: PlatformRules::default(),
            revocation_list: RevocationListMode::Required,
            revocation_list_grace_seconds: 0,
            denied: DenyList::default(),
            id_block: IdBlockPolicy::default(),
        }
    }

    /// Every entry for `product`.
    pub(crate) fn entries(&self, product: Product) -> impl Iterator<Item = &ProductPolicy> {
        let entries = self.products.iter();
        entries.filter(move |entry| entry.product == product)
    }
}

/// A product to accept, and its oldest acceptable firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProductPolicy {
    /// The product.
    pub product: Product,
    /// Every component must be at least this. For Turin with `fmc`, for the
    /// others without.
    pub minimum_tcb: TcbVersion,
    /// The oldest SNP firmware, current and committed; absent where the TCB
    /// alone decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_firmware: Option<FirmwareVersion>,
    /// Mitigation bits that both vectors of a version 5 report must have. What a
    /// bit means depends on the product.
    #[serde(default)]
    pub mitigations: u64,
    /// The least CRL number of the product's root: the newest that was ever seen
    /// ([`crate::Verdict::revocation_list_number`]), so that no older list takes
    /// its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_revocation_list: Option<u64>,
}

impl ProductPolicy {
    /// A product of which only the TCB counts.
    pub const fn new(product: Product, minimum_tcb: TcbVersion) -> Self {
        Self {
            product,
            minimum_tcb,
            minimum_firmware: None,
            mitigations: 0,
            minimum_revocation_list: None,
        }
    }
}

/// A version of the SNP firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FirmwareVersion {
    /// Major version.
    pub major: u8,
    /// Minor version.
    pub minor: u8,
    /// Build.
    pub build: u8,
}

impl fmt::Display for FirmwareVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

/// A TCB version of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TcbKind {
    /// REPORTED_TCB: what the endorsement key was derived from.
    Reported,
    /// COMMITTED_TCB: the platform cannot be rolled back below it.
    Committed,
    /// LAUNCH_TCB: when the guest was launched.
    Launch,
    /// CURRENT_TCB: now.
    Current,
}

impl TcbKind {
    /// Every TCB version of a report.
    pub const ALL: [Self; 4] = [Self::Reported, Self::Committed, Self::Launch, Self::Current];
}

/// A key that may sign reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum SigningKeyPolicy {
    /// The chip's own key.
    #[serde(rename = "VCEK")]
    Vcek,
    /// A cloud provider's key.
    #[serde(rename = "VLEK")]
    Vlek {
        /// CSP_ID of the providers to accept.
        csp_ids: Vec<String>,
    },
}

macro_rules! bits {
    ($(#[$doc:meta])* $name:ident of $field:ident { $($variant:ident = $bit:ident: $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $(#[doc = $text] $variant,)+
        }

        impl $name {
            /// Every bit with a meaning, lowest first.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// What it means that the bit is set, as a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The bit in the field.
            pub const fn mask(self) -> u64 {
                match self { $(Self::$variant => $field::$bit,)+ }
            }

            /// The bit's name, as in documents.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }
        }
    };
}

bits! {
    /// Something that a guest policy allows or asks for.
    GuestPolicyBit of GuestPolicy {
        Smt = SMT: "Simultaneous multithreading is allowed.",
        MigrationAgent = MIGRATE_MA: "A migration agent is allowed.",
        Debug = DEBUG: "The hypervisor may read and write the guest.",
        SingleSocket = SINGLE_SOCKET: "The guest stays on one socket.",
        Cxl = CXL_ALLOW: "CXL devices are allowed.",
        Aes256Xts = MEM_AES_256_XTS: "Memory is encrypted with AES-256-XTS.",
        RaplDisabled = RAPL_DIS: "RAPL must be off.",
        CiphertextHiding = CIPHERTEXT_HIDING_DRAM: "Ciphertext hiding must be on.",
        PageSwapDisabled = PAGE_SWAP_DISABLE: "Page swap and move must be off.",
    }
}

bits! {
    /// A property of the platform.
    PlatformBit of PlatformInfo {
        Smt = SMT: "Simultaneous multithreading is on.",
        Tsme = TSME: "Transparent SME is on.",
        Ecc = ECC: "Memory has ECC.",
        RaplDisabled = RAPL_DISABLED: "RAPL is off.",
        CiphertextHiding = CIPHERTEXT_HIDING: "Ciphertext hiding is on.",
        AliasCheckComplete = ALIAS_CHECK_COMPLETE: "Memory aliasing was ruled out (CVE-2024-21944).",
        Tio = TIO: "Trusted I/O is on.",
    }
}

/// What the guest policy must be. Bits without a meaning are always refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestPolicyRules {
    /// Bits that must be clear.
    pub forbidden: Vec<GuestPolicyBit>,
    /// Bits that must be set.
    #[serde(default)]
    pub required: Vec<GuestPolicyBit>,
    /// The least firmware ABI that the guest must insist on.
    #[serde(default)]
    pub minimum_abi: AbiVersion,
}

impl Default for GuestPolicyRules {
    /// No debugging, no migration agent.
    fn default() -> Self {
        Self {
            forbidden: vec![GuestPolicyBit::Debug, GuestPolicyBit::MigrationAgent],
            required: Vec::new(),
            minimum_abi: AbiVersion::default(),
        }
    }
}

/// A version of the firmware ABI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AbiVersion {
    /// Major version.
    pub major: u8,
    /// Minor version.
    pub minor: u8,
}

/// What the platform must be. Bits without a meaning are tolerated: real
/// processors set some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlatformRules {
    /// Bits that must be set.
    pub required: Vec<PlatformBit>,
    /// Bits that must be clear.
    #[serde(default)]
    pub forbidden: Vec<PlatformBit>,
}

impl Default for PlatformRules {
    /// Memory aliasing ruled out.
    fn default() -> Self {
        Self {
            required: vec![PlatformBit::AliasCheckComplete],
            forbidden: Vec::new(),
        }
    }
}

/// Whether a revocation list of the vendor is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RevocationListMode {
    /// A fresh list that does not name the intermediate is needed.
    Required,
    /// None is needed, and verdicts without one say so. One that is supplied is
    /// checked all the same.
    NotRequired,
}

/// What is refused although the vendor vouches for it: the vendor's list cannot
/// name an endorsement key, whose serial number is always zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DenyList {
    /// SHA-256 of chip identities, as verdicts show them.
    #[serde(default)]
    pub chips: Vec<Sha256Digest>,
    /// SHA-256 of the SubjectPublicKeyInfo of endorsement keys.
    #[serde(default)]
    pub keys: Vec<Sha256Digest>,
    /// CSP_ID of providers, even if the policy accepts their keys.
    #[serde(default)]
    pub providers: Vec<String>,
}

impl DenyList {
    /// Denies what `other` denies too. What was denied stays so.
    pub fn extend(&mut self, other: &Self) {
        let Self {
            chips,
            keys,
            providers,
        } = other;
        self.chips.extend_from_slice(chips);
        self.keys.extend_from_slice(keys);
        self.providers.extend_from_slice(providers);
    }
}

/// What the ID block of the launch must be. Nothing is asked for by default:
/// the launch digest alone says what runs.
///
/// A host may sign an ID block with a key of its own, so the other fields prove
/// something only beside the digest of a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdBlockPolicy {
    /// ID_KEY_DIGEST to accept, where the ID key matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_key_digests: Option<Vec<Sha384Digest>>,
    /// AUTHOR_KEY_DIGEST to accept, where the author key matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_key_digests: Option<Vec<Sha384Digest>>,
    /// FAMILY_ID to accept, where it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family_ids: Option<Vec<IdBlockId>>,
    /// IMAGE_ID to accept, where it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_ids: Option<Vec<IdBlockId>>,
    /// The least GUEST_SVN.
    #[serde(default)]
    pub minimum_guest_svn: u32,
}

/// FAMILY_ID or IMAGE_ID of an ID block, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdBlockId(pub [u8; 16]);

impl TryFrom<String> for IdBlockId {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl From<IdBlockId> for String {
    fn from(id: IdBlockId) -> Self {
        hex::encode(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_block_policy_is_written_in_digests_and_digits() {
        let text = format!(
            r#"{{"authorKeyDigests":["sha384:{}"],"familyIds":["{}"],"minimumGuestSvn":3}}"#,
            "ab".repeat(48),
            "cd".repeat(16),
        );
        let policy: IdBlockPolicy = serde_json::from_str(&text).unwrap();
        assert_eq!(policy.id_key_digests, None);
        assert_eq!(
            policy.author_key_digests,
            Some(vec![Sha384Digest::new([0xab; 48])])
        );
        assert_eq!(policy.family_ids, Some(vec![IdBlockId([0xcd; 16])]));
        assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        for text in [
            r#"{"idKeyDigests":["ab"]}"#,
            r#"{"imageIds":["abcd"]}"#,
            r#"{"familyId":[]}"#,
        ] {
            assert!(
                serde_json::from_str::<IdBlockPolicy>(text).is_err(),
                "{text}"
            );
        }
    }

    /// As the chart writes it.
    #[test]
    fn a_deny_list_is_written_in_full_names() {
        let digest = |byte: &str| format!("sha256:{}", byte.repeat(32));
        let text = format!(
            r#"{{"chips":["{}"],"keys":["{}"],"providers":["CN=provider.example"]}}"#,
            digest("11"),
            digest("22"),
        );
        let list: DenyList = serde_json::from_str(&text).unwrap();
        assert_eq!(list.chips, [Sha256Digest::new([0x11; 32])]);
        let mut other: DenyList = serde_json::from_str(r#"{"keys":[]}"#).unwrap();
        assert_eq!(other, DenyList::default());
        other.extend(&list);
        other.extend(&DenyList::default());
        assert_eq!(other, list);
        for text in [r#"{"chip":[]}"#, r#"{"chips":["11"]}"#, r#"["11"]"#, ""] {
            assert!(serde_json::from_str::<DenyList>(text).is_err(), "{text}");
        }
    }
}
