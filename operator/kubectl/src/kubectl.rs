//! The one way to the cluster: kubectl itself, which has started us. It signs in as its user does.
//!
//! No wait is without an end, and only so many of its processes run at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use vnetpool_crds::inspection::{NodeView, ReservedView};
use vnetpool_crds::names;

use crate::args::Access;
use crate::pod::node_of;

/// kubectl, as the user has chosen it.
pub struct Kubectl {
    flags: Vec<OsString>,
    pub namespace: String,
    /// Waits for its processes.
    runtime: Runtime,
}

/// An answer of the API server is that of one page, and the user may have to sign in meanwhile.
const READ: Duration = Duration::from_secs(30);
/// A kubelet's answer: the output of a program in a pod, or a log.
const POD: Duration = Duration::from_secs(20);
/// The operator prints one NIC after the other as it reads them, at the pace of Azure's request limits.
const SILENT: Duration = Duration::from_secs(60);
/// So many objects are in a page of a list.
const PAGE: usize = 2000;
/// One process of kubectl annotates so many objects, one after the other.
const ANNOTATED: usize = 100;
/// So many processes of kubectl run at once.
const AT_ONCE: usize = 16;

/// A page of a list as the API server answers it.
#[derive(Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
struct List<K> {
    items: Vec<K>,
    #[serde(default)]
    metadata: Page,
}

#[derive(Default, Deserialize)]
struct Page {
    /// The token for the next page; empty in the last.
    #[serde(default, rename = "continue")]
    next: String,
}

/// One of Vnetpool's programs, as its pods are labelled and its container is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Operator,
    NodeAgent,
}

impl Program {
    /// The component, which the container is named after, too.
    pub fn name(self) -> &'static str {
        match self {
            Program::Operator => "operator",
            Program::NodeAgent => "node-agent",
        }
    }

    fn command(self) -> String {
        format!("vnetpool-{}", self.name())
    }
}

/// The result of one of many requests: an answer, or why there is none.
pub type Answers<T> = BTreeMap<String, Result<T, String>>;

impl Kubectl {
    /// # Errors
    /// When the system gives no means to wait.
    pub fn new(access: &Access) -> Result<Kubectl> {
        let flag = |name: &str, value: Option<OsString>| {
            value.map(|value| [OsString::from(format!("--{name}")), value])
        };
        let flags = [
            flag("kubeconfig", access.kubeconfig.clone().map(Into::into)),
            flag("context", access.context.clone().map(Into::into)),
            flag("as", access.user.clone().map(Into::into)),
        ];
        Ok(Kubectl {
            flags: flags.into_iter().flatten().flatten().collect(),
            namespace: access.namespace.clone(),
            runtime: Builder::new_current_thread().enable_all().build()?,
        })
    }

    /// The API server's answer, as it sends it.
    ///
    /// # Errors
    /// When the API server refuses, or the answer can't be read.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        // A user who signs in by kubectl may have to type.
        let command = self.command(&["get", "--raw", path], Stdio::inherit());
        let answer = self.runtime.block_on(output(command, READ))?;
        serde_json::from_slice(&answer).with_context(|| format!("reading the answer to {path}"))
    }

    /// Every object of a list, page by page.
    ///
    /// # Errors
    /// When the API server refuses, or the answer can't be read.
    pub fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let (mut all, mut from) = (vec![], String::new());
        loop {
            let page: List<T> = self.get(&format!("{path}{joint}limit={PAGE}{from}"))?;
            all.extend(page.items);
            if page.metadata.next.is_empty() {
                return Ok(all);
            }
            from = format!("&continue={}", page.metadata.next);
        }
    }

    /// The pods of a program, on one node or on all.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn pods(&self, program: Program, node: Option<&str>) -> Result<Vec<Pod>> {
        let node = node.map(|node| format!("&fieldSelector=spec.nodeName%3D{node}")).unwrap_or_default();
        self.list(&format!(
            "/api/v1/namespaces/{}/pods?labelSelector=app.kubernetes.io/name%3Dvnetpool,app.kubernetes.io/component%3D{}{node}",
            self.namespace,
            program.name(),
        ))
    }

    /// The ledger and the wiring of each of these nodes, as its agent prints them.
    pub fn nodes<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Answers<NodeView> {
        let names: Vec<&str> = names.into_iter().collect();
        let only = if let [one] = names.as_slice() { Some(*one) } else { None };
        let pods = match names.is_empty() {
            true => Ok(vec![]),
            false => self.pods(Program::NodeAgent, only).map_err(|error| format!("{error:#}")),
        };
        let pods = pods.map(|pods| -> BTreeMap<String, String> {
            let runs =
                pods.iter().filter_map(|pod| Some((node_of(pod)?.to_owned(), running(pod)?.to_owned())));
            runs.collect()
        });
        let ask = async |node: &str| -> Result<NodeView, String> {
            let pods = pods.as_ref().map_err(Clone::clone)?;
            let program = Program::NodeAgent;
            let pod = pods.get(node).ok_or_else(|| self.runs_nowhere(program, Some(node)))?;
            let command = self.exec(program, pod, &[], &["status", "--output", "json"]);
            let printed = output(command, POD).await.map_err(|error| format!("{error:#}"))?;
            serde_json::from_slice(&printed).map_err(|error| format!("reading its agent's answer: {error}"))
        };
        let each = names.iter().map(async |node| ((*node).to_owned(), ask(node).await));
        self.runtime.block_on(stream::iter(each).buffer_unordered(AT_ONCE).collect())
    }

    /// Azure's reservations in these places, by their ids in lower case. That a place isn't there is an
    /// answer, too. One process of the operator reads all of it, so that its share of Azure's request limits
    /// paces it.
    pub fn reserved<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Answers<ReservedView> {
        let ids: Vec<&str> = ids.into_iter().collect();
        let mut answers = Answers::new();
        let end = match ids.is_empty() {
            true => Ok(()),
            false => self.read_reserved(&ids, &mut answers),
        };
        let why = end.err().map_or("the operator gave no answer".to_owned(), |error| format!("{error:#}"));
        for id in ids {
            answers.entry(id.to_lowercase()).or_insert_with(|| Err(why.clone()));
        }
        answers
    }

    /// What was read before a failure is kept.
    fn read_reserved(&self, ids: &[&str], answers: &mut Answers<ReservedView>) -> Result<()> {
        let program = Program::Operator;
        let pods = self.pods(program, None)?;
        let Some(pod) = pods.iter().find_map(running) else { bail!(self.runs_nowhere(program, None)) };
        let mut command = self.exec(program, pod, &["--stdin"], &["reserved"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let asked = ids.join("\n") + "\n";
        self.runtime.block_on(async {
            let mut child = command.spawn().context(NO_KUBECTL)?;
            let (mut to, mut errors) =
                (child.stdin.take().context("no stdin")?, child.stderr.take().context("no stderr")?);
            let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
            // Both beside the reading: a pipe that is full would stop it. Its exit shows that it ended early.
            tokio::spawn(async move { drop(to.write_all(asked.as_bytes()).await) });
            let stderr = tokio::spawn(async move {
                let mut stderr = vec![];
                errors.read_to_end(&mut stderr).await.map(|_| stderr)
            });
            while let Some(line) = within(SILENT, lines.next_line()).await?? {
                let view: ReservedView =
                    serde_json::from_str(&line).context("reading the operator's answer")?;
                let id = view.id.to_lowercase();
                let failed = view.error.clone().filter(|_| !view.is_absent);
                answers.insert(id, failed.map_or(Ok(view), Err));
            }
            let status = within(POD, child.wait()).await??;
            let stderr = within(POD, stderr).await???;
            ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr).trim());
            Ok(())
        })
    }

    /// Has the operator read the NICs of these nodes, by an annotation of their objects.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn ask_to_read(&self, nodes: &[&str], now: Timestamp) -> Result<()> {
        let word = format!("{}={now}", names::READ);
        for some in nodes.chunks(ANNOTATED) {
            let args = [&["annotate", "--overwrite", "nodeipallocation"], some, &[word.as_str()]].concat();
            let asked = self.runtime.block_on(output(self.command(&args, Stdio::inherit()), READ));
            asked.context("asking the operator to read NICs")?;
        }
        Ok(())
    }

    /// The last lines of the log of each of these pods of a program, as they come. Only so many are held at
    /// once.
    ///
    /// # Errors
    /// When `take` fails.
    pub fn logs(
        &self,
        program: Program,
        pods: &[String],
        lines: &str,
        mut take: impl FnMut(&str, Result<Vec<u8>>) -> Result<()>,
    ) -> Result<()> {
        let each = pods.iter().map(async |pod| {
            let args = ["logs", "--namespace", &self.namespace, pod, "--container", program.name(), lines];
            (pod, output(self.command(&args, Stdio::null()), POD).await)
        });
        self.runtime.block_on(async {
            let mut logs = stream::iter(each).buffered(AT_ONCE);
            while let Some((pod, log)) = logs.next().await {
                take(pod, log)?;
            }
            Ok(())
        })
    }

    /// Has a program of ours write to the user itself, and returns its exit code.
    ///
    /// # Errors
    /// When it runs nowhere, or can't be started.
    pub fn attach(&self, program: Program, args: &[&str]) -> Result<u8> {
        let pods = self.pods(program, None)?;
        let Some(pod) = pods.iter().find_map(running) else { bail!(self.runs_nowhere(program, None)) };
        let mut command = self.exec(program, pod, &[], args);
        let status = self.runtime.block_on(async { command.status().await }).context(NO_KUBECTL)?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }

    /// The objects of a file as they would be if it were applied. `-` is the standard input, for which there
    /// is no hurry.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub fn rehearse(&self, file: &Path) -> Result<Vec<Value>> {
        let file = file.to_string_lossy();
        let args = ["apply", "--dry-run=server", "--output", "json", "--filename", &file];
        let mut apply = self.command(&args, Stdio::inherit());
        let answer = self.runtime.block_on(async { apply.output().await });
        let mut answer: Value =
            serde_json::from_slice(&succeeded(answer)?).context("reading what would be applied")?;
        Ok(match answer["items"].take() {
            Value::Array(items) => items,
            _ => vec![answer],
        })
    }

    fn runs_nowhere(&self, program: Program, node: Option<&str>) -> String {
        let place = node.map(|node| format!(" on node {node}")).unwrap_or_default();
        format!("no pod of {} runs in namespace {}{place}", program.command(), self.namespace)
    }

    /// A program of ours, started once more in a pod in which it runs.
    fn exec(&self, program: Program, pod: &str, flags: &[&str], args: &[&str]) -> Command {
        let exec = ["exec", "--namespace", &self.namespace, pod, "--container", program.name()];
        self.command(&[&exec, flags, &["--", &program.command()], args].concat(), Stdio::null())
    }

    fn command(&self, args: &[&str], input: Stdio) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.flags).args(args).stdin(input);
        command
    }
}

const NO_KUBECTL: &str = "kubectl can't be started; it must be on the PATH";

/// The pod's name if it runs.
fn running(pod: &Pod) -> Option<&str> {
    let phase = pod.status.as_ref()?.phase.as_deref()?;
    pod.metadata.name.as_deref().filter(|_| phase == "Running" && pod.metadata.deletion_timestamp.is_none())
}

async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Result<T> {
    timeout(limit, what).await.map_err(|_| anyhow!("no answer within {} s", limit.as_secs()))
}

/// kubectl's output. A process that takes longer is killed.
async fn output(mut command: Command, limit: Duration) -> Result<Vec<u8>> {
    succeeded(within(limit, command.kill_on_drop(true).output()).await?)
}

fn succeeded(ended: std::io::Result<Output>) -> Result<Vec<u8>> {
    let Output { status, stdout, stderr } = ended.context(NO_KUBECTL)?;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr).trim());
    Ok(stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_an_answer_is_ended() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let error = runtime.block_on(output(command, Duration::from_secs(1))).unwrap_err();
        assert_eq!(error.to_string(), "no answer within 1 s");
    }
}
