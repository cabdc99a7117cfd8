//! Attestation: the protocol's session, driven over HTTPS with the processor's
//! evidence. All decisions of the protocol are in [`assay_protocol::guest`].

use assay_protocol::guest::{
    AttestedSession, GuestSession, GuestSessionError, HttpRequest, HttpResponse,
};
use assay_protocol::messages::SnpEvidence;
use assay_tee::guest_message::GuestMessageError;
use zeroize::Zeroizing;

use crate::evidence::{Evidence, EvidenceError, Provider, check_host_data};
use crate::http::{Client, HttpError};
use crate::resource::ResourcePath;
use crate::validate::ValidInstance;

/// The broker, as far as a session needs it.
pub trait Broker {
    /// Sends a request and receives the response.
    ///
    /// # Errors
    /// When there is no complete response of the right server.
    fn send(&self, request: &HttpRequest) -> Result<HttpResponse, HttpError>;
}

impl Broker for Client {
    fn send(&self, request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        Client::send(self, request)
    }
}

/// The processor, as far as a session needs it.
pub trait Processor {
    /// Requests a report over `report_data`.
    ///
    /// # Errors
    /// When there is no report over it.
    fn request(&mut self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError>;
}

impl Processor for Provider {
    fn request(&mut self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        Provider::request(self, report_data)
    }
}

/// An attestation failed, or what it should release was not released.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The broker could not be asked.
    #[error("the verifier cannot be asked for {what}")]
    Exchange {
        /// What was being asked for.
        what: &'static str,
        /// The cause.
        #[source]
        source: HttpError,
    },
    /// The broker refused, or answered nonsense.
    #[error("no {what}")]
    Session {
        /// What was being asked for.
        what: &'static str,
        /// The cause.
        #[source]
        source: GuestSessionError,
    },
    /// There is no evidence to present.
    #[error("no evidence")]
    Evidence(#[source] EvidenceError),
    /// The host's certificates cannot be passed on.
    #[error("the certificate table cannot be encoded")]
    Certificates(#[source] GuestMessageError),
    /// A resource was not released.
    #[error("resource {name:?} was not released")]
    Resource {
        /// Name of the resource.
        name: String,
        /// The cause.
        #[source]
        source: Box<AttestError>,
    },
}

fn failed(what: &'static str) -> impl Fn(GuestSessionError) -> AttestError {
    move |source| AttestError::Session { what, source }
}

fn exchange(
    broker: &impl Broker,
    what: &'static str,
    request: Result<HttpRequest, GuestSessionError>,
) -> Result<HttpResponse, AttestError> {
    let request = request.map_err(failed(what))?;
    broker
        .send(&request)
        .map_err(|source| AttestError::Exchange { what, source })
}

/// Attests once: a new key, a new nonce, new evidence.
///
/// # Errors
/// When any step fails or the verifier does not accept the evidence.
pub fn attest(
    broker: &impl Broker,
    processor: &mut impl Processor,
    document: &str,
) -> Result<AttestedSession, AttestError> {
    let session = GuestSession::new().map_err(failed("session"))?;
    let challenge = exchange(broker, "challenge", session.auth_request())?;
    let session = session
        .on_challenge(&challenge)
        .map_err(failed("challenge"))?;

    let report_data = session.report_data().map_err(failed("report data"))?;
    let evidence = processor
        .request(&report_data)
        .map_err(AttestError::Evidence)?;
    check_host_data(&evidence, document.as_bytes()).map_err(AttestError::Evidence)?;
    let certificates = evidence
        .certificates
        .encode()
        .map_err(AttestError::Certificates)?;
    let evidence = SnpEvidence {
        report: evidence.report.to_vec(),
        certificates,
    };

    let token = exchange(broker, "token", session.attest_request(evidence, document))?;
    session.on_token(&token).map_err(failed("token"))
}

/// A released resource and where it goes.
pub struct Released {
    /// The file to write.
    pub path: ResourcePath,
    /// Its content.
    pub content: Zeroizing<Vec<u8>>,
}

/// Fetches every resource of the instance; all or nothing.
///
/// # Errors
/// When one is not released to this session.
pub fn fetch_resources(
    broker: &impl Broker,
    session: &AttestedSession,
    instance: &ValidInstance,
) -> Result<Vec<Released>, AttestError> {
    let fetch = |name: &str| {
        let data = &instance.data;
        let path = format!("{}/{}/{name}", data.namespace, data.deployment);
        let response = exchange(broker, "resource", session.resource_request(&path))?;
        session.on_resource(&response).map_err(failed("resource"))
    };
    let released = |(request, path): &(assay_tee::instance::ResourceRequest, ResourcePath)| {
        let content = fetch(&request.name).map_err(|source| AttestError::Resource {
            name: request.name.clone(),
            source: Box::new(source),
        })?;
        Ok(Released {
            path: path.clone(),
            content,
        })
    };
    instance.resources.iter().map(released).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use assay_protocol::jwe::Jwe;
    use assay_protocol::messages::{ATTEST_PATH, AUTH_PATH, Attestation};
    use assay_tee::InstanceData;
    use assay_tee::guest_message::{CertificateEntry, CertificateGuid, CertificateTable};
    use assay_tee::report::AttestationReport;

    use super::*;
    use crate::validate::tests::good_instance;
    use crate::validate::validate_instance;

    /// A processor of a guest launched with `host_data`.
    struct FakeProcessor {
        host_data: [u8; 32],
    }

    impl Processor for FakeProcessor {
        fn request(&mut self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
            let mut report = AttestationReport::zeroed();
            report.report_data = *report_data;
            report.host_data = self.host_data;
            let certificates = CertificateTable(vec![CertificateEntry {
                guid: CertificateGuid::VCEK,
                der: vec![1, 2, 3],
            }]);
            Ok(Evidence {
                report: report.encode(),
                certificates,
            })
        }
    }

    /// A broker that follows the protocol, and refuses where told to.
    #[derive(Default)]
    struct FakeBroker {
        attestation: RefCell<Option<Attestation>>,
        refuse: Option<&'static str>,
    }

    impl Broker for FakeBroker {
        fn send(&self, request: &HttpRequest) -> Result<HttpResponse, HttpError> {
            let respond = |status, body: Vec<u8>| {
                let headers = vec![("Set-Cookie".to_owned(), "kbs-session-id=s".to_owned())];
                Ok(HttpResponse {
                    status,
                    headers,
                    body,
                })
            };
            if self.refuse.is_some_and(|path| request.path.contains(path)) {
                return respond(401, br#"{"type":"x/PolicyDeny","detail":"no"}"#.to_vec());
            }
            match request.path.as_str() {
                AUTH_PATH => respond(200, br#"{"nonce":"bm9uY2U=","extra-params":""}"#.to_vec()),
                ATTEST_PATH => {
                    let attestation = serde_json::from_slice(&request.body).expect("attestation");
                    *self.attestation.borrow_mut() = Some(attestation);
                    respond(200, br#"{"token":"t"}"#.to_vec())
                }
                "/kbs/v0/resource/shop/web/password" => {
                    let attestation = self.attestation.borrow();
                    let key = &attestation
                        .as_ref()
                        .expect("attested")
                        .runtime_data
                        .tee_pubkey;
                    let jwe = Jwe::encrypt(b"hunter2", key).expect("JWE");
                    respond(200, serde_json::to_vec(&jwe).expect("json"))
                }
                other => panic!("unplanned request for {other}"),
            }
        }
    }

    fn instance() -> ValidInstance {
        validate_instance(good_instance().encode().expect("json")).expect("valid")
    }

    fn processor(instance: &ValidInstance) -> FakeProcessor {
        let host_data = InstanceData::host_data(instance.document.as_bytes());
        FakeProcessor {
            host_data: *host_data.as_bytes(),
        }
    }

    #[test]
    fn resources_come_after_evidence_over_the_challenge_and_the_key() {
        let (broker, instance) = (FakeBroker::default(), instance());
        let mut processor = processor(&instance);
        let session = attest(&broker, &mut processor, &instance.document).expect("attested");
        let released = fetch_resources(&broker, &session, &instance).expect("released");
        assert_eq!(released.len(), 1);
        assert_eq!(released[0].content.as_slice(), b"hunter2");

        let attestation = broker.attestation.take().expect("attestation");
        assert_eq!(
            attestation.init_data.expect("init data").body,
            instance.document
        );
        let report =
            AttestationReport::read_layout(&attestation.tee_evidence.primary_evidence.report)
                .expect("report");
        let bound = attestation
            .runtime_data
            .report_data("{}")
            .expect("report data");
        assert_eq!(report.report_data, bound);
        let table =
            CertificateTable::parse(&attestation.tee_evidence.primary_evidence.certificates)
                .expect("table");
        assert_eq!(table.get(CertificateGuid::VCEK), Some([1, 2, 3].as_slice()));
    }

    #[test]
    fn two_attestations_use_two_keys() {
        let (broker, instance) = (FakeBroker::default(), instance());
        let mut processor = processor(&instance);
        let mut key = || {
            attest(&broker, &mut processor, &instance.document).expect("attested");
            broker
                .attestation
                .take()
                .expect("attestation")
                .runtime_data
                .tee_pubkey
        };
        assert_ne!(key(), key());
    }

    #[test]
    fn a_refusal_anywhere_releases_nothing() {
        let instance = instance();
        for path in ["auth", "attest", "resource"] {
            let broker = FakeBroker {
                refuse: Some(path),
                ..FakeBroker::default()
            };
            let result = attest(&broker, &mut processor(&instance), &instance.document)
                .and_then(|session| fetch_resources(&broker, &session, &instance));
            let error = result.err().expect(path);
            let line = crate::failure::describe(&error);
            assert!(line.contains("PolicyDeny: no"), "{line}");
        }
    }

    #[test]
    fn evidence_that_binds_other_instance_data_is_never_presented() {
        let (broker, instance) = (FakeBroker::default(), instance());
        let mut processor = FakeProcessor { host_data: [0; 32] };
        assert!(matches!(
            attest(&broker, &mut processor, &instance.document),
            Err(AttestError::Evidence(EvidenceError::HostData { .. }))
        ));
        assert!(broker.attestation.borrow().is_none());
    }
}
