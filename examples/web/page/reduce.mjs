// Reduces a drawing to 8 x 8 pixels like those of the data set on which the model was trained.
//
// The digits of that data set were made in this way: NIST's programs cut a digit out of a form, scaled it to the middle 20 x 32 of
// the 32 x 32 pixels of a bitmap, and made its strokes wider or narrower until the bitmap had the usual amount of ink. Then the
// pixels with ink were counted in each block of 4 x 4, which gives 8 x 8 numbers from 0 to 16. This file does the same to a drawing,
// of which it knows the path of the pen. NIST's programs also turned slanting digits upright; this file does not.

/** Rows and columns of the bitmap, and of a block. */
const DOTS = 32;
const BLOCK = 4;
/** The box into which a digit is scaled. */
const WIDTH = 20;
const HEIGHT = 32;
/** How much more a digit may be stretched in one direction than in the other. It keeps a one narrow. */
const STRETCH = 1.6;
/** Pixels of the bitmap with ink. This is the mean of the data set, whose digits differ little in it. */
const INK = 312;
/** The narrowest and the widest pen of a drawing that is scaled. */
const PENS = [2, 12];
/** The pen of a drawing that is not scaled. */
const PLAIN_PEN = 3.2;

/**
 * Scales a drawing and counts its ink.
 *
 * @param {[number, number][][]} strokes The points of each stroke, in any unit.
 * @returns {Uint8Array} 64 numbers from 0 to 16, row by row.
 */
export function reduce(strokes) {
  if (strokes.length === 0) return new Uint8Array(64);
  let [least, most] = PENS;
  let bitmap;
  // A wider pen gives more ink, so bisection finds the width.
  for (let round = 0; round < 8; round++) {
    const pen = (least + most) / 2;
    bitmap = paint(fit(strokes, pen), pen);
    const ink = bitmap.reduce((sum, pixel) => sum + pixel, 0);
    if (ink < INK) least = pen;
    else most = pen;
  }
  return count(bitmap);
}

/**
 * Counts the ink of a drawing that is neither moved nor scaled, such as strokes that are added to pixels.
 *
 * @param {[number, number][][]} strokes The points of each stroke, from 0 to `size`.
 * @returns {Uint8Array} 64 numbers from 0 to 16, row by row.
 */
export function place(strokes, size) {
  const scaled = strokes.map((stroke) => stroke.map(([x, y]) => [(x / size) * DOTS, (y / size) * DOTS]));
  return count(paint(scaled, PLAIN_PEN));
}

/** Scales and centres strokes so that a pen of this width stays inside the box. */
function fit(strokes, pen) {
  const points = strokes.flat();
  const range = (axis) => {
    const values = points.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  };
  const [[left, right], [top, bottom]] = [range(0), range(1)];
  // A straight line has no width, and a dot has no size at all.
  let across = (WIDTH - Math.min(pen, WIDTH - 1)) / Math.max(right - left, 1e-6);
  let down = (HEIGHT - pen) / Math.max(bottom - top, 1e-6);
  [across, down] = [Math.min(across, STRETCH * down), Math.min(down, STRETCH * across)];
  const [x, y] = [(left + right) / 2, (top + bottom) / 2];
  return strokes.map((stroke) =>
    stroke.map((point) => [DOTS / 2 + (point[0] - x) * across, DOTS / 2 + (point[1] - y) * down]),
  );
}

/** Draws strokes with a round pen, which gives a bitmap. */
function paint(strokes, pen) {
  const bitmap = new Uint8Array(DOTS * DOTS);
  for (const stroke of strokes) {
    let [from, ...rest] = stroke;
    // A tap is a stroke of one point.
    if (rest.length === 0) rest = [from];
    rest.forEach((to, at) => {
      // A point closer than half a pixel to the one before makes no difference, unless it is the last one.
      if (at < rest.length - 1 && Math.hypot(to[0] - from[0], to[1] - from[1]) < 0.5) return;
      line(bitmap, from, to, pen / 2);
      from = to;
    });
  }
  return bitmap;
}

/** Sets the pixels whose centre is within `radius` of a line. */
function line(bitmap, from, to, radius) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const square = dx * dx + dy * dy || 1;
  const bounds = (axis) => [
    Math.max(0, Math.floor(Math.min(from[axis], to[axis]) - radius)),
    Math.min(DOTS, Math.ceil(Math.max(from[axis], to[axis]) + radius)),
  ];
  const [[left, right], [top, bottom]] = [bounds(0), bounds(1)];
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const [px, py] = [x + 0.5 - from[0], y + 0.5 - from[1]];
      const along = Math.min(1, Math.max(0, (px * dx + py * dy) / square));
      if (Math.hypot(px - along * dx, py - along * dy) <= radius) bitmap[y * DOTS + x] = 1;
    }
  }
}

/** Counts the pixels with ink in each block. */
function count(bitmap) {
  const counts = new Uint8Array((DOTS / BLOCK) ** 2);
  bitmap.forEach((pixel, at) => {
    const [x, y] = [at % DOTS, Math.floor(at / DOTS)];
    counts[Math.floor(y / BLOCK) * (DOTS / BLOCK) + Math.floor(x / BLOCK)] += pixel;
  });
  return counts;
}
