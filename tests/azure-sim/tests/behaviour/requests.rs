//! What any request meets: etags, writes that take time, faults, limits, permissions.

use crate::client::{Answer, Client, path_of};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use vnetpool_azure_sim::{Config, Effect, Ending, Fault, NewVm, Settings, Sim};

/// A simulator with one VM.
struct Scene {
    sim: Sim,
    client: Client,
    /// Path and query of its NIC.
    nic: String,
}

impl Scene {
    /// With writes that take so long, where Azure needs 10 s.
    async fn with_writes_of(write_seconds: f64) -> Self {
        let sim = Sim::start(Config { write_seconds, ..Config::default() }).await.unwrap();
        let vm = sim.add_vm(NewVm { name: "a".into(), ..NewVm::default() }).await.unwrap();
        let client = Client::of(&sim);
        Self { sim, client, nic: format!("{}?api-version=2024-03-01", vm.nic_id) }
    }

    async fn nic(&self) -> Value {
        self.client.get(&self.nic).await.body
    }

    /// The NIC's document with one ipConfiguration more.
    async fn nic_with(&self, name: &str) -> Value {
        let mut body = self.nic().await;
        let added = json!({ "name": name, "properties": {} });
        body["properties"]["ipConfigurations"].as_array_mut().unwrap().push(added);
        body
    }

    async fn poll(&self, write: &Answer) -> Value {
        self.client.get(path_of(&write.headers["azure-asyncoperation"])).await.body
    }
}

fn names(nic: &Value) -> Vec<&str> {
    nic["properties"]["ipConfigurations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_write_to_a_running_vm_takes_azures_ten_seconds_by_default() {
    let scene = Scene::with_writes_of(Config::default().write_seconds).await;
    let write = scene.client.put(&scene.nic, &scene.nic_with("vnp-1").await).await;
    assert_eq!((write.status, write.headers["retry-after"].as_str()), (200, "10"));
    assert_eq!(write.body["properties"]["provisioningState"], "Updating");
    assert_eq!(scene.poll(&write).await, json!({ "status": "InProgress" }));
    let nic = scene.nic().await;
    assert_eq!(names(&nic), ["ipconfig1", "vnp-1"], "a GET shows the new list while it lasts");
    assert_eq!(nic["properties"]["ipConfigurations"][1]["properties"]["provisioningState"], "Updating");
}

#[tokio::test]
async fn a_write_ends_with_a_new_etag() {
    let scene = Scene::with_writes_of(0.1).await;
    let write = scene.client.put(&scene.nic, &scene.nic_with("vnp-1").await).await;
    assert_eq!(scene.client.outcome(&write).await, json!({ "status": "Succeeded" }));
    let nic = scene.nic().await;
    assert_eq!(nic["properties"]["ipConfigurations"][1]["properties"]["provisioningState"], "Succeeded");
    assert_ne!(nic["etag"], write.body["etag"]);
}

#[tokio::test]
async fn a_nic_without_a_vm_is_written_at_once() {
    let scene = Scene::with_writes_of(10.0).await;
    scene.sim.delete_vm("a", true).await.unwrap();
    let write = scene.client.put(&scene.nic, &scene.nic_with("vnp-1").await).await;
    assert_eq!((write.status, write.headers.get("azure-asyncoperation")), (200, None));
    assert_eq!(write.body["properties"]["provisioningState"], "Succeeded");
}

#[tokio::test]
async fn an_old_etag_is_refused_and_the_present_one_is_not() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.nic().await;
    let etag = body["etag"].as_str().unwrap();
    scene.sim.patch_nic("a-nic", &json!({ "tags": { "by": "somebody else" } })).await.unwrap();
    let refused = scene.client.send("PUT", &scene.nic, &[("if-match", etag)], Some(&body)).await.unwrap();
    assert_eq!((refused.status, refused.code()), (412, "PreconditionFailed"));
    assert_eq!(refused.body["error"]["details"][0]["code"], "PreconditionFailedEtagMismatch");
    let body = scene.nic().await;
    let etag = body["etag"].as_str().unwrap();
    let taken = scene.client.send("PUT", &scene.nic, &[("if-match", etag)], Some(&body)).await.unwrap();
    assert_eq!(taken.status, 200);
}

#[tokio::test]
async fn a_newer_write_cancels_the_older_one() {
    let scene = Scene::with_writes_of(3.0).await;
    let first = scene.client.put(&scene.nic, &scene.nic_with("vnp-1").await).await;
    let second = scene.client.put(&scene.nic, &scene.nic_with("vnp-2").await).await;
    let canceled = scene.poll(&first).await;
    assert_eq!(canceled["status"], "Canceled");
    assert_eq!(canceled["error"]["details"][0]["code"], "CanceledAndSupersededDueToAnotherOperation");
    assert_eq!(scene.client.outcome(&second).await["status"], "Succeeded");
    assert_eq!(names(&scene.nic().await), ["ipconfig1", "vnp-1", "vnp-2"]);
}

#[tokio::test]
async fn ids_are_the_same_in_any_letter_case() {
    let scene = Scene::with_writes_of(0.0).await;
    let shouted = scene.nic.to_uppercase().replace("?API-VERSION", "?api-version");
    assert_eq!(scene.client.get(&shouted).await.body, scene.nic().await);
}

#[tokio::test]
async fn an_operation_is_shown_only_to_a_client_with_its_signed_address() {
    let scene = Scene::with_writes_of(10.0).await;
    let write = scene.client.put(&scene.nic, &scene.nic_with("vnp-1").await).await;
    let address = path_of(&write.headers["azure-asyncoperation"]);
    assert!(address.len() > 4096, "signed addresses are long");
    for forged in [address.replace("&s=", "&s=x"), address.replacen("%2F", "/", 1), format!("{address}&x=y")]
    {
        assert_eq!(scene.client.get(&forged).await.status, 404);
    }
}

#[tokio::test]
async fn a_token_and_an_api_version_are_required() {
    let scene = Scene::with_writes_of(0.0).await;
    let anonymous = scene.client.send("GET", &scene.nic, &[("authorization", "")], None).await.unwrap();
    assert_eq!((anonymous.status, anonymous.code()), (401, "AuthenticationFailed"));
    assert!(anonymous.headers["www-authenticate"].starts_with("Bearer "));
    let unversioned = scene.client.get(scene.nic.split('?').next().unwrap()).await;
    assert_eq!((unversioned.status, unversioned.code()), (400, "MissingApiVersionParameter"));
}

#[tokio::test]
async fn a_denied_action_is_refused_in_azures_words() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.nic().await;
    scene.sim.deny(vec!["Microsoft.Network/networkInterfaces/write".into()]);
    let refused = scene.client.put(&scene.nic, &body).await;
    assert_eq!((refused.status, refused.code()), (403, "AuthorizationFailed"));
    assert_eq!(scene.client.get(&scene.nic).await.status, 200, "reading was not denied");
    scene.sim.deny(vec!["Microsoft.Network/virtualNetworks/subnets/join/action".into()]);
    assert_eq!(scene.client.put(&scene.nic, &body).await.code(), "LinkedAuthorizationFailed");
}

#[tokio::test]
async fn a_burst_is_throttled_unless_limits_are_off() {
    let scene = Scene::with_writes_of(0.0).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let refused = loop {
        let answer = scene.client.get(&scene.nic).await;
        if answer.status != 200 {
            break answer;
        }
        assert!(Instant::now() < deadline, "nothing was throttled");
    };
    assert_eq!(refused.status, 429);
    assert!(refused.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    scene.sim.set(&Settings { limits: Some(false), ..Settings::default() }).unwrap();
    assert_eq!(scene.client.get(&scene.nic).await.status, 200);
}

fn fault(method: &str, count: Option<u64>, effect: Effect) -> Fault {
    Fault { method: Some(method.into()), path_contains: Some("NETWORKINTERFACES".into()), count, effect }
}

#[tokio::test]
async fn an_ordered_status_strikes_as_often_as_ordered_and_applies_nothing() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.nic_with("vnp-1").await;
    let effect = Effect::Status {
        status: 429,
        body: json!({ "error": { "code": "RetryableError", "message": "later" } }),
        headers: [("retry-after".to_owned(), "7".to_owned())].into(),
    };
    let id = scene.sim.order_fault(fault("PUT", Some(1), effect));
    let struck = scene.client.put(&scene.nic, &body).await;
    assert_eq!((struck.status, struck.headers["retry-after"].as_str()), (429, "7"));
    assert_eq!(names(&scene.nic().await), ["ipconfig1"]);
    assert_eq!(scene.client.put(&scene.nic, &body).await.status, 200);
    let standing = scene.sim.faults();
    assert_eq!((standing[0].id, standing[0].hits), (id, 1));
    assert_eq!(
        scene.sim.log().iter().filter(|entry| entry.method == "PUT").count(),
        2,
        "both are in the log"
    );
}

#[tokio::test]
async fn a_held_answer_goes_out_when_the_fault_is_lifted_and_was_applied_before() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.nic_with("vnp-1").await;
    let id = scene.sim.order_fault(fault("PUT", None, Effect::Hold));
    let write = scene.client.put(&scene.nic, &body);
    tokio::pin!(write);
    while names(&scene.nic().await).len() < 2 {
        let pending = tokio::time::timeout(Duration::from_millis(10), &mut write).await;
        assert!(pending.is_err(), "the answer went out");
    }
    scene.sim.lift_fault(id).unwrap();
    assert_eq!(write.await.status, 200);
}

#[tokio::test]
async fn a_request_held_before_it_is_applied_is_applied_though_its_sender_has_gone() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.nic_with("vnp-1").await;
    let id = scene.sim.order_fault(fault("PUT", None, Effect::HoldBefore));
    {
        let write = scene.client.put(&scene.nic, &body);
        tokio::pin!(write);
        while scene.sim.faults()[0].hits == 0 {
            let pending = tokio::time::timeout(Duration::from_millis(10), &mut write).await;
            assert!(pending.is_err(), "the answer went out");
        }
    }
    assert_eq!(names(&scene.nic().await), ["ipconfig1"]);
    scene.sim.lift_fault(id).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while names(&scene.nic().await).len() < 2 {
        assert!(Instant::now() < deadline, "the request was lost");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_cut_connection_gives_no_answer_to_a_request_that_was_applied() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.nic_with("vnp-1").await;
    scene.sim.order_fault(fault("PUT", Some(1), Effect::CutAfterApply));
    assert!(scene.client.send("PUT", &scene.nic, &[], Some(&body)).await.is_err());
    assert_eq!(names(&scene.nic().await), ["ipconfig1", "vnp-1"]);
}

#[tokio::test]
async fn a_connection_cut_at_once_applies_nothing() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.nic_with("vnp-1").await;
    scene.sim.order_fault(fault("PUT", Some(1), Effect::CutBeforeApply));
    assert!(scene.client.send("PUT", &scene.nic, &[], Some(&body)).await.is_err());
    assert_eq!(names(&scene.nic().await), ["ipconfig1"]);
}

#[tokio::test]
async fn half_a_body_comes_short_of_its_content_length() {
    let scene = Scene::with_writes_of(0.0).await;
    let whole = scene.client.get(&scene.nic).await;
    scene.sim.order_fault(fault("GET", Some(1), Effect::CutBody));
    let half = scene.client.get(&scene.nic).await;
    assert_eq!((half.status, &half.headers["content-length"]), (200, &whole.headers["content-length"]));
    let got = half.body.as_str().unwrap().len();
    assert_eq!(got, whole.headers["content-length"].parse::<usize>().unwrap() / 2);
}

#[tokio::test]
async fn an_operation_ends_as_ordered_and_leaves_a_failed_nic_until_the_next_write() {
    let scene = Scene::with_writes_of(0.1).await;
    for status in [Ending::Failed, Ending::Canceled] {
        let body = scene.nic_with("vnp-1").await;
        let error =
            json!({ "code": "NetworkingInternalOperationError", "message": "An unexpected error occurred." });
        scene.sim.order_fault(fault("PUT", Some(1), Effect::OperationEnds { status, error: error.clone() }));
        let write = scene.client.put(&scene.nic, &body).await;
        assert_eq!(scene.client.outcome(&write).await, json!({ "status": status, "error": error }));
        let nic = scene.nic().await;
        assert_eq!(nic["properties"]["provisioningState"], "Failed");
        assert_eq!(nic["properties"]["ipConfigurations"][1]["properties"]["provisioningState"], "Failed");
        let again = scene.client.put(&scene.nic, &nic).await;
        assert_eq!(scene.client.outcome(&again).await["status"], "Succeeded");
        assert_eq!(scene.nic().await["properties"]["provisioningState"], "Succeeded");
        scene
            .sim
            .patch_nic(
                "a-nic",
                &json!({ "properties": { "ipConfigurations": [body["properties"]["ipConfigurations"][0]] } }),
            )
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn writes_are_complete_when_answered_if_so_set() {
    let scene = Scene::with_writes_of(10.0).await;
    scene.sim.set(&Settings { synchronous: Some(true), ..Settings::default() }).unwrap();
    let write = scene.client.put(&scene.nic, &scene.nic_with("vnp-1").await).await;
    assert_eq!((write.status, write.headers.get("azure-asyncoperation")), (200, None));
    assert_eq!(write.body["properties"]["provisioningState"], "Succeeded");
}

#[tokio::test]
async fn the_metadata_service_wants_its_header_and_no_proxy() {
    let scene = Scene::with_writes_of(0.0).await;
    let path = "/metadata/instance/network?api-version=2021-02-01";
    let send =
        |headers: &'static [(&'static str, &'static str)]| scene.client.send("GET", path, headers, None);
    let shown = send(&[("metadata", "true")]).await.unwrap();
    assert_eq!(shown.body["interface"][0]["ipv4"]["ipAddress"][0]["privateIpAddress"], "10.240.0.4");
    assert_eq!(send(&[]).await.unwrap().status, 400);
    assert_eq!(send(&[("metadata", "true"), ("x-forwarded-for", "1.2.3.4")]).await.unwrap().status, 400);
}

#[tokio::test]
async fn the_metadata_service_lags_behind_the_nic_if_so_set() {
    let scene = Scene::with_writes_of(0.0).await;
    let listed = || async {
        let path = "/metadata/instance/network/interface/0/ipv4/ipAddress?api-version=2021-02-01";
        let answer = scene.client.send("GET", path, &[("metadata", "true")], None).await.unwrap();
        answer.body.as_array().unwrap().len()
    };
    scene.client.put(&scene.nic, &scene.nic_with("vnp-1").await).await;
    assert_eq!(listed().await, 2);
    let lag = |lags| scene.sim.set(&Settings { metadata_lags: Some(lags), ..Settings::default() }).unwrap();
    lag(true);
    scene.client.put(&scene.nic, &scene.nic_with("vnp-2").await).await;
    assert_eq!(listed().await, 2);
    lag(false);
    assert_eq!(listed().await, 3);
}

#[tokio::test]
async fn a_deleted_vm_takes_its_nic_along_and_frees_its_address() {
    let scene = Scene::with_writes_of(0.0).await;
    scene.sim.delete_vm("a", false).await.unwrap();
    assert_eq!(scene.client.get(&scene.nic).await.code(), "ResourceNotFound");
    let next = scene.sim.add_vm(NewVm { name: "b".into(), ..NewVm::default() }).await.unwrap();
    assert_eq!(next.address.to_string(), "10.240.0.4");
    assert!(scene.sim.delete_vm("a", false).await.is_err(), "there is none any more");
}

#[tokio::test]
async fn the_log_has_bodies_and_the_etag_that_was_asked_for() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.nic().await;
    scene.client.send("PUT", &scene.nic, &[("if-match", "*")], Some(&body)).await.unwrap();
    let log = scene.sim.log();
    let write = log.iter().find(|entry| entry.method == "PUT").unwrap();
    assert_eq!(
        (write.request.as_ref(), write.status, write.if_match.as_deref()),
        (Some(&body), 200, Some("*"))
    );
    assert_eq!(write.caller, "127.0.0.1");
}

#[tokio::test]
async fn application_security_groups_are_of_the_nics_region_and_all_members_of_one_network() {
    let scene = Scene::with_writes_of(0.0).await;
    let network = scene.nic.split("/networkInterfaces/").next().unwrap().to_owned();
    for (name, location) in [("here", "westeurope"), ("elsewhere", "northeurope")] {
        let path = format!("{network}/applicationSecurityGroups/{name}?api-version=2024-03-01");
        let made = scene.client.put(&path, &json!({ "location": location, "properties": {} })).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    let space = json!({ "addressPrefixes": ["10.60.0.0/16"] });
    let far = json!({ "location": "westeurope", "properties": { "addressSpace": space,
        "subnets": [{ "name": "far", "properties": { "addressPrefix": "10.60.0.0/24" } }] } });
    scene.client.put(&format!("{network}/virtualNetworks/far?api-version=2024-03-01"), &far).await;
    let vm = NewVm { name: "b".into(), vnet: Some("far".into()), ..NewVm::default() };
    let far = format!("{}?api-version=2024-03-01", scene.sim.add_vm(vm).await.unwrap().nic_id);
    let join = async |nic: &str, group: &str| {
        let mut body = scene.client.get(nic).await.body;
        body["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] =
            json!([{ "id": format!("{network}/applicationSecurityGroups/{group}") }]);
        scene.client.put(nic, &body).await
    };
    assert_eq!(join(&scene.nic, "elsewhere").await.code(), "InvalidResourceReference");
    assert_eq!(join(&scene.nic, "here").await.status, 200);
    let refused = join(&far, "here").await;
    assert_eq!(refused.code(), "NetworkInterfacesOfApplicationSecurityGroupMustBeInSameVnet");
}

#[tokio::test]
async fn a_role_has_a_name_of_its_own_and_is_assigned_within_its_scopes() {
    let scene = Scene::with_writes_of(0.0).await;
    let subscription = "/subscriptions/00000000-0000-0000-0000-000000000001";
    let path = |scope: &str, kind: &str, name: &str| {
        format!("{scope}/providers/Microsoft.Authorization/{kind}/{name}?api-version=2022-04-01")
    };
    let role = |name: &str, actions: Value| {
        json!({ "properties": { "roleName": name, "assignableScopes": [subscription],
            "permissions": [{ "actions": actions }] } })
    };
    let group = format!("{subscription}/resourceGroups/vnetpool");
    let define = async |id: &str, role: Value| {
        scene.client.put(&path(subscription, "roleDefinitions", id), &role).await
    };
    assert_eq!(define("one", role("Ours", json!(["a/b/read"]))).await.status, 201);
    assert_eq!(define("one", role("Ours", json!(["a/b/read", "a/b/write"]))).await.status, 201);
    assert_eq!(define("two", role("Ours", json!(["*"]))).await.code(), "RoleDefinitionWithSameNameExists");
    assert_eq!(define("two", role("Other", json!(["read"]))).await.code(), "InvalidActionOrNotAction");
    let filter = format!("{}&$filter=roleName%20eq%20'Ours'", path(&group, "roleDefinitions", ""));
    let found = scene.client.get(&filter.replace("/?", "?")).await.body;
    assert_eq!(found["value"][0]["name"], "one", "{found}");
    let assign = async |scope: &str, role: &str| {
        let id = format!("{subscription}/providers/Microsoft.Authorization/roleDefinitions/{role}");
        let body = json!({ "properties": { "roleDefinitionId": id, "principalId": "somebody" } });
        scene.client.put(&path(scope, "roleAssignments", "first"), &body).await
    };
    assert_eq!(assign(&group, "one").await.status, 201);
    assert_eq!(assign(&group, "none").await.code(), "RoleDefinitionDoesNotExist");
    let kept = scene.client.get(&path(&group, "roleAssignments", "first")).await.body;
    assert_eq!(kept["properties"]["scope"], group.as_str(), "{kept}");
}

#[tokio::test]
async fn a_client_finds_its_tenants_token_endpoint_and_the_subscriptions_that_it_sees() {
    let scene = Scene::with_writes_of(0.0).await;
    let Config { tenant, subscription, .. } = Config::default();
    let found = scene.client.get(&format!("/{tenant}/v2.0/.well-known/openid-configuration")).await.body;
    let endpoint = found["token_endpoint"].as_str().unwrap();
    assert!(endpoint.ends_with(&format!("/{tenant}/oauth2/v2.0/token")), "{found}");
    let all = scene.client.get("/subscriptions?api-version=2022-12-01").await.body;
    assert_eq!(all["value"].as_array().unwrap().len(), 1);
    let one = scene.client.get(&format!("/subscriptions/{subscription}?api-version=2022-12-01")).await.body;
    assert_eq!((&one, &one["tenantId"]), (&all["value"][0], &json!(tenant)));
}
