//! The identity of a wired sandbox, as the host's end of its veth pair carries it in its alias.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use crate::sandbox::{Pod, Sandbox};

/// Bytes of a link's alias, without the NUL behind it (IFALIASZ of linux/if.h).
const ALIAS_SIZE: usize = 255;
/// First word of our aliases.
const ALIAS_MARK: &str = "vnetpool/1";

/// Which sandbox is wired to which address, by the host link's alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub address: Ipv4Addr,
    pub sandbox: Sandbox,
    /// The alias leaves out the pod's name, then its namespace, then its UID, if it would get too long.
    pub pod: Pod,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            address,
            sandbox: Sandbox { container_id, ifname },
            pod: Pod { namespace, name, uid },
        } = self;
        let text = |uid: &str, namespace: &str, name: &str| {
            let word = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
            let (uid, namespace, name) = (word(uid), word(namespace), word(name));
            format!("{ALIAS_MARK} {address} {container_id} {ifname} {uid} {namespace} {name}")
        };
        let candidates = [text(uid, namespace, name), text(uid, namespace, ""), text(uid, "", "")];
        let fitting = candidates.into_iter().find(|text| text.len() <= ALIAS_SIZE);
        f.write_str(&fitting.unwrap_or_else(|| text("", "", "")))
    }
}

impl FromStr for Identity {
    type Err = ();

    /// A later release may write further words: a DEL of this one has to find the link all the same.
    fn from_str(alias: &str) -> Result<Identity, ()> {
        let words: Vec<&str> = alias.split(' ').collect();
        let &[ALIAS_MARK, address, container_id, ifname, uid, namespace, name, ..] = &words[..] else {
            return Err(());
        };
        let word = |word: &str| if word == "-" { String::new() } else { word.to_owned() };
        Ok(Identity {
            address: address.parse().map_err(|_| ())?,
            sandbox: Sandbox { container_id: container_id.to_owned(), ifname: ifname.to_owned() },
            pod: Pod { namespace: word(namespace), name: word(name), uid: word(uid) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(namespace: &str, name: &str) -> Identity {
        Identity {
            address: Ipv4Addr::new(10, 1, 2, 3),
            sandbox: Sandbox { container_id: "c".repeat(64), ifname: "eth0".to_owned() },
            pod: Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid: "u".repeat(36) },
        }
    }

    #[test]
    fn an_identity_survives_the_link_it_is_written_on() {
        for identity in [identity("default", "web-0"), identity("", "")] {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
    }

    #[test]
    fn words_that_a_later_release_adds_to_an_alias_are_no_matter() {
        let identity = identity("default", "web-0");
        assert_eq!(format!("{identity} new words").parse(), Ok(identity));
    }

    #[test]
    fn a_pod_name_too_long_for_a_link_is_left_out() {
        let text = identity(&"n".repeat(63), &"p".repeat(253)).to_string();
        assert!(text.len() <= ALIAS_SIZE, "{}", text.len());
        assert_eq!(text.parse(), Ok(identity(&"n".repeat(63), "")));
    }

    #[test]
    fn a_pods_uid_too_long_for_a_link_is_left_out() {
        let mut identity = identity("default", "web-0");
        identity.pod.uid = "u".repeat(200);
        assert_eq!(identity.to_string().parse(), Ok(Identity { pod: Pod::default(), ..identity }));
    }

    #[test]
    fn an_alias_of_another_program_is_no_identity() {
        for alias in ["", "uplink", "vnetpool/2 10.1.2.3 c eth0 u n p", "vnetpool/1 nowhere c eth0 u n p"] {
            assert_eq!(alias.parse::<Identity>(), Err(()), "{alias:?}");
        }
    }
}
