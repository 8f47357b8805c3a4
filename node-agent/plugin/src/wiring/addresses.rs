//! Addresses on the node's own links. A pod's address must not be there: the node would take the pod's
//! packets for its own.

use std::{fs, io, net::Ipv4Addr};

use nix::{errno::Errno, net::if_::if_indextoname};

use super::{
    Error,
    messages::{Address, Body},
    netlink::{Change, Netlink},
};

/// An IPv4 address on a link of the current network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    /// Name of the link.
    pub link: String,
    index: u32,
}

/// All IPv4 addresses of the node, from one dump. Their number doesn't grow with the pods, whose host ends
/// have no address.
pub fn addresses() -> Result<Vec<LinkAddress>, Error> {
    let found: Vec<Address> = Netlink::open()?.dump("list the node's addresses", &Body::any_address())?;
    let addresses = found.into_iter().filter_map(|Address { link: index, prefix_len, address }| {
        // The link may have gone since, and its addresses with it.
        let link = if_indextoname(index).ok()?.to_string_lossy().into_owned();
        Some(LinkAddress { address: address?, prefix_len, link, index })
    });
    Ok(addresses.collect())
}

/// Takes the address off its link. Ok if it is gone already.
///
/// With the first address of a subnet on a link the kernel also drops all others of that subnet, perhaps the
/// node's own, unless it is set to promote the next one. So that is set for the link first, below `net`
/// (`/proc/sys/net` or where it is mounted).
pub fn remove_address(found: &LinkAddress, net: &std::path::Path) -> Result<(), Error> {
    let setting = net.join(format!("ipv4/conf/{}/promote_secondaries", found.link));
    match fs::write(&setting, "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::Sysctl {
                key: "promote_secondaries",
                link: found.link.clone(),
                source: error,
            });
        }
        _ => {}
    }
    let change = Change::delete_address(
        "take a pod's address off a link",
        found.index,
        found.address,
        found.prefix_len,
    );
    match Netlink::open()?.apply([change]) {
        Err(error) if error.is(Errno::EADDRNOTAVAIL) || error.is(Errno::ENODEV) => Ok(()),
        result => result,
    }
}
