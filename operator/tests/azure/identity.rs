//! Signing in over the wire, in each way and in each cloud: the program itself, by HTTPS and under the
//! clouds' own names, by way of a proxy that leads to the simulator; and what becomes of tokens that can't be
//! had, or aren't accepted.

use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use vnetpool_azure_sim::{Application, Config, Effect, Fault, LogEntry, Proxy, Sim, seclude};
use vnetpool_operator::azure::{self, ApiVersions, Azure, Cloud, Credential, Error, Freshness, Priority};

use crate::simulated::World;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vnetpool-operator");

/// Azure, and a company's proxy before it.
struct Abroad {
    sim: Sim,
    proxy: Proxy,
    folder: tempfile::TempDir,
}

impl Abroad {
    /// In a network of the test's own thread, which leads nowhere: a program that took another identity than
    /// it is given would ask this machine's metadata service.
    async fn start() -> Abroad {
        seclude().unwrap();
        let sim = Sim::start(Config::default()).await.unwrap();
        let proxy = sim.open_proxy().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), proxy.authority()).unwrap();
        Abroad { sim, proxy, folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// Runs `vnetpool-operator preflight` with this in its environment, and nothing else but the way to
    /// Azure.
    async fn preflight(&self, cloud: &str, env: &[(&str, &str)]) -> Output {
        self.preflight_trusting(&self.path("ca.crt"), cloud, env).await
    }

    async fn preflight_trusting(&self, authorities: &str, cloud: &str, env: &[(&str, &str)]) -> Output {
        let Config { subscription, resource_group, .. } = Config::default();
        let program = tokio::process::Command::new(PROGRAM)
            .args([
                "preflight",
                "--cloud",
                cloud,
                "--subscription",
                &subscription,
                "--resource-group",
                &resource_group,
            ])
            .env_clear()
            .env("HTTPS_PROXY", self.proxy.url())
            .env("SSL_CERT_FILE", authorities)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        tokio::time::timeout(Duration::from_secs(60), program).await.unwrap().unwrap()
    }

    fn asked_entra(&self) -> Vec<LogEntry> {
        self.sim.log().into_iter().filter(|entry| entry.path.ends_with("/oauth2/v2.0/token")).collect()
    }
}

const PUBLIC: &str = "AzurePublicCloud";

/// A service principal's variables, with this secret.
fn principal<'a>(secret: &'a str, config: &'a Config) -> [(&'a str, &'a str); 3] {
    [
        ("AZURE_TENANT_ID", &config.tenant),
        ("AZURE_CLIENT_ID", &config.application.client_id),
        ("AZURE_CLIENT_SECRET", secret),
    ]
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_service_principal_signs_in_with_its_secret_and_a_wrong_one_is_reported() {
    let abroad = Abroad::start().await;
    let config = Config::default();
    let output = abroad.preflight(PUBLIC, &principal(&config.application.client_secret, &config)).await;
    assert!(output.status.success(), "{}", printed(&output));
    assert!(
        String::from_utf8_lossy(&output.stdout)
            .contains("granted    Microsoft.Network/networkInterfaces/write")
    );
    let output = abroad.preflight(PUBLIC, &principal("wrong", &config)).await;
    assert_eq!(output.status.code(), Some(1));
    let printed = printed(&output);
    assert!(printed.contains("AADSTS7000215") && printed.contains("AZURE_CLIENT_ID"), "{printed}");
}

#[tokio::test]
async fn a_workload_identity_signs_in_with_its_service_accounts_token() {
    let abroad = Abroad::start().await;
    let Config { tenant, application: Application { client_id, trusted_token, .. }, .. } = Config::default();
    let file = abroad.path("token");
    let env = [
        ("AZURE_TENANT_ID", &*tenant),
        ("AZURE_CLIENT_ID", &client_id),
        ("AZURE_FEDERATED_TOKEN_FILE", &file),
    ];
    std::fs::write(&file, trusted_token).unwrap();
    let output = abroad.preflight(PUBLIC, &env).await;
    assert!(output.status.success(), "{}", printed(&output));
    std::fs::write(&file, "somebody.elses.token").unwrap();
    let output = abroad.preflight(PUBLIC, &env).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(printed(&output).contains("No matching federated identity record"), "{}", printed(&output));
}

#[tokio::test]
async fn an_entra_that_is_in_trouble_is_unavailable_and_no_refusal() {
    let abroad = Abroad::start().await;
    let config = Config::default();
    let file = abroad.path("token");
    std::fs::write(&file, &config.application.trusted_token).unwrap();
    let principal = principal(&config.application.client_secret, &config);
    let workload = [principal[0], principal[1], ("AZURE_FEDERATED_TOKEN_FILE", &*file)];
    for status in [408, 429, 500, 503, 504] {
        for identity in [&principal, &workload] {
            let body = json!({ "error": "temporarily_unavailable", "error_description": "AADSTS90033: Come back later." });
            let effect = Effect::Status { status, body, headers: [].into() };
            let path_contains = Some("/oauth2/v2.0/token".into());
            let fault = abroad.sim.order_fault(Fault { method: None, path_contains, count: None, effect });
            let output = abroad.preflight(PUBLIC, identity).await;
            assert_eq!(output.status.code(), Some(1));
            let printed = printed(&output);
            assert!(
                printed.contains("Azure didn't answer about the operator's sign-in"),
                "{status}: {printed}"
            );
            assert!(!printed.contains("Check AZURE_CLIENT_ID"), "{status}: {printed}");
            abroad.sim.lift_fault(fault).unwrap();
            // It wasn't the identity.
            let output = abroad.preflight(PUBLIC, identity).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let cut = Fault {
        method: None,
        path_contains: Some("/oauth2/v2.0/token".into()),
        count: None,
        effect: Effect::CutBody,
    };
    abroad.sim.order_fault(cut);
    let printed = printed(&abroad.preflight(PUBLIC, &principal).await);
    assert!(printed.contains("Azure didn't answer about the operator's sign-in"), "{printed}");
}

#[tokio::test]
async fn each_cloud_has_an_authority_an_arm_and_an_audience_of_its_own() {
    let table = [
        (PUBLIC, "login.microsoftonline.com", "management.azure.com"),
        ("AzureUSGovernmentCloud", "login.microsoftonline.us", "management.usgovcloudapi.net"),
        ("AzureChinaCloud", "login.chinacloudapi.cn", "management.chinacloudapi.cn"),
    ];
    let config = Config::default();
    for (cloud, authority, arm) in table {
        let abroad = Abroad::start().await;
        let output = abroad.preflight(cloud, &principal(&config.application.client_secret, &config)).await;
        assert!(output.status.success(), "{cloud}: {}", printed(&output));
        assert_eq!(abroad.proxy.tunnels(), [format!("{authority}:443"), format!("{arm}:443")]);
        let entra = abroad.asked_entra();
        assert_eq!(entra.len(), 1);
        assert_eq!(entra[0].host, authority);
        assert_eq!(entra[0].request.as_ref().unwrap()["scope"], format!("https://{arm}/.default"));
        let mut others = abroad.sim.log();
        others.retain(|entry| entry.path.starts_with("/subscriptions/"));
        assert!(!others.is_empty() && others.iter().all(|entry| entry.host == arm && entry.status < 500));
    }
}

#[tokio::test]
async fn an_authority_of_ones_own_takes_the_place_of_the_clouds() {
    let abroad = Abroad::start().await;
    let config = Config::default();
    let mut env = principal(&config.application.client_secret, &config).to_vec();
    env.push(("AZURE_AUTHORITY_HOST", "https://login.private.example/"));
    let output = abroad.preflight(PUBLIC, &env).await;
    assert!(output.status.success(), "{}", printed(&output));
    assert_eq!(abroad.proxy.tunnels(), ["login.private.example:443", "management.azure.com:443"]);
}

#[tokio::test]
async fn a_server_with_an_untrusted_certificate_gets_no_secret() {
    let abroad = Abroad::start().await;
    let config = Config::default();
    std::fs::write(abroad.path("none"), "").unwrap();
    let env = principal(&config.application.client_secret, &config);
    let output = abroad.preflight_trusting(&abroad.path("none"), PUBLIC, &env).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(printed(&output).contains("certificate"), "{}", printed(&output));
    assert_eq!(abroad.sim.log().len(), 0);
}

#[tokio::test]
async fn a_lacking_permission_makes_preflight_fail_and_shows_the_command_that_grants_it() {
    let abroad = Abroad::start().await;
    let config = Config::default();
    let write = "Microsoft.Network/networkInterfaces/write";
    abroad.sim.deny(vec![write.into()]);
    let output = abroad.preflight(PUBLIC, &principal(&config.application.client_secret, &config)).await;
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.lines().any(|line| line.starts_with("MISSING") && line.contains(write)), "{table}");
    assert!(table.contains("az role assignment create"), "{table}");
}

/// A client with the machine's identity.
fn managed(sim: &Sim, client_id: Option<&str>) -> Azure {
    let url = sim.arm_url().parse::<reqwest::Url>().unwrap();
    let credential = Credential::ManagedIdentity { client_id: client_id.map(str::to_owned) };
    let (endpoint, imds) = (Some(url.clone()), Some(url));
    Azure::new(&azure::Config {
        cloud: Cloud::Public,
        endpoint,
        imds,
        credential,
        versions: ApiVersions::of(Cloud::Public),
        budget_percent: 80,
        dry_run: false,
    })
    .unwrap()
}

fn tokens_asked(sim: &Sim) -> Vec<LogEntry> {
    sim.log().into_iter().filter(|entry| entry.path == "/metadata/identity/oauth2/token").collect()
}

fn refuse_tokens(sim: &Sim, status: u16, count: Option<u64>) -> u64 {
    let body = json!({ "error": "invalid_request", "error_description": "Identity not found" });
    let effect = Effect::Status { status, body, headers: [].into() };
    sim.order_fault(Fault { method: None, path_contains: Some("oauth2/token".into()), count, effect })
}

async fn read(world: &World, azure: &Azure) -> Result<(), Error> {
    azure.nic(&world.nic, Freshness::Fresh, Priority::WaitingPods).await.map(drop)
}

#[tokio::test]
async fn the_machines_own_identity_and_a_user_assigned_one_sign_in_at_the_metadata_service() {
    let world = World::start("nodes", 0.2).await;
    let known = Config::default().application.client_id;
    for (client_id, query) in [(None, None), (Some(&*known), Some(format!("client_id={known}")))] {
        world.sim.clear_log();
        read(&world, &managed(&world.sim, client_id)).await.unwrap();
        let asked = tokens_asked(&world.sim);
        assert_eq!(asked.len(), 1);
        assert!(asked[0].query.contains("resource=https%3A%2F%2Fmanagement.azure.com"), "{}", asked[0].query);
        let id = asked[0].query.split('&').find(|field| field.starts_with("client_id")).map(str::to_owned);
        assert_eq!(id, query);
    }
    let error = read(&world, &managed(&world.sim, Some("nobody"))).await.unwrap_err();
    assert!(matches!(error, Error::Credential { .. }), "{error}");
    assert!(error.to_string().contains("the VM has the managed identity"), "{error}");
}

/// Microsoft, "How to use managed identities on a VM to acquire an access token": 404, 410, 429 and 5xx are
/// to be retried.
#[tokio::test]
async fn the_metadata_service_is_asked_again_as_its_documents_demand() {
    for status in [404, 410, 429, 500, 503] {
        let world = World::start("nodes", 0.2).await;
        refuse_tokens(&world.sim, status, Some(1));
        read(&world, &managed(&world.sim, None)).await.unwrap();
        assert_eq!(tokens_asked(&world.sim).len(), 2, "{status}");
    }
    let world = World::start("nodes", 0.2).await;
    refuse_tokens(&world.sim, 400, Some(1));
    read(&world, &managed(&world.sim, None)).await.unwrap_err();
    assert_eq!(tokens_asked(&world.sim).len(), 1);
}

#[tokio::test]
async fn a_token_that_can_not_be_replaced_is_used_until_it_ends_and_work_goes_on_when_there_is_a_new_one() {
    let world = World::lasting(20).await;
    let azure = managed(&world.sim, None);
    read(&world, &azure).await.unwrap();
    let first = std::time::Instant::now();
    let fault = refuse_tokens(&world.sim, 400, None);
    let mut refused = None;
    let mut reads = 0;
    while refused.is_none() {
        match read(&world, &azure).await {
            Ok(()) => reads += 1,
            Err(error) => refused = Some((error, first.elapsed())),
        }
        assert!(first.elapsed() < Duration::from_secs(40));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (error, after) = refused.unwrap();
    assert!(matches!(error, Error::Credential { .. }) && error.reason() == "CredentialRefused", "{error}");
    assert!(after > Duration::from_secs(17), "given up {after:?} after the token was made, to last 20 s");
    assert!(reads > 20, "{reads}");
    // One attempt while the token lasted, and one for all callers that came after its end.
    for failed in futures::future::join_all((0..20).map(|_| read(&world, &azure))).await {
        failed.unwrap_err();
    }
    assert_eq!(tokens_asked(&world.sim).len(), 3);
    world.sim.lift_fault(fault).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(8);
    while read(&world, &azure).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "it can sign in, but doesn't");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_token_that_arm_refuses_before_its_end_is_replaced() {
    let world = World::start("nodes", 0.2).await;
    let azure = managed(&world.sim, None);
    read(&world, &azure).await.unwrap();
    let body: Value = json!({ "error": { "code": "InvalidAuthenticationToken", "message": "The access token is revoked." } });
    let effect = Effect::Status { status: 401, body, headers: [].into() };
    let path_contains = Some("networkInterfaces".into());
    world.sim.order_fault(Fault { method: None, path_contains, count: Some(1), effect });
    let error = read(&world, &azure).await.unwrap_err();
    assert!(matches!(error, Error::Credential { .. }), "{error}");
    read(&world, &azure).await.unwrap();
    assert_eq!(tokens_asked(&world.sim).len(), 2);
}

/// Microsoft, "How to use managed identities for Azure resources on an Azure VM": the service keeps a token
/// until it ends, and can't be made to give another.
#[tokio::test]
async fn a_token_that_arm_keeps_refusing_is_not_asked_for_again_and_again() {
    let world = World::start("nodes", 0.2).await;
    let azure = managed(&world.sim, None);
    let fault = |path: &str, status, body| {
        let effect = Effect::Status { status, body, headers: [].into() };
        world.sim.order_fault(Fault { method: None, path_contains: Some(path.into()), count: None, effect })
    };
    let ends = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 86_400;
    let token = json!({ "access_token": "the-same", "expires_in": "86400", "expires_on": ends.to_string(),
        "resource": "https://management.azure.com", "token_type": "Bearer" });
    fault("oauth2/token", 200, token);
    let refused = json!({ "error": { "code": "InvalidAuthenticationToken", "message": "The access token is revoked." } });
    let fault = fault("networkInterfaces", 401, refused);
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        for failed in futures::future::join_all((0..20).map(|_| read(&world, &azure))).await {
            let error = failed.unwrap_err();
            assert!(matches!(error, Error::Credential { .. }), "{error}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(tokens_asked(&world.sim).len(), 2, "one, and one more after it was refused");
    world.sim.lift_fault(fault).unwrap();
    let deadline = begun + Duration::from_secs(12);
    let mut outcome = read(&world, &azure).await;
    while outcome.as_ref().is_err_and(|error| matches!(error, Error::Credential { .. })) {
        assert!(std::time::Instant::now() < deadline, "not tried again: {outcome:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        outcome = read(&world, &azure).await;
    }
    outcome.unwrap();
}
