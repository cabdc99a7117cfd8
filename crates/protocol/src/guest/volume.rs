//! Volumes, as an attested session asks for them.

use super::{AttestedSession, GuestSessionError, HttpRequest, HttpResponse, is_name, post};
use crate::jwe::Jwe;
use crate::volume::{OpenVolume, VOLUME_PATH, VolumeRequest};

impl AttestedSession {
    /// Opens the volume `namespace/deployment/volume`, or holds it for longer.
    ///
    /// # Errors
    /// When `volume` is not three names of letters, digits, `-`, `_` and `.`.
    pub fn open_volume_request(
        &self,
        volume: &str,
        request: &VolumeRequest,
    ) -> Result<HttpRequest, GuestSessionError> {
        self.volume_request(volume, "open", request)
    }

    /// Takes the broker's answer to [`AttestedSession::open_volume_request`].
    ///
    /// # Errors
    /// When the broker refused, or the answer is not for this session, this volume
    /// and this request.
    pub fn on_volume(
        &self,
        response: &HttpResponse,
        volume: &str,
        request: &VolumeRequest,
    ) -> Result<OpenVolume, GuestSessionError> {
        let jwe: Jwe = response.message("keys of the volume")?;
        OpenVolume::decrypt(&jwe, &self.key, volume, request).map_err(GuestSessionError::Volume)
    }

    /// Holds the volume no longer: another guest may open it at once.
    ///
    /// # Errors
    /// As [`AttestedSession::open_volume_request`].
    pub fn close_volume_request(
        &self,
        volume: &str,
        request: &VolumeRequest,
    ) -> Result<HttpRequest, GuestSessionError> {
        self.volume_request(volume, "close", request)
    }

    /// Takes the broker's answer to [`AttestedSession::close_volume_request`].
    ///
    /// # Errors
    /// When the broker refused.
    pub fn on_volume_closed(&self, response: &HttpResponse) -> Result<(), GuestSessionError> {
        if response.status == 204 {
            Ok(())
        } else {
            Err(response.refusal())
        }
    }

    fn volume_request(
        &self,
        volume: &str,
        operation: &str,
        request: &VolumeRequest,
    ) -> Result<HttpRequest, GuestSessionError> {
        let names: Vec<&str> = volume.split('/').collect();
        if names.len() != 3 || !names.iter().all(|name| is_name(name)) {
            return Err(GuestSessionError::ResourcePath(volume.to_owned()));
        }
        let path = format!("{VOLUME_PATH}/{volume}/{operation}");
        let mut post = post(&path, None, request)?;
        let token = format!("Bearer {}", self.token);
        post.headers.push(("authorization", token));
        Ok(post)
    }
}
