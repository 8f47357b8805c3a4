//! NICs of a Uniform scale set's instances. They are read as NICs and written through their instance.
//!
//! Azure refuses every write to such a NIC ("The operation 'write' on resource type
//! 'virtualMachineScaleSets/virtualMachines/networkInterfaces' is disallowed"). So ipConfigurations are added
//! to and removed from the instance's model, which has no addresses and accepts none. The outcome is read
//! from the NIC.
//!
//! A write whose addresses can't be had is answered with 200 and ends Failed. The model keeps the requested
//! addresses, and every later write, by any client, tries them again. So our next write begins with what the
//! NIC has: otherwise a smaller request would fail wherever a larger one had failed.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::info;
use vnetpool_crds::names::IP_CONFIGURATION_PREFIX;

use super::cache::{Known, etag, parse};
use super::nic::{self, Form};
use super::operation;
use super::transport::Call;
use super::{Azure, Change, Error, Kind, Nic, ProvisioningState, ResourceId, Urgency, Written, call};
use crate::lock::lock;

/// The one version in which the network provider shows these NICs, in every cloud: Azure's documents of each
/// later version still name this one for them. So there is nothing to choose.
pub(super) const NIC_API: &str = "2018-10-01";

/// An instance's model, ready to be edited and sent back.
#[derive(Clone, Debug)]
pub(super) struct Model {
    etag: String,
    /// As it came: parsed JSON would take several times the memory.
    body: Vec<u8>,
}

impl Model {
    pub(super) fn read(instance: &ResourceId, body: Vec<u8>) -> Result<Model, Error> {
        Ok(Model { etag: etag(instance, &parse(instance, &body)?)?, body })
    }
}

/// Models that were read for another purpose, so that the write that mostly follows needn't read them again.
/// They are kept only briefly: Compute's etags are small integers, and those of a machine that comes back
/// under an old id start anew. A machine takes minutes to go and to come.
#[derive(Debug, Default)]
pub(super) struct Models {
    kept: Mutex<HashMap<String, (Instant, Model)>>,
    /// Instances whose last write was sent and hasn't ended well.
    remains: Mutex<BTreeSet<String>>,
}

const KEPT: Duration = Duration::from_secs(60);

impl Models {
    pub(super) fn keep(&self, instance: &ResourceId, model: Model) {
        let mut all = self.all();
        all.retain(|_, (read, _)| read.elapsed() < KEPT);
        all.insert(instance.key(), (Instant::now(), model));
    }

    fn take(&self, instance: &ResourceId) -> Option<Model> {
        self.all().remove(&instance.key()).filter(|(read, _)| read.elapsed() < KEPT).map(|(_, model)| model)
    }

    fn begin(&self, instance: &ResourceId) -> Begun<'_> {
        Begun { models: self, instance: instance.key(), may_leave_remains: true }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, (Instant, Model)>> {
        lock(&self.kept)
    }
}

/// A write to an instance's model. Dropped before its end is known, for instance with a reconcile that takes
/// too long, it may have left something there.
struct Begun<'a> {
    models: &'a Models,
    instance: String,
    may_leave_remains: bool,
}

impl Begun<'_> {
    fn left_nothing(mut self) {
        self.may_leave_remains = false;
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.may_leave_remains {
            lock(&self.models.remains).insert(std::mem::take(&mut self.instance));
        }
    }
}

impl Azure {
    /// Whether a write to this NIC has failed, or was given up on its way, since the last call in such a way
    /// that its instance's model may have kept what was asked for: every later write, by any client, would
    /// try that again.
    pub fn take_remains(&self, nic: &ResourceId) -> bool {
        nic.instance().is_some_and(|instance| lock(&self.models.remains).remove(&instance.key()))
    }

    /// [`Azure::update`] for an instance's NIC. `known` is the NIC's cache, under its lock.
    pub(super) async fn update_through(
        &self,
        instance: &ResourceId,
        id: &ResourceId,
        known: &mut Known,
        change: &Change,
        urgency: Urgency,
    ) -> Result<Written<Nic>, Error> {
        let mut call = call(Kind::Write, urgency, instance);
        // Forget the cached document first, so that any early return leaves the resource unknown.
        let before = known.nic();
        known.forget();
        let reading = Call { kind: Kind::Read, ..call.clone() };
        let model = match self.models.take(instance) {
            Some(model) => model,
            None => {
                let answer = self
                    .transport
                    .send(&reading, self.url(instance, &self.versions.compute), None, None)
                    .await?;
                Model::read(instance, answer.body)?
            }
        };
        let value = parse(instance, &model.body)?;
        let is_like = |nic: &Arc<Nic>| is_like(&value, id.name(), nic);
        let state = nic::provisioning_state(&value["properties"]);
        let on_nic = match state {
            ProvisioningState::Succeeded if before.as_ref().is_none_or(is_like) => None,
            // After the model, so that the model's etag vouches for both.
            ProvisioningState::Succeeded | ProvisioningState::Failed => {
                Some(self.nics.learn(known, self.read_nic(&reading, id).await?))
            }
            _ => return Err(operation::unsettled(instance)),
        };
        if state == ProvisioningState::Succeeded && on_nic.as_ref().is_some_and(is_like) {
            // The change was planned from a NIC that has followed its model since.
            return Err(Error::Stale { resource: id.to_string() });
        }
        known.forget();
        call.region = value["location"].as_str().map(str::to_owned);
        // Nothing has failed where both are well.
        let is_well = on_nic.is_none() && before.as_ref().is_some_and(|nic| !nic.has_failed());
        let change = &Change { repair: change.repair && !is_well, ..change.clone() };
        let body = edit(&value, id.name(), change, on_nic.as_deref())
            .map_err(|source| Error::Nic { resource: id.to_string(), source })?;
        let Some(body) = body else {
            let document = self.read_nic(&reading, id).await?;
            return Ok(Written { after: self.nics.learn(known, document), was_sent: false });
        };
        let url = self.url(instance, &self.versions.compute);
        let sent = Some(body.to_string().into_bytes());
        let begun = self.models.begin(instance);
        let accepted = match self.transport.send(&call, url.clone(), Some(&model.etag), sent).await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !matches!(error, Error::OutcomeUnknown { .. }) {
                    begun.left_nothing();
                }
                if let Some(before) = before.filter(|_| error.left_all_as_it_was()) {
                    known.learn(before);
                }
                return Err(error);
            }
        };
        let started = Instant::now();
        self.follow(&call, &url, &accepted).await?;
        begun.left_nothing();
        let nic = self.nics.learn(known, self.read_nic(&call.following(Kind::Read), id).await?);
        let took_seconds = started.elapsed().as_secs_f64();
        let ip_configurations = nic.ip_configurations.len();
        info!(took_seconds, ip_configurations, "Azure has written a NIC through its instance");
        Ok(Written { after: nic, was_sent: true })
    }
}

/// The NIC that an instance's model marks as primary, or its first if it marks none.
pub(super) fn primary_nic(model: &Value) -> Option<&str> {
    let nics = model["properties"]["networkProfile"]["networkInterfaces"].as_array()?;
    let ids = || nics.iter().filter_map(|nic| nic["id"].as_str());
    let primary = configurations(model)?.iter().find(|one| one["properties"]["primary"] == true);
    let named = |id: &&str| {
        let name = primary.and_then(|one| one["name"].as_str());
        id.rsplit('/').next().zip(name).is_some_and(|(own, name)| own.eq_ignore_ascii_case(name))
    };
    ids().find(named).or_else(|| ids().next())
}

fn configurations(model: &Value) -> Option<&Vec<Value>> {
    model["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"].as_array()
}

/// The body that carries out `change` on the NIC of that name; `None` if there is nothing to do and nothing
/// to repair. `on_nic` is the NIC itself, where it isn't as the model has it or the last write failed: then
/// our addresses on the NIC count.
///
/// The body has only the necessary fields. A field that a PUT of an instance leaves out stays (recorded), and
/// sending back the image's reference would need the right to read Microsoft's images (AKS#1819). The list of
/// NICs is replaced as a whole, so it goes back as it came. The hardware profile is sent because the cloud
/// provider, which writes instances likewise, sends it.
fn edit(
    model: &Value,
    nic: &str,
    change: &Change,
    on_nic: Option<&Nic>,
) -> Result<Option<Value>, nic::Error> {
    let lacks = |what| nic::Error::Lacks { what };
    let all = configurations(model)
        .ok_or(lacks("properties.networkProfileConfiguration.networkInterfaceConfigurations"))?;
    let is_it = |one: &Value| one["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(nic));
    let index = all.iter().position(is_it).ok_or(lacks("the NIC's configuration"))?;
    let is_met = nic::provisioning_state(&model["properties"]) == ProvisioningState::Succeeded;
    let rest = on_nic.map(|on_nic| rest(&all[index], on_nic, change, is_met));
    let after = nic::edit(&all[index], rest.as_ref().unwrap_or(change), Form::Instance)?;
    let is_unlike = on_nic.is_some_and(|on_nic| ours(&all[index]) != on_nic_names(on_nic));
    if after == all[index] && !change.repair && !is_unlike {
        return Ok(None);
    }
    let mut body = unchanged(model);
    body["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"][index] =
        named_primary(after);
    Ok(Some(body))
}

/// The change that leads to the same from a model that differs from its NIC.
///
/// Where Azure reports the model to be met (`is_met`), its entries may appear on the NIC at any time: they
/// stay, and are used before new ones are added. Otherwise the last write has failed. Then entries that only
/// the model has go, and entries that only the NIC has stay, unless the change takes them off.
fn rest(configuration: &Value, on_nic: &Nic, change: &Change, is_met: bool) -> Change {
    let (in_model, on_nic) = (ours(configuration), on_nic_names(on_nic));
    let owned = |name: &&str| (*name).to_owned();
    let stays = |name: &&&str| !change.release.iter().any(|released| released == **name);
    let mut rest = change.clone();
    if is_met {
        let awaited = in_model.difference(&on_nic).filter(stays).count();
        rest.reserve = change.reserve.iter().skip(awaited).cloned().collect();
    } else {
        rest.release.extend(in_model.difference(&on_nic).map(owned));
        rest.reserve.extend(on_nic.difference(&in_model).filter(stays).map(owned));
    }
    rest
}

/// Whether a model has the same ipConfigurations of ours as the NIC of that name.
fn is_like(model: &Value, name: &str, nic: &Nic) -> bool {
    let mut all = configurations(model).into_iter().flatten();
    let own = all.find(|one| one["name"].as_str().is_some_and(|own| own.eq_ignore_ascii_case(name)));
    own.is_none_or(|own| ours(own) == on_nic_names(nic))
}

/// The names of our ipConfigurations in a model.
fn ours(configuration: &Value) -> BTreeSet<&str> {
    let all = configuration["properties"]["ipConfigurations"].as_array().into_iter().flatten();
    let names = all.filter_map(|one| one["name"].as_str());
    names.filter(|name| name.starts_with(IP_CONFIGURATION_PREFIX)).collect()
}

fn on_nic_names(nic: &Nic) -> BTreeSet<&str> {
    nic.ip_configurations.iter().map(|one| one.name.as_str()).collect()
}

/// The body of a write that changes nothing.
pub(super) fn unchanged(model: &Value) -> Value {
    let mut body = json!({
        "location": model["location"],
        "properties": { "networkProfileConfiguration": model["properties"]["networkProfileConfiguration"] },
    });
    if model["properties"]["hardwareProfile"].is_object() {
        body["properties"]["hardwareProfile"] = model["properties"]["hardwareProfile"].clone();
    }
    body
}

/// Marks the first ipConfiguration as primary if none is. In recordings the only ipConfiguration of a NIC
/// isn't marked; of several one must be.
fn named_primary(mut configuration: Value) -> Value {
    if let Some(all) = configuration["properties"]["ipConfigurations"].as_array_mut() {
        let is_named = all.iter().any(|one| one["properties"]["primary"] == true);
        if let Some(first) = all.first_mut().filter(|_| !is_named) {
            first["properties"]["primary"] = json!(true);
        }
    }
    configuration
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::sample_nic;

    fn model() -> Value {
        let subnet =
            "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/virtualNetworks/v/subnets/s";
        let nic = |name: &str, primary: bool| {
            json!({ "name": name, "properties": {
                "primary": primary,
                "enableAcceleratedNetworking": true,
                "networkSecurityGroup": { "id": "/nsg" },
                "aFieldOfTheFuture": [1, null],
                "ipConfigurations": [
                    { "name": "ipconfig1", "properties": {
                        "subnet": { "id": subnet },
                        "loadBalancerBackendAddressPools": [{ "id": "/lb/2" }, { "id": "/lb/1" }],
                        "applicationSecurityGroups": [{ "id": "/asg" }],
                    } },
                ],
            } })
        };
        json!({
            "etag": "\"7\"",
            "location": "westeurope",
            "properties": {
                "hardwareProfile": { "vmSize": "Standard_D4s_v5" },
                "storageProfile": { "imageReference": { "id": "/galleries/g" } },
                "networkProfile": { "networkInterfaces": [{ "id": "/x/second" }, { "id": "/x/First" }] },
                "networkProfileConfiguration": {
                    "networkInterfaceConfigurations": [nic("second", false), nic("first", true)] },
            },
        })
    }

    fn change(reserve: &[&str], release: &[&str]) -> Change {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Change { reserve: names(reserve), release: names(release), ..Change::default() }
    }

    #[test]
    fn the_primary_nic_is_the_one_marked_as_primary() {
        assert_eq!(primary_nic(&model()), Some("/x/First"));
    }

    #[test]
    fn only_needed_fields_are_sent_and_the_rest_of_the_list_unchanged() {
        let body = edit(&model(), "FIRST", &change(&["vnp-1"], &[]), None).unwrap().unwrap();
        assert_eq!(body.as_object().unwrap().keys().collect::<Vec<_>>(), ["location", "properties"]);
        let properties = body["properties"].as_object().unwrap();
        assert_eq!(properties.keys().collect::<Vec<_>>(), ["hardwareProfile", "networkProfileConfiguration"]);
        let list = configurations(&body).unwrap();
        assert_eq!(list[0], configurations(&model()).unwrap()[0]);
        let mut expected = configurations(&model()).unwrap()[1].clone();
        let all = expected["properties"]["ipConfigurations"].as_array_mut().unwrap();
        // Of several one has to be the primary one.
        all[0]["properties"]["primary"] = json!(true);
        let subnet = all[0]["properties"]["subnet"].clone();
        all.push(json!({ "name": "vnp-1", "properties": {
            "subnet": subnet,
            "privateIPAddressVersion": "IPv4",
            "primary": false,
            "applicationSecurityGroups": [{ "id": "/asg" }],
        } }));
        assert_eq!(list[1], expected);
    }

    #[test]
    fn an_edit_already_in_the_model_needs_no_write() {
        assert_eq!(edit(&model(), "first", &change(&[], &["vnp-1"]), None), Ok(None));
        let repair = Change { repair: true, ..Change::default() };
        assert!(
            edit(&model(), "first", &repair, None).unwrap().is_some(),
            "Azure gave the last write up half-way"
        );
    }

    #[test]
    fn the_remains_of_a_failed_write_go_with_the_next() {
        let names = |body: &Value| -> Vec<String> {
            let all = configurations(body).unwrap()[1]["properties"]["ipConfigurations"].as_array().unwrap();
            all.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
        };
        // Asked for: 1 to 3; on the NIC: 1, and 9, whose removal failed with the rest.
        let mut failed = model();
        let asked =
            edit(&failed, "first", &change(&["vnp-1", "vnp-2", "vnp-3"], &[]), None).unwrap().unwrap();
        failed["properties"]["networkProfileConfiguration"] =
            asked["properties"]["networkProfileConfiguration"].clone();
        let nic = sample_nic(&[("vnp-1", "10.0.0.5/32"), ("vnp-9", "10.0.0.6/32")]);
        let next = |reserve: &[&str], release: &[&str]| {
            names(&edit(&failed, "first", &change(reserve, release), Some(&nic)).unwrap().unwrap())
        };
        assert_eq!(next(&["vnp-4"], &[]), ["ipconfig1", "vnp-1", "vnp-4", "vnp-9"]);
        assert_eq!(next(&[], &["vnp-9"]), ["ipconfig1", "vnp-1"]);
        // Without news a model stays as it is where it agrees with the NIC, and is written where it doesn't.
        let agrees =
            sample_nic(&[("vnp-1", "10.0.0.5/32"), ("vnp-2", "10.0.0.6/32"), ("vnp-3", "10.0.0.7/32")]);
        assert_eq!(edit(&failed, "first", &change(&[], &[]), Some(&agrees)), Ok(None));
    }

    #[test]
    fn entries_that_a_nic_does_not_show_yet_are_used_before_new_ones_are_added() {
        let asked = edit(&model(), "first", &change(&["vnp-1", "vnp-2"], &[]), None).unwrap().unwrap();
        let mut met = model();
        met["properties"]["networkProfileConfiguration"] =
            asked["properties"]["networkProfileConfiguration"].clone();
        met["properties"]["provisioningState"] = json!("Succeeded");
        let nic = sample_nic(&[("vnp-1", "10.0.0.5/32")]);
        assert!(!is_like(&met, "FIRST", &nic));
        let next = |reserve: &[&str], release: &[&str]| {
            let body = edit(&met, "first", &change(reserve, release), Some(&nic)).unwrap().unwrap();
            ours(&configurations(&body).unwrap()[1]).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(next(&["vnp-3"], &[]), ["vnp-1", "vnp-2"]);
        assert_eq!(next(&["vnp-3", "vnp-4"], &["vnp-1"]), ["vnp-2", "vnp-4"]);
    }

    #[test]
    fn a_block_or_a_chosen_address_is_nothing_an_instance_can_have() {
        let block = Change { blocks: true, ..change(&["vnp-1"], &[]) };
        assert!(matches!(edit(&model(), "first", &block, None), Err(nic::Error::NotOnInstance { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_is_used_once_and_not_for_long() {
        let id: ResourceId =
            "/subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachineScaleSets/p/virtualMachines/0"
                .parse()
                .unwrap();
        let model = Model::read(&id, model().to_string().into_bytes()).unwrap();
        let models = Models::default();
        models.keep(&id, model.clone());
        assert!(models.take(&id).is_some() && models.take(&id).is_none());
        models.keep(&id, model);
        tokio::time::advance(KEPT).await;
        assert!(models.take(&id).is_none());
    }
}
