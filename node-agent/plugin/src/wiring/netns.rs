//! A network namespace of a pod: opening it, and doing something inside it.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use nix::sched::{CloneFlags, setns};

use super::Error;

/// The namespace of the thread, as opposed to `/proc/self`, which is that of the process's first thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open pod namespace, and the host's, to come back to.
#[derive(Debug)]
pub struct Netns {
    pod: fs::File,
    host: fs::File,
}

impl Netns {
    /// Opens the namespace at `path`. Fails if it isn't there, is no network namespace, or is the caller's own:
    /// wiring a pod there would change the node's network.
    pub fn open(path: &Path) -> Result<Netns, Error> {
        let failed = |error| Error::Netns { path: path.to_owned(), source: error };
        let pod = fs::File::open(path).map_err(failed)?;
        let host = fs::File::open(OWN).map_err(failed)?;
        let (of_pod, of_host) = (pod.metadata().map_err(failed)?, host.metadata().map_err(failed)?);
        if of_pod.dev() != of_host.dev() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "this is no namespace");
            return Err(failed(error));
        }
        if of_pod.ino() == of_host.ino() {
            let error =
                io::Error::new(io::ErrorKind::InvalidInput, "this is the node's own network namespace");
            return Err(failed(error));
        }
        Ok(Netns { pod, host })
    }

    pub(super) fn pod(&self) -> &fs::File {
        &self.pod
    }

    /// Runs `f` with this thread inside the pod's namespace.
    pub(super) fn inside<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let enter = |namespace: &fs::File, what| {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Kernel { what, errno })
        };
        enter(&self.pod, "enter the pod's network namespace")?;
        let result = f();
        enter(&self.host, "come back to the node's network namespace")?;
        result
    }
}
