//! The node's own network interfaces: which link a NIC of Azure is.

use super::{
    Error,
    messages::{Body, Link},
    netlink::Netlink,
};

/// A link of the node through which its pods reach the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub mtu: u32,
    /// The largest packet that it takes to cut it into smaller ones.
    pub gso_max: Option<u32>,
}

/// The links of the node that can be NICs, each beside its hardware address, like `00:0d:3a:e5:1c:c0`. From
/// one dump of all links, so its cost grows with the pods.
pub fn uplinks() -> Result<Vec<(String, Uplink)>, Error> {
    let links: Vec<Link> = Netlink::open()?.dump("list the links", &Body::any_link())?;
    Ok(links.into_iter().filter_map(read).collect())
}

/// With accelerated networking two links have a NIC's hardware address: the synthetic one and the virtual
/// function enslaved to it, which may be revoked at any time. The one without a master is meant. A link that
/// was made upon a NIC, under the NIC's own address, isn't meant either.
fn read(link: Link) -> Option<(String, Uplink)> {
    const UPON_OTHERS: [&str; 5] = ["vlan", "ipvlan", "ipvtap", "macvlan", "macvtap"];
    if UPON_OTHERS.contains(&link.kind.as_str()) || link.master.is_some() {
        return None;
    }
    let mac = link.mac?.map(|byte| format!("{byte:02x}")).join(":");
    Some((mac, Uplink { name: link.name, mtu: link.mtu?, gso_max: link.gso_max }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_links_with_a_nics_address_the_synthetic_one_is_the_nic() {
        let synthetic = Link {
            name: "eth0".to_owned(),
            mac: Some([0x00, 0x0d, 0x3a, 0xe5, 0x1c, 0xc0]),
            mtu: Some(1500),
            gso_max: Some(62_780),
            ..Link::default()
        };
        let upon = |kind: &str| Link { kind: kind.to_owned(), ..synthetic.clone() };
        assert_eq!(read(Link { master: Some(2), ..synthetic.clone() }), None);
        assert_eq!(read(upon("vlan")), None);
        assert_eq!(read(upon("ipvlan")), None);
        let nic = Uplink { name: "eth0".to_owned(), mtu: 1500, gso_max: Some(62_780) };
        assert_eq!(read(synthetic), Some(("00:0d:3a:e5:1c:c0".to_owned(), nic)));
    }
}
