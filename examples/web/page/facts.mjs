// "In this browser": sizes of the model, and how long a step takes.
import { $, grouped } from "./dom.mjs";
import { TOKENS } from "./drawing.mjs";

/** Writes the sizes wherever the page has a place for them. */
export function showFacts(model, moduleBytes) {
  const facts = {
    "state-bytes": grouped(model.state.byteLength),
    "module-bytes": grouped(moduleBytes),
    parameters: grouped(model.parameters),
    dim: model.dim,
    chunk: model.chunk,
    lanes: model.lanes,
  };
  for (const element of document.querySelectorAll("[data-fact]")) {
    element.textContent = facts[element.dataset.fact];
  }
}

/**
 * Measures a step and shows its time. A browser's clock is coarse, so it is read only once for a batch of many digits. Other
 * work of the machine makes some batches take longer, so the median of many batches is shown.
 */
export async function measure(model) {
  $("again").disabled = true;
  const batch = (digits) => {
    const begin = performance.now();
    for (let digit = 0; digit < digits; digit++) {
      model.reset();
      for (let at = 0; at < TOKENS; at++) model.step(at / TOKENS);
    }
    return performance.now() - begin;
  };
  let digits = 1;
  while (batch(digits) < 8 && digits < 4096) digits *= 2;
  const times = [];
  while (times.length < 25) {
    // Between two batches, the page can react to the user.
    await new Promise((resolve) => setTimeout(resolve));
    times.push(batch(digits) / (digits * TOKENS));
  }
  times.sort((a, b) => a - b);
  const step = times[Math.floor(times.length / 2)];
  $("time").textContent = (1000 * step).toFixed(step < 0.01 ? 2 : 1);
  $("rate").textContent = grouped(Number((1000 / step).toPrecision(3)));
  $("time-text").textContent = `The median of ${times.length} batches of ${grouped(digits * TOKENS)} steps. Each step computes the ten answers.`;
  $("again").disabled = false;
}
