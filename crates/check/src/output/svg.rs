//! A picture of the topology: zones with their nodes, pods as squares in the colours of their services.

use std::fmt::Write as _;

use crate::Report;
use crate::model::Model;

/// Colours that differ for most eyes (Okabe and Ito), then again.
const COLOURS: &[&str] = &["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f"];
const NODE_WIDTH: usize = 150;
const POD: usize = 16;
const GAP: usize = 4;
const PER_ROW: usize = (NODE_WIDTH - 16) / (POD + GAP);
/// Nodes of a zone beside each other.
const ACROSS: usize = 6;
/// Zones are beside each other up to this width.
const PAGE_WIDTH: usize = 1_060;

/// Escapes text for XML.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn colour(model: &Model, pod: usize) -> Option<&'static str> {
    let service = model.services.iter().position(|service| service.pods.contains(&pod))?;
    Some(COLOURS[service % COLOURS.len()])
}

/// One node with its pods; its place and height in the picture.
fn draw_node(body: &mut String, model: &Model, node: usize, pods: &[usize], (x, y, height): (usize, usize, usize)) {
    let _ = write!(
        body,
        "<g class=\"node\"><rect x=\"{x}\" y=\"{y}\" width=\"{NODE_WIDTH}\" height=\"{height}\" rx=\"4\" fill=\"#ffffff\" stroke=\"#52606d\"/>\
         <text x=\"{}\" y=\"{}\">{}</text>",
        x + 8,
        y + 16,
        escaped(&model.topology.nodes[node].name)
    );
    for (place, pod) in pods.iter().enumerate() {
        let (px, py) = (x + 8 + place % PER_ROW * (POD + GAP), y + 24 + place / PER_ROW * (POD + GAP));
        let fill = colour(model, *pod).unwrap_or("#ffffff");
        let _ = write!(
            body,
            "<rect x=\"{px}\" y=\"{py}\" width=\"{POD}\" height=\"{POD}\" rx=\"3\" fill=\"{fill}\" stroke=\"#323f4b\"><title>{}</title></rect>",
            escaped(&model.pods[*pod].key)
        );
    }
    body.push_str("</g>");
}

/// The picture, as an SVG element.
pub fn picture(report: &Report) -> String {
    let model = &report.model;
    let mut body = String::new();
    // Zones stand beside each other as long as there is room.
    let (mut x, mut y, mut row_height, mut width) = (8, 8, 0, 0);
    for zone in 0..model.topology.zones.len() {
        let nodes: Vec<usize> = model.nodes_of(zone).collect();
        let pods_of =
            |node: usize| (0..model.pods.len()).filter(|pod| model.pods[*pod].node == Some(node)).collect::<Vec<_>>();
        let tallest = nodes.iter().map(|node| pods_of(*node).len().div_ceil(PER_ROW)).max().unwrap_or(0).max(1);
        let node_height = 30 + tallest * (POD + GAP);
        let rows = nodes.len().div_ceil(ACROSS);
        let zone_width = 16 + nodes.len().min(ACROSS) * (NODE_WIDTH + 8);
        let zone_height = 30 + rows * (node_height + 8);
        if x > 8 && x + zone_width > PAGE_WIDTH {
            (x, y, row_height) = (8, y + row_height + 10, 0);
        }
        let name = match model.topology.zones[zone].as_str() {
            "" => "no zone",
            name => name,
        };
        let _ = write!(
            body,
            "<g class=\"zone\"><rect x=\"{x}\" y=\"{y}\" width=\"{zone_width}\" height=\"{zone_height}\" rx=\"6\" fill=\"#f4f6f8\" stroke=\"#9aa5b1\"/>\
             <text x=\"{}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            x + 10,
            y + 19,
            escaped(name)
        );
        for (place, node) in nodes.iter().enumerate() {
            let (nx, ny) = (x + 10 + place % ACROSS * (NODE_WIDTH + 8), y + 28 + place / ACROSS * (node_height + 8));
            draw_node(&mut body, model, *node, &pods_of(*node), (nx, ny, node_height));
        }
        body.push_str("</g>");
        x += zone_width + 10;
        row_height = row_height.max(zone_height);
        width = width.max(x);
    }
    y += row_height + 10;
    let names = super::table::columns(report);
    for (at, name) in names.iter().enumerate() {
        let (column, row) = (at % 4, at / 4);
        let (x, line) = (12 + column * 200, y + 8 + row * 20);
        let _ = write!(
            body,
            "<rect x=\"{x}\" y=\"{line}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{}\" stroke=\"#323f4b\"/><text x=\"{}\" y=\"{}\">{}</text>",
            COLOURS[at % COLOURS.len()],
            x + 18,
            line + 11,
            escaped(name)
        );
    }
    let height = y + 16 + names.len().div_ceil(4) * 20;
    let width = width.max(12 + names.len().min(4) * 200);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"pods on nodes in zones\">{body}</svg>"
    )
}
