//! Answers of the API server.

use std::fmt::Debug;

use kube::core::ClusterResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::reading::Reading;

pub const FORBIDDEN: u16 = 403;
pub const CONFLICT: u16 = 409;
pub const NOT_FOUND: u16 = 404;

/// Whether the API server answered with this status.
pub fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// The object of this name as the API server has it now; `None` if there is none.
///
/// # Errors
/// The API server's, and those of the way there.
pub async fn read<K>(client: &Client, name: &str) -> kube::Result<Option<K>>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
{
    let found = Api::<Reading<K>>::all(client.clone()).get_opt(name).await?;
    found.map(Reading::readable).transpose()
}

/// This object as the API server has it now; `None` if it is gone, also where another has its name.
///
/// # Errors
/// As [`read`].
pub async fn read_again<K>(client: &Client, object: &K) -> kube::Result<Option<K>>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
{
    let found: Option<K> = read(client, &object.name_any()).await?;
    Ok(found.filter(|found| found.uid() == object.uid()))
}
