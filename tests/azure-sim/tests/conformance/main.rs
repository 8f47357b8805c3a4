//! Compares the simulator with Azure's own words: recorded traffic, and the official OpenAPI documents. Both
//! are found beside the project; where they are missing, these tests count as ignored and report so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

#[path = "../behaviour/client.rs"]
mod client;
mod documents;
mod gateways;
mod replay;
mod role;

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};

/// Azure's data, or the place where it should have been.
fn azure_spec() -> Result<PathBuf, PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/azure-spec");
    if folder.is_dir() { Ok(folder) } else { Err(folder) }
}

fn main() {
    let data = azure_spec();
    if let Err(folder) = &data {
        eprintln!("{} is absent: nothing here can be compared, all tests are ignored", folder.display());
    }
    let trial = |name: &str, run: fn(&Path) -> Result<(), Failed>| {
        let folder = data.clone();
        let trial = Trial::test(name, move || run(&folder.map_err(|_| "Azure's data is absent")?));
        trial.with_ignored_flag(data.is_err())
    };
    let trials = vec![
        trial("the_recording_interface_is_answered_alike", |folder| replay::run(folder, "interface")),
        trial("the_recording_subnet_is_answered_alike", |folder| replay::run(folder, "subnet")),
        trial("the_recording_virtualnetwork_is_answered_alike", |folder| {
            replay::run(folder, "virtualnetwork")
        }),
        trial("the_recording_virtualmachine_is_answered_alike", |folder| {
            replay::run(folder, "virtualmachine")
        }),
        trial("the_recording_routetable_is_answered_alike", |folder| replay::run(folder, "routetable")),
        trial("the_recording_securitygroup_is_answered_alike", |folder| replay::run(folder, "securitygroup")),
        trial("the_recording_publicipaddress_is_answered_alike", |folder| {
            replay::run(folder, "publicipaddress")
        }),
        trial("the_recording_loadbalancer_is_answered_alike", |folder| replay::run(folder, "loadbalancer")),
        trial("the_recording_backendaddresspool_is_answered_alike", |folder| {
            replay::run(folder, "backendaddresspool")
        }),
        trial("the_recording_natgateway_is_answered_alike", |folder| replay::run(folder, "natgateway")),
        trial("the_recording_virtualmachinescaleset_is_answered_alike", |folder| {
            replay::run(folder, "virtualmachinescaleset")
        }),
        trial("the_recording_virtualmachinescalesetvm_is_answered_alike", |folder| {
            replay::run(folder, "virtualmachinescalesetvm")
        }),
        trial("azures_own_examples_validate", documents::azures_own_examples_validate),
        trial("every_kind_of_answer_validates", documents::every_kind_of_answer_validates),
        trial("a_wrong_body_does_not_validate", documents::a_wrong_body_does_not_validate),
        trial("our_role_has_every_action_of_azures_own_for_the_same_job", role::has_every_action),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Runs an async test to its end.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(future)
}
