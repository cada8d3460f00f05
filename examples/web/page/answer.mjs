// "What it answers": the digit, a sentence about it, and a bar for the probability of each answer.
import { answer } from "../npm/index.js";
import { $, percent } from "./dom.mjs";
import { TOKENS } from "./drawing.mjs";

export class Answer {
  #page;
  #bars;

  constructor(page) {
    this.#page = page;
    this.#bars = Array.from({ length: page.reading.model.classes }, (_, digit) => {
      const item = document.createElement("li");
      item.innerHTML = `<span>${digit}</span><span class="bar"><i></i></span><span class="share"></span>`;
      return item;
    });
    $("bars").append(...this.#bars);
  }

  /** Says in a sentence what the bars show. Screen readers read it out, so the page calls this only where reading rests. */
  announce() {
    const { drawing, reading } = this.#page;
    const { position, shares } = reading;
    if (drawing.empty) {
      $("answer").textContent = "Nothing is drawn.";
    } else if (position === 0) {
      $("answer").textContent = "No pixel has been read.";
    } else {
      const digit = answer([...shares]);
      const after = position === TOKENS ? "all 64 pixels" : `${position} of 64 pixels`;
      $("answer").textContent = `After ${after}, the model reads ${digit}, with ${percent(shares[digit])}.`;
    }
  }

  draw() {
    const { position, shares } = this.#page.reading;
    const digit = answer([...shares]);
    const known = position > 0;
    $("numeral").textContent = known ? digit : "–";
    $("numeral").classList.toggle("unsure", !known || shares[digit] < 0.5);
    // The sentence is no longer true, and there is another one when reading rests.
    if (known && position < TOKENS) $("answer").textContent = "";
    this.#bars.forEach((bar, at) => {
      bar.style.setProperty("--share", shares[at].toFixed(4));
      bar.querySelector(".share").textContent = percent(shares[at]);
      bar.classList.toggle("most", known && at === digit);
    });
  }
}
