//! An ARM that answers by a script: for what the simulated Azure wouldn't do, or not on demand.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use vnetpool_operator::azure::{ApiVersions, Azure, Cloud, Config, Credential};

/// Ends with the test.
pub struct Script {
    pub url: String,
    state: Arc<Mutex<Play>>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Play {
    to_come: VecDeque<Answer>,
    /// Headers and bodies of the answers so far, which may have named what is asked for next.
    given: String,
    heard: Vec<Heard>,
    /// Requests that the script has no answer for, or one to another question.
    unforeseen: Vec<String>,
    no_tokens: bool,
}

/// The next answer, whatever the question.
pub struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Value,
}

#[derive(Clone)]
pub struct Heard {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub at: Instant,
}

pub fn answer(status: u16, body: Value) -> Answer {
    Answer { status, headers: vec![], body }
}

impl Answer {
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Answer {
        self.headers.push((name, value.to_string()));
        self
    }
}

impl Script {
    pub async fn start() -> Script {
        let state = Arc::new(Mutex::new(Play::default()));
        let app = axum::Router::new().fallback(play).with_state(state.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Script { url, state, server }
    }

    pub fn azure(&self) -> Azure {
        client(&self.url, &self.url)
    }

    pub fn next(&self, answer: Answer) -> &Script {
        self.state.lock().unwrap().to_come.push_back(answer);
        self
    }

    /// The answers that nobody has asked for by now aren't to be asked for.
    pub fn forget_rest(&self) {
        self.state.lock().unwrap().to_come.clear();
    }

    /// The VM has no managed identity.
    pub fn refuse_tokens(&self) {
        self.state.lock().unwrap().no_tokens = true;
    }

    /// All requests so far but those for tokens.
    pub fn heard(&self) -> Vec<Heard> {
        self.state.lock().unwrap().heard.clone()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.server.abort();
        if std::thread::panicking() {
            return;
        }
        // The script answers whatever it is asked, so a wrong path, verb or order would go unseen.
        let play = self.state.lock().unwrap();
        assert!(play.unforeseen.is_empty(), "unforeseen: {:?}", play.unforeseen);
        assert!(play.to_come.is_empty(), "{} answers were never asked for", play.to_come.len());
        let follows = |heard: &Heard| heard.method == Method::GET && play.given.contains(heard.uri.path());
        let own = play.heard.iter().filter(|heard| !follows(heard));
        crate::listed::assert_listed(own.map(|heard| (heard.method.as_str(), heard.uri.path())));
    }
}

/// Has so much time pass for every waiting task, though none does.
pub async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

pub fn client(arm: &str, imds: &str) -> Azure {
    Azure::new(&config(arm, imds)).unwrap()
}

pub fn config(arm: &str, imds: &str) -> Config {
    Config {
        cloud: Cloud::Public,
        endpoint: Some(arm.parse().unwrap()),
        imds: Some(imds.parse().unwrap()),
        credential: Credential::ManagedIdentity { client_id: None },
        versions: ApiVersions::of(Cloud::Public),
        budget_percent: 80,
        dry_run: false,
    }
}

async fn play(
    State(state): State<Arc<Mutex<Play>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let mut state = state.lock().unwrap();
    if uri.path() == "/metadata/identity/oauth2/token" {
        if state.no_tokens {
            let body = json!({ "error": "invalid_request", "error_description": "Identity not found" });
            return (StatusCode::BAD_REQUEST, Json(body)).into_response();
        }
        return Json(json!({
            "access_token": "the-token", "expires_on": "4102444800", "token_type": "Bearer", "resource": "arm",
        }))
        .into_response();
    }
    let asked = format!("{method} {}", uri.path());
    let next = state.to_come.pop_front();
    if !next.as_ref().is_some_and(|next| is_answer_to(uri.path(), &next.body)) {
        state.unforeseen.push(asked);
    }
    state.heard.push(Heard { method, uri, headers, at: Instant::now() });
    let Some(Answer { status, headers, body }) = next else {
        return (StatusCode::IM_A_TEAPOT, "nothing more in the script").into_response();
    };
    state.given.push_str(&body.to_string());
    let mut response = (StatusCode::from_u16(status).unwrap(), Json(body)).into_response();
    for (name, value) in headers {
        state.given.push_str(&value);
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

/// Whether a body is what stands at this path: the state of an operation, or the document of a NIC. An error
/// may stand anywhere.
fn is_answer_to(path: &str, body: &Value) -> bool {
    let path = path.to_ascii_lowercase();
    let is_of_operation = body["status"].is_string();
    let is_of_nic = body["properties"]["ipConfigurations"].is_array();
    let is_error = body["error"]["code"].is_string() && !is_of_operation;
    is_error
        || is_of_operation == path.contains("/operations/")
            && (!is_of_nic || path.contains("/networkinterfaces/"))
}
