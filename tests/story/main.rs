//! The demo's list as assertions, and what must hold when things go wrong: one real cluster, booted once, one chapter after
//! the other in the order written here.

mod chapters;
mod trouble;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use vnetpool_azure_sim::schema::Documents;
use vnetpool_tests::cluster::{Cluster, root};

/// The cluster all chapters share; it comes up with the first chapter that runs.
pub type Shared = Arc<Mutex<Option<Cluster>>>;

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // The chapters build on one another's cluster: never two at once.
    arguments.test_threads = Some(1);
    let runtime = Arc::new(Runtime::new()?);
    let shared = Shared::default();
    let mut trials = vec![];
    macro_rules! chapter {
        ($($chapter:path),* $(,)?) => {$({
            let (runtime, shared) = (Arc::clone(&runtime), Arc::clone(&shared));
            trials.push(Trial::test(stringify!($chapter).replace(' ', ""), move || {
                runtime.block_on(async {
                    let mut shared = shared.lock().await;
                    let cluster = booted(&mut shared).await.map_err(|error| Failed::from(format!("{error:#}")))?;
                    $chapter(cluster).await.map_err(|error| Failed::from(format!("{error:#}")))
                })
            }));
        })*};
    }
    chapter![
        chapters::each_node_holds_the_minimum_and_says_so,
        chapters::sixty_pods_run_with_addresses_their_nics_hold_and_reach_each_other,
        chapters::a_pod_and_a_vm_see_each_others_own_addresses_and_the_internet_sees_the_nodes,
        chapters::kubectl_tells_how_many_addresses_who_has_which_and_why_not_more,
        chapters::addresses_go_back_to_azure_when_the_pods_are_gone,
        chapters::a_changed_pool_changes_what_the_nodes_hold,
        chapters::a_burst_of_sixty_pods_costs_two_nic_writes_at_most,
        chapters::pods_start_and_stop_while_the_agent_is_down,
        trouble::a_wiped_or_broken_state_folder_heals_without_a_doubled_address,
        trouble::a_node_that_reboots_in_the_middle_of_a_give_back_comes_back_clean,
        trouble::a_standby_takes_over_from_an_operator_killed_in_the_middle_of_a_write,
        trouble::a_node_without_an_azure_provider_id_is_told_what_is_missing,
        trouble::a_nic_that_is_gone_is_named_with_the_remedy,
        trouble::a_full_subnet_is_named_and_hurts_no_other_node,
        trouble::a_refused_write_names_the_missing_action_and_hurts_no_other_node,
        trouble::a_node_at_its_pools_maximum_is_marked_full_until_it_may_hold_more,
        trouble::a_deleted_pool_gives_every_address_back,
        chapters::every_exchange_with_azure_keeps_to_its_documents,
    ];
    // Azure's documents don't belong to the project: where they aren't at hand, what needs them counts as skipped.
    if matches!(Documents::beside_project(), Ok(None))
        && let Some(last) = trials.pop()
    {
        println!("../shared/azure-spec is absent: {} is skipped", last.name());
        trials.push(last.with_ignored_flag(true));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(shared.blocking_lock().take());
    Ok(conclusion.exit_code())
}

async fn booted(shared: &mut Option<Cluster>) -> Result<&mut Cluster> {
    if shared.is_none() {
        let cluster = Cluster::up(&root().join("target/cluster/story"), 3, 1).await?;
        cluster.install().await?;
        chapters::shorten_the_pools_waits(&cluster).await?;
        *shared = Some(cluster);
    }
    shared.as_mut().ok_or_else(|| anyhow::anyhow!("no cluster"))
}
