//! Files as people write them, and what is wrong with them.

use serde_json::json;

use super::*;
use crate::fixtures;

fn yaml(object: &impl serde::Serialize) -> String {
    serde_saphyr::to_string(object).unwrap()
}

fn parse(text: &str) -> Result<Vec<Object>, String> {
    parse_manifest(text, Rules::default()).map_err(|error| error.to_string())
}

#[test]
fn every_kind_is_read_and_others_are_left_out() {
    let text = [
        yaml(&fixtures::deployment()),
        yaml(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } })),
        yaml(&fixtures::image()),
        yaml(&fixtures::policy()),
        yaml(&json!({ "apiVersion": "apps/v1", "kind": "MeasuredImage" })),
    ];
    let expected = [
        Object::Deployment(Box::new(fixtures::deployment())),
        Object::Image(Box::new(fixtures::image())),
        Object::Policy(Box::new(fixtures::policy())),
    ];
    assert_eq!(parse(&text.join("\n---\n")).unwrap(), expected);
    // As `kubectl get -o json` prints several.
    let list = json!({
        "apiVersion": "v1", "kind": "List",
        "items": [fixtures::deployment(), fixtures::image(), fixtures::policy()],
    });
    assert_eq!(parse(&list.to_string()).unwrap(), expected);
    assert_eq!(parse("# nothing yet\n").unwrap(), []);
}

#[test]
fn what_is_wrong_is_named() {
    let rows: Vec<(Value, &str, Value, &str)> = vec![
        (
            json!(fixtures::policy()),
            "/spec/snp/alowedChips",
            json!(["sha256:00"]),
            "AttestationPolicy shop/standard: spec.snp.alowedChips: is no field",
        ),
        (
            json!(fixtures::policy()),
            "/spec/snp/products/0/minimumTCB/microcodes",
            json!(72),
            "spec.snp.products.0.minimumTCB.microcodes: is no field",
        ),
        (
            json!(fixtures::policy()),
            "/spec/snp/crl/mode",
            json!("Ignore"),
            "spec.snp.crl.mode: unknown variant `Ignore`",
        ),
        (
            json!(fixtures::policy()),
            "/spec/tees",
            json!(["SNP"]),
            "spec.snp.allowedChips: is missing",
        ),
        // A rule of the CRD.
        (
            json!(fixtures::policy()),
            "/spec/snp/products/0/name",
            json!("Turin"),
            "spec.snp.products[0]",
        ),
        (
            json!(fixtures::policy()),
            "/metadata/namespace",
            Value::Null,
            "AttestationPolicy /standard: metadata.namespace: is missing",
        ),
        (
            json!(fixtures::policy()),
            "/metadata/name",
            json!("../standard"),
            "metadata.name: \"../standard\" is not a name",
        ),
        (
            json!(fixtures::image()),
            "/status/launchDigests",
            json!([]),
            "MeasuredImage shop/web-1: status.launchDigests: is missing",
        ),
        (
            json!(fixtures::image()),
            "/status/launchDigests/1/digest",
            json!("sha384:00"),
            "status.launchDigests[1].digest: is not sha384:",
        ),
        (
            json!(fixtures::deployment()),
            "/spec/machine/cpuModel",
            json!("host"),
            "machine.cpuModel must name a model",
        ),
        (
            json!(fixtures::deployment()),
            "/kind",
            json!("NodeTrust"),
            "document 1: NodeTrust of assay.dev/v1alpha1 is not read here",
        ),
        (
            json!(fixtures::deployment()),
            "/apiVersion",
            json!("assay.dev/v1"),
            "document 1: ConfidentialDeployment of assay.dev/v1 is not read here",
        ),
        (
            json!(fixtures::deployment()),
            "/kind",
            Value::Null,
            "document 1: kind is missing",
        ),
    ];
    for (mut object, pointer, value, message) in rows {
        assert!(parse(&object.to_string()).is_ok());
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        match object.pointer_mut(parent).unwrap() {
            Value::Object(fields) => fields.insert(field.to_owned(), value),
            other => panic!("{other}"),
        };
        let error = parse(&object.to_string()).unwrap_err();
        assert!(error.contains(message), "{pointer}: {error}");
    }
    assert!(parse("a: [").unwrap_err().starts_with("not YAML"));
}

#[test]
fn a_revoked_image_needs_no_digests_and_any_chip_is_a_choice() {
    let mut image = fixtures::image();
    image.status = None;
    image.spec.lifecycle.state = LifecycleState::Revoked;
    assert!(parse(&yaml(&image)).is_ok());
    let mut policy = fixtures::policy();
    policy.spec.tees = vec![TeeType::Snp];
    let text = yaml(&policy);
    assert!(parse(&text).is_err());
    assert!(parse_manifest(&text, Rules { any_chip: true }).is_ok());
}

/// Rules of a schema and what is below it.
fn rules(schema: &CompiledSchema) -> usize {
    let errors = schema.compilation_errors();
    assert!(errors.is_empty(), "{errors:?}");
    let below = schema.properties.values().chain(schema.items.as_deref());
    schema.validations.len() + below.map(rules).sum::<usize>()
}

/// One that could not be evaluated here would refuse objects that a cluster takes.
#[test]
fn the_rules_of_every_kind_are_understood() {
    assert!(rules(schema::<ConfidentialDeployment>(Kind::Deployment)) > 5);
    assert!(rules(schema::<MeasuredImage>(Kind::Image)) > 5);
    assert!(rules(schema::<AttestationPolicy>(Kind::Policy)) > 10);
}
