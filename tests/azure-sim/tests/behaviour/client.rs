//! A small HTTP client that hides nothing: every header as it came, and a cut connection is an error.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vnetpool_azure_sim::Sim;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// `Null` without a body.
    pub body: Value,
}

impl Answer {
    /// `error.code`, or nothing.
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

/// Sends requests with a token to one simulator.
pub struct Client {
    host: String,
}

impl Client {
    pub fn of(sim: &Sim) -> Self {
        Self { host: sim.arm_url().trim_start_matches("http://").to_owned() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], None).await.unwrap()
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[], Some(body)).await.unwrap()
    }

    /// Polls until the operation of a write is over, and gives the last answer's body.
    pub async fn outcome(&self, write: &Answer) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let body = self.get(path_of(&write.headers["azure-asyncoperation"])).await.body;
            if body["status"] != "InProgress" {
                return body;
            }
            assert!(Instant::now() < deadline, "the operation doesn't end");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A request with a bearer token, unless `headers` have another `authorization`.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(&self.host).await?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.host);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request += "authorization: Bearer test\r\n";
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        Ok(Answer {
            status,
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
            body: if body.is_empty() {
                Value::Null
            } else {
                serde_json::from_str(body).unwrap_or(json!(body))
            },
        })
    }
}

/// The path and query of a URL that the simulator gave.
pub fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').map_or("/", |slash| &rest[slash..])
}
