//! A simulated key distribution service: what the vendor's answers to a GET,
//! and on demand what it answers on a bad day. It opens no socket: whoever wants
//! HTTP calls [`KeyDistributionService::respond`].

use std::collections::{BTreeMap, VecDeque};

use assay_tee::report::SigningKey;

use crate::pki::{Authority, Endorsement, Identity, PkiError, RevocationListTemplate};

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is answered 429, as the vendor answers the second one in ten seconds.
    TooManyRequests,
    /// It is answered 500.
    InternalError,
    /// A revocation list that is asked for ended when it began.
    StaleRevocationList,
    /// A VCEK that is asked for is another chip's.
    WrongChip,
}

/// The service for one product.
pub struct KeyDistributionService<'a> {
    authority: &'a Authority,
    revocation_list: RevocationListTemplate,
    vceks: Vec<(Identity, Vec<u8>)>,
    /// What goes wrong with the next requests, in order.
    pub faults: VecDeque<Fault>,
}

impl<'a> KeyDistributionService<'a> {
    /// A service that publishes the certificates of `authority` and this
    /// revocation list.
    pub const fn new(authority: &'a Authority, revocation_list: RevocationListTemplate) -> Self {
        Self {
            authority,
            revocation_list,
            vceks: Vec::new(),
            faults: VecDeque::new(),
        }
    }

    /// Publishes another revocation list.
    pub fn set_revocation_list(&mut self, template: RevocationListTemplate) {
        self.revocation_list = template;
    }

    /// Publishes the certificate of a VCEK.
    ///
    /// # Errors
    /// When it lacks an extension of the vendor.
    pub fn publish(&mut self, vcek: &Endorsement) -> Result<(), PkiError> {
        let leaf = vcek.chain().leaf.clone();
        self.vceks.push((vcek.identity()?, leaf));
        Ok(())
    }

    /// Status and body of the answer to a GET of `path`, with its query.
    ///
    /// # Errors
    /// When the revocation list cannot be signed.
    pub fn respond(&mut self, path: &str) -> Result<(u16, Vec<u8>), PkiError> {
        let fault = self.faults.pop_front();
        match fault {
            Some(Fault::TooManyRequests) => return Ok((429, Vec::new())),
            Some(Fault::InternalError) => return Ok((500, Vec::new())),
            Some(Fault::StaleRevocationList | Fault::WrongChip) | None => {}
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let segments: Vec<&str> = path.split('/').collect();
        let (kind, name) = match segments.as_slice() {
            ["", kind, "v1", product, name] if *product == self.authority.product().name() => {
                (*kind, *name)
            }
            _ => return Ok((404, Vec::new())),
        };
        let signing_key = match kind {
            "vcek" => SigningKey::Vcek,
            "vlek" => SigningKey::Vlek,
            _ => return Ok((404, Vec::new())),
        };
        let body = match name {
            "cert_chain" => Some(self.authority.chain_pem(signing_key)?.into_bytes()),
            "crl" => {
                let mut template = self.revocation_list.clone();
                if fault == Some(Fault::StaleRevocationList) {
                    template.next_update = template.this_update;
                }
                Some(self.authority.revocation_list(&template)?)
            }
            hw_id if signing_key == SigningKey::Vcek => {
                self.vcek(hw_id, query, fault == Some(Fault::WrongChip))
            }
            _ => None,
        };
        Ok(body.map_or((404, Vec::new()), |body| (200, body)))
    }

    fn vcek(&self, hw_id: &str, query: &str, other: bool) -> Option<Vec<u8>> {
        let versions: Option<BTreeMap<&str, u8>> = query
            .split('&')
            .map(|pair| {
                let (name, value) = pair.split_once('=')?;
                Some((name, value.parse().ok()?))
            })
            .collect();
        let versions = versions?;
        let (_, leaf) = self.vceks.iter().find(|(identity, _)| {
            let is_chip = chip(identity) == hw_id;
            is_chip != other && spls(identity) == versions
        })?;
        Some(leaf.clone())
    }
}

/// The chip as requests name it.
fn chip(identity: &Identity) -> String {
    let (hw_id, _) = identity.chip_id.split_at(identity.product.chip_id_len());
    hex::encode(hw_id)
}

/// The TCB as requests name it.
fn spls(identity: &Identity) -> BTreeMap<&'static str, u8> {
    let tcb = identity.tcb;
    let mut spls = BTreeMap::from([
        ("blSPL", tcb.bootloader),
        ("teeSPL", tcb.tee),
        ("snpSPL", tcb.snp),
        ("ucodeSPL", tcb.microcode),
    ]);
    spls.extend(tcb.fmc.map(|fmc| ("fmcSPL", fmc)));
    spls
}
