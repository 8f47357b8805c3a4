//! The node's own network interfaces: which link a NIC of Azure is.

use std::{fs, io, path::Path};

/// Where the kernel shows the links of the network namespace that mounted it.
pub const LINKS: &str = "/sys/class/net";

/// A link of the node through which its pods reach the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub mtu: u32,
}

/// The link below `links` ([`LINKS`]) that has this hardware address, like `00:0d:3a:e5:1c:c0`; None if there
/// is none.
///
/// With accelerated networking two links have it: the synthetic one and the virtual function enslaved to it,
/// which may be revoked at any time. The one without a master is meant.
pub fn find(links: &Path, mac: &str) -> io::Result<Option<Uplink>> {
    for link in fs::read_dir(links)? {
        let link = link?;
        let read = |attribute: &str| fs::read_to_string(link.path().join(attribute));
        // A link may vanish while we look at it, and some files here are no links.
        let Ok(address) = read("address") else { continue };
        if !address.trim().eq_ignore_ascii_case(mac) || link.path().join("master").exists() {
            continue;
        }
        let mtu = read("mtu")?.trim().parse().map_err(io::Error::other)?;
        return Ok(Some(Uplink { name: link.file_name().to_string_lossy().into_owned(), mtu }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_synthetic_link_is_taken_not_the_virtual_function_under_it() {
        let links = tempfile::tempdir().unwrap();
        for (name, mac) in
            [("enP1", "00:0d:3a:e5:1c:c0"), ("eth0", "00:0d:3a:e5:1c:c0"), ("lo", "00:00:00:00:00:00")]
        {
            let link = links.path().join(name);
            fs::create_dir(&link).unwrap();
            fs::write(link.join("address"), format!("{mac}\n")).unwrap();
            fs::write(link.join("mtu"), "1500\n").unwrap();
        }
        fs::create_dir(links.path().join("enP1/master")).unwrap();
        let found = find(links.path(), "00:0D:3A:E5:1C:C0").unwrap();
        assert_eq!(found, Some(Uplink { name: "eth0".into(), mtu: 1500 }));
        assert_eq!(find(links.path(), "00:0d:3a:e5:1c:c1").unwrap(), None);
    }
}
