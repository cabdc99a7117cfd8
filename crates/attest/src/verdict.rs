//! The verdict: every check by name, what it expected and what it saw.

use std::fmt;

use assay_tee::report::PlatformInfo;
use assay_tee::report::{AttestationReport, SigningKey};
use assay_tee::{GuestPolicy, LaunchDigest, Product, Sha256Digest, TcbVersion};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha384};

use crate::domain::TrustDomain;
use crate::policy::FirmwareVersion;
use crate::td_claims::TdClaims;

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// Every value, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable CamelCase name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

names! {
    /// A check of an appraisal. The order is that of an SNP appraisal; the checks
    /// that TDX alone has follow.
    CheckName {
        /// The report has the length of a report.
        ReportLength,
        /// The report's version is known.
        ReportVersion,
        /// Every reserved byte is zero, the unsigned ones too.
        ReservedBytes,
        /// The report is signed with ECDSA P-384 and SHA-384.
        SignatureAlgorithm,
        /// The report is signed, by a kind of key that the policy accepts.
        KeyInformation,
        /// The processor is of a known product.
        Product,
        /// The root certificate is an anchor.
        TrustAnchor,
        /// The policy accepts the TEE that the anchor stands for.
        TrustDomain,
        /// The endorsement key's certificate is of the right kind and form.
        EndorsementKey,
        /// Root, intermediate and endorsement key are signed by each other with
        /// exactly the vendor's parameters.
        CertificateChain,
        /// Every certificate is valid now.
        CertificateDates,
        /// A fresh list of the root, none older than any seen before, does not
        /// revoke the intermediate.
        RevocationList,
        /// Chip, key and provider are accepted and not denied.
        DenyList,
        /// The endorsement key was issued for the reported TCB.
        EndorsedTcb,
        /// The endorsement key was issued for the chip, or is a provider's and
        /// the report names no chip.
        ChipIdentity,
        /// The endorsement key signed the report.
        ReportSignature,
        /// REPORT_DATA binds the session.
        ReportData,
        /// HOST_DATA binds the instance.
        HostData,
        /// The guest policy is acceptable.
        GuestPolicy,
        /// The platform's properties are acceptable.
        PlatformInfo,
        /// The report comes from an acceptable VMPL.
        Vmpl,
        /// Reported, committed and current TCB are in order.
        TcbOrder,
        /// The TCB reaches the product's minimum.
        MinimumTcb,
        /// The SNP firmware reaches the product's minimum.
        FirmwareVersion,
        /// The required mitigations are in place.
        Mitigations,
        /// The launch was signed by an acceptable key, for an acceptable guest.
        IdBlock,
        /// The launch digest, or MRTD, is an acceptable reference value.
        Measurement,
        /// The quote is one of a TD, of a known form and exact lengths.
        QuoteStructure,
        /// The TD's attributes keep the host out.
        TdAttributes,
        /// There is collateral, and it can be read.
        Collateral,
        /// Every part of the collateral is valid now, and none older than any seen
        /// before.
        CollateralDates,
        /// The PCK signed for a quoting enclave of Intel's that made the attestation
        /// key.
        QeIdentity,
        /// The attestation key signed the quote.
        QuoteSignature,
        /// The TDX module is one of Intel's, with attributes that it may have.
        SeamModule,
        /// The platform reaches a level of the TCB info.
        TcbLevel,
        /// dcap-qvl accepts quote and collateral by Intel's rules.
        DcapVerification,
        /// The policy accepts the status of the TCB.
        TcbStatus,
        /// No advisory of the TCB's level is one that the policy refuses.
        Advisories,
        /// MRCONFIGID binds the instance.
        ConfigId,
        /// MROWNER and MROWNERCONFIG are the expected ones.
        Owner,
        /// The RTMRs are those of the reference value.
        Rtmrs,
    }
}

impl CheckName {
    /// The checks of an SNP appraisal, in order.
    pub const SNP: &[Self] = Self::ALL.split_at(Self::QuoteStructure as usize).0;
    /// The checks of a TDX appraisal, in order.
    pub const TDX: &[Self] = &[
        Self::QuoteStructure,
        Self::TdAttributes,
        Self::Collateral,
        Self::TrustAnchor,
        Self::CertificateChain,
        Self::CertificateDates,
        Self::CollateralDates,
        Self::QeIdentity,
        Self::QuoteSignature,
        Self::SeamModule,
        Self::TcbLevel,
        Self::DcapVerification,
        Self::TcbStatus,
        Self::Advisories,
        Self::ReportData,
        Self::ConfigId,
        Self::Owner,
        Self::Measurement,
        Self::Rtmrs,
    ];
}

names! {
    /// Why a check did not pass.
    ReasonCode {
        /// An earlier check failed, so that this one could not be made.
        EarlierCheckFailed,
        /// The report has another length.
        ReportLengthInvalid,
        /// The report's version is unknown.
        ReportVersionUnknown,
        /// A reserved byte is not zero.
        ReservedByteSet,
        /// The signature algorithm is unknown.
        SignatureAlgorithmUnknown,
        /// The key information is invalid.
        KeyInformationInvalid,
        /// The processor was told not to sign.
        ChipKeyMasked,
        /// The report is not signed.
        ReportUnsigned,
        /// The policy does not accept this kind of endorsement key.
        SigningKeyNotAllowed,
        /// The processor's product is unknown.
        ProductUnknown,
        /// The form of the chip's identity is another product's.
        ProductContradicted,
        /// No root certificate was supplied.
        RootMissing,
        /// The root certificate is not an anchor.
        RootUnknown,
        /// The policy does not accept the TEE.
        TeeNotAllowed,
        /// No certificate of the endorsement key was supplied.
        EndorsementKeyMissing,
        /// No certificate of the intermediate was supplied.
        IntermediateMissing,
        /// Several different certificates claim one role.
        CertificateAmbiguous,
        /// A certificate cannot be read.
        CertificateMalformed,
        /// A certificate's names are not the vendor's.
        CertificateNameWrong,
        /// A certificate's extensions are not the vendor's.
        CertificateExtensionsWrong,
        /// The endorsement key's certificate names another product.
        CertificateProductWrong,
        /// A certificate's key is not of the vendor's kind.
        CertificateKeyWrong,
        /// A certificate's signature parameters are not the vendor's.
        CertificateParametersWrong,
        /// A certificate's signature does not verify.
        CertificateSignatureInvalid,
        /// A certificate is not valid yet.
        CertificateNotYetValid,
        /// A certificate is not valid any more.
        CertificateExpired,
        /// The policy asks for a revocation list and none was supplied.
        RevocationListMissing,
        /// The revocation list cannot be read, or is not one of the root's.
        RevocationListInvalid,
        /// The revocation list is out of date.
        RevocationListStale,
        /// A newer revocation list has been seen.
        RevocationListSuperseded,
        /// The intermediate is revoked.
        IntermediateRevoked,
        /// The chip is denied.
        ChipDenied,
        /// The chip is not one that the policy accepts.
        ChipNotAllowed,
        /// The endorsement key is denied.
        EndorsementKeyDenied,
        /// The provider is denied.
        ProviderDenied,
        /// The provider is not one that the policy accepts.
        ProviderNotAllowed,
        /// The endorsement key was issued for another TCB.
        EndorsedTcbMismatch,
        /// The endorsement key was issued for another chip.
        ChipIdMismatch,
        /// The report's signature does not verify.
        ReportSignatureInvalid,
        /// REPORT_DATA is another.
        ReportDataMismatch,
        /// HOST_DATA is another.
        HostDataMismatch,
        /// The guest policy has unknown bits, or lacks the reserved one.
        GuestPolicyInvalid,
        /// The guest policy, or the TD's attributes, allow debugging.
        DebugAllowed,
        /// The guest policy allows a migration agent, or the TD may be migrated.
        MigrationAllowed,
        /// The guest policy has another forbidden bit.
        GuestPolicyForbidden,
        /// The guest policy lacks a required bit.
        GuestPolicyInsufficient,
        /// The guest policy insists on too old an ABI.
        GuestAbiTooOld,
        /// Memory aliasing was not ruled out.
        AliasCheckMissing,
        /// The platform lacks a required property.
        PlatformInsufficient,
        /// The platform has a forbidden property.
        PlatformForbidden,
        /// The report comes from another VMPL.
        VmplNotAllowed,
        /// A TCB version is not one of the product.
        TcbInvalid,
        /// The TCB versions are out of order.
        TcbOutOfOrder,
        /// The policy has no minimum TCB for the product.
        ProductNotAllowed,
        /// A TCB version is below the minimum.
        TcbTooOld,
        /// The SNP firmware is below the minimum.
        FirmwareTooOld,
        /// A required mitigation is missing.
        MitigationMissing,
        /// The ID key is not one that the policy accepts.
        IdKeyNotAllowed,
        /// The author key is not one that the policy accepts.
        AuthorKeyNotAllowed,
        /// FAMILY_ID is not one that the policy accepts.
        FamilyIdNotAllowed,
        /// IMAGE_ID is not one that the policy accepts.
        ImageIdNotAllowed,
        /// GUEST_SVN is below the minimum.
        GuestSvnTooOld,
        /// No reference value has this launch digest.
        MeasurementUnknown,
        /// The launch digest is known and not accepted yet.
        MeasurementProposed,
        /// The launch digest has been revoked.
        MeasurementRevoked,
        /// The quote cannot be read.
        QuoteMalformed,
        /// The quote's version is unknown.
        QuoteVersionUnknown,
        /// The quote is of another TEE.
        QuoteTeeWrong,
        /// The host may profile the TD.
        ProfilingAllowed,
        /// A service TD is bound to the TD.
        ServiceTdBound,
        /// The TD's attributes have unknown bits, or lack SEPT_VE_DISABLE.
        TdAttributesInvalid,
        /// No collateral was supplied.
        CollateralMissing,
        /// A part of the collateral cannot be read.
        CollateralMalformed,
        /// A part of the collateral is not valid yet.
        CollateralNotYetValid,
        /// A part of the collateral is not valid any more.
        CollateralExpired,
        /// Newer collateral has been seen.
        CollateralSuperseded,
        /// The PCK did not sign the quoting enclave's report.
        QeReportSignatureInvalid,
        /// The quoting enclave's report does not bind the attestation key.
        AttestationKeyUnbound,
        /// The quoting enclave is not the one that collateral names.
        QeIdentityMismatch,
        /// The quote's signature does not verify.
        QuoteSignatureInvalid,
        /// The TDX module's signer or version is not one that collateral names.
        SeamSignerMismatch,
        /// The TDX module has attributes that it may not have.
        SeamAttributesMismatch,
        /// The platform is below every level of the TCB info, or of another model.
        TcbLevelMissed,
        /// Intel's rules refuse the quote or the collateral.
        DcapRefused,
        /// The policy does not accept the status of the TCB.
        TcbStatusNotAllowed,
        /// The policy refuses an advisory of the TCB's level.
        AdvisoryRefused,
        /// MRCONFIGID is another.
        ConfigIdMismatch,
        /// MROWNER or MROWNERCONFIG is another.
        OwnerMismatch,
        /// An RTMR is another.
        RtmrMismatch,
    }
}

impl ReasonCode {
    /// The reasons of an SNP appraisal; those that are left are of TDX alone.
    pub const SNP: &[Self] = Self::ALL.split_at(Self::QuoteMalformed as usize).0;
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CheckResult {
    /// It passed.
    Pass,
    /// It failed.
    Fail,
    /// It could not be made, because an earlier one failed.
    Skipped,
    /// The policy, the kind of key or the report's version does without it.
    NotApplicable,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Which one.
    pub name: CheckName,
    /// What came of it.
    pub result: CheckResult,
    /// Why it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReasonCode>,
    /// What was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What the evidence shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
}

/// Whether the evidence is acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Every check passed or visibly does not apply.
    Accepted,
    /// At least one check failed or could not be made.
    Rejected,
}

/// The result of an appraisal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Whether the evidence is acceptable.
    pub outcome: Outcome,
    /// Whose word it rests on; absent if no anchor's chain verifies.
    pub trust_domain: Option<TrustDomain>,
    /// Every check, in order.
    pub checks: Vec<Check>,
    /// What the report says; absent if it has not the length of a report.
    /// Believe it only in an accepted verdict.
    pub claims: Option<Claims>,
    /// What the quote says, in a verdict about TDX that could read it. Believe it
    /// only in an accepted verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub td_claims: Option<TdClaims>,
    /// Id of the reference value that the launch digest equals, whatever its
    /// state.
    pub reference_value: Option<String>,
    /// CRL number of the root's revocation list that was supplied: no older one
    /// should be believed from now on (see
    /// [`crate::policy::ProductPolicy::minimum_revocation_list`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_list_number: Option<u64>,
}

impl Verdict {
    /// The verdict about evidence that could not be read.
    pub(crate) fn unread((outcome, checks): (Outcome, Vec<Check>)) -> Self {
        Self {
            outcome,
            trust_domain: None,
            checks,
            claims: None,
            td_claims: None,
            reference_value: None,
            revocation_list_number: None,
        }
    }

    /// Whether the evidence is acceptable.
    pub fn is_accepted(&self) -> bool {
        self.outcome == Outcome::Accepted
    }

    /// The check of this name.
    pub fn check(&self, name: CheckName) -> Option<&Check> {
        self.checks.iter().find(|check| check.name == name)
    }

    /// The first check that did not pass, or none in an accepted verdict.
    pub fn first_failure(&self) -> Option<&Check> {
        self.checks
            .iter()
            .find(|check| check.result == CheckResult::Fail)
    }

    /// Reason of the first check that did not pass.
    pub fn reason(&self) -> Option<ReasonCode> {
        self.first_failure().and_then(|check| check.reason)
    }
}

/// What the report says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// VERSION.
    pub version: u32,
    /// The product, where it is known.
    pub product: Option<Product>,
    /// MEASUREMENT.
    pub measurement: LaunchDigest,
    /// POLICY.
    pub guest_policy: GuestPolicy,
    /// PLATFORM_INFO.
    pub platform_info: PlatformInfo,
    /// VMPL.
    pub vmpl: u32,
    /// GUEST_SVN.
    pub guest_svn: u32,
    /// The kind of key that signed.
    pub signing_key: Option<SigningKey>,
    /// TCB versions, where they are valid for the product.
    pub tcb: Option<TcbClaims>,
    /// The running SNP firmware.
    pub firmware: FirmwareVersion,
    /// SHA-256 of CHIP_ID: names the chip without giving away its identity.
    pub chip: Sha256Digest,
    /// REPORT_ID, hex: one per launched guest.
    pub report_id: String,
    /// REPORT_DATA, hex.
    pub report_data: String,
    /// HOST_DATA, hex.
    pub host_data: String,
    /// SHA-384 of the signed part, hex: names the report. The signature does
    /// not take part, because there are two valid ones for every report.
    pub report_digest: String,
}

/// The TCB versions of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcbClaims {
    /// REPORTED_TCB.
    pub reported: TcbVersion,
    /// COMMITTED_TCB.
    pub committed: TcbVersion,
    /// LAUNCH_TCB.
    pub launch: TcbVersion,
    /// CURRENT_TCB.
    pub current: TcbVersion,
}

impl Claims {
    /// What `report` says, read as one of `product`.
    pub(crate) fn of(report: &AttestationReport, product: Option<Product>) -> Self {
        Self {
            version: report.version.get(),
            product,
            measurement: report.launch_digest(),
            guest_policy: GuestPolicy(report.policy.get()),
            platform_info: PlatformInfo(report.platform_info.get()),
            vmpl: report.vmpl.get(),
            guest_svn: report.guest_svn.get(),
            signing_key: report.key_info().ok().map(|info| info.signing_key),
            tcb: product.and_then(|product| TcbClaims::of(report, product).ok()),
            firmware: FirmwareVersion {
                major: report.current_major,
                minor: report.current_minor,
                build: report.current_build,
            },
            chip: Sha256Digest::of(&report.chip_id),
            report_id: hex::encode(report.report_id),
            report_data: hex::encode(report.report_data),
            host_data: hex::encode(report.host_data),
            report_digest: hex::encode(Sha384::digest(report.signed_bytes())),
        }
    }
}

impl TcbClaims {
    /// The TCB versions of `report`, read with the layout of `product`.
    pub(crate) fn of(
        report: &AttestationReport,
        product: Product,
    ) -> Result<Self, assay_tee::tcb::TcbError> {
        let parse = |raw| TcbVersion::parse(product, raw);
        Ok(Self {
            reported: parse(report.reported_tcb)?,
            committed: parse(report.committed_tcb)?,
            launch: parse(report.launch_tcb)?,
            current: parse(report.current_tcb)?,
        })
    }
}
