//! The actions of the role, and that the client makes no request without one.

use vnetpool_operator::azure::role::{Action, PARTS};

/// The action that a request needs, as ARM derives it.
pub fn action_of(method: &str, path: &str) -> String {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let provider = segments.iter().rposition(|segment| segment.eq_ignore_ascii_case("providers")).unwrap();
    let types: Vec<&str> = segments[provider + 2..].iter().step_by(2).copied().collect();
    let verb = match method {
        "GET" => "read",
        "PUT" => "write",
        "DELETE" => "delete",
        other => panic!("no such call is made: {other} {path}"),
    };
    format!("{}/{}/{verb}", segments[provider + 1], types.join("/"))
}

pub fn actions() -> impl Iterator<Item = &'static Action> {
    PARTS.iter().flat_map(|part| part.actions)
}

/// Every test of the client ends with this: the role has an action for each of its requests.
pub fn assert_listed<'a>(requests: impl IntoIterator<Item = (&'a str, &'a str)>) {
    for (method, path) in requests {
        let action = action_of(method, path);
        // Only the preflight asks for it, and does without.
        let is_listed = action == "Microsoft.Authorization/permissions/read"
            || actions().any(|listed| listed.name.eq_ignore_ascii_case(&action));
        assert!(is_listed, "{method} {path} needs {action}, which isn't in azure/role.rs");
    }
}
