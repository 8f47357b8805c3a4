//! How a verb can fail: the fault, with its code, and the remedy.

use std::{net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;

use crate::{
    cni::{self, code},
    ledger::file,
    wiring,
};

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Ledger(#[from] file::Error),
    #[error("the node has had no free address for {0:?}")]
    NoAddress(Duration),
    #[error("a DEL or another ADD of the same sandbox came while this ADD was waiting for an address")]
    Cancelled,
    #[error("the lock file was removed while this ADD was running, so its address may have been given away")]
    LockLost,
    #[error(transparent)]
    Wiring(#[from] wiring::Error),
    #[error("the address {address} is not of ipam.subnet {subnet}")]
    OtherSubnet { address: Ipv4Addr, subnet: Ipv4Net },
    #[error(
        "the ledger has {} for this sandbox, the runtime expects {}",
        .found.map_or("no address".to_owned(), |found| found.to_string()),
        list(.expected)
    )]
    OtherAddress { expected: Vec<Ipv4Addr>, found: Option<Ipv4Addr> },
    #[error("the sandbox is not wired as ADD left it: {}", .0.join("; "))]
    Damaged(Vec<String>),
    #[error("this node has not had an address for pods yet: {0}")]
    NotReady(String),
    /// The first error decides; the others came up while cleaning up or going on after it.
    #[error("{first}")]
    Several { first: Box<Error>, others: Vec<Error> },
}

fn list(addresses: &[Ipv4Addr]) -> String {
    addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    fn code(&self) -> u32 {
        match self {
            Error::Ledger(_) | Error::NoAddress(_) | Error::Cancelled | Error::LockLost => {
                code::TRY_AGAIN_LATER
            }
            Error::Wiring(wiring::Error::Netns { .. }) => code::INVALID_ENVIRONMENT,
            Error::Wiring(
                wiring::Error::NoBridge | wiring::Error::NameTaken(_) | wiring::Error::NameInUse { .. },
            ) => code::TRY_AGAIN_LATER,
            Error::Wiring(wiring::Error::NotTheFirst(_)) => code::INVALID_CONFIG,
            Error::Wiring(_) => code::WIRING,
            Error::OtherSubnet { .. } => code::INVALID_CONFIG,
            Error::OtherAddress { .. } | Error::Damaged(_) => code::DAMAGED,
            Error::NotReady(_) => code::NOT_READY,
            Error::Several { first, .. } => first.code(),
        }
    }

    /// The remedy for a person who reads this in an Event of a pod or in the runtime's log.
    fn remedy(&self) -> &'static str {
        match self {
            Error::Ledger(error) if error.needs_rebuild() => {
                "the runtime tries again; if it lasts, see the agent's log (kubectl logs -n vnetpool-system \
                 daemonset/vnetpool-node-agent) and `kubectl describe nodeipallocation`"
            }
            Error::Ledger(file::Error::OtherVersion(..)) => {
                "install the newer release's agent again, which brings its plugin; to go back a release, drain \
                 the node first and remove that file"
            }
            Error::Ledger(file::Error::Io(..)) => {
                "the runtime tries again; if it lasts, see whether the folder is there, writable by root \
                 and not full"
            }
            Error::Ledger(_) => "another verb of this sandbox is still running: the runtime tries again",
            Error::NoAddress(_) => {
                "the operator reserves more unless the pool's or Azure's maximum is reached, and the agent withholds \
                 what is free while the node lacks its rules: see `kubectl describe nodeipallocation`"
            }
            Error::Cancelled => "nothing: the pod is being deleted, or the runtime tries again",
            Error::LockLost => "nothing may delete files in this folder; the runtime tries again",
            Error::Wiring(error) => error.remedy(),
            Error::OtherSubnet { .. } => {
                "give ipam.subnet the range of the subnet of the node's NIC: see \
                 `kubectl get nodeipallocation -o wide`"
            }
            Error::OtherAddress { .. } | Error::Damaged(_) => {
                "delete the pod, so that a new one is wired; CHECK repairs nothing"
            }
            Error::NotReady(_) => {
                "wait for the operator; if it lasts, see the conditions in \
                 `kubectl describe nodeipallocation`"
            }
            Error::Several { first, .. } => first.remedy(),
        }
    }

    pub(super) fn into_cni(self, version: cni::Version) -> cni::Error {
        let mut details = self.remedy().to_owned();
        if let Error::Several { others, .. } = &self {
            details.push_str("; besides:");
            others.iter().for_each(|other| details.push_str(&format!(" {other};")));
        }
        cni::Error { version, code: self.code(), msg: self.to_string(), details }
    }

    /// This error with the later ones.
    pub(super) fn and(self, others: impl IntoIterator<Item = Error>) -> Error {
        let others: Vec<Error> = others.into_iter().collect();
        if others.is_empty() { self } else { Error::Several { first: Box::new(self), others } }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use nix::errno::Errno;

    use super::*;
    use crate::{cni::Version, sandbox::Sandbox};

    #[test]
    fn every_error_names_a_remedy() {
        let io = || io::Error::from_raw_os_error(5);
        let link = || "vnp0".to_owned();
        let address = Ipv4Addr::new(10, 1, 2, 3);
        let wiring = [
            wiring::Error::Kernel { what: "create the veth pair", errno: Errno::EPERM },
            wiring::Error::Kernel { what: "create the veth pair", errno: Errno::ENOMEM },
            wiring::Error::Netns { path: "/run/netns/a".into(), source: io() },
            wiring::Error::InterfaceExists("eth0".into()),
            wiring::Error::NoBridge,
            wiring::Error::NameTaken(link()),
            wiring::Error::NameInUse {
                link: link(),
                older: Sandbox { container_id: "a".into(), ifname: "eth0".into() },
            },
            wiring::Error::NotTheFirst("net1".into()),
            wiring::Error::KernelTooOld { release: "5.15".into(), since: (5, 18), what: "lock ports" },
            wiring::Error::AddressRouted(address),
            wiring::Error::Sysctl { key: "disable_ipv6", link: link(), source: io() },
        ];
        let ledger = [
            file::Error::Missing("/run/vnetpool/ledger".into()),
            file::Error::OtherBoot("other".into()),
            file::Error::OtherVersion("/run/vnetpool/ledger".into(), 4),
            file::Error::Busy("/run/vnetpool/lock".into(), Duration::from_secs(5)),
            file::Error::Io("/run/vnetpool/ledger".into(), io()),
        ];
        let others = [
            Error::NoAddress(Duration::from_secs(20)),
            Error::Cancelled,
            Error::LockLost,
            Error::OtherSubnet { address, subnet: "10.2.0.0/16".parse().unwrap() },
            Error::OtherAddress { expected: vec![address], found: None },
            Error::Damaged(vec!["the pod has no interface eth0".into()]),
            Error::NotReady("the operator has published none".into()),
            Error::LockLost.and([Error::Cancelled]),
        ];
        let all =
            wiring.into_iter().map(Error::from).chain(ledger.into_iter().map(Error::from)).chain(others);
        for error in all {
            let cause = error.to_string();
            let cni = error.into_cni(Version::V1_0_0);
            assert_eq!(cni.msg, cause);
            assert!(cni.details.len() > 20, "{cause}: {:?}", cni.details);
            let is_known = [4, 7, 11, 50, 100, 101].contains(&cni.code);
            assert!(is_known, "{cause}: code {}", cni.code);
        }
    }
}
