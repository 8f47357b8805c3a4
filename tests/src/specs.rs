//! The report of a suite of Kubernetes' own specs, in the words of ginkgo, which runs them.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fmt::{Display, Formatter};

/// How the specs that were to run have ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Specs {
    pub passed: usize,
    /// They found on the way that they can't run here.
    pub skipped: Vec<String>,
    /// With the report of each of them; also whatever comes before or after all specs.
    pub failed: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Report>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// None: it was not to run.
    #[serde(default)]
    num_attempts: u32,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

impl Specs {
    /// # Errors
    /// When it is no report of ginkgo's.
    pub fn read(report: &str) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_str(report).context("ginkgo's report")?;
        let mut specs = Self::default();
        for report in suites.into_iter().flat_map(|suite| suite.spec_reports) {
            let is_spec = report.leaf_node_type == "It";
            let mut words = report.container_hierarchy_texts.unwrap_or_default();
            words.push(if is_spec { report.leaf_node_text } else { report.leaf_node_type });
            let name = words.join(" ");
            match report.state.as_str() {
                "passed" if is_spec => specs.passed += 1,
                "skipped" if is_spec && report.num_attempts > 0 => specs.skipped.push(name),
                "passed" | "skipped" | "pending" => {}
                state => {
                    let why = report.failure.map(|failure| failure.message).unwrap_or_default();
                    specs.failed.push(format!("{name}: {state}: {why}"));
                }
            }
        }
        Ok(specs)
    }

    /// # Errors
    /// Unless just so many have passed, and no other was to run.
    pub fn all_passed(&self, wanted: usize) -> Result<()> {
        let Self { passed, skipped, failed } = self;
        let more = [&failed[..], skipped].concat().join("\n");
        let is_so = *passed == wanted && skipped.is_empty() && failed.is_empty();
        ensure!(is_so, "of {wanted} specs {self}\n{more}");
        Ok(())
    }
}

impl Display for Specs {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        let Self { passed, skipped, failed } = self;
        write!(f, "{passed} passed, {} failed, {} skipped", failed.len(), skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(name: &str, state: &str, attempts: u32) -> Value {
        let mut spec = json!({ "ContainerHierarchyTexts": ["[sig-network]"], "LeafNodeType": "It",
            "LeafNodeText": name, "State": state });
        // Ginkgo leaves out zeros.
        if attempts > 0 {
            spec["NumAttempts"] = attempts.into();
        }
        if state == "failed" {
            spec["Failure"] = json!({ "Message": "no answer" });
        }
        spec
    }

    fn read(specs: Vec<Value>) -> Specs {
        let before = json!({ "ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite",
            "LeafNodeText": "", "State": "passed", "NumAttempts": 1 });
        let reports: Vec<Value> = [before].into_iter().chain(specs).collect();
        Specs::read(&json!([{ "SpecReports": reports }]).to_string()).unwrap()
    }

    #[test]
    fn only_specs_that_were_to_run_are_counted() {
        let specs = read(vec![
            spec("serves", "passed", 1),
            spec("is of another group", "skipped", 0),
            spec("wants two networks", "skipped", 1),
            spec("answers", "failed", 1),
        ]);
        assert_eq!(specs.to_string(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(specs.skipped, ["[sig-network] wants two networks"]);
        assert_eq!(specs.failed, ["[sig-network] answers: failed: no answer"]);
    }

    #[test]
    fn all_have_passed_only_where_just_so_many_have_and_no_other_was_to_run() {
        let passed = || spec("serves", "passed", 1);
        read(vec![passed(), passed()]).all_passed(2).unwrap();
        for (specs, reason) in [
            (vec![], "0 passed"),
            (vec![passed()], "1 passed"),
            (vec![passed(), passed(), passed()], "3 passed"),
            (vec![passed(), passed(), spec("answers", "failed", 1)], "answers: failed: no answer"),
            (vec![passed(), passed(), spec("hangs", "timedout", 1)], "hangs: timedout"),
            (vec![passed(), passed(), spec("wants more", "skipped", 1)], "wants more"),
        ] {
            let error = read(specs).all_passed(2).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_suite_that_could_not_begin_has_failed() {
        let before = json!({ "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "", "State": "failed",
            "NumAttempts": 1, "Failure": { "Message": "no node is ready" } });
        let specs = Specs::read(&json!([{ "SpecReports": [before] }]).to_string()).unwrap();
        assert_eq!(specs.failed, ["SynchronizedBeforeSuite: failed: no node is ready"]);
    }
}
