//! The certificate chain: which of the supplied certificates plays which role,
//! and whether they are what the vendor makes.

use std::borrow::Cow;

use assay_tee::report::SigningKey;
use assay_tee::{Product, Sha256Digest};
use der::oid::AssociatedOid;
use der::{Decode, Encode};
use jiff::Timestamp;
use x509_cert::crl::TbsCertList;
use x509_cert::ext::pkix::CrlNumber;
use x509_cert::time::Time;

use crate::anchors::TrustAnchors;
use crate::certificate::{Certificate, EndorsementKey, SignedObject, unix_seconds};
use crate::domain::TrustDomain;
use crate::ledger::Finding;
use crate::memory::{ChainDigest, ChainMemory};
use crate::published::{is_published_issue, published_der, published_issuer};
use crate::verdict::ReasonCode;

/// The supplied certificates that can be read, and how many cannot.
pub(crate) struct Supplied {
    certificates: Vec<Cow<'static, Certificate>>,
    malformed: usize,
}

impl Supplied {
    pub(crate) fn parse(ders: &[Vec<u8>]) -> Self {
        let mut supplied = Self {
            certificates: Vec::new(),
            malformed: 0,
        };
        for der in ders {
            // Hosts supply what the vendor publishes, which has been read already.
            if let Some(certificate) = published_der(der) {
                supplied.certificates.push(Cow::Borrowed(certificate));
                continue;
            }
            match Certificate::parse(der) {
                Ok(certificate) => supplied.certificates.push(Cow::Owned(certificate)),
                Err(_) => supplied.malformed += 1,
            }
        }
        supplied
    }

    /// Whether one of the certificates is this one.
    pub(crate) fn contains(&self, fingerprint: Sha256Digest) -> bool {
        let mut certificates = self.certificates.iter();
        certificates.any(|certificate| certificate.fingerprint == fingerprint)
    }

    /// Whether there is a certificate with this common name.
    pub(crate) fn names(&self, common_name: &str) -> bool {
        let mut certificates = self.certificates.iter();
        certificates.any(|certificate| certificate.common_name == common_name)
    }

    /// The one certificate with this common name, if it was supplied. The same
    /// certificate twice is one.
    pub(crate) fn by_common_name(&self, name: &str) -> Result<Option<&Certificate>, Finding> {
        let mut found = self
            .certificates
            .iter()
            .map(Cow::as_ref)
            .filter(|certificate| certificate.common_name == name);
        let first = found.next();
        if found.any(|other| Some(other.fingerprint) != first.map(|first| first.fingerprint)) {
            return Err(Finding::fail(ReasonCode::CertificateAmbiguous).observed(name));
        }
        Ok(first)
    }

    fn missing(&self, name: &str, reason: ReasonCode) -> Finding {
        let reason = if self.malformed > 0 {
            ReasonCode::CertificateMalformed
        } else {
            reason
        };
        let names: Vec<&str> = self
            .certificates
            .iter()
            .map(|certificate| &*certificate.common_name)
            .collect();
        Finding::fail(reason).expected(name).observed(format!(
            "[{}], {} unreadable",
            names.join(", "),
            self.malformed
        ))
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
        let certificate = self
            .by_common_name(name)?
            .ok_or_else(|| self.missing(name, ReasonCode::EndorsementKeyMissing))?;
        let key = EndorsementKey::parse(certificate, kind)
            .map_err(|reason| Finding::fail(reason).observed(name))?;
        Ok((certificate, key))
    }

    /// The intermediate: the supplied one, or else the one that the vendor
    /// publishes under the name of the endorsement key's issuer.
    fn intermediate(
        &self,
        leaf: &Certificate,
        kind: SigningKey,
        product: Product,
    ) -> Result<&Certificate, Finding> {
        let name = intermediate_name(kind, product);
        self.by_common_name(&name)?
            .or_else(|| published_issuer(leaf, &name))
            .ok_or_else(|| self.missing(&name, ReasonCode::IntermediateMissing))
    }

    /// The root, if it is an anchor: the supplied one, or else the one that the
    /// vendor publishes under the name of the intermediate's issuer.
    pub(crate) fn root(
        &self,
        leaf: &Certificate,
        kind: SigningKey,
        product: Product,
        anchors: &TrustAnchors,
    ) -> Result<((&Certificate, TrustDomain), Finding), Finding> {
        let name = format!("ARK-{product}");
        let published = || {
            let intermediate = self.intermediate(leaf, kind, product).ok()?;
            published_issuer(intermediate, &name)
        };
        let root = self
            .by_common_name(&name)?
            .or_else(published)
            .ok_or_else(|| self.missing(&name, ReasonCode::RootMissing))?;
        match anchors.domain_of(product, root.fingerprint) {
            Some(domain) => Ok(((root, domain), Finding::pass(root.fingerprint.to_string()))),
            None => {
                Err(Finding::fail(ReasonCode::RootUnknown).observed(root.fingerprint.to_string()))
            }
        }
    }

    /// The chain from `root` to `leaf`, verified but for its dates. What `memory`
    /// knows is not verified again.
    pub(crate) fn verify_chain<'a>(
        &'a self,
        root: &'a Certificate,
        leaf: &'a Certificate,
        kind: SigningKey,
        product: Product,
        memory: &dyn ChainMemory,
    ) -> Result<(Chain<'a>, Finding), Finding> {
        let intermediate = self.intermediate(leaf, kind, product)?;
        let digest = ChainDigest::of([root, intermediate, leaf], kind, product);
        if !memory.knows(&digest) {
            let issues = [(root, root), (intermediate, root), (leaf, intermediate)];
            for (certificate, issuer) in issues {
                check_issued(certificate, issuer).map_err(|reason| {
                    Finding::fail(reason).observed(format!(
                        "{} by {}",
                        certificate.common_name, issuer.common_name
                    ))
                })?;
            }
            memory.remember(digest);
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

/// Common name of the intermediate that issues this kind of key.
pub(crate) fn intermediate_name(kind: SigningKey, product: Product) -> String {
    match kind {
        SigningKey::Vlek => format!("SEV-VLEK-{product}"),
        SigningKey::Vcek | SigningKey::None => format!("SEV-{product}"),
    }
}

/// Checks that `issuer` may issue certificates and issued this one.
pub(crate) fn check_issued(
    certificate: &Certificate,
    issuer: &Certificate,
) -> Result<(), ReasonCode> {
    issuer.check_authority()?;
    if is_published_issue(certificate, issuer) {
        return Ok(());
    }
    certificate.verify_issued_by(issuer)
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

    /// Reads a revocation list of the root.
    pub(crate) fn read_revocation_list(&self, list: &[u8]) -> Result<RevocationList, ReasonCode> {
        RevocationList::read(list, self.root)
    }

    /// Checks a revocation list of the root against the intermediate.
    pub(crate) fn check_revocation(
        &self,
        list: &RevocationList,
        rules: &RevocationRules,
        now: Timestamp,
    ) -> Finding {
        let RevocationList {
            tbs,
            number,
            next_update,
        } = list;
        let (start, end) = list.validity();
        let end = end.saturating_add(rules.grace_seconds.into());
        if now.as_second() < start || now.as_second() >= end {
            let grace = rules.grace_seconds;
            return Finding::fail(ReasonCode::RevocationListStale)
                .expected(format!(
                    "from {} to {next_update} and {grace} s",
                    tbs.this_update
                ))
                .observed(now.to_string());
        }
        if let Some(minimum) = rules.minimum_number.filter(|minimum| number < minimum) {
            return Finding::fail(ReasonCode::RevocationListSuperseded)
                .expected(format!("CRL number {minimum} or later"))
                .observed(number.to_string());
        }
        let revoked = tbs.revoked_certificates.as_deref().unwrap_or_default();
        let serial = self.intermediate.serial_number();
        if revoked
            .iter()
            .any(|entry| entry.serial_number.as_bytes() == serial)
        {
            return Finding::fail(ReasonCode::IntermediateRevoked)
                .observed(self.intermediate.common_name.clone());
        }
        Finding::pass(format!(
            "number {number}, {} revoked, until {next_update}",
            revoked.len()
        ))
    }
}

/// A revocation list that the root signed.
pub(crate) struct RevocationList {
    tbs: TbsCertList,
    pub(crate) number: u64,
    next_update: Time,
}

impl RevocationList {
    /// Reads a revocation list. Gives it only if `root` signed it: then its
    /// number counts, even where it is out of date.
    pub(crate) fn read(list: &[u8], root: &Certificate) -> Result<Self, ReasonCode> {
        let invalid = ReasonCode::RevocationListInvalid;
        let signed = SignedObject::parse(list).map_err(|_| invalid)?;
        let tbs: TbsCertList = TbsCertList::from_der(&signed.body).map_err(|_| invalid)?;
        let inner = tbs.signature.to_der().map_err(|_| invalid)?;
        let may_sign = root.key_usage()?.crl_sign();
        let key = root.rsa_public_key()?;
        signed.verify(&inner, &key).map_err(|_| invalid)?;
        let of_entries = tbs.revoked_certificates.iter().flatten();
        let any_critical = of_entries
            .filter_map(|entry| entry.crl_entry_extensions.as_ref())
            .chain(&tbs.crl_extensions)
            .flatten()
            .any(|extension| extension.critical);
        if !may_sign || tbs.issuer != *root.subject() || any_critical {
            return Err(invalid);
        }
        let mut numbers = tbs
            .crl_extensions
            .iter()
            .flatten()
            .filter(|extension| extension.extn_id == CrlNumber::OID);
        let number = match (numbers.next(), numbers.next()) {
            (Some(number), None) => number.extn_value.as_bytes(),
            _ => return Err(invalid),
        };
        Ok(Self {
            number: u64::from_der(number).map_err(|_| invalid)?,
            next_update: tbs.next_update.ok_or(invalid)?,
            tbs,
        })
    }

    /// The first second of its validity and the one after its last, since 1970.
    pub(crate) fn validity(&self) -> (i64, i64) {
        (
            unix_seconds(self.tbs.this_update),
            unix_seconds(self.next_update),
        )
    }
}

/// What a revocation list must be.
pub(crate) struct RevocationRules {
    pub(crate) grace_seconds: u32,
    pub(crate) minimum_number: Option<u64>,
}
