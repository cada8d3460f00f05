// Controls Chromium without a window, by the DevTools protocol over a pipe, so that it needs no port and no package.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** How many milliseconds Chromium has for an answer, and a page for a change. */
const PATIENCE = 30_000;

export class Chromium {
  #next = 1;
  #waiting = new Map();
  #listeners = [];
  #profile = mkdtempSync(join(tmpdir(), "chunkwise-web-"));

  constructor(path) {
    const options = [
      "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
      "--remote-debugging-pipe", `--user-data-dir=${this.#profile}`, "about:blank",
    ];
    // The browser reads commands from file descriptor 3 and writes answers to 4.
    this.process = spawn(path, options, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    this.exit = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.once("error", (error) => this.#fail(error));
    this.exit.then(() => this.#fail(new Error("Chromium has ended")));
    let rest = "";
    this.process.stdio[4].setEncoding("utf8").on("data", (data) => {
      const messages = (rest + data).split("\0");
      rest = messages.pop();
      for (const message of messages) this.#receive(JSON.parse(message));
    });
    this.process.stdio[3].on("error", () => {});
  }

  #fail(error) {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  #receive({ id, method, params, result, error, sessionId }) {
    if (id === undefined) {
      for (const listener of this.#listeners) listener(method, params, sessionId);
      return;
    }
    const { resolve, reject } = this.#waiting.get(id) ?? {};
    this.#waiting.delete(id);
    if (error) reject?.(new Error(error.message));
    else resolve?.(result);
  }

  listen(listener) {
    this.#listeners.push(listener);
  }

  send(method, params = {}, sessionId = undefined) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`${method}: no answer from Chromium`)), PATIENCE);
      const done = (call) => (value) => {
        clearTimeout(late);
        call(value);
      };
      this.#waiting.set(id, { resolve: done(resolve), reject: done(reject) });
      this.process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    });
  }

  /** Opens an empty tab that shares no data with other tabs. */
  async tab() {
    const { browserContextId } = await this.send("Target.createBrowserContext");
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank", browserContextId });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const tab = new Tab(this, sessionId, targetId);
    for (const domain of ["Page", "Runtime", "Network", "Log"]) await tab.send(`${domain}.enable`);
    return tab;
  }

  async close() {
    await this.send("Browser.close").catch(() => {});
    const late = setTimeout(() => this.process.kill("SIGKILL"), 5000);
    await this.exit;
    clearTimeout(late);
    rmSync(this.#profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

export class Tab {
  /** The texts that a console would show as warnings or errors. */
  problems = [];
  /** The addresses of all requests, of which the first is that of the page. */
  requests = [];

  constructor(browser, session, target) {
    this.browser = browser;
    this.session = session;
    this.target = target;
    browser.listen((method, params, sessionId) => {
      if (sessionId !== session) return;
      if (method === "Runtime.exceptionThrown") {
        const { text, exception } = params.exceptionDetails;
        this.problems.push(exception?.description ?? text);
      } else if (method === "Runtime.consoleAPICalled" && ["error", "warning", "assert"].includes(params.type)) {
        this.problems.push(params.args.map(({ value, description }) => value ?? description).join(" "));
      } else if (method === "Log.entryAdded" && ["error", "warning"].includes(params.entry.level)) {
        this.problems.push(params.entry.text);
      } else if (method === "Network.requestWillBeSent") {
        this.requests.push(params.request.url);
      }
    });
  }

  send(method, params) {
    return this.browser.send(method, params, this.session);
  }

  /** Evaluates an expression in the page. If the value is a promise, this is what the promise resolves to. */
  async evaluate(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Waits until an expression in the page is true. */
  async until(expression) {
    const end = Date.now() + PATIENCE;
    while (!(await this.evaluate(expression))) {
      if (this.problems.length > 0) throw new Error(`the page has problems: ${this.problems}`);
      if (Date.now() > end) throw new Error(`the page did not reach this state in time: ${expression}`);
      await new Promise((resolve) => setTimeout(resolve, 40));
    }
  }

  /** A PNG of the whole page. */
  async screenshot() {
    const { cssContentSize } = await this.send("Page.getLayoutMetrics");
    const { width, height } = cssContentSize;
    const { data } = await this.send("Page.captureScreenshot", {
      captureBeyondViewport: true,
      clip: { x: 0, y: 0, width, height, scale: 1 },
    });
    return Buffer.from(data, "base64");
  }

  async close() {
    await this.browser.send("Target.closeTarget", { targetId: this.target });
  }
}
