//! Writes that Azure has asked not to repeat for a while: the answer to one left its outcome open (503, say),
//! and had a `Retry-After`. Only writes of that resource wait: it is read at once, for it may have changed.
//! Pure: `now` is an argument.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::Error;
use crate::lock::lock;

/// Until when which resource isn't to be written, by its id in lower case, and Azure's words.
#[derive(Debug, Default)]
pub(super) struct NotBefore(Mutex<HashMap<String, (Instant, String)>>);

impl NotBefore {
    /// A write of this resource was answered with `message`, and isn't to be repeated for so long.
    pub(super) fn put_off(&self, resource: &str, message: &str, wait: Duration, now: Instant) {
        let mut all = lock(&self.0);
        all.retain(|_, (until, _)| now < *until);
        if !wait.is_zero() {
            all.insert(resource.to_ascii_lowercase(), (now + wait, message.to_owned()));
        }
    }

    /// # Errors
    /// [`Error::Busy`] while this resource isn't to be written.
    pub(super) fn may_write(&self, resource: &str, now: Instant) -> Result<(), Error> {
        let all = lock(&self.0);
        match all.get(&resource.to_ascii_lowercase()).filter(|(until, _)| now < *until) {
            Some((until, message)) => Err(Error::Busy {
                resource: resource.to_owned(),
                message: message.clone(),
                retry_after: *until - now,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Remedy;

    #[test]
    fn a_write_waits_as_long_as_azure_has_asked_and_one_of_another_resource_does_not() {
        let (writes, start, second) = (NotBefore::default(), Instant::now(), Duration::from_secs(1));
        writes.put_off("/nic", "later", 30 * second, start);
        let wait = |resource: &str, now| writes.may_write(resource, now).err().map(|error| error.remedy());
        assert_eq!(wait("/NIC", start + 10 * second), Some(Remedy::RetryAfter(20 * second)));
        assert_eq!((wait("/other", start), wait("/nic", start + 30 * second)), (None, None));
        // "0 seconds" is no time to wait.
        writes.put_off("/other", "later", Duration::ZERO, start);
        assert_eq!(wait("/other", start), None);
    }
}
