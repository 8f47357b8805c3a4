//! The metrics that both programs serve at `/metrics`.

use super::wrapped;
use crate::monitoring::{Exposition, Family};
use anyhow::Result;
use std::fmt::Write;

/// The metrics that both programs serve, with one of every series.
///
/// # Errors
/// Never for the text format's own sake.
pub fn expositions() -> Result<[Exposition; 2]> {
    let agent = vnetpool_node_agent::metrics::Metrics::example().text()?;
    Ok([Exposition::parse(&vnetpool_operator::metrics::example::text()?)?, Exposition::parse(&agent)?])
}

pub(super) fn page() -> Result<String> {
    let mut page = super::head("Metrics", "what both programs serve");
    let text = "[Monitoring](../monitoring.md) shows how Prometheus gets them. Prometheus adds the labels \
                `namespace`, `pod` and `node`. A histogram has the series `…_bucket`, `…_sum` and `…_count`.";
    page += &format!("\n{}", wrapped("", "", text));
    let [operator, agent] = expositions()?;
    let is_shared = |family: &&Family| family.name.starts_with("process_");
    let shared: Vec<_> = operator.families.iter().filter(is_shared).collect();
    let own = |all: &'static str| move |family: &&Family| family.name.starts_with(all);
    table(&mut page, "The operator's", operator.families.iter().filter(own("vnetpool_operator_")));
    table(&mut page, "The agents'", agent.families.iter().filter(own("vnetpool_agent_")));
    table(&mut page, "Of both programs' processes", shared.into_iter());
    Ok(page)
}

fn table<'a>(page: &mut String, title: &str, families: impl Iterator<Item = &'a Family>) {
    let _ = write!(page, "\n## {title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for family in families {
        let name = match family.kind.as_str() {
            "histogram" => family.name.clone(),
            _ => family.samples().concat(),
        };
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(page, "| `{name}` | {} | {} | {} |", family.kind, labels.join(", "), family.help);
    }
}
