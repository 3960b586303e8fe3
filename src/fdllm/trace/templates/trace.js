"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const slider = at("step");
  const LABEL = 34, SVG = "http://www.w3.org/2000/svg";
  let row = 0, now = 0, timer = null, cellWidth = 14;  // cellWidth: pixels of a step in the maps

  const forwards = () => data.rows[row].forwards;
  const piece = (token) => data.pieces[token];
  const percent = (value) => (100 * value).toFixed(0) + " %";

  function element(name, attributes = {}, text = null) {
    const made = document.createElementNS(SVG, name);
    for (const key of Object.keys(attributes)) made.setAttribute(key, attributes[key]);
    if (text !== null) made.textContent = text;
    return made;
  }

  function html(name, className, text = "") {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  }

  function picture(width, height, label) {
    return element("svg", { width, height, role: "img", "aria-label": label });
  }

  /* The block -------------------------------------------------------------------------------- */

  function state(forward, column, guess) {
    const prompt = data.rows[row].num_prompt - forward.block * data.block_size;
    if (guess && guess.taken) return "new";
    if (forward.after[column] === data.mask_id) return "masked";
    return column < prompt ? "prompt" : "known";
  }

  function cell(forward, column, guesses) {
    const guess = guesses.get(column);
    const kind = state(forward, column, guess);
    const fed = column >= forward.columns[0] && column < forward.columns[1];
    const made = html("div", "cell " + kind + (fed ? "" : " idle"));
    made.setAttribute("role", "listitem");
    const shown = kind === "masked" ? (guess ? piece(guess.token) : "\u00b7") : piece(forward.after[column]);
    const head = html("small", "");
    head.append(html("span", "number", column + " "), guess ? percent(guess.confidence) : "");
    made.append(head, html("b", "", shown));
    let words = "column " + column + ": " + (kind === "masked" ? "masked" : shown);
    if (guess) {
      const bar = html("i", "");
      bar.style.width = 100 * guess.confidence + "%";
      made.append(bar);
      words += kind === "new" ? ", unmasked now, confidence " + percent(guess.confidence)
        : ", guess " + piece(guess.token) + ", confidence " + percent(guess.confidence);
    }
    if (kind === "prompt") words += " (prompt)";
    if (!fed) words += ", not fed in this step";
    made.setAttribute("aria-label", words);
    made.title = words;
    return made;
  }

  function showBlock(forward) {
    const place = at("block");
    place.replaceChildren();
    if (!forward.before.length) {
      return place.append(html("p", "soft", "PREFILL: " + forward.columns[1]
        + " tokens of the prompt go into the prefix cache; every layer is computed."));
    }
    const guesses = new Map(forward.guesses.map((guess) => [guess.column, guess]));
    const width = data.small_block_size;
    for (let first = 0; first < data.block_size; first += width) {
      const line = html("div", "sub");
      line.style.setProperty("--width", width);
      line.setAttribute("role", "presentation");
      for (let c = first; c < first + width; c += 1) line.append(cell(forward, c, guesses));
      place.append(line);
    }
    const ahead = guesses.get(data.block_size);
    if (ahead) place.append(html("p", "soft", "Look-ahead, the next block's first token: "
      + piece(ahead.token) + " (" + percent(ahead.confidence) + ")"));
  }

  function showText() {
    const place = at("text");
    place.replaceChildren();
    const blocks = new Map();
    for (let i = 0; i <= now; i += 1) {
      const forward = forwards()[i];
      if (forward.before.length) blocks.set(forward.block, forward);
    }
    const latest = forwards()[now];
    for (const forward of blocks.values()) {
      const prompt = data.rows[row].num_prompt - forward.block * data.block_size;
      const fresh = new Set(forward === latest
        ? forward.guesses.filter((guess) => guess.taken).map((guess) => guess.column) : []);
      forward.after.forEach((token, column) => {
        if (column < prompt) return;
        if (token === data.mask_id) place.append(html("span", "masked", "\u00b7"));
        else if (fresh.has(column)) place.append(html("span", "new", piece(token)));
        else place.append(piece(token));
        if (token !== data.mask_id && piece(token).endsWith("\u21b5")) place.append("\n");
      });
    }
    place.hidden = !place.childNodes.length;
  }

  /* The maps --------------------------------------------------------------------------------- */

  /* A map by step (across): paint(forward, bar) draws a step's bars, bar(first row, rows, look). */
  function map(id, size, count, labels, alternative, paint) {
    const list = forwards(), height = count * size, wide = list.length * cellWidth;
    const svg = picture(LABEL + wide + 8, height + 20, alternative);
    list.forEach((forward, i) => paint(forward, (first, rows, look) => svg.append(element("rect", {
      x: LABEL + i * cellWidth + 1, width: cellWidth - 2, y: first * size, height: rows * size, ...look,
    }))));
    svg.append(element("text", { x: 0, y: 10 }, labels[0]),
      element("text", { x: 0, y: height - 1 }, labels[1]),
      element("rect", { class: "frame", x: LABEL, y: 0, width: wide, height }));
    list.forEach((forward, i) => {
      const x = LABEL + i * cellWidth;
      if (i && list[i - 1].block !== forward.block) {
        svg.append(element("line", { class: "rule", x1: x, x2: x, y1: 0, y2: height + 6 }));
      }
      if (i % 5 === 0) svg.append(element("text", { x: x + 2, y: height + 14 }, String(i)));
    });
    svg.append(element("rect", { class: "here", id, y: 0, width: cellWidth, height, x: LABEL }));
    svg.addEventListener("click", (event) => {
      const x = event.clientX - svg.getBoundingClientRect().left - LABEL;
      if (x >= 0) go(Math.floor(x / cellWidth));
    });
    return svg;
  }

  function drawLayers() {
    const count = data.n_layers, size = count > 24 ? 7 : 11;
    const svg = map("layer-here", size, count, [String(count - 1), "0"],
      "Layers by step, layer 0 at the bottom: " + data.rows[row].totals, (forward, bar) => {
        for (let first = 0; first < count;) {
          let stop = first + 1;
          while (stop < count && forward.layers[stop] === forward.layers[first]) stop += 1;
          bar(count - stop, stop - first, { class: forward.layers[first] });
          first = stop;
        }
      });
    const hatch = element("pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse" });
    hatch.append(element("rect", { width: 5, height: 5 }), element("path", { d: "M-1 6L6 -1" }));
    svg.prepend(element("defs"));
    svg.firstChild.append(hatch);
    for (let y = size; y < count * size; y += size) {
      svg.querySelector(".frame").before(element("line", { class: "gap", x1: LABEL, y1: y, y2: y,
        x2: LABEL + forwards().length * cellWidth }));
    }
    at("layers").replaceChildren(svg);
  }

  function distances() {
    return forwards().flatMap((forward) => forward.stale.flatMap((one) => one.distances));
  }

  function drawStale() {
    at("stale-map").replaceChildren();
    const all = distances();
    if (!all.length) return;
    const most = Math.max(...all, 1e-9);
    const svg = map("stale-here", data.block_size > 16 ? 6 : 10, data.block_size,
      ["0", String(data.block_size - 1)],
      "Staleness by step and column, column 0 at the top; the largest is " + most.toFixed(3),
      (forward, bar) => {
        const worst = new Map();
        for (const one of forward.stale) {
          one.columns.forEach((column, j) => {
            worst.set(column, Math.max(worst.get(column) || 0, one.distances[j]));
          });
        }
        for (const [column, value] of worst) {
          const share = (0.12 + 0.88 * value / most).toFixed(3);
          bar(column, 1, { style: "fill: rgb(var(--stale) / " + share + ")" });
        }
      });
    at("stale-map").append(html("p", "soft",
      "By step (across) and column (down), darkest " + most.toFixed(3) + ":"), svg);
  }

  function showStale(forward) {
    const place = at("stale-bars");
    place.replaceChildren();
    if (!forward.stale.length) {
      at("stale-words").textContent = data.staleness ? "Nothing was reused in this step."
        : "Not computed: fdllm trace --staleness does.";
      return;
    }
    const most = Math.max(...distances(), 1e-9);
    at("stale-words").textContent = "Norm of (stored - fresh) by norm of fresh, column by column: "
      + forward.stale.map((one) => "layers " + one.start + "-" + (one.stop - 1) + " (" + one.target
        + ") " + (one.distances.reduce((a, b) => a + b, 0) / one.distances.length).toFixed(3)
        + " on average").join("; ");
    for (const one of forward.stale) {
      const wide = 26, high = 70;
      const svg = picture(one.columns.length * wide + 8, high + 30, "Staleness of layers " + one.start
        + "-" + (one.stop - 1) + ": " + one.columns.map((c, j) => "column " + c + " "
        + one.distances[j].toFixed(3)).join(", "));
      one.columns.forEach((column, j) => {
        const value = high * one.distances[j] / most;
        svg.append(element("rect", { class: "bar", x: j * wide + 3, width: wide - 6,
          y: 12 + high - value, height: value }),
          element("text", { x: j * wide + 1, y: 9 + high - value }, one.distances[j].toFixed(2)),
          element("text", { x: j * wide + 6, y: high + 26 }, String(column)));
      });
      place.append(html("div", "scroll"));
      place.lastChild.append(svg);
    }
  }

  /* The slider ------------------------------------------------------------------------------- */

  function go(step) {
    now = Math.max(0, Math.min(forwards().length - 1, step));
    const forward = forwards()[now];
    slider.value = now;
    const counter = forward.index === null ? "" : ", step counter " + forward.index;
    const columns = forward.before.length
      ? ", columns " + forward.columns[0] + "-" + (forward.columns[1] - 1) : "";
    const where = "Step " + now + " of " + (forwards().length - 1) + ": " + forward.phase.toUpperCase()
      + " of block " + forward.block + columns + counter;
    at("where").textContent = where;
    slider.setAttribute("aria-valuetext", where);
    const change = forward.change === null ? "" : ". The probe measured a change of "
      + forward.change.toFixed(3);
    at("layers-words").textContent = "This step: " + forward.words + ": " + forward.computed
      + " layer calls computed, " + forward.reused + " reused" + change;
    for (const name of ["layer-here", "stale-here"]) {
      if (at(name)) at(name).setAttribute("x", LABEL + now * cellWidth);
    }
    showBlock(forward);
    showText();
    showStale(forward);
    ["layers", "stale-map"].forEach(keepInSight);
  }

  function keepInSight(id) {
    const box = at(id), x = LABEL + now * cellWidth;
    if (x < box.scrollLeft || x > box.scrollLeft + box.clientWidth - 2 * cellWidth) {
      box.scrollLeft = x - box.clientWidth / 2;
    }
  }

  function draw() {
    const room = document.querySelector("main").clientWidth - LABEL - 10;
    cellWidth = Math.max(11, Math.min(36, Math.floor(room / forwards().length)));
    drawLayers();
    drawStale();
  }

  function choose(number) {
    row = number;
    slider.max = forwards().length - 1;
    draw();
    go(0);
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => {
      if (now >= forwards().length - 1) play(false); else go(now + 1);
    }, 600) : null;
    at("play").textContent = on ? "Pause" : "Play";
    at("play").setAttribute("aria-pressed", String(on));
  }

  const moves = { first: () => 0, back: () => now - 1, on: () => now + 1, last: () => forwards().length - 1 };
  const keys = { ArrowLeft: "back", ArrowRight: "on", Home: "first", End: "last" };
  for (const id of Object.keys(moves)) at(id).addEventListener("click", () => go(moves[id]()));
  slider.addEventListener("input", () => go(Number(slider.value)));
  at("play").addEventListener("click", () => {
    if (timer === null && now >= forwards().length - 1) go(0);
    play(timer === null);
  });
  if (at("row")) at("row").addEventListener("change", (event) => { play(false); choose(Number(event.target.value)); });
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (["INPUT", "SELECT", "SUMMARY"].includes(event.target.tagName)) return;
    if (event.key in keys) { event.preventDefault(); go(moves[keys[event.key]]()); }
    if (event.key === " " && event.target.tagName !== "BUTTON") { event.preventDefault(); at("play").click(); }
  });
  window.addEventListener("resize", () => { draw(); go(now); });
  choose(0);
  const linked = /^#step-(\d+)$/.exec(location.hash);  // trace.html#step-9
  if (linked) go(Number(linked[1]));
})();
