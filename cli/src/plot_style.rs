//! What the plots of this crate look like.

use plotters::chart::MeshStyle;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;

/// Text and points that matter most.
pub const INK: RGBColor = RGBColor(40, 44, 52);
/// Axes and remarks.
pub const PALE: RGBColor = RGBColor(120, 126, 138);
/// The lines of a grid.
pub const GRID: RGBColor = RGBColor(226, 229, 234);
/// Colours that can be distinguished without telling red from green.
pub const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(148, 103, 20),
    RGBColor(86, 100, 190),
];

/// A font of a size in pixels.
pub fn font(size: i32, colour: RGBColor) -> TextStyle<'static> {
    ("DejaVu Sans, Helvetica, Arial, sans-serif", size).into_font().color(&colour)
}

/// The axes and the grid of a chart in these colours.
pub fn styled<'m, 'a, 'b, X: Ranged, Y: Ranged, B: DrawingBackend>(
    mesh: &'m mut MeshStyle<'a, 'b, X, Y, B>,
) -> &'m mut MeshStyle<'a, 'b, X, Y, B> {
    mesh.label_style(font(13, INK))
        .axis_desc_style(font(14, INK))
        .axis_style(PALE)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
}
