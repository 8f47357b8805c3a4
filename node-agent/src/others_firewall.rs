//! Other programs' firewalls: does one of them drop packets from or to pods? Pure; [`nft`] reads them, and
//! lets pods through where the configuration asks for it.
//!
//! Every chain at the forward hook decides about a packet, and an accept in one doesn't override a drop in
//! another: our own table can't help here. docker, ufw and firewalld all drop what they don't know. Two
//! packets are led through their rules, a new TCP connection of a pod and one to it. A rule that can't be
//! understood might match or not; so only a certain drop is reported. And a rule that names pods' links was
//! made for pods: if an engine of NetworkPolicy drops a packet behind it, the drop is meant.

#[cfg(test)]
mod fuzz;
mod legacy;
pub mod nft;

use std::{collections::HashMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde_json::Value;
use vnetpool_plugin::sandbox::LINK_PREFIX;

/// A chain of rules, as nft shows it with `-j`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain {
    /// The policy at its end, for a chain at a hook of the kernel: true = drop.
    pub drops: bool,
    /// The expressions of each rule.
    pub rules: Vec<Vec<Value>>,
}

/// A table's chains by name, as far as they are known.
pub type Chains = HashMap<String, Chain>;

/// The first packet of a connection.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    pub from_link: &'a str,
    pub to_link: &'a str,
    /// `None` for a host in the network.
    pub source: Option<Ipv4Addr>,
    pub destination: Option<Ipv4Addr>,
}

/// The fate of a packet in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Accepted,
    Dropped,
    /// Perhaps accepted, perhaps not.
    Unclear,
    /// The chain has come to its end; `perhaps` it was accepted before.
    Through {
        perhaps: bool,
    },
}

/// Whether a rule applies to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    Perhaps,
}

/// Whether a packet is certain to be dropped in `base`, which the kernel runs for each packet that the node
/// forwards.
pub fn is_dropped(chains: &Chains, base: &str, packet: &Packet) -> bool {
    match fate(chains, base, packet, &mut HashMap::new(), 0) {
        Fate::Dropped => true,
        Fate::Through { perhaps: false } => chains.get(base).is_some_and(|chain| chain.drops),
        _ => false,
    }
}

/// The kernel allows no deeper nesting of chains.
const DEPTH: u32 = 16;

/// The fate in a chain, found once however many rules lead there: `known` has those found so far.
fn fate<'a>(
    chains: &'a Chains,
    name: &'a str,
    packet: &Packet,
    known: &mut HashMap<&'a str, Fate>,
    depth: u32,
) -> Fate {
    const UNKNOWN: Fate = Fate::Through { perhaps: true };
    if let Some(fate) = known.get(name) {
        return *fate;
    }
    let Some(chain) = chains.get(name).filter(|_| depth < DEPTH) else { return UNKNOWN };
    // The kernel takes no chain that leads back to itself.
    known.insert(name, UNKNOWN);
    let fate = fate_by(&chain.rules, packet, |next| fate(chains, next, packet, known, depth + 1));
    known.insert(name, fate);
    fate
}

/// The fate by these rules, where `lead` has it of the chains that they lead to.
fn fate_by<'a>(rules: &'a [Vec<Value>], packet: &Packet, mut lead: impl FnMut(&'a str) -> Fate) -> Fate {
    let mut perhaps = false;
    for rule in rules {
        let mut matched = Match::Yes;
        let is_for_pods = rule.iter().any(names_pods_links);
        for expression in rule {
            let Some((kind, what)) = expression.as_object().and_then(|object| object.iter().next()) else {
                continue;
            };
            let found = match kind.as_str() {
                "match" => applies(what, packet),
                "xt" => extension(what),
                "limit" | "connlimit" | "ct count" => Match::Perhaps,
                // A map of verdicts may hold any.
                "vmap" | "queue" | "tproxy" => {
                    perhaps |= matched != Match::No;
                    Match::Perhaps
                }
                "accept" | "drop" | "reject" | "jump" | "goto" | "return" => {
                    let target = what["target"].as_str().unwrap_or_default();
                    let verdict = match kind.as_str() {
                        "accept" => Fate::Accepted,
                        "drop" | "reject" => Fate::Dropped,
                        "return" => Fate::Through { perhaps: false },
                        _ => lead(target),
                    };
                    match (matched, verdict) {
                        (Match::No, _) => {}
                        (Match::Yes, Fate::Dropped) if perhaps || is_for_pods => return Fate::Unclear,
                        (Match::Yes, Fate::Through { perhaps: inside }) => {
                            perhaps |= inside;
                            if kind != "jump" {
                                return Fate::Through { perhaps };
                            }
                        }
                        (Match::Yes, verdict) => return verdict,
                        (Match::Perhaps, Fate::Accepted | Fate::Unclear) => perhaps = true,
                        (Match::Perhaps, Fate::Through { perhaps: inside }) => perhaps |= inside,
                        (Match::Perhaps, Fate::Dropped) => {}
                    }
                    break;
                }
                // Counters, logs, marks: they decide nothing.
                _ => Match::Yes,
            };
            matched = match (matched, found) {
                (Match::No, _) | (_, Match::No) => Match::No,
                (Match::Perhaps, _) | (_, Match::Perhaps) => Match::Perhaps,
                _ => Match::Yes,
            };
        }
    }
    Fate::Through { perhaps }
}

/// Whether an expression is about the links that lead to pods.
fn names_pods_links(expression: &Value) -> bool {
    let what = &expression["match"];
    let key = what["left"]["meta"]["key"].as_str();
    matches!(key, Some("iifname" | "oifname"))
        && what["right"].as_str().is_some_and(|name| name.starts_with(LINK_PREFIX))
}

/// A match of iptables that nft only names. A match on the state of a connection is, in practice, for
/// established ones, and this is a new one.
fn extension(what: &Value) -> Match {
    match what["name"].as_str() {
        Some("comment") => Match::Yes,
        Some("conntrack" | "state") => Match::No,
        _ => Match::Perhaps,
    }
}

fn applies(what: &Value, packet: &Packet) -> Match {
    let (left, right) = (&what["left"], &what["right"]);
    let known = match (left["meta"]["key"].as_str(), left["payload"]["field"].as_str()) {
        (Some("iifname" | "iif"), _) => any(right, |one| is_link(one, packet.from_link)),
        (Some("oifname" | "oif"), _) => any(right, |one| is_link(one, packet.to_link)),
        (Some("nfproto"), _) => any(right, |one| Some(one == "ipv4")),
        (Some("l4proto"), _) | (_, Some("protocol")) => any(right, |one| Some(one == "tcp" || one == 6)),
        (Some("mark"), _) => any(right, |one| Some(one == 0)),
        (_, Some("saddr")) if left["payload"]["protocol"] == "ip" => address(right, packet.source),
        (_, Some("daddr")) if left["payload"]["protocol"] == "ip" => address(right, packet.destination),
        (_, Some(_))
            if matches!(
                left["payload"]["protocol"].as_str(),
                Some("ip6" | "udp" | "icmp" | "icmpv6" | "sctp")
            ) =>
        {
            return Match::No;
        }
        _ if left["ct"]["key"] == "state" => any(right, |one| Some(one == "new")),
        // An unmarked packet, seen through any mask.
        _ if left["&"][0]["meta"]["key"] == "mark" => any(right, |one| Some(one == 0)),
        _ => None,
    };
    match known {
        Some(known) if known != (what["op"] == "!=") => Match::Yes,
        Some(_) => Match::No,
        None => Match::Perhaps,
    }
}

/// Whether one of the values on the right does; `None` if that isn't known.
fn any(right: &Value, is: impl Fn(&Value) -> Option<bool> + Copy) -> Option<bool> {
    match right {
        Value::Array(all) => all.iter().try_fold(false, |found, one| Some(found || any(one, is)?)),
        Value::Object(object) if object.contains_key("set") => any(&right["set"], is),
        // The name of a set, whose elements nft doesn't show here.
        Value::String(name) if name.starts_with('@') => None,
        one => is(one),
    }
}

fn is_link(pattern: &Value, link: &str) -> Option<bool> {
    let pattern = pattern.as_str()?;
    Some(pattern.strip_suffix('*').map_or(pattern == link, |prefix| link.starts_with(prefix)))
}

fn address(right: &Value, address: Option<Ipv4Addr>) -> Option<bool> {
    let address = address?;
    any(right, |one| {
        let range = match one {
            Value::String(one) => one.parse::<Ipv4Addr>().ok().map(Ipv4Net::from)?,
            _ => {
                let prefix = &one["prefix"];
                let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
                Ipv4Net::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()?
            }
        };
        Some(range.contains(&address))
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 10);

    pub fn out() -> Packet<'static> {
        Packet { from_link: "vnp00000000000", to_link: "eth0", source: Some(POD), destination: None }
    }

    pub fn back() -> Packet<'static> {
        Packet { from_link: "eth0", to_link: "vnp00000000000", source: None, destination: Some(POD) }
    }

    fn meta(key: &str, op: &str, right: Value) -> Value {
        json!({ "match": { "op": op, "left": { "meta": { "key": key } }, "right": right } })
    }

    fn chain(drops: bool, rules: &[&[Value]]) -> Chain {
        Chain { drops, rules: rules.iter().map(|rule| rule.to_vec()).collect() }
    }

    fn one(drops: bool, rules: &[&[Value]]) -> Chains {
        Chains::from([("FORWARD".to_owned(), chain(drops, rules))])
    }

    fn dropped(chains: &Chains) -> [bool; 2] {
        [out(), back()].map(|packet| is_dropped(chains, "FORWARD", &packet))
    }

    /// The rules of dockerd 20.10, as nft 1.0.6 shows them.
    fn docker() -> Chains {
        let counter = || json!({ "counter": null });
        let (accept, ret, drop) =
            (json!({ "accept": null }), json!({ "return": null }), json!({ "drop": null }));
        let jump = |target: &str| json!({ "jump": { "target": target } });
        let (to, from) =
            (|op: &str| meta("oifname", op, json!("docker0")), meta("iifname", "==", json!("docker0")));
        let conntrack = json!({ "xt": { "type": "match", "name": "conntrack" } });
        Chains::from([
            (
                "FORWARD".to_owned(),
                chain(
                    true,
                    &[
                        &[counter(), jump("DOCKER-USER")],
                        &[counter(), jump("DOCKER-ISOLATION-STAGE-1")],
                        &[to("=="), conntrack, counter(), accept.clone()],
                        &[to("=="), counter(), jump("DOCKER")],
                        &[from.clone(), to("!="), counter(), accept.clone()],
                        &[from.clone(), to("=="), counter(), accept],
                    ],
                ),
            ),
            ("DOCKER".to_owned(), chain(false, &[])),
            ("DOCKER-USER".to_owned(), chain(false, &[&[counter(), ret.clone()]])),
            (
                "DOCKER-ISOLATION-STAGE-1".to_owned(),
                chain(
                    false,
                    &[
                        &[from, to("!="), counter(), jump("DOCKER-ISOLATION-STAGE-2")],
                        &[counter(), ret.clone()],
                    ],
                ),
            ),
            (
                "DOCKER-ISOLATION-STAGE-2".to_owned(),
                chain(false, &[&[to("=="), counter(), drop], &[counter(), ret]]),
            ),
        ])
    }

    #[test]
    fn dockers_chains_drop_packets_from_and_to_pods() {
        assert_eq!(dropped(&docker()), [true, true]);
    }

    #[test]
    fn packets_that_the_user_accepts_in_dockers_chain_are_not_dropped() {
        for (link, expected) in [("iifname", [false, true]), ("oifname", [true, false])] {
            let mut chains = docker();
            let rule = vec![meta(link, "==", json!("vnp*")), json!({ "accept": null })];
            chains.get_mut("DOCKER-USER").unwrap().rules.insert(0, rule);
            assert_eq!(dropped(&chains), expected, "{link}");
        }
    }

    /// The rules of Calico's Felix, as nft 1.0.6 shows them, as far as they matter: Felix knows one pod, and
    /// no other's link.
    fn felix() -> Chains {
        let counter = || json!({ "counter": null });
        let go = |verb: &str, target: &str| json!({ verb: { "target": target } });
        let drop = || json!({ "drop": null });
        let dispatch =
            |key: &str| vec![meta(key, "==", json!("vnp0d7763386da")), counter(), go("goto", "pod")];
        let chains = [("cali-from-wl-dispatch", "iifname"), ("cali-to-wl-dispatch", "oifname")];
        let base: Vec<_> = chains
            .iter()
            .map(|(name, key)| vec![meta(key, "==", json!("vnp*")), counter(), go("jump", name)])
            .collect();
        let dispatches = chains.map(|(name, key)| {
            let rules = vec![dispatch(key), vec![counter(), drop()]];
            (name.to_owned(), Chain { drops: false, rules })
        });
        let mut all = Chains::from(dispatches);
        all.insert("cali-FORWARD".to_owned(), Chain { drops: false, rules: base });
        all.insert("pod".to_owned(), chain(false, &[&[drop()]]));
        all.insert("FORWARD".to_owned(), chain(false, &[&[counter(), go("jump", "cali-FORWARD")]]));
        all
    }

    #[test]
    fn a_drop_by_an_engine_of_network_policy_raises_no_alarm() {
        assert_eq!(dropped(&felix()), [false, false]);
        // But a rule before it of a program that doesn't know of pods is.
        let mut chains = felix();
        let base = &mut chains.get_mut("FORWARD").unwrap().rules;
        base.insert(0, vec![meta("iifname", "!=", json!("docker0")), json!({ "drop": null })]);
        assert_eq!(dropped(&chains), [true, true]);
    }

    #[test]
    fn a_last_rule_that_rejects_is_a_drop_under_any_policy() {
        let reject = json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } });
        let established = json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } },
                                             "right": ["established", "related"] } });
        let accept = json!({ "accept": null });
        assert_eq!(dropped(&one(false, &[&[established, accept], &[reject]])), [true, true]);
        assert_eq!(dropped(&one(false, &[])), [false, false]);
    }

    #[test]
    fn addresses_marks_and_protocols_are_understood() {
        let accept = || json!({ "accept": null });
        let field = |field: &str, right: Value| json!({ "match": { "op": "==", "left": { "payload": { "protocol": "ip", "field": field } }, "right": right } });
        let net = json!({ "prefix": { "addr": "10.240.0.0", "len": 16 } });
        let mark = json!({ "match": { "op": "==", "left": { "&": [{ "meta": { "key": "mark" } }, 16384] }, "right": 16384 } });
        for (rule, expected) in [
            (vec![field("saddr", net.clone()), accept()], [false, false]),
            (vec![field("saddr", json!("10.9.9.9")), accept()], [true, false]),
            (vec![field("daddr", json!({ "set": [net] })), accept()], [false, false]),
            (vec![mark, accept()], [true, true]),
            (vec![meta("l4proto", "==", json!("icmp")), accept()], [true, true]),
            (vec![meta("iifname", "==", json!({ "set": ["eth0", "vnp*"] })), accept()], [false, false]),
        ] {
            assert_eq!(dropped(&one(true, &[&rule])), expected, "{rule:?}");
        }
    }

    #[test]
    fn a_rule_of_unknown_meaning_raises_no_alarm() {
        let accept = || json!({ "accept": null });
        let owner = || json!({ "xt": { "type": "match", "name": "addrtype" } });
        for rule in [
            vec![owner(), accept()],
            vec![meta("iifname", "==", json!("@trusted")), accept()],
            vec![json!({ "vmap": { "key": {}, "data": "@verdicts" } })],
            vec![json!({ "jump": { "target": "not-read" } })],
            vec![json!({ "jump": { "target": "FORWARD" } })],
        ] {
            assert_eq!(dropped(&one(true, &[&rule])), [false, false], "{rule:?}");
        }
        let drop = vec![owner(), json!({ "drop": null })];
        assert_eq!(dropped(&one(false, &[&drop])), [false, false]);
    }
}
