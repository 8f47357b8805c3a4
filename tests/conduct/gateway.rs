//! A gateway between the operator and its API server, by HTTP without TLS: it hands requests on, or answers
//! some of them itself as an API server in trouble does.

#[path = "gateway/garbage.rs"] // also where a benchmark includes this file
mod garbage;
#[path = "gateway/hostile.rs"]
mod hostile;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
pub use garbage::Spoilt;
use garbage::{Garbage, Lines};
use hostile::Fate;
use kube::Client;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vnetpool_azure_sim::Draws;
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::{ControlPlane, User};

/// Ends when dropped.
pub struct Gateway {
    pub address: SocketAddr,
    desk: Desk,
    task: JoinHandle<()>,
}

/// The answer in its place.
#[derive(Clone, Copy)]
pub enum Trouble {
    /// This status to writes of NodeIPAllocations, with a `Retry-After` of so many seconds.
    Refuse(StatusCode, Option<u64>),
    /// This status to whoever makes a NodeIPAllocation.
    RefuseToMake(StatusCode),
    /// This status to lists and watches.
    RefuseToShow(StatusCode),
    /// To a watch, that its version is too old: etcd was compacted. It counts the kinds that were listed
    /// since, and not the answers: a watch that has lost its answer meets it again.
    Expire,
    /// The same to an agent's watch of its one object.
    ExpireOne,
}

#[derive(Clone)]
struct Desk {
    client: Client,
    state: Arc<Mutex<Standing>>,
}

#[derive(Default)]
struct Standing {
    /// Meant for so many more requests, or kinds.
    trouble: Option<(Trouble, usize)>,
    /// The paths whose watches have expired and that haven't been listed since, and those that have.
    expired: BTreeSet<String>,
    relisted: BTreeSet<String>,
    /// How many lists have been asked for, and how many watches have been handed on.
    lists: usize,
    watches: usize,
    /// Ends the watches that go on.
    ending: watch::Sender<()>,
    /// What watches bring is lost.
    are_watches_silent: bool,
    /// The same for good of so many, in the order in which they were begun.
    silent: usize,
    garbage: Garbage,
    /// The answers to so many more writes of a status that have these words are lost.
    losing: Option<(&'static str, usize)>,
    /// With the end of the requests' silence when it is dropped.
    hostile: Option<(Draws, watch::Sender<()>)>,
}

impl Gateway {
    /// On any free port of 127.0.0.1; asks the API server as this user, since its policies know who may write
    /// what.
    pub async fn start(plane: &ControlPlane, user: User<'_>) -> Result<Gateway> {
        let client = vnetpool_apiserver::client::client(plane.config(user).await?)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let desk = Desk { client, state: Arc::default() };
        let routes = Router::new().fallback(handle).with_state(desk.clone());
        let task = tokio::spawn(async move { drop(axum::serve(listener, routes).await) });
        Ok(Gateway { address, desk, task })
    }

    /// The next `count` requests that it is meant for meet this trouble, or the watches of so many kinds.
    pub fn trouble(&self, trouble: Trouble, count: usize) {
        let mut state = self.desk.lock();
        state.trouble = Some((trouble, count));
        state.expired.clear();
        state.relisted.clear();
    }

    /// From now on the fate of each request is drawn at random, by this seed; without one, no more. Returns
    /// for how many it was drawn until now.
    pub fn be_hostile(&self, seed: Option<u64>) -> usize {
        let hostile = seed.map(|seed| (Draws::of(seed), watch::Sender::default()));
        let before = std::mem::replace(&mut self.desk.lock().hostile, hostile);
        before.map_or(0, |(draws, _)| draws.count())
    }

    /// From now on nothing that a watch brings passes, or all of it again; its connection lives.
    pub fn silence_watches(&self, are_silent: bool) {
        self.desk.lock().are_watches_silent = are_silent;
    }

    /// From now on nothing passes that one of the present watches brings, and none of their connections ends.
    /// Those that are begun later are as always.
    pub fn silence_present_watches(&self) {
        let mut state = self.desk.lock();
        state.silent = state.watches;
    }

    /// The next `count` writes of a status with these words in it are done, and the connection ends in the
    /// middle of each answer.
    pub fn lose_answers(&self, words: &'static str, count: usize) {
        self.desk.lock().losing = Some((words, count));
    }

    /// How many answers are still to be lost.
    pub fn losing(&self) -> usize {
        self.desk.lock().losing.map_or(0, |(_, left)| left)
    }

    /// From now on these fields, and no others, have another value in each answer.
    pub fn spoil(&self, all: Vec<Spoilt>) {
        self.desk.lock().garbage = Garbage::of(all);
    }

    /// The names of the spoilt objects that no client has got yet.
    pub fn unseen(&self) -> Vec<String> {
        self.desk.lock().garbage.unseen()
    }

    /// How many requests, or kinds, are still to meet it.
    pub fn left(&self) -> usize {
        self.desk.lock().trouble.map_or(0, |(_, left)| left)
    }

    /// How many lists have been asked for.
    #[allow(dead_code, reason = "only the benchmark of size, which shares this file, asks")]
    pub fn lists(&self) -> usize {
        self.desk.lock().lists
    }

    /// How many watches have been handed on.
    pub fn watches(&self) -> usize {
        self.desk.lock().watches
    }

    /// Ends all watches now. They are asked for anew from where they were.
    #[allow(dead_code, reason = "only the benchmark of size, which shares this file, asks")]
    pub fn end_watches(&self) {
        self.desk.lock().ending.send_replace(());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        lock(&self.state)
    }

    /// The fate that is drawn for this request.
    fn draw(&self, request: &Request) -> Option<(Fate, watch::Receiver<()>)> {
        let (uri, mut state) = (request.uri(), self.lock());
        let (draws, silence) = state.hostile.as_mut()?;
        let fate = hostile::draw(draws, request.method(), uri.path(), uri.query().unwrap_or_default())?;
        Some((fate, silence.subscribe()))
    }

    /// The request, and whether its answer is to be lost.
    async fn loses(&self, request: Request) -> Result<(Request, bool)> {
        let is_of_status = request.method() == Method::PATCH && request.uri().path().ends_with("/status");
        if !is_of_status || self.lock().losing.is_none() {
            return Ok((request, false));
        }
        let (head, body) = request.into_parts();
        let body = to_bytes(body, usize::MAX).await?;
        let mut state = self.lock();
        let has = |words: &str| body.windows(words.len()).any(|part| part == words.as_bytes());
        let losing = state.losing.as_mut().filter(|(words, left)| *left > 0 && has(words));
        let is_lost = losing.map(|(_, left)| *left -= 1).is_some();
        drop(state);
        Ok((Request::from_parts(head, body.into()), is_lost))
    }

    /// A watch's answer, of which nothing passes while watches are silent.
    fn unless_silent(&self, path: String, answer: Response) -> Response {
        let desk = self.clone();
        let mut state = self.lock();
        state.watches += 1;
        let number = state.watches;
        let mut ending = state.ending.subscribe();
        drop(state);
        answer.map(|body| {
            let mut lines = Lines::default();
            let pieces = body.into_data_stream().flat_map(move |piece| {
                let mut state = desk.lock();
                let pieces = match piece {
                    _ if state.are_watches_silent || number <= state.silent => vec![],
                    Ok(piece) if !state.garbage.is_empty() || !lines.is_empty() => {
                        let lines = lines.take(&piece).into_iter();
                        lines.map(|line| Ok(state.garbage.spoil_line(&path, line))).collect()
                    }
                    piece => vec![piece],
                };
                stream::iter(pieces)
            });
            Body::from_stream(pieces.take_until(async move { ending.changed().await }))
        })
    }

    /// The answer to a request for this path, with what is spoilt of it.
    async fn spoil(&self, path: &str, answer: Response) -> Result<Response> {
        if self.lock().garbage.is_empty() {
            return Ok(answer);
        }
        let (mut head, body) = answer.into_parts();
        let body = to_bytes(body, usize::MAX).await?;
        for of_the_length in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
            head.headers.remove(of_the_length);
        }
        let body = self.lock().garbage.spoil(path, body);
        Ok(Response::from_parts(head, body.into()))
    }

    /// The answer of a server in trouble, if this request is to get one.
    fn meet(&self, request: &Request) -> Option<Response> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let path = request.uri().path();
        let is_watch = is_watch(request.uri());
        let names_none = path.rsplit('/').next().is_some_and(|last| last.ends_with('s'));
        let is_list = request.method() == Method::GET && names_none && !is_watch;
        state.lists += usize::from(is_list);
        let (trouble, left) = state.trouble.as_mut().filter(|(_, left)| *left > 0)?;
        if is_list && state.expired.remove(path) {
            state.relisted.insert(path.to_owned());
            *left -= 1;
        }
        let is_meant = match trouble {
            // Requests for which a node's pods wait; an Event or a Lease that can't be written is another
            // matter.
            Trouble::Refuse(..) => request.method() != Method::GET && path.contains("/nodeipallocations/"),
            Trouble::RefuseToMake(_) => {
                request.method() == Method::POST && path.ends_with("/nodeipallocations")
            }
            Trouble::RefuseToShow(_) => is_list || is_watch,
            // An agent's watch of its one object reads that by name.
            Trouble::Expire | Trouble::ExpireOne => {
                let names_one = request.uri().query().unwrap_or_default().contains("metadata.name");
                let is_of_one = matches!(trouble, Trouble::ExpireOne);
                is_watch && names_one == is_of_one && (is_of_one || !state.relisted.contains(path))
            }
        };
        if !is_meant {
            return None;
        }
        match trouble {
            Trouble::Expire => drop(state.expired.insert(path.to_owned())),
            _ => *left -= 1,
        }
        Some(match *trouble {
            Trouble::RefuseToMake(status) | Trouble::RefuseToShow(status) => {
                (status, status_body(status, "Trouble")).into_response()
            }
            Trouble::Refuse(status, retry_after) => {
                let mut answer = (status, status_body(status, "Trouble")).into_response();
                if let Some(seconds) = retry_after {
                    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                }
                answer
            }
            Trouble::Expire | Trouble::ExpireOne => {
                let gone = status_body(StatusCode::GONE, "Expired");
                format!(r#"{{"type":"ERROR","object":{gone}}}"#).into_response()
            }
        })
    }
}

fn is_watch(uri: &Uri) -> bool {
    uri.query().unwrap_or_default().contains("watch=true")
}

fn status_body(status: StatusCode, reason: &str) -> String {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
        "message": "the gateway answers so", "code": status.as_u16() })
    .to_string()
}

async fn handle(State(desk): State<Desk>, request: Request) -> Response {
    if let Some(answer) = desk.meet(&request) {
        return answer;
    }
    let (is_watch, path) = (is_watch(request.uri()), request.uri().path().to_owned());
    if request.method() != Method::GET {
        desk.lock().garbage.written(&path);
    }
    let (request, is_lost) = match desk.loses(request).await {
        Ok(read) => read,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let drawn = desk.draw(&request).or_else(|| is_lost.then(|| (Fate::Half, watch::channel(()).1)));
    let answer = match drawn {
        Some((fate, healed)) => fate.answer(desk.client, request, healed).await,
        None if is_watch => {
            hand_on(desk.client.clone(), request).await.map(|answer| desk.unless_silent(path, answer))
        }
        None => match hand_on(desk.client.clone(), request).await {
            Ok(answer) => desk.spoil(&path, answer).await,
            failure => failure,
        },
    };
    answer.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, error.to_string()).into_response())
}

async fn hand_on(client: Client, request: Request) -> Result<Response> {
    let (mut head, body) = request.into_parts();
    head.headers.remove(header::HOST);
    let body = to_bytes(body, usize::MAX).await?;
    let answer = client.send(Request::from_parts(head, body.into())).await?;
    Ok(answer.map(Body::new))
}
