// The digits of the stored model, which the tests compare with, and a way to draw them.
import { readFileSync } from "node:fs";

const path = new URL("../../../cli/src/digits.safetensors", import.meta.url);
const bytes = readFileSync(path);
const header = Number(bytes.readBigUInt64LE(0));
const tensors = JSON.parse(bytes.subarray(8, 8 + header));

function tensor(name) {
  const [begin, end] = tensors[name].data_offsets;
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset + 8 + header + begin, bytes.byteOffset + 8 + header + end));
}

const input = tensor("input");
const labels = tensor("labels");
const logits = tensor("logits");

/** Each digit has its label, its pixels from 0 to 1, and the logits that are stored with it. */
export const digits = Array.from(labels, (label, at) => ({
  label,
  // A token consists of a pixel and its place, which is two numbers.
  pixels: Float32Array.from({ length: 64 }, (_, pixel) => input[(at * 64 + pixel) * 3]),
  logits: logits.slice(at * 10, (at + 1) * 10),
}));

/** Strokes that trace a digit: lines between the centres of dark pixels that touch each other. The size of a pixel is 1. */
export function trace(pixels) {
  const dark = (x, y) => x >= 0 && x < 8 && y >= 0 && y < 8 && pixels[y * 8 + x] > 0.5;
  const strokes = [];
  for (let y = 0; y < 8; y++) {
    for (let x = 0; x < 8; x++) {
      if (!dark(x, y)) continue;
      for (const [dx, dy] of [[1, 0], [0, 1], [1, 1], [-1, 1]]) {
        // A diagonal is needed only where no other dark pixel connects its ends.
        if (dx && dy && (dark(x + dx, y) || dark(x, y + dy))) continue;
        if (dark(x + dx, y + dy)) strokes.push([[x + 0.5, y + 0.5], [x + dx + 0.5, y + dy + 0.5]]);
      }
    }
  }
  return strokes;
}
