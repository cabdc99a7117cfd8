//! What a cluster consists of, as data: each component's command line, its
//! configuration and the question that it answers when it works. Pure.

use crate::layout::{
    API_PORT, BRIDGE, CGROUP, HOST_ADDRESS, Layout, NODE, PAUSE_IMAGE, POD_CIDR, REGISTRY_PORT,
    SERVICE_CIDR,
};
use crate::probe::Probe;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Directories with the programs, from the cache.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) kubernetes: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) containerd: PathBuf,
    pub(crate) cni: PathBuf,
    pub(crate) coredns: PathBuf,
    pub(crate) registry: PathBuf,
    pub(crate) pause: PathBuf,
}

impl Programs {
    /// All programs in one directory.
    pub(crate) fn all_in(dir: &Path) -> Self {
        let dir = || dir.to_owned();
        Self {
            kubernetes: dir(),
            etcd: dir(),
            containerd: dir(),
            cni: dir(),
            coredns: dir(),
            registry: dir(),
            pause: dir(),
        }
    }
}

/// A long-running program.
#[derive(Debug, Clone)]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Configuration files, relative to the state directory.
    pub(crate) files: Vec<(&'static str, String)>,
    /// TCP addresses that it listens on.
    pub(crate) listens: Vec<String>,
    pub(crate) probe: Probe,
}

impl Component {
    fn new(name: &'static str, program: PathBuf, probe: Probe) -> Self {
        Self {
            name,
            program,
            args: vec![],
            environment: vec![],
            files: vec![],
            listens: vec![],
            probe,
        }
    }

    fn args(mut self, args: impl IntoIterator<Item = String>) -> Self {
        self.args.extend(args);
        self
    }

    fn environment(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    fn listens(mut self, host: &str, ports: impl IntoIterator<Item = u16>) -> Self {
        let addresses = ports.into_iter().map(|port| format!("{host}:{port}"));
        self.listens.extend(addresses);
        self
    }

    fn file(mut self, path: &'static str, text: String) -> Self {
        self.files.push((path, text));
        self
    }

    /// Changes whenever a running process would no longer be what is wanted.
    pub(crate) fn configuration(&self) -> String {
        let program = self.program.display();
        let all = format!(
            "{program} {:?} {:?} {:?}",
            self.args, self.environment, self.files
        );
        hex::encode(Sha256::digest(all.as_bytes()))
    }
}

/// The components in waves: those of one wave start together, and the next wave
/// starts when all of them answer.
pub(crate) fn waves(layout: &Layout, programs: &Programs) -> [Vec<Component>; 3] {
    [
        vec![
            etcd(layout, programs),
            containerd(layout, programs),
            registry(layout, programs),
        ],
        vec![apiserver(layout, programs)],
        vec![
            controller_manager(layout, programs),
            scheduler(layout, programs),
            kube_proxy(layout, programs),
            coredns(layout, programs),
            kubelet(layout, programs),
        ],
    ]
}

/// Where what only this machine asks for is served.
const LOOPBACK: &str = "127.0.0.1";

fn loopback(port: u16, path: &'static str) -> Probe {
    Probe::Http {
        address: format!("{LOOPBACK}:{port}"),
        path,
    }
}

fn on_bridge(port: u16, path: &'static str) -> Probe {
    Probe::Http {
        address: format!("{HOST_ADDRESS}:{port}"),
        path,
    }
}

fn etcd(layout: &Layout, programs: &Programs) -> Component {
    let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    Component::new(
        "etcd",
        programs.etcd.join("etcd"),
        loopback(2379, "/health"),
    )
    .listens(LOOPBACK, [2379, 2380])
    .args([
        format!("--data-dir={}", layout.text("etcd")),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--log-level=warn".to_owned(),
        // A test cluster's data need not survive a power cut.
        "--unsafe-no-fsync".to_owned(),
    ])
}

fn apiserver(layout: &Layout, programs: &Programs) -> Component {
    let pki = |file: &str| layout.text(&format!("pki/{file}"));
    Component::new(
        "kube-apiserver",
        programs.kubernetes.join("kube-apiserver"),
        Probe::ApiReady,
    )
    .listens(HOST_ADDRESS, [API_PORT])
    .args([
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--bind-address={HOST_ADDRESS}"),
        format!("--advertise-address={HOST_ADDRESS}"),
        format!("--secure-port={API_PORT}"),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("admin.crt")),
        format!("--kubelet-client-key={}", pki("admin.key")),
        // The node's name is in no DNS.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", pki("service-account.pub")),
        format!(
            "--service-account-signing-key-file={}",
            pki("service-account.key")
        ),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
    ])
}

fn controller_manager(layout: &Layout, programs: &Programs) -> Component {
    let pki = |file: &str| layout.text(&format!("pki/{file}"));
    let program = programs.kubernetes.join("kube-controller-manager");
    // What it does is asked for, since pods need it: a service account.
    Component::new("kube-controller-manager", program, Probe::ServiceAccount)
        .listens(LOOPBACK, [10257])
        .args([
            format!("--kubeconfig={}", pki("controller-manager.kubeconfig")),
            format!(
                "--service-account-private-key-file={}",
                pki("service-account.key")
            ),
            format!("--root-ca-file={}", pki("ca.crt")),
            format!("--cluster-signing-cert-file={}", pki("ca.crt")),
            format!("--cluster-signing-key-file={}", pki("ca.key")),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
        ])
}

fn scheduler(layout: &Layout, programs: &Programs) -> Component {
    Component::new(
        "kube-scheduler",
        programs.kubernetes.join("kube-scheduler"),
        Probe::Listening("127.0.0.1:10259"),
    )
    .listens(LOOPBACK, [10259])
    .args([
        format!("--kubeconfig={}", layout.text("pki/scheduler.kubeconfig")),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
    ])
}

fn kube_proxy(layout: &Layout, programs: &Programs) -> Component {
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": NODE,
        "clusterCIDR": POD_CIDR,
        "bindAddress": HOST_ADDRESS,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": {"kubeconfig": layout.text("pki/kube-proxy.kubeconfig")},
        // Zero leaves the machine's own limits alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    });
    Component::new(
        "kube-proxy",
        programs.kubernetes.join("kube-proxy"),
        loopback(10256, "/healthz"),
    )
    .listens(LOOPBACK, [10256, 10249])
    .args([format!(
        "--config={}",
        layout.text("config/kube-proxy.json")
    )])
    .file("config/kube-proxy.json", format!("{configuration:#}"))
}

fn coredns(layout: &Layout, programs: &Programs) -> Component {
    let corefile = format!(
        "cluster.local:53 in-addr.arpa:53 {{\n\
         \tbind {HOST_ADDRESS}\n\
         \terrors\n\
         \tkubernetes cluster.local in-addr.arpa {{\n\
         \t\tkubeconfig {}\n\
         \t\tttl 5\n\
         \t}}\n\
         }}\n\
         .:53 {{\n\
         \tbind {HOST_ADDRESS}\n\
         \terrors\n\
         \tforward . /etc/resolv.conf\n\
         \tcache 30\n\
         }}\n",
        layout.text("pki/coredns.kubeconfig"),
    );
    Component::new(
        "coredns",
        programs.coredns.join("coredns"),
        Probe::Dns(format!("{HOST_ADDRESS}:53")),
    )
    .listens(HOST_ADDRESS, [53])
    .args(["-conf".to_owned(), layout.text("config/Corefile")])
    .file("config/Corefile", corefile)
}

fn kubelet(layout: &Layout, programs: &Programs) -> Component {
    let pki = |file: &str| layout.text(&format!("pki/{file}"));
    let configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": HOST_ADDRESS,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki("kubelet.crt"),
        "tlsPrivateKeyFile": pki("kubelet.key"),
        "containerRuntimeEndpoint": format!("unix://{}", layout.containerd_socket().display()),
        "clusterDomain": "cluster.local",
        "clusterDNS": [HOST_ADDRESS],
        "resolvConf": "/etc/resolv.conf",
        "podLogsDir": layout.text("pod-logs"),
        "volumePluginDir": layout.text("kubelet/volume-plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{CGROUP}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        // Lowering it needs CAP_SYS_RESOURCE, which a build machine may lack.
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": false,
        "localStorageCapacityIsolation": false,
        "serializeImagePulls": false,
        // A developer's disk is often nearly full. Neither images nor pods go
        // before the disk is really at its end.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "500Mi",
            "imagefs.available": "500Mi",
        },
        // How long a status may be old. The default of 10 s delays Ready.
        "nodeStatusUpdateFrequency": "5s",
    });
    Component::new(
        "kubelet",
        programs.kubernetes.join("kubelet"),
        Probe::NodeReady(NODE),
    )
    .listens(HOST_ADDRESS, [10250])
    .listens(LOOPBACK, [10248])
    .args([
        format!("--config={}", layout.text("config/kubelet.json")),
        format!("--kubeconfig={}", pki("kubelet.kubeconfig")),
        format!("--root-dir={}", layout.text("kubelet")),
        format!("--cert-dir={}", layout.text("kubelet/pki")),
        format!("--hostname-override={NODE}"),
        format!("--node-ip={HOST_ADDRESS}"),
    ])
    .file("config/kubelet.json", format!("{configuration:#}"))
}

fn containerd(layout: &Layout, programs: &Programs) -> Component {
    let quoted = |path: &str| format!("{:?}", layout.text(path));
    let configuration = format!(
        "version = 3\n\
         root = {root}\n\
         state = {state}\n\
         [grpc]\n\
         address = {socket}\n\
         [plugins.'io.containerd.internal.v1.opt']\n\
         path = {opt}\n\
         [plugins.'io.containerd.nri.v1.nri']\n\
         disable = true\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\n\
         sandbox = \"{PAUSE_IMAGE}\"\n\
         [plugins.'io.containerd.cri.v1.images'.registry]\n\
         config_path = {certs}\n\
         [plugins.'io.containerd.cri.v1.runtime']\n\
         # Lowering oom_score_adj needs CAP_SYS_RESOURCE, which may be missing.\n\
         restrict_oom_score_adj = true\n\
         netns_mounts_under_state_dir = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\n\
         bin_dirs = [\"{cni}\"]\n\
         conf_dir = {conf}\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n\
         SystemdCgroup = false\n",
        root = quoted("containerd/root"),
        state = quoted("containerd/state"),
        socket = format_args!("{:?}", layout.containerd_socket().display().to_string()),
        opt = quoted("containerd/opt"),
        certs = quoted("config/registries"),
        cni = programs.cni.display(),
        conf = quoted("config/cni"),
    );
    let network = json!({
        "cniVersion": "1.0.0",
        "name": "assay",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "ipMasq": false,
                // Else a pod cannot reach itself through its own Service.
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": layout.text("cni"),
                    "ranges": [[{"subnet": POD_CIDR, "gateway": HOST_ADDRESS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let path = std::env::var("PATH").unwrap_or_default();
    Component::new(
        "containerd",
        programs.containerd.join("containerd"),
        Probe::Socket(layout.containerd_socket()),
    )
    .args(["--config".to_owned(), layout.text("config/containerd.toml")])
    // Where it looks for its shim, for runc and for nft.
    .environment(
        "PATH",
        format!("{}:{path}:/usr/sbin:/sbin", programs.containerd.display()),
    )
    .file("config/containerd.toml", configuration)
    .file("config/cni/10-bridge.conflist", format!("{network:#}"))
    .file(
        REGISTRY_HOSTS,
        format!("server = \"http://{HOST_ADDRESS}:{REGISTRY_PORT}\"\n"),
    )
}

/// containerd's directory per registry is named by host and port.
const REGISTRY_HOSTS: &str = "config/registries/10.244.0.1:5000/hosts.toml";

fn registry(layout: &Layout, programs: &Programs) -> Component {
    let address = format!("{HOST_ADDRESS}:{REGISTRY_PORT}");
    let configuration = json!({
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": true}},
        "storage": {
            "filesystem": {"rootdirectory": layout.text("registry")},
            "delete": {"enabled": true},
        },
        "http": {"addr": address},
    });
    Component::new(
        "registry",
        programs.registry.join("registry"),
        on_bridge(REGISTRY_PORT, "/v2/"),
    )
    .listens(HOST_ADDRESS, [REGISTRY_PORT])
    .args(["serve".to_owned(), layout.text("config/registry.json")])
    // Else it looks for a collector of traces.
    .environment("OTEL_TRACES_EXPORTER", "none")
    .file("config/registry.json", format!("{configuration:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn all() -> Vec<Component> {
        let programs = Programs::all_in(Path::new("/cache"));
        waves(&Layout::at("/state"), &programs)
            .into_iter()
            .flatten()
            .collect()
    }

    #[test]
    fn names_and_files_are_unique() {
        let components = all();
        let names: BTreeSet<_> = components.iter().map(|component| component.name).collect();
        assert_eq!(names.len(), components.len());
        let files: Vec<_> = components
            .iter()
            .flat_map(|c| c.files.iter().map(|(path, _)| *path))
            .collect();
        assert_eq!(files.iter().collect::<BTreeSet<_>>().len(), files.len());
    }

    #[test]
    fn no_two_listen_on_one_address_and_each_is_asked_where_it_listens() {
        let components = all();
        let mut addresses = BTreeSet::new();
        for component in &components {
            for address in &component.listens {
                assert!(addresses.insert(address.clone()), "{address} twice");
            }
            let asked = match &component.probe {
                Probe::Http { address, .. } | Probe::Dns(address) => Some(address.as_str()),
                Probe::Listening(address) => Some(*address),
                _ => None,
            };
            if let Some(asked) = asked {
                assert!(
                    component.listens.iter().any(|address| address == asked),
                    "{} is asked at {asked}",
                    component.name
                );
            }
        }
    }

    #[test]
    fn containerd_finds_the_registry_by_host_and_port() {
        assert_eq!(
            REGISTRY_HOSTS,
            format!("config/registries/{HOST_ADDRESS}:{REGISTRY_PORT}/hosts.toml")
        );
    }

    #[test]
    fn a_changed_configuration_file_changes_the_component() {
        let mut component = all().remove(0);
        let before = component.configuration();
        component.files.push(("config/more", String::new()));
        assert_ne!(before, component.configuration());
    }
}
