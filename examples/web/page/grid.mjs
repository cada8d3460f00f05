// "What it reads": the 8 x 8 pixels, which the keyboard and clicks can change.
import { $ } from "./dom.mjs";
import { FULL, SIDE, TOKENS, coordinates, pixelAt } from "./drawing.mjs";
import { REST } from "./player.mjs";

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Grid {
  #page;
  #cells;
  /** The pixel that the keyboard changes, which is the only one in the order of the Tab key. */
  #cursor = 27;

  constructor(page) {
    this.#page = page;
    for (let y = 0; y < SIDE; y++) {
      const row = document.createElement("div");
      row.setAttribute("role", "row");
      for (let x = 0; x < SIDE; x++) {
        const cell = document.createElement("span");
        cell.setAttribute("role", "gridcell");
        cell.addEventListener("click", () => this.#toggle(pixelAt(x, y)));
        row.append(cell);
      }
      $("grid").append(row);
    }
    this.#cells = [...$("grid").querySelectorAll("span")];
    this.#cells[this.#cursor].tabIndex = 0;
    $("grid").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (this.#press(event.key)) event.preventDefault();
    });
  }

  /** Does what a key stands for, and tells whether it stands for anything. */
  #press(key) {
    const at = this.#cursor;
    const [x, y] = coordinates(at);
    const ink = this.#page.drawing.pixels[at];
    if (key in MOVES) {
      const to = pixelAt(x + MOVES[key][0], y + MOVES[key][1]);
      if (to !== undefined) this.#focus(to);
    } else if (key === "Home" || key === "End") {
      this.#focus(pixelAt(key === "End" ? SIDE - 1 : 0, y));
    } else if (key === " " || key === "Enter") {
      this.#toggle(at);
    } else if (key === "+" || key === "=") {
      this.#setInk(at, Math.min(FULL, ink + 1));
    } else if (key === "-") {
      this.#setInk(at, Math.max(0, ink - 1));
    } else if (key === "Delete" || key === "Backspace") {
      this.#page.clear();
    } else {
      return false;
    }
    return true;
  }

  #focus(at) {
    this.#cells[this.#cursor].tabIndex = -1;
    this.#cursor = at;
    this.#cells[at].tabIndex = 0;
    this.#cells[at].focus();
  }

  #toggle(at) {
    this.#focus(at);
    this.#page.drawing.toggle(at);
    this.#page.changed(2 * REST);
  }

  #setInk(at, ink) {
    this.#page.drawing.edit((pixels) => (pixels[at] = ink));
    this.#page.changed(2 * REST);
  }

  draw() {
    const { drawing, reading } = this.#page;
    const { position } = reading;
    this.#cells.forEach((cell, at) => {
      const ink = drawing.pixels[at];
      cell.style.setProperty("--dark", `${(100 * ink) / FULL}%`);
      cell.classList.toggle("ahead", at >= position);
      cell.classList.toggle("now", at === position - 1 && position < TOKENS);
      if (cell.dataset.ink === String(ink)) return;
      cell.dataset.ink = ink;
      const [x, y] = coordinates(at);
      cell.setAttribute("aria-label", `row ${y + 1}, column ${x + 1}: ${ink === 0 ? "no ink" : `ink ${ink} of ${FULL}`}`);
    });
  }
}
