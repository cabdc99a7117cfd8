//! Trying again what fails for a while: registries restart, and ask for patience.

use std::future::Future;
use std::time::Duration;

use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};

use crate::RegistryError;

/// Times that a request is made.
pub(crate) const ATTEMPTS: u32 = 5;
/// Pause after the first failure. It doubles: four pauses take 7.5 s.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Makes a request until it succeeds, is refused, or has failed [`ATTEMPTS`] times.
pub(crate) async fn retried<T, F>(mut request: impl FnMut() -> F) -> Result<T, OciDistributionError>
where
    F: Future<Output = Result<T, OciDistributionError>>,
{
    let mut attempt = 1;
    loop {
        match request().await {
            Err(error) if attempt < ATTEMPTS && is_transient(&error) => pause(attempt).await,
            result => return result,
        }
        attempt += 1;
    }
}

/// Waits after so many failures.
pub(crate) async fn pause(failures: u32) {
    let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
    tokio::time::sleep(FIRST_PAUSE.saturating_mul(factor)).await;
}

impl RegistryError {
    /// Whether the same request may succeed in a moment.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TransferBlob { .. } => !is_wrong_content(self),
            Self::Authenticate { source, .. }
            | Self::FetchManifest { source, .. }
            | Self::FetchBlob { source, .. }
            | Self::PushBlob { source, .. }
            | Self::PushManifest { source, .. } => is_transient(source),
            _ => false,
        }
    }
}

/// Whether a transfer ended because its content is not what was asked for.
pub(crate) fn is_wrong_content(error: &RegistryError) -> bool {
    let RegistryError::TransferBlob { source, .. } = error else {
        return false;
    };
    let inner = source.get_ref();
    inner
        .and_then(|inner| inner.downcast_ref::<DigestError>())
        .is_some()
}

fn is_transient(error: &OciDistributionError) -> bool {
    match error {
        // Request Timeout, Too Many Requests, and what gateways say.
        OciDistributionError::ServerError { code, .. } => {
            matches!(code, 408 | 429 | 500 | 502 | 503 | 504)
        }
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|error| error.code == OciErrorCode::Toomanyrequests),
        OciDistributionError::RequestError(error) => {
            error.is_connect()
                || error.is_timeout()
                || error.is_request()
                || error.is_body()
                || error.status().is_some_and(|status| {
                    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
                })
        }
        OciDistributionError::IoError(_) => true,
        _ => false,
    }
}
