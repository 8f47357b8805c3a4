//! The kernel's network settings that routed pods need, written only where they differ.

use std::{fs, io, path::Path};

/// What a node that doesn't forward drops: every packet of its pods. The kernel has one setting for all
/// links, which sets each, and one for each link, which decides.
const ALL: &str = "ipv4/ip_forward";
const ON: &str = "1";

#[derive(Debug, thiserror::Error)]
#[error(
    "can't set net/{setting} to {ON}: {source}; the agent needs NET_ADMIN and a writable {setting} (--sysctl-net-dir)"
)]
pub struct Error {
    setting: String,
    source: io::Error,
}

/// Turns forwarding on, for all links and for each of these. `dir` is `/proc/sys/net` or where it is mounted;
/// it shows the network namespace of whoever looks. Returns the settings it had to change.
pub fn ensure<'a>(dir: &Path, links: impl Iterator<Item = &'a str>) -> Result<Vec<String>, Error> {
    let of_link = |link: &str| format!("ipv4/conf/{link}/forwarding");
    let settings = [ALL.to_owned(), of_link("default")].into_iter().chain(links.map(of_link));
    let mut changed = Vec::new();
    for setting in settings {
        let path = dir.join(&setting);
        let put = || -> io::Result<bool> {
            match fs::read_to_string(&path) {
                Ok(found) if found.trim() == ON => return Ok(false),
                // A link may go while we look.
                Err(error) if error.kind() == io::ErrorKind::NotFound && setting != ALL => return Ok(false),
                found => found?,
            };
            fs::write(&path, ON)?;
            Ok(true)
        };
        match put() {
            Ok(true) => changed.push(setting),
            Ok(false) => {}
            Err(source) => return Err(Error { setting, source }),
        }
    }
    Ok(changed)
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
    fn a_setting_out_of_reach_is_named() {
        let error = ensure(Path::new("/nowhere"), std::iter::empty()).unwrap_err().to_string();
        assert!(error.contains("ipv4/ip_forward"), "{error}");
    }
}
