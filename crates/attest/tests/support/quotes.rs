//! Real quotes with the policy that they meet, and changes to them.

use std::path::Path;

use assay_attest::tdx::{
    ExpectedRegister, QuoteEvidence, TdBinding, TdReferenceValue, TdReferenceValues, TdxPolicy,
    appraise_quote,
};
use assay_attest::{CheckName, ReasonCode, ReferenceState, Verdict};
use assay_tee::Sha384Digest;
use assay_tee::td_quote::TdQuote;
use jiff::Timestamp;
use serde_json::Value;

/// A quote and everything it is appraised against: matching, until a test changes
/// it.
#[derive(Clone)]
pub(crate) struct QuoteCase {
    pub(crate) evidence: QuoteEvidence,
    pub(crate) reference_values: TdReferenceValues,
    pub(crate) policy: TdxPolicy,
    pub(crate) binding: TdBinding,
    pub(crate) now: Timestamp,
}

pub(crate) fn good_v4(vectors: &Path) -> QuoteCase {
    QuoteCase::read(vectors, "quote-v4", true, "2025-07-01T00:00:00Z")
}

pub(crate) fn outdated_v5(vectors: &Path) -> QuoteCase {
    QuoteCase::read(vectors, "quote-v5-outdated", true, "2026-03-01T00:00:00Z")
}

pub(crate) fn debug_v4(vectors: &Path) -> QuoteCase {
    QuoteCase::read(vectors, "quote-v4-debug", false, "2025-07-01T00:00:00Z")
}

impl QuoteCase {
    fn read(vectors: &Path, name: &str, collateral: bool, now: &str) -> Self {
        let read =
            |suffix: &str| std::fs::read(vectors.join(format!("tdx/{name}{suffix}"))).unwrap();
        let quote = read(".bin");
        let report = *TdQuote::parse(&quote).unwrap().report;
        let register = |bytes| ExpectedRegister::Value(Sha384Digest::new(bytes));
        Self {
            evidence: QuoteEvidence {
                quote,
                collateral: collateral.then(|| read(".collateral.json")),
            },
            reference_values: TdReferenceValues(vec![TdReferenceValue {
                id: "vector".to_owned(),
                mr_td: register(report.mr_td),
                rtmrs: report.rtmrs.map(register),
                state: ReferenceState::Accepted,
            }]),
            policy: TdxPolicy::default(),
            binding: TdBinding {
                report_data: report.report_data,
                mr_config_id: report.mr_config_id,
                mr_owner: report.mr_owner,
                mr_owner_config: report.mr_owner_config,
            },
            now: now.parse().unwrap(),
        }
    }

    pub(crate) fn appraise(&self) -> Verdict {
        let Self {
            evidence,
            reference_values,
            policy,
            binding,
            now,
        } = self;
        appraise_quote(evidence, reference_values, policy, binding, *now)
    }

    pub(crate) fn pck_chain(&self) -> String {
        let quote = TdQuote::parse(&self.evidence.quote).unwrap();
        String::from_utf8(quote.pck_chain.to_vec()).unwrap()
    }

    /// Changes the collateral, which is signed by Intel and stays so in parts only.
    pub(crate) fn collateral(&mut self, change: impl FnOnce(&mut Value)) {
        let json = self.evidence.collateral.as_deref().unwrap();
        let mut json = serde_json::from_slice(json).unwrap();
        change(&mut json);
        self.evidence.collateral = Some(serde_json::to_vec(&json).unwrap());
    }

    /// Replaces text within a part of the collateral.
    fn edit(&mut self, part: &str, from: &str, to: &str) {
        self.collateral(|json| {
            let text = json[part].as_str().unwrap();
            assert!(text.contains(from), "{part} lacks {from}");
            json[part] = text.replacen(from, to, 1).into();
        });
    }

    fn flip(&mut self, offset: usize, bits: u8) {
        self.evidence.quote[offset] ^= bits;
    }

    /// Replaces the quote's PCK chain by another of the same length.
    fn change_chain(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let at = self.chain_at();
        let len = TdQuote::parse(&self.evidence.quote)
            .unwrap()
            .pck_chain
            .len();
        let mut chain = self.evidence.quote[at..at + len].to_vec();
        change(&mut chain);
        assert_eq!(chain.len(), len);
        self.evidence.quote.splice(at..at + len, chain);
    }

    fn chain_at(&self) -> usize {
        let quote = &self.evidence.quote;
        (0..quote.len())
            .find(|&at| quote[at..].starts_with(b"-----BEGIN"))
            .unwrap()
    }
}

/// Offsets in a quote of version 4.
const TD_REPORT: usize = 48;
const TD_ATTRIBUTES: usize = TD_REPORT + 120;
const SIGNATURE_DATA: usize = 48 + 584 + 4;
const QE_REPORT: usize = SIGNATURE_DATA + 128 + 6;

/// A check, the reason that it gives, what is done, and how.
type Row = (CheckName, ReasonCode, &'static str, fn(&mut QuoteCase));

use {CheckName as C, ReasonCode as R};

/// One change each. What was signed by Intel cannot be signed again, so later
/// checks fail too.
pub(crate) const ROWS: &[Row] = &[
    (
        C::QuoteStructure,
        R::QuoteMalformed,
        "a shorter quote",
        |c| {
            c.evidence.quote.truncate(1000);
        },
    ),
    (
        C::QuoteStructure,
        R::QuoteVersionUnknown,
        "version 6",
        |c| c.evidence.quote[0] = 6,
    ),
    (C::QuoteStructure, R::QuoteTeeWrong, "an SGX quote", |c| {
        c.evidence.quote[4] = 0;
    }),
    (C::TdAttributes, R::DebugAllowed, "DEBUG", |c| {
        c.flip(TD_ATTRIBUTES, 1);
    }),
    (C::TdAttributes, R::ProfilingAllowed, "PERF_PROF", |c| {
        c.flip(TD_ATTRIBUTES, 0x20);
    }),
    (C::TdAttributes, R::MigrationAllowed, "MIGRATABLE", |c| {
        c.flip(TD_ATTRIBUTES + 3, 0x20);
    }),
    (C::TdAttributes, R::ServiceTdBound, "SERVTD_EXT", |c| {
        c.flip(TD_ATTRIBUTES + 2, 2);
    }),
    (
        C::TdAttributes,
        R::TdAttributesInvalid,
        "no SEPT_VE_DISABLE",
        |c| {
            c.flip(TD_ATTRIBUTES + 3, 0x10);
        },
    ),
    (
        C::TdAttributes,
        R::TdAttributesInvalid,
        "a reserved bit",
        |c| c.flip(TD_ATTRIBUTES + 1, 1),
    ),
    (C::Collateral, R::CollateralMissing, "no collateral", |c| {
        c.evidence.collateral = None;
    }),
    (C::Collateral, R::CollateralMalformed, "no JSON", |c| {
        c.evidence.collateral = Some(b"{".to_vec());
    }),
    (C::Collateral, R::CollateralMalformed, "no TCB info", |c| {
        c.collateral(|json| json["tcb_info"] = "{}".into());
    }),
    (
        C::TrustAnchor,
        R::RootUnknown,
        "a chain without its root",
        |c| {
            c.change_chain(|chain| {
                let text = str::from_utf8(chain).unwrap();
                let root = text.rfind("-----BEGIN").unwrap();
                chain[root..].fill(b'\n');
            });
        },
    ),
    (
        C::TrustAnchor,
        R::RootUnknown,
        "a signer without its root",
        |c| {
            c.collateral(|json| {
                let text = json["tcb_info_issuer_chain"].as_str().unwrap();
                let root = text.rfind("-----BEGIN").unwrap();
                json["tcb_info_issuer_chain"] = text[..root].into();
            });
        },
    ),
    (
        C::CertificateChain,
        R::CertificateSignatureInvalid,
        "another PCK signature",
        |c| {
            // The base64 of the end of the leaf's signature, some of whose bits are
            // of the last byte.
            c.change_chain(|chain| {
                let text = str::from_utf8(chain).unwrap();
                let end = text.find("\n-----END").unwrap();
                chain[end - 6] = if chain[end - 6] == b'A' { b'B' } else { b'A' };
            });
        },
    ),
    (
        C::CertificateDates,
        R::CertificateNotYetValid,
        "long ago",
        |c| {
            c.now = "2017-01-01T00:00:00Z".parse().unwrap();
        },
    ),
    (
        C::CertificateDates,
        R::CertificateExpired,
        "in ten years",
        |c| {
            c.now = "2035-07-01T00:00:00Z".parse().unwrap();
        },
    ),
    (
        C::CollateralDates,
        R::CollateralNotYetValid,
        "before the collateral",
        |c| {
            c.now = "2025-06-01T00:00:00Z".parse().unwrap();
        },
    ),
    (
        C::CollateralDates,
        R::CollateralExpired,
        "after the collateral",
        |c| {
            c.now = "2025-07-20T00:00:00Z".parse().unwrap();
        },
    ),
    (
        C::CollateralDates,
        R::CollateralSuperseded,
        "older collateral than seen",
        |c| {
            c.policy.minimum_tcb_evaluation = 18;
        },
    ),
    (
        C::QeIdentity,
        R::QeReportSignatureInvalid,
        "another signature by the PCK",
        |c| {
            c.flip(QE_REPORT + 384, 1);
        },
    ),
    (
        C::QeIdentity,
        R::AttestationKeyUnbound,
        "another attestation key",
        |c| {
            c.flip(SIGNATURE_DATA + 64, 1);
        },
    ),
    (
        C::QeIdentity,
        R::QeIdentityMismatch,
        "another enclave's signer",
        |c| {
            c.edit("qe_identity", "\"mrsigner\":\"D", "\"mrsigner\":\"E");
        },
    ),
    (
        C::QeIdentity,
        R::QeIdentityMismatch,
        "another enclave",
        |c| {
            c.edit("qe_identity", "\"TD_QE\"", "\"QE\"");
        },
    ),
    (
        C::QuoteSignature,
        R::QuoteSignatureInvalid,
        "another signature",
        |c| {
            c.flip(SIGNATURE_DATA, 1);
        },
    ),
    (
        C::SeamModule,
        R::SeamSignerMismatch,
        "a TDX module by somebody else",
        |c| {
            c.edit("tcb_info", "\"mrsigner\":\"00", "\"mrsigner\":\"01");
            c.edit("tcb_info", "\"mrsigner\":\"00", "\"mrsigner\":\"01");
            c.edit("tcb_info", "\"mrsigner\":\"00", "\"mrsigner\":\"01");
        },
    ),
    (
        C::SeamModule,
        R::SeamAttributesMismatch,
        "a TDX module of another kind",
        |c| {
            c.edit("tcb_info", "\"attributes\":\"00", "\"attributes\":\"01");
            c.edit("tcb_info", "\"attributes\":\"00", "\"attributes\":\"01");
            c.edit("tcb_info", "\"attributes\":\"00", "\"attributes\":\"01");
        },
    ),
    (
        C::TcbLevel,
        R::TcbLevelMissed,
        "an older platform than any level",
        |c| {
            *c = outdated_v5(&crate::vectors::vectors().unwrap());
        },
    ),
    (
        C::TcbLevel,
        R::TcbLevelMissed,
        "collateral of another platform",
        |c| {
            let other = outdated_v5(&crate::vectors::vectors().unwrap());
            c.evidence.collateral = other.evidence.collateral;
            c.now = other.now;
        },
    ),
    (
        C::DcapVerification,
        R::DcapRefused,
        "TCB info that Intel did not sign",
        |c| {
            c.edit("tcb_info", "\"tcbType\":0", "\"tcbType\":1");
        },
    ),
    (
        C::DcapVerification,
        R::DcapRefused,
        "a QE identity that Intel did not sign",
        |c| {
            c.edit(
                "qe_identity",
                "\"tcbEvaluationDataNumber\":17",
                "\"tcbEvaluationDataNumber\":18",
            );
        },
    ),
    (
        C::DcapVerification,
        R::DcapRefused,
        "a revocation list that Intel did not sign",
        |c| {
            c.collateral(|json| {
                let list = json["pck_crl"].as_str().unwrap();
                let (head, last) = list.split_at(list.len() - 1);
                json["pck_crl"] = format!("{head}{}", if last == "0" { "1" } else { "0" }).into();
            });
        },
    ),
    (
        C::TcbStatus,
        R::TcbStatusNotAllowed,
        "a policy that accepts nothing",
        |c| {
            c.policy.tcb_statuses.clear();
        },
    ),
    (C::ReportData, R::ReportDataMismatch, "another nonce", |c| {
        c.binding.report_data[0] ^= 1;
    }),
    (C::ConfigId, R::ConfigIdMismatch, "another instance", |c| {
        c.binding.mr_config_id[0] ^= 1;
    }),
    (C::Owner, R::OwnerMismatch, "another owner", |c| {
        c.binding.mr_owner[0] ^= 1;
    }),
    (
        C::Owner,
        R::OwnerMismatch,
        "another owner's configuration",
        |c| {
            c.binding.mr_owner_config[47] ^= 1;
        },
    ),
    (C::Measurement, R::MeasurementUnknown, "another TD", |c| {
        c.reference_values.0[0].mr_td = ExpectedRegister::Value(Sha384Digest::new([1; 48]));
    }),
    (
        C::Measurement,
        R::MeasurementProposed,
        "a TD of tomorrow",
        |c| {
            c.reference_values.0[0].state = ReferenceState::Proposed;
        },
    ),
    (
        C::Measurement,
        R::MeasurementRevoked,
        "a TD of yesterday",
        |c| {
            c.reference_values.0[0].state = ReferenceState::Revoked;
        },
    ),
    (C::Rtmrs, R::RtmrMismatch, "another kernel", |c| {
        c.reference_values.0[0].rtmrs[1] = ExpectedRegister::Value(Sha384Digest::new([1; 48]));
    }),
];
