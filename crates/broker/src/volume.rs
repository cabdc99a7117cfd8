//! Keys that the broker makes for volumes: who gets them, and with which
//! generation.
//!
//! A volume belongs to a workload and not to a launch digest: its keys survive an
//! update of the image. Its generation rises whenever another guest opens it, and no
//! two guests ever get the same one. The guest writes it to the disk and says so by
//! opening the volume again with it; from then on a disk that names an older one is
//! a copy, or was rolled back, and opens nothing.
//!
//! A guest may die before it has written its generation, or before the broker has
//! heard of it. So two generations are accepted: the last one that the broker knows
//! to be on the disk, and the one that it gave out after it.
//!
//! # Guarantees
//! Once a guest has opened the volume again with its generation, no disk that names
//! an older one opens it. The disk of the guest that opened it last always does, when
//! the lease of that guest is over.
//!
//! # Assumptions
//! A guest writes data only after it has opened the volume again with its
//! generation, and none when its lease is over.
//!
//! # Caveats
//! A disk that is put back to an earlier state of the same generation is not
//! noticed. Which of two copies of a disk is the original nobody can tell: the first
//! one to be opened goes on.

pub mod declared;
pub mod store;

use assay_protocol::audit::{AuditEntry, AuditOutcome, VolumeAudit, VolumeOperation};
use assay_protocol::volume::{
    MAX_GENERATION, OpenVolume, VolumeGrant, VolumeKey, VolumeKeys, VolumeRequest,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::declared::DeclaredVolume;
use crate::release::{ReleaseRefusal, ResourcePath, audit_entry};
use crate::token::Claims;

/// Longest name of a request.
const MAX_REQUEST_ID: usize = 64;

/// What the broker keeps of a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// Changes of this state so far: it is replaced only as it was read.
    pub revision: u64,
    /// Whether its keys have been with simulated guests, which nothing protects.
    pub simulated: bool,
    /// The generation that was given out last.
    pub generation: u64,
    /// The one that a guest said to be on the disk last: nothing, while that is none.
    pub on_disk: Option<u64>,
    /// The current version of the key.
    pub key_version: u32,
    /// The current key, and older ones that the disk may still need.
    pub keys: VolumeKeys,
    /// The guest that opened the volume last.
    pub holder: Holder,
}

/// The guest that opened a volume last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Holder {
    /// REPORT_ID of its evidence, which it keeps for its life.
    pub report_id: String,
    /// Its pod.
    pub pod: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// The challenge that its evidence answered when it opened the volume last.
    pub nonce: String,
    /// When it opened the volume first.
    pub since: Timestamp,
    /// Until when no other guest gets the keys; nothing, once the guest has closed
    /// the volume.
    pub lease_until: Option<Timestamp>,
}

/// A guest that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Who it would be as the holder, from now to the end of its attestation.
    pub holder: Holder,
    /// Whether a simulation stands in for its hardware.
    pub simulated: bool,
}

impl Guest {
    /// The guest of a token whose attestation holds until `until`.
    ///
    /// # Errors
    /// When its evidence names no guest.
    pub fn of(claims: &Claims, until: Timestamp, now: Timestamp) -> Result<Self, VolumeRefusal> {
        let instance = claims.instance();
        let report_id = claims.report_id().ok_or(VolumeRefusal::GuestUnnamed)?;
        Ok(Self {
            holder: Holder {
                report_id: report_id.to_owned(),
                pod: instance.pod.clone(),
                pod_uid: instance.pod_uid.clone(),
                nonce: claims.nonce().to_owned(),
                since: now,
                lease_until: Some(until),
            },
            simulated: instance.simulated,
        })
    }
}

/// Why a volume is not opened or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VolumeRefusal {
    /// The guest would get no secret of this name, either.
    #[error(transparent)]
    Release(#[from] ReleaseRefusal),
    /// The evidence has no REPORT_ID.
    #[error("the evidence does not tell the guest from others")]
    GuestUnnamed,
    /// The volume is for simulated guests, or for those that hardware protects.
    #[error("the volume is not for guests of this kind: simulated ones and others share none")]
    ClassMismatch,
    /// Another guest has it.
    #[error("another guest has the volume: wait until it closes it or its attestation ends")]
    Held,
    /// The disk is behind.
    #[error("the disk is a copy, or was rolled back: a newer one has been opened since")]
    GenerationStale,
    /// The disk is ahead.
    #[error("the broker never gave out this generation: its state or the disk is of elsewhere")]
    GenerationUnknown,
    /// The broker has no such key.
    #[error("the broker has no key of this version")]
    KeyVersionUnknown,
    /// There is no next generation.
    #[error("the volume has no generation left")]
    GenerationExhausted,
}

impl VolumeRefusal {
    /// The reason code.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Release(refusal) => refusal.reason(),
            Self::GuestUnnamed => "GuestUnnamed",
            Self::ClassMismatch => "VolumeClassMismatch",
            Self::Held => "VolumeHeld",
            Self::GenerationStale => "VolumeGenerationStale",
            Self::GenerationUnknown => "VolumeGenerationUnknown",
            Self::KeyVersionUnknown => "VolumeKeyVersionUnknown",
            Self::GenerationExhausted => "VolumeGenerationExhausted",
        }
    }
}

/// What came of opening a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// It was opened for the first time.
    Created,
    /// Another guest than the last one has it now.
    Opened,
    /// The guest that has it keeps it.
    Renewed,
}

/// A volume that may be opened, once its state is kept.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The state to keep.
    pub next: Volume,
    /// What came of it.
    pub opening: Opening,
    /// The version that was current before, where a new one was made.
    pub rotated_from: Option<u32>,
}

/// Checks what a request says of itself.
///
/// # Errors
/// In words, naming the field.
pub fn check_request(request: &VolumeRequest) -> Result<(), String> {
    let id = &request.request;
    if id.is_empty() || id.len() > MAX_REQUEST_ID || !id.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "request: not 1 to {MAX_REQUEST_ID} printable characters of ASCII"
        ));
    }
    Ok(())
}

/// Decides whether `guest` gets the keys of a volume. `fresh` becomes a key of the
/// volume if it needs one.
///
/// # Assumptions
/// The guest may have a secret of the volume's name now:
/// [`crate::release::decide_entitlement`].
///
/// # Errors
/// The first reason why not.
pub fn decide_open(
    existing: Option<&Volume>,
    declared: DeclaredVolume,
    guest: &Guest,
    request: &VolumeRequest,
    fresh: VolumeKey,
    now: Timestamp,
) -> Result<Opened, VolumeRefusal> {
    check_class(existing, declared, guest)?;
    let Some(existing) = existing else {
        return create(declared, guest, request, fresh);
    };
    existing.check_generation(request.generation)?;
    let mut next = existing.clone();
    next.revision = existing.revision.saturating_add(1);
    let opening = if existing.holder.is(guest) {
        // Also after it has closed the volume: whatever answers it has, they name
        // one generation.
        let lease = existing.holder.lease_until;
        next.holder.lease_until = lease.max(guest.holder.lease_until);
        next.holder.nonce.clone_from(&guest.holder.nonce);
        if request.generation == Some(next.generation) {
            next.on_disk = request.generation;
        }
        Opening::Renewed
    } else {
        if existing.holder.lease_until.is_some_and(|until| now < until) {
            return Err(VolumeRefusal::Held);
        }
        next.on_disk = request.generation;
        next.generation = existing
            .generation
            .checked_add(1)
            .filter(|generation| *generation <= MAX_GENERATION)
            .ok_or(VolumeRefusal::GenerationExhausted)?;
        next.holder = guest.holder.clone();
        Opening::Opened
    };
    if let Some(version) = request.key_version {
        if !next.keys.contains_key(&version) {
            return Err(VolumeRefusal::KeyVersionUnknown);
        }
        next.keys.retain(|kept, _| *kept >= version);
    }
    let rotated_from = (declared.key_version > next.key_version).then_some(next.key_version);
    if rotated_from.is_some() {
        next.key_version = declared.key_version;
        next.keys.insert(next.key_version, fresh);
    }
    Ok(Opened {
        next,
        opening,
        rotated_from,
    })
}

/// The first guest of a volume.
fn create(
    declared: DeclaredVolume,
    guest: &Guest,
    request: &VolumeRequest,
    fresh: VolumeKey,
) -> Result<Opened, VolumeRefusal> {
    if request.generation.is_some() {
        return Err(VolumeRefusal::GenerationUnknown);
    }
    if request.key_version.is_some() {
        return Err(VolumeRefusal::KeyVersionUnknown);
    }
    Ok(Opened {
        next: Volume {
            revision: 1,
            simulated: guest.simulated,
            generation: 1,
            on_disk: None,
            key_version: declared.key_version,
            keys: [(declared.key_version, fresh)].into(),
            holder: guest.holder.clone(),
        },
        opening: Opening::Created,
        rotated_from: None,
    })
}

/// Decides whether `guest` may end its hold. Gives the state to keep.
///
/// # Errors
/// When another guest has it, or the disk is another.
pub fn decide_close(
    existing: Option<&Volume>,
    declared: DeclaredVolume,
    guest: &Guest,
    request: &VolumeRequest,
) -> Result<Volume, VolumeRefusal> {
    check_class(existing, declared, guest)?;
    let existing = existing.ok_or(VolumeRefusal::GenerationUnknown)?;
    existing.check_generation(request.generation)?;
    if !existing.holder.is(guest) {
        return Err(VolumeRefusal::Held);
    }
    let mut next = existing.clone();
    next.revision = existing.revision.saturating_add(1);
    next.holder.lease_until = None;
    if request.generation == Some(next.generation) {
        next.on_disk = request.generation;
    }
    Ok(next)
}

impl Holder {
    fn is(&self, guest: &Guest) -> bool {
        self.report_id == guest.holder.report_id
    }
}

fn check_class(
    existing: Option<&Volume>,
    declared: DeclaredVolume,
    guest: &Guest,
) -> Result<(), VolumeRefusal> {
    let kept = existing.map_or(guest.simulated, |volume| volume.simulated);
    if declared.simulated == guest.simulated && kept == guest.simulated {
        Ok(())
    } else {
        Err(VolumeRefusal::ClassMismatch)
    }
}

impl Volume {
    /// Checks that a disk with `presented` is the one that was opened last.
    fn check_generation(&self, presented: Option<u64>) -> Result<(), VolumeRefusal> {
        if presented == self.on_disk || presented == Some(self.generation) {
            Ok(())
        } else if presented > Some(self.generation) {
            Err(VolumeRefusal::GenerationUnknown)
        } else {
            Err(VolumeRefusal::GenerationStale)
        }
    }

    /// The answer to `request`.
    pub fn answer(
        &self,
        path: &ResourcePath,
        request: &VolumeRequest,
        now: Timestamp,
    ) -> OpenVolume {
        let until = self.holder.lease_until.unwrap_or(now);
        let lease = now.duration_until(until).as_secs();
        OpenVolume {
            grant: VolumeGrant {
                resource: path.to_string(),
                request: request.request.clone(),
                generation: self.generation,
                key_version: self.key_version,
                lease_seconds: u64::try_from(lease).unwrap_or(0),
            },
            keys: self.keys.clone(),
        }
    }
}

/// What the audit log says about a request, whatever became of it. `after` is the
/// state that a granted request leaves.
pub fn volume_audit_entry(
    claims: &Claims,
    path: &ResourcePath,
    operation: VolumeOperation,
    request: &VolumeRequest,
    result: Result<(&Volume, Option<u32>), VolumeRefusal>,
    now: Timestamp,
) -> AuditEntry {
    let after = result.ok().map(|(after, _)| after);
    let rotated_from = result.ok().and_then(|(_, rotated_from)| rotated_from);
    AuditEntry {
        outcome: match (result, operation) {
            (Err(_), _) => AuditOutcome::Refused,
            (Ok(_), VolumeOperation::Open) => AuditOutcome::Released,
            (Ok(_), VolumeOperation::Close) => AuditOutcome::Closed,
        },
        reason: result.err().map(|refusal| refusal.reason().to_owned()),
        volume: Some(VolumeAudit {
            operation,
            // More than that is no number in canonical JSON.
            presented: request.generation.map(|number| number.min(MAX_GENERATION)),
            generation: after.map(|volume| volume.generation),
            key_version: after.map(|volume| volume.key_version),
            rotated_from,
        }),
        ..audit_entry(claims, path, None, now)
    }
}

#[cfg(test)]
pub(crate) mod tests;
