//! The rules of the older iptables, as `iptables-legacy -S` prints them, in the form in which nft shows its
//! own. Pure.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Chains;

/// The chains of one table.
pub fn chains(printed: &str) -> Chains {
    let lines: Vec<Vec<String>> = printed.lines().map(words).collect();
    let lines: Vec<Vec<&str>> =
        lines.iter().map(|words| words.iter().map(String::as_str).collect()).collect();
    let mut chains = Chains::new();
    for line in &lines {
        if let ["-P" | "-N", name, policy @ ..] = line.as_slice() {
            chains.entry((*name).to_owned()).or_default().drops = *policy == ["DROP"];
        }
    }
    let names: BTreeSet<String> = chains.keys().cloned().collect();
    for line in &lines {
        if let ["-A", name, rule @ ..] = line.as_slice() {
            chains.entry((*name).to_owned()).or_default().rules.push(expressions(rule, &names));
        }
    }
    chains
}

/// The words of a line: what has spaces stands in double quotes, with `\` before each `"` and `\`.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut is_quoted, mut characters) = (false, line.chars());
    while let Some(character) = characters.next() {
        match (character, words.last_mut()) {
            ('"', _) => is_quoted = !is_quoted,
            (' ', _) if !is_quoted => words.push(String::new()),
            ('\\', Some(word)) => word.extend(characters.next()),
            (_, Some(word)) => word.push(character),
            (_, None) => {}
        }
    }
    words
}

/// The expressions of a rule. `chains` are those that it may lead to.
fn expressions(rule: &[&str], chains: &BTreeSet<String>) -> Vec<Value> {
    let mut all = Vec::new();
    let (mut rest, mut op) = (rule, "==");
    while let [flag, more @ ..] = rest {
        // An option goes as far as the next one.
        let values = more.iter().take_while(|word| !word.starts_with('-') && **word != "!").count();
        let (value, after) =
            (more.first().filter(|_| values > 0).copied().unwrap_or_default(), &more[values..]);
        rest = after;
        if *flag == "!" {
            op = "!=";
            continue;
        }
        let matched =
            |left: Value, right: Value| Some(json!({ "match": { "op": op, "left": left, "right": right } }));
        let payload = |field: &str| json!({ "payload": { "protocol": "ip", "field": field } });
        let expression = match *flag {
            // What follows a target is the target's.
            "-j" | "-g" => {
                all.extend(verdict(flag, value, chains));
                break;
            }
            "-i" => matched(json!({ "meta": { "key": "iifname" } }), value.replace('+', "*").into()),
            "-o" => matched(json!({ "meta": { "key": "oifname" } }), value.replace('+', "*").into()),
            "-p" => matched(json!({ "meta": { "key": "l4proto" } }), value.into()),
            "-s" => matched(payload("saddr"), range(value)),
            "-d" => matched(payload("daddr"), range(value)),
            "--ctstate" | "--state" => {
                let states: Vec<String> = value.split(',').map(str::to_lowercase).collect();
                matched(json!({ "ct": { "key": "state" } }), states.into())
            }
            "--mark" => mark(value).and_then(|(left, right)| matched(left, right)),
            "--comment" => None,
            // It matches by the options that follow.
            "-m" if ["comment", "conntrack", "state", "mark", "tcp", "udp"].contains(&value) => None,
            _ => Some(json!({ "xt": { "type": "match", "name": flag } })),
        };
        all.extend(expression);
        op = "==";
    }
    all
}

/// What a target does with a packet, if it does more than note something.
fn verdict(flag: &str, target: &str, chains: &BTreeSet<String>) -> Option<Value> {
    let verdict = match (flag, target) {
        ("-g", _) => json!({ "goto": { "target": target } }),
        (_, "ACCEPT") => json!({ "accept": null }),
        (_, "DROP") => json!({ "drop": null }),
        (_, "REJECT") => json!({ "reject": null }),
        (_, "RETURN") => json!({ "return": null }),
        (_, "QUEUE" | "NFQUEUE") => json!({ "queue": null }),
        (_, chain) if chains.contains(chain) => json!({ "jump": { "target": chain } }),
        _ => return None,
    };
    Some(verdict)
}

/// An address with the length of its prefix; anything else isn't understood.
fn range(text: &str) -> Value {
    match text.split_once('/') {
        Some((address, length)) => json!({ "prefix": { "addr": address, "len": length.parse::<u8>().ok() } }),
        None => text.into(),
    }
}

/// The mark as it is seen through a mask, if there is one, and the value that it must have.
fn mark(text: &str) -> Option<(Value, Value)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let mark = json!({ "meta": { "key": "mark" } });
    Some(match text.split_once('/') {
        Some((value, mask)) => (json!({ "&": [mark, number(mask)?] }), number(value)?.into()),
        None => (mark, number(text)?.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::others_firewall::{
        is_dropped,
        tests::{back, out},
    };

    /// Whether the forward chain drops a packet of a pod, and one to it.
    fn dropped(rules: &str) -> [bool; 2] {
        let chains = chains(rules);
        [out(), back()].map(|packet| is_dropped(&chains, "FORWARD", &packet))
    }

    #[test]
    fn an_accept_for_pods_counts_wherever_the_forward_chain_leads() {
        // As docker has it, and kube-proxy.
        let docker = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER\n-N DOCKER-USER\n-N KUBE-FORWARD\n\
                      -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
                      -A FORWARD -j DOCKER-USER\n\
                      -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                      -A FORWARD -o docker0 -j DOCKER\n\
                      -A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
                      -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
                      -A KUBE-FORWARD -m comment --comment \"a \\\"-j ACCEPT\\\" of others\" -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
                      -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
        let user = |rules: &str| dropped(&format!("{docker}{rules}-A DOCKER-USER -j RETURN\n"));
        assert_eq!(user(""), [true, true]);
        assert_eq!(user("-A DOCKER-USER -i vnp+ -j ACCEPT\n"), [false, true]);
        assert_eq!(
            user("-A DOCKER-USER -i vnp+ -j ACCEPT\n-A DOCKER-USER -o vnp+ -j ACCEPT\n"),
            [false, false]
        );
        assert_eq!(user("-A DOCKER-USER -i docker0 -j ACCEPT\n"), [true, true]);
        assert_eq!(dropped(&docker.replace("FORWARD DROP", "FORWARD ACCEPT")), [false, false]);
    }

    #[test]
    fn matches_of_the_older_iptables_are_understood() {
        for (rule, expected) in [
            ("-j ACCEPT", [false, false]),
            ("-g OPEN", [false, false]),
            ("-s 10.9.9.9/32 -j ACCEPT", [true, false]),
            ("! -s 10.240.0.0/16 -j ACCEPT", [true, false]),
            ("-d 10.9.9.9/32 -j ACCEPT", [false, true]),
            ("-p icmp -j ACCEPT", [true, true]),
            ("-p tcp -j OPEN", [false, false]),
            ("-m state --state NEW -j ACCEPT", [false, false]),
            ("-m conntrack ! --ctstate NEW -j ACCEPT", [true, true]),
            ("-m mark --mark 0x0/0x10000 -j ACCEPT", [false, false]),
            ("-m mark --mark 0x10000/0x10000 -j ACCEPT", [true, true]),
            ("-m mark ! --mark 0x1 -j ACCEPT", [false, false]),
            ("-j LOG --log-prefix \"-j ACCEPT\"", [true, true]),
            ("-i eth0 -j RETURN", [true, true]),
            // What isn't understood raises no alarm.
            ("-m addrtype --dst-type LOCAL -j ACCEPT", [false, false]),
            ("-p tcp -m tcp --dport 80 -j ACCEPT", [false, false]),
            ("-f -j ACCEPT", [false, false]),
            ("-j NFQUEUE --queue-num 0", [false, false]),
            // A policy for pods drops on purpose.
            ("-i vnp+ -j CLOSED", [false, true]),
        ] {
            let closed = "-N OPEN\n-N CLOSED\n-A OPEN -j ACCEPT\n-A CLOSED -j REJECT --reject-with icmp-port-unreachable\n";
            assert_eq!(dropped(&format!("-P FORWARD DROP\n{closed}-A FORWARD {rule}\n")), expected, "{rule}");
        }
        let rejects = "-P FORWARD ACCEPT\n-A FORWARD -o eth0 -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        assert_eq!(dropped(rejects), [false, true]);
        assert_eq!(dropped(""), [false, false]);
    }
}
