//! Volumes: the state is read, one pure decision is made, and the state is replaced
//! if nobody else did meanwhile. What was decided is in the audit log before it is
//! answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use assay_protocol::audit::VolumeOperation;
use assay_protocol::broker::Profile;
use assay_protocol::jwe::Jwe;
use assay_protocol::volume::{VolumeKey, VolumeRequest};
use jiff::Timestamp;

use super::{Refusal, Service, WRITE_ATTEMPTS, unavailable};
use crate::inventory::Inventory;
use crate::metrics::VolumeOutcome;
use crate::release::{ReleaseRefusal, ResourcePath, check_path, decide_entitlement};
use crate::token::Claims;
use crate::volume::declared::DeclaredVolume;
use crate::volume::store::{VolumeStore, VolumeStoreError};
use crate::volume::{
    Guest, Volume, VolumeRefusal, check_request, decide_close, decide_open, volume_audit_entry,
};

/// Name of the store in metrics.
const STORE: &str = "volumes";

/// What the broker makes keys for.
pub struct Volumes {
    /// The volumes, by `{namespace}/{deployment}/{volume}`.
    pub declared: BTreeMap<String, DeclaredVolume>,
    /// Where their state is kept.
    pub store: Arc<dyn VolumeStore>,
}

/// A guest that may have a volume, as far as the policy goes.
struct Entitled<'a> {
    guest: Guest,
    declared: DeclaredVolume,
    store: &'a dyn VolumeStore,
}

/// What a granted request leaves.
struct Granted {
    after: Volume,
    rotated_from: Option<u32>,
    outcome: VolumeOutcome,
}

impl<I: Inventory> Service<I> {
    /// Opens a volume for the holder of a token: its keys, encrypted to the key in
    /// the guest's evidence.
    ///
    /// # Errors
    /// When the guest does not get them, or the broker cannot decide.
    pub async fn open_volume(
        &self,
        token: Option<&str>,
        path: &ResourcePath,
        body: &[u8],
    ) -> Result<Jwe, Refusal> {
        let now = self.now();
        let (claims, request) = self.volume_request(token, body, now)?;
        let operation = VolumeOperation::Open;
        let granted = self.decide(&claims, path, operation, &request, now).await?;
        granted
            .after
            .answer(path, &request, now)
            .encrypt(claims.tee_pubkey())
            .map_err(|error| unavailable(&error))
    }

    /// Ends the hold of the token's guest on a volume.
    ///
    /// # Errors
    /// When another guest has it, or the broker cannot decide.
    pub async fn close_volume(
        &self,
        token: Option<&str>,
        path: &ResourcePath,
        body: &[u8],
    ) -> Result<(), Refusal> {
        let now = self.now();
        let (claims, request) = self.volume_request(token, body, now)?;
        let operation = VolumeOperation::Close;
        let granted = self.decide(&claims, path, operation, &request, now).await;
        granted.map(drop)
    }

    fn volume_request(
        &self,
        token: Option<&str>,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(Claims, VolumeRequest), Refusal> {
        let claims = self.verify_token(Profile::Kbs, token, now)?;
        let request: VolumeRequest = serde_json::from_slice(body)
            .map_err(|error| Refusal::InvalidRequest(error.to_string()))?;
        check_request(&request).map_err(Refusal::InvalidRequest)?;
        Ok((claims, request))
    }

    /// Decides, and has it in the audit log.
    async fn decide(
        &self,
        claims: &Claims,
        path: &ResourcePath,
        operation: VolumeOperation,
        request: &VolumeRequest,
        now: Timestamp,
    ) -> Result<Granted, Refusal> {
        let result = match self.entitle(claims, path, now).await? {
            Ok(entitled) => {
                self.replace(&entitled, path, operation, request, now)
                    .await?
            }
            Err(refusal) => Err(refusal),
        };
        if let Some(audit) = &self.parts.audit {
            let result = match &result {
                Ok(granted) => Ok((&granted.after, granted.rotated_from)),
                Err(refusal) => Err(*refusal),
            };
            let entry = volume_audit_entry(claims, path, operation, request, result, now);
            audit
                .record(entry)
                .await
                .map_err(|error| unavailable(&error))?;
        }
        let outcome = match &result {
            Ok(granted) => granted.outcome,
            Err(refusal) => VolumeOutcome::Refused(*refusal),
        };
        let instance = claims.instance();
        tracing::info!(
            namespace = instance.namespace, deployment = instance.deployment,
            pod = instance.pod, pod_uid = instance.pod_uid, simulated = instance.simulated,
            volume = %path, ?operation, presented = request.generation, ?outcome,
            "volume requested",
        );
        self.metrics().volume(outcome);
        result.map_err(Refusal::VolumeDeny)
    }

    /// Whether the guest may have the volume, as far as the policy goes.
    async fn entitle(
        &self,
        claims: &Claims,
        path: &ResourcePath,
        now: Timestamp,
    ) -> Result<Result<Entitled<'_>, VolumeRefusal>, Refusal> {
        if let Err(refusal) = check_path(claims, path) {
            return Ok(Err(refusal.into()));
        }
        let inventory = &self.parts.inventory;
        let observed = inventory
            .observe_release(claims.instance())
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(decide_entitlement(claims, path, &observed, now)
            .map_err(VolumeRefusal::from)
            .and_then(|entitlement| {
                let volumes = self.parts.volumes.as_ref();
                let declared = volumes.and_then(|volumes| {
                    let declared = *volumes.declared.get(&path.to_string())?;
                    Some((declared, &*volumes.store))
                });
                let (declared, store) = declared.ok_or(ReleaseRefusal::ResourceUnknown)?;
                Ok(Entitled {
                    guest: Guest::of(claims, entitlement.until, now)?,
                    declared,
                    store,
                })
            }))
    }

    /// Decides by the state and replaces it, again whenever another request was
    /// faster.
    async fn replace(
        &self,
        entitled: &Entitled<'_>,
        path: &ResourcePath,
        operation: VolumeOperation,
        request: &VolumeRequest,
        now: Timestamp,
    ) -> Result<Result<Granted, VolumeRefusal>, Refusal> {
        let no_answer = |error: &VolumeStoreError| {
            self.metrics().store_error(STORE);
            unavailable(error)
        };
        for _ in 0..WRITE_ATTEMPTS {
            let existing = entitled.store.read(path).await;
            let existing = existing.map_err(|error| no_answer(&error))?;
            let granted = match entitled.decide(existing.as_ref(), operation, request, now)? {
                Ok(granted) => granted,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let revision = existing.map(|volume| volume.revision);
            match entitled
                .store
                .replace(path, revision, granted.after.clone())
                .await
            {
                Ok(()) => {
                    if granted.rotated_from.is_some() {
                        self.metrics().volume_rotation();
                    }
                    return Ok(Ok(granted));
                }
                Err(VolumeStoreError::Conflict) => {}
                Err(error) => return Err(no_answer(&error)),
            }
        }
        Err(no_answer(&VolumeStoreError::Conflict))
    }
}

impl Entitled<'_> {
    fn decide(
        &self,
        existing: Option<&Volume>,
        operation: VolumeOperation,
        request: &VolumeRequest,
        now: Timestamp,
    ) -> Result<Result<Granted, VolumeRefusal>, Refusal> {
        let Self {
            guest, declared, ..
        } = self;
        Ok(match operation {
            VolumeOperation::Open => {
                let fresh = VolumeKey::generate().map_err(|error| unavailable(&error))?;
                let opened = decide_open(existing, *declared, guest, request, fresh, now);
                opened.map(|opened| Granted {
                    after: opened.next,
                    rotated_from: opened.rotated_from,
                    outcome: VolumeOutcome::Opened(opened.opening),
                })
            }
            VolumeOperation::Close => {
                let closed = decide_close(existing, *declared, guest, request);
                closed.map(|after| Granted {
                    after,
                    rotated_from: None,
                    outcome: VolumeOutcome::Closed,
                })
            }
        })
    }
}
