//! Requests to Vault or OpenBao, and the token that they are made with.
//!
//! A token is renewed after two thirds of its life. One that cannot be renewed, or
//! is refused, is replaced by logging in; a request is repeated once with the new
//! one. No error holds a token, a credential or what the server said: its words
//! can hold what it was asked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::config::{AppRoleConfig, KubernetesConfig, TokenConfig, VaultConfig};
use crate::config::ConfigError;
use crate::service::{Chain, Clock};

/// Most bytes of an answer. The server's own limit for a secret is below it.
const MAX_ANSWER: usize = 2 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A file with a credential cannot be read.
    #[error("cannot read {}", path.display())]
    Credential {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no credential.
    #[error("{} is empty or holds more than one line; write the credential alone", path.display())]
    CredentialMalformed {
        /// The file.
        path: PathBuf,
    },
    /// The server did not let the broker in.
    #[error("the server refused to log in (status {status}): check role and credential")]
    Login {
        /// The status.
        status: u16,
    },
    /// The token may not.
    #[error("the server denied {path}: give the broker's policy the capability")]
    Denied {
        /// The path.
        path: String,
    },
    /// The server is sealed, in maintenance, or a standby that forwards nothing.
    #[error("the server is sealed or unavailable (status 503)")]
    Sealed,
    /// It points elsewhere.
    #[error(
        "the server redirects (status {0}): give the address of the active node, or of what forwards to it"
    )]
    Redirect(u16),
    /// It asks for fewer requests.
    #[error("the server asks for fewer requests (status 429)")]
    Throttled,
    /// It refuses what it was sent.
    #[error("the server refused {path} (status 400)")]
    Refused {
        /// The path.
        path: String,
    },
    /// It answered with another status.
    #[error("the server answered {status} to {path}")]
    Status {
        /// The path.
        path: String,
        /// The status.
        status: u16,
    },
    /// It cannot be reached.
    #[error("cannot reach the server")]
    Transport(#[source] reqwest::Error),
    /// The answer is larger than any can be.
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    TooLarge,
    /// The answer is not what the documentation says.
    #[error("the answer has another form than documented: is it a key-value engine of version 2?")]
    Malformed,
    /// A secret's name cannot be a part of a path.
    #[error("secretRef.name {0:?} is no part of a path; rename the secret")]
    Name(String),
    /// A field is no text.
    #[error("the field is no string; write it as one")]
    NoText,
    /// A field is not base64.
    #[error("the field is not base64, as the custom metadata says")]
    NoBase64,
    /// The encoding is unknown.
    #[error("the encoding in the custom metadata is unknown; write base64, or remove it")]
    Encoding,
    /// A stored value is not what the transit engine made.
    #[error("the stored value is no ciphertext (vault:v…): encrypt it, or configure no transit")]
    NoCiphertext,
}

/// What the server has.
pub enum Answer {
    /// Something; wiped when it is dropped.
    Found(Zeroizing<Vec<u8>>),
    /// Nothing.
    Missing,
}

/// How to log in.
enum Credentials {
    Token(TokenConfig),
    AppRole(AppRoleConfig),
    Kubernetes(KubernetesConfig),
}

/// A token, and until when it is good.
#[derive(Clone)]
struct Token {
    text: Arc<Zeroizing<String>>,
    /// When to renew it, and when it ends; none, if it never does.
    life: Option<Life>,
}

#[derive(Clone, Copy)]
struct Life {
    renew_at: Timestamp,
    ends_at: Timestamp,
    renewable: bool,
}

#[derive(Deserialize)]
struct Login {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    lease_duration: u32,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct LookUp {
    data: Looked,
}

#[derive(Deserialize)]
struct Looked {
    ttl: u32,
    #[serde(default)]
    renewable: bool,
}

/// A client of one server.
pub struct VaultClient {
    http: reqwest::Client,
    base: Url,
    namespace: Option<String>,
    credentials: Credentials,
    clock: Clock,
    token: Mutex<Option<Token>>,
}

impl VaultClient {
    /// A client by `config`. It asks nothing yet.
    ///
    /// # Errors
    /// When the configuration is wrong or names what cannot be used.
    pub fn new(config: &VaultConfig, clock: Clock) -> Result<Self, ConfigError> {
        let base = config.validate()?;
        let failed = |error: reqwest::Error| {
            ConfigError::cannot_use("secrets.vault.ca")(error.without_url().into())
        };
        let roots = match config.authorities()? {
            Some(pem) => Certificate::from_pem_bundle(&pem).map_err(failed)?,
            // A static binary in an empty container image finds no roots on disk.
            None => webpki_root_certs::TLS_SERVER_ROOT_CERTS
                .iter()
                .map(|root| Certificate::from_der(root))
                .collect::<Result<_, _>>()
                .map_err(failed)?,
        };
        let http = reqwest::Client::builder()
            .tls_certs_only(roots)
            .redirect(Policy::none())
            .timeout(config.timeout())
            .user_agent(concat!("assay/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(failed)?;
        let auth = config.auth.clone();
        let credentials = match (auth.token, auth.app_role, auth.kubernetes) {
            (Some(token), None, None) => Credentials::Token(token),
            (None, Some(role), None) => Credentials::AppRole(role),
            (None, None, Some(role)) => Credentials::Kubernetes(role),
            _ => return Err(ConfigError::field("secrets.vault.auth", "give exactly one")),
        };
        Ok(Self {
            http,
            base,
            namespace: config.namespace.clone(),
            credentials,
            clock,
            token: Mutex::default(),
        })
    }

    /// Makes a request with a token, once more with a new one if it is denied:
    /// whoever revoked the old one may not have meant the broker.
    ///
    /// # Errors
    /// When there is no answer, or none that says what is there.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Answer, VaultError> {
        let token = self.token(None).await?;
        match self.send(&method, path, body, Some(&token)).await {
            Err(VaultError::Denied { .. }) => {
                let token = self.token(Some(&token)).await?;
                self.send(&method, path, body, Some(&token)).await
            }
            answer => answer,
        }
    }

    /// Renews the token, if it is time. A broker that nobody asks for anything
    /// must not lose it.
    pub async fn keep_alive(&self) {
        if self.token.lock().await.is_none() {
            return;
        }
        if let Err(error) = self.token(None).await {
            tracing::error!(error = %Chain(&error), "cannot keep the token of the secret store");
        }
    }

    /// A token that is good now and is not `refused`.
    async fn token(&self, refused: Option<&Token>) -> Result<Token, VaultError> {
        // Whoever comes meanwhile waits for the one token.
        let mut held = self.token.lock().await;
        let now = (self.clock)();
        let known = held.take();
        let known = known
            .filter(|token| refused.is_none_or(|refused| !Arc::ptr_eq(&refused.text, &token.text)));
        let token = match known {
            None => self.log_in(now).await?,
            Some(token) => match token.life {
                None => token,
                Some(life) if now < life.renew_at => token,
                Some(life) if life.renewable && now < life.ends_at => {
                    match self.renew(&token, now).await {
                        Ok(renewed) => renewed,
                        Err(error) => {
                            tracing::warn!(error = %Chain(&error), "cannot renew the token");
                            match self.log_in(now).await {
                                Ok(token) => token,
                                // It is still good for a while.
                                Err(_) => token,
                            }
                        }
                    }
                }
                Some(_) => self.log_in(now).await?,
            },
        };
        *held = Some(token.clone());
        Ok(token)
    }

    async fn log_in(&self, now: Timestamp) -> Result<Token, VaultError> {
        let (mount, body) = match &self.credentials {
            Credentials::Token(config) => return self.look_up(&config.file, now).await,
            Credentials::AppRole(config) => {
                let secret_id = read_credential(&config.secret_id_file)?;
                let body = json!({ "role_id": config.role_id, "secret_id": *secret_id });
                (&config.mount, body)
            }
            Credentials::Kubernetes(config) => {
                let jwt = read_credential(&config.jwt_file)?;
                (&config.mount, json!({ "role": config.role, "jwt": *jwt }))
            }
        };
        let path = format!("auth/{}/login", mount.trim_matches('/'));
        match self.send(&Method::POST, &path, Some(&body), None).await {
            Ok(Answer::Found(body)) => parse_login(&body, now),
            Ok(Answer::Missing) => Err(VaultError::Login { status: 404 }),
            Err(VaultError::Denied { .. }) => Err(VaultError::Login { status: 403 }),
            Err(VaultError::Refused { .. }) => Err(VaultError::Login { status: 400 }),
            Err(error) => Err(error),
        }
    }

    /// The token of a file, and how long the server says that it is good.
    async fn look_up(&self, file: &Path, now: Timestamp) -> Result<Token, VaultError> {
        let token = Token {
            text: Arc::new(read_credential(file)?),
            life: None,
        };
        let path = "auth/token/lookup-self";
        match self.send(&Method::GET, path, None, Some(&token)).await {
            Ok(Answer::Found(body)) => {
                let LookUp { data } =
                    serde_json::from_slice(&body).map_err(|_| VaultError::Malformed)?;
                let life = life(data.ttl, data.renewable, now);
                Ok(Token { life, ..token })
            }
            Ok(Answer::Missing) => Err(VaultError::Malformed),
            Err(VaultError::Denied { .. }) => Err(VaultError::Login { status: 403 }),
            Err(error) => Err(error),
        }
    }

    async fn renew(&self, token: &Token, now: Timestamp) -> Result<Token, VaultError> {
        let path = "auth/token/renew-self";
        let body = json!({});
        let answer = self.send(&Method::POST, path, Some(&body), Some(token));
        let Answer::Found(body) = answer.await? else {
            return Err(VaultError::Malformed);
        };
        let renewed = parse_login(&body, now)?;
        // A server that gives no more time is asked no more.
        let before = token.life.map(|life| life.ends_at);
        match renewed.life {
            Some(life) if before.is_some_and(|before| life.ends_at <= before) => {
                let life = Life {
                    renewable: false,
                    renew_at: life.ends_at,
                    ..life
                };
                let life = Some(life);
                Ok(Token { life, ..renewed })
            }
            _ => Ok(renewed),
        }
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<&serde_json::Value>,
        token: Option<&Token>,
    ) -> Result<Answer, VaultError> {
        let mut url = self.base.clone();
        let prefix = url.path().trim_end_matches('/').to_owned();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        url.set_path(&format!("{prefix}/v1/{path}"));
        url.set_query((!query.is_empty()).then_some(query));
        // Agents ask for it, as a guard against forged requests.
        let mut request = self.http.request(method.clone(), url);
        request = request.header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            let mut value = reqwest::header::HeaderValue::from_str(&token.text)
                .map_err(|_| VaultError::Login { status: 0 })?;
            value.set_sensitive(true);
            request = request.header("X-Vault-Token", value);
        }
        if let Some(body) = body {
            let bytes = serde_json::to_vec(body).map_err(|_| VaultError::Malformed)?;
            request = request
                .header(reqwest::header::CONTENT_TYPE, "application/json")
                .body(bytes);
        }
        let transport = |error: reqwest::Error| VaultError::Transport(error.without_url());
        let mut response = request.send().await.map_err(transport)?;
        let path = path.to_owned();
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(Answer::Missing),
            StatusCode::FORBIDDEN => return Err(VaultError::Denied { path }),
            StatusCode::BAD_REQUEST => return Err(VaultError::Refused { path }),
            StatusCode::SERVICE_UNAVAILABLE => return Err(VaultError::Sealed),
            StatusCode::TOO_MANY_REQUESTS => return Err(VaultError::Throttled),
            status if status.is_redirection() => {
                return Err(VaultError::Redirect(status.as_u16()));
            }
            status => {
                let status = status.as_u16();
                return Err(VaultError::Status { path, status });
            }
        }
        // Of its final size, where the server says it: growing leaves copies behind.
        let length = response.content_length().unwrap_or_default();
        let length = usize::try_from(length).map_err(|_| VaultError::TooLarge)?;
        let mut body = Zeroizing::new(Vec::with_capacity(length.min(MAX_ANSWER)));
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(VaultError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer::Found(body))
    }
}

fn parse_login(body: &[u8], now: Timestamp) -> Result<Token, VaultError> {
    let Login { auth } = serde_json::from_slice(body).map_err(|_| VaultError::Malformed)?;
    let life = life(auth.lease_duration, auth.renewable, now);
    Ok(Token {
        text: Arc::new(Zeroizing::new(auth.client_token)),
        life,
    })
}

/// The life of a token that was made at `now` for `seconds`; 0 is for ever.
fn life(seconds: u32, renewable: bool, now: Timestamp) -> Option<Life> {
    let after = |seconds: u32| {
        now.checked_add(SignedDuration::from_secs(seconds.into()))
            .unwrap_or(Timestamp::MAX)
    };
    (seconds > 0).then(|| Life {
        renew_at: after(seconds / 3 * 2),
        ends_at: after(seconds),
        renewable,
    })
}

fn read_credential(path: &Path) -> Result<Zeroizing<String>, VaultError> {
    let text = fs::read_to_string(path).map_err(|source| VaultError::Credential {
        path: path.to_owned(),
        source,
    })?;
    let text = Zeroizing::new(text);
    let credential = text.trim();
    if credential.is_empty() || credential.contains(char::is_whitespace) {
        return Err(VaultError::CredentialMalformed {
            path: path.to_owned(),
        });
    }
    Ok(Zeroizing::new(credential.to_owned()))
}
