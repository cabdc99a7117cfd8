//! Collateral for a quote: what Intel publishes about a platform, in the JSON form
//! that dcap-qvl and other tools write (`QuoteCollateralV3`).

use dcap_qvl::{QeIdentity, QuoteCollateralV3, TcbInfo};
use der::Decode as _;
use jiff::Timestamp;
use x509_cert::crl::TbsCertList;

use crate::certificate::{Certificate, SignedObject, unix_seconds};
use crate::evidence::parse_certificates;
use crate::ledger::Finding;
use crate::verdict::ReasonCode;

/// Collateral that can be read. Its signatures have not been verified.
pub(super) struct Collateral {
    pub(super) raw: QuoteCollateralV3,
    pub(super) tcb_info: TcbInfo,
    pub(super) qe_identity: QeIdentity,
    /// The certificates that signed TCB info and QE identity, leaf to root.
    pub(super) chains: [Vec<Certificate>; 2],
    documents: [Document; 4],
}

/// A dated part of the collateral.
struct Document {
    name: &'static str,
    /// First and last second of its validity, since 1970.
    from: i64,
    until: i64,
}

impl Collateral {
    pub(super) fn parse(json: &[u8]) -> Result<(Self, Finding), Finding> {
        let malformed = |what: &str, why: &dyn std::fmt::Display| {
            Finding::fail(ReasonCode::CollateralMalformed).observed(format!("{what}: {why}"))
        };
        let mut raw: QuoteCollateralV3 =
            serde_json::from_slice(json).map_err(|error| malformed("the collateral", &error))?;
        // A quote brings its PCK chain itself, and that one is appraised.
        raw.pck_certificate_chain = None;
        let tcb_info: TcbInfo =
            serde_json::from_str(&raw.tcb_info).map_err(|error| malformed("tcb_info", &error))?;
        let qe_identity: QeIdentity = serde_json::from_str(&raw.qe_identity)
            .map_err(|error| malformed("qe_identity", &error))?;
        let second = |what, text: &str| {
            let at: Result<Timestamp, _> = text.parse();
            at.map(Timestamp::as_second)
                .map_err(|error| malformed(what, &error))
        };
        let list = |name, der: &[u8]| {
            let (from, until) = list_validity(der).map_err(|error| malformed(name, &error))?;
            Ok::<_, Finding>(Document { name, from, until })
        };
        let chain =
            |name, pem: &str| parse_chain(pem.as_bytes()).map_err(|error| malformed(name, &error));
        let documents = [
            Document {
                name: "tcb_info",
                from: second("tcb_info", &tcb_info.issue_date)?,
                until: second("tcb_info", &tcb_info.next_update)?,
            },
            Document {
                name: "qe_identity",
                from: second("qe_identity", &qe_identity.issue_date)?,
                until: second("qe_identity", &qe_identity.next_update)?,
            },
            list("root_ca_crl", &raw.root_ca_crl)?,
            list("pck_crl", &raw.pck_crl)?,
        ];
        let chains = [
            chain("tcb_info_issuer_chain", &raw.tcb_info_issuer_chain)?,
            chain("qe_identity_issuer_chain", &raw.qe_identity_issuer_chain)?,
        ];
        let shown = format!(
            "{} version {} of {}",
            tcb_info.id, tcb_info.version, tcb_info.fmspc
        );
        let collateral = Self {
            raw,
            tcb_info,
            qe_identity,
            chains,
            documents,
        };
        Ok((collateral, Finding::pass(shown)))
    }

    /// Checks that every part is valid at `now`, and none older than the policy
    /// has seen.
    pub(super) fn check_dates(&self, minimum_evaluation: u32, now: Timestamp) -> Finding {
        let at = now.as_second();
        for Document { name, from, until } in &self.documents {
            let reason = if at < *from {
                ReasonCode::CollateralNotYetValid
            } else if at > *until {
                ReasonCode::CollateralExpired
            } else {
                continue;
            };
            let date = |second| {
                Timestamp::from_second(second)
                    .map_or_else(|_| second.to_string(), |at| at.to_string())
            };
            return Finding::fail(reason)
                .expected(format!(
                    "{name} valid from {} to {}",
                    date(*from),
                    date(*until)
                ))
                .observed(now.to_string());
        }
        let evaluation = self
            .tcb_info
            .tcb_evaluation_data_number
            .min(self.qe_identity.tcb_evaluation_data_number);
        if evaluation < minimum_evaluation {
            return Finding::fail(ReasonCode::CollateralSuperseded)
                .expected(format!(
                    "tcbEvaluationDataNumber {minimum_evaluation} or later"
                ))
                .observed(evaluation.to_string());
        }
        Finding::pass(now.to_string())
    }
}

/// Certificates in the order of a PEM file, at least one.
pub(super) fn parse_chain(pem: &[u8]) -> Result<Vec<Certificate>, ParseChainError> {
    let ders = parse_certificates(pem)?;
    let certificates = ders.iter().map(|der| Certificate::parse(der));
    Ok(certificates.collect::<Result<_, _>>()?)
}

/// A PEM file is no chain of certificates.
#[derive(Debug, thiserror::Error)]
pub(super) enum ParseChainError {
    #[error(transparent)]
    Pem(#[from] crate::evidence::ParseCertificatesError),
    #[error(transparent)]
    Der(#[from] der::Error),
}

fn list_validity(der: &[u8]) -> Result<(i64, i64), der::Error> {
    let signed = SignedObject::parse(der)?;
    let list: TbsCertList = TbsCertList::from_der(&signed.body)?;
    let next_update = list
        .next_update
        .ok_or_else(|| der::Tag::GeneralizedTime.value_error())?;
    Ok((unix_seconds(list.this_update), unix_seconds(next_update)))
}
