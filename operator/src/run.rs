//! Wiring: which changes concern which controller, and the life of the process.

use std::sync::Arc;

use anyhow::Context as _;
use assay_crds::names;
use assay_crds::v1alpha1::{
    AttestationPolicy, AttestationRecord, ConfidentialDeployment, MeasuredImage,
};
use assay_registry::{Registry, RegistryOptions, Scratch};
use assay_tee::instance::VerifierEndpoint;
use assay_workload::simulation::SimulationPki;
use futures::channel::mpsc::UnboundedReceiver;
use futures::future::{BoxFuture, FutureExt as _, Shared};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::apply::Writer;
use crate::artifact::Artifacts;
use crate::context::{Context, Stores};
use crate::controllers::{
    attestation_gate, attestation_policy, confidential_deployment, measured_image,
};
use crate::health::{Readiness, serve};
use crate::lease::Elector;
use crate::manifest::{MANAGED_BY, MANAGED_BY_LABEL, owner_of};
use crate::pull_secret::PullSecrets;
use crate::queue::{self, Queue, Watchable};
use crate::settings::Settings;
use crate::simulation;
use crate::verifier::read_verifier;
use crate::watch::Source;

/// Field manager of what belongs to the installation.
const MANAGER: &str = "assay-operator/installation";

/// Runs the operator until it is asked to stop or loses the lease.
///
/// # Errors
/// When it cannot start, or when the lease is lost: the process must then end,
/// and its successor starts from what the cluster says.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let settings = Arc::new(settings);
    let verifier = read_verifier(&settings).context("cannot use the broker outside the cluster")?;
    if let Some(verifier) = &verifier {
        tracing::info!(
            url = verifier.url,
            "guests attest to a broker outside the cluster"
        );
    }
    let client = Client::try_default()
        .await
        .context("cannot reach the API server")?;
    let readiness = Readiness::default();
    let mut background = JoinSet::new();
    {
        let (address, readiness) = (settings.health_address, readiness.clone());
        background.spawn(async move {
            serve(address, readiness)
                .await
                .with_context(|| format!("cannot serve on {address}"))
        });
    }
    let (queues, requests) = queues();
    let stores = watch(&client, &settings, &queues, &mut background);
    let stop = stop_signal()?;

    let writer = Writer::new(client.clone(), MANAGER, &settings.identity);
    let mut elector = Elector::new(
        client.clone(),
        writer.clone(),
        settings.namespace.clone(),
        settings.identity.clone(),
    );
    tokio::select! {
        () = async {
            stores.wait().await;
            readiness.set();
            elector.acquire().await;
        } => {}
        () = stop.clone() => return Ok(()),
        ended = background.join_next() => return unexpected(ended),
    }
    tracing::info!(identity = settings.identity, "leading");
    let simulation = if settings.simulation {
        let pki = simulation::bootstrap(&writer, &settings.namespace, Timestamp::now()).await?;
        Some(Arc::new(pki))
    } else {
        None
    };
    let scratch = Scratch::new(&settings.scratch).context("cannot use --scratch")?;
    let registry = Registry::new(RegistryOptions {
        scratch: Some(scratch.clone()),
        plain_http_hosts: settings.plain_http_registry.clone(),
        ..RegistryOptions::default()
    })
    .context("cannot set up the registry client")?;
    let secrets = PullSecrets::new(client.clone(), settings.namespace.clone());
    let base = Base {
        client,
        stores,
        settings,
        verifier: verifier.map(Arc::new),
        artifacts: Artifacts::new(registry, secrets, scratch),
        simulation,
    };
    let mut controllers = controllers(&base, &queues, requests, &stop);

    // The lease is held by a task of its own: a controller that is busy must not
    // keep it from being renewed.
    let (give_back, given_back) = oneshot::channel::<()>();
    let mut holding = tokio::spawn(async move {
        tokio::select! {
            () = elector.hold() => Err(anyhow::anyhow!("the lease is lost")),
            _ = given_back => {
                elector.release().await;
                Ok(())
            }
        }
    });
    tokio::select! {
        ended = async {
            while let Some(ended) = controllers.join_next().await {
                ended.context("a controller panicked")?;
            }
            anyhow::Ok(())
        } => {
            ended?;
            let _ended = give_back.send(());
            holding.await.context("cannot release the lease")?
        }
        lost = &mut holding => lost.context("the election ended")?,
        ended = background.join_next() => unexpected(ended),
    }
}

fn unexpected(
    ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>,
) -> anyhow::Result<()> {
    match ended {
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(error).context("a background task panicked"),
        Some(Ok(Ok(()))) | None => anyhow::bail!("a background task ended"),
    }
}

/// Resolves when the process has to end.
type Stop = Shared<BoxFuture<'static, ()>>;

/// Resolves on SIGTERM and SIGINT.
fn stop_signal() -> anyhow::Result<Stop> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    }
    .boxed()
    .shared())
}

/// What all controllers share.
struct Base {
    client: Client,
    stores: Stores,
    settings: Arc<Settings>,
    verifier: Option<Arc<VerifierEndpoint>>,
    artifacts: Artifacts,
    simulation: Option<Arc<SimulationPki>>,
}

impl Base {
    fn context(&self, manager: &'static str) -> Arc<Context> {
        Arc::new(Context {
            writer: Writer::new(self.client.clone(), manager, &self.settings.identity),
            client: self.client.clone(),
            stores: self.stores.clone(),
            settings: self.settings.clone(),
            verifier: self.verifier.clone(),
            artifacts: self.artifacts.clone(),
            simulation: self.simulation.clone(),
            now: Timestamp::now,
        })
    }
}

struct Queues {
    images: Queue<MeasuredImage>,
    deployments: Queue<ConfidentialDeployment>,
    policies: Queue<AttestationPolicy>,
    pods: Queue<Pod>,
}

struct Requests {
    images: UnboundedReceiver<ReconcileRequest<MeasuredImage>>,
    deployments: UnboundedReceiver<ReconcileRequest<ConfidentialDeployment>>,
    policies: UnboundedReceiver<ReconcileRequest<AttestationPolicy>>,
    pods: UnboundedReceiver<ReconcileRequest<Pod>>,
}

fn queues() -> (Queues, Requests) {
    let (images, image_requests) = Queue::new();
    let (deployments, deployment_requests) = Queue::new();
    let (policies, policy_requests) = Queue::new();
    let (pods, pod_requests) = Queue::new();
    (
        Queues {
            images,
            deployments,
            policies,
            pods,
        },
        Requests {
            images: image_requests,
            deployments: deployment_requests,
            policies: policy_requests,
            pods: pod_requests,
        },
    )
}

fn controllers(base: &Base, queues: &Queues, requests: Requests, stop: &Stop) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let images = queues.images.clone();
    tasks.spawn(queue::run(
        "attestation-gate",
        base.stores.pods.clone(),
        requests.pods,
        base.context(attestation_gate::MANAGER),
        attestation_gate::CONCURRENCY,
        attestation_gate::reconcile,
        stop.clone(),
    ));
    tasks.spawn(queue::run(
        "measured-image",
        base.stores.images.clone(),
        requests.images,
        base.context(measured_image::MANAGER),
        measured_image::CONCURRENCY,
        move |image, context| measured_image::reconcile(image, context, images.clone()),
        stop.clone(),
    ));
    tasks.spawn(queue::run(
        "confidential-deployment",
        base.stores.deployments.clone(),
        requests.deployments,
        base.context(confidential_deployment::MANAGER),
        confidential_deployment::CONCURRENCY,
        confidential_deployment::reconcile,
        stop.clone(),
    ));
    tasks.spawn(queue::run(
        "attestation-policy",
        base.stores.policies.clone(),
        requests.policies,
        base.context(attestation_policy::MANAGER),
        attestation_policy::CONCURRENCY,
        attestation_policy::reconcile,
        stop.clone(),
    ));
    tasks
}

impl Stores {
    /// Returns when everything was listed once: a decision on half a listing
    /// would take what is not listed yet for deleted.
    async fn wait(&self) {
        // A writer lives as long as the process.
        let _ready = futures::join!(
            self.images.wait_until_ready(),
            self.deployments.wait_until_ready(),
            self.policies.wait_until_ready(),
            self.records.wait_until_ready(),
            self.pods.wait_until_ready(),
            self.replica_sets.wait_until_ready(),
            self.workloads.wait_until_ready(),
            self.services.wait_until_ready(),
            self.config_maps.wait_until_ready(),
            self.roles.wait_until_ready(),
            self.role_bindings.wait_until_ready(),
            self.jobs.wait_until_ready(),
            self.broker_service.wait_until_ready(),
            self.broker_ca.wait_until_ready(),
        );
    }
}

fn reference<K>(namespace: Option<&str>, name: &str) -> Option<ObjectRef<K>>
where
    K: Watchable + Resource<DynamicType = ()>,
{
    namespace.map(|namespace| ObjectRef::new(name).within(namespace))
}

/// The object of kind `K` that controls `child`.
fn owner<K>(child: &ObjectMeta) -> Option<ObjectRef<K>>
where
    K: Watchable + Resource<DynamicType = ()>,
{
    reference(child.namespace.as_deref(), &owner_of::<K>(child)?.name)
}

/// The object of kind `K` that a label of `object` names.
fn labelled<K>(object: &ObjectMeta, label: &str) -> Option<ObjectRef<K>>
where
    K: Watchable + Resource<DynamicType = ()>,
{
    reference(
        object.namespace.as_deref(),
        object.labels.as_ref()?.get(label)?,
    )
}

/// Objects of the same namespace as `object` that `concerns` names.
fn of_namespace<K>(
    store: &Store<K>,
    object: &ObjectMeta,
    concerns: impl Fn(&K) -> bool,
) -> Vec<ObjectRef<K>>
where
    K: Watchable + Resource<DynamicType = ()>,
{
    let namespace = &object.namespace;
    let found = store.state_filter(|other| other.meta().namespace == *namespace && concerns(other));
    found
        .iter()
        .map(|other| ObjectRef::from_obj(other.as_ref()))
        .collect()
}

/// Starts all watches and says which change concerns whom.
fn watch(
    client: &Client,
    settings: &Settings,
    queues: &Queues,
    background: &mut JoinSet<anyhow::Result<()>>,
) -> Stores {
    let mut images = Source::<MeasuredImage>::default();
    let mut deployments = Source::<ConfidentialDeployment>::default();
    let mut policies = Source::<AttestationPolicy>::default();
    let mut records = Source::<AttestationRecord>::default();
    let mut pods = Source::<Pod>::default();
    let mut replica_sets = Source::<PartialObjectMeta<ReplicaSet>>::default();
    let mut workloads = Source::<Deployment>::default();
    let mut services = Source::<Service>::default();
    let mut config_maps = Source::<ConfigMap>::default();
    let mut roles = Source::<Role>::default();
    let mut role_bindings = Source::<RoleBinding>::default();
    let mut jobs = Source::<Job>::default();
    let mut broker_service = Source::<Service>::default();
    let mut broker_ca = Source::<ConfigMap>::default();
    let stores = Stores {
        images: images.store(),
        undecodable_images: images.undecodable(),
        deployments: deployments.store(),
        policies: policies.store(),
        undecodable_policies: policies.undecodable(),
        records: records.store(),
        pods: pods.store(),
        replica_sets: replica_sets.store(),
        workloads: workloads.store(),
        services: services.store(),
        config_maps: config_maps.store(),
        roles: roles.store(),
        role_bindings: role_bindings.store(),
        jobs: jobs.store(),
        broker_service: broker_service.store(),
        broker_ca: broker_ca.store(),
    };

    // The gate first: what it does is what enforcement waits for.
    let all_pods = stores.pods.clone();
    let all_records = stores.records.clone();
    let pods_of = move |namespace: Option<String>,
                        concerns: &dyn Fn(&AttestationRecord) -> bool| {
        let concerned = all_records
            .state_filter(|record| record.meta().namespace == namespace && concerns(record));
        let names = concerned
            .iter()
            .filter_map(|record| reference::<Pod>(namespace.as_deref(), &record.spec.pod_ref.name));
        names
            .filter(|pod| all_pods.get(pod).is_some())
            .collect::<Vec<_>>()
    };
    let of_image = pods_of.clone();
    images.notify(&queues.pods, move |image| {
        let name = image.name_any();
        of_image(image.namespace(), &|record| {
            record.spec.image_ref.name == name
        })
    });
    let of_policy = pods_of;
    policies.notify(&queues.pods, move |policy| {
        let name = policy.name_any();
        of_policy(policy.namespace(), &|record| {
            record.spec.policy_ref.name == name
        })
    });
    records.notify(&queues.pods, |record| {
        reference(record.meta().namespace.as_deref(), &record.name_any())
    });
    pods.notify(&queues.pods, |pod| Some(ObjectRef::from_obj(pod)));

    images.notify(&queues.images, |image| Some(ObjectRef::from_obj(image)));
    deployments.notify(&queues.images, |deployment| {
        reference(
            deployment.meta().namespace.as_deref(),
            &deployment.spec.image_ref.name,
        )
    });
    jobs.notify(&queues.images, |job| owner(&job.metadata));
    config_maps.notify(&queues.images, |map| owner(&map.metadata));
    config_maps.notify(&queues.images, |map| {
        labelled(&map.metadata, names::IMAGE_LABEL)
    });
    // A deployment that names another image, or is gone, leaves the old one
    // with a count that is too high.
    let all_images = stores.images.clone();
    deployments.notify(&queues.images, move |deployment| {
        of_namespace(&all_images, deployment.meta(), |image| {
            image
                .status
                .as_ref()
                .is_some_and(|status| status.used_by > 0)
        })
    });

    policies.notify(&queues.policies, |policy| Some(ObjectRef::from_obj(policy)));
    deployments.notify(&queues.policies, |deployment| {
        reference(
            deployment.meta().namespace.as_deref(),
            &deployment.spec.policy_ref.name,
        )
    });
    let all_policies = stores.policies.clone();
    deployments.notify(&queues.policies, move |deployment| {
        of_namespace(&all_policies, deployment.meta(), |policy| {
            policy
                .status
                .as_ref()
                .is_some_and(|status| status.bound_deployments > 0)
        })
    });

    deployments.notify(&queues.deployments, |deployment| {
        Some(ObjectRef::from_obj(deployment))
    });
    let all = stores.deployments.clone();
    images.notify_by_name(&queues.deployments, move |image| {
        of_namespace(&all, image, |deployment| {
            image.name.as_ref() == Some(&deployment.spec.image_ref.name)
        })
    });
    let all = stores.deployments.clone();
    policies.notify_by_name(&queues.deployments, move |policy| {
        of_namespace(&all, policy, |deployment| {
            policy.name.as_ref() == Some(&deployment.spec.policy_ref.name)
        })
    });
    records.notify(&queues.deployments, |record| {
        reference(
            record.meta().namespace.as_deref(),
            &record.spec.deployment_ref.name,
        )
    });
    pods.notify(&queues.deployments, |pod| {
        labelled(&pod.metadata, names::DEPLOYMENT_LABEL)
    });
    replica_sets.notify(&queues.deployments, |set| {
        labelled(&set.metadata, names::DEPLOYMENT_LABEL)
    });
    workloads.notify(&queues.deployments, |child| owner(&child.metadata));
    services.notify(&queues.deployments, |child| owner(&child.metadata));
    config_maps.notify(&queues.deployments, |child| owner(&child.metadata));
    roles.notify(&queues.deployments, |child| owner(&child.metadata));
    role_bindings.notify(&queues.deployments, |child| owner(&child.metadata));
    let all = stores.deployments.clone();
    broker_service.notify(&queues.deployments, move |_| every(&all));
    let all = stores.deployments.clone();
    broker_ca.notify(&queues.deployments, move |_| every(&all));

    let everything = watcher::Config::default();
    let guests = watcher::Config::default().labels(names::DEPLOYMENT_LABEL);
    let managed = watcher::Config::default().labels(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}"));
    let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let scopes = Scopes {
        client,
        namespaces: &settings.watch_namespaces,
    };
    let home = Scopes {
        client,
        namespaces: std::slice::from_ref(&settings.namespace),
    };
    let mut start = |watch: BoxFuture<'static, ()>| {
        background.spawn(watch.map(|()| Ok(())));
    };
    start(
        images
            .run_guarded(scopes.guarded(), everything.clone())
            .boxed(),
    );
    start(
        deployments
            .run_guarded(scopes.guarded(), everything.clone())
            .boxed(),
    );
    start(
        policies
            .run_guarded(scopes.guarded(), everything.clone())
            .boxed(),
    );
    start(records.run_guarded(scopes.guarded(), everything).boxed());
    start(pods.run(scopes.apis(), guests.clone()).boxed());
    start(replica_sets.run(scopes.apis(), guests).boxed());
    start(workloads.run(scopes.apis(), managed.clone()).boxed());
    start(services.run(scopes.apis(), managed.clone()).boxed());
    start(config_maps.run(scopes.apis(), managed.clone()).boxed());
    start(roles.run(scopes.apis(), managed.clone()).boxed());
    start(role_bindings.run(scopes.apis(), managed.clone()).boxed());
    start(jobs.run(scopes.apis(), managed).boxed());
    start(
        broker_service
            .run(home.apis(), named(names::BROKER))
            .boxed(),
    );
    start(
        broker_ca
            .run(home.apis(), named(names::BROKER_CA_CONFIG_MAP))
            .boxed(),
    );
    stores
}

fn every<K: Watchable + Resource<DynamicType = ()>>(store: &Store<K>) -> Vec<ObjectRef<K>> {
    store
        .state()
        .iter()
        .map(|object| ObjectRef::from_obj(object.as_ref()))
        .collect()
}

/// The namespaces that are watched; all of them when the list is empty.
struct Scopes<'a> {
    client: &'a Client,
    namespaces: &'a [String],
}

impl Scopes<'_> {
    fn apis<K>(&self) -> Vec<(Option<String>, Api<K>)>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        if self.namespaces.is_empty() {
            return vec![(None, Api::all(self.client.clone()))];
        }
        let namespaces = self.namespaces.iter();
        namespaces
            .map(|name| {
                (
                    Some(name.clone()),
                    Api::namespaced(self.client.clone(), name),
                )
            })
            .collect()
    }

    fn guarded<K>(&self) -> Vec<(Option<String>, Api<DeserializeGuard<K>>)>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        self.apis()
    }
}
