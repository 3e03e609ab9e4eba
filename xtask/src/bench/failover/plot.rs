//! The faults as a picture: for each a bar up to the longest gap, a dot at the median, a line at the goal.

use std::fmt::Write as _;

/// What is drawn of one fault; times in milliseconds.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) median: f64,
    pub(super) longest: f64,
    pub(super) goal: Option<f64>,
    /// Acknowledged writes that were lost, in all runs.
    pub(super) lost: f64,
}

/// Where the bars begin, and how wide and high things are, in pixels.
const LEFT: f64 = 210.0;
const WIDTH: f64 = 560.0;
const ROW: f64 = 24.0;
const TOP: f64 = 46.0;

/// The picture.
pub(super) fn svg(title: &str, bars: &[Bar]) -> String {
    let largest = bars.iter().flat_map(|bar| [bar.longest, bar.goal.unwrap_or(0.0)]).fold(1.0, f64::max);
    let step = step(largest);
    let scale = WIDTH / (largest / step).ceil() / step;
    let bottom = TOP + ROW * bars.iter().fold(0.0, |count, _| count + 1.0);
    let (width, height) = (LEFT + WIDTH + 110.0, bottom + 34.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n<text x=\"12\" y=\"22\" font-size=\"14\">{title}</text>\n"
    );
    // Writing to a text cannot fail.
    let mut line = |words: std::fmt::Arguments<'_>| {
        let _ = text.write_fmt(words).and_then(|()| text.write_char('\n'));
    };
    let mut at = 0.0;
    while at <= largest + step {
        let x = LEFT + at * scale;
        if x > LEFT + WIDTH + 0.5 {
            break;
        }
        line(format_args!("<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>"));
        line(format_args!(
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{} s</text>",
            bottom + 16.0,
            at / 1000.0
        ));
        at += step;
    }
    let mut y = TOP;
    for bar in bars {
        let (middle, median, longest) = (y + ROW / 2.0, LEFT + bar.median * scale, bar.longest * scale);
        let missed = bar.goal.is_some_and(|goal| bar.longest > goal);
        let colour = if missed { "#e8a33d" } else { "#4a90c2" };
        line(format_args!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, middle + 4.0, bar.name));
        line(format_args!(
            "<rect x=\"{LEFT}\" y=\"{}\" width=\"{longest:.1}\" height=\"12\" fill=\"{colour}\"/>",
            middle - 6.0
        ));
        line(format_args!("<circle cx=\"{median:.1}\" cy=\"{middle}\" r=\"4\" fill=\"#14304a\"/>"));
        if let Some(goal) = bar.goal {
            let x = LEFT + goal * scale;
            line(format_args!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"#c0392b\" stroke-width=\"2\"/>",
                y + 2.0,
                y + ROW - 2.0
            ));
        }
        let after = LEFT + longest.max(median - LEFT).max(bar.goal.unwrap_or(0.0) * scale) + 8.0;
        line(format_args!(
            "<text x=\"{after:.1}\" y=\"{}\" fill=\"#555\">{:.0} ms, {} lost</text>",
            middle + 4.0,
            bar.longest,
            bar.lost
        ));
        y += ROW;
    }
    text + "</svg>\n"
}

/// The distance of the marks: 1, 2 or 5 times a power of ten, so that there are four to ten of them.
fn step(largest: f64) -> f64 {
    let rough = largest / 10.0;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|it| it * power).into_iter().find(|it| *it >= rough).unwrap_or(rough)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_ends_at_the_longest_gap() {
        let bar = Bar { name: "server-killed".into(), median: 400.0, longest: 1000.0, goal: Some(700.0), lost: 0.0 };
        let text = svg("gaps", &[bar]);
        assert!(
            text.contains("width=\"560.0\" height=\"12\" fill=\"#e8a33d\""),
            "the whole width, and missed:\n{text}"
        );
        assert!(text.contains("1000 ms, 0 lost") && text.ends_with("</svg>\n"));
        assert_eq!([4321.0, 900.0, 10_000.0].map(step).map(|it| it as u64), [500, 100, 1000]);
    }
}
