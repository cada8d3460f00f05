// Tests the package as it is installed. `node --test` runs this file; PACKAGE is the folder of a project that has the package.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

import { digits } from "./stored.mjs";

const project = createRequire(pathToFileURL(`${process.env.PACKAGE}/`));
const { answer, load, softmax } = await import(pathToFileURL(project.resolve("chunkwise-digits")));
const model = await load();

/** The largest difference between two vectors. */
const distance = (a, b) => a.reduce((most, x, at) => Math.max(most, Math.abs(x - b[at])), 0);

test("the answers to all digits are the stored model's", () => {
  assert.equal(digits.length, 360);
  let [right, forward, step] = [0, 0, 0];
  for (const { label, pixels, logits } of digits) {
    const all = model.forward(pixels);
    model.reset();
    let last;
    for (const pixel of pixels) last = model.step(pixel);
    assert.equal(answer(all), answer(logits));
    assert.equal(answer(last), answer(logits));
    right += answer(last) === label ? 1 : 0;
    forward = Math.max(forward, distance(all, logits));
    step = Math.max(step, distance(last, all));
  }
  console.log(`${right} of 360 right, as stored; weights in f16 change logits by ${forward.toFixed(4)} at most; ` +
    `step and forward differ by ${step.toExponential(1)}`);
  assert.equal(right, 335);
  assert.ok(forward < 0.02, "f16 changes logits in the second decimal");
  assert.ok(step < 1e-4, "step and forward compute the same sums");
});

test("the model has the sizes that index.d.ts documents", () => {
  const { tokens, classes, layers, heads, dim, chunk, parameters, lanes } = model;
  assert.deepEqual([tokens, classes, layers, heads, dim, chunk, parameters, lanes], [64, 10, 2, 3, 16, 16, 57322, 4]);
  assert.equal(model.state.byteLength, 13_080);
  assert.equal(model.samples.length, 12);
  for (const { label, pixels } of model.samples) {
    assert.ok(digits.some((digit) => digit.label === label && distance(digit.pixels, pixels) === 0), "a stored digit");
  }
  assert.deepEqual([...new Set(model.samples.map(({ label }) => label))].sort(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

test("the state has a fixed size and changes with every pixel", () => {
  const { state } = model;
  model.reset();
  assert.ok(state.every((element) => element === 0));
  for (const pixel of digits[0].pixels) {
    const before = state.slice();
    model.step(pixel);
    assert.notDeepEqual(state, before);
    assert.equal(model.state, state);
    assert.equal(state.length, before.length);
  }
  assert.equal(model.position, 64);
  const after = state.slice();
  model.forward(digits[1].pixels);
  assert.deepEqual(state, after, "forward does not change the state");
});

test("S is the sum over all chunks", () => {
  const { pixels } = digits[2];
  model.reset();
  assert.ok(model.matrix(1, 2).every((element) => element === 0));
  let before = model.matrix(0, 0);
  for (const [at, pixel] of pixels.entries()) {
    model.step(pixel);
    const now = model.matrix(0, 0);
    // A token adds a matrix of rank 1, whose 2 x 2 minors are all 0. This also holds where a chunk ends.
    const added = now.map((element, i) => element - before[i]);
    const most = Math.max(...added.map(Math.abs));
    assert.ok(most > 0, `pixel ${at} adds something`);
    for (let i = 0; i < 15; i++) {
      for (let j = 0; j < 15; j++) {
        const minor = added[16 * i + j] * added[16 * i + j + 17] - added[16 * i + j + 1] * added[16 * i + j + 16];
        assert.ok(Math.abs(minor) < 1e-3 * most * most + 1e-5 * most, `pixel ${at} adds a product of two vectors`);
      }
    }
    before = now;
  }
});

test("models are independent, and a compiled module can be loaded again", async () => {
  const other = await load(model.module);
  model.reset();
  const first = model.step(1);
  other.step(0);
  other.step(0);
  assert.equal(model.position, 1);
  assert.equal(other.position, 2);
  other.reset();
  assert.deepEqual(other.step(1), first);
  const { readFile } = await import("node:fs/promises");
  const bytes = readFile(project.resolve("chunkwise-digits/digits.wasm"));
  assert.deepEqual((await load(bytes)).step(1), first);
});

test("wrong arguments are refused, and change nothing", async () => {
  model.reset();
  for (let at = 0; at < 64; at++) model.step(0.5);
  const state = model.state.slice();
  assert.throws(() => model.step(0.5), RangeError);
  assert.equal(model.position, 64);
  assert.deepEqual(model.state, state);
  assert.throws(() => model.forward([1, 2, 3]), RangeError);
  for (const [layer, head] of [[2, 0], [0, 3], [-1, 0], [0.5, 0]]) assert.throws(() => model.matrix(layer, head), RangeError);
  await assert.rejects(load(new Uint8Array([0, 1, 2, 3])), WebAssembly.CompileError);
});

test("softmax gives a probability distribution", () => {
  const shares = softmax([1000, 1001, -1000]);
  assert.ok(Math.abs(shares.reduce((a, b) => a + b) - 1) < 1e-12);
  assert.ok(shares[1] > shares[0] && shares[2] === 0);
});
