//! Sessions of COCONUT-SVSM's attestation proxy: the same operations on the instance
//! data in the path, of evidence that binds in another way.

use assay_protocol::broker::Profile;
use assay_protocol::jwe::Jwe;
use assay_protocol::messages::Challenge;

use super::{Chain, Refusal, Service, malformed};
use crate::inventory::Inventory;
use crate::release::ReleaseRefusal;
use crate::submission::{Submission, SvsmDocument};

/// Longest text that the log repeats.
const MAX_DETAIL: usize = 256;

impl<I: Inventory> Service<I> {
    /// Answers a proxy's authentication request with a session and its challenge.
    ///
    /// # Errors
    /// As [`Service::authenticate`], and when the path has no instance data with one
    /// resource. The proxy tells nobody why it is refused; the log does.
    pub fn authenticate_svsm(
        &self,
        document: &str,
        body: &[u8],
    ) -> Result<(String, Challenge), Refusal> {
        read(document)?;
        self.authenticate(Profile::Svsm, body)
    }

    /// Appraises an SVSM's evidence, records the verdict, and returns a token if it is
    /// accepted.
    ///
    /// # Errors
    /// As [`Service::attest`].
    pub async fn attest_svsm(
        &self,
        document: &str,
        session: Option<&str>,
        body: &[u8],
    ) -> Result<String, Refusal> {
        let submission = Submission::parse_svsm(read(document)?, body);
        let result = self.appraise(session, submission).await;
        self.count_session(&result);
        result
    }

    /// Releases the one resource that the instance data lists to the holder of a token
    /// for it.
    ///
    /// # Errors
    /// As [`Service::resource`], and when the token is of another instance.
    pub async fn resource_svsm(&self, document: &str, token: Option<&str>) -> Result<Jwe, Refusal> {
        let document = read(document)?;
        let now = self.now();
        let claims = self.verify_token(Profile::Svsm, token, now)?;
        if claims.host_data() != Some(document.host_data().as_str()) {
            let detail = "the token is of a guest with other instance data";
            return Err(Refusal::TokenInvalid(detail.to_owned()));
        }
        let path = document.resource();
        let path = path.ok_or(Refusal::PolicyDeny(ReleaseRefusal::PathInvalid))?;
        self.answer(&claims, &path, now).await
    }
}

fn read(document: &str) -> Result<SvsmDocument, Refusal> {
    SvsmDocument::parse(document).map_err(|error| {
        // The proxy shows nobody why; and anybody may say what they like here.
        let detail: String = Chain(&error).to_string().chars().take(MAX_DETAIL).collect();
        tracing::warn!(detail, "an SVSM's proxy has a base URL that is no good");
        malformed(&error)
    })
}
