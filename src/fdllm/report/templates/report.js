"use strict";
(() => {
  const PAGE = 40;
  const make = (name, props = {}, ...children) => {
    const element = Object.assign(document.createElement(name), props);
    element.append(...children);
    return element;
  };

  // --- theme: the system's, until somebody chooses --------------------------------------------
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const remember = (value) => { try { localStorage.setItem("fdllm-theme", value); } catch { /* file: */ } };
  const recall = () => { try { return localStorage.getItem("fdllm-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  const known = recall();
  if (known === "light" || known === "dark") root.dataset.theme = known;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    name();
  });
  dark.addEventListener("change", name);
  name();

  // --- flips: parsed when first looked at, drawn a page at a time -----------------------------
  let parsed = null;
  const data = () => (parsed ??= JSON.parse(document.getElementById("flips").textContent));

  /** The text, with what follows the first difference marked. */
  const marked = (text, other) => {
    let at = 0;
    while (at < text.length && at < other.length && text[at] === other[at]) at += 1;
    const start = at === text.length && at === other.length ? at : text.lastIndexOf(" ", at) + 1;
    const pre = make("pre", { tabIndex: 0 }, text.slice(0, start));
    if (start < text.length) pre.append(make("mark", {}, text.slice(start)));
    if (!text) pre.append(make("span", { className: "soft" }, "(empty)"));
    return pre;
  };

  const side = (title, answer, other, right) => {
    const facts = [`${answer.tokens} tokens`];
    if (answer.finish === "length") facts.push("truncated");
    const box = make("div", {},
      make("h4", {}, title, " ",
        make("span", { className: right ? "met" : "missed" }, right ? "right" : "wrong"), " ",
        make("span", { className: "soft" }, facts.join(", "))),
      // Log-likelihoods differ everywhere; a mark would say nothing.
      answer.finish === null
        ? make("pre", { tabIndex: 0 }, answer.text) : marked(answer.text, other.text));
    if (answer.read) box.append(make("p", { className: "small" }, "read as: ", make("code", {}, answer.read)));
    return box;
  };

  const fill = (details, table, [number, cell, gained]) => {
    const doc = table.docs[number];
    const answer = doc.answers[cell];
    details.append(
      make("div", { className: "sides" },
        side(table.baseline, doc.base, answer, !gained),
        side(table.cells[cell], answer, doc.base, Boolean(gained))),
      make("div", { className: "asked" },
        make("p", { className: "small" }, "target: ", make("code", {}, doc.target)),
        make("h4", {}, "prompt"),
        make("pre", { tabIndex: 0 }, doc.prompt)),
      make("p"));
  };

  const draw = (table, flip) => {
    const [number, cell, gained] = flip;
    const doc = table.docs[number];
    const gist = doc.prompt.replace(/\s+/g, " ").slice(-160);
    const details = make("details", { className: "flip" },
      make("summary", {},
        make("span", {}, doc.id),
        make("span", {}, table.cells[cell]),
        make("span", { className: gained ? "met" : "missed" }, gained ? "gained" : "lost"),
        make("span", { className: "gist" }, gist)));
    details.addEventListener("toggle", () => {
      if (details.open && !details.dataset.filled) {
        details.dataset.filled = "1";
        fill(details, table, flip);
      }
    });
    return details;
  };

  const setUp = (section) => {
    const field = (kind) => section.querySelector(`[data-filter="${kind}"]`);
    const list = section.querySelector(".flips");
    const count = section.querySelector("output");
    const more = section.querySelector(".more");
    let found = [];
    let shown = 0;
    const table = () => data()[section.dataset.table];

    const showMore = () => {
      const next = found.slice(shown, shown + PAGE).map((flip) => draw(table(), flip));
      list.append(...next);
      shown += next.length;
      more.hidden = shown >= found.length;
      count.textContent = `${found.length} flips, ${shown} listed`;
      return next[0];
    };
    const filter = () => {
      const config = field("config").value;
      const direction = field("direction").value;
      const subject = field("subject") ? field("subject").value : "";
      const words = field("text").value.toLowerCase();
      found = table().flips.filter(([number, cell, gained]) => {
        const doc = table().docs[number];
        return (!config || table().cells[cell] === config)
          && (!direction || (direction === "gained") === Boolean(gained))
          && (!subject || doc.subject === subject)
          && (!words || [doc.id, doc.prompt, doc.target, doc.base.text, doc.answers[cell].text]
            .some((text) => text.toLowerCase().includes(words)));
      });
      list.replaceChildren();
      shown = 0;
      showMore();
    };
    for (const input of section.querySelectorAll("[data-filter]")) {
      input.addEventListener(input.tagName === "INPUT" ? "input" : "change", filter);
    }
    more.addEventListener("click", () => {
      const first = showMore();
      if (first) first.querySelector("summary").focus();
    });
    filter();
  };

  // Behind the first paint: the figures come first, the texts when there is time.
  window.addEventListener("load", () => setTimeout(() => {
    for (const section of document.querySelectorAll("[data-table]")) setUp(section);
  }));
})();
