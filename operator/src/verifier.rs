//! The broker that guests attest to where it is not the installation's own: its
//! address and authorities, as the flags name them.
//!
//! Nothing is asked of it here. What is wrong with the flags must show when the
//! operator starts, not in a guest that cannot attest.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use assay_tee::instance::VerifierEndpoint;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::settings::Settings;

/// Port of an https URL that names none.
const HTTPS_PORT: u16 = 443;

/// Why the flags name no broker that guests could attest to.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// The URL is none.
    #[error("--verifier-url {got:?} is not https://host[:port][/path]")]
    Url {
        /// The URL.
        got: String,
    },
    /// Guests would have to resolve a name.
    #[error(
        "--verifier-address is missing: guests resolve no names before they are attested, so list \
         the addresses of {host} as ip:port"
    )]
    NoAddress {
        /// The name in the URL.
        host: String,
    },
    /// The authorities cannot be read.
    #[error("cannot read --verifier-ca {}", path.display())]
    ReadCa {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The authorities are none.
    #[error(
        "--verifier-ca {} is not PEM of certificate authorities; take what `assay-broker \
         --print-ca` prints",
        path.display()
    )]
    Ca {
        /// The file.
        path: PathBuf,
    },
}

/// Where guests find the broker outside the cluster; nothing, where the
/// installation has its own.
///
/// # Errors
/// When the flags are no address that a guest could use.
pub fn read_verifier(settings: &Settings) -> Result<Option<VerifierEndpoint>, VerifierError> {
    let (Some(url), Some(path)) = (&settings.verifier_url, &settings.verifier_ca) else {
        return Ok(None);
    };
    let ca = fs::read_to_string(path).map_err(|source| VerifierError::ReadCa {
        path: path.clone(),
        source,
    })?;
    endpoint(url, &settings.verifier_address, path, ca).map(Some)
}

/// What guests are told, if they can use it. `path` is where `ca` was read from.
fn endpoint(
    url: &str,
    addresses: &[SocketAddr],
    path: &Path,
    ca: String,
) -> Result<VerifierEndpoint, VerifierError> {
    let (host, port) = parse_url(url).ok_or_else(|| VerifierError::Url {
        got: url.to_owned(),
    })?;
    let addresses = match (addresses, host.parse::<IpAddr>()) {
        ([], Ok(address)) => vec![SocketAddr::new(address, port)],
        ([], Err(_)) => {
            return Err(VerifierError::NoAddress {
                host: host.to_owned(),
            });
        }
        (addresses, _) => addresses.to_vec(),
    };
    check_authorities(&ca).ok_or_else(|| VerifierError::Ca {
        path: path.to_owned(),
    })?;
    Ok(VerifierEndpoint {
        url: url.trim_end_matches('/').to_owned(),
        addresses: addresses.iter().map(SocketAddr::to_string).collect(),
        ca,
    })
}

/// Host and port of an https URL, which the agent reads in the same way.
fn parse_url(url: &str) -> Option<(&str, u16)> {
    let rest = url.strip_prefix("https://")?;
    let is_plain = rest.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_plain || rest.contains(['@', '?', '#', '\\']) {
        return None;
    }
    let authority = rest.split('/').next()?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, HTTPS_PORT),
    };
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    (!host.is_empty()).then_some((host, port))
}

/// Nothing, unless every certificate of `pem` can be an authority and there is one.
fn check_authorities(pem: &str) -> Option<()> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.ok()?).ok()?;
    }
    (!roots.is_empty()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    const REQUIRED: [&str; 5] = [
        "assay-operator",
        "--namespace=assay-system",
        "--identity=assay-operator-0",
        "--builder-image=a",
        "--launcher-image=b",
    ];
    const URL: &str = "--verifier-url=https://192.0.2.1";
    /// An authority that issued nothing.
    const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBfDCCASGgAwIBAgIUElEtaHqTtACPziohduHzAuJgv4swCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHdGVzdCBDQTAgFw0yNjExMjUxNzI2MTZaGA8yMTI2MTEwMTE3
MjYxNlowEjEQMA4GA1UEAwwHdGVzdCBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABP9V+a5h2ilZ12p562sHjAmTGDsj3/HcQnZlIKGNvydaiLrgUJIY2+HaSJ6u
iW4yn4n/FXsQNZsPvpY0UxebAs2jUzBRMB0GA1UdDgQWBBTrExNUlLJ5fB/0MejL
Mxy9uUvYiTAfBgNVHSMEGDAWgBTrExNUlLJ5fB/0MejLMxy9uUvYiTAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQC54/L6gkBb81o0A4kflrYZLy39
Rbzj88eYtPXmYokg/gIhALAvGDZb6gSn08O7RPF1FGVITBwqpnDXEuV80armJtPq
-----END CERTIFICATE-----
";

    fn read(flags: &[&str], ca: &str) -> Result<VerifierEndpoint, VerifierError> {
        let flags = REQUIRED
            .iter()
            .chain(flags)
            .chain(&["--verifier-ca=ca.pem"]);
        let settings = Settings::try_parse_from(flags).unwrap();
        let url = settings.verifier_url.as_deref().unwrap();
        let path = Path::new("ca.pem");
        endpoint(url, &settings.verifier_address, path, ca.to_owned())
    }

    fn ca() -> String {
        CA.to_owned()
    }

    #[test]
    fn an_installation_has_its_own_broker_unless_told_otherwise() {
        let settings = Settings::try_parse_from(REQUIRED).unwrap();
        assert!(read_verifier(&settings).unwrap().is_none());
        // Each flag is nothing without the others.
        for alone in [
            URL,
            "--verifier-ca=ca.pem",
            "--verifier-address=192.0.2.1:1",
        ] {
            let flags = REQUIRED.iter().chain([&alone]);
            assert!(Settings::try_parse_from(flags).is_err(), "{alone}");
        }
        let flags = [URL, "--verifier-ca=/nonexistent"];
        let settings = Settings::try_parse_from(REQUIRED.iter().chain(&flags)).unwrap();
        let missing = read_verifier(&settings);
        assert!(matches!(missing, Err(VerifierError::ReadCa { .. })));
    }

    #[test]
    fn the_flags_are_what_guests_are_told() {
        let flags = [
            "--verifier-url=https://broker.example:8443/",
            "--verifier-address=192.0.2.1:8443,[2001:db8::1]:8443",
        ];
        let named = read(&flags, &ca()).unwrap();
        assert_eq!(named.url, "https://broker.example:8443");
        assert_eq!(named.addresses, ["192.0.2.1:8443", "[2001:db8::1]:8443"]);
        assert_eq!(named.ca, ca());
        for (url, address) in [
            ("https://192.0.2.1:8443", "192.0.2.1:8443"),
            ("https://192.0.2.1/assay", "192.0.2.1:443"),
            ("https://[2001:db8::1]", "[2001:db8::1]:443"),
        ] {
            let found = read(&[&format!("--verifier-url={url}")], &ca()).unwrap();
            assert_eq!(found.addresses, [address], "{url}");
        }
    }

    #[test]
    fn what_no_guest_could_use_is_refused_with_the_flag_s_name() {
        for (url, ca, words) in [
            ("http://192.0.2.1", ca(), "--verifier-url"),
            ("https://", ca(), "--verifier-url"),
            ("https://u@h", ca(), "--verifier-url"),
            ("https://h:x", ca(), "--verifier-url"),
            ("https://h/a b", ca(), "--verifier-url"),
            (
                "https://broker.example",
                ca(),
                "--verifier-address is missing",
            ),
            ("https://192.0.2.1", String::new(), "--verifier-ca ca.pem"),
            (
                "https://192.0.2.1",
                ca().replace("MII", "M"),
                "--verifier-ca",
            ),
        ] {
            let error = read(&[&format!("--verifier-url={url}")], &ca).unwrap_err();
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
    }
}
