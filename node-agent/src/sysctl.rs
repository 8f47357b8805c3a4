//! The kernel's network settings that pods need, written only where they differ. `dir` is `/proc/sys/net` or
//! where it is mounted; it shows the network namespace of the reading process.

use std::{fs, io, path::Path};

/// A node that doesn't forward drops every packet of its pods. The kernel has one setting for all links,
/// which sets each, and one for each link, which decides.
const ALL: &str = "ipv4/ip_forward";
/// Of the node as a whole, and 1 where the kernel has just come to have it.
pub const BRIDGES: &str = "bridge/bridge-nf-call-iptables";

#[derive(Debug, thiserror::Error)]
#[error(
    "can't set net/{setting} to {value}: {source}; the agent needs NET_ADMIN and a writable {setting} (--sysctl-net-dir)"
)]
pub struct Error {
    setting: String,
    value: &'static str,
    source: io::Error,
}

/// Turns forwarding on, for all links and for each of these. Returns the settings it had to change.
pub fn ensure<'a>(dir: &Path, links: impl Iterator<Item = &'a str>) -> Result<Vec<String>, Error> {
    let of_link = |link: &str| format!("ipv4/conf/{link}/forwarding");
    let mut changed = Vec::new();
    for setting in [ALL.to_owned(), of_link("default")].into_iter().chain(links.map(of_link)) {
        // A link may go during the inspection.
        if set(dir, &setting, "1", setting != ALL)? {
            changed.push(setting);
        }
    }
    Ok(changed)
}

/// Has the node's rules see packets of bridged pods only where the node routes them. Returns whether that is
/// new.
///
/// With this setting, which the kernel turns on, a bridge hands packets to iptables that it is still about to
/// pass on. The first packet to a Service is then translated there, and where its pod is behind the same
/// bridge, it would go from port to port, which isolated ports don't let through. The setting is the node's:
/// a bridge can ask for more than it, and not for less.
pub fn route_bridged(dir: &Path) -> Result<bool, Error> {
    // A kernel may not be able to do that at all.
    set(dir, BRIDGES, "0", true)
}

/// Has a link take packets though the way back to their sender leads out by another: where the kernel would
/// drop them, it filters loosely from here on. Returns the setting if that is new.
///
/// A packet for a pod of a secondary NIC comes by the first if it was sent to an address there and is
/// translated on the node. The kernel seeks its way back under the pod's address, which leads out by the
/// pod's NIC.
pub fn loosen(dir: &Path, link: &str) -> Result<Option<String>, Error> {
    const STRICT: u8 = 1;
    let of = |link: &str| format!("ipv4/conf/{link}/rp_filter");
    let setting = of(link);
    let value = |setting: &String| fs::read_to_string(dir.join(setting)).ok()?.trim().parse::<u8>().ok();
    // The kernel goes by the higher of the two.
    let filter = [of("all"), setting.clone()].iter().filter_map(value).max();
    let is_new = filter == Some(STRICT) && set(dir, &setting, "2", true)?;
    Ok(is_new.then_some(setting))
}

/// Returns whether it had to change. `may_lack`: that there is no such setting is fine.
fn set(dir: &Path, setting: &str, value: &'static str, may_lack: bool) -> Result<bool, Error> {
    let path = dir.join(setting);
    let put = || -> io::Result<bool> {
        match fs::read_to_string(&path) {
            Ok(found) if found.trim() == value => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_lack => return Ok(false),
            found => found?,
        };
        fs::write(&path, value)?;
        Ok(true)
    };
    put().map_err(|source| Error { setting: setting.to_owned(), value, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_written_once_and_then_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("ipv4/conf/eth0")).unwrap();
        for setting in ["ipv4/ip_forward", "ipv4/conf/eth0/forwarding"] {
            fs::write(dir.path().join(setting), "0\n").unwrap();
        }
        let links = || ["eth0", "gone"].into_iter();
        let changed = ensure(dir.path(), links()).unwrap();
        assert_eq!(changed, ["ipv4/ip_forward", "ipv4/conf/eth0/forwarding"]);
        assert!(ensure(dir.path(), links()).unwrap().is_empty());
        assert_eq!(fs::read_to_string(dir.path().join("ipv4/ip_forward")).unwrap(), "1");
    }

    #[test]
    fn only_a_strict_filter_of_reverse_paths_is_made_loose_whichever_setting_it_is_by() {
        let filters = [(0, 0, 0), (0, 1, 2), (1, 0, 2), (1, 1, 2), (2, 1, 1), (1, 2, 2), (2, 0, 0)];
        for (all, link, after) in filters {
            let dir = tempfile::tempdir().unwrap();
            let file = |link: &str| dir.path().join(format!("ipv4/conf/{link}/rp_filter"));
            for (name, value) in [("all", all), ("eth0", link)] {
                fs::create_dir_all(file(name).parent().unwrap()).unwrap();
                fs::write(file(name), format!("{value}\n")).unwrap();
            }
            let changed = loosen(dir.path(), "eth0").unwrap();
            assert_eq!(changed.is_some(), after != link, "{all} {link}");
            assert_eq!(fs::read_to_string(file("eth0")).unwrap().trim(), after.to_string(), "{all} {link}");
            assert_eq!(fs::read_to_string(file("all")).unwrap().trim(), all.to_string());
            assert_eq!(loosen(dir.path(), "eth0").unwrap(), None);
        }
        let gone = tempfile::tempdir().unwrap();
        assert_eq!(loosen(gone.path(), "eth0").unwrap(), None);
    }

    #[test]
    fn a_setting_out_of_reach_is_named() {
        let error = ensure(Path::new("/nowhere"), std::iter::empty()).unwrap_err().to_string();
        assert!(error.contains("ipv4/ip_forward"), "{error}");
    }
}
