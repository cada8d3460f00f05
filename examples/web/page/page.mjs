// The page: a drawing becomes pixels, the model reads them, and its answers and its state are shown.
//
// Each of the classes below is a part of the page, in a module of its own, which builds and draws its elements and listens to
// them. The parts share a drawing and a reading. A part that changes one of them tells the page, which draws all the others.
import { load } from "../npm/index.js";
import { Answer } from "./answer.mjs";
import { colours } from "./canvas.mjs";
import { $ } from "./dom.mjs";
import { Drawing, TOKENS } from "./drawing.mjs";
import { measure, showFacts } from "./facts.mjs";
import { Grid } from "./grid.mjs";
import { Pad } from "./pad.mjs";
import { Player } from "./player.mjs";
import { Reading } from "./reading.mjs";
import { Samples } from "./samples.mjs";
import { State } from "./state.mjs";
import { Strip } from "./strip.mjs";

class Page {
  colours = colours();
  drawing = new Drawing();

  constructor(model, other) {
    this.reading = new Reading(model, other);
    this.pad = new Pad(this);
    this.grid = new Grid(this);
    this.answer = new Answer(this);
    this.samples = new Samples(this);
    this.player = new Player(this);
    this.strip = new Strip(this);
    this.state = new State(this);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.colours = colours();
      this.#draw();
      this.pad.draw();
      this.samples.draw();
    });
    new ResizeObserver(() => {
      this.pad.draw();
      this.strip.paint();
    }).observe($("pad"));
  }

  /**
   * Takes over what was drawn. The model reads it to the end at once, and once more to be watched after `wait` milliseconds,
   * unless `wait` is null.
   */
  changed(wait) {
    this.player.stop();
    this.drawing.update();
    this.samples.mark(null);
    this.reading.begin(this.drawing.pixels);
    this.seek(TOKENS);
    this.pad.draw();
    if (wait !== null && !this.drawing.empty) this.player.playAfter(wait);
  }

  clear() {
    this.drawing.replace(new Uint8Array(TOKENS));
    this.changed(null);
    this.announce();
  }

  /** Reads until `position` pixels have been read, and shows the answers and the state after them. */
  seek(position) {
    this.reading.seek(position);
    this.#draw();
  }

  /** Goes to a position that the user chose, and stops playing. */
  move(position) {
    this.player.stop();
    this.seek(position);
  }

  announce() {
    this.answer.announce();
  }

  /** Draws all that depends on the position. */
  #draw() {
    for (const part of [this.grid, this.answer, this.player, this.strip, this.state]) part.draw();
  }
}

async function main() {
  const bytes = Uint8Array.from(atob($("module").textContent), (letter) => letter.charCodeAt(0));
  const model = await load(bytes);
  // Reading ahead and measuring must not disturb the state that is shown.
  const other = await load(model.module);
  const page = new Page(model, other);
  showFacts(model, bytes.length);
  page.samples.choose(3);
  $("again").addEventListener("click", () => measure(other));
  document.documentElement.dataset.ready = "";
  await measure(other);
}

main().catch((error) => {
  $("failure").textContent = `The model does not run here: ${error.message}. It needs a browser with WebAssembly's simd128.`;
  $("failure").hidden = false;
});
