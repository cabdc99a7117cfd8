//! The certificate chain: which of the supplied certificates plays which role,
//! and whether they are what the vendor makes.

use assay_tee::Product;
use assay_tee::report::SigningKey;
use der::{Decode, Encode};
use jiff::Timestamp;
use x509_cert::crl::TbsCertList;

use crate::anchors::{TrustAnchors, TrustDomain};
use crate::certificate::{Certificate, EndorsementKey, SignedObject};
use crate::ledger::Finding;
use crate::verdict::ReasonCode;

/// The supplied certificates that can be read, and how many cannot.
pub(crate) struct Supplied {
    certificates: Vec<Certificate>,
    malformed: usize,
}

impl Supplied {
    pub(crate) fn parse(ders: &[Vec<u8>]) -> Self {
        let mut supplied = Self {
            certificates: Vec::new(),
            malformed: 0,
        };
        for der in ders {
            match Certificate::parse(der) {
                Ok(certificate) => supplied.certificates.push(certificate),
                Err(_) => supplied.malformed += 1,
            }
        }
        supplied
    }

    /// The one certificate with this common name. The same certificate twice is
    /// one.
    fn by_common_name(&self, name: &str, missing: ReasonCode) -> Result<&Certificate, Finding> {
        let mut found = self
            .certificates
            .iter()
            .filter(|certificate| certificate.common_name == name);
        let first = found.next().ok_or_else(|| {
            let finding = Finding::fail(if self.malformed > 0 {
                ReasonCode::CertificateMalformed
            } else {
                missing
            });
            let names: Vec<&str> = self
                .certificates
                .iter()
                .map(|certificate| &*certificate.common_name)
                .collect();
            finding.expected(name).observed(format!(
                "[{}], {} unreadable",
                names.join(", "),
                self.malformed
            ))
        })?;
        if found.any(|other| other.fingerprint != first.fingerprint) {
            return Err(Finding::fail(ReasonCode::CertificateAmbiguous).observed(name));
        }
        Ok(first)
    }

    /// The endorsement key's certificate, by the kind of key that signed.
    pub(crate) fn endorsement_key(
        &self,
        kind: SigningKey,
    ) -> Result<(&Certificate, EndorsementKey), Finding> {
        let name = match kind {
            SigningKey::Vcek => "SEV-VCEK",
            SigningKey::Vlek => "SEV-VLEK",
            SigningKey::None => return Err(Finding::fail(ReasonCode::ReportUnsigned)),
        };
        let certificate = self.by_common_name(name, ReasonCode::EndorsementKeyMissing)?;
        let key = EndorsementKey::parse(certificate, kind)
            .map_err(|reason| Finding::fail(reason).observed(name))?;
        Ok((certificate, key))
    }

    /// The root, if it is an anchor.
    pub(crate) fn root(
        &self,
        product: Product,
        anchors: &TrustAnchors,
    ) -> Result<((&Certificate, TrustDomain), Finding), Finding> {
        let name = format!("ARK-{product}");
        let root = self.by_common_name(&name, ReasonCode::RootMissing)?;
        match anchors.domain_of(product, root.fingerprint) {
            Some(domain) => Ok(((root, domain), Finding::pass(root.fingerprint.to_string()))),
            None => {
                Err(Finding::fail(ReasonCode::RootUnknown).observed(root.fingerprint.to_string()))
            }
        }
    }

    /// The chain from `root` to `leaf`, verified but for its dates.
    pub(crate) fn verify_chain<'a>(
        &'a self,
        root: &'a Certificate,
        leaf: &'a Certificate,
        kind: SigningKey,
        product: Product,
    ) -> Result<(Chain<'a>, Finding), Finding> {
        let name = match kind {
            SigningKey::Vlek => format!("SEV-VLEK-{product}"),
            SigningKey::Vcek | SigningKey::None => format!("SEV-{product}"),
        };
        let intermediate = self.by_common_name(&name, ReasonCode::IntermediateMissing)?;
        for (certificate, issuer) in [(root, root), (intermediate, root), (leaf, intermediate)] {
            issuer
                .check_authority()
                .and_then(|()| certificate.verify_issued_by(issuer))
                .map_err(|reason| {
                    Finding::fail(reason).observed(format!(
                        "{} by {}",
                        certificate.common_name, issuer.common_name
                    ))
                })?;
        }
        let shown = format!(
            "{} < {} < {}",
            leaf.common_name, intermediate.common_name, root.common_name
        );
        Ok((
            Chain {
                root,
                intermediate,
                leaf,
            },
            Finding::pass(shown),
        ))
    }
}

/// A chain whose names and signatures are right.
#[derive(Clone, Copy)]
pub(crate) struct Chain<'a> {
    root: &'a Certificate,
    intermediate: &'a Certificate,
    leaf: &'a Certificate,
}

impl Chain<'_> {
    pub(crate) fn check_dates(&self, now: Timestamp) -> Finding {
        [self.root, self.intermediate, self.leaf]
            .into_iter()
            .find_map(|certificate| certificate.check_dates(now).err())
            .unwrap_or_else(|| Finding::pass(now.to_string()))
    }

    /// Checks a revocation list of the root against the intermediate.
    pub(crate) fn check_revocation(&self, list: Option<&[u8]>, now: Timestamp) -> Finding {
        let Some(list) = list else {
            return Finding::fail(ReasonCode::RevocationListMissing);
        };
        self.read_revocation(list, now)
            .unwrap_or_else(Finding::fail)
    }

    fn read_revocation(&self, list: &[u8], now: Timestamp) -> Result<Finding, ReasonCode> {
        let invalid = ReasonCode::RevocationListInvalid;
        let signed = SignedObject::parse(list).map_err(|_| invalid)?;
        let tbs: TbsCertList = TbsCertList::from_der(&signed.body).map_err(|_| invalid)?;
        let inner = tbs.signature.to_der().map_err(|_| invalid)?;
        let key = self.root.rsa_public_key()?;
        signed.verify(&inner, &key).map_err(|_| invalid)?;
        let critical = |extensions: &Vec<x509_cert::ext::Extension>| {
            extensions.iter().any(|extension| extension.critical)
        };
        if tbs.issuer != *self.root.subject() || tbs.crl_extensions.as_ref().is_some_and(critical) {
            return Err(invalid);
        }
        let seconds = |time: x509_cert::time::Time| {
            i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
        };
        let next_update = tbs.next_update.ok_or(invalid)?;
        if now.as_second() < seconds(tbs.this_update) || now.as_second() >= seconds(next_update) {
            return Ok(Finding::fail(ReasonCode::RevocationListStale)
                .expected(format!("from {} to {next_update}", tbs.this_update))
                .observed(now.to_string()));
        }
        let revoked = tbs.revoked_certificates.unwrap_or_default();
        let serial = self.intermediate.serial_number();
        if revoked
            .iter()
            .any(|entry| entry.serial_number.as_bytes() == serial)
        {
            return Ok(Finding::fail(ReasonCode::IntermediateRevoked)
                .observed(self.intermediate.common_name.clone()));
        }
        Ok(Finding::pass(format!(
            "{} revoked, until {next_update}",
            revoked.len()
        )))
    }
}
