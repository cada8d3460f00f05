// The drawing: pixels, strokes of a pen that are added to them, and the 8 x 8 pixels that the model reads.
import { place, reduce } from "./reduce.mjs";

/** Pixels in a row. */
export const SIDE = 8;
/** Pixels in a digit, each of which is a token. */
export const TOKENS = SIDE * SIDE;
/** The ink of a black pixel. */
export const FULL = 16;
/**
 * The ink that a dab of the keyboard's pen leaves in a pixel, and in the four pixels around it. A black pixel among empty ones
 * would be unlike all that the model has seen.
 */
const DAB = [14, 2];

/** The column and the row of a pixel. */
export const coordinates = (pixel) => [pixel % SIDE, Math.floor(pixel / SIDE)];

/** The pixel in a column and a row, or undefined outside of the digit. */
export const pixelAt = (x, y) => (x >= 0 && x < SIDE && y >= 0 && y < SIDE ? y * SIDE + x : undefined);

export class Drawing {
  /** The ink of a stored digit, or of what was drawn with the keyboard. */
  base = new Uint8Array(TOKENS);
  /** The points of each stroke, from 0 to 1. The pad adds points to the last one. */
  strokes = [];
  /** The ink that the model reads: base and strokes, as they were at the last `update`. */
  pixels = new Uint8Array(TOKENS);

  /** Whether no pixel has ink. */
  get empty() {
    return this.pixels.every((ink) => ink === 0);
  }

  /** Replaces everything by pixels. */
  replace(base) {
    this.base = base;
    this.strokes = [];
  }

  /** Changes pixels. What was drawn before becomes pixels too, and is no longer scaled. */
  edit(change) {
    this.replace(this.pixels.slice());
    change(this.base);
  }

  /** Dabs a pixel, or takes away its ink. */
  toggle(at) {
    this.edit((pixels) => {
      if (pixels[at] > DAB[1]) {
        pixels[at] = 0;
        return;
      }
      pixels[at] = DAB[0];
      const [x, y] = coordinates(at);
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        const near = pixelAt(x + dx, y + dy);
        if (near !== undefined) pixels[near] = Math.max(pixels[near], DAB[1]);
      }
    });
  }

  /** Computes the pixels. Strokes alone are scaled like the digits of the data set; strokes on pixels stay where they are. */
  update() {
    if (this.base.every((ink) => ink === 0)) {
      this.pixels = reduce(this.strokes);
    } else {
      const added = place(this.strokes, 1);
      this.pixels = this.base.map((ink, at) => Math.min(FULL, ink + added[at]));
    }
  }
}
