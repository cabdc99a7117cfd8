//! The cluster's certificates: one authority, and one leaf per identity that
//! Kubernetes' RBAC knows. They are made once and live as long as the state
//! directory.

use crate::layout::{API_PORT, API_SERVICE_ADDRESS, HOST_ADDRESS, Layout, NODE};
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A certificate to be issued. Each serves as client and server certificate.
struct Identity {
    /// File name, and the user's name in the kubeconfig.
    name: &'static str,
    common_name: String,
    organisation: Option<&'static str>,
    alternative_names: &'static [&'static str],
}

fn identities() -> [Identity; 7] {
    let client = |name, common_name: &str, organisation| Identity {
        name,
        common_name: common_name.to_owned(),
        organisation,
        alternative_names: &[],
    };
    let masters = Some("system:masters");
    [
        Identity {
            name: "apiserver",
            common_name: "kube-apiserver".to_owned(),
            organisation: None,
            alternative_names: &[
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "127.0.0.1",
                HOST_ADDRESS,
                API_SERVICE_ADDRESS,
            ],
        },
        client("admin", "admin", masters),
        client("controller-manager", "system:kube-controller-manager", None),
        client("scheduler", "system:kube-scheduler", None),
        client("kube-proxy", "system:kube-proxy", None),
        // No built-in role may list what CoreDNS watches.
        client("coredns", "coredns", masters),
        Identity {
            name: "kubelet",
            common_name: format!("system:node:{NODE}"),
            organisation: Some("system:nodes"),
            alternative_names: &[NODE, HOST_ADDRESS],
        },
    ]
}

/// Makes authority, certificates, service account key and kubeconfigs, unless
/// they are there already.
pub(crate) fn ensure(layout: &Layout) -> Result<()> {
    // Written last, so that an interrupted run starts again.
    let complete = layout.path("pki/complete");
    if complete.is_file() {
        return Ok(());
    }
    fs::create_dir_all(layout.path("pki")).context("create the directory for certificates")?;

    let ca_key = KeyPair::generate().context("generate the authority's key")?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "assay cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_pem = params
        .self_signed(&ca_key)
        .context("sign the authority's certificate")?
        .pem();
    write(&layout.path("pki/ca.crt"), &ca_pem)?;
    write(&layout.path("pki/ca.key"), &ca_key.serialize_pem())?;
    let issuer = Issuer::new(params, ca_key);

    for identity in identities() {
        let names: Vec<String> = identity
            .alternative_names
            .iter()
            .map(|&name| name.to_owned())
            .collect();
        let mut params = CertificateParams::new(names)
            .with_context(|| format!("describe the certificate of {}", identity.name))?;
        params
            .distinguished_name
            .push(DnType::CommonName, identity.common_name.as_str());
        if let Some(organisation) = identity.organisation {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organisation);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()
            .with_context(|| format!("generate the key of {}", identity.name))?;
        let certificate = params
            .signed_by(&key, &issuer)
            .with_context(|| format!("sign the certificate of {}", identity.name))?
            .pem();
        let key = key.serialize_pem();
        write(
            &layout.path(&format!("pki/{}.crt", identity.name)),
            &certificate,
        )?;
        write(&layout.path(&format!("pki/{}.key", identity.name)), &key)?;
        write(
            &layout.path(&format!("pki/{}.kubeconfig", identity.name)),
            &kubeconfig(identity.name, &ca_pem, &certificate, &key),
        )?;
    }

    let service_account = KeyPair::generate().context("generate the service account key")?;
    write(
        &layout.path("pki/service-account.key"),
        &service_account.serialize_pem(),
    )?;
    write(
        &layout.path("pki/service-account.pub"),
        &service_account.public_key_pem(),
    )?;

    let admin = fs::read_to_string(layout.path("pki/admin.kubeconfig"))
        .context("read the administrator's kubeconfig")?;
    write(&layout.kubeconfig(), &admin)?;
    write(&complete, "")
}

/// A kubeconfig that needs no other file. JSON is YAML.
fn kubeconfig(user: &str, ca: &str, certificate: &str, key: &str) -> String {
    format!(
        "{:#}\n",
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "assay", "cluster": {
                "server": format!("https://{HOST_ADDRESS}:{API_PORT}"),
                "certificate-authority-data": BASE64.encode(ca),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": BASE64.encode(certificate),
                "client-key-data": BASE64.encode(key),
            }}],
            "contexts": [{"name": "assay", "context": {"cluster": "assay", "user": user}}],
            "current-context": "assay",
        })
    )
}

/// Writes a file that only its owner can read.
fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}
