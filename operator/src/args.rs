//! Command line and environment → [`Config`]. Read once.

use std::net::{Ipv4Addr, SocketAddr};

use clap::{Parser, Subcommand};
use reqwest::Url;
use uuid::Uuid;
use vnetpool_process::log::LogFormat;

use crate::Config;
use crate::azure::role::{self, Part};
use crate::azure::{self, ApiVersions, Cloud, Credential, ResourceId};
use crate::context::Waits;
use crate::preflight::Subject;

/// Reserves addresses of Azure virtual networks for the nodes of a cluster.
///
/// The environment decides how it signs in to Azure, as with Azure's own tools: AZURE_CLIENT_ID,
/// AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE or AZURE_CLIENT_SECRET, AZURE_AUTHORITY_HOST; with none of
/// them, the managed identity of the virtual machine it runs on.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Which Azure: AzurePublicCloud, AzureUSGovernmentCloud or AzureChinaCloud.
    #[arg(long, global = true, env = "VNETPOOL_CLOUD", default_value_t = Cloud::Public)]
    cloud: Cloud,
    /// Where Azure Resource Manager is, if not where the cloud has it.
    #[arg(long, global = true, env = "VNETPOOL_ARM_ENDPOINT")]
    arm_endpoint: Option<Url>,
    /// The API version in which to ask Azure's network provider, if not the one of the cloud.
    #[arg(long, global = true, env = "VNETPOOL_NETWORK_API_VERSION")]
    network_api_version: Option<String>,
    /// The API version in which to ask Azure's compute provider, if not the one of the cloud.
    #[arg(long, global = true, env = "VNETPOOL_COMPUTE_API_VERSION")]
    compute_api_version: Option<String>,
    /// How much of Azure's request limits Vnetpool uses at most, in percent: the rest is left to the other
    /// clients of the subscription.
    #[arg(long, env = "VNETPOOL_BUDGET_PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u8).range(5..=100))]
    budget_percent: u8,
    /// Plan, and report in conditions and Events what would be done, but write nothing to Azure.
    #[arg(long, env = "VNETPOOL_DRY_RUN")]
    dry_run: bool,
    /// The architectures of nodes that there are images for, as in the label kubernetes.io/arch. Nodes of
    /// others are left alone. By default all nodes are taken to have one.
    #[arg(long, env = "VNETPOOL_ARCHITECTURES", value_delimiter = ',')]
    architectures: Vec<String>,
    /// The namespace of the Lease by which replicas agree on who leads.
    #[arg(long, env = "VNETPOOL_NAMESPACE", default_value = "vnetpool-system")]
    namespace: String,
    /// Where /healthz, /readyz and /metrics are served. The operator is on the host network, so by default
    /// only the node itself (the kubelet's probes) can reach it.
    #[arg(long, env = "VNETPOOL_ADMIN_ADDRESS", default_value = "127.0.0.1:9470")]
    admin_address: SocketAddr,
    /// Where /metrics is served to others than the node itself, beside `--admin-address`.
    #[arg(long, env = "VNETPOOL_METRICS_ADDRESS")]
    metrics_address: Option<SocketAddr>,
    /// How log lines are written; RUST_LOG chooses which.
    #[arg(long, global = true, env = "VNETPOOL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

/// The command to run instead of operating.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// The CustomResourceDefinitions of this release.
    #[command(subcommand)]
    Crds(Crds),
    /// The custom role that the operator's identity needs in Azure, as JSON for `az role definition create`
    /// and `update`.
    Role {
        /// Where the role may be assigned: a subscription or a resource group, by its id. It can be given
        /// more than once.
        #[arg(long, required = true)]
        scope: Vec<String>,
        /// The role's name. A tenant has each name once, for all its subscriptions.
        #[arg(long, default_value = role::NAME)]
        name: String,
        /// The actions to grant besides those of every installation; without it, all actions.
        #[arg(long, value_parser = part)]
        part: Vec<&'static Part>,
    },
    /// Tests each permission the operator's identity needs in Azure, and reports what is missing and where to
    /// grant it.
    ///
    /// Signs in as the operator would, so run it where and as the operator runs. Without options it checks
    /// the nodes of the cluster. Changes nothing. Fails if anything is missing.
    Preflight {
        /// Tests for nodes to come, in a resource group of this subscription, instead.
        #[arg(long, requires = "resource_group")]
        subscription: Option<String>,
        /// The resource group of the nodes to come.
        #[arg(long, requires = "subscription")]
        resource_group: Option<String>,
        /// The id of the subnet of the nodes to come.
        #[arg(long, requires = "resource_group")]
        subnet: Option<ResourceId>,
    },
    /// Prints what Azure has reserved on NICs, or in route tables, as JSON for `kubectl vnetpool`.
    ///
    /// Reads their ids from standard input, one a line, and prints a line for each as soon as it is read.
    /// Signs in as the operator would, at the lowest share of Azure's request limits. Changes nothing.
    Reserved,
    /// Checks from inside a pod whether the pod network works: is the pod's address reserved for its node,
    /// and does every node answer? What `helm test` runs. Fails if anything is wrong.
    Datapath {
        /// The node that the pod runs on.
        #[arg(long = "node-name", env = "VNETPOOL_NODE_NAME")]
        node: String,
        /// The pod's address.
        #[arg(long = "pod-address", env = "VNETPOOL_POD_ADDRESS")]
        address: Ipv4Addr,
        /// Where the kubelets answer.
        #[arg(long, env = "VNETPOOL_KUBELET_PORT", default_value_t = 10250)]
        kubelet_port: u16,
    },
}

fn part(name: &str) -> Result<&'static Part, String> {
    role::part(name).ok_or_else(|| {
        let known: Vec<String> =
            role::PARTS.iter().map(|part| format!("{} ({})", part.name, part.purpose)).collect();
        format!("no such part; there are {}", known.join(", "))
    })
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Crds {
    /// Apply them to the cluster and wait until they are served.
    Apply,
}

impl Command {
    /// The parts of Azure that a preflight checks.
    pub fn subject(
        subscription: Option<String>,
        resource_group: Option<String>,
        subnet: Option<ResourceId>,
    ) -> Subject {
        match subscription.zip(resource_group) {
            Some((subscription, group)) => {
                Subject::Group { id: format!("/subscriptions/{subscription}/resourceGroups/{group}"), subnet }
            }
            None => Subject::Nodes,
        }
    }
}

impl Args {
    pub fn log_format(&self) -> LogFormat {
        self.log_format
    }

    /// # Errors
    /// When the environment doesn't specify how to sign in to Azure.
    pub fn config(self) -> Result<Config, azure::Error> {
        let Args {
            command,
            cloud,
            arm_endpoint,
            network_api_version,
            compute_api_version,
            budget_percent,
            dry_run,
            architectures,
            namespace,
            admin_address,
            metrics_address,
            log_format: _,
        } = self;
        // The preflight tries a write that can't take effect; a dry run is a way to operate.
        let dry_run = dry_run && command.is_none();
        let usual = ApiVersions::of(cloud);
        let versions = ApiVersions {
            network: network_api_version.unwrap_or(usual.network),
            compute: compute_api_version.unwrap_or(usual.compute),
        };
        let credential = Credential::from_env(|name| std::env::var(name).ok())?;
        Ok(Config {
            azure: azure::Config {
                cloud,
                endpoint: arm_endpoint,
                versions,
                imds: None,
                credential,
                budget_percent,
                dry_run,
            },
            namespace,
            // A replica that starts again must not take itself for the one before. On the host network, the
            // host's name wouldn't identify the pod.
            identity: format!("{}_{}", std::env::var("POD_NAME").unwrap_or_default(), Uuid::new_v4()),
            admin: Some(admin_address),
            scraped: metrics_address,
            architectures: architectures.into_iter().collect(),
            waits: Waits::FULL,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cloud_is_asked_in_its_own_api_versions_unless_an_argument_names_one() {
        let versions = |args: &[&str]| {
            let all = ["vnetpool-operator"].iter().chain(args);
            Args::parse_from(all).config().unwrap().azure.versions
        };
        let usual =
            |network: &str, compute: &str| ApiVersions { network: network.into(), compute: compute.into() };
        assert_eq!(versions(&[]), usual("2025-05-01", "2025-04-01"));
        assert_eq!(versions(&["--cloud", "AzureChinaCloud"]), usual("2024-03-01", "2024-07-01"));
        let chosen = versions(&["--cloud", "AzureChinaCloud", "--network-api-version", "2024-05-01"]);
        assert_eq!(chosen, usual("2024-05-01", "2024-07-01"));
    }

    #[test]
    fn a_share_of_azures_limits_is_a_percentage_with_which_one_can_work() {
        let parse = |percent: &str| Args::try_parse_from(["vnetpool-operator", "--budget-percent", percent]);
        for percent in ["0", "4", "101", "half"] {
            let error = parse(percent).unwrap_err().to_string();
            assert!(error.contains("--budget-percent"), "{error}");
        }
        assert_eq!(parse("5").unwrap().budget_percent, 5);
        assert_eq!(Args::parse_from(["vnetpool-operator"]).budget_percent, 80);
    }
}
