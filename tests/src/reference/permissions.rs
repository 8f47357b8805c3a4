//! The permissions of the operator's identity in Azure, from the list behind the role and the preflight.

use super::{head, wrapped};
use std::fmt::Write;
use vnetpool_operator::azure::role::PARTS;

pub(super) fn page() -> String {
    let mut page = head("Permissions in Azure", "the list behind `vnetpool-operator role` and `preflight`");
    let text = "Without `--part`, `vnetpool-operator role` prints all of them. The first part is always granted, the \
                others where their feature is used. [Identity](../identity.md) shows where to assign the role.";
    page += &format!("\n{}", wrapped("", "", text));
    for (index, part) in PARTS.iter().enumerate() {
        let flag = if index == 0 { "always".to_owned() } else { format!("by `--part {}`", part.name) };
        let _ = write!(page, "\n## {}\n\n", part.name);
        page += &wrapped("", "", &format!("Granted {flag}, for {}.", part.purpose));
        page.push('\n');
        for action in part.actions {
            let _ = writeln!(page, "- `{}`", action.name);
        }
    }
    page
}
