//! The chart's dashboards as pictures: what each panel's queries gave over a span of time, drawn as Grafana
//! would draw it.

use crate::monitoring;
use crate::prometheus::Prometheus;
use anyhow::{Context, Result};
use jiff::Timestamp;
use plotters::coord::Shift;
use plotters::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Where the demo keeps what they have shown, below the project's root.
pub const RECORDED: &str = "target/demo-panels.json";

/// A dashboard with what its panels have shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dashboard {
    /// Of its file, without the ending.
    pub name: String,
    pub title: String,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub title: String,
    pub panels: Vec<Panel>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Panel {
    pub title: String,
    /// In Grafana's words; empty for plain numbers.
    pub unit: String,
    /// The lines lie on one another instead of beside.
    pub stacked: bool,
    pub lines: Vec<Line>,
}

/// A series: its legend, and its values by the seconds since the begin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// What every panel shows of the time since `begin`; `node` is the node of those about one.
///
/// # Errors
/// When Prometheus refuses a query.
pub async fn record(prometheus: &Prometheus, node: &str, begin: Timestamp) -> Result<Vec<Dashboard>> {
    let mut all = vec![];
    for (name, dashboard) in monitoring::dashboards()? {
        let mut rows = vec![];
        for row in list(&dashboard["rows"])? {
            let mut panels = vec![];
            for panel in list(&row["panels"])? {
                let mut lines = vec![];
                for (legend, query) in panel["queries"].as_object().context("no queries")? {
                    let query = query.as_str().context("no query")?.replace("$node", node);
                    let found = prometheus.range(&query, begin).await.context(query)?;
                    lines.extend(found.iter().map(|series| line(legend, series, begin)));
                }
                lines.sort_by(|a, b| a.name.cmp(&b.name));
                let (title, unit) = (text(&panel["title"]), text(&panel["unit"]));
                panels.push(Panel { title, unit, stacked: panel["stacked"] == true, lines });
            }
            rows.push(Row { title: text(&row["title"]), panels });
        }
        all.push(Dashboard { name, title: text(&dashboard["title"]), rows });
    }
    Ok(all)
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().with_context(|| format!("{value} is no list"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A series of Prometheus' answer. A value that is no number (of no calls no share is slow) is a gap.
fn line(legend: &str, series: &Value, begin: Timestamp) -> Line {
    let mut name = legend.to_owned();
    for (label, value) in series["metric"].as_object().into_iter().flatten() {
        name = name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default());
    }
    // A label that the series lacks is empty for Grafana, too.
    while let Some((before, rest)) = name.split_once("{{") {
        name = format!("{before}{}", rest.split_once("}}").map_or("", |(_, after)| after));
    }
    let begin = begin.as_millisecond() as f64 / 1000.0;
    let points = series["values"].as_array().into_iter().flatten().filter_map(|point| {
        let value: f64 = point[1].as_str()?.parse().ok()?;
        value.is_finite().then_some((point[0].as_f64()? - begin, value))
    });
    Line { name: name.split_whitespace().collect::<Vec<_>>().join(" "), points: points.collect() }
}

/// By seconds.
type Points = Vec<(f64, f64)>;

impl Panel {
    /// The lines as they are drawn, each with the one that it lies on.
    fn layers(&self) -> Vec<(&str, Points, Points)> {
        let mut below: Vec<(f64, f64)> = vec![];
        let mut layers = vec![];
        for line in &self.lines {
            let height = |at: f64| {
                let under = below.iter().find(|point| (point.0 - at).abs() < 0.5);
                under.filter(|_| self.stacked).map_or(0.0, |point| point.1)
            };
            let bottom: Vec<_> = line.points.iter().map(|point| (point.0, height(point.0))).collect();
            let top: Vec<_> =
                line.points.iter().zip(&bottom).map(|(point, low)| (point.0, point.1 + low.1)).collect();
            for point in &top {
                match below.iter_mut().find(|one| (one.0 - point.0).abs() < 0.5) {
                    Some(known) => known.1 = point.1,
                    None => below.push(*point),
                }
            }
            layers.push((line.name.as_str(), top, bottom));
        }
        layers
    }
}

const WIDTH: u32 = 1080;
const HEADING: u32 = 30;
const PANEL: u32 = 250;
/// So many lines of a panel are named below it, in two columns.
const NAMED: usize = 8;
/// So wide a letter of a name is.
const LETTER: u32 = 7;

/// Draws each dashboard into `dashboard-NAME.svg` of a folder.
///
/// # Errors
/// When a file can't be written.
pub fn draw(dashboards: &[Dashboard], folder: &Path) -> Result<()> {
    for dashboard in dashboards {
        let path = folder.join(format!("dashboard-{}.svg", dashboard.name));
        let height = HEADING + dashboard.rows.len() as u32 * (HEADING + PANEL);
        let area = SVGBackend::new(&path, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let (title, mut rest) = area.split_vertically(HEADING);
        title.draw(&Text::new(dashboard.title.clone(), (10, 6), ("sans-serif", 20)))?;
        for row in &dashboard.rows {
            let (this, below) = rest.split_vertically(HEADING + PANEL);
            let (title, panels) = this.split_vertically(HEADING);
            title.draw(&Text::new(row.title.clone(), (10, 10), ("sans-serif", 16)))?;
            for (place, panel) in panels.split_evenly((1, row.panels.len())).iter().zip(&row.panels) {
                draw_panel(place, panel)?;
            }
            rest = below;
        }
        area.present()?;
        println!("drawn: {}", path.display());
    }
    Ok(())
}

fn draw_panel(place: &DrawingArea<SVGBackend, Shift>, panel: &Panel) -> Result<()> {
    let layers = panel.layers();
    let points = || layers.iter().flat_map(|(_, top, _)| top);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let most = points().map(|point| point.1).fold(0.0, f64::max);
    let highest = if most > 0.0 { most * 1.1 } else { 1.0 };
    let named = layers.len().min(NAMED).div_ceil(2) as u32;
    let (drawing, legend) = place.split_vertically(PANEL - 4 - 14 * named.max(1));
    let mut chart = ChartBuilder::on(&drawing)
        .caption(&panel.title, ("sans-serif", 13))
        .margin_left(4)
        .margin_right(10)
        .x_label_area_size(20)
        .y_label_area_size(46)
        .build_cartesian_2d(0.0..right, 0.0..highest)?;
    let (seconds, value) = (|at: &f64| format!("{at:.0} s"), |value: &f64| shown(*value, &panel.unit));
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 10))
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&seconds)
        .y_label_formatter(&value)
        .draw()?;
    for (number, (_, top, bottom)) in layers.iter().enumerate() {
        let colour = Palette99::pick(number);
        if panel.stacked {
            let around: Vec<_> = top.iter().chain(bottom.iter().rev()).copied().collect();
            chart.draw_series([Polygon::new(around, colour.mix(0.3))])?;
        }
        chart.draw_series(LineSeries::new(top.iter().copied(), &colour))?;
    }
    // Of an id the end tells most.
    let elided = |name: &str| {
        let letters: Vec<char> = name.chars().collect();
        let rest = letters.len().saturating_sub((place.dim_in_pixel().0 / LETTER / 2) as usize);
        let end: String = letters[rest..].iter().collect();
        if rest == 0 { end } else { format!("…{end}") }
    };
    let write = |words: String, number: usize| {
        let (column, line) = (number % 2, number / 2);
        let at = (56 + column as i32 * (place.dim_in_pixel().0 as i32 - 60) / 2, 14 * line as i32);
        legend.draw(&Rectangle::new(
            [(at.0 - 12, at.1 + 3), (at.0 - 4, at.1 + 9)],
            Palette99::pick(number).filled(),
        ))?;
        legend.draw(&Text::new(words, at, ("sans-serif", 11)))
    };
    for (number, (name, ..)) in layers.iter().enumerate().take(NAMED) {
        let more = layers.len() - NAMED.min(layers.len());
        let is_last = number + 1 == NAMED && more > 0;
        let name = elided(name);
        write(if is_last { format!("{name}, and {more} more") } else { name }, number)?;
    }
    if layers.is_empty() {
        legend.draw(&Text::new("no series: nothing of it happened", (44, 0), ("sans-serif", 11)))?;
    }
    Ok(())
}

/// A value at an axis, by Grafana's unit.
fn shown(value: f64, unit: &str) -> String {
    let digits = if value >= 10.0 {
        0
    } else if value >= 0.1 {
        2
    } else {
        5
    };
    let number = |value: f64| {
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match unit {
        "percentunit" => format!("{:.0} %", value * 100.0),
        "s" => format!("{} s", number(value)),
        "ops" | "reqps" | "pps" => format!("{}/s", number(value)),
        _ => number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_series_is_named_by_its_legend_and_has_no_point_where_its_value_is_no_number() {
        let series = json!({
            "metric": { "pool": "default", "state": "free" },
            "values": [[100.0, "1"], [102.0, "NaN"], [104.0, "2.5"]],
        });
        let begin = Timestamp::from_second(100).unwrap();
        let found = line("{{pool}} {{lacking}} {{state}} of all", &series, begin);
        assert_eq!(found.name, "default free of all");
        assert_eq!(found.points, [(0.0, 1.0), (4.0, 2.5)]);
    }

    #[test]
    fn stacked_lines_lie_on_one_another_and_others_on_the_ground() {
        let lines = [("a", vec![(0.0, 1.0), (2.0, 2.0)]), ("b", vec![(2.0, 5.0), (4.0, 1.0)])];
        let lines = lines.map(|(name, points)| Line { name: name.into(), points }).to_vec();
        let mut panel = Panel { title: String::new(), unit: String::new(), stacked: true, lines };
        let tops = |panel: &Panel| panel.layers().into_iter().map(|(_, top, _)| top).collect::<Vec<_>>();
        assert_eq!(tops(&panel), [vec![(0.0, 1.0), (2.0, 2.0)], vec![(2.0, 7.0), (4.0, 1.0)]]);
        panel.stacked = false;
        assert_eq!(tops(&panel)[1], [(2.0, 5.0), (4.0, 1.0)]);
    }

    #[test]
    fn a_picture_has_every_panel_by_its_title_also_one_without_series() {
        let panel =
            |title: &str, lines| Panel { title: title.into(), unit: "s".into(), stacked: true, lines };
        let lines: Vec<Line> = (0..10)
            .map(|number| Line { name: format!("line{number}"), points: vec![(0.0, 1.0), (9.0, 3.0)] })
            .collect();
        let panels = vec![panel("Full", lines), panel("Empty", vec![])];
        let dashboard = Dashboard {
            name: "x".into(),
            title: "X".into(),
            rows: vec![Row { title: "Row".into(), panels }],
        };
        let folder = tempfile::tempdir().unwrap();
        draw(&[dashboard], folder.path()).unwrap();
        let picture = std::fs::read_to_string(folder.path().join("dashboard-x.svg")).unwrap();
        for word in ["Full", "Empty", "Row", "line7, and 2 more", "no series"] {
            assert!(picture.contains(word), "{word} in {picture}");
        }
    }
}
