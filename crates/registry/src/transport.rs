//! Requests of registries (distribution-spec 1.1): where they go, who asks, and what
//! an answer means.
//!
//! Credentials go to the registry that they are for and to the token server that it
//! names, and nowhere else: an upload or a redirection may lead to another host.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use assay_image::oci::media_type;
use http::{HeaderMap, StatusCode, header};
use oci_spec::distribution::Reference;
use reqwest::{Client, RequestBuilder, Response, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::DockerConfig;
use crate::auth::{Answer, Challenge, Grant, Grants, Operation};
use crate::error::RequestError;

/// Largest answer that is read of an error.
const MAX_ERROR_LEN: usize = 64 << 10;
/// Longest text of an error that is passed on.
const MAX_MESSAGE_LEN: usize = 300;

/// Makes requests of registries under one set of credentials.
#[derive(Clone)]
pub(crate) struct Transport {
    client: Client,
    plain_http_hosts: Arc<[String]>,
    docker_config: Arc<DockerConfig>,
    grants: Arc<Mutex<Grants>>,
}

impl Transport {
    /// A client. It opens no connection yet.
    pub(crate) fn new(
        plain_http_hosts: Vec<String>,
        docker_config: DockerConfig,
    ) -> Result<Self, reqwest::Error> {
        // A static binary in an empty container image finds no roots on disk,
        // and then even a client for plain HTTP cannot be built.
        let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .map(|root| reqwest::Certificate::from_der(root))
            .collect::<Result<Vec<_>, _>>()?;
        let client = Client::builder()
            .tls_certs_merge(roots)
            .connect_timeout(Duration::from_secs(20))
            .read_timeout(Duration::from_mins(1))
            .user_agent(concat!("assay/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            client,
            plain_http_hosts: plain_http_hosts.into(),
            docker_config: docker_config.into(),
            grants: Arc::default(),
        })
    }

    /// The same under other credentials, which share nothing with these.
    pub(crate) fn with_credentials(&self, docker_config: DockerConfig) -> Self {
        Self {
            docker_config: docker_config.into(),
            grants: Arc::default(),
            ..self.clone()
        }
    }

    /// URL of something in a reference's repository.
    pub(crate) fn url(&self, reference: &Reference, path: &str) -> String {
        let base = self.base(reference.resolve_registry());
        format!("{base}/v2/{}/{path}", reference.repository())
    }

    fn base(&self, host: &str) -> String {
        let scheme = if self.is_plain_http(host) {
            "http"
        } else {
            "https"
        };
        format!("{scheme}://{host}")
    }

    fn is_plain_http(&self, host: &str) -> bool {
        self.plain_http_hosts.iter().any(|plain| plain == host)
    }

    /// Makes a request and returns an answer that is a success.
    ///
    /// # Errors
    /// With the status and the text of any other.
    pub(crate) async fn send(
        &self,
        reference: &Reference,
        operation: Operation,
        url: &str,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, RequestError> {
        let response = self.ask(reference, operation, url, &request).await?;
        let again = response.status() == StatusCode::UNAUTHORIZED
            && self.forget_token(reference, operation).await;
        let response = if again {
            self.ask(reference, operation, url, &request).await?
        } else {
            response
        };
        self.check(reference, url, response).await
    }

    async fn ask(
        &self,
        reference: &Reference,
        operation: Operation,
        url: &str,
        request: &impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, RequestError> {
        let mut request = request(&self.client);
        if self.is_of_registry(reference, url) {
            let grant = self.authorize(reference, operation).await?;
            if let Some(header) = grant.header {
                request = request.header(header::AUTHORIZATION, header);
            }
        }
        request.send().await.map_err(failed(url))
    }

    /// Whether a URL is the registry's own, under the same protection.
    fn is_of_registry(&self, reference: &Reference, url: &str) -> bool {
        let base = Url::parse(&self.base(reference.resolve_registry()));
        match (base, Url::parse(url)) {
            (Ok(base), Ok(url)) => base.origin() == url.origin(),
            _ => false,
        }
    }

    /// What lets its bearer do `operation` in the reference's repository.
    pub(crate) async fn authorize(
        &self,
        reference: &Reference,
        operation: Operation,
    ) -> Result<Grant, RequestError> {
        let key = key(reference, operation);
        // Who comes meanwhile waits for the same answer.
        let mut grants = self.grants.lock().await;
        if let Some(grant) = grants
            .get(&key)
            .filter(|known| known.is_good(Instant::now()))
        {
            return Ok(grant.clone());
        }
        let grant = self.ask_for_grant(reference, operation).await?;
        grants.insert(key, grant.clone());
        Ok(grant)
    }

    /// Forgets a token that was refused. `false` where there was none.
    async fn forget_token(&self, reference: &Reference, operation: Operation) -> bool {
        let mut grants = self.grants.lock().await;
        let forgotten = grants.remove(&key(reference, operation));
        forgotten.is_some_and(|grant| grant.is_token())
    }

    async fn ask_for_grant(
        &self,
        reference: &Reference,
        operation: Operation,
    ) -> Result<Grant, RequestError> {
        let host = reference.resolve_registry();
        let url = format!("{}/v2/", self.base(host));
        let response = self.client.get(&url).send().await.map_err(failed(&url))?;
        let header = response.headers().get(header::WWW_AUTHENTICATE);
        let challenge = header.and_then(|header| Challenge::parse(header.to_str().ok()?));
        let credentials = self.docker_config.credentials(reference.registry());
        match (challenge, credentials) {
            (None, _) | (Some(Challenge::Basic), None) => Ok(Grant::none()),
            (Some(Challenge::Basic), Some((user, password))) => {
                Ok(Grant::basic(user, password).unwrap_or_else(Grant::none))
            }
            (Some(Challenge::Bearer { realm, service }), credentials) => {
                let scope = operation.scope(reference.repository());
                let realm = self.realm(host, &realm, service.as_deref(), &scope)?;
                self.fetch_token(reference, realm, credentials).await
            }
        }
    }

    /// Where a token is to be had.
    fn realm(
        &self,
        host: &str,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<Url, RequestError> {
        let good = Url::parse(realm).ok().filter(|url| {
            url.scheme() == "https" || (url.scheme() == "http" && self.is_plain_http(host))
        });
        let mut url = good.ok_or_else(|| RequestError::Realm {
            host: host.to_owned(),
            realm: realm.to_owned(),
        })?;
        url.query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .append_pair("scope", scope);
        Ok(url)
    }

    async fn fetch_token(
        &self,
        reference: &Reference,
        realm: Url,
        credentials: Option<(&str, &str)>,
    ) -> Result<Grant, RequestError> {
        let url = realm.to_string();
        let mut request = self.client.get(realm);
        if let Some((user, password)) = credentials {
            request = request.basic_auth(user, Some(password));
        }
        let response = request.send().await.map_err(failed(&url))?;
        let response = self.check(reference, &url, response).await?;
        let body = response.bytes().await.map_err(failed(&url))?;
        serde_json::from_slice::<Answer>(&body)
            .ok()
            .and_then(|answer| Grant::token(answer, Instant::now()))
            .ok_or(RequestError::Answer {
                url,
                what: "no token",
            })
    }

    async fn check(
        &self,
        reference: &Reference,
        url: &str,
        response: Response,
    ) -> Result<Response, RequestError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(RequestError::Unauthorized {
                host: reference.registry().to_owned(),
                given: self
                    .docker_config
                    .credentials(reference.registry())
                    .is_some(),
            });
        }
        let retry_after = retry_after(response.headers(), SystemTime::now());
        let body = read_limited(response, MAX_ERROR_LEN).await;
        Err(RequestError::Status {
            url: url.into(),
            status,
            message: message(&body).into(),
            retry_after,
        })
    }
}

fn key(reference: &Reference, operation: Operation) -> (String, String, Operation) {
    (
        reference.resolve_registry().to_owned(),
        reference.repository().to_owned(),
        operation,
    )
}

/// URLs of storage services carry signatures, so only ours is told.
pub(crate) fn failed(url: &str) -> impl FnOnce(reqwest::Error) -> RequestError {
    let url = url.to_owned();
    move |source| RequestError::Send {
        url,
        source: source.without_url(),
    }
}

/// Media types that a manifest may have.
pub(crate) fn manifest_types() -> String {
    [
        media_type::MANIFEST,
        media_type::INDEX,
        media_type::DOCKER_MANIFEST,
        media_type::DOCKER_INDEX,
    ]
    .join(", ")
}

async fn read_limited(mut response: Response, limit: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() >= limit {
            body.truncate(limit);
            break;
        }
    }
    body
}

/// What an error says (distribution-spec, "Error Codes"), or its beginning.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) => {
            let errors = envelope.errors.iter();
            let errors = errors.map(|error| format!("{} {}", error.code, error.message));
            errors.collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let short: String = printable.take(MAX_MESSAGE_LEN).collect();
    short.trim().to_owned()
}

/// How long a server asks to be left alone (RFC 9110, 10.2.3): seconds or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    let date = SystemTime::from(date.timestamp());
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_421);
        for (value, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(59)),
            ("Wed, 21 Oct 2015 07:26:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn an_error_says_what_the_registry_says_in_one_short_line() {
        let envelope = br#"{"errors":[{"code":"DENIED","message":"no\naccess"},{"code":"X"}]}"#;
        assert_eq!(message(envelope), "DENIED no access; X");
        assert_eq!(message(b"<h1>\nBad\0"), "<h1> Bad");
        assert_eq!(message(&[b'x'; 4000]).len(), MAX_MESSAGE_LEN);
    }

    fn transport() -> Transport {
        let config = br#"{"auths": {"a.test": {"username": "u", "password": "p"}}}"#;
        let config = DockerConfig::parse(config).unwrap();
        Transport::new(vec!["plain.test:5000".to_owned()], config).unwrap()
    }

    #[tokio::test]
    async fn only_the_registry_itself_sees_credentials() {
        let transport = transport();
        let reference: Reference = "a.test/team/app:v1".parse().unwrap();
        for (url, own) in [
            ("https://a.test/v2/team/app/blobs/uploads/1", true),
            ("https://a.test:443/upload", true),
            ("http://a.test/upload", false),
            ("https://a.test:8443/upload", false),
            ("https://storage.test/upload", false),
            ("upload", false),
        ] {
            assert_eq!(transport.is_of_registry(&reference, url), own, "{url}");
        }
    }

    #[tokio::test]
    async fn passwords_go_to_no_token_server_in_the_clear() {
        let transport = transport();
        for (host, realm, good) in [
            ("a.test", "https://auth.test/token", true),
            ("a.test", "http://auth.test/token", false),
            ("a.test", "file:///etc/passwd", false),
            ("a.test", "token", false),
            ("plain.test:5000", "http://auth.test/token", true),
        ] {
            let url = transport.realm(host, realm, Some("registry"), "repository:x:pull");
            assert_eq!(url.is_ok(), good, "{realm}");
            if let Ok(url) = url {
                assert!(url.query().unwrap().contains("scope=repository%3Ax%3Apull"));
            }
        }
    }
}
