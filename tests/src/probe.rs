//! A test program's work when it is started again inside a namespace, by the argument `probe`.

use anyhow::{Context, Result, bail};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, TYPE};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the echo listens.
const PORT: u16 = 9000;

/// Where the drain listens.
const DRAIN: u16 = 9001;

/// How the probe ended, if the program was started as one: by `probe` and `echo`, `flow ADDRESS`, `drain`,
/// `pour ADDRESS MEGABYTES` or `resolve NAME`. The error is that there is no such probe, or that it ended
/// before its time.
pub fn asked_for() -> Option<Result<ExitCode>> {
    let arguments: Vec<String> = std::env::args().collect();
    let is_probe = arguments.get(1).is_some_and(|first| first == "probe");
    is_probe.then(|| run(&arguments[2..]))
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["echo"] => echo()?,
        ["flow", address] => flow(address)?,
        ["drain"] => drain()?,
        ["pour", address, megabytes] => pour(address, megabytes.parse()?)?,
        ["resolve", name] => resolve(name)?,
        other => bail!("no such probe: {other:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends each client its address, then sends back every line it sends.
fn echo() -> Result<()> {
    for stream in TcpListener::bind(("0.0.0.0", PORT))?.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || -> Result<()> {
            writeln!(stream, "{}", stream.peer_addr()?.ip())?;
            for line in BufReader::new(stream.try_clone()?).lines() {
                writeln!(stream, "{}", line?)?;
            }
            Ok(())
        });
    }
    Ok(())
}

/// Prints our address as the echo sees it, then what comes back of the time, sent every 50 ms.
fn flow(address: &str) -> Result<()> {
    let mut stream = TcpStream::connect((address, PORT))?;
    stream.set_read_timeout(Some(Duration::from_secs(8)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    println!("{}", lines.next().context("no greeting")??);
    loop {
        writeln!(stream, "{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        println!("{}", lines.next().context("the echo hung up")??);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Reads everything that clients send, and then hangs up.
fn drain() -> Result<()> {
    for stream in TcpListener::bind(("0.0.0.0", DRAIN))?.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    }
    Ok(())
}

/// Sends so much to a drain and prints how many seconds passed until all was read.
fn pour(address: &str, megabytes: u32) -> Result<()> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect((address, DRAIN))?;
    let megabyte = vec![0; 1_000_000];
    for _ in 0..megabytes {
        stream.write_all(&megabyte)?;
    }
    stream.shutdown(Shutdown::Write)?;
    std::io::copy(&mut stream, &mut std::io::sink())?;
    println!("{}", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Asks Azure's resolver for an address and prints its answer.
fn resolve(name: &str) -> Result<()> {
    let mut query = Packet::new_query(7);
    query.questions.push(Question::new(
        Name::new(name)?,
        QTYPE::TYPE(TYPE::A),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.send_to(&query.build_bytes_vec()?, ("168.63.129.16", 53))?;
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer)?;
    let reply = Packet::parse(&buffer[..length])?;
    match reply.answers.first().map(|answer| &answer.rdata) {
        Some(RData::A(address)) => println!("{}", Ipv4Addr::from(address.address)),
        _ => println!("{:?}", reply.rcode()),
    }
    Ok(())
}
