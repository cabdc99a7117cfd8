//! Sessions of COCONUT-SVSM's attestation proxy, with messages as it writes them.

use assay_crds::v1alpha1::attestation_record::ReportBinding;
use assay_protocol::jwe::{Curve, RecipientKey, TeePublicKey};
use assay_protocol::messages::RuntimeData;
use assay_protocol::svsm;
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::instance::ResourceRequest;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use super::*;

/// A guest with an SVSM, and the key that the SVSM made.
struct Svsm {
    guest: assay_psp_sim::Guest,
    key: RecipientKey,
    /// What ends the proxy's base URL.
    segment: String,
}

impl Svsm {
    fn launch(instance: &InstanceData) -> Self {
        Self {
            guest: fixtures::launch(1, instance),
            key: RecipientKey::generate_on(Curve::P521).unwrap(),
            segment: segment(instance),
        }
    }

    fn runtime_data(&self, nonce: &str) -> RuntimeData {
        RuntimeData {
            nonce: nonce.to_owned(),
            tee_pubkey: TeePublicKey::new(&self.key.public_key().unwrap()),
        }
    }

    /// The body of the proxy's attestation request, over a report from `vmpl`.
    fn body(&self, nonce: &str, report_data: [u8; 64], vmpl: u32) -> Value {
        let request = ReportRequest::new(report_data, vmpl).encode();
        let response = self.guest.extended_guest_request(&request).unwrap();
        let response = ReportResponse::parse(&response).unwrap();
        let certificates = response.certificates.encode().unwrap();
        json!({
            "init-data": null,
            "runtime-data": self.runtime_data(nonce),
            "tee-evidence": {
                "primary_evidence": {
                    "snp-report": BASE64_STANDARD.encode(response.report),
                    "certs-buf": BASE64_STANDARD.encode(certificates),
                },
                "additional_evidence": "",
            },
        })
    }
}

fn segment(instance: &InstanceData) -> String {
    svsm::encode_document(&instance.encode().unwrap())
}

const AUTH: &[u8] = br#"{"version":"0.4.0","tee":"snp","extra-params":""}"#;

impl Replica {
    /// A session and its challenge.
    fn challenge(&self, segment: &str) -> (String, String) {
        let (session, challenge) = self.service.authenticate_svsm(segment, AUTH).unwrap();
        (session, challenge.nonce)
    }

    async fn attest_svsm(&self, svsm: &Svsm, vmpl: u32) -> Result<String, Refusal> {
        let (session, nonce) = self.challenge(&svsm.segment);
        let report_data = svsm::report_data(&svsm.runtime_data(&nonce)).unwrap();
        let body = svsm.body(&nonce, report_data, vmpl).to_string();
        let service = &self.service;
        Box::pin(service.attest_svsm(&svsm.segment, Some(&session), body.as_bytes())).await
    }

    async fn svsm_secret(&self, svsm: &Svsm, token: &str) -> Result<Vec<u8>, Refusal> {
        let released = self.service.resource_svsm(&svsm.segment, Some(token));
        let released = Box::pin(released).await?;
        Ok(released.decrypt(&svsm.key).unwrap().to_vec())
    }
}

fn refusal<T>(result: Result<T, Refusal>) -> String {
    let information = result.err().unwrap().information();
    format!("{}: {}", information.kind(), information.detail)
}

#[tokio::test]
async fn an_svsm_gets_the_one_resource_of_its_instance_data() {
    let replica = Replica::new(&FakeCluster::new());
    let svsm = Svsm::launch(&fixtures::instance());
    let token = replica.attest_svsm(&svsm, 0).await.unwrap();
    let secret = replica.svsm_secret(&svsm, &token).await.unwrap();
    assert_eq!(secret, fixtures::SECRET_VALUE);

    let status = replica.cluster.record().unwrap().status.unwrap();
    assert_eq!(status.verdict, Verdict::Accepted);
    // Anybody can tell from the record what the report binds.
    let evidence = &status.evidence;
    assert_eq!(evidence.bound_by, Some(ReportBinding::Svsm));
    let bound: RuntimeData = serde_json::from_str(&evidence.runtime_data).unwrap();
    let report = BASE64_STANDARD.decode(&evidence.report).unwrap();
    let report = assay_tee::AttestationReport::read_layout(&report).unwrap();
    assert_eq!(svsm::report_data(&bound).unwrap(), report.report_data);
}

#[tokio::test]
async fn a_session_of_one_profile_never_serves_the_other() {
    let replica = Replica::new(&FakeCluster::new());
    let instance = fixtures::instance();
    let svsm = Svsm::launch(&instance);

    // The challenge of a usual session, answered as an SVSM does.
    let request = GuestSession::new().unwrap().auth_request().unwrap();
    let (session, challenge) = replica.service.authenticate(KBS, &request.body).unwrap();
    let report_data = svsm::report_data(&svsm.runtime_data(&challenge.nonce)).unwrap();
    let body = svsm.body(&challenge.nonce, report_data, 0).to_string();
    let service = &replica.service;
    let answered =
        Box::pin(service.attest_svsm(&svsm.segment, Some(&session), body.as_bytes())).await;
    assert!(refusal(answered).contains("not issued to this session"));
    // And the other way round.
    let (session, nonce) = replica.challenge(&svsm.segment);
    let guest = GuestSession::new().unwrap();
    let challenge = assay_protocol::messages::Challenge::new(nonce.clone());
    let guest = guest.on_challenge(&fixtures::response(&session, &challenge));
    let guest = guest.unwrap();
    let evidence = fixtures::evidence(&svsm.guest, guest.report_data().unwrap());
    let document = String::from_utf8(instance.encode().unwrap()).unwrap();
    let request = guest.attest_request(evidence, &document).unwrap();
    let response = replica.send(&request).await;
    let answered = String::from_utf8(response.body).unwrap();
    assert!(
        answered.contains("not issued to this session"),
        "{answered}"
    );
    // A challenge of the profile, answered in the usual way.
    let report_data = svsm.runtime_data(&nonce).report_data("").unwrap();
    let body = svsm.body(&nonce, report_data, 0).to_string();
    let answered =
        Box::pin(service.attest_svsm(&svsm.segment, Some(&session), body.as_bytes())).await;
    assert!(refusal(answered).contains("ReportDataMismatch"));

    // Tokens.
    let token = replica.attest_svsm(&svsm, 0).await.unwrap();
    let path = fixtures::resource_path();
    let released = Box::pin(service.resource(Some(&token), &path)).await;
    assert!(refusal(released).contains("of another profile"));
    let opened = Box::pin(service.open_volume(Some(&token), &path, b"{}")).await;
    assert!(refusal(opened).contains("of another profile"));
    assert!(replica.svsm_secret(&svsm, &token).await.is_ok());
    replica.advance(SignedDuration::from_secs(1));
    let usual = replica.attest(1).await.unwrap();
    let request = usual.resource_request("shop/web/greeting").unwrap();
    let mut headers = request.headers.iter();
    let (_, token) = headers.find(|(name, _)| *name == "authorization").unwrap();
    let token = token.strip_prefix("Bearer ").unwrap();
    let released = replica.svsm_secret(&svsm, token).await;
    assert!(refusal(released).contains("of another profile"));
    assert!(replica.secret(&usual).await.is_ok());
}

/// A policy may accept guests above the SVSM, too: they have the launch digest of the
/// SVSM, and get nothing by its profile.
#[tokio::test]
async fn only_what_runs_at_vmpl_0_is_an_svsm() {
    let cluster = FakeCluster::new();
    let hash = |vmpls: &[u32]| {
        let mut world = cluster.0.lock().unwrap();
        let policy = Arc::make_mut(world.observed.policy.as_mut().unwrap());
        policy.spec.snp.vmpls = vmpls.to_vec();
        policy.spec.hash().unwrap()
    };
    let instance = |policy_hash| InstanceData {
        policy_hash,
        ..fixtures::instance()
    };
    let replica = Replica::new(&cluster);
    let svsm = Svsm::launch(&instance(hash(&[0, 1])));
    let refused = replica.attest_svsm(&svsm, 1).await;
    assert!(refusal(refused).contains("VmplNotAllowed"));
    assert!(replica.attest_svsm(&svsm, 0).await.is_ok());

    let svsm = Svsm::launch(&instance(hash(&[1])));
    for vmpl in [0, 1] {
        let refused = replica.attest_svsm(&svsm, vmpl).await;
        assert!(refusal(refused).contains("VmplNotAllowed"), "{vmpl}");
    }
}

#[tokio::test]
async fn a_proxy_cannot_speak_for_another_guest_or_twice() {
    let cluster = FakeCluster::new();
    let replica = Replica::new(&cluster);
    let svsm = Svsm::launch(&fixtures::instance());
    let mut other = fixtures::instance();
    other.attestation_interval_seconds += 1;
    let other = segment(&other);

    // The path says what the report does not bind.
    let (session, nonce) = replica.challenge(&other);
    let report_data = svsm::report_data(&svsm.runtime_data(&nonce)).unwrap();
    let body = svsm.body(&nonce, report_data, 0).to_string();
    let service = &replica.service;
    let refused = Box::pin(service.attest_svsm(&other, Some(&session), body.as_bytes())).await;
    assert!(refusal(refused).contains("HostDataMismatch"));

    let (session, nonce) = replica.challenge(&svsm.segment);
    let report_data = svsm::report_data(&svsm.runtime_data(&nonce)).unwrap();
    let body = svsm.body(&nonce, report_data, 0).to_string();
    let attest = || Box::pin(service.attest_svsm(&svsm.segment, Some(&session), body.as_bytes()));
    let token = attest().await.unwrap();
    assert!(refusal(attest().await).contains("used already"));

    let released = Box::pin(service.resource_svsm(&other, Some(&token))).await;
    assert!(refusal(released).contains("other instance data"));
    let released = Box::pin(service.resource_svsm(&svsm.segment, None)).await;
    assert!(refusal(released).contains("a token is needed"));
    assert!(replica.svsm_secret(&svsm, &token).await.is_ok());
    // What was decided since counts, as for every guest.
    {
        let mut world = cluster.0.lock().unwrap();
        let policy = Arc::make_mut(world.observed.policy.as_mut().unwrap());
        policy.spec.release.clear();
    }
    let released = replica.svsm_secret(&svsm, &token).await;
    assert!(refusal(released).contains("PolicyChanged"));
}

#[tokio::test]
async fn what_no_proxy_sends_is_refused() {
    let replica = Replica::new(&FakeCluster::new());
    let service = &replica.service;
    let resource = |name: &str| ResourceRequest {
        name: name.to_owned(),
        path: format!("/run/secrets/{name}"),
    };
    for (resources, count) in [(vec![], "0"), (vec![resource("a"), resource("b")], "2")] {
        let instance = InstanceData {
            resources,
            ..fixtures::instance()
        };
        let refused = refusal(service.authenticate_svsm(&segment(&instance), AUTH));
        let words = format!("lists {count} resources");
        assert!(refused.contains(&words), "{refused}");
        assert!(refused.contains("default/sample/test"), "{refused}");
    }
    for segment in ["", "*", "e30"] {
        let refused = refusal(service.authenticate_svsm(segment, AUTH));
        assert!(refused.starts_with("InvalidRequest"), "{refused}");
    }

    let svsm = Svsm::launch(&fixtures::instance());
    let (session, nonce) = replica.challenge(&svsm.segment);
    let report_data = svsm::report_data(&svsm.runtime_data(&nonce)).unwrap();
    let good = svsm.body(&nonce, report_data, 0);
    let p256 = TeePublicKey::new(&RecipientKey::generate().unwrap().public_key().unwrap());
    let rows = [
        (
            "/init-data",
            json!({"format": "json", "body": "{}"}),
            "in the path",
        ),
        ("/runtime-data/tee-pubkey", json!(p256), "on P-521"),
        (
            "/tee-evidence/additional_evidence",
            json!("{}"),
            "additional evidence",
        ),
        (
            "/tee-evidence/primary_evidence/snp-report",
            json!("?"),
            "not base64",
        ),
        (
            "/tee-evidence/primary_evidence/certs-buf",
            json!("AAAA"),
            "malformed",
        ),
        (
            "/tee-evidence/primary_evidence",
            json!({"report": ""}),
            "not an attestation",
        ),
    ];
    for (pointer, value, words) in rows {
        let mut body = good.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        let body = body.to_string();
        let attest = service.attest_svsm(&svsm.segment, Some(&session), body.as_bytes());
        let refused = refusal(Box::pin(attest).await);
        assert!(
            refused.starts_with("InvalidRequest"),
            "{pointer}: {refused}"
        );
        assert!(refused.contains(words), "{pointer}: {refused}");
    }
    // None of them used the challenge up.
    let body = good.to_string();
    let attest = service.attest_svsm(&svsm.segment, Some(&session), body.as_bytes());
    assert!(Box::pin(attest).await.is_ok());
}
