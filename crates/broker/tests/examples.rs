//! What the documentation offers to be copied is what the broker takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use assay_broker::config::Config;
use assay_broker::inventory::InventoryHealth;
use assay_broker::metrics::{
    AttestationOutcome, Metrics, Operation, Publication, RecordWrite, VolumeOutcome,
};
use assay_broker::secrets::config::SecretsConfig;
use assay_broker::standalone::Standalone;

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_examples_are_good() {
    let directory = tempfile::tempdir().unwrap();
    let example = checkout().join("examples/broker");
    let to = directory.path();
    fs::create_dir(to.join("inventory")).unwrap();
    for file in fs::read_dir(example.join("inventory")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join("inventory").join(file.file_name())).unwrap();
    }
    for name in ["broker.toml", "openbao.toml"] {
        let path = to.join(name);
        fs::copy(example.join(name), &path).unwrap();
        let config = Config::load(&path).unwrap();
        // Values are nobody's business but the key holder's.
        let missing = Standalone::check(&config).unwrap_err().to_string();
        assert!(missing.contains("configuration"), "{missing}");
        fs::create_dir(to.join("secrets")).unwrap();
        let checked = Standalone::check(&config).unwrap();
        assert_eq!(checked.objects, 3, "{name}");
        assert_eq!(checked.notes, [""; 0], "{name}");
        fs::remove_dir(to.join("secrets")).unwrap();
    }
}

/// The chart hands over its value as it is.
#[test]
fn the_chart_s_values_are_a_configuration() {
    let values = checkout().join("charts/golden/every-value.values.yaml");
    let values = fs::read_to_string(values).unwrap();
    let values: serde_json::Value = serde_saphyr::from_str(&values).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secrets.yaml");
    let secrets = values["broker"]["secrets"].to_string();
    fs::write(&path, &secrets).unwrap();
    let config = SecretsConfig::load(&path).unwrap();
    assert!(config.kubernetes.is_some() && config.transit.is_some() && config.vault.is_some());
    fs::write(&path, secrets.replacen("role", "roll", 1)).unwrap();
    assert!(SecretsConfig::load(&path).is_err());
}

/// Every metric that the broker has is described, and none that it has not.
#[test]
fn the_metrics_are_described() {
    let text = fs::read_to_string(checkout().join("docs/broker.md")).unwrap();
    let metrics = Metrics::default();
    metrics.attestation(AttestationOutcome::Accepted, "Accepted", None);
    metrics.release(None);
    metrics.request(Operation::Auth, 200, Duration::ZERO);
    metrics.record_write(RecordWrite::Written);
    metrics.publication(Publication::Written);
    metrics.store_error("Files");
    metrics.volume(VolumeOutcome::Closed);
    let encoded = metrics.encode(0, InventoryHealth::default());
    let mut names: Vec<String> = encoded
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| {
            let (name, kind) = line.split_once(' ')?;
            let suffix = if kind == "counter" { "_total" } else { "" };
            Some(format!("{name}{suffix}"))
        })
        .collect();
    let mut described: Vec<String> = text
        .split('`')
        .filter(|word| word.starts_with("assay_broker_"))
        .map(str::to_owned)
        .collect();
    names.sort();
    described.sort();
    described.dedup();
    assert_eq!(described, names);
}
