//! Releases: reads what a release needs as it is now, one pure decision, the value,
//! and what is told about it.

use assay_crds::v1alpha1::AttestationRecord;
use assay_crds::v1alpha1::attestation_record::{PodReference, SecretRelease};
use assay_crds::v1alpha1::confidential_deployment::SecretKeyReference;
use assay_protocol::broker::Profile;
use assay_protocol::jwe::Jwe;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{Chain, Refusal, Service, unavailable};
use crate::inventory::{Inventory, Notice};
use crate::record::plan_release;
use crate::release::{
    ReleaseObserved, ReleaseRefusal, ResourcePath, audit_entry, check_path, check_size,
    decide_release, decide_secret, describe_release,
};
use crate::secrets::SecretStoreError;
use crate::token::{Claims, InstanceClaims};

/// A value that is to be released, or why it is not.
type Found = Result<Zeroizing<Vec<u8>>, ReleaseRefusal>;

impl<I: Inventory> Service<I> {
    /// Releases a resource to the holder of a token, encrypted to the key in
    /// its evidence.
    ///
    /// # Errors
    /// When it is not to be released.
    pub async fn resource(&self, token: Option<&str>, path: &ResourcePath) -> Result<Jwe, Refusal> {
        let now = self.now();
        let claims = self.verify_token(Profile::Kbs, token, now)?;
        self.answer(&claims, path, now).await
    }

    /// Releases a resource, and tells people.
    pub(super) async fn answer(
        &self,
        claims: &Claims,
        path: &ResourcePath,
        now: Timestamp,
    ) -> Result<Jwe, Refusal> {
        let result = self.release(claims, path, now).await;
        let instance = claims.instance();
        let notice = match &result {
            Ok(_) => Some(Notice::SecretReleased {
                path: path.to_string(),
            }),
            Err(Refusal::PolicyDeny(refusal)) => Some(Notice::SecretRefused {
                path: path.to_string(),
                reason: refusal.reason(),
            }),
            Err(_) => None,
        };
        tracing::info!(
            namespace = instance.namespace, deployment = instance.deployment,
            pod = instance.pod, pod_uid = instance.pod_uid, simulated = instance.simulated,
            resource = %path, outcome = ?notice, "resource requested",
        );
        if let Some(notice) = notice {
            let inventory = &self.parts.inventory;
            inventory
                .notify(&instance.namespace, &pod_of(instance), notice)
                .await;
        }
        result
    }

    /// What a token of `profile` says.
    pub(super) fn verify_token(
        &self,
        profile: Profile,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<Claims, Refusal> {
        let invalid = |detail: &str| Refusal::TokenInvalid(detail.to_owned());
        let token = token.ok_or_else(|| invalid("a token is needed"))?;
        let claims = self
            .parts
            .tokens
            .verify(token, now)
            .map_err(|error| invalid(&error.to_string()))?;
        if claims.profile() != profile {
            return Err(invalid("the token is of a session of another profile"));
        }
        Ok(claims)
    }

    async fn release(
        &self,
        claims: &Claims,
        path: &ResourcePath,
        now: Timestamp,
    ) -> Result<Jwe, Refusal> {
        let (value, found) = self.find(claims, path, now).await?;
        let refusal = value.as_ref().err().copied();
        if let Some(audit) = &self.parts.audit {
            audit
                .record(audit_entry(claims, path, refusal, now))
                .await
                .map_err(|error| unavailable(&error))?;
        }
        self.metrics().release(refusal);
        if let Some((reference, observed)) = found
            && let Some(release) = {
                let location = self.parts.secrets.locate(path, &reference);
                describe_release(path, &location, refusal)
            }
        {
            self.record_release(claims.instance(), observed, &release, now)
                .await;
        }
        let value = value.map_err(Refusal::PolicyDeny)?;
        Jwe::encrypt(&value, claims.tee_pubkey()).map_err(|error| unavailable(&error))
    }

    /// The value of a resource, or why it is refused; and, if the request got as
    /// far as the Secret, where that is and what was seen.
    async fn find(
        &self,
        claims: &Claims,
        path: &ResourcePath,
        now: Timestamp,
    ) -> Result<(Found, Option<(SecretKeyReference, ReleaseObserved)>), Refusal> {
        if let Err(refusal) = check_path(claims, path) {
            return Ok((Err(refusal), None));
        }
        let inventory = &self.parts.inventory;
        let observed = inventory
            .observe_release(claims.instance())
            .await
            .map_err(|error| unavailable(&error))?;
        let reference = match decide_release(claims, path, &observed, now) {
            Ok(reference) => reference,
            Err(refusal) => return Ok((Err(refusal), None)),
        };
        let value = self.read(claims, path, &reference).await?;
        Ok((value, Some((reference, observed))))
    }

    /// The value, as far as its class allows. What the store keeps sealed is
    /// opened only once it is to be released.
    async fn read(
        &self,
        claims: &Claims,
        path: &ResourcePath,
        reference: &SecretKeyReference,
    ) -> Result<Found, Refusal> {
        let secrets = &self.parts.secrets;
        let stored = secrets.read(path, reference).await;
        let stored = stored.map_err(|error| self.no_answer(&error))?;
        let value = match decide_secret(claims, stored) {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let value = secrets.open(path, value).await;
        Ok(check_size(value.map_err(|error| self.no_answer(&error))?))
    }

    fn no_answer(&self, error: &SecretStoreError) -> Refusal {
        self.metrics().store_error(error.store);
        unavailable(error)
    }

    /// Tells in the pod's record what came of a request. People read it; no
    /// decision does, so that a failure to write it is no reason to refuse.
    async fn record_release(
        &self,
        instance: &InstanceClaims,
        observed: ReleaseObserved,
        release: &SecretRelease,
        now: Timestamp,
    ) {
        let deployment = observed.deployment.as_ref();
        let secrets = deployment.map_or(&[][..], |deployment| &deployment.spec.secrets);
        let plan = |existing: Option<&AttestationRecord>| {
            existing
                .and_then(|record| plan_release(record, &instance.pod_uid, secrets, release, now))
                .ok_or(())
        };
        let InstanceClaims { namespace, pod, .. } = instance;
        let reference = pod_of(instance);
        let written = self.write(namespace, &reference, observed.record, plan);
        if let Err(error) = written.await {
            tracing::warn!(error = %Chain(&error), namespace, pod, "cannot record the release");
        }
    }
}

fn pod_of(instance: &InstanceClaims) -> PodReference {
    PodReference {
        name: instance.pod.clone(),
        uid: instance.pod_uid.clone(),
    }
}
