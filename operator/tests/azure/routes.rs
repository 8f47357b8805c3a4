//! Route tables, of which one write serves all nodes that wait for it: the node with the most urgent need
//! decides when it goes.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use vnetpool_operator::azure::{Azure, Claim, Error, Priority, ResourceId, RouteChange, Urgency, route_name};

use crate::script::{Script, answer};

fn id() -> ResourceId {
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/routeTables/t".parse().unwrap()
}

fn table(etag: &str, routes: &[(&str, u8)]) -> Value {
    let route = |(node, number): &(&str, u8)| {
        json!({ "name": route_name(node, u32::from(*number)), "properties": {
            "provisioningState": "Succeeded",
            "addressPrefix": format!("10.244.{number}.0/24"),
            "nextHopType": "VirtualAppliance",
            "nextHopIpAddress": format!("10.240.0.{number}"),
        }})
    };
    let routes: Vec<Value> = routes.iter().map(route).collect();
    json!({ "etag": etag, "location": "westeurope",
        "properties": { "provisioningState": "Succeeded", "routes": routes } })
}

fn claim(node: &str, number: u8) -> RouteChange {
    RouteChange::Claim(Claim {
        node: node.into(),
        name: route_name(node, u32::from(number)),
        held: Some((route_name(node, u32::from(number)), format!("10.244.{number}.0/24").parse().unwrap())),
        within: "10.244.0.0/16".parse().unwrap(),
        length: 24,
        next_hop: [10, 240, 0, number].into(),
        avoid: Default::default(),
    })
}

/// For so long Azure wants no writes. The budget goes by the machine's clock, so this is what a slow machine
/// has.
const CLOSED: Duration = Duration::from_secs(4);

/// An Azure that knows the table, with a route for node `a`, and wants no writes for a while.
async fn closed(script: &Script) -> Azure {
    let throttled = json!({ "error": { "code": "SubscriptionRequestsThrottled", "message": "words" } });
    script
        .next(answer(200, table("1", &[("a", 1)])))
        .next(answer(429, throttled).with("retry-after", CLOSED.as_secs()));
    let azure = script.azure();
    azure.change_routes(&id(), claim("b", 2), Priority::WaitingPods).await.unwrap_err();
    azure
}

async fn until_waiting(azure: &Azure, counts: [usize; 5]) {
    let waits = async {
        while azure.waiting().map(|(_, count)| count) != counts {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(CLOSED - Duration::from_millis(500), waits).await.unwrap();
}

fn asked(script: &Script) -> Vec<String> {
    script.heard().iter().map(|one| one.method.to_string()).collect()
}

#[tokio::test]
async fn a_change_that_matters_more_is_taken_along_by_the_write_that_waits_and_has_it_go_sooner() {
    let script = Script::start().await;
    let (azure, table_id) = (closed(&script).await, id());
    let leave = RouteChange::Leave {
        node: "a".into(),
        names: vec![route_name("a", 1)],
        next_hop: [10, 240, 0, 1].into(),
    };
    let (left, claimed, ()) = tokio::join!(
        azure.change_routes(&table_id, leave, Priority::GiveBack),
        async {
            until_waiting(&azure, [0, 0, 0, 0, 1]).await;
            azure.change_routes(&table_id, claim("b", 2), Priority::WaitingPods).await
        },
        async {
            until_waiting(&azure, [0, 1, 0, 0, 0]).await;
            script.next(answer(200, table("2", &[("b", 2)])));
        }
    );
    assert_eq!((left.unwrap().routes.len(), claimed.unwrap().routes.len()), (1, 1));
    assert_eq!(asked(&script), ["GET", "PUT", "PUT"], "one write for both");
}

#[tokio::test]
async fn a_change_that_is_outgrown_while_it_waits_is_not_made_and_the_others_are() {
    let script = Script::start().await;
    let (azure, table_id) = (closed(&script).await, id());
    let (grow, grown) = watch::channel(false);
    let outgrown = || {
        let mut grown = grown.clone();
        Urgency::until(Priority::NewNode, async move { drop(grown.wait_for(|grown| *grown).await) })
    };
    // One that writes for all, and one that another writes for.
    let (first, second) = (
        azure.change_routes(&table_id, claim("c", 3), outgrown()),
        azure.change_routes(&table_id, claim("d", 4), outgrown()),
    );
    let late = async {
        until_waiting(&azure, [0, 0, 1, 0, 0]).await;
        script.next(answer(200, table("2", &[("a", 1), ("b", 2)])));
        let mut second = Box::pin(second);
        assert!(futures::poll!(&mut second).is_pending());
        grow.send(true).unwrap();
        second.await
    };
    let other = azure.change_routes(&table_id, claim("b", 2), Priority::NewNode);
    let (first, other, second) = tokio::join!(first, other, late);
    for result in [first, second] {
        assert!(matches!(result, Err(Error::Outgrown { .. })), "{result:?}");
    }
    assert_eq!(other.unwrap().routes.len(), 2);
    assert_eq!(asked(&script), ["GET", "PUT", "PUT"]);
}
