//! The node's own network interfaces: which link a NIC of Azure is.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use super::{
    Error,
    messages::{mac_of, master_of, name_of},
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
    let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = Netlink::open()?.dump("list the links", &all)?;
    Ok(links
        .iter()
        .filter_map(|link| if let RouteNetlinkMessage::NewLink(link) = link { read(link) } else { None })
        .collect())
}

/// With accelerated networking two links have a NIC's hardware address: the synthetic one and the virtual
/// function enslaved to it, which may be revoked at any time. The one without a master is meant. A link that
/// was made upon a NIC, under the NIC's own address, isn't meant either.
fn read(link: &LinkMessage) -> Option<(String, Uplink)> {
    const UPON_OTHERS: [InfoKind; 5] =
        [InfoKind::Vlan, InfoKind::IpVlan, InfoKind::IpVtap, InfoKind::MacVlan, InfoKind::MacVtap];
    let (mut mtu, mut gso_max, mut is_upon_another) = (None, None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(found) => mtu = Some(*found),
            LinkAttribute::GsoMaxSize(found) => gso_max = Some(*found),
            LinkAttribute::LinkInfo(info) => {
                is_upon_another = UPON_OTHERS.iter().any(|kind| info.contains(&LinkInfo::Kind(kind.clone())));
            }
            _ => {}
        }
    }
    if is_upon_another || master_of(link).is_some() {
        return None;
    }
    let mac = mac_of(link)?.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    Some((mac, Uplink { name: name_of(link)?.to_owned(), mtu: mtu?, gso_max }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, more: Vec<LinkAttribute>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(vec![0x00, 0x0d, 0x3a, 0xe5, 0x1c, 0xc0]),
            LinkAttribute::Mtu(1500),
        ];
        link.attributes.extend(more);
        link
    }

    #[test]
    fn of_the_links_with_a_nics_address_the_synthetic_one_is_the_nic() {
        let upon = |kind| vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])];
        assert_eq!(read(&link("enP1", vec![LinkAttribute::Controller(2)])), None);
        assert_eq!(read(&link("eth0.7", upon(InfoKind::Vlan))), None);
        assert_eq!(read(&link("ipvl0", upon(InfoKind::IpVlan))), None);
        let nic = Uplink { name: "eth0".to_owned(), mtu: 1500, gso_max: Some(62_780) };
        let found = read(&link("eth0", vec![LinkAttribute::GsoMaxSize(62_780)]));
        assert_eq!(found, Some(("00:0d:3a:e5:1c:c0".to_owned(), nic)));
    }
}
