//! Any bytes as other programs' rules: what nft prints of all chains and their rules, or else what the older
//! iptables does.

use serde_json::json;

use super::{
    nft::{expressions, objects},
    tests::{back, out},
    *,
};

/// Rules of ours before all others of a chain let pods through, and where nothing is dropped nothing is found
/// dropped. Returns whether something is.
fn is_understood(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let chains = match objects(&text) {
        Ok(listed) => of_nft(&listed),
        Err(_) => legacy::chains(&text),
    };
    let mut is_any_dropped = false;
    for base in chains.keys() {
        let is_found = |chains: &Chains| [out(), back()].map(|packet| is_dropped(chains, base, &packet));
        let found = is_found(&chains);
        is_any_dropped |= found != [false, false];
        assert!(found == [false, false] || can_drop(&chains), "{base}: {chains:?}");
        assert_eq!(is_found(&opened(&chains, base)), [false, false], "{base}: {chains:?}");
    }
    is_any_dropped
}

/// All chains of one name are one here: of a table they have different ones.
fn of_nft(listed: &[Value]) -> Chains {
    let mut chains = Chains::new();
    let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for rule in listed.iter().filter_map(|object| object.get("rule")) {
        chains.entry(name(&rule["chain"])).or_default().rules.push(expressions(rule));
    }
    for chain in listed.iter().filter_map(|object| object.get("chain")) {
        if chain["hook"] == "forward" {
            chains.entry(name(&chain["name"])).or_default().drops = chain["policy"] == "drop";
        }
    }
    chains
}

/// With the two rules that `nft::open` inserts.
fn opened(chains: &Chains, base: &str) -> Chains {
    let mut chains = chains.clone();
    let rules = &mut chains.entry(base.to_owned()).or_default().rules;
    for key in ["iifname", "oifname"] {
        let is_pods = json!({ "op": "==", "left": { "meta": { "key": key } }, "right": "vnp*" });
        rules.insert(
            0,
            vec![json!({ "match": is_pods }), json!({ "counter": null }), json!({ "accept": null })],
        );
    }
    chains
}

fn can_drop(chains: &Chains) -> bool {
    let drops =
        |expression: &Value| ["drop", "reject"].iter().any(|verdict| expression.get(verdict).is_some());
    chains.values().any(|chain| chain.drops || chain.rules.iter().flatten().any(drops))
}

#[test]
fn whatever_the_rules_of_others_are_those_of_ours_before_them_let_pods_through() {
    vnetpool_fuzz::search("others_firewall", is_understood);
}
