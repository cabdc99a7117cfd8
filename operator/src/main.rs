//! The operator's program.

use assay_operator::run::run;
use assay_operator::settings::Settings;
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=warn"));
    tracing_subscriber::fmt()
        .json()
        .with_span_list(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    // A second installation of the provider is the only failure.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    run(settings).await
}
