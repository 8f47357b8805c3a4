//! Any bytes as a runtime's request: a line with what is in the environment, then standard input.

use std::net::Ipv4Addr;

use super::*;
use crate::wiring::Identity;

/// The variables in the order of the line's words, which tabs separate.
const VARIABLES: [&str; 5] = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];
/// Bytes of a link's alias (IFALIASZ), without its NUL.
const ALIAS: usize = 255;

/// A sandbox that is served is the same after its link's alias and its line in the ledger were read again. A
/// refusal names its reason in a version that runtimes know. Returns whether the request is served.
fn is_sound(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (line, stdin) = (String::from_utf8_lossy(&bytes[..end]), bytes.get(end + 1..).unwrap_or_default());
    let words: Vec<&str> = line.split('\t').collect();
    let env = |name: &str| {
        let index = VARIABLES.iter().position(|variable| *variable == name)?;
        words.get(index).map(|&word| word.to_owned())
    };
    let served = [Program::Network, Program::Ipam].map(|program| match Request::parse(program, env, stdin) {
        Ok(request) => {
            is_kept(&request);
            assert_eq!(Request::parse(program, env, stdin).as_ref(), Ok(&request));
            true
        }
        Err(error) => {
            let document = serde_json::to_value(&error).unwrap();
            let is_text = |field: &str| document[field].as_str().is_some_and(|text| !text.is_empty());
            assert!(is_text("msg") && document["code"].as_u64() >= Some(1), "{document}");
            assert!(document["cniVersion"].as_str().and_then(Version::parse).is_some(), "{document}");
            false
        }
    });
    served.contains(&true)
}

fn is_kept(request: &Request) {
    let (Verb::Add { sandbox, pod, .. } | Verb::Del { sandbox, pod, .. } | Verb::Check { sandbox, pod, .. }) =
        &request.verb
    else {
        return;
    };
    let address = Ipv4Addr::new(255, 255, 255, 255);
    let alias = Identity { address, sandbox: sandbox.clone(), pod: pod.clone() }.to_string();
    assert!(alias.len() <= ALIAS, "{} bytes: {alias}", alias.len());
    let Ok(read) = alias.parse::<Identity>() else { panic!("{alias}") };
    assert_eq!((read.address, &read.sandbox), (address, sandbox));
    for (read, written) in
        [(&read.pod.uid, &pod.uid), (&read.pod.namespace, &pod.namespace), (&read.pod.name, &pod.name)]
    {
        assert!(read.is_empty() || read == written, "{read} was {written}");
    }
    if let Verb::Add { netns, .. } = &request.verb {
        assert!(!netns.as_os_str().is_empty());
    }
    if let Task::Wire(Wire { sizes, .. }) = &request.task
        && let Verb::Add { .. } = request.verb
    {
        assert!(sizes.mtu.is_none_or(|mtu| MTU.contains(&mtu)));
        assert!(sizes.gso_max.is_none_or(|size| GSO_MAX_SIZE.contains(&size)));
    }
    crate::ledger::tests::is_kept(sandbox, pod, &request.network);
}

#[test]
fn any_request_that_is_served_names_a_sandbox_that_alias_and_ledger_keep() {
    vnetpool_fuzz::search("request", is_sound);
}
