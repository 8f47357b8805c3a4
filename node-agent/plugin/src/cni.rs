//! CNI's wire: environment and standard input in, one JSON document out. All validation is here, no
//! behaviour.
//!
//! The protocol is that of the CNI specification, versions 0.3.1 to 1.1.0. An answer is in the version that
//! the request names.

mod request;
mod result;

use serde::{Serialize, Serializer};

/// The file name of the plugin, which a configuration gives as its type.
pub const PLUGIN: &str = "vnetpool";
/// Its other name, under which it is the IPAM of other plugins.
pub const IPAM: &str = "vnetpool-ipam";

pub use request::{GSO_MAX_SIZE, Lease, Program, Request, STATE_DIR, Task, Verb, Wire};
pub use result::{Leased, PrevResult, Versions, Wired};

/// A version of the specification that the plugin supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    #[default]
    V1_1_0,
}

impl Version {
    pub const ALL: [Version; 4] = [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// An error as the specification has it. Runtimes show `msg` and `details` to people: the fault, and its
/// remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Error {
    #[serde(rename = "cniVersion")]
    pub version: Version,
    pub code: u32,
    pub msg: String,
    pub details: String,
}

/// Codes of the specification that we use, and ours from 100 on.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const UNDECODABLE: u32 = 6;
    pub const INVALID_CONFIG: u32 = 7;
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: not ready for an ADD.
    pub const NOT_READY: u32 = 50;
    /// The kernel refused a step of the wiring.
    pub const WIRING: u32 = 100;
    /// CHECK found a part that is not as ADD left it.
    pub const DAMAGED: u32 = 101;
}

impl Error {
    /// The fault, and its remedy.
    pub fn new(code: u32, msg: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error { version: Version::default(), code, msg: msg.into(), details: remedy.into() }
    }
}
