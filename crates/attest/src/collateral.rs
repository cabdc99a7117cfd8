//! Collateral: what AMD publishes and evidence does not bring along, which is
//! which requests it takes, and whether an answer is what was asked for.
//!
//! Nothing is fetched here, and nothing in an answer is believed for where it
//! came from: it must chain to a pinned root before anybody keeps it.
//!
//! Addresses: VCEK certificate specification (AMD 57230), key distribution
//! service.

use assay_tee::report::SigningKey;
use assay_tee::{AttestationReport, Product, Sha256Digest, TcbVersion};
use jiff::Timestamp;

use crate::anchors::TrustAnchors;
use crate::appraise::find_product;
use crate::certificate::Certificate;
use crate::chain::{RevocationList, Supplied, check_issued, intermediate_name};
use crate::evidence::{Endorsements, Evidence, parse_certificates};
use crate::ledger::Finding;
use crate::memory::{ChainMemory, NoMemory};
use crate::published::published;
use crate::verdict::ReasonCode;

/// AMD's key distribution service.
pub const AMD_KDS: &str = "https://kdsintf.amd.com";

/// What is asked of the key distribution service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CollateralRequest {
    /// The intermediate and the root of a kind of endorsement key.
    CertChain {
        /// The product.
        product: Product,
        /// The kind of key.
        kind: KeyKind,
    },
    /// The root's revocation list.
    RevocationList {
        /// The product.
        product: Product,
        /// The kind of key.
        kind: KeyKind,
    },
    /// The endorsement key of a chip at a TCB.
    Vcek {
        /// The product.
        product: Product,
        /// The chip's identity, as long as the product has it.
        hw_id: Vec<u8>,
        /// The reported TCB.
        tcb: TcbVersion,
    },
}

/// The kinds of endorsement key that the service tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// A chip's.
    Vcek,
    /// A provider's. The service gives its certificate to the provider alone.
    Vlek,
}

impl KeyKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Vcek => "vcek",
            Self::Vlek => "vlek",
        }
    }

    const fn signing_key(self) -> SigningKey {
        match self {
            Self::Vcek => SigningKey::Vcek,
            Self::Vlek => SigningKey::Vlek,
        }
    }
}

impl CollateralRequest {
    /// The product.
    pub const fn product(&self) -> Product {
        match self {
            Self::CertChain { product, .. }
            | Self::RevocationList { product, .. }
            | Self::Vcek { product, .. } => *product,
        }
    }

    /// The request for the authorities that the answer is checked against, which
    /// for those themselves is none.
    pub const fn authorities(&self) -> Option<Self> {
        let kind = match self {
            Self::CertChain { .. } => return None,
            Self::RevocationList { kind, .. } => *kind,
            Self::Vcek { .. } => KeyKind::Vcek,
        };
        let product = self.product();
        Some(Self::CertChain { product, kind })
    }

    /// Path and query at the key distribution service.
    pub fn path(&self) -> String {
        match self {
            Self::CertChain { product, kind } => {
                format!("/{}/v1/{product}/cert_chain", kind.name())
            }
            Self::RevocationList { product, kind } => format!("/{}/v1/{product}/crl", kind.name()),
            Self::Vcek {
                product,
                hw_id,
                tcb,
            } => {
                let fmc = tcb.fmc.map(|fmc| format!("fmcSPL={fmc:02}&"));
                format!(
                    "/vcek/v1/{product}/{}?{}blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
                    hex::encode(hw_id),
                    fmc.unwrap_or_default(),
                    tcb.bootloader,
                    tcb.tee,
                    tcb.snp,
                    tcb.microcode
                )
            }
        }
    }

    /// Name of the file that keeps the answer.
    pub fn file_name(&self) -> String {
        match self {
            Self::CertChain { product, kind } => format!("{}-{product}-chain.pem", kind.name()),
            Self::RevocationList { product, kind } => format!("{}-{product}.crl", kind.name()),
            Self::Vcek {
                product,
                hw_id,
                tcb,
            } => {
                let spls = [tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode];
                let spls: Vec<String> = tcb
                    .fmc
                    .into_iter()
                    .chain(spls)
                    .map(|spl| spl.to_string())
                    .collect();
                let hw_id = hex::encode(hw_id);
                format!("vcek-{product}-{hw_id}-{}.der", spls.join("."))
            }
        }
    }

    /// The request whose answer a file of this name keeps.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let request = Self::read_file_name(name)?;
        // One file for one request: no other spelling of it counts.
        (request.file_name() == name).then_some(request)
    }

    fn read_file_name(name: &str) -> Option<Self> {
        let (kind, rest) = name.split_once('-')?;
        let kind = [KeyKind::Vcek, KeyKind::Vlek]
            .into_iter()
            .find(|known| known.name() == kind)?;
        if let Some(product) = rest.strip_suffix("-chain.pem") {
            let product = product.parse().ok()?;
            return Some(Self::CertChain { product, kind });
        }
        if let Some(product) = rest.strip_suffix(".crl") {
            let product = product.parse().ok()?;
            return Some(Self::RevocationList { product, kind });
        }
        let mut parts = rest.strip_suffix(".der")?.split('-');
        let product = parts.next()?.parse().ok()?;
        let hw_id = hex::decode(parts.next()?).ok()?;
        let spls = parts.next()?.split('.').map(str::parse);
        let spls: Vec<u8> = spls.collect::<Result<_, _>>().ok()?;
        let (fmc, [bootloader, tee, snp, microcode]) = match *spls.as_slice() {
            [bootloader, tee, snp, microcode] => (None, [bootloader, tee, snp, microcode]),
            [fmc, bootloader, tee, snp, microcode] => {
                (Some(fmc), [bootloader, tee, snp, microcode])
            }
            _ => return None,
        };
        let tcb = TcbVersion {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        };
        Self::vcek(product, &hw_id, tcb)
    }

    /// A request for the endorsement key of a chip, whose identity may be
    /// followed by zeros; none if no chip of `product` can have it.
    pub fn vcek(product: Product, chip_id: &[u8], tcb: TcbVersion) -> Option<Self> {
        tcb.encode(product).ok()?;
        let (hw_id, rest) = chip_id.split_at_checked(product.chip_id_len())?;
        let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        (!is_zero(hw_id) && is_zero(rest)).then(|| Self::Vcek {
            product,
            hw_id: hw_id.to_vec(),
            tcb,
        })
    }
}

/// What `evidence` lacks to be appraised, in the order in which answers are
/// needed to check each other: the authorities, the revocation list, the
/// endorsement key.
///
/// Nothing, where no answer could help: for evidence that cannot be read, and
/// for evidence that brings the simulated root itself.
pub fn collateral_requests(evidence: &Evidence, anchors: &TrustAnchors) -> Vec<CollateralRequest> {
    needed(evidence, anchors).unwrap_or_default()
}

fn needed(evidence: &Evidence, anchors: &TrustAnchors) -> Option<Vec<CollateralRequest>> {
    let report = AttestationReport::read_layout(&evidence.report).ok()?;
    let supplied = Supplied::parse(&evidence.certificates);
    if anchors
        .simulated
        .is_some_and(|root| supplied.contains(root))
    {
        return None;
    }
    let signing_key = report.key_info().ok()?.signing_key;
    let kind = match signing_key {
        SigningKey::Vcek => KeyKind::Vcek,
        SigningKey::Vlek => KeyKind::Vlek,
        SigningKey::None => return None,
    };
    let key = supplied.endorsement_key(signing_key).ok();
    let (product, _) = find_product(&report, key.as_ref().map(|(_, key)| key)).ok()?;
    let mut requests = Vec::new();
    if !supplied.names(&intermediate_name(signing_key, product)) {
        requests.push(CollateralRequest::CertChain { product, kind });
    }
    requests.push(CollateralRequest::RevocationList { product, kind });
    if kind == KeyKind::Vcek && !supplied.names("SEV-VCEK") {
        let tcb = TcbVersion::parse(product, report.reported_tcb).ok()?;
        requests.extend(CollateralRequest::vcek(product, &report.chip_id, tcb));
    }
    Some(requests)
}

impl Endorsements {
    /// Adds an answer.
    pub fn add(&mut self, collateral: &Collateral) {
        match &collateral.content {
            Content::Certificates(ders) => self.certificates.extend_from_slice(ders),
            Content::RevocationList { der, .. } => self.revocation_list = Some(der.clone()),
        }
    }
}

/// A checked answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collateral {
    /// What it holds.
    pub content: Content,
    /// When it begins to be valid.
    pub valid_from: Timestamp,
    /// When it is no longer valid.
    pub valid_until: Timestamp,
}

/// What an answer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Certificates in DER.
    Certificates(Vec<Vec<u8>>),
    /// A revocation list.
    RevocationList {
        /// DER.
        der: Vec<u8>,
        /// Its CRL number.
        number: u64,
    },
}

impl Collateral {
    fn new(content: Content, (from, until): (i64, i64)) -> Result<Self, CollateralRefusal> {
        let date =
            |seconds| Timestamp::from_second(seconds).map_err(|_| ReasonCode::CertificateMalformed);
        Ok(Self {
            content,
            valid_from: date(from)?,
            valid_until: date(until)?,
        })
    }

    /// Whether it is valid at `now`.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.valid_from <= now && now < self.valid_until
    }

    /// Whether it is time to ask for a newer one. A revocation list is replaced
    /// halfway through its life, so that an outage of months is survived; a
    /// certificate is used until it ends.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let due = match self.content {
            Content::Certificates(_) => self.valid_until,
            Content::RevocationList { .. } => {
                let life = self.valid_until.as_second() - self.valid_from.as_second();
                let half = self.valid_from.as_second() + life / 2;
                Timestamp::from_second(half).unwrap_or(self.valid_from)
            }
        };
        now >= due
    }

    /// The CRL number of a revocation list.
    pub const fn revocation_list_number(&self) -> Option<u64> {
        match &self.content {
            Content::Certificates(_) => None,
            Content::RevocationList { number, .. } => Some(*number),
        }
    }
}

/// The certificates of `evidence` that vouch for the VCEK of its report, and the
/// request that they answer: the key's own certificate, then those of its
/// intermediate and root, as far as the evidence has them. Nothing, where they do
/// not chain to a pinned root or are of another chip or TCB.
pub fn vcek_chain(
    evidence: &Evidence,
    anchors: &TrustAnchors,
    memory: &dyn ChainMemory,
) -> Option<(CollateralRequest, Vec<Vec<u8>>)> {
    let report = AttestationReport::read_layout(&evidence.report).ok()?;
    let kind = report.key_info().ok()?.signing_key;
    if kind != SigningKey::Vcek {
        return None;
    }
    let supplied = Supplied::parse(&evidence.certificates);
    let (_, key) = supplied.endorsement_key(kind).ok()?;
    let (product, _) = find_product(&report, Some(&key)).ok()?;
    let tcb = TcbVersion::parse(product, report.reported_tcb).ok()?;
    let request = CollateralRequest::vcek(product, &report.chip_id, tcb)?;
    let CollateralRequest::Vcek { hw_id, .. } = &request else {
        return None;
    };
    let leaf = find_vcek(&supplied, product, hw_id, tcb, anchors, memory).ok()?;
    let issuers = [intermediate_name(kind, product), format!("ARK-{product}")];
    let issuers = issuers
        .iter()
        .filter_map(|name| supplied.by_common_name(name).ok().flatten());
    let wanted = [leaf].into_iter().chain(issuers);
    let certificates = select(&evidence.certificates, wanted);
    Some((request, certificates))
}

/// Checks that `certificates`, which somebody kept, have what `request` asks for, as
/// [`check_collateral`] checks an answer.
///
/// # Errors
/// The first rule that they break. A list is no certificate.
pub fn check_certificates(
    request: &CollateralRequest,
    certificates: &[Vec<u8>],
    authorities: &[Vec<u8>],
    anchors: &TrustAnchors,
) -> Result<Collateral, CollateralRefusal> {
    match request {
        CollateralRequest::CertChain { product, kind } => {
            let supplied = Supplied::parse(certificates);
            let (found, validity) = find_authorities(&supplied, *product, *kind, anchors)?;
            let content = Content::Certificates(select(certificates, found));
            Collateral::new(content, validity)
        }
        CollateralRequest::RevocationList { .. } => Err(ReasonCode::CertificateMalformed.into()),
        CollateralRequest::Vcek {
            product,
            hw_id,
            tcb,
        } => {
            let all = [certificates, authorities].concat();
            let supplied = Supplied::parse(&all);
            let leaf = find_vcek(&supplied, *product, hw_id, *tcb, anchors, &NoMemory)?;
            let content = Content::Certificates(select(certificates, [leaf]));
            Collateral::new(content, leaf.validity())
        }
    }
}

/// Those of `ders` that are `wanted`, in the order of those.
fn select<'a>(ders: &[Vec<u8>], wanted: impl IntoIterator<Item = &'a Certificate>) -> Vec<Vec<u8>> {
    let find = |wanted: &Certificate| {
        let mut ders = ders.iter();
        ders.find(|der| Sha256Digest::of(der) == wanted.fingerprint)
            .cloned()
    };
    wanted.into_iter().filter_map(find).collect()
}

/// Why an answer is not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CollateralRefusal(Finding);

impl CollateralRefusal {
    /// The reason code.
    pub const fn reason(&self) -> Option<ReasonCode> {
        self.0.reason()
    }
}

impl From<Finding> for CollateralRefusal {
    fn from(finding: Finding) -> Self {
        Self(finding)
    }
}

impl From<ReasonCode> for CollateralRefusal {
    fn from(reason: ReasonCode) -> Self {
        Self(Finding::fail(reason))
    }
}

/// Checks that `answer` is what `request` asks for and chains to a pinned root,
/// except for the time: see [`Collateral::is_valid`]. `authorities` are the
/// certificates of [`CollateralRequest::authorities`] in DER; where they are
/// absent, those that are part of the program take their place.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_collateral(
    request: &CollateralRequest,
    answer: &[u8],
    authorities: &[Vec<u8>],
    anchors: &TrustAnchors,
) -> Result<Collateral, CollateralRefusal> {
    match request {
        CollateralRequest::CertChain { product, kind } => {
            check_cert_chain(answer, *product, *kind, anchors)
        }
        CollateralRequest::RevocationList { product, .. } => {
            let supplied = Supplied::parse(authorities);
            let list = RevocationList::read(answer, pinned_root(&supplied, *product, anchors)?)?;
            let content = Content::RevocationList {
                der: answer.to_vec(),
                number: list.number,
            };
            Collateral::new(content, list.validity())
        }
        CollateralRequest::Vcek {
            product,
            hw_id,
            tcb,
        } => check_vcek(answer, authorities, *product, hw_id, *tcb, anchors),
    }
}

/// The root, if it is an anchor: the supplied one, or else the published one.
fn pinned_root<'a>(
    supplied: &'a Supplied,
    product: Product,
    anchors: &TrustAnchors,
) -> Result<&'a Certificate, CollateralRefusal> {
    let name = format!("ARK-{product}");
    let root = supplied
        .by_common_name(&name)?
        .or_else(|| published(&name))
        .ok_or(ReasonCode::RootMissing)?;
    match anchors.domain_of(product, root.fingerprint) {
        Some(_) => Ok(root),
        None => Err(Finding::fail(ReasonCode::RootUnknown)
            .observed(root.fingerprint.to_string())
            .into()),
    }
}

fn check_cert_chain(
    answer: &[u8],
    product: Product,
    kind: KeyKind,
    anchors: &TrustAnchors,
) -> Result<Collateral, CollateralRefusal> {
    let ders = parse_certificates(answer).map_err(|_| ReasonCode::CertificateMalformed)?;
    let supplied = Supplied::parse(&ders);
    let (_, validity) = find_authorities(&supplied, product, kind, anchors)?;
    Collateral::new(Content::Certificates(ders), validity)
}

/// Intermediate and root among `supplied`, and when both are valid.
fn find_authorities<'a>(
    supplied: &'a Supplied,
    product: Product,
    kind: KeyKind,
    anchors: &TrustAnchors,
) -> Result<([&'a Certificate; 2], (i64, i64)), CollateralRefusal> {
    let root = pinned_root(supplied, product, anchors)?;
    let intermediate = supplied
        .by_common_name(&intermediate_name(kind.signing_key(), product))?
        .ok_or(ReasonCode::IntermediateMissing)?;
    check_issued(root, root)?;
    check_issued(intermediate, root)?;
    intermediate.check_authority()?;
    let ((root_from, root_until), (from, until)) = (root.validity(), intermediate.validity());
    let validity = (from.max(root_from), until.min(root_until));
    Ok(([intermediate, root], validity))
}

fn check_vcek(
    answer: &[u8],
    authorities: &[Vec<u8>],
    product: Product,
    hw_id: &[u8],
    tcb: TcbVersion,
    anchors: &TrustAnchors,
) -> Result<Collateral, CollateralRefusal> {
    let mut certificates = vec![answer.to_vec()];
    certificates.extend_from_slice(authorities);
    let supplied = Supplied::parse(&certificates);
    let leaf = find_vcek(&supplied, product, hw_id, tcb, anchors, &NoMemory)?;
    let content = Content::Certificates(vec![answer.to_vec()]);
    Collateral::new(content, leaf.validity())
}

/// The VCEK of a chip at a TCB among `supplied`, which chains to a pinned root.
fn find_vcek<'a>(
    supplied: &'a Supplied,
    product: Product,
    hw_id: &[u8],
    tcb: TcbVersion,
    anchors: &TrustAnchors,
    memory: &dyn ChainMemory,
) -> Result<&'a Certificate, CollateralRefusal> {
    let kind = SigningKey::Vcek;
    let (leaf, key) = supplied.endorsement_key(kind)?;
    key.check_product(product)?;
    let found = key.hw_id.as_deref().unwrap_or_default();
    if found != hw_id {
        return Err(Finding::fail(ReasonCode::ChipIdMismatch)
            .expected(hex::encode(hw_id))
            .observed(hex::encode(found))
            .into());
    }
    if key.tcb() != tcb {
        return Err(Finding::fail(ReasonCode::EndorsedTcbMismatch)
            .expected(tcb.to_string())
            .observed(key.tcb().to_string())
            .into());
    }
    let ((root, _), _) = supplied.root(leaf, kind, product, anchors)?;
    supplied.verify_chain(root, leaf, kind, product, memory)?;
    Ok(leaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses as the vendor's specification and the peers write them.
    #[test]
    fn addresses_are_those_of_the_service() {
        let tcb = TcbVersion {
            fmc: None,
            bootloader: 4,
            tee: 0,
            snp: 23,
            microcode: 213,
        };
        let chip_id = [0xa5; 64];
        let request = CollateralRequest::vcek(Product::Milan, &chip_id, tcb).unwrap();
        let hw_id = "a5".repeat(64);
        assert_eq!(
            request.path(),
            format!("/vcek/v1/Milan/{hw_id}?blSPL=04&teeSPL=00&snpSPL=23&ucodeSPL=213")
        );
        assert_eq!(
            request.file_name(),
            format!("vcek-Milan-{hw_id}-4.0.23.213.der")
        );

        let mut chip_id = [0; 64];
        chip_id[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let tcb = TcbVersion {
            fmc: Some(1),
            ..tcb
        };
        let request = CollateralRequest::vcek(Product::Turin, &chip_id, tcb).unwrap();
        assert_eq!(
            request.path(),
            "/vcek/v1/Turin/0102030405060708?fmcSPL=01&blSPL=04&teeSPL=00&snpSPL=23&ucodeSPL=213"
        );

        let (product, kind) = (Product::Genoa, KeyKind::Vlek);
        let chain = CollateralRequest::CertChain { product, kind };
        assert_eq!(chain.path(), "/vlek/v1/Genoa/cert_chain");
        let kind = KeyKind::Vcek;
        let list = CollateralRequest::RevocationList { product, kind };
        assert_eq!(list.path(), "/vcek/v1/Genoa/crl");
        for request in [request, chain, list] {
            let name = request.file_name();
            assert_eq!(CollateralRequest::from_file_name(&name), Some(request));
        }
    }

    #[test]
    fn a_chip_that_its_product_cannot_have_is_not_asked_for() {
        let tcb = |fmc| TcbVersion {
            fmc,
            bootloader: 0,
            tee: 0,
            snp: 0,
            microcode: 0,
        };
        for (product, chip_id, fmc) in [
            (Product::Genoa, &[0; 64][..], None),
            (Product::Genoa, &[1; 8], None),
            (Product::Genoa, &[1; 64], Some(0)),
            (Product::Turin, &[1; 64], Some(0)),
            (Product::Turin, &[1; 8], None),
        ] {
            let request = CollateralRequest::vcek(product, chip_id, tcb(fmc));
            assert_eq!(request, None, "{product}");
        }
    }

    #[test]
    fn a_file_of_another_name_is_no_answer() {
        for name in [
            "",
            "vcek-Genoa.der",
            "vcek-Rome.crl",
            "vcek-Genoa-B0.crl",
            "vlek-Genoa-0102030405060708-1.2.3.4.5.der",
            "vcek-Turin-0102030405060708-01.2.3.4.5.der",
            "vcek-Turin-0102030405060708-1.2.3.4.der",
            "vcek-Turin-0102030405060708-1.2.3.4.5.der.tmp",
        ] {
            assert_eq!(CollateralRequest::from_file_name(name), None, "{name}");
        }
    }
}
