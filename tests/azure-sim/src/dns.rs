//! The answers of the resolver at 168.63.129.16: private zones, the machines' own names, public addresses
//! with a label. Only addresses (A); for an unknown name it answers so. The answers are pure, the sockets are
//! at the end.

use crate::nic;
use crate::resource::Kind;
use crate::world::World;
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// How long resolvers may cache an answer.
const TTL: u32 = 10;

/// The name that a message asks for, and the answer. `None` if the message isn't a question.
pub(crate) fn answer(world: &World, message: &[u8]) -> Option<(String, Vec<u8>)> {
    let question = Packet::parse(message).ok()?;
    let asked = question.questions.first()?.clone();
    let name = asked.qname.to_string().to_lowercase().trim_end_matches('.').to_owned();
    let known = address(world, &name);
    let mut reply = question.into_reply();
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::RECURSION_DESIRED);
    match known {
        None => *reply.rcode_mut() = RCODE::NameError,
        Some(address) if matches!(asked.qtype, QTYPE::TYPE(TYPE::A) | QTYPE::ANY) => {
            let data = RData::A(A { address: address.into() });
            reply.answers.push(ResourceRecord::new(asked.qname, CLASS::IN, TTL, data));
        }
        Some(_) => {}
    }
    Some((name, reply.build_bytes_vec().ok()?))
}

fn address(world: &World, name: &str) -> Option<Ipv4Addr> {
    let of_machine = || {
        world.nics.values().find_map(|nic| {
            let suffix =
                nic.document.pointer("/properties/dnsSettings/internalDomainNameSuffix")?.as_str()?;
            let machine = nic::vm_id(&nic.document)?.rsplit('/').next()?;
            let is_it = name.eq_ignore_ascii_case(&format!("{machine}.{suffix}"));
            is_it.then(|| nic::primary(&nic.document).and_then(nic::address))?.map(|block| block.addr())
        })
    };
    let of_label = || {
        world.of_kind(Kind::PublicAddress).map(|address| &address["properties"]).find_map(|properties| {
            let is_it = properties["dnsSettings"]["fqdn"].as_str()?.eq_ignore_ascii_case(name);
            is_it.then(|| properties["ipAddress"].as_str()?.parse().ok())?
        })
    };
    world.names.get(name).copied().or_else(of_machine).or_else(of_label)
}

/// Gives the answer to a client's message, if there is one.
pub(crate) trait Resolve:
    Fn(&[u8], IpAddr) -> Option<Vec<u8>> + Clone + Send + Sync + 'static
{
}

impl<R: Fn(&[u8], IpAddr) -> Option<Vec<u8>> + Clone + Send + Sync + 'static> Resolve for R {}

/// Answers over UDP until the task is aborted.
pub(crate) async fn serve_datagrams(socket: UdpSocket, resolve: impl Resolve) -> io::Result<()> {
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        if let Some(reply) = resolve(&buffer[..length], from.ip()) {
            // The client may be gone.
            drop(socket.send_to(&reply, from).await);
        }
    }
}

/// Answers over TCP, each message with its length before it, until the task is aborted.
pub(crate) async fn serve_streams(listener: TcpListener, resolve: impl Resolve) -> io::Result<()> {
    loop {
        let (mut stream, from) = listener.accept().await?;
        let resolve = resolve.clone();
        tokio::spawn(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut message = vec![0; usize::from(length)];
                stream.read_exact(&mut message).await?;
                let Some(reply) = resolve(&message, from.ip()) else { break };
                stream.write_u16(u16::try_from(reply.len()).unwrap_or(u16::MAX)).await?;
                stream.write_all(&reply).await?;
            }
            io::Result::Ok(())
        });
    }
}
