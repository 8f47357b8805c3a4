//! The documents' commands of `az`, typed to the real one, whose Azure is the simulated one: it is led there
//! by a proxy, under the names of Azure's public cloud. All of it is in a network that leads nowhere else.
//! Needs root.
//!
//! `make azure-cli` gets `az`, and runs this.

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;
use vnetpool_azure_sim::{Config, NewVm, Proxy, Sim, seclude};
use vnetpool_tests::project::{root, search_path};
use vnetpool_tests::snippets::{self, Snippet};
use vnetpool_tests::wait::patience;

/// `az` alone takes seconds to start.
const LIMIT: Duration = Duration::from_secs(180);

const ARM: &str = "management.azure.com";

/// Instead of a container of the operator's image, the operator. The images hold just this program.
const DOCKER: &str = r#"docker() { while [ "$1" != role ]; do shift; done; vnetpool-operator "$@"; }"#;

/// Simulated Azure, and a person's machine.
struct Desk {
    sim: Sim,
    proxy: Proxy,
    /// Home and current folder.
    folder: TempDir,
    nic: String,
}

impl Desk {
    /// With a machine in Azure, and with `az` signed in.
    async fn new() -> Result<Self> {
        let sim = Sim::start(Config { write_seconds: 1.0, ..Config::default() }).await?;
        let vm = sim.add_vm(NewVm { name: "plain".into(), ..NewVm::default() }).await?;
        let nic = vm.nic_id.rsplit('/').next().unwrap_or_default().to_owned();
        let proxy = sim.open_proxy().await?;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("authorities"), proxy.authority())?;
        std::os::unix::fs::symlink(root().join("examples"), folder.path().join("examples"))?;
        let desk = Self { sim, proxy, folder, nic };
        let Config { tenant, application, .. } = Config::default();
        let mut login = Command::new("az");
        login.args(["login", "--service-principal", "--username", &application.client_id]);
        login.args([&format!("--password={}", application.client_secret), "--tenant", &tenant]);
        desk.run(login).await.context("az login")?;
        Ok(desk)
    }

    async fn type_in(&self, snippet: &Snippet) -> Result<String> {
        let Config { subscription, resource_group, .. } = Config::default();
        let variables = [
            ("GROUP", resource_group.as_str()),
            ("NODES", resource_group.as_str()),
            ("REGION", "westeurope"),
            ("MINE", "203.0.113.7"),
            ("SUBSCRIPTION", &subscription),
            ("REGISTRY", "registry.example"),
            ("IDENTITY", "44444444-4444-4444-4444-444444444444"),
            ("NIC", &self.nic),
        ];
        self.run(snippet.command(DOCKER, &variables).into()).await
    }

    /// Runs a program of this machine, and returns what it printed.
    async fn run(&self, mut command: Command) -> Result<String> {
        let path = format!("{}:{}", az().display(), search_path());
        let authorities = self.folder.path().join("authorities");
        command.current_dir(self.folder.path()).env("HOME", self.folder.path()).env("PATH", path);
        command.env("AZURE_CONFIG_DIR", self.folder.path().join("azure"));
        // It reports to its makers otherwise.
        command.env("AZURE_CORE_COLLECT_TELEMETRY", "no");
        command.env("HTTPS_PROXY", self.proxy.url()).env("REQUESTS_CA_BUNDLE", authorities);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(patience(LIMIT), command.output()).await??;
        let [printed, error] =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        ensure!(output.status.success(), "{}: {printed}{error}", output.status);
        Ok(printed)
    }

    /// Azure has understood all of it. `az` asks elsewhere, too, whether there is a newer `az`.
    fn has_refused_nothing(&self) -> Result<()> {
        let refused = self.sim.log().into_iter().filter(|one| one.status >= 400 && one.host.starts_with(ARM));
        let refused: Vec<_> =
            refused.map(|one| format!("{} {}: {}", one.method, one.path, one.status)).collect();
        ensure!(refused.is_empty(), "{refused:#?}");
        Ok(())
    }
}

/// The folder of `az`.
fn az() -> PathBuf {
    root().join("target/azure-cli/bin")
}

/// What was written to Azure, by the last part of its type.
fn writes(sim: &Sim, kind: &str) -> usize {
    let is_it = |path: &str| path.to_lowercase().contains(&format!("/{}/", kind.to_lowercase()));
    sim.log().iter().filter(|one| one.method == "PUT" && one.status < 300 && is_it(&one.path)).count()
}

async fn typed(snippet: &Snippet) -> Result<()> {
    let desk = Desk::new().await?;
    let printed = desk.type_in(snippet).await?;
    println!("{}\n{}{printed}", snippet.place, snippet.script);
    desk.has_refused_nothing()?;
    for (command, kind, count) in [
        ("az group create", "resourcegroups", 1),
        ("az deployment group create", "deployments", 1),
        ("az network nsg rule create", "securityRules", 1),
        ("az identity create", "userAssignedIdentities", 1),
        ("az role definition create", "roleDefinitions", 1),
        ("az role assignment create", "roleAssignments", 1),
        ("az network nic ip-config create", "networkInterfaces", 3),
    ] {
        let found = writes(&desk.sim, kind);
        ensure!(!snippet.script.contains(command) || found >= count, "{command}: {found} writes: {printed}");
    }
    if snippet.script.contains("nodesSubnetId") {
        ensure!(printed.trim().ends_with("/subnets/nodes"), "no subnet's id at the end of {printed}");
    }
    Ok(())
}

/// Each block has an Azure of its own, since each ends where the next page begins anew.
async fn all_typed() -> Result<()> {
    for snippet in snippets::of("azure")? {
        typed(&snippet).await.with_context(|| snippet.place.clone())?;
    }
    Ok(())
}

/// In a thread of its own: it and what it starts leave this machine's network.
fn secluded() -> Result<()> {
    seclude()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(all_typed())
}

fn main() -> Result<ExitCode> {
    ensure!(az().join("az").exists(), "there is no az: run `make azure-cli`");
    let trials = vec![
        // One, since a person types block after block, too.
        trial("the_documented_commands_of_az_work_on_simulated_azure", secluded),
    ];
    Ok(libtest_mimic::run(&Arguments::from_args(), trials).exit_code())
}

fn trial(name: &str, run: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || {
        let ended = std::thread::spawn(run).join().map_err(|_| Failed::from("panicked"))?;
        ended.map_err(|error| format!("{error:#}").into())
    })
}
