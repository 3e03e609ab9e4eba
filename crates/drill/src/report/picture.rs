//! The time line: faults as shaded spans over requests per second, latency and ready endpoints, with the API's events as marks.
//!
//! Four strips over one another share the axis of time: names of the faults, requests, latency (logarithmic), endpoints. SVG
//! text of its own, so that the report is one file.

use std::collections::BTreeMap;
use std::fmt::Display;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::{Report, ReportError};
use crate::observe::Tone;

const WIDTH: u32 = 1200;
const HEIGHT: u32 = 640;
/// Where the strips end, from the top.
const NAMES_UNTIL: u32 = 64;
const REQUESTS_UNTIL: u32 = 254;
const LATENCY_UNTIL: u32 = 444;
/// Room for the numbers on the left.
const LEFT: u32 = 74;
const MARGIN: u32 = 10;
const RIGHT: u32 = 16;

const FAULT: RGBColor = RGBColor(0xd9, 0x7a, 0x06);
const GOOD: RGBColor = RGBColor(0x2f, 0x6f, 0xb7);
const BAD: RGBColor = RGBColor(0xc6, 0x28, 0x28);
const BETTER: RGBColor = RGBColor(0x2e, 0x7d, 0x32);
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const FAINT: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
/// Lines of several Services.
const LINES: [RGBColor; 6] = [
    GOOD,
    RGBColor(0x8e, 0x44, 0xad),
    RGBColor(0x00, 0x79, 0x6b),
    RGBColor(0xb7, 0x1c, 0x1c),
    RGBColor(0x5d, 0x40, 0x37),
    RGBColor(0x45, 0x5a, 0x64),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed(error: impl Display) -> ReportError {
    ReportError::Picture(error.to_string())
}

/// The picture as SVG.
pub(super) fn draw(report: &Report) -> Result<String, ReportError> {
    let mut svg = String::new();
    {
        let all = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        all.fill(&WHITE).map_err(failed)?;
        let (names, rest) = all.split_vertically(NAMES_UNTIL);
        let (requests, rest) = rest.split_vertically(REQUESTS_UNTIL - NAMES_UNTIL);
        let (latency, endpoints) = rest.split_vertically(LATENCY_UNTIL - REQUESTS_UNTIL);
        draw_names(&names, report)?;
        draw_requests(&requests, report)?;
        draw_latency(&latency, report)?;
        draw_endpoints(&endpoints, report)?;
        all.present().map_err(failed)?;
    }
    Ok(svg)
}

fn length(report: &Report) -> f64 {
    (report.seconds.len() as f64).max(1.0)
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// From when to when each fault lasted, and until when it was healed.
fn spans(report: &Report) -> impl Iterator<Item = (f64, f64, f64)> {
    report.verdict.steps.iter().map(|verdict| {
        let step = &verdict.step;
        let healed = step.healed_us.unwrap_or(step.until_us).max(step.undone_us);
        (seconds(step.from_us), seconds(step.undone_us), seconds(healed))
    })
}

/// Names above their spans, on three lines in turn, so that neighbours do not run into each other.
fn draw_names(area: &Area<'_>, report: &Report) -> Result<(), ReportError> {
    let style = ("sans-serif", 13).into_font().color(&INK);
    let wide = f64::from(WIDTH - LEFT - RIGHT) / length(report);
    for (number, verdict) in report.verdict.steps.iter().enumerate() {
        let x = LEFT as i32 + (seconds(verdict.step.from_us) * wide) as i32;
        let y = 4 + 19 * (number % 3) as i32;
        area.draw_text(&verdict.step.name, &style, (x + 3, y)).map_err(failed)?;
        area.draw(&PathElement::new(vec![(x, y), (x, NAMES_UNTIL as i32)], FAULT.mix(0.6))).map_err(failed)?;
    }
    Ok(())
}

fn draw_requests(area: &Area<'_>, report: &Report) -> Result<(), ReportError> {
    let most = report.seconds.iter().map(|second| second.asked).max().unwrap_or(1).max(1) as f64;
    let mut chart = frame(area, report, 0.0..most * 1.1, "requests per second", &|value| format!("{value:.0}"), false)?;
    let points = report.seconds.iter().enumerate();
    // Steps, not slopes: a second is what it is from its first moment to its last.
    let answered = points.clone().flat_map(|(at, it)| {
        let high = (it.asked - it.failed) as f64;
        [(at as f64, high), (at as f64 + 1.0, high)]
    });
    chart.draw_series(AreaSeries::new(answered, 0.0, GOOD.mix(0.25)).border_style(GOOD)).map_err(failed)?;
    // Failures from the ground up, so that a single one is seen.
    let bars = points.filter(|(_, it)| it.failed > 0).map(|(at, it)| {
        let high = (it.failed as f64).max(most * 0.03);
        Rectangle::new([(at as f64, 0.0), (at as f64 + 1.0, high)], BAD.filled())
    });
    chart.draw_series(bars).map_err(failed)?;
    legend(area, &[("answered", GOOD), ("failed", BAD)])
}

fn draw_latency(area: &Area<'_>, report: &Report) -> Result<(), ReportError> {
    let highest = report.seconds.iter().map(|second| second.latency.max_us).max().unwrap_or(1);
    let top = (f64::from(highest) / 1000.0 * 1.5).max(10.0);
    let label = |value: &f64| if *value < 1.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") };
    let mut chart = frame(area, report, (0.1..top).log_scale(), "latency", &label, false)?;
    let answered = report.seconds.iter().enumerate().filter(|(_, second)| second.latency.count > 0);
    let line = |of: fn(&super::Second) -> u32| {
        let points = answered.clone();
        points.map(move |(at, second)| (at as f64 + 0.5, (f64::from(of(second)) / 1000.0).max(0.1))).collect::<Vec<_>>()
    };
    let bands: [(Vec<(f64, f64)>, RGBColor); 3] = [
        (line(|second| second.latency.max_us), LINES[3]),
        (line(|second| second.latency.p99_us), LINES[1]),
        (line(|second| second.latency.p50_us), GOOD),
    ];
    for (points, color) in bands {
        chart.draw_series(AreaSeries::new(points, 0.1, color.mix(0.10)).border_style(color)).map_err(failed)?;
    }
    legend(area, &[("max", LINES[3]), ("p99", LINES[1]), ("p50", GOOD)])
}

/// Ready endpoints as steps, and the API's events as marks below them.
fn draw_endpoints(area: &Area<'_>, report: &Report) -> Result<(), ReportError> {
    let mut services: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for change in &report.endpoints {
        let line = services.entry(&change.service).or_default();
        if let Some((_, before)) = line.last().copied() {
            line.push((seconds(change.at_us), before));
        }
        line.push((seconds(change.at_us), change.ready as f64));
    }
    // Services that never changed say nothing.
    services.retain(|_, line| line.iter().any(|(_, ready)| (ready - line[0].1).abs() > 0.5));
    let most = services.values().flatten().map(|(_, ready)| *ready).fold(1.0, f64::max);
    let label = |value: &f64| if *value < 0.0 { String::new() } else { format!("{value:.0}") };
    let mut chart = frame(area, report, -0.9..most + 0.6, "ready endpoints", &label, true)?;
    let mut names = Vec::new();
    for (number, (service, mut line)) in services.into_iter().take(LINES.len()).enumerate() {
        let last = line.last().map_or(0.0, |(_, ready)| *ready);
        line.push((length(report), last));
        // A little apart, so that equal lines are seen side by side.
        let shift = number as f64 * 0.07;
        let points = line.into_iter().map(|(x, y)| (x, y + shift));
        chart.draw_series(LineSeries::new(points, LINES[number].stroke_width(2))).map_err(failed)?;
        names.push((service, LINES[number]));
    }
    let marks = report.marks.iter().map(|mark| {
        let color = if mark.tone == Tone::Worse { BAD } else { BETTER };
        let x = seconds(mark.at_us);
        PathElement::new(vec![(x, -0.85), (x, -0.35)], color.stroke_width(2))
    });
    chart.draw_series(marks).map_err(failed)?;
    names.extend([("event: worse", BAD), ("event: better", BETTER)]);
    legend(area, &names)
}

type Chart<'a, 'b, Y> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>;

/// Axes and the faults' shades; the lowest strip carries the numbers of seconds.
fn frame<'a, 'b, Y>(
    area: &'b Area<'a>,
    report: &Report,
    y: Y,
    title: &str,
    label: &dyn Fn(&f64) -> String,
    is_lowest: bool,
) -> Result<Chart<'a, 'b, Y::CoordDescType>, ReportError>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
{
    let mut builder = ChartBuilder::on(area);
    builder.margin_left(MARGIN).margin_right(RIGHT).margin_top(8).margin_bottom(4).y_label_area_size(LEFT - MARGIN);
    builder.x_label_area_size(if is_lowest { 36 } else { 6 });
    let mut chart = builder.build_cartesian_2d(0.0..length(report), y).map_err(failed)?;
    let font = ("sans-serif", 12).into_font().color(&INK);
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(WHITE.mix(0.0)).bold_line_style(FAINT).axis_style(INK.mix(0.5)).label_style(font.clone());
    mesh.y_desc(title).axis_desc_style(font).y_labels(5).y_label_formatter(label);
    mesh.x_labels(if is_lowest { 16 } else { 0 }).x_label_formatter(&|value| format!("{value:.0}"));
    if is_lowest {
        mesh.x_desc("seconds");
    }
    mesh.draw().map_err(failed)?;
    // From edge to edge, whatever the scale: in pixels.
    let plane = chart.plotting_area().strip_coord_spec();
    let (wide, high) = plane.dim_in_pixel();
    let x = |at: f64| (at / length(report) * f64::from(wide)) as i32;
    for (from, undone, healed) in spans(report) {
        for (from, until, strength) in [(from, undone, 0.22), (undone, healed, 0.09)] {
            let shade = Rectangle::new([(x(from), 0), (x(until), high as i32)], FAULT.mix(strength).filled());
            plane.draw(&shade).map_err(failed)?;
        }
    }
    Ok(chart)
}

/// What each colour is, in the upper right corner.
fn legend(area: &Area<'_>, entries: &[(&str, RGBColor)]) -> Result<(), ReportError> {
    let style = ("sans-serif", 12).into_font().color(&INK);
    let mut x = (WIDTH - RIGHT) as i32 - 8;
    for (name, color) in entries.iter().rev() {
        // Without fonts at hand: seven pixels a character are enough for this size.
        x -= name.chars().count() as i32 * 7 + 22;
        area.draw(&Rectangle::new([(x, 12), (x + 10, 20)], color.filled())).map_err(failed)?;
        area.draw_text(name, &style, (x + 14, 10)).map_err(failed)?;
    }
    Ok(())
}
