//! Draws what the benchmarks have measured, from `target/bench`, for the pages in `docs/evidence`: `make
//! plots`. And what the dashboards have shown during a demo, with its transcript: `make pictures`.

use anyhow::{Context, Result, bail};
use plotters::prelude::*;
use serde_json::Value;
use std::fs;
use vnetpool_tests::panels::{self, Dashboard};
use vnetpool_tests::project::root;
use vnetpool_tests::scale::{BY_NODES, comparable, measured_aims, name};

const SIZE: (u32, u32) = (720, 360);
const COLOURS: [RGBColor; 5] = [BLUE, RED, GREEN, MAGENTA, BLACK];

/// A line: its name and its points.
type Line = (String, Vec<(f64, f64)>);

fn main() -> Result<()> {
    let (scale, node) = (measured("scale.json"), measured("node.json"));
    let panels = fs::read(root().join(panels::RECORDED));
    if scale.is_err() && node.is_err() && panels.is_err() {
        bail!("nothing was measured yet: make bench-scale, make bench-node, make pictures");
    }
    if let Ok(panels) = panels {
        panels::draw(&serde_json::from_slice::<Vec<Dashboard>>(&panels)?, &root().join("docs/evidence"))?;
        let transcript = fs::read_to_string(root().join("target/demo.txt")).context("no transcript")?;
        // Where it ran is of no use to a reader.
        let transcript = transcript.replace(&*root().to_string_lossy(), "…");
        write_into("docs/evidence/demo.md", &format!("\n```text\n{}\n```\n\n", transcript.trim()))?;
    }
    if let Ok(runs) = scale {
        draw_scale(&runs)?;
        write_into("docs/evidence/scale.md", &measured_aims(&runs))?;
    }
    if let Ok(rows) = node {
        for pods in [0, 200] {
            draw_node(&rows, pods, "", "One at a time")?;
            draw_node(&rows, pods, " at once", "32 at once")?;
        }
    }
    Ok(())
}

fn measured(file: &str) -> Result<Vec<Value>> {
    Ok(serde_json::from_slice(&fs::read(root().join("target/bench").join(file))?)?)
}

/// How nodes come and, of several sizes, what one costs by the number of all.
fn draw_scale(runs: &[Value]) -> Result<()> {
    let joins = runs.iter().map(|run| {
        let progress = run["scenarios"]["join"]["progress"].as_array().context("no progress")?;
        let wanted = number(run, "nodes")? * number(run, "addressesEach")?;
        let points =
            progress.iter().filter_map(|one| Some((one[0].as_f64()?, one[1].as_f64()? / wanted * 100.0)));
        Ok((name(run), points.collect()))
    });
    let joins: Vec<Line> = joins.collect::<Result<_>>()?;
    chart("scale-join.svg", "Nodes come", ("seconds", "% of all addresses held"), &joins)?;
    let runs = comparable(runs);
    if runs.len() < 2 {
        return Ok(());
    }
    let by_nodes = |what: &str, value: fn(&Value) -> Option<f64>| -> Result<Line> {
        let points = runs.iter().map(|run| Some((run["nodes"].as_f64()?, value(&run["scenarios"]["join"])?)));
        Ok((what.to_owned(), points.collect::<Option<_>>().with_context(|| what.to_owned())?))
    };
    let costs = [
        by_nodes("processor, ms", |join| join["aNode"]["processorMilliseconds"].as_f64())?,
        by_nodes("writes to the API server", |join| join["aNode"]["API writes"].as_f64())?,
        by_nodes("reads of Azure", |join| join["aNode"]["Azure: read"].as_f64())?,
        by_nodes("writes to Azure", |join| join["aNode"]["Azure: write"].as_f64())?,
    ];
    let memory = [by_nodes("at most, MiB", |join| join["mostMemoryMB"].as_f64())?];
    let lines = [(&costs[..], "for each node"), (&memory[..], "MiB")];
    for ((file, title), (lines, axis)) in BY_NODES.into_iter().zip(lines) {
        chart(file, title, ("nodes", axis), lines)?;
    }
    Ok(())
}

/// Puts this into the page's place for what is measured.
fn write_into(page: &str, text: &str) -> Result<()> {
    const BEGIN: &str = "<!-- by `make plots` -->\n";
    const END: &str = "<!-- until here -->\n";
    let path = root().join(page);
    let old = fs::read_to_string(&path)?;
    let (before, rest) = old.split_once(BEGIN).with_context(|| format!("{page} has no place for it"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("the place of {page} has no end"))?;
    fs::write(&path, format!("{before}{BEGIN}{text}{END}{after}"))?;
    println!("written: {}", path.display());
    Ok(())
}

/// What a pod waits for, beside the peers: a point for the median of each repetition. `how` ends the names of
/// the verbs in the rows.
fn draw_node(rows: &[Value], pods: u64, how: &str, title: &str) -> Result<()> {
    const PEERS: [&str; 4] = ["floor", "vnetpool", "ptp", "bridge"];
    let file = format!("docs/evidence/plugin-{pods}{}.svg", how.replace(' ', "-"));
    let path = root().join(file);
    let area = SVGBackend::new(&path, (720, 240)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{title}, {pods} pods on the node"), ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(72)
        .build_cartesian_2d((0.3..1000.0).log_scale(), -0.5..PEERS.len() as f64 - 0.5)?;
    let peer = |at: &f64| PEERS.get(at.round() as usize).map_or(String::new(), ToString::to_string);
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("milliseconds")
        .y_labels(PEERS.len())
        .y_label_formatter(&peer)
        .draw()?;
    for (verb, colour) in [("ADD", BLUE), ("DEL", RED)] {
        let mut points = vec![];
        let meant = format!("{verb}{how}");
        for row in rows.iter().filter(|row| row["pods"] == pods && row["verb"] == meant) {
            let at =
                PEERS.iter().position(|peer| row["peer"] == *peer).context("a peer without a place")? as f64;
            let medians = row["milliseconds"]["medians"].as_array().context("no medians")?;
            points.extend(medians.iter().filter_map(Value::as_f64).map(|median| (median, at)));
        }
        chart
            .draw_series(points.into_iter().map(|point| Circle::new(point, 4, colour.mix(0.6).filled())))?
            .label(verb)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.mix(0.6).filled()));
    }
    let labels = SeriesLabelPosition::LowerRight;
    chart.configure_series_labels().position(labels).background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    println!("drawn: {}", path.display());
    Ok(())
}

fn number(run: &Value, of: &str) -> Result<f64> {
    run[of].as_f64().with_context(|| format!("no {of} in {run}"))
}

fn chart(file: &str, title: &str, axes: (&str, &str), lines: &[Line]) -> Result<()> {
    let path = root().join("docs/evidence").join(file);
    let most =
        |of: fn(&(f64, f64)) -> f64| lines.iter().flat_map(|(_, points)| points).map(of).fold(0.0, f64::max);
    let (right, top) = (most(|point| point.0), most(|point| point.1) * 1.1);
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().light_line_style(TRANSPARENT).x_desc(axes.0).y_desc(axes.1).draw()?;
    for ((name, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        if points.len() < 20 {
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    let labels = SeriesLabelPosition::LowerRight;
    chart.configure_series_labels().position(labels).background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    println!("drawn: {}", path.display());
    Ok(())
}
