//! The picture of a failover: transactions per second over time, and the phases below it.

use std::fmt::Write as _;

const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 1048.0;
const TOP: f64 = 104.0;
const BOTTOM: f64 = 368.0;
const PHASES_TOP: f64 = 452.0;
const PHASES_BOTTOM: f64 = 484.0;

const STYLE: &str = "
  text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #24292f }
  .title { font-size: 20px; font-weight: 600 }
  .sub, .axis { fill: #57606a }
  .axis, .small { font-size: 12px }
  .strong { font-weight: 600 }
  .page { fill: #ffffff } .grid { stroke: #d8dee4; stroke-width: 1 } .zero { stroke: #57606a }
  .area { fill: #0969da; fill-opacity: .16 } .line { fill: none; stroke: #0969da; stroke-width: 1.8; stroke-linejoin: round }
  .outage { fill: #cf222e; fill-opacity: .09 } .cut { stroke: #cf222e; stroke-width: 1.6 }
  .back { stroke: #1a7f37; stroke-width: 1.6 } .note { stroke: #8250df; stroke-width: 1.4; stroke-dasharray: 4 3 }
  .red { fill: #cf222e } .green { fill: #1a7f37 } .violet { fill: #8250df }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .sub, .axis { fill: #9198a1 } .page { fill: #0d1117 }
    .grid { stroke: #2a313c } .zero { stroke: #9198a1 }
    .area { fill: #4493f8 } .line { stroke: #4493f8 } .outage { fill: #f85149; fill-opacity: .13 }
    .cut { stroke: #f85149 } .back { stroke: #3fb950 } .note { stroke: #ab7df8 }
    .red { fill: #f85149 } .green { fill: #3fb950 } .violet { fill: #ab7df8 }
  }
";

/// Colours of the phases, readable on light and on dark.
const COLOURS: [&str; 7] =
    ["#cf222e", "#bc4c00", "#9a6700", "#0969da", "#1b7c83", "#8250df", "#1a7f37"];

/// What to draw. Times are seconds after the cut.
pub(super) struct Picture {
    /// (time, transactions per second).
    pub(super) rate: Vec<(f64, f64)>,
    /// Name and time of each phase, in order; the last is the first commit.
    pub(super) phases: Vec<(&'static str, f64)>,
    pub(super) healed: f64,
    pub(super) in_sync: f64,
    pub(super) acknowledged: u64,
    pub(super) lost: u64,
}

/// Maps values of one range to pixels of another.
#[derive(Clone, Copy)]
struct Scale {
    from: (f64, f64),
    to: (f64, f64),
}

impl Scale {
    fn of(self, value: f64) -> f64 {
        let part = (value - self.from.0) / (self.from.1 - self.from.0);
        self.to.0 + part * (self.to.1 - self.to.0)
    }
}

impl Picture {
    /// The picture as an SVG document.
    pub(super) fn draw(&self) -> String {
        let commit = self.phases.last().map_or(0.0, |(_, at)| *at);
        let first = self.rate.first().map_or(-1.0, |(at, _)| *at).min(-1.0);
        let last = self.rate.last().map_or(commit, |(at, _)| *at).max(self.in_sync).max(commit);
        let x = Scale { from: (first.floor(), last.ceil()), to: (LEFT, RIGHT) };
        let top = ceiling(self.rate.iter().map(|(_, rate)| *rate).fold(1.0, f64::max));
        let y = Scale { from: (0.0, top), to: (BOTTOM, TOP) };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"Transactions per second across a failover\">\n<style>{STYLE}</style>\n\
             <rect class=\"page\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"10\"/>\n"
        );
        text(&mut svg, LEFT, 40.0, "title", "start", "PostgreSQL outlives its node");
        let subtitle = format!(
            "cable cut at 0 s · first commit on another node after {commit:.2} s · {} ledger rows acknowledged, {} lost",
            grouped(self.acknowledged),
            self.lost
        );
        text(&mut svg, LEFT, 64.0, "sub", "start", &subtitle);
        axes(&mut svg, x, y, top);
        self.outage(&mut svg, x, commit);
        self.curve(&mut svg, x, y);
        self.marks(&mut svg, x, commit);
        self.phases(&mut svg, commit);
        svg.push_str("</svg>\n");
        svg
    }

    fn outage(&self, svg: &mut String, x: Scale, commit: f64) {
        put(
            svg,
            &format!(
                "<rect class=\"outage\" x=\"{:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                x.of(0.0),
                x.of(commit) - x.of(0.0),
                BOTTOM - TOP
            ),
        );
    }

    fn curve(&self, svg: &mut String, x: Scale, y: Scale) {
        let mut line = String::new();
        for (at, rate) in &self.rate {
            let _ = write!(line, "{:.1},{:.1} ", x.of(*at), y.of(*rate));
        }
        if let (Some((first, _)), Some((last, _))) = (self.rate.first(), self.rate.last()) {
            let (from, to) = (x.of(*first), x.of(*last));
            put(
                svg,
                &format!(
                    "<polygon class=\"area\" points=\"{from:.1},{BOTTOM} {line}{to:.1},{BOTTOM}\"/>\n\
                     <polyline class=\"line\" points=\"{}\"/>",
                    line.trim_end()
                ),
            );
        }
    }

    fn marks(&self, svg: &mut String, x: Scale, commit: f64) {
        let close = x.of(self.in_sync) - x.of(self.healed) < 90.0;
        let healed = if close { "end" } else { "start" };
        for (class, colour, at, label, row, anchor) in [
            ("cut", "red", 0.0, "cable cut".to_owned(), 0.0, "start"),
            ("back", "green", commit, format!("first commit {commit:.2} s"), 1.0, "start"),
            ("note", "violet", self.healed, "node healed".to_owned(), 0.0, healed),
            ("note", "violet", self.in_sync, "two copies in sync".to_owned(), 1.0, "start"),
        ] {
            let at = x.of(at);
            let aside = if anchor == "end" { at - 5.0 } else { at + 5.0 };
            let height = TOP - 4.0 - row * 14.0;
            put(
                svg,
                &format!(
                    "<line class=\"{class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{height}\" y2=\"{BOTTOM}\"/>"
                ),
            );
            let class = format!("small strong {colour}");
            text(svg, aside, height + 8.0, &class, anchor, &label);
        }
    }

    fn phases(&self, svg: &mut String, commit: f64) {
        let x = Scale { from: (0.0, commit.max(0.1)), to: (LEFT, RIGHT) };
        text(
            svg,
            LEFT,
            PHASES_TOP - 26.0,
            "strong",
            "start",
            "From the cut to the first commit, phase by phase",
        );
        let mut before = 0.0;
        let mut free = [LEFT; 3];
        for (index, (name, at)) in self.phases.iter().enumerate() {
            let (from, to) = (x.of(before), x.of(*at));
            let colour = COLOURS[index % COLOURS.len()];
            put(
                svg,
                &format!(
                    "<rect x=\"{from:.1}\" y=\"{PHASES_TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\">\
                     <title>{name}: {before:.2} s to {at:.2} s</title></rect>",
                    (to - from).max(1.0),
                    PHASES_BOTTOM - PHASES_TOP
                ),
            );
            let label = format!("{} {at:.2} s", name.replace('_', " "));
            let width = label.len() as f64 * 6.6;
            // Labels end at their moment if there is room, on the first row that is free.
            let start = (to - width).max(LEFT);
            let row = free.iter().position(|end| *end <= start).unwrap_or(free.len() - 1);
            let start = start.max(free[row]);
            free[row] = start + width + 12.0;
            let base = PHASES_BOTTOM + 20.0 + row as f64 * 17.0;
            put(
                svg,
                &format!(
                    "<text class=\"small\" x=\"{start:.1}\" y=\"{base:.1}\"><tspan style=\"fill:{colour}\">■</tspan> {label}</text>"
                ),
            );
            before = *at;
        }
    }
}

fn axes(svg: &mut String, x: Scale, y: Scale, top: f64) {
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let at = y.of(value);
        let class = if step == 0 { "zero" } else { "grid" };
        put(
            svg,
            &format!(
                "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"
            ),
        );
        text(svg, LEFT - 8.0, at + 4.0, "axis", "end", &format!("{value:.0}"));
    }
    let span = x.from.1 - x.from.0;
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 60.0].into_iter().find(|s| span / s <= 16.0);
    let step = step.unwrap_or(120.0);
    let mut at = (x.from.0 / step).ceil() * step;
    while at <= x.from.1 {
        text(svg, x.of(at), BOTTOM + 20.0, "axis", "middle", &format!("{at:.0} s"));
        at += step;
    }
    text(
        svg,
        RIGHT,
        BOTTOM + 38.0,
        "axis",
        "end",
        "seconds after the cut; pgbench transactions per second in bins of 250 ms",
    );
}

/// The next round number that is at least `value`.
fn ceiling(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1.0).log10().floor());
    let factor = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0].into_iter().find(|f| f * power >= value);
    factor.unwrap_or(10.0) * power
}

fn put(svg: &mut String, element: &str) {
    svg.push_str(element);
    svg.push('\n');
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    put(
        svg,
        &format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
        ),
    );
}

/// 1234567 as 1,234,567.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_holds_every_phase_and_all_of_the_curve() {
        let phases = vec![
            ("detected", 3.1),
            ("fenced", 3.12),
            ("sealed", 3.2),
            ("staged", 3.6),
            ("mounted", 3.65),
            ("recovered", 4.4),
            ("first_commit", 4.42),
        ];
        let rate: Vec<(f64, f64)> = (-32..80)
            .map(|bin| {
                let at = f64::from(bin) / 4.0;
                (at, if (0.0..4.5).contains(&at) { 0.0 } else { 2_150.0 + 200.0 * at.sin() })
            })
            .collect();
        let picture =
            Picture { rate, phases, healed: 14.0, in_sync: 16.2, acknowledged: 12_345, lost: 0 };
        let svg = picture.draw();
        for words in ["sealed 3.20 s", "first commit 4.42 s", "12,345 ledger rows", "node healed"] {
            assert!(svg.contains(words), "{words} is not in the picture");
        }
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        if let Some(path) = std::env::var_os("HOLDFAST_SVG_SAMPLE") {
            assert!(std::fs::write(path, svg).is_ok());
        }
    }

    #[test]
    fn scales_end_on_round_numbers() {
        for (value, round) in [(1.0, 1.0), (870.0, 1000.0), (2_360.0, 3000.0), (4_100.0, 5000.0)] {
            assert!((ceiling(value) - round).abs() < 1e-6, "{value}");
        }
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
    }
}
