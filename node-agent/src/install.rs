//! The CNI files on the node: the plugin, and the configuration that makes the runtime use it.
//!
//! The runtime watches the configuration folder, and each event it heeds there takes a lock that blocks all
//! pods' starts and stops: so the configuration is written outside, renamed in, and only when its content
//! differs from the wanted one.

#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use vnetpool_crds::pool::Wiring;
use vnetpool_plugin::{
    cni::{GSO_MAX_SIZE, IPAM, PLUGIN, STATE_DIR},
    wiring::Uplink,
};

use crate::chain::{Chain, merged};

/// The network's name in the configuration.
const NETWORK: &str = "vnetpool";
/// Runtimes use the first configuration by name.
pub const CONFLIST: &str = "10-vnetpool.conflist";
/// How often the configuration is made anew at most because another program has changed it meanwhile.
const TRIES: usize = 5;
/// Bytes of the plugin that are compared at once.
const PIECE: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read the CNI plugin {0}: {1}")]
    Source(PathBuf, #[source] io::Error),
    #[error("can't read the CNI configuration {0}, which may hold entries of other plugins: {1}")]
    Configuration(PathBuf, #[source] io::Error),
    #[error("can't install {0}: {1}")]
    Install(PathBuf, #[source] io::Error),
    #[error("can't install {0}: another program changes it all the while; find out which, and have it stop")]
    Contended(PathBuf),
    #[error("can't list the CNI configurations in {0}: {1}")]
    List(PathBuf, #[source] io::Error),
}

/// Our CNI configuration. containerd 1.x refuses a result of version 1.1.0, so the older one leads, and
/// `cniVersions` names both for runtimes that know it, unless a plugin behind ours is too old for that.
///
/// The segments that a pod's TCP hands down at once have to fit the uplink: the kernel itself would cut
/// larger ones, which are nearly all that pods send in bulk.
pub fn conflist(uplink: &Uplink, wiring: Wiring, chain: &Chain, state_dir: &Path) -> Value {
    let mut ours = json!({ "type": PLUGIN, "mtu": uplink.mtu, "wiring": wiring });
    if let Some(size) = uplink.gso_max {
        ours["gsoMaxSize"] = json!(size.clamp(*GSO_MAX_SIZE.start(), *GSO_MAX_SIZE.end()));
    }
    if state_dir != Path::new(STATE_DIR) {
        ours["stateDir"] = json!(state_dir);
    }
    let versions: &[&str] = if chain.supports_1_1 { &["1.0.0", "1.1.0"] } else { &["1.0.0"] };
    let mut document = json!({ "cniVersion": "1.0.0", "cniVersions": versions, "name": NETWORK });
    chain.put_into(&mut document, ours);
    document
}

/// Copies the plugin into the runtime's folder and puts a link to it beside it, so that both names are always
/// of the same release. A plugin that runs keeps its old file. Returns whether it had to.
///
/// It is read in pieces: at each inspection it would otherwise be the largest part of the agent's memory.
pub fn plugin(source: &Path, bin_dir: &Path) -> Result<bool, Error> {
    let open = || fs::File::open(source).map_err(|error| Error::Source(source.to_owned(), error));
    let (mut shipped, mut again) = (open()?, open()?);
    let target = bin_dir.join(PLUGIN);
    let mut put = || {
        fs::create_dir_all(bin_dir)?;
        if is_copy(&mut shipped, &target, 0o755)? {
            return Ok(false);
        }
        replace(&target, &mut again, 0o755, bin_dir).map(|()| true)
    };
    let installed = put().map_err(|error| Error::Install(target.clone(), error))?;
    let ipam = bin_dir.join(IPAM);
    let link = || {
        if fs::read_link(&ipam).is_ok_and(|target| target == Path::new(PLUGIN)) {
            return Ok(false);
        }
        let new = bin_dir.join(format!(".{IPAM}.new"));
        gone(fs::remove_file(&new))?; // of one that was interrupted
        symlink(PLUGIN, &new)?;
        fs::rename(&new, &ipam).map(|()| true)
    };
    let linked = link().map_err(|error| Error::Install(ipam.clone(), error))?;
    Ok(installed || linked)
}

/// Fine if there was nothing.
pub fn gone(removed: io::Result<()>) -> io::Result<()> {
    if_there(removed).map(drop)
}

/// What was read or done; `None` if there was nothing.
pub fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Our configuration as it stands; `None` if there is none, or if it is no JSON, as after half a write.
///
/// # Errors
/// When the file can't be read. It may hold entries of others, so nobody should write over it.
pub fn found(conf_dir: &Path) -> Result<Option<Value>, Error> {
    Ok(parsed(read(conf_dir)?.as_deref()))
}

fn parsed(text: Option<&[u8]>) -> Option<Value> {
    serde_json::from_slice(text?).ok()
}

/// The text of our configuration, if there is one.
fn read(conf_dir: &Path) -> Result<Option<Vec<u8>>, Error> {
    let target = conf_dir.join(CONFLIST);
    if_there(fs::read(&target)).map_err(|error| Error::Configuration(target, error))
}

/// Puts the configuration in place, with the entries of others in the present one. Returns whether it had to.
///
/// By way of a second name in the folder: containerd ignores a file that appears there, whether made or
/// renamed in, and reads its configuration anew when a name goes away. So it does that once, and then the
/// file is complete.
pub fn configuration(wanted: &Value, conf_dir: &Path) -> Result<bool, Error> {
    configuration_after(wanted, conf_dir, || {})
}

/// The same; `staged` runs whenever the new file has its second name. The present one is read again then,
/// since a mesh's installer may have put its entry there meanwhile.
fn configuration_after(wanted: &Value, conf_dir: &Path, mut staged: impl FnMut()) -> Result<bool, Error> {
    let target = conf_dir.join(CONFLIST);
    let waypoint = conf_dir.join(format!(".{CONFLIST}.new"));
    let outside = conf_dir.parent().unwrap_or(conf_dir);
    let failed = |error| Error::Install(target.clone(), error);
    fs::create_dir_all(conf_dir).map_err(failed)?;
    let mut present = read(conf_dir)?;
    for _ in 0..TRIES {
        let found = parsed(present.as_deref());
        let wanted = found.as_ref().map_or_else(|| wanted.clone(), |found| merged(wanted, found));
        // Others may have written it with other blanks, or for fewer to read.
        if found.as_ref() == Some(&wanted) {
            // Of a try that came too late, or was interrupted.
            gone(fs::remove_file(&waypoint)).map_err(failed)?;
            return Ok(false);
        }
        replace(&waypoint, &mut format!("{wanted:#}\n").as_bytes(), 0o644, outside).map_err(failed)?;
        staged();
        let now = read(conf_dir)?;
        if now == present {
            fs::rename(&waypoint, &target).map_err(failed)?;
            return Ok(true);
        }
        present = now;
    }
    gone(fs::remove_file(&waypoint)).map_err(failed)?;
    Err(Error::Contended(target))
}

/// Takes our configuration away, where another plugin wires the pods. Returns whether it had to.
pub fn no_configuration(conf_dir: &Path) -> Result<bool, Error> {
    let target = conf_dir.join(CONFLIST);
    let removed = if_there(fs::remove_file(&target)).map_err(|error| Error::Install(target, error))?;
    Ok(removed.is_some())
}

/// The configuration that the runtime uses instead of ours because it sorts before it; None if ours is first.
pub fn preceding(conf_dir: &Path) -> Result<Option<Preceding>, Error> {
    let names = || -> io::Result<Vec<String>> {
        fs::read_dir(conf_dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let names = names().map_err(|error| Error::List(conf_dir.to_owned(), error))?;
    let is_configuration =
        |name: &String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    let first = names.into_iter().filter(|name| is_configuration(name) && name.as_str() < CONFLIST).min();
    Ok(first.map(|name| {
        let path = conf_dir.join(name);
        let configuration = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let leads_to_ours = configuration.is_some_and(|configuration| leads_to_ours(&configuration));
        Preceding { path, leads_to_ours }
    }))
}

/// A configuration that comes before ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preceding {
    pub path: PathBuf,
    /// Whether pods are wired by our plugin all the same.
    pub leads_to_ours: bool,
}

/// Whether a configuration, another plugin's by its content, has pods wired by ours: by an entry of its own
/// or by a network that it delegates to, as Multus does.
pub fn leads_to_ours(configuration: &Value) -> bool {
    let within = |key: &str| configuration[key].as_array().into_iter().flatten();
    let names_ours = |key: &str| {
        let named = configuration[key].as_str().unwrap_or_default();
        named == NETWORK || named.rsplit('/').next() == Some(CONFLIST)
    };
    configuration["type"] == PLUGIN
        || names_ours("clusterNetwork")
        || within("plugins").any(leads_to_ours)
        || within("delegates").any(|network| network["name"] == NETWORK || leads_to_ours(network))
}

/// Whether `target` has exactly the content of `source`, with this mode. An unreadable one hasn't.
fn is_copy(source: &mut fs::File, target: &Path, mode: u32) -> io::Result<bool> {
    let Ok(mut found) = fs::File::open(target) else { return Ok(false) };
    let (wanted, metadata) = (source.metadata()?, found.metadata()?);
    let mut is_same = wanted.len() == metadata.len() && metadata.permissions().mode() & 0o777 == mode;
    let mut pieces = [Vec::new(), Vec::new()];
    while is_same {
        for (piece, file) in pieces.iter_mut().zip([&mut *source, &mut found]) {
            piece.clear();
            file.take(PIECE).read_to_end(piece)?;
        }
        if pieces[0].is_empty() {
            break;
        }
        is_same = pieces[0] == pieces[1];
    }
    Ok(is_same)
}

/// Gives `target` the read content, atomically, by way of a new file in `staging`, which must be on the same
/// mount.
fn replace(target: &Path, content: &mut impl Read, mode: u32, staging: &Path) -> io::Result<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let new = staging.join(format!(".{name}.new"));
    let mut put = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        io::copy(content, &mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        // A node that loses power must not come back with an empty file under the final name.
        file.sync_all()?;
        // Closed before the name leads to it: the kernel refuses to run a file that is open for writing.
        drop(file);
        fs::rename(&new, target)
    };
    put().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}
