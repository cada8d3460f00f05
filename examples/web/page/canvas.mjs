// Colours, and what the parts of the page need to paint on a canvas.

/** The colours of the style sheet as numbers from 0 to 255: red, green and blue of each. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  };
  const names = ["panel", "ink", "line", "mark", "above", "below", "shade"];
  return Object.fromEntries(names.map((name) => [name, colour(`--${name}`)]));
}

/** A colour as CSS text. */
export const css = ([r, g, b], alpha = 1) => `rgb(${r} ${g} ${b} / ${alpha})`;

/** The colour between two others: `from` where `share` is 0, and `to` where it is 1. */
export const mix = (from, to, share) => from.map((part, at) => part + (to[at] - part) * share);

/** Clears a canvas and gives it the resolution of the screen. The unit of its context is a CSS pixel. */
export function sharp(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const scale = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}

/** Fills a rectangle whose edges are rounded to pixels of the screen, so that there is no seam between neighbours. */
export function fill(context, left, top, right, bottom) {
  const scale = devicePixelRatio || 1;
  const [x, y, x2, y2] = [left, top, right, bottom].map((edge) => Math.round(edge * scale) / scale);
  context.fillRect(x, y, x2 - x, y2 - y);
}

/** Paints a small matrix, one pixel of the canvas for each element. `colour` gives the colour of an element. */
export function heat(canvas, columns, values, colour) {
  const rows = values.length / columns;
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  values.forEach((value, at) => image.data.set([...colour(value), 255], 4 * at));
  context.putImageData(image, 0, 0);
}
