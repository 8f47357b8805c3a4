//! The kernel's network settings that routed pods need, written only where they differ.

use std::{fs, io, path::Path};

/// A setting below `/proc/sys/net` and the value it must have.
const SETTINGS: [(&str, &str); 1] = [
    // A node that doesn't forward drops every packet of its pods.
    ("ipv4/ip_forward", "1"),
];

#[derive(Debug, thiserror::Error)]
#[error(
    "can't set net/{setting} to {value}: {source}; the agent needs NET_ADMIN and a writable {setting} (--sysctl-net-dir)"
)]
pub struct Error {
    setting: &'static str,
    value: &'static str,
    source: io::Error,
}

/// Puts all settings right. `dir` is `/proc/sys/net` or where it is mounted; it shows the network namespace of whoever
/// looks. Returns how many it had to change.
pub fn ensure(dir: &Path) -> Result<u32, Error> {
    let mut changed = 0;
    for (setting, value) in SETTINGS {
        let path = dir.join(setting);
        let put = || -> io::Result<bool> {
            if fs::read_to_string(&path)?.trim() == value {
                return Ok(false);
            }
            fs::write(&path, value)?;
            Ok(true)
        };
        changed += u32::from(put().map_err(|source| Error { setting, value, source })?);
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_written_once_and_then_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("ipv4")).unwrap();
        fs::write(dir.path().join("ipv4/ip_forward"), "0\n").unwrap();
        assert_eq!(ensure(dir.path()).unwrap(), 1);
        assert_eq!(ensure(dir.path()).unwrap(), 0);
        assert_eq!(fs::read_to_string(dir.path().join("ipv4/ip_forward")).unwrap(), "1");
    }

    #[test]
    fn a_setting_out_of_reach_is_named() {
        let error = ensure(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("ipv4/ip_forward"), "{error}");
    }
}
