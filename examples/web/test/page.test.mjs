// Tests the page in Chromium, which opens it from disk. `node --test` runs this file. It writes screenshots to the folder OUT, if
// there is one. CHROMIUM is the path of the program, if it differs from Debian's.
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { after, before, test } from "node:test";

import { answer, load, softmax } from "../npm/index.js";
import { place, reduce } from "../page/reduce.mjs";
import { Chromium } from "./chromium.mjs";
import { digits, trace } from "./stored.mjs";

const PAGE = new URL("../dist/index.html", import.meta.url).href;
const OUT = process.env.OUT;
const DESKTOP = { width: 1280, height: 900, deviceScaleFactor: 1, mobile: false };
const PHONE = { width: 360, height: 780, deviceScaleFactor: 2, mobile: true };
/** The numbers of the stored digits to trace, the clearest one of each kind. */
const TRACED = [23, 132, 35, 235, 36, 186, 56, 93, 89, 47];

let browser;
const model = await load();

/** The answer of the model to 64 pixels from 0 to 16, and its probability. */
function read(inks) {
  const logits = model.forward(Float32Array.from(inks, (ink) => ink / 16));
  return { digit: answer(logits), share: softmax(logits)[answer(logits)] };
}

before(() => {
  if (OUT) mkdirSync(OUT, { recursive: true });
  browser = new Chromium(process.env.CHROMIUM ?? "/usr/bin/chromium");
});
after(() => browser.close());

/** Opens the page in a new tab, calls `use`, and checks that it had no problems and requested nothing but itself. */
async function visit({ screen = DESKTOP, scheme = "light", motion = "reduce", touch = false }, use) {
  const tab = await browser.tab();
  await tab.send("Emulation.setDeviceMetricsOverride", screen);
  await tab.send("Emulation.setTouchEmulationEnabled", { enabled: touch });
  await tab.send("Emulation.setEmulatedMedia", {
    features: [{ name: "prefers-color-scheme", value: scheme }, { name: "prefers-reduced-motion", value: motion }],
  });
  await tab.send("Page.navigate", { url: PAGE });
  await tab.until("document.documentElement?.dataset.ready !== undefined");
  await use(tab);
  assert.deepEqual(tab.problems, []);
  assert.deepEqual(tab.requests.filter((url) => !url.startsWith("data:")), [PAGE], "the page requests nothing else");
  await tab.close();
}

/** What the page shows. */
const shown = (tab) => tab.evaluate(`({
  answer: document.getElementById("answer").textContent,
  numeral: document.getElementById("numeral").textContent,
  inks: [...document.querySelectorAll("[role=gridcell]")].map((cell) => Number(cell.dataset.ink)),
  position: Number(document.getElementById("position").value),
})`);

/** Scrolls to an element, and tells where it is in the window. */
const box = (tab, id) => tab.evaluate(`(() => {
  const element = document.getElementById("${id}");
  element.scrollIntoView({ block: "center", behavior: "instant" });
  const { left, top, width, height } = element.getBoundingClientRect();
  return { left, top, width, height };
})()`);

/** Waits until the model has read all pixels and the page has announced the answer. */
const rest = (tab) => tab.until(`document.getElementById("answer").textContent.startsWith("After all")`);

const click = (tab, id) => tab.evaluate(`document.getElementById("${id}").click()`);

/** Presses a key. */
async function key(tab, name) {
  const text = name === "Space" ? " " : name.length === 1 ? name : undefined;
  const event = { key: text ?? name, code: name, text, windowsVirtualKeyCode: { Space: 32, Enter: 13, Tab: 9 }[name] };
  await tab.send("Input.dispatchKeyEvent", { type: text ? "keyDown" : "rawKeyDown", ...event });
  await tab.send("Input.dispatchKeyEvent", { type: "keyUp", ...event });
}

/** Traces a digit on the pad, with a finger or the mouse. */
async function draw(tab, pixels, touch) {
  const { left, top, width, height } = await box(tab, "pad");
  const at = ([x, y]) => ({ x: left + (x / 8) * width, y: top + (y / 8) * height });
  // Chromium processes events in order, so an event can be sent before the one before is answered.
  const sent = [];
  const send = (method, params) => sent.push(tab.send(method, params));
  for (const [from, to] of trace(pixels)) {
    const middle = [(from[0] + to[0]) / 2, (from[1] + to[1]) / 2];
    if (touch) {
      send("Input.dispatchTouchEvent", { type: "touchStart", touchPoints: [at(from)] });
      send("Input.dispatchTouchEvent", { type: "touchMove", touchPoints: [at(middle)] });
      send("Input.dispatchTouchEvent", { type: "touchMove", touchPoints: [at(to)] });
      send("Input.dispatchTouchEvent", { type: "touchEnd", touchPoints: [] });
    } else {
      const mouse = (type, point, buttons) =>
        send("Input.dispatchMouseEvent", { type, ...at(point), button: "left", buttons, clickCount: 1 });
      mouse("mousePressed", from, 1);
      mouse("mouseMoved", middle, 1);
      mouse("mouseMoved", to, 1);
      mouse("mouseReleased", to, 0);
    }
  }
  await Promise.all(sent);
}

/** Checks that the page announces the model's answer to the pixels that it shows, and that this is `label`. */
function agrees({ answer, numeral, inks }, label) {
  const { digit, share } = read(inks);
  assert.equal(digit, label, `the model reads ${label} in the pixels that are shown`);
  assert.equal(numeral, String(label));
  const [, said, percent] = answer.match(/^After all 64 pixels, the model reads (\d), with ([\d.]+)\u202f%\.$/) ?? [];
  assert.equal(said, String(label));
  assert.ok(Math.abs(Number(percent) - 100 * share) < 0.6, `${percent} % is ${100 * share} %`);
}

/** Writes a screenshot. */
async function keep(tab, name) {
  if (!OUT) return;
  writeFileSync(`${OUT}/${name}.png`, await tab.screenshot());
}

test("drawn with the mouse: a stored digit of each kind", async () => {
  await visit({}, async (tab) => {
    for (const [label, at] of TRACED.entries()) {
      await click(tab, "clear");
      assert.equal((await shown(tab)).answer, "Nothing is drawn.");
      await draw(tab, digits[at].pixels, false);
      await rest(tab);
      agrees(await shown(tab), label);
    }
    await tab.until(`document.getElementById("time").textContent !== "…"`);
    await keep(tab, "drawn");
  });
});

test("drawn with a finger, on a phone", async () => {
  await visit({ screen: PHONE, touch: true }, async (tab) => {
    await click(tab, "clear");
    await draw(tab, digits[TRACED[3]].pixels, true);
    await rest(tab);
    agrees(await shown(tab), 3);
    const { inks } = await shown(tab);
    assert.ok(inks.reduce((a, b) => a + b) > 250, "a drawing gets the usual amount of ink");
    await tab.until(`document.getElementById("time").textContent !== "…"`);
    await keep(tab, "phone");
  });
});

test("drawn with the keyboard", async () => {
  await visit({}, async (tab) => {
    const focused = () => tab.evaluate(`document.activeElement.getAttribute("aria-label")`);
    await click(tab, "clear");
    for (let at = 0; at < 20 && !(await focused())?.startsWith("row"); at++) await key(tab, "Tab");
    assert.match(await focused(), /^row 4, column 4: no ink$/);
    const outline = await tab.evaluate(`getComputedStyle(document.activeElement).outlineStyle`);
    assert.notEqual(outline, "none", "the cursor is visible");
    for (let at = 0; at < 9; at++) await key(tab, "ArrowUp");
    for (let at = 0; at < 9; at++) await key(tab, "ArrowLeft");
    const { pixels } = digits[TRACED[6]];
    for (let y = 0; y < 8; y++) {
      for (let x = 0; x < 8; x++) {
        // The cursor goes through even rows to the right and through odd rows to the left.
        const column = y % 2 ? 7 - x : x;
        assert.match(await focused(), new RegExp(`^row ${y + 1}, column ${column + 1}:`));
        // A dab leaves ink in the pixels around it. A dab in one of these must not clear it.
        if (pixels[y * 8 + column] >= 0.5) await key(tab, x % 2 ? "Enter" : "Space");
        if (x < 7) await key(tab, y % 2 ? "ArrowLeft" : "ArrowRight");
      }
      await key(tab, "ArrowDown");
    }
    await rest(tab);
    agrees(await shown(tab), 6);
    const dabs = (await shown(tab)).inks.map((ink) => ink === 14);
    assert.deepEqual(dabs, Array.from(pixels, (pixel) => pixel >= 0.5));
    await key(tab, "Space");
    const before = (await shown(tab)).inks[56];
    await key(tab, "+");
    await key(tab, "+");
    await key(tab, "-");
    assert.equal((await shown(tab)).inks[56], before + 1);
    assert.match(await focused(), new RegExp(`row 8, column 1: ink ${before + 1} of 16`));
    await key(tab, "Delete");
    assert.equal((await shown(tab)).answer, "Nothing is drawn.");
  });
});

test("stored digits, steps and the state", async () => {
  await visit({}, async (tab) => {
    for (const [at, { pixels }] of model.samples.entries()) {
      await tab.evaluate(`document.querySelectorAll("#samples button")[${at}].click()`);
      await rest(tab);
      const state = await shown(tab);
      assert.deepEqual(state.inks, Array.from(pixels, (pixel) => pixel * 16));
      agrees(state, answer(model.forward(pixels)));
    }
    // The state and the bars change with each pixel.
    const look = () => tab.evaluate(`[
      [...document.querySelectorAll("#matrices canvas")].map((canvas) => canvas.toDataURL()).join(),
      [...document.querySelectorAll("#bars .share")].map((share) => share.textContent).join(),
    ]`);
    await tab.evaluate(`document.querySelectorAll("#samples button")[3].click()`);
    await rest(tab);
    const [full] = await look();
    await click(tab, "step");
    let before = await look();
    model.reset();
    let shares = softmax(model.step(model.samples[3].pixels[0]));
    for (let at = 1; at < 64; at++) {
      const bars = await tab.evaluate(`[...document.querySelectorAll("#bars li")].map((bar) => Number(bar.style.getPropertyValue("--share")))`);
      bars.forEach((bar, digit) => assert.ok(Math.abs(bar - shares[digit]) < 1e-4, `bar ${digit} after ${at} pixels`));
      await click(tab, "step");
      const state = await shown(tab);
      assert.equal(state.position, at + 1);
      const now = await look();
      assert.notEqual(now[0], before[0], `pixel ${at} changes S`);
      before = now;
      shares = softmax(model.step(model.samples[3].pixels[at]));
    }
    assert.equal(before[0], full);
    const facts = await tab.evaluate(`document.querySelector(".facts").innerText`);
    assert.match(facts, /13\u202f080\s*bytes/);
    assert.match(facts, /4\s*lanes/);
  });
});

test("playing begins by itself, unless motion is to be reduced; times are measured", async () => {
  await visit({ motion: "no-preference" }, async (tab) => {
    await tab.until(`document.getElementById("position").value > 20 && document.getElementById("position").value < 64`);
    assert.equal(await tab.evaluate(`document.getElementById("play").textContent`), "Pause");
    await click(tab, "play");
    const { position, answer } = await shown(tab);
    assert.match(answer, new RegExp(`^After ${position} of 64 pixels`));
    await tab.until(`document.getElementById("time").textContent !== "…"`);
    await keep(tab, "reading");
    // Playing again before the next frame must not make the reading faster, so at most one callback may run in a frame.
    const most = await tab.evaluate(`new Promise((resolve) => {
      let [frame, calls, most] = [0, 0, 0];
      const request = window.requestAnimationFrame;
      window.requestAnimationFrame = (callback) => request((now) => {
        calls = now === frame ? calls + 1 : 1;
        frame = now;
        most = Math.max(most, calls);
        callback(now);
      });
      for (let click = 0; click < 5; click++) document.getElementById("play").click();
      setTimeout(() => {
        window.requestAnimationFrame = request;
        resolve(most);
      }, 300);
    })`);
    assert.equal(most, 1);
    await rest(tab);
    const [time, rate] = await tab.evaluate(`["time", "rate"].map((id) => document.getElementById(id).textContent.replace(/\\s/g, ""))`);
    console.log(`Chromium: a step takes ${time} µs, ${rate} tokens a second`);
    assert.ok(Number(time) > 0.5 && Number(time) < 1000);
    assert.ok(Math.abs(Number(time) * Number(rate) / 1e6 - 1) < 0.02);
  });
  await visit({ motion: "reduce" }, async (tab) => {
    for (let at = 0; at < 10; at++) {
      assert.equal((await shown(tab)).position, 64);
      await new Promise((resolve) => setTimeout(resolve, 40));
    }
    await rest(tab);
  });
});

test("a drawing is reduced in the same way as the data set", () => {
  assert.deepEqual(reduce([]), new Uint8Array(64));
  // The size of a drawing and its place make no difference.
  const strokes = trace(digits[32].pixels);
  const moved = strokes.map((stroke) => stroke.map(([x, y]) => [100 + 7 * x, 3 + 7 * y]));
  assert.deepEqual(reduce(moved), reduce(strokes));
  let high = 0;
  for (const { pixels } of digits) {
    const inks = reduce(trace(pixels));
    const sum = inks.reduce((a, b) => a + b);
    assert.ok(sum > 250 && sum < 375, `${sum} dots of ink`);
    const rows = [0, 1, 2, 3, 4, 5, 6, 7].filter((y) => inks.subarray(8 * y, 8 * y + 8).some((ink) => ink > 0));
    high += rows.length === 8 ? 1 : 0;
  }
  // Wide digits are lower than their box, because they must not be stretched too far.
  assert.ok(high > 340, `${high} digits are as high as their box`);
  // A dot and a straight line have no width or no height that could be scaled.
  for (const stroke of [[[5, 5]], [[5, 5], [5, 50]], [[5, 5], [50, 5]]]) {
    assert.ok(reduce([stroke]).reduce((a, b) => a + b) > 50);
  }
  assert.equal(place([[[0.5, 0.5]]], 1).reduce((a, b) => a + b), place([[[0.25, 0.25]]], 1).reduce((a, b) => a + b));
  const read = ({ pixels, label }) => answer(model.forward(Float32Array.from(reduce(trace(pixels)), (ink) => ink / 16))) === label;
  const right = digits.filter(read).length;
  console.log(`${right} of 360 traced digits are read right`);
  assert.ok(right > 230);
});

test("a change of the colour scheme applies to all canvases", async () => {
  await visit({}, async (tab) => {
    await draw(tab, digits[TRACED[4]].pixels, false);
    await rest(tab);
    const look = () => tab.evaluate(`[...document.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL())`);
    const light = await look();
    await tab.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: "dark" }] });
    await tab.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))");
    const dark = await look();
    dark.forEach((canvas, at) => assert.ok(canvas !== light[at], `canvas ${at} has the colours of the new scheme`));
  });
});

test("light and dark, and no horizontal scroll", async () => {
  for (const [name, options] of Object.entries({
    light: {},
    dark: { scheme: "dark" },
    "phone-dark": { screen: PHONE, scheme: "dark", touch: true },
    tablet: { screen: { ...DESKTOP, width: 800 } },
  })) {
    await visit(options, async (tab) => {
      await rest(tab);
      await tab.until(`document.getElementById("time").textContent !== "…"`);
      await keep(tab, name);
      const [content, width] = await tab.evaluate("[document.documentElement.scrollWidth, innerWidth]");
      assert.ok(content <= width, `${name}: ${content} px in ${width} px`);
      assert.equal(width, options.screen?.width ?? DESKTOP.width);
      // WCAG requires a contrast of 4.5 between text and its background.
      const contrast = await tab.evaluate(`(() => {
        const style = getComputedStyle(document.documentElement);
        const light = (name) => {
          const hex = style.getPropertyValue(name).trim();
          const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        return [["--ink", "--paper"], ["--soft", "--paper"], ["--soft", "--panel"], ["--on-mark", "--mark"]].map(([a, b]) => {
          const ratio = light(a) / light(b);
          return Math.max(ratio, 1 / ratio);
        });
      })()`);
      contrast.forEach((ratio) => assert.ok(ratio >= 4.5, `${name}: contrast ${ratio.toFixed(2)}`));
    });
  }
});
