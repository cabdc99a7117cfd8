//! Recipes of the Go programs and of the Python oracle: what is built from
//! which module. [`crate::cache`] builds them.

use crate::pins;

/// A set of programs that are built together from one module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Name in the cache and in messages.
    pub name: &'static str,
    /// Why the project wants it, for the progress line.
    pub purpose: &'static str,
    /// Version of the module, without the `v`.
    pub version: &'static str,
    /// How it is built.
    pub source: Source,
    /// Names of the programs with their packages.
    pub programs: &'static [(&'static str, &'static str)],
}

/// How Go is told where a recipe's packages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From a module of our own that requires the packages at the recipe's
    /// version. Unlike `go install`, it does not mind replace lines in the
    /// packages' own go.mod.
    Module,
    /// The same, with Kubernetes' staging modules replaced by their releases.
    Kubernetes,
    /// From a Go file of ours.
    File {
        /// Its text.
        text: &'static str,
    },
}

/// Control plane, node programs and kubectl.
pub const KUBERNETES: Recipe = Recipe {
    name: "kubernetes",
    purpose: "control plane, kubelet, kube-proxy, kubectl",
    version: pins::KUBERNETES,
    source: Source::Kubernetes,
    programs: &[
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        (
            "kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
        ),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
        ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ],
};

/// The API server's store.
pub const ETCD: Recipe = Recipe {
    name: "etcd",
    purpose: "the API server's store",
    version: pins::ETCD,
    source: Source::Module,
    programs: &[("etcd", "go.etcd.io/etcd/server/v3")],
};

/// The container runtime.
pub const CONTAINERD: Recipe = Recipe {
    name: "containerd",
    purpose: "container runtime",
    version: pins::CONTAINERD,
    source: Source::Module,
    programs: &[
        (
            "containerd",
            "github.com/containerd/containerd/v2/cmd/containerd",
        ),
        (
            "containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        ),
        ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
    ],
};

/// Pod networking.
pub const CNI: Recipe = Recipe {
    name: "cni-plugins",
    purpose: "pod networking",
    version: pins::CNI_PLUGINS,
    source: Source::Module,
    programs: &[
        (
            "bridge",
            "github.com/containernetworking/plugins/plugins/main/bridge",
        ),
        (
            "loopback",
            "github.com/containernetworking/plugins/plugins/main/loopback",
        ),
        (
            "host-local",
            "github.com/containernetworking/plugins/plugins/ipam/host-local",
        ),
        (
            "portmap",
            "github.com/containernetworking/plugins/plugins/meta/portmap",
        ),
    ],
};

/// Cluster DNS.
pub const COREDNS: Recipe = Recipe {
    name: "coredns",
    purpose: "cluster DNS",
    version: pins::COREDNS,
    source: Source::Module,
    programs: &[("coredns", "github.com/coredns/coredns")],
};

/// The image registry.
pub const REGISTRY: Recipe = Recipe {
    name: "registry",
    purpose: "image registry",
    version: pins::REGISTRY,
    source: Source::Module,
    programs: &[(
        "registry",
        "github.com/distribution/distribution/v3/cmd/registry",
    )],
};

/// Installs the charts.
pub const HELM: Recipe = Recipe {
    name: "helm",
    purpose: "installs the charts",
    version: pins::HELM,
    source: Source::Module,
    programs: &[("helm", "helm.sh/helm/v4/cmd/helm")],
};

/// A second verifier of attestation reports.
pub const GO_SEV_GUEST: Recipe = Recipe {
    name: "go-sev-guest",
    purpose: "second opinion on attestation reports",
    version: pins::GO_SEV_GUEST,
    source: Source::Module,
    programs: &[("check", "github.com/google/go-sev-guest/tools/check")],
};

/// The process that holds a pod's namespaces.
pub const PAUSE: Recipe = Recipe {
    name: "pause",
    purpose: "holds a pod's namespaces",
    version: "1",
    source: Source::File { text: PAUSE_GO },
    programs: &[("pause", ".")],
};

/// A workload of tests that lists the files it sees.
pub const TREE_SERVER: Recipe = Recipe {
    name: "tree-server",
    purpose: "a static workload for tests",
    version: "1",
    source: Source::File {
        text: include_str!("../../images/server.go"),
    },
    programs: &[("server", ".")],
};

/// Reaps what a shared PID namespace leaves and goes at the first signal.
const PAUSE_GO: &str = r#"// The process that holds a pod's namespaces open.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}
"#;

/// What a running cluster needs.
pub const CLUSTER: &[Recipe] = &[KUBERNETES, ETCD, CONTAINERD, CNI, COREDNS, REGISTRY, PAUSE];

/// What the demo and tests need besides.
pub const TOOLS: &[Recipe] = &[HELM, GO_SEV_GUEST];
