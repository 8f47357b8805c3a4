//! The admin API: HTTP and JSON over a Unix socket, one route per operation of [`Azure`].

use crate::azure::{Azure, Error, NewInstance, NewNic, NewScaleSet, NewVm, Peering, Premises, Settings};
use crate::fault::Fault;
use crate::world::Access;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::net::UnixListener;

type Azured = State<Arc<Azure>>;

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Network(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

/// The answer of an operation without a result.
fn done() -> Json<Value> {
    Json(json!({}))
}

/// Serves until the task is aborted.
pub(crate) async fn serve(listener: UnixListener, azure: Arc<Azure>) -> io::Result<()> {
    let router = Router::new()
        .route("/vms", post(add_vm))
        .route("/vms/{name}", delete(delete_vm))
        .route("/vms/{name}/nics", post(add_nic))
        .route("/vms/{name}/replug", post(replug))
        .route("/vms/{name}/start", post(start))
        .route("/vms/{name}/deallocate", post(deallocate))
        .route("/scalesets", post(add_scale_set))
        .route("/scalesets/{name}/instances", post(add_instance))
        .route("/vms/{name}/upgrade", post(upgrade))
        .route("/internet", post(internet))
        .route("/premises", post(premises))
        .route("/names", put(names))
        .route("/questions", get(questions))
        .route("/log", get(log).delete(clear_log))
        .route("/state", get(state))
        .route("/settings", patch(settings))
        .route("/faults", get(faults).post(order_fault))
        .route("/faults/{id}", delete(lift_fault))
        .route("/hostility", put(be_hostile).delete(heal))
        .route("/vnets/{name}/peerings", put(peerings))
        .route("/nics/{name}", patch(patch_nic))
        .route("/permissions", put(permissions))
        .route("/access", put(access))
        .with_state(azure);
    axum::serve(listener, router).await
}

async fn add_vm(State(azure): Azured, Json(new): Json<NewVm>) -> Result<impl IntoResponse, Error> {
    Ok(Json(azure.add_vm(new).await?))
}

#[derive(Deserialize)]
struct Deletion {
    #[serde(default)]
    keep_nic: bool,
}

async fn delete_vm(
    State(azure): Azured,
    Path(name): Path<String>,
    Query(Deletion { keep_nic }): Query<Deletion>,
) -> Result<Json<Value>, Error> {
    azure.delete_vm(&name, keep_nic).await?;
    Ok(done())
}

async fn add_nic(
    State(azure): Azured,
    Path(name): Path<String>,
    Json(new): Json<NewNic>,
) -> Result<impl IntoResponse, Error> {
    Ok(Json(azure.add_nic(&name, &new).await?))
}

async fn replug(State(azure): Azured, Path(name): Path<String>) -> Result<Json<Value>, Error> {
    azure.replug(&name).await?;
    Ok(done())
}

async fn start(State(azure): Azured, Path(name): Path<String>) -> Result<Json<Value>, Error> {
    azure.set_running(&name, true).await?;
    Ok(done())
}

async fn deallocate(State(azure): Azured, Path(name): Path<String>) -> Result<Json<Value>, Error> {
    azure.set_running(&name, false).await?;
    Ok(done())
}

async fn add_scale_set(
    State(azure): Azured,
    Json(new): Json<NewScaleSet>,
) -> Result<impl IntoResponse, Error> {
    Ok(Json(json!({ "id": azure.add_scale_set(new)? })))
}

async fn add_instance(
    State(azure): Azured,
    Path(name): Path<String>,
    Json(new): Json<NewInstance>,
) -> Result<impl IntoResponse, Error> {
    Ok(Json(azure.add_instance(&name, new).await?))
}

async fn upgrade(State(azure): Azured, Path(name): Path<String>) -> Result<Json<Value>, Error> {
    azure.upgrade_instance(&name).await?;
    Ok(done())
}

#[derive(Deserialize)]
struct InternetHost {
    netns: String,
    address: Ipv4Addr,
    service: Option<String>,
}

async fn internet(
    State(azure): Azured,
    Json(InternetHost { netns, address, service }): Json<InternetHost>,
) -> Result<Json<Value>, Error> {
    azure.join_internet(&netns, address, service.as_deref()).await?;
    Ok(done())
}

async fn names(
    State(azure): Azured,
    Json(names): Json<std::collections::BTreeMap<String, Ipv4Addr>>,
) -> Json<Value> {
    azure.set_names(names);
    done()
}

async fn questions(State(azure): Azured) -> impl IntoResponse {
    Json(azure.questions())
}

async fn premises(State(azure): Azured, Json(premises): Json<Premises>) -> Result<Json<Value>, Error> {
    azure.join_premises(&premises).await?;
    Ok(done())
}

async fn log(State(azure): Azured) -> impl IntoResponse {
    Json(azure.log())
}

async fn clear_log(State(azure): Azured) -> Json<Value> {
    azure.clear_log();
    done()
}

async fn state(State(azure): Azured) -> Json<Value> {
    Json(azure.state())
}

async fn settings(State(azure): Azured, Json(settings): Json<Settings>) -> Result<Json<Value>, Error> {
    azure.set(&settings)?;
    Ok(done())
}

async fn faults(State(azure): Azured) -> impl IntoResponse {
    Json(azure.faults())
}

async fn order_fault(State(azure): Azured, Json(fault): Json<Fault>) -> Json<Value> {
    Json(json!({ "id": azure.order_fault(fault) }))
}

async fn lift_fault(State(azure): Azured, Path(id): Path<u64>) -> Result<Json<Value>, Error> {
    azure.lift_fault(id)?;
    Ok(done())
}

#[derive(Deserialize)]
struct Hostility {
    seed: u64,
    #[serde(default)]
    codes: Vec<(Option<u16>, String)>,
}

async fn be_hostile(State(azure): Azured, Json(Hostility { seed, codes }): Json<Hostility>) -> Json<Value> {
    azure.be_hostile(seed, codes);
    done()
}

async fn heal(State(azure): Azured) -> Json<Value> {
    azure.heal();
    done()
}

#[derive(Deserialize)]
struct Peerings {
    peerings: Vec<Peering>,
}

async fn peerings(
    State(azure): Azured,
    Path(name): Path<String>,
    Json(Peerings { peerings }): Json<Peerings>,
) -> Result<Json<Value>, Error> {
    azure.set_peerings(&name, &peerings)?;
    Ok(done())
}

async fn patch_nic(
    State(azure): Azured,
    Path(name): Path<String>,
    Json(patch): Json<Value>,
) -> Result<Json<Value>, Error> {
    Ok(Json(json!({ "before": azure.patch_nic(&name, &patch).await? })))
}

#[derive(Deserialize)]
struct Permissions {
    denied: Vec<String>,
}

async fn permissions(State(azure): Azured, Json(Permissions { denied }): Json<Permissions>) -> Json<Value> {
    azure.deny(denied);
    done()
}

async fn access(State(azure): Azured, Json(access): Json<Access>) -> Json<Value> {
    azure.control(access);
    done()
}
