//! The later release: the product a step ahead in each format that crosses programs or time. Most steps are
//! those of a release that only adds something, which this one has to read or to ignore. Two are of the kind
//! that this release refuses to read: a format of the ledger, and a value of a pool's field.

use crate::overlay::{Edit, Overlay};
use crate::project::programs;
use anyhow::{Result, ensure};
use std::path::PathBuf;

/// Pods whose names begin so need the ledger's next format.
pub const NEWEST: &str = "newest";
/// The value of `podMetadataAccess` that only the later release reads.
pub const ACCESS: &str = "Limited";
/// How each new ipConfiguration's name begins.
pub const NAME: &str = "vnp-later-";

const FORMAT: &str = "node-agent/plugin/src/ledger/format.rs";
const LOG: &str = "node-agent/plugin/src/plugin/log.rs";
const ALLOCATION: &str = "crds/src/allocation.rs";
const PUBLISH: &str = "operator/src/node/publish.rs";
const REPORT: &str = "node-agent/src/report.rs";
const FIREWALL: &str = "node-agent/src/firewall.rs";

/// The steps, each with the edits that it takes.
pub const STEPS: &[(&str, &[Edit])] = &[
    (
        "the ledger has a further word in the line of each address that a pod has",
        &[Edit {
            file: FORMAT,
            from: "line.proof(proof).sandbox(sandbox).pod(pod).text(vanished).last(network).end();",
            to: "line.proof(proof).sandbox(sandbox).pod(pod).text(vanished).text(network).text(\"later\").end();",
        }],
    ),
    (
        "the ledger has a further format, which is written only where something needs it",
        &[
            Edit {
                file: "node-agent/plugin/src/ledger/format/reader.rs",
                from: "RangeInclusive<u32> = 1..=3;",
                to: "RangeInclusive<u32> = 1..=4;",
            },
            Edit {
                file: FORMAT,
                from: "    if !ledger.is_ruled {\n        return 3;",
                to: "    let is_newest = |record: &Record| match record.state() {
        State::Assigned(assignment) => assignment.pod.name.starts_with(\"newest\"),
        _ => false,
    };
    if ledger.records.iter().any(is_newest) {
        return 4;
    }
    if !ledger.is_ruled {\n        return 3;",
            },
        ],
    ),
    (
        "the alias of a pod's link has a further word",
        &[Edit {
            file: "node-agent/plugin/src/wiring/identity.rs",
            from: "{ifname} {uid} {namespace} {name}\")",
            to: "{ifname} {uid} {namespace} {name} later\")",
        }],
    ),
    (
        "the plugin's log has a further field, which the agent reads with it",
        &[
            Edit { file: LOG, from: "    line: &'a Line,\n", to: "    line: &'a Line,\n    later: bool,\n" },
            Edit {
                file: LOG,
                from: "&Entry { line: self, error, code }",
                to: "&Entry { line: self, later: true, error, code }",
            },
        ],
    ),
    (
        "the CNI configuration has a further key",
        &[Edit {
            file: "node-agent/src/install.rs",
            from: "json!({ \"type\": PLUGIN, \"mtu\": uplink.mtu, \"wiring\": wiring });",
            to: "json!({ \"type\": PLUGIN, \"mtu\": uplink.mtu, \"wiring\": wiring, \"later\": { \"since\": 1 } });",
        }],
    ),
    (
        "the node's table of nftables has a further chain",
        &[Edit {
            file: FIREWALL,
            from: "        text.push_str(\"\\t}\\n}\\n\");\n",
            to: "        text.push_str(\"\\t}\\n\\tchain later {\\n\\t}\\n}\\n\");\n",
        }],
    ),
    (
        "spec of a NodeIPAllocation has a further field",
        &[
            Edit {
                file: ALLOCATION,
                from: "    pub elsewhere: u32,\n",
                to: "    pub elsewhere: u32,
    /// A field of the later release.
    #[serde(default, skip_serializing_if = \"is_zero\")]
    pub later: u32,\n",
            },
            Edit {
                file: PUBLISH,
                from: "        elsewhere: seen.elsewhere,\n",
                to: "        elsewhere: seen.elsewhere,\n        later: 1,\n",
            },
            Edit {
                file: PUBLISH,
                from: "            elsewhere: 0,\n",
                to: "            elsewhere: 0,\n            later: 0,\n",
            },
            Edit {
                file: "node-agent/src/imds.rs",
                from: "                elsewhere: 0,\n",
                to: "                elsewhere: 0,\n                later: 0,\n",
            },
        ],
    ),
    (
        "status of a NodeIPAllocation has a further field",
        &[
            Edit {
                file: ALLOCATION,
                from: "    pub pods: u32,\n",
                to: "    pub pods: u32,
    /// A field of the later release.
    #[serde(default, skip_serializing_if = \"is_zero\")]
    #[schemars(range(max = 65536))]
    pub later: u32,\n",
            },
            Edit {
                file: REPORT,
                from: "        metadata_silent: metadata_silent.unwrap_or_else(was_silent),\n",
                to: "        metadata_silent: metadata_silent.unwrap_or_else(was_silent),\n        later: 1,\n",
            },
            Edit {
                file: "operator/src/cluster/kept.rs",
                from: "        leases: _,\n",
                to: "        leases: _,\n        later: _,\n",
            },
        ],
    ),
    (
        "agents report a further condition, with a further reason",
        &[
            Edit {
                file: "crds/src/condition.rs",
                from: "    NodesSupported NODES_SUPPORTED: NodeIPPool, Operator, True, [],\n",
                to: "    Later LATER: NodeIPAllocation, Agent, Either, [],
        \"A condition of the later release.\";
    NodesSupported NODES_SUPPORTED: NodeIPPool, Operator, True, [],\n",
            },
            Edit {
                file: "crds/src/reason.rs",
                from: "    InterfaceLeft: &[], WARNING,\n",
                to: "    Later: &[Later], None, \"A reason of the later release.\", Nobody, \"\";
    InterfaceLeft: &[], WARNING,\n",
            },
            Edit {
                file: REPORT,
                from: "    // This condition is part of every report, or it has ended.\n",
                to: "    let later = Verdict::yes(Reason::Later, \"the later release reports this\");
    condition::set(&mut merged, later.condition(condition::LATER, None, *time));
    // This condition is part of every report, or it has ended.\n",
            },
        ],
    ),
    (
        "a pool's field has a further value",
        &[
            Edit {
                file: "crds/src/pool.rs",
                from: "    /// Everything the service has, tokens of the node's identities included.\n",
                to: "    /// Of the later release: for this test, nothing.
    Limited,
    /// Everything the service has, tokens of the node's identities included.\n",
            },
            Edit {
                file: FIREWALL,
                from: "            MetadataAccess::None => &PLATFORM[..],\n",
                to: "            MetadataAccess::None | MetadataAccess::Limited => &PLATFORM[..],\n",
            },
        ],
    ),
    (
        "an agent's answer to kubectl's plugin has a further field",
        &[
            Edit {
                file: "crds/src/inspection.rs",
                from: "    pub lacks_rules: bool,\n",
                to: "    pub lacks_rules: bool,\n    #[serde(default)]\n    pub later: u32,\n",
            },
            Edit {
                file: "node-agent/src/show.rs",
                from: "        lacks_rules: !ledger.is_ruled(),\n",
                to: "        lacks_rules: !ledger.is_ruled(),\n        later: 1,\n",
            },
        ],
    ),
    (
        "the names of ipConfigurations are longer",
        &[Edit {
            file: "operator/src/node/backend/nic.rs",
            from: "format!(\"{}{:016x}\", ",
            to: "format!(\"{}later-{:016x}\", ",
        }],
    ),
    (
        "the Lease has an annotation",
        &[Edit {
            file: "operator/src/leader.rs",
            from: "            ..lease\n        };\n",
            to: "            ..lease\n        };
        let mut claimed = claimed;
        claimed.metadata.annotations.get_or_insert_default().insert(\"vnetpool.io/later\".into(), \"1\".into());\n",
        }],
    ),
];

/// All edits, in the order of the steps.
pub fn edits() -> Vec<Edit> {
    STEPS.iter().flat_map(|(_, edits)| *edits).copied().collect()
}

/// Seconds that the build may take.
const WITHIN: &str = "2400";
/// Where the release is made, below the project's folder.
const OUT: &str = "target/later-release";
/// Makes the images as `make images` does, the kinds, and the chart with these kinds. An image of the node
/// agent has its plugin: there are two more with that of the other release. The first argument is the folder
/// of the programs, the second where all of it goes.
const BUILD: &str = r#"set -euo pipefail
programs=$1 out=$2
mkdir -p "$out"
cp -r target/images "$out/ours"
make images-root
cp -r target/images "$out/later"
"$programs/vnetpool-crds" crds/manifests docs/reference
cp crds/manifests/*.yaml charts/vnetpool/crds/
cp -r charts "$out/"
release() { # TAG AGENT PLUGIN
  cp "$out/$2/node-agent/vnetpool-node-agent" "$out/$3/node-agent/vnetpool" target/images/node-agent/
  target/cluster/bin/cluster release --registry localhost/ --tag "$1" --out "$out"
}
release later-agent later ours
release later-plugin ours later
release later later later
rm -r "$out/ours" "$out/later" "$out"/vnetpool-operator-later-*
"#;

/// Its images and its chart, in a folder.
pub struct Release {
    overlay: Overlay,
    folder: PathBuf,
}

impl Release {
    /// Builds it, beside images of this release that `make images` has made.
    ///
    /// # Errors
    /// When a step doesn't fit the product any more, or it can't be built.
    pub fn build() -> Result<Self> {
        let overlay = Overlay::new("skew")?;
        overlay.edit(&edits())?;
        let programs = programs();
        let programs = programs.to_string_lossy();
        let command = ["env", "--unset=MAKEFLAGS", "bash", "-c", BUILD, "build", &programs, OUT];
        let (is_built, printed) = overlay.run(WITHIN, &command)?;
        ensure!(is_built, "the later release can't be built: {printed}");
        Ok(Self { folder: overlay.path(OUT), overlay })
    }

    /// Takes all of it from the disk: nothing drops what is static.
    pub fn remove(&self) {
        self.overlay.remove();
    }

    /// The source's folder as far as an upgrade needs it: the chart is below it.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// The archives of all images.
    pub fn archives(&self) -> [PathBuf; 4] {
        let archive = |name: &str| self.folder.join(format!("vnetpool-{name}.oci.tar"));
        ["operator-later", "node-agent-later", "node-agent-later-agent", "node-agent-later-plugin"]
            .map(archive)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::overlay::edited;
    use vnetpool_crds::names::IP_CONFIGURATION_PREFIX;

    #[test]
    fn each_step_of_the_later_release_has_its_place_in_the_product() {
        let sources = edited(&edits()).unwrap();
        for (step, edits) in STEPS {
            assert!(!edits.is_empty(), "{step}");
            assert!(edits.iter().all(|edit| sources[edit.file].contains(edit.to)), "{step}");
        }
        assert!(sources[FORMAT].contains(&format!("starts_with(\"{NEWEST}\")")));
        assert!(sources["crds/src/pool.rs"].contains(&format!("    {ACCESS},\n")));
        assert!(sources["operator/src/node/backend/nic.rs"].contains("{}later-{:016x}"));
        assert_eq!(NAME, format!("{IP_CONFIGURATION_PREFIX}later-"));
    }
}
