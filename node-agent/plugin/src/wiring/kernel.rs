//! The abilities that the running kernel must have.

use super::Error;

/// A feature, and the first Linux that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    since: (u32, u32),
    what: &'static str,
}

impl Feature {
    /// The first Linux that has it, such as 5.5.
    pub fn linux(self) -> String {
        format!("{}.{}", self.since.0, self.since.1)
    }
}

/// nftables shows at its postrouting hook by which link a packet came in. Older kernels take such a rule and
/// never apply it: packets of pods to destinations outside the VNet would leave under the pods' own
/// addresses, and be lost.
pub const TRANSLATION: Feature =
    Feature { since: (5, 5), what: "distinguish packets of pods from others where they are translated" };
/// A bridge's port can be locked to a MAC. Older kernels ignore the setting.
pub const LOCKED_PORTS: Feature = Feature {
    since: (5, 18),
    what: "lock a bridge's port to its pod's MAC, so that pods could send under each other's addresses",
};

/// Fails on a kernel that doesn't have this.
pub fn require(feature: Feature) -> Result<(), Error> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|error| Error::kernel("ask for its version", error))?;
    has(release.trim(), feature)
}

fn has(release: &str, Feature { since, what }: Feature) -> Result<(), Error> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    match (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= since {
        true => Ok(()),
        false => Err(Error::KernelTooOld { release: release.to_owned(), since, what }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_too_old_kernel_names_the_release_that_has_the_feature() {
        for (release, translates, locks) in [
            ("6.1.0-18-cloud-amd64", true, true),
            ("5.18.0", true, true),
            ("5.15.0-1075-azure", true, false),
            ("5.5.0", true, false),
            ("5.4.0-1109-azure", false, false),
            ("4.19", false, false),
            ("", false, false),
        ] {
            assert_eq!(has(release, TRANSLATION).is_ok(), translates, "{release:?}");
            assert_eq!(has(release, LOCKED_PORTS).is_ok(), locks, "{release:?}");
        }
        let error = has("5.4.0-1109-azure", TRANSLATION).unwrap_err();
        let text = format!("{error}: {}", error.remedy());
        assert!(text.contains("5.4.0-1109-azure") && text.contains("5.5"), "{text}");
    }
}
