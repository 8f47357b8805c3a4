//! The keys of log lines, from the table that both programs and the plugin go by.

use super::{head, wrapped};
use std::fmt::Write;
use vnetpool_process::log::{DETAILS, Key, OF_EACH_LINE};

pub(super) fn page() -> String {
    let mut page = head("Keys of log lines", "`crds/process/src/log.rs`");
    for text in [
        "Operator and node agent write a JSON object a line to stderr, or text with `VNETPOOL_LOG_FORMAT=text`. \
         `RUST_LOG` is the filter of both; the chart sets it by `operator.logLevel` and `nodeAgent.logLevel`. The \
         plugin's log, `/run/vnetpool/plugin.log` on each node, has the same keys.",
        "Lines of an agent are about its own node and don't repeat its name. Lines that libraries write, whose \
         `target` doesn't begin with `vnetpool`, have keys of their own.",
    ] {
        page += &format!("\n{}", wrapped("", "", text));
    }
    page += "\n## In each line\n";
    table(&mut page, &OF_EACH_LINE);
    page += "\n## Details of lines and spans\n";
    table(&mut page, DETAILS);
    page
}

fn table(page: &mut String, keys: &[Key]) {
    *page += "\n| key | unit or form | meaning |\n|---|---|---|\n";
    for Key { name, unit, meaning } in keys {
        let unit = if unit.is_empty() { "text" } else { *unit };
        let _ = writeln!(page, "| `{name}` | {unit} | {meaning} |");
    }
}
