//! What the benchmark of size has measured, for its page: the aims beside each run, and the runs to compare.

use serde_json::Value;

/// Pictures of what a node costs by the number of all: their files and titles.
pub const BY_NODES: [(&str, &str); 2] = [
    ("scale-node.svg", "What a node costs when it comes"),
    ("scale-memory.svg", "The operator's memory while nodes come"),
];

/// The runs of as many addresses and pods a node as the largest one: the others' nodes cost something else.
pub fn comparable(runs: &[Value]) -> Vec<&Value> {
    let each = |run: &Value| (run["addressesEach"].as_u64(), run["podsEach"].as_u64());
    let largest = runs.iter().max_by_key(|run| run["nodes"].as_u64()).map(each);
    runs.iter().filter(|run| Some(each(run)) == largest).collect()
}

/// The aims, and what each run has measured, as tables; and the pictures of several sizes.
pub fn measured_aims(runs: &[Value]) -> String {
    let heads: Vec<String> = runs.iter().map(name).collect();
    let mut text = String::new();
    for (title, part) in [("at most", "aims"), ("power of the number of nodes, at most", "exponents")] {
        let rows = |run: &Value| run[part].as_array().cloned().unwrap_or_default();
        // A run of an earlier build may have other aims than one of today's.
        let Some(all) = runs.iter().map(rows).max_by_key(Vec::len).filter(|all| !all.is_empty()) else {
            continue;
        };
        let rule = "|---".repeat(runs.len() + 2);
        text += &format!("\n| | {title} | {} |\n{rule}|\n", heads.join(" | "));
        for row in &all {
            let of = |run: &Value| cell(rows(run).iter().find(|one| one["aim"] == row["aim"]));
            let cells: Vec<String> = runs.iter().map(of).collect();
            let aim = row["aim"].as_str().unwrap_or_default();
            let unit = if part == "aims" { row["unit"].as_str().unwrap_or_default() } else { "" };
            let at_most = format!("{} {unit}", row["atMost"]);
            text += &format!("| {aim} | {} | {} |\n", at_most.trim(), cells.join(" | "));
        }
    }
    if comparable(runs).len() > 1 {
        BY_NODES.iter().for_each(|(file, title)| text += &format!("\n![{title}]({file})\n"));
    }
    text + "\n"
}

/// What a run has measured of an aim.
fn cell(row: Option<&Value>) -> String {
    let Some(measured) = row.and_then(|row| row["measured"].as_f64()) else { return "not run".to_owned() };
    let is_met = row.is_some_and(|row| row["met"] == true);
    format!("{}{}", (measured * 100.0).round() / 100.0, if is_met { "" } else { ", missed" })
}

/// A run's size, for people.
pub fn name(run: &Value) -> String {
    let [nodes, subscriptions, each] =
        ["nodes", "subscriptions", "addressesEach"].map(|of| run[of].as_u64().unwrap_or_default());
    format!(
        "{nodes} nodes of {each}, {subscriptions} subscription{}",
        if subscriptions == 1 { "" } else { "s" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(nodes: u64, each: u64, aims: &[(&str, f64)]) -> Value {
        let row = |(aim, measured): &(&str, f64)| {
            let met = *measured <= 1.0;
            json!({ "aim": aim, "unit": "ms", "atMost": 1.0, "measured": measured, "met": met })
        };
        let aims: Vec<Value> = aims.iter().map(row).collect();
        json!({ "nodes": nodes, "subscriptions": 1, "addressesEach": each, "podsEach": 8, "aims": aims })
    }

    #[test]
    fn each_run_has_its_own_cell_of_an_aim_though_an_earlier_build_had_fewer_aims() {
        let earlier = run(600, 100, &[("processor", 2.804)]);
        let runs = [earlier, run(1000, 12, &[("reads", 3.0), ("processor", 0.5)])];
        let text = measured_aims(&runs);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(
            rows[1..],
            ["| reads | 1.0 ms | not run | 3, missed |", "| processor | 1.0 ms | 2.8, missed | 0.5 |",]
        );
        assert!(!text.contains(".svg"), "one size shows no growth: {text}");
    }

    #[test]
    fn nodes_of_other_sizes_are_compared_with_those_that_hold_as_much() {
        let runs = [run(600, 100, &[]), run(1000, 12, &[]), run(5000, 12, &[])];
        let compared: Vec<_> = comparable(&runs).iter().map(|run| run["nodes"].as_u64()).collect();
        assert_eq!(compared, [Some(1000), Some(5000)]);
        assert!(measured_aims(&runs).contains("(scale-memory.svg)"));
    }
}
