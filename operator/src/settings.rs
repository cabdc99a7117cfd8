//! Flags of the program: everything that an installation decides.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// Controllers of assay.dev.
#[derive(Debug, Clone, Parser)]
#[command(name = "assay-operator", version)]
pub struct Settings {
    /// Namespace of this installation: broker, lease and simulation PKI live here.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Identity in the leader election: the pod's name.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// Image that builds artifacts, by digest.
    #[arg(long, env = "ASSAY_BUILDER_IMAGE")]
    pub builder_image: String,
    /// Image that launches guests, by digest.
    #[arg(long, env = "ASSAY_LAUNCHER_IMAGE")]
    pub launcher_image: String,
    /// Allow simulated guests. They prove the logic and protect nothing.
    #[arg(long, env = "ASSAY_SIMULATION")]
    pub simulation: bool,
    /// Registry host that is spoken to without TLS; repeat or separate by commas.
    #[arg(long, env = "ASSAY_PLAIN_HTTP_REGISTRIES", value_delimiter = ',')]
    pub plain_http_registry: Vec<String>,
    /// Namespaces to serve; all of them when absent. Repeat or separate by commas.
    #[arg(long, env = "ASSAY_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Directory for artifacts while their hashes are recomputed; on a disk.
    #[arg(long, env = "ASSAY_SCRATCH", default_value = "/var/tmp")]
    pub scratch: PathBuf,
    /// Base URL of a broker outside the cluster, by the name in its certificate:
    /// guests attest to it, and this installation has none of its own.
    #[arg(long, env = "ASSAY_VERIFIER_URL", requires = "verifier_ca")]
    pub verifier_url: Option<String>,
    /// Address of that broker as ip:port: guests resolve no names before they are
    /// attested. Repeat or separate by commas. Not needed where the URL has one.
    #[arg(
        long,
        env = "ASSAY_VERIFIER_ADDRESSES",
        value_delimiter = ',',
        requires = "verifier_url"
    )]
    pub verifier_address: Vec<SocketAddr>,
    /// File, PEM, of the authorities that guests trust to name that broker.
    #[arg(long, env = "ASSAY_VERIFIER_CA", requires = "verifier_url")]
    pub verifier_ca: Option<PathBuf>,
    /// Address of `/healthz` and `/readyz`.
    #[arg(long, env = "ASSAY_HEALTH_ADDRESS", default_value = "0.0.0.0:8081")]
    pub health_address: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [&str; 9] = [
        "assay-operator",
        "--namespace=assay-system",
        "--identity=assay-operator-0",
        "--builder-image=localhost/assay-builder@sha256:aa",
        "--launcher-image=localhost/assay-launcher@sha256:bb",
        "--plain-http-registry=127.0.0.1:5000,registry.test:5000",
        "--plain-http-registry=other.test",
        "--watch-namespaces=team-a",
        "--health-address=127.0.0.1:0",
    ];

    #[test]
    fn lists_may_be_repeated_or_separated_by_commas() {
        let settings = Settings::try_parse_from(REQUIRED).unwrap();
        assert_eq!(
            settings.plain_http_registry,
            ["127.0.0.1:5000", "registry.test:5000", "other.test"]
        );
        assert_eq!(settings.watch_namespaces, ["team-a"]);
    }

    #[test]
    fn simulation_is_off_unless_asked_for() {
        assert!(!Settings::try_parse_from(REQUIRED).unwrap().simulation);
        let asked = REQUIRED.into_iter().chain(["--simulation"]);
        assert!(Settings::try_parse_from(asked).unwrap().simulation);
    }
}
