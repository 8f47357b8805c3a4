//! The preflight's findings, for nodes and for groups, with permissions that can be read and with some that
//! can't.

use axum::Json;
use serde_json::{Value, json};
use vnetpool_azure_sim::{Access, DenyAssignment, Grant, Lock, LockLevel, NewInstance, NewScaleSet};
use vnetpool_operator::azure::role::{NODES, PARTS};
use vnetpool_operator::preflight::{self, Findings, Subject};

use crate::simulated::World;

const PERMISSIONS: &str = "Microsoft.Authorization/permissions/read";

/// An API server that knows Nodes and, if there are any, NodeIPPools, and a client of it.
async fn cluster(nodes: Value, pools: Option<Value>) -> anyhow::Result<kube::Client> {
    let list = |kind: &str, version: &str, items: Value| {
        let list =
            json!({ "kind": format!("{kind}List"), "apiVersion": version, "metadata": {}, "items": items });
        axum::routing::get(move || async move { Json(list) })
    };
    let mut app = axum::Router::new().route("/api/v1/nodes", list("Node", "v1", nodes));
    if let Some(pools) = pools {
        let route = list("NodeIPPool", "vnetpool.io/v1alpha1", pools);
        app = app.route("/apis/vnetpool.io/v1alpha1/nodeippools", route);
    }
    let kube_proxy = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "kube-proxy" },
        "data": { "config.conf": "clusterCIDR: 10.244.0.0/16\ndetectLocalMode: \"\"\n" } });
    app = app.route(
        "/api/v1/namespaces/kube-system/configmaps/kube-proxy",
        axum::routing::get(move || async move { Json(kube_proxy) }),
    );
    // As the API server itself answers that there is no such kind.
    let unknown = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": "the server could not find the requested resource" });
    let app = app.fallback(move || async move { (axum::http::StatusCode::NOT_FOUND, Json(unknown)) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?).parse()?;
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(kube::Client::try_from(kube::Config::new(url))?)
}

fn node(name: &str, provider_id: &str, pool: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "kubernetes.azure.com/agentpool": pool } }, "spec": { "providerID": provider_id } })
}

async fn of_nodes(world: &World) -> Findings {
    let nodes = json!([
        node("node-1", &format!("azure://{}", world.vm), "a"),
        node("node-2", &format!("azure://{}2", world.vm), "a"),
        node("elsewhere", "aws:///eu-west-1a/i-0abc", "b"),
    ]);
    preflight::run(&world.azure, Subject::Nodes, async || cluster(nodes, None).await).await.unwrap()
}

async fn of_group(world: &World) -> Findings {
    let subnet =
        format!("{}/providers/Microsoft.Network/virtualNetworks/vnet/subnets/nodes", world.nic.group());
    let subject = Subject::Group { id: world.nic.group(), subnet: Some(subnet.parse().unwrap()) };
    preflight::run(&world.azure, subject, async || anyhow::bail!("no cluster is needed")).await.unwrap()
}

/// A role with all but `left_out`, in two assignments, so that they come on two pages.
fn grant(world: &World, left_out: &[&str]) {
    let all = PARTS.iter().flat_map(|part| part.actions).map(|action| action.name).chain([PERMISSIONS]);
    let (some, others): (Vec<String>, Vec<String>) = all
        .filter(|name| !left_out.contains(name))
        .map(str::to_owned)
        .partition(|name| name.contains("Compute"));
    let grant = |actions| Grant { scope: world.nic.group(), actions, not_actions: vec![] };
    world.sim.control(Access { grants: vec![grant(some), grant(others)], ..Access::default() });
}

fn line<'a>(report: &'a str, action: &str) -> &'a str {
    report.lines().find(|line| line.contains(action)).unwrap_or_else(|| panic!("no {action} in\n{report}"))
}

#[tokio::test]
async fn preflight_finds_nothing_missing_where_the_role_is_assigned_and_changes_nothing() {
    let world = World::start("nodes", 0.2).await;
    grant(&world, &[]);
    let before = world.sim.state();
    for report in [of_nodes(&world).await, of_group(&world).await] {
        assert_eq!(report.lacks(), 0, "{report}");
        let text = report.to_string();
        for action in NODES.actions {
            assert!(line(&text, action.name).starts_with("granted"), "{text}");
        }
    }
    assert_eq!(world.sim.state(), before);
    let text = of_nodes(&world).await.to_string();
    assert!(text.contains("kube-proxy: it takes 10.244.0.0/16 for pods"), "{text}");
    // One node stands for all of its kind.
    assert!(!world.arm_log().iter().any(|entry| entry.path.ends_with("node-12")), "{:?}", world.asked());
}

#[tokio::test]
async fn preflight_names_each_missing_permission_and_where_to_grant_it() {
    let world = World::start("nodes", 0.2).await;
    for action in NODES.actions {
        grant(&world, &[action.name]);
        for report in [of_nodes(&world).await, of_group(&world).await] {
            assert_eq!(report.lacks(), 1, "without {}:\n{report}", action.name);
            let text = report.to_string();
            let missing = line(&text, action.name);
            assert!(missing.starts_with("MISSING"), "{text}");
            let scope = missing.rsplit(' ').next().unwrap();
            assert!(scope.starts_with("/subscriptions/"), "{text}");
            assert!(text.contains(&format!("--scope {scope}\n")), "{text}");
        }
    }
}

#[tokio::test]
async fn preflight_tries_harmless_calls_where_permissions_are_unreadable() {
    let world = World::start("nodes", 0.2).await;
    grant(&world, &[PERMISSIONS]);
    let text = of_nodes(&world).await.to_string();
    for action in NODES.actions {
        let expected = if action.name.contains("operations") { "untested" } else { "granted" };
        assert!(line(&text, action.name).starts_with(expected), "{text}");
    }
    let join = "Microsoft.Network/virtualNetworks/subnets/join/action";
    for action in [
        "Microsoft.Compute/virtualMachines/read",
        "Microsoft.Network/virtualNetworks/read",
        "Microsoft.Network/networkInterfaces/write",
        join,
    ] {
        grant(&world, &[PERMISSIONS, action]);
        let report = of_nodes(&world).await;
        assert_eq!(report.lacks(), 1, "without {action}:\n{report}");
        assert!(line(&report.to_string(), action).starts_with("MISSING"), "{report}");
    }
    // Without a NIC there is nothing to try to write.
    grant(&world, &[PERMISSIONS, "Microsoft.Compute/virtualMachines/read", join]);
    let report = of_group(&world).await;
    let text = report.to_string();
    assert_eq!(report.lacks(), 1, "{text}");
    assert!(line(&text, "virtualMachines/read").starts_with("MISSING"), "{text}");
    assert!(line(&text, join).starts_with("untested"), "{text}");
    let written =
        world.arm_log().into_iter().filter(|entry| entry.method == "PUT" && entry.status < 400).count();
    assert_eq!(written, 0);
}

#[tokio::test]
async fn preflight_finds_a_lock_and_a_deny_assignment_that_no_role_shows() {
    let world = World::start("nodes", 0.2).await;
    let group = world.nic.group();
    let write = "Microsoft.Network/networkInterfaces/write";
    let locked = |level| Access { locks: vec![Lock { scope: group.clone(), level }], ..Access::default() };
    let lockdown = DenyAssignment {
        name: "AKS node resource group lockdown".into(),
        scope: group.clone(),
        not_actions: vec!["*/read".into()],
    };
    let table = [
        (locked(LockLevel::CanNotDelete), None),
        (locked(LockLevel::ReadOnly), Some("Remove the lock on")),
        (
            Access { deny_assignments: vec![lockdown], ..Access::default() },
            Some("--nrg-lockdown-restriction-level Unrestricted"),
        ),
    ];
    for (access, remedy) in table {
        world.sim.control(access);
        let report = of_nodes(&world).await;
        let text = report.to_string();
        match remedy {
            None => assert_eq!(report.lacks(), 0, "{text}"),
            Some(remedy) => {
                assert_eq!(report.lacks(), 1, "{text}");
                assert!(line(&text, write).starts_with("FORBIDDEN") && text.contains(remedy), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn preflight_checks_resources_that_pools_name() {
    let world = World::start("nodes", 0.2).await;
    let network = format!("{}/providers/Microsoft.Network", world.nic.group());
    let (group, balanced) = (
        format!("{network}/applicationSecurityGroups/web"),
        format!("{network}/loadBalancers/l/backendAddressPools/b"),
    );
    let pool = json!({ "metadata": { "name": "web" }, "spec": {
        "applicationSecurityGroups": { "ids": [group] },
        "attachments": { "backendPools": [{ "name": "b", "id": balanced }] },
    } });
    let report = async || {
        let nodes = json!([node("node-1", &format!("azure://{}", world.vm), "a")]);
        let client = async || cluster(nodes, Some(json!([pool]))).await;
        preflight::run(&world.azure, Subject::Nodes, client).await.unwrap()
    };
    for (action, scope) in [
        ("Microsoft.Network/applicationSecurityGroups/joinIpConfiguration/action", group.as_str()),
        ("Microsoft.Network/loadBalancers/backendAddressPools/join/action", balanced.as_str()),
    ] {
        grant(&world, &[]);
        let granted = report().await.to_string();
        assert!(
            line(&granted, action).starts_with("granted") && granted.contains("NodeIPPool web"),
            "{granted}"
        );
        grant(&world, &[action]);
        let lacking = report().await.to_string();
        assert!(line(&lacking, action).starts_with("MISSING"), "{lacking}");
        assert!(line(&lacking, action).ends_with(scope), "{lacking}");
    }
}

/// A Uniform scale set's instance as the only node.
async fn of_instance(world: &World) -> Findings {
    let instance = world.sim.machine("pool_0").unwrap();
    let provider_id = format!("azure://{}", instance["id"].as_str().unwrap());
    let client = async || cluster(json!([node("pool000000", &provider_id, "a")]), None).await;
    preflight::run(&world.azure, Subject::Nodes, client).await.unwrap()
}

#[tokio::test]
async fn preflight_tests_exactly_the_actions_for_an_instance_of_a_uniform_scale_set() {
    let world = World::start("nodes", 0.2).await;
    world.sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() }).unwrap();
    world
        .sim
        .add_instance("pool", NewInstance { instance_id: Some(0), ..NewInstance::default() })
        .await
        .unwrap();
    let sets = "Microsoft.Compute/virtualMachineScaleSets/virtualMachines";
    let own = [
        format!("{sets}/read"),
        format!("{sets}/write"),
        format!("{sets}/networkInterfaces/read"),
        "Microsoft.Compute/locations/operations/read".to_owned(),
    ];
    grant(&world, &[]);
    let before = world.sim.state();
    let report = of_instance(&world).await;
    assert_eq!(report.lacks(), 0, "{report}");
    let text = report.to_string();
    assert!(own.iter().all(|action| line(&text, action).starts_with("granted")), "{text}");
    // Permissions for machines and NICs that are written as resources of their own aren't asked for.
    for other in ["Microsoft.Compute/virtualMachines/read", "Microsoft.Network/networkInterfaces/write"] {
        assert!(!text.contains(other), "{text}");
    }
    assert_eq!(world.sim.state(), before);
    for action in &own {
        grant(&world, &[action]);
        let report = of_instance(&world).await;
        assert_eq!(report.lacks(), 1, "without {action}:\n{report}");
        assert!(line(&report.to_string(), action).starts_with("MISSING"), "{report}");
    }
    // Permissions that can't be read are tried: a write to the instance that no etag of its fits.
    grant(&world, &[PERMISSIONS]);
    let text = of_instance(&world).await.to_string();
    assert!(line(&text, &own[1]).starts_with("granted"), "{text}");
    grant(&world, &[PERMISSIONS, &own[1]]);
    let report = of_instance(&world).await;
    assert_eq!(report.lacks(), 1, "{report}");
    assert!(line(&report.to_string(), &own[1]).starts_with("MISSING"), "{report}");
    assert_eq!(world.sim.state(), before);
    // No write got in, not even one that would have left all as it is.
    let log = world.arm_log();
    let mut writes = log.iter().filter(|entry| entry.method == "PUT").peekable();
    assert!(writes.peek().is_some() && writes.all(|entry| [403, 412].contains(&entry.status)), "{log:?}");
}
