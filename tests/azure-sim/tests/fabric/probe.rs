//! A machine's program: this binary, started again inside a network namespace.

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, TYPE};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// Where the machines listen.
const PORT: u16 = 9000;

/// `listen`, `send FROM TO TEXT`, `reach FROM TO`, `serve PORT`, `fetch FROM TO PORT`, `resolve FROM NAME`,
/// or `http METHOD PATH` with the body on standard input.
pub(crate) fn run(arguments: &[String]) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["listen"] => listen(),
        ["send", from, to, text] => {
            let socket = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 0)).unwrap();
            // The recipient can't see which address was meant, so the text names it.
            socket.send_to(format!("{text} from {from} to {to}").as_bytes(), (*to, PORT)).unwrap();
        }
        ["reach", from, to] => reach(from.parse().unwrap(), to.parse().unwrap()),
        ["serve", port] => serve(port.parse().unwrap()),
        ["fetch", from, to, port] => fetch(from, &format!("{to}:{port}")),
        ["resolve", from, name] => resolve(from, name),
        ["http", method, path] => http(method, path),
        other => panic!("no such probe: {other:?}"),
    }
}

fn listen() {
    let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    println!("listening");
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        assert!(text.contains(&format!("from {} ", from.ip())), "the source was rewritten: {from}, {text}");
        println!("{text}");
    }
}

/// Whether an address is alive for us, as an exit code: a datagram to a closed port of it comes back as an
/// error.
fn reach(from: IpAddr, to: IpAddr) {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.connect(SocketAddr::new(to, 1)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.send(b"?").unwrap();
    let answer = socket.recv(&mut [0; 1]).map_err(|error| error.kind());
    std::process::exit(i32::from(answer != Err(ErrorKind::ConnectionRefused)));
}

/// Answers each client with its address and the address it reached, as an answer to an HTTP request.
fn serve(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    println!("listening");
    for mut stream in listener.incoming().map_while(Result::ok) {
        let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { continue };
        let body = format!("{} reached {}", peer.ip(), local.ip());
        drop(stream.read(&mut [0; 1000]));
        drop(write!(stream, "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    }
}

/// Prints a server's answer, or nothing when it can't be reached.
fn fetch(from: &str, to: &str) {
    let timeout = ["--max-time", "2", "--connect-timeout", "1", "-s", "--interface", from];
    let output =
        std::process::Command::new("curl").args(timeout).arg(format!("http://{to}/")).output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
}

/// Asks the resolver for an address and prints its answer.
fn resolve(from: &str, name: &str) {
    let resolver = ("168.63.129.16", 53);
    let mut query = Packet::new_query(7);
    let name = Name::new(name).unwrap();
    query.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
    let query = query.build_bytes_vec().unwrap();
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.send_to(&query, resolver).unwrap();
    let mut buffer = [0; 1500];
    let Ok(length) = socket.recv(&mut buffer) else { return print!("no answer") };
    let mut stream = TcpStream::connect(resolver).unwrap();
    stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&query).unwrap();
    let mut over_tcp = vec![0; 2 + length];
    stream.read_exact(&mut over_tcp).unwrap();
    assert_eq!(buffer[..length], over_tcp[2..]);
    let reply = Packet::parse(&buffer[..length]).unwrap();
    match reply.answers.first().map(|answer| &answer.rdata) {
        Some(RData::A(address)) => print!("{}", Ipv4Addr::from(address.address)),
        _ => print!("{:?}", reply.rcode()),
    }
}

/// One request to ARM; prints the body of the answer.
fn http(method: &str, path: &str) {
    let mut body = String::new();
    std::io::stdin().read_to_string(&mut body).unwrap();
    let mut stream = TcpStream::connect(("198.51.100.10", 80)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: 198.51.100.10\r\nauthorization: Bearer test\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    print!("{}", answer.split_once("\r\n\r\n").unwrap().1);
}
