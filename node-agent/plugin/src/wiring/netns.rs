//! A network namespace of a pod: opening it, and running code inside it.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, process};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, statfs},
};

use super::Error;

/// The thread's own namespace. `/proc/self` would be that of the process's first thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// Where runtimes keep the files of network namespaces.
pub const DIR: &str = "/run/netns";

/// Whether the network namespace of this path and inode is gone. `dir` is [`DIR`], or where that folder is
/// seen from here. A namespace that can't be checked isn't gone: if its path is in another folder, which may
/// be of another mount or process namespace than ours; if the folder doesn't exist; if the file is there but
/// the namespace is mounted on it elsewhere.
pub fn is_gone(dir: &Path, path: &str, inode: Option<u64>) -> bool {
    let below = ["/run/netns/", "/var/run/netns/"].iter().find_map(|parent| path.strip_prefix(parent));
    let Some(name) = below.filter(|name| !name.contains('/') && !name.is_empty()) else { return false };
    if !dir.is_dir() {
        return false;
    }
    let path = dir.join(name);
    match (path.metadata(), statfs(&path)) {
        (Err(error), _) => error.kind() == io::ErrorKind::NotFound,
        (Ok(found), Ok(mounted)) => {
            mounted.filesystem_type() == NSFS_MAGIC && inode.is_some_and(|inode| inode != found.ino())
        }
        _ => false,
    }
}

/// An open pod namespace, and the host's, to come back to.
#[derive(Debug)]
pub struct Netns {
    pod: fs::File,
    host: fs::File,
}

impl Netns {
    /// Opens the namespace at `path`. Fails if there is no file, if it is no network namespace, or if it is
    /// the caller's own: wiring a pod there would change the node's network.
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
        // A thread that stays in there would take the pod's links for the node's: it would find none of ours,
        // and give the address of a wired pod away. The runtime's next try or the agent's sweep takes up the
        // remains of this process.
        if let Err(error) = enter(&self.host, "come back to the node's network namespace") {
            eprintln!("vnetpool: {error}; giving up at once, since nothing can be cleaned up from the pod's");
            process::abort();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::Command};

    const IN_VAIN: &str = "VNETPOOL_TEST_RETURNS_IN_VAIN";

    /// Needs root, like everything that enters namespaces.
    #[test]
    fn a_process_that_can_not_come_back_from_a_pods_namespace_ends_at_once() {
        if std::env::var_os(IN_VAIN).is_some() {
            let pod = fs::File::open(OWN).unwrap();
            let lost = Netns { pod, host: fs::File::open("/dev/null").unwrap() };
            let _ = lost.inside(|| Ok(()));
            return;
        }
        let test =
            "wiring::netns::tests::a_process_that_can_not_come_back_from_a_pods_namespace_ends_at_once";
        let mut itself = Command::new(std::env::current_exe().unwrap());
        let ended = itself.args([test, "--exact", "--nocapture"]).env(IN_VAIN, "1").output().unwrap();
        assert_eq!(ended.status.signal(), Some(nix::libc::SIGABRT), "{ended:?}");
    }
}
