//! `vnetpool-operator preflight`: tests each permission the operator needs, and reports what is missing and
//! where to grant it.

mod kube_proxy;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use vnetpool_crds::{NodeIPPool, NodeIPPoolSpec};

use crate::api_server::{NOT_FOUND, is_status};
use crate::azure::role::{self, NODES, On, PARTS};
use crate::azure::{self, Azure, Need, Permissions, Priority, ResourceId, VmId};

/// The permissions to test.
#[derive(Clone, Debug)]
pub enum Subject {
    /// The pools of the cluster and its nodes: one for each resource group and AKS node pool, since those of
    /// a group and pool are alike.
    Nodes,
    /// Nodes that may not exist yet, in this resource group; and the subnet they are to be in.
    Group { id: String, subnet: Option<ResourceId> },
}

/// A need, and whether it is met.
#[derive(Debug)]
struct Finding {
    need: Need,
    verdict: Verdict,
}

#[derive(Debug)]
enum Verdict {
    Granted,
    Missing,
    /// Granted or not, another obstacle remains.
    Forbidden(String),
    Untested(String),
}

/// All that was found, to be shown to people.
#[derive(Debug, Default)]
pub struct Findings {
    read_objects: Vec<String>,
    findings: BTreeMap<Need, Verdict>,
    /// Of the cluster, if there is one.
    kube_proxy: Option<String>,
}

/// Tests the permissions. Changes nothing in Azure.
///
/// # Errors
/// When the operator can't sign in, or Azure or the API server don't answer: then nothing is known.
pub async fn run(
    azure: &Azure,
    subject: Subject,
    client: impl AsyncFnOnce() -> anyhow::Result<Client>,
) -> anyhow::Result<Findings> {
    let mut report = Findings::default();
    let mut asked = Answers { azure, known: BTreeMap::new() };
    match subject {
        Subject::Group { id, subnet } => {
            report.read_objects.push(format!("resource group {id}"));
            let needs = of_group(&id, subnet.as_ref());
            for finding in asked.roles(needs).await? {
                report.add(finding);
            }
        }
        Subject::Nodes => {
            let client = client().await?;
            for (node, vm) in representatives(client.clone()).await? {
                report.read_objects.push(format!("node {node}"));
                let findings = asked.node(&vm).await.with_context(|| format!("node {node}, {vm}"))?;
                findings.into_iter().for_each(|finding| report.add(finding));
            }
            anyhow::ensure!(
                !report.read_objects.is_empty(),
                "the cluster has no node with a providerID of an Azure virtual machine. Name --subscription and \
                 --resource-group to test without nodes."
            );
            report.kube_proxy = Some(
                kube_proxy::check(client.clone())
                    .await
                    .context("reading the ConfigMap kube-system/kube-proxy")?,
            );
            for pool in pools(client).await? {
                let needs = of_pool(&pool.spec);
                if !needs.is_empty() {
                    report.read_objects.push(format!("NodeIPPool {}", pool.name_any()));
                }
                asked.roles(needs).await?.into_iter().for_each(|finding| report.add(finding));
            }
        }
    }
    Ok(report)
}

const UNREADABLE: &str = "the identity may not read its own permissions (Microsoft.Authorization/permissions/read, which Reader grants)";

/// One node for each kind, and its VM.
async fn representatives(client: Client) -> anyhow::Result<Vec<(String, VmId)>> {
    let nodes = Api::<Node>::all(client).list(&ListParams::default()).await.context("listing Nodes")?;
    let mut kinds = BTreeMap::new();
    for node in nodes {
        let provider_id = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref()).unwrap_or_default();
        let Ok(vm) = VmId::from_provider_id(provider_id) else { continue };
        let pool = node.labels().get("kubernetes.azure.com/agentpool").cloned();
        kinds.entry((vm.resource().group().to_ascii_lowercase(), pool)).or_insert((node.name_any(), vm));
    }
    Ok(kinds.into_values().collect())
}

/// None before the operator is installed.
async fn pools(client: Client) -> anyhow::Result<Vec<NodeIPPool>> {
    match Api::<NodeIPPool>::all(client).list(&ListParams::default()).await {
        Ok(pools) => Ok(pools.items),
        Err(error) if is_status(&error, NOT_FOUND) => Ok(vec![]),
        Err(error) => Err(error).context("listing NodeIPPools"),
    }
}

/// The permissions for NICs to refer to resources that a pool names, where a NIC can't refer to them yet.
fn of_pool(spec: &NodeIPPoolSpec) -> Vec<Need> {
    let groups = spec.application_security_groups.iter().flat_map(|groups| &groups.ids);
    let backend_pools = spec.attachments.backend_pools.iter().map(|pool| &pool.id);
    let needs = |scope: &String, property| {
        let actions = PARTS.iter().flat_map(|part| part.actions);
        let joins = actions.filter(|action| action.on == On::Referenced(property));
        joins.map(|action| Need { scope: scope.clone(), action: action.name }).collect::<Vec<_>>()
    };
    groups
        .flat_map(|id| needs(id, "applicationSecurityGroups"))
        .chain(backend_pools.flat_map(|id| needs(id, "loadBalancerBackendAddressPools")))
        .collect()
}

/// The findings for nodes that don't exist: their NICs' references aren't known.
fn of_group(group: &str, subnet: Option<&ResourceId>) -> Vec<Need> {
    let need = |action: &azure::role::Action| {
        let scope = match (action.on, subnet) {
            (On::Machine | On::Instance | On::Nic | On::InstanceNic | On::Group, _) => group.to_owned(),
            (On::Network, Some(subnet)) => subnet.parent()?.to_string(),
            (On::Referenced(_), Some(subnet)) => subnet.to_string(),
            (On::RouteTable | On::PodAddress, _) | (On::Network | On::Referenced(_), None) => return None,
        };
        Some(Need { scope, action: action.name })
    };
    NODES.actions.iter().filter_map(need).collect()
}

/// Azure, and its answers: nodes have most scopes in common.
struct Answers<'a> {
    azure: &'a Azure,
    /// By scope; `None` where the identity may not ask for its permissions.
    known: BTreeMap<String, Option<Permissions>>,
}

impl Answers<'_> {
    /// The obstacles between the operator and this VM's NIC.
    async fn node(&mut self, vm: &VmId) -> anyhow::Result<Vec<Finding>> {
        let read = |action: &'static str, scope: String| Need { scope, action };
        let (vm_action, nic_action) = if vm.is_instance() {
            (
                "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/read",
                "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/networkInterfaces/read",
            )
        } else {
            ("Microsoft.Compute/virtualMachines/read", "Microsoft.Network/networkInterfaces/read")
        };
        let vm_read = read(vm_action, vm.resource().to_string());
        let nic = match self.azure.primary_nic(vm, Priority::WaitingPods).await {
            Ok(nic) => nic,
            Err(azure::Error::Denied { .. }) => {
                return Ok(vec![Finding { need: vm_read, verdict: Verdict::Missing }]);
            }
            Err(error) => return Err(error.into()),
        };
        let mut findings = vec![Finding { need: vm_read, verdict: Verdict::Granted }];
        let needs = match self.azure.needs(&nic).await {
            Ok(needs) => needs,
            Err(azure::Error::Denied { .. }) => {
                let nic_read = read(nic_action, nic.to_string());
                findings.push(Finding { need: nic_read, verdict: Verdict::Missing });
                return Ok(findings);
            }
            Err(error) => return Err(error.into()),
        };
        findings.extend(self.roles(needs).await?);
        self.write(&nic, &mut findings).await?;
        Ok(findings)
    }

    /// Settles with a write that can't take effect what roles don't show: roles that can't be read, deny
    /// assignments, locks.
    async fn write(&self, nic: &ResourceId, findings: &mut [Finding]) -> anyhow::Result<()> {
        let is_write = |finding: &&mut Finding| {
            finding.need.action.ends_with("/write") || finding.need.action.ends_with("/action")
        };
        let settled = |findings: &mut [Finding], verdict: fn() -> Verdict| {
            for finding in findings.iter_mut().filter(is_write) {
                if matches!(finding.verdict, Verdict::Untested(_)) {
                    finding.verdict = verdict();
                }
            }
        };
        match self.azure.try_write(nic).await {
            Ok(()) => settled(findings, || Verdict::Granted),
            Err(azure::Error::Denied { action, scope, .. }) => {
                let lacks = |finding: &&mut Finding| {
                    finding.need.action.eq_ignore_ascii_case(&action)
                        && finding.need.scope.eq_ignore_ascii_case(&scope)
                };
                if let Some(finding) = findings.iter_mut().find(lacks) {
                    finding.verdict = Verdict::Missing;
                }
            }
            Err(
                error @ (azure::Error::DenyAssignment { .. }
                | azure::Error::Locked { .. }
                | azure::Error::PolicyForbidden { .. }),
            ) => {
                let on_nic = |finding: &&mut Finding| finding.need.action.ends_with("/write");
                if let Some(finding) = findings.iter_mut().find(on_nic) {
                    finding.verdict = Verdict::Forbidden(error.to_string());
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The permissions that roles grant; where roles can't be read, those to read.
    async fn roles(&mut self, needs: Vec<Need>) -> anyhow::Result<Vec<Finding>> {
        let mut findings = vec![];
        for need in needs {
            let verdict = match self.permissions(&need.scope).await? {
                Some(permissions) if permissions.allow(need.action) => Verdict::Granted,
                Some(_) => Verdict::Missing,
                // An operation must be under way to be read.
                None if need.action.contains("/operations/") => Verdict::Untested(UNREADABLE.into()),
                None if need.action.ends_with("/read") => self.read(&need).await?,
                None => Verdict::Untested(UNREADABLE.into()),
            };
            findings.push(Finding { need, verdict });
        }
        Ok(findings)
    }

    async fn permissions(&mut self, scope: &str) -> Result<Option<&Permissions>, azure::Error> {
        let known = match self.known.entry(scope.to_ascii_lowercase()) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(unknown) => {
                unknown.insert(match self.azure.permissions(scope).await {
                    Ok(permissions) => Some(permissions),
                    Err(azure::Error::Denied { .. }) => None,
                    Err(error) => return Err(error),
                })
            }
        };
        Ok(known.as_ref())
    }

    /// Reads for the sake of it.
    async fn read(&self, need: &Need) -> anyhow::Result<Verdict> {
        match self.azure.try_read(need).await {
            Ok(()) => Ok(Verdict::Granted),
            Err(azure::Error::Denied { .. }) => Ok(Verdict::Missing),
            Err(error) => Err(error.into()),
        }
    }
}

impl Findings {
    fn add(&mut self, Finding { need, verdict }: Finding) {
        self.findings.insert(need, verdict);
    }

    /// How many permissions are missing, or granted in vain.
    pub fn lacks(&self) -> usize {
        let lacks = |verdict: &&Verdict| matches!(verdict, Verdict::Missing | Verdict::Forbidden(_));
        self.findings.values().filter(lacks).count()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Read: {}.\n", self.read_objects.join(", "))?;
        let width = self.findings.keys().map(|need| need.action.len()).max().unwrap_or_default();
        for (Need { scope, action }, verdict) in &self.findings {
            let word = match verdict {
                Verdict::Granted => "granted",
                Verdict::Missing => "MISSING",
                Verdict::Forbidden(_) => "FORBIDDEN",
                Verdict::Untested(_) => "untested",
            };
            writeln!(f, "{word:<9}  {action:<width$}  on {scope}")?;
            if let Verdict::Forbidden(why) | Verdict::Untested(why) = verdict {
                writeln!(f, "{:<9}  {why}", "")?;
            }
        }
        let mut scopes: Vec<&str> = self
            .findings
            .iter()
            .filter(|(_, verdict)| matches!(verdict, Verdict::Missing))
            .map(|(need, _)| need.scope.as_str())
            .collect();
        scopes.dedup();
        if let Some(kube_proxy) = &self.kube_proxy {
            writeln!(f, "\nkube-proxy: {kube_proxy}")?;
        }
        if scopes.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\nGrant what is missing with the role that `vnetpool-operator role` prints, on each of these or on its resource \
             group (a new assignment takes minutes to work):"
        )?;
        for scope in scopes {
            writeln!(
                f,
                "  az role assignment create --assignee $IDENTITY --role \"{}\" --scope {scope}",
                role::NAME
            )?;
        }
        Ok(())
    }
}
