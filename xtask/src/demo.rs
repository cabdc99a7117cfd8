//! The main job on a real cluster, narrated.

use anyhow::Result;
use assay_cluster::{Cache, Kubeconfig};
use assay_e2e::{Environment, Kubectl, install, phases, quickstart};

/// Shows the whole loop: build, measure, launch, attest, serve, refuse, revoke.
pub(crate) fn run(environment: &Environment, cluster: &Kubeconfig) -> Result<()> {
    let kubectl = environment.kubectl();
    title("Install Assay by helm");
    warn_of_simulation();
    install::install(environment)?;
    show(&kubectl, &["-n", install::NAMESPACE, "get", "pods"])?;

    title("Apply examples/quickstart");
    quickstart::delete(environment)?;
    quickstart::apply(environment)?;
    say("A Job builds the guest image from an ordinary nginx image; the operator then");
    say("recomputes every hash and publishes the launch digest.");
    let image = quickstart::wait_for_image(environment, quickstart::IMAGE)?;
    for row in image["status"]["launchDigests"]
        .as_array()
        .into_iter()
        .flatten()
    {
        say(&format!("  {}  {}", row["id"], row["digest"]));
    }
    quickstart::wait_for_guests(environment, quickstart::DEPLOYMENT, 2)?;
    say(phases::table(environment)?.trim_end());
    show(
        &kubectl,
        &["-n", quickstart::NAMESPACE, "get", "pods,service"],
    )?;
    show(
        &kubectl,
        &["-n", quickstart::NAMESPACE, "get", "mi,cdep,ar"],
    )?;

    title("Ask the web server inside the guests, through the Service");
    let (status, _) = quickstart::ask(environment, "/", None)?;
    say(&format!("  without a password:            HTTP {status}"));
    let (status, body) = quickstart::ask(environment, "/", Some(quickstart::VISITOR))?;
    say(&format!(
        "  with the password that the secret holds: HTTP {status}"
    ));
    for line in body.lines().filter(|line| !line.trim().is_empty()) {
        say(&format!("    {line}"));
    }
    say("The guests know the password because the broker released it to their keys");
    say("after it had verified their evidence.");

    title("A hostile node changes one byte of the kernel");
    quickstart::start_hostile(environment, "tampered", "TamperedKernel")?;
    title("A hostile node changes one byte and recomputes the hashes");
    quickstart::start_hostile(environment, "rehashed", "TamperedKernelRehashed")?;
    let record = quickstart::wait_for_rejection(environment, "rehashed")?;
    say("The rehashed guest boots, and its launch digest differs:");
    for check in record["status"]["checks"].as_array().into_iter().flatten() {
        if check["result"] == "Fail" {
            say(&format!(
                "  check {} failed: {}",
                check["name"], check["reason"]
            ));
            say(&format!("    expected {}", check["expected"]));
            say(&format!("    observed {}", check["observed"]));
        }
    }
    if let Some(message) = record["status"]["diagnosis"]["message"].as_str() {
        say(&format!("  diagnosis: {message}"));
    }
    quickstart::wait_for_refused_boot(environment, "tampered")?;
    say("The tampered guest never boots: the firmware refuses a kernel that does not");
    say("match the measured table.");
    for name in ["tampered", "rehashed"] {
        quickstart::ensure_never_ready(environment, name)?;
    }
    show(&kubectl, &["-n", quickstart::NAMESPACE, "get", "pods"])?;
    show(&kubectl, &["-n", quickstart::NAMESPACE, "get", "cdep,ar"])?;
    say("Neither was ever Ready, and no secret was released to either.");

    title("Revoke the image");
    let elapsed = quickstart::revoke(environment, "shown by the demo")?;
    say(&format!(
        "Both good guests left the Service {:.1} s after the revocation.",
        elapsed.as_secs_f64()
    ));
    show(
        &kubectl,
        &["-n", quickstart::NAMESPACE, "get", "mi,cdep,pods"],
    )?;
    for name in ["tampered", "rehashed"] {
        kubectl.run(&[
            "-n",
            quickstart::NAMESPACE,
            "delete",
            "cdep",
            name,
            "--wait=false",
        ])?;
    }

    title("Done");
    warn_of_simulation();
    say("It is all still there:\n");
    print!("{}", cluster.exports(&Cache::open()?));
    say("kubectl -n quickstart get mi,cdep,ar");
    if cluster.ours {
        say("cargo xtask cluster down");
    } else {
        say("kubectl delete namespace quickstart");
        say("helm -n assay-system uninstall assay assay-crds");
    }
    Ok(())
}

fn warn_of_simulation() {
    say("!! SIMULATION: the secure processor is simulated. It measures the bytes that are");
    say("!! really booted and signs real report structures, but it protects NOTHING.");
}

fn title(text: &str) {
    println!("\n=== {text}");
}

fn say(text: &str) {
    println!("{text}");
}

fn show(kubectl: &Kubectl, args: &[&str]) -> Result<()> {
    println!("$ kubectl {}", args.join(" "));
    println!("{}", kubectl.run(args)?);
    Ok(())
}
