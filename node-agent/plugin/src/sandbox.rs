//! A sandbox, the pod it belongs to, and the names of the links between them and the node.

use std::fmt;

/// How the names of all links that lead to pods begin.
pub const LINK_PREFIX: &str = "vnp";

/// Hex digits behind [`LINK_PREFIX`]: with it 14 of the 15 bytes that a link's name can have.
const LINK_DIGITS: usize = 11;

/// The interface by which Kubernetes knows a pod. An engine of NetworkPolicy knows no other interface of the
/// pod.
pub(crate) const POD_IFNAME: &str = "eth0";

/// The key of an assignment: one interface of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sandbox {
    /// CNI_CONTAINERID. It is empty for an address that was found in use by an unknown container; then
    /// `ifname` is that address.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

impl Sandbox {
    /// The name that ADD gives the host's end of this sandbox's veth pair: [`LINK_PREFIX`] and 11 hex digits.
    ///
    /// Engines of NetworkPolicy find a pod's link by its name only: a prefix from their configuration and the
    /// first digits of the SHA-1 of `namespace.name`, as Calico's `VethNameForWorkload` has it and other
    /// cloud networks' plugins do. All sandboxes that a pod of this name ever has share this name, so a newer
    /// one may find the older's link there: see [`Sandbox::spare_link`].
    pub fn host_link(&self, pod: &Pod) -> String {
        if pod.name.is_empty() || self.ifname != POD_IFNAME {
            return self.spare_link();
        }
        let digest = sha1_smol::Sha1::from([&pod.namespace, ".", &pod.name].concat()).digest().to_string();
        format!("{LINK_PREFIX}{}", &digest[..LINK_DIGITS])
    }

    /// A name that no other sandbox shares. The link has it if the sandbox isn't known to be a pod's, and
    /// once it had to make room for the link of a newer sandbox. Earlier builds named all links like this.
    pub fn spare_link(&self) -> String {
        format!("{LINK_PREFIX}{:0LINK_DIGITS$x}", self.digest() & ((1 << (4 * LINK_DIGITS)) - 1))
    }

    /// A hash that every release computes alike, since link names and lock offsets come from it: FNV-1a, then
    /// MurmurHash3's finaliser, which spreads the last bytes over all bits.
    pub(crate) fn digest(&self) -> u64 {
        let bytes = self.container_id.bytes().chain(*b"/").chain(self.ifname.bytes());
        let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

/// Whether a link of this name can be the host's end of a sandbox's veth pair.
pub(crate) fn is_link_name(name: &str) -> bool {
    name.strip_prefix(LINK_PREFIX).is_some_and(|digits| {
        digits.len() == LINK_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// The pod that a sandbox belongs to, for people and for the status. Its strings are empty if the runtime
/// didn't name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl fmt::Display for Pod {
    /// As `namespace/name`; empty if the runtime didn't name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.is_empty() {
            true => Ok(()),
            false => write!(f, "{}/{}", self.namespace, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digest of the sandbox in the test below, as the first release computed it.
    const PINNED_DIGEST: u64 = 0x49f3fd2f12c38602;

    #[test]
    fn link_names_and_lock_offsets_stay_the_same_in_every_release() {
        let sandbox = Sandbox { container_id: "0123456789abcdef".repeat(4), ifname: "eth0".to_owned() };
        assert_eq!(sandbox.digest(), PINNED_DIGEST);
        assert_eq!(sandbox.spare_link(), format!("vnp{:011x}", PINNED_DIGEST & 0xfff_ffff_ffff));
        assert_eq!(sandbox.spare_link().len(), 14);
        assert!(is_link_name(&sandbox.spare_link()));
    }

    #[test]
    fn a_pods_link_has_the_name_that_calico_gives_it() {
        let sandbox = Sandbox { container_id: "0123".to_owned(), ifname: "eth0".to_owned() };
        let pod = |namespace: &str, name: &str| Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: String::new(),
        };
        // printf default.web-0 | sha1sum
        assert_eq!(sandbox.host_link(&pod("default", "web-0")), "vnp0d7763386da");
        let second = Sandbox { ifname: "net1".to_owned(), ..sandbox.clone() };
        assert_eq!(second.host_link(&pod("default", "web-0")), second.spare_link(), "eth0 only");
        assert_eq!(sandbox.host_link(&pod("", "")), sandbox.spare_link(), "not known to be a pod's");
    }
}
