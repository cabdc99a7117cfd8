//! What an acceptance shows of the node's processor. Pure.
//!
//! A NodeTrust tells people, and keeps certificates for the node's next guests. No
//! decision believes it: what is taken from it passes the checks that an answer of
//! the vendor's service passes.

use assay_attest::collateral::{
    Collateral, CollateralRequest, KeyKind, check_collateral, vcek_chain,
};
use assay_attest::{Claims, Endorsements, Evidence};
use assay_crds::v1alpha1::node_trust::{
    EndorsementCache, PlatformTcb, RecordReference, RevocationListStatus,
};
use assay_crds::v1alpha1::{NodeTrust, NodeTrustSpec, NodeTrustStatus};
use assay_tee::Product;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::appraisal::{Appraisal, VerifierIdentity};
use crate::submission::Submission;

/// The certificates that a NodeTrust keeps. What is not base64 is none.
pub fn certificates(trust: &NodeTrust) -> Vec<Vec<u8>> {
    let endorsement = trust
        .status
        .as_ref()
        .and_then(|status| status.endorsement.as_ref());
    let texts = endorsement.map_or(&[][..], |endorsement| &endorsement.certificates);
    let ders = texts.iter().map(|text| BASE64_STANDARD.decode(text));
    ders.filter_map(Result::ok).collect()
}

/// What an appraisal makes of the node's object; nothing, where it says so already
/// or the appraisal shows nothing. Only an acceptance of a pod that exists does:
/// whoever has any genuine processor can name a node.
pub fn plan_node_trust(
    namespace: &str,
    submission: &Submission,
    endorsements: &Endorsements,
    appraisal: &Appraisal,
    verifier: &VerifierIdentity,
    existing: Option<&NodeTrust>,
) -> Option<NodeTrust> {
    if !appraisal.is_accepted() || !appraisal.witnessed {
        return None;
    }
    let Claims {
        product: Some(product),
        tcb: Some(tcb),
        chip,
        ..
    } = appraisal.claims.as_ref()?
    else {
        return None;
    };
    let mut evidence = submission.evidence();
    evidence.endorse(endorsements);
    let before = existing.and_then(|existing| existing.status.as_ref());
    let status = NodeTrustStatus {
        tee: appraisal.status.tee,
        trust_domain: appraisal.status.trust_domain.clone(),
        product: product.to_string(),
        chip: chip.to_string(),
        tcb: PlatformTcb {
            reported: tcb.reported.into(),
            committed: tcb.committed.into(),
            current: tcb.current.into(),
        },
        endorsement: endorsement(&evidence, verifier),
        revocation_list: revocation_list(&evidence, *product, verifier),
        verified_at: appraisal.status.verified_at.clone(),
        record_ref: RecordReference {
            namespace: namespace.to_owned(),
            name: appraisal.spec.pod_ref.name.clone(),
        },
    };
    let status = match before {
        Some(before) => merge(status, before),
        None => status,
    };
    if before.is_some_and(|before| says_the_same(before, &status)) {
        return None;
    }
    let node_name = submission.instance.node.clone();
    let mut trust = NodeTrust::new(&node_name.clone(), NodeTrustSpec { node_name });
    trust.status = Some(status);
    Some(trust)
}

/// Guests of one node differ in what they bring along: who brings less takes nothing
/// away that is still of this chip at this TCB.
fn merge(mut status: NodeTrustStatus, before: &NodeTrustStatus) -> NodeTrustStatus {
    let same_key = before.trust_domain == status.trust_domain
        && before.product == status.product
        && before.chip == status.chip;
    let known = before
        .endorsement
        .as_ref()
        .filter(|endorsement| same_key && endorsement.tcb == status.tcb.reported);
    let count = |endorsement: &EndorsementCache| endorsement.certificates.len();
    if known.map(count) > status.endorsement.as_ref().map(count) {
        status.endorsement = known.cloned();
    }
    let newer = |list: &RevocationListStatus| list.number;
    if before.product == status.product
        && before.trust_domain == status.trust_domain
        && before.revocation_list.as_ref().map(newer) > status.revocation_list.as_ref().map(newer)
    {
        status.revocation_list.clone_from(&before.revocation_list);
    }
    status
}

/// Whether only the occasion differs.
fn says_the_same(before: &NodeTrustStatus, after: &NodeTrustStatus) -> bool {
    let after = NodeTrustStatus {
        verified_at: before.verified_at.clone(),
        record_ref: before.record_ref.clone(),
        ..after.clone()
    };
    *before == after
}

fn endorsement(evidence: &Evidence, verifier: &VerifierIdentity) -> Option<EndorsementCache> {
    let chain = vcek_chain(evidence, &verifier.anchors, &*verifier.chains)?;
    let (CollateralRequest::Vcek { tcb, .. }, certificates) = chain else {
        return None;
    };
    let encode = |der: &Vec<u8>| BASE64_STANDARD.encode(der);
    Some(EndorsementCache {
        tcb: tcb.into(),
        certificates: certificates.iter().map(encode).collect(),
    })
}

fn revocation_list(
    evidence: &Evidence,
    product: Product,
    verifier: &VerifierIdentity,
) -> Option<RevocationListStatus> {
    let der = evidence.revocation_list.as_deref()?;
    let kind = KeyKind::Vcek;
    let request = CollateralRequest::RevocationList { product, kind };
    let certificates = &evidence.certificates;
    let list = check_collateral(&request, der, certificates, &verifier.anchors).ok()?;
    let number = list.revocation_list_number()?;
    let Collateral {
        valid_from,
        valid_until,
        ..
    } = list;
    Some(RevocationListStatus {
        number: i64::try_from(number).ok()?,
        this_update: Time(valid_from),
        next_update: Time(valid_until),
    })
}

#[cfg(test)]
mod tests;
