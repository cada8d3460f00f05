// The buttons Play and Step, and the speed.
import { $, grouped } from "./dom.mjs";
import { TOKENS } from "./drawing.mjs";

/** How many milliseconds the pen must rest before the model begins to read. The keyboard must rest twice as long. */
export const REST = 650;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Pixels in a second. Equal ways of the slider are equal ratios, from 2 to 500. */
function speed() {
  const exact = 2 * 250 ** (Number($("speed").value) / 100);
  return exact < 10 ? Math.round(exact) : Number(exact.toPrecision(2));
}

export class Player {
  #page;
  #playing = false;
  /** Identifies the request for the next frame, so that it can be cancelled. */
  #frame = 0;
  /** Identifies the timer that begins to play. */
  #timer = 0;

  constructor(page) {
    this.#page = page;
    $("play").addEventListener("click", () => {
      if (this.#playing) {
        this.stop();
        page.announce();
      } else {
        this.#play();
      }
    });
    $("step").addEventListener("click", () => {
      const { position } = page.reading;
      page.move(position === TOKENS ? 1 : position + 1);
      page.announce();
    });
    const show = () => {
      $("speed-text").textContent = `${grouped(speed())} pixels/s`;
    };
    $("speed").addEventListener("input", show);
    show();
  }

  /** Plays after `wait` milliseconds. Where motion is to be reduced, only the answer is announced then. */
  playAfter(wait) {
    this.#timer = setTimeout(() => {
      if (calm.matches) this.#page.announce();
      else this.#play();
    }, wait);
  }

  stop() {
    clearTimeout(this.#timer);
    cancelAnimationFrame(this.#frame);
    this.#playing = false;
    $("play").textContent = "Play";
  }

  #play() {
    const { reading } = this.#page;
    this.stop();
    if (reading.end === 0) return;
    if (reading.position === TOKENS) this.#page.seek(0);
    this.#playing = true;
    $("play").textContent = "Pause";
    let before = performance.now();
    // The number of pixels that should have been read by now and have not, which may be a fraction.
    let due = 0;
    const frame = (now) => {
      due += (Math.max(0, now - before) / 1000) * speed();
      before = now;
      const whole = Math.floor(due);
      if (whole > 0) {
        due -= whole;
        this.#page.seek(reading.position + whole);
      }
      if (reading.position === TOKENS) {
        this.stop();
        this.#page.announce();
      } else {
        this.#frame = requestAnimationFrame(frame);
      }
    };
    this.#frame = requestAnimationFrame(frame);
  }

  draw() {
    $("play").disabled = $("step").disabled = this.#page.drawing.empty;
  }
}
