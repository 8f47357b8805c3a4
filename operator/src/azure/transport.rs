//! The one place through which every call to ARM goes: budget, token, headers, time limits, and what the
//! budget learns from the answer.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, IF_MATCH, RETRY_AFTER};
use reqwest::{Method, Url};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::Priority;
use super::budget::gate::Gate;
use super::budget::{Account, Kind, Lane, Lesson, Provider};
use super::credential::{Cloud, SignIn, TokenHttp};
use super::error::{ArmError, Effect, Error, LONGEST_WAIT, classify};
use super::not_before::NotBefore;
use super::token::Tokens;
use super::{Config, RequestRecord, Urgency};
use crate::deadline::uncounted;
use crate::fence;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(60);
/// After this long a wait for the budget people should be able to see why nothing happens.
const LONG_WAIT: Duration = Duration::from_secs(5);

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Transport(Arc<Inner>);

struct Inner {
    http: reqwest::Client,
    endpoint: Url,
    cloud: Cloud,
    tokens: Tokens,
    gate: Gate,
    not_before: NotBefore,
    /// Only reads are sent.
    dry_run: bool,
    observer: OnceLock<Observer>,
    may_write: OnceLock<MayWrite>,
}

type Observer = Box<dyn Fn(&RequestRecord) + Send + Sync>;
type MayWrite = Box<dyn Fn() -> bool + Send + Sync>;

/// What a call is for: everything about it but the HTTP request itself.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub kind: Kind,
    pub urgency: Urgency,
    /// The id of the resource it is about, for errors and logs.
    pub resource: String,
    /// The resource's region, where it is known and the network provider's.
    pub region: Option<String>,
    /// Marks the calls that belong together in Azure's activity log.
    pub correlation: Uuid,
}

/// A successful answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Transport {
    pub(super) fn new(config: &Config) -> Result<Transport, Error> {
        let endpoint = match &config.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => Url::parse(config.cloud.arm())
                .map_err(|error| Error::Config { message: error.to_string() })?,
        };
        // An error means that the process has installed a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = client(reqwest::Client::builder())?;
        let token_http =
            TokenHttp::new(http.clone(), client(reqwest::Client::builder().no_proxy())?, config.imds.clone());
        let sign_in = SignIn::new(config.credential.clone(), config.cloud, token_http);
        Ok(Transport(Arc::new(Inner {
            http,
            endpoint,
            cloud: config.cloud,
            tokens: Tokens::new(sign_in, format!("{}/.default", config.cloud.arm()))?,
            gate: Gate::new(config.budget_percent),
            not_before: NotBefore::default(),
            dry_run: config.dry_run,
            observer: OnceLock::new(),
            may_write: OnceLock::new(),
        })))
    }

    pub(super) fn endpoint(&self) -> &Url {
        &self.0.endpoint
    }

    pub(super) fn observe(&self, observer: impl Fn(&RequestRecord) + Send + Sync + 'static) {
        let _ = self.0.observer.set(Box::new(observer));
    }

    pub(super) fn write_only_while(&self, may_write: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.0.may_write.set(Box::new(may_write));
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.0.dry_run
    }

    /// The state of the limits.
    pub(super) fn accounts(&self) -> Vec<Account> {
        self.0.gate.accounts()
    }

    /// How many requests of each priority wait for their turn.
    pub(super) fn waiting(&self) -> [(Priority, usize); Priority::ALL.len()] {
        self.0.gate.waiting()
    }

    /// Sends one request when the budget allows it, unless the call is outgrown before. Never repeats it: the
    /// caller decides that, and pays again. Returns the answer if it is a success, otherwise our error.
    pub(super) async fn send(
        &self,
        call: &Call,
        url: Url,
        if_match: Option<&str>,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, Error> {
        self.trust(call, &url)?;
        if call.effect() == Effect::Write {
            if self.0.dry_run {
                return Err(Error::DryRun { resource: call.resource.clone() });
            }
            self.0.not_before.may_write(&call.resource, tokio::time::Instant::now())?;
        }
        let lane = call.lane(&url);
        let waited = self.wait_for_turn(call, &lane).await?;
        // Thousands may wait for their turn: none of them has room for the exchange yet.
        Box::pin(self.exchange(call, &lane, url, if_match, body, waited)).await
    }

    /// Sends one request, which has `waited` for its turn.
    async fn exchange(
        &self,
        call: &Call,
        lane: &Lane,
        url: Url,
        if_match: Option<&str>,
        body: Option<Vec<u8>>,
        waited: Duration,
    ) -> Result<Answer, Error> {
        let token = self.0.tokens.header().await?;
        let started = Instant::now();
        let request_id = Uuid::new_v4();
        let mut request = self
            .0
            .http
            .request(call.method(), url)
            .header(AUTHORIZATION, token.clone())
            .header("x-ms-client-request-id", request_id.to_string())
            .header("x-ms-return-client-request-id", "true")
            .header("x-ms-correlation-request-id", call.correlation.to_string());
        if let Some(etag) = if_match {
            request = request.header(IF_MATCH, etag);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let may_send =
            || call.effect() != Effect::Write || self.0.may_write.get().is_none_or(|may_write| may_write());
        let outcome = match fence::only_while(may_send, &call.resource, request.send()).await {
            Ok(answer) => receive(answer).await,
            Err(error) => Err(error),
        };
        let record = RequestRecord {
            kind: call.kind,
            priority: call.urgency.priority,
            status: outcome.as_ref().ok().map(|answer| answer.status),
            waited,
            took: started.elapsed(),
        };
        debug!(
            resource = call.resource,
            call = call.kind.as_str(),
            status = record.status,
            took_seconds = record.took.as_secs_f64(),
            %request_id,
            correlation_id = %call.correlation,
            "asked Azure"
        );
        if let Some(observer) = self.0.observer.get() {
            observer(&record);
        }
        match record.status {
            Some(401) => self.0.tokens.refused(&token),
            Some(_) => self.0.tokens.accepted(&token),
            None => {}
        }
        match outcome {
            Ok(answer) => self.judge(call, lane, answer),
            Err(error) => Err(lost(call, &error)),
        }
    }

    /// Waits until the budget allows the call, unless it is outgrown by then. Gives how long that took.
    async fn wait_for_turn(&self, call: &Call, lane: &Lane) -> Result<Duration, Error> {
        let Urgency { priority, .. } = call.urgency;
        let outgrown = || Error::Outgrown { resource: call.resource.clone() };
        let is_write = call.effect() == Effect::Write;
        // Where no call waits, the gate lets everything pass.
        if is_write && call.urgency.is_outgrown() {
            return Err(outgrown());
        }
        let turn = self.0.gate.wait_for_turn(lane, priority, call.urgency.outgrown());
        let Some(turn) = uncounted(turn).await else {
            return Err(outgrown());
        };
        // This is the last moment at which a call may be given up. From here on it may have taken effect.
        if is_write && !call.urgency.is_confirmed().await {
            self.0.gate.give_back(lane, &turn);
            return Err(Error::Unconfirmed { resource: call.resource.clone() });
        }
        let waited = turn.waited;
        if waited > LONG_WAIT {
            info!(
                resource = call.resource,
                call = call.kind.as_str(),
                waited_seconds = waited.as_secs_f64(),
                "waited for Azure's request limits"
            );
        }
        Ok(waited)
    }

    /// Lets the budget learn from the answer, and turns everything but a success into an error.
    fn judge(&self, call: &Call, lane: &Lane, answer: Answer) -> Result<Answer, Error> {
        let writes = call.effect() == Effect::Write;
        if (200..300).contains(&answer.status) {
            self.0.gate.learn(lane, &Lesson::of(&answer.headers, writes, None));
            return Ok(answer);
        }
        let error = ArmError::of_body(&answer.body);
        let retry_after = retry_after(&answer.headers);
        let error = classify(Some(answer.status), &error, retry_after, &call.resource, call.effect());
        if let Error::Throttled { retry_after, limit, .. } = &error {
            warn!(
                resource = call.resource,
                call = call.kind.as_str(),
                retry_after_seconds = retry_after.as_secs_f64(),
                ?limit,
                "throttled by Azure"
            );
        }
        if let Error::OutcomeUnknown { message, .. } = &error {
            let (wait, now) = (retry_after.unwrap_or_default(), tokio::time::Instant::now());
            self.0.not_before.put_off(&call.resource, message, wait.min(LONGEST_WAIT), now);
        }
        self.0.gate.learn(lane, &Lesson::of(&answer.headers, writes, Some(&error)));
        Err(error)
    }

    /// Our token goes with every request, and ARM names the URLs of operations. So only ARM's own URLs are
    /// accepted.
    fn trust(&self, call: &Call, url: &Url) -> Result<(), Error> {
        let arm = self.0.cloud.arm().trim_start_matches("https://");
        let is_arm = url.scheme() == "https"
            && url.host_str().is_some_and(|host| {
                host.strip_suffix(arm).is_some_and(|front| front.is_empty() || front.ends_with('.'))
            });
        if is_arm || url.origin() == self.0.endpoint.origin() {
            return Ok(());
        }
        let to = url.origin().ascii_serialization();
        let message = format!("it leads to {to}, which isn't Azure Resource Manager");
        Err(Error::unexpected(&call.resource, message))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("endpoint", &self.0.endpoint.as_str()).finish_non_exhaustive()
    }
}

impl Call {
    /// A call on its own, about the resource, or the scope, of that id.
    pub(super) fn about(kind: Kind, urgency: impl Into<Urgency>, id: &str) -> Call {
        Call {
            kind,
            urgency: urgency.into(),
            resource: id.to_owned(),
            region: None,
            correlation: Uuid::new_v4(),
        }
    }

    /// The call that asks for the outcome of this one, a write.
    pub(super) fn following(&self, kind: Kind) -> Call {
        Call { kind, urgency: Priority::UnderWay.into(), ..self.clone() }
    }

    fn method(&self) -> Method {
        match self.kind {
            Kind::Read | Kind::Poll => Method::GET,
            Kind::Write => Method::PUT,
            Kind::Delete => Method::DELETE,
        }
    }

    fn effect(&self) -> Effect {
        match self.kind {
            Kind::Read | Kind::Poll => Effect::None,
            Kind::Write | Kind::Delete => Effect::Write,
        }
    }

    fn lane(&self, url: &Url) -> Lane {
        let resource = url.path().to_ascii_lowercase();
        let subscription = match resource.strip_prefix("/subscriptions/") {
            Some(rest) => rest.split('/').next().unwrap_or_default().to_owned(),
            None => String::new(),
        };
        let provider = if resource.contains("/providers/microsoft.network/") {
            Provider::Network
        } else if resource.contains("/providers/microsoft.compute/") {
            Provider::Compute
        } else {
            Provider::Other
        };
        let region = self.region.as_ref().map(|region| region.to_ascii_lowercase());
        Lane { subscription, provider, region, kind: self.kind, resource }
    }
}

/// Redirects aren't followed: ARM sends none, and the token must not go elsewhere. Mozilla's roots are built
/// in, because the image holds no others; those of the system, or of `SSL_CERT_FILE`, count as well.
fn client(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, Error> {
    let unusable =
        |error: reqwest::Error| Error::Config { message: format!("no HTTP client: {}", causes(&error)) };
    let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .map(|root| reqwest::Certificate::from_der(root))
        .collect::<Result<Vec<_>, _>>()
        .map_err(unusable)?;
    builder
        .user_agent(concat!("vnetpool-operator/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_merge(roots)
        .build()
        .map_err(unusable)
}

async fn receive(answer: reqwest::Response) -> Result<Answer, reqwest::Error> {
    let status = answer.status().as_u16();
    let headers = answer.headers().clone();
    let body = answer.bytes().await?.to_vec();
    Ok(Answer { status, headers, body })
}

/// No answer came. Unless the connection couldn't even be made, a write may have been carried out.
fn lost(call: &Call, error: &reqwest::Error) -> Error {
    let resource = call.resource.clone();
    let message = causes(error);
    if call.effect() == Effect::Write && !error.is_connect() {
        Error::OutcomeUnknown { resource, message }
    } else {
        Error::Unavailable { resource, message, retry_after: Duration::from_secs(10) }
    }
}

/// Only the sources of a reqwest error name the cause. Its own text would repeat the URL with its query.
fn causes(error: &reqwest::Error) -> String {
    let mut texts = vec![];
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = next {
        texts.push(cause.to_string());
        next = cause.source();
    }
    if error.is_timeout() {
        texts.insert(0, "timed out".to_owned());
    }
    texts.dedup();
    if texts.is_empty() { "the connection broke".to_owned() } else { texts.join(": ") }
}

/// Azure gives whole seconds, never a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::{ApiVersions, Cloud, Credential};

    fn transport(endpoint: Option<&str>) -> Transport {
        Transport::new(&Config {
            cloud: Cloud::Public,
            endpoint: endpoint.map(|url| url.parse().unwrap()),
            imds: None,
            credential: Credential::ManagedIdentity { client_id: None },
            versions: ApiVersions::of(Cloud::Public),
            budget_percent: 80,
            dry_run: false,
        })
        .unwrap()
    }

    fn call(kind: Kind) -> Call {
        Call {
            kind,
            urgency: Priority::WaitingPods.into(),
            resource: "nic".into(),
            region: Some("WestEurope".into()),
            correlation: Uuid::nil(),
        }
    }

    #[test]
    fn our_token_goes_to_arm_and_to_no_other_host() {
        let table = [
            (None, "https://management.azure.com/x", true),
            (None, "https://westeurope.management.azure.com/x", true),
            (None, "http://management.azure.com/x", false),
            (None, "https://evilmanagement.azure.com/x", false),
            (None, "https://management.azure.com.example/x", false),
            (Some("http://127.0.0.1:81"), "http://127.0.0.1:81/x", true),
            (Some("http://127.0.0.1:81"), "http://127.0.0.1:82/x", false),
            // A private endpoint may name operations at the cloud's own address.
            (Some("https://arm.private"), "https://management.azure.com/x", true),
        ];
        for (endpoint, url, trusted) in table {
            let result = transport(endpoint).trust(&call(Kind::Poll), &url.parse().unwrap());
            assert_eq!(result.is_ok(), trusted, "{endpoint:?} {url}");
        }
    }

    #[test]
    fn calls_of_one_subscription_and_region_are_metered_together_in_any_case() {
        let lane = |url: &str| call(Kind::Write).lane(&url.parse().unwrap());
        assert_eq!(
            lane("http://arm/SUBSCRIPTIONS/ABC/resourceGroups/G/providers/Microsoft.Network/x"),
            lane("http://arm/subscriptions/abc/resourcegroups/g/providers/microsoft.network/x?x=y")
        );
        let vm = lane(
            "http://arm/subscriptions/abc/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm",
        );
        assert_eq!((vm.subscription.as_str(), vm.region.as_deref()), ("abc", Some("westeurope")));
        assert_eq!(vm.provider, Provider::Compute);
    }
}
