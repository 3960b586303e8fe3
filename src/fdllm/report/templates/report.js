/** Samples: unpacked when first looked at, drawn some at a time; each has a link of its own. */
(() => {
  const PAGE = 40;
  const ways = { lost: -1, gained: 1 };

  const unpack = async (section) => {
    const packed = section.querySelector("script").textContent;
    const bytes = Uint8Array.from(atob(packed), (one) => one.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  };

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

  const judged = (value) => {
    const word = { 0: "wrong", 1: "right" }[value] || value.toFixed(2);
    return make("span", { className: value === 1 ? "met" : value === 0 ? "missed" : "" }, word);
  };

  const side = (title, answer, other) => {
    const facts = [`${answer.tokens} tokens`];
    if (answer.finish === "length") facts.push("truncated");
    const box = make("div", {},
      make("h4", {}, title, " ", judged(answer.value), " ",
        make("span", { className: "soft" }, facts.join(", "))),
      // Log-likelihoods differ everywhere; a mark would say nothing.
      answer.finish === null || !other
        ? make("pre", { tabIndex: 0 }, answer.text) : marked(answer.text, other.text));
    if (answer.read) box.append(make("p", { className: "small" }, "read as: ", make("code", {}, answer.read)));
    return box;
  };

  const setUp = (section, table) => {
    const field = (kind) => section.querySelector(`[data-filter="${kind}"]`);
    const list = section.querySelector(".flips");
    const count = section.querySelector("output");
    const more = section.querySelector(".more");
    const samples = table.docs.flatMap((doc) => doc.answers.flatMap((answer, cell) => {
      const base = cell === table.baseline ? null : doc.answers[table.baseline];
      return answer ? [{ doc, cell, answer, base, way: base ? Math.sign(answer.value - base.value) : 0 }] : [];
    }));
    const link = ({ doc, cell }) => `#${section.dataset.folder}/${table.cells[cell]}/${doc.name}`;
    let found = [];
    let shown = 0;

    const fill = (details, one) => {
      const { doc, cell, answer, base } = one;
      const config = table.cells[cell];
      const sides = [side(config, answer, base)];
      if (base) sides.unshift(side(table.cells[table.baseline], base, answer));
      const trace = `${table.trace} --config ${config} --doc ${doc.name} --html trace.html`;
      details.append(
        make("div", { className: base ? "sides" : "sides one" }, ...sides),
        make("div", { className: "asked" },
          make("p", { className: "small" }, "target: ", make("code", {}, doc.target)),
          make("h4", {}, "prompt"),
          make("pre", { tabIndex: 0 }, doc.prompt)),
        make("p", { className: "small" },
          make("a", { href: link(one) }, "Link to this sample"), ". Step by step: ", make("code", {}, trace)));
    };
    const draw = (one) => {
      const gist = one.doc.prompt.replace(/\s+/g, " ").slice(-160);
      const word = one.way
        ? make("span", { className: one.way > 0 ? "met" : "missed" }, one.way > 0 ? "gained" : "lost")
        : judged(one.answer.value);
      const details = make("details", { className: "flip" },
        make("summary", {},
          make("span", {}, one.doc.id), make("span", {}, table.cells[one.cell]), word,
          make("span", { className: "gist" }, gist)));
      details.addEventListener("toggle", () => {
        if (details.open && !details.dataset.filled) {
          details.dataset.filled = "1";
          fill(details, one);
        }
      });
      return details;
    };
    const showMore = () => {
      const next = found.slice(shown, shown + PAGE).map(draw);
      list.append(...next);
      shown += next.length;
      more.hidden = shown >= found.length;
      const what = field("direction").value === "all" ? "sample" : "flip";
      count.textContent = `${found.length} ${what}${found.length === 1 ? "" : "s"}, ${shown} listed`;
      return next[0];
    };
    const listOnly = (some) => {
      found = some;
      list.replaceChildren();
      shown = 0;
      return showMore();
    };
    const filter = () => {
      const config = field("config").value;
      const direction = field("direction").value;
      const subject = field("subject") ? field("subject").value : "";
      const words = field("text").value.toLowerCase();
      listOnly(samples.filter(({ doc, cell, answer, base, way }) =>
        (!config || table.cells[cell] === config)
          && (direction === "all" || (direction ? way === ways[direction] : way))
          && (!subject || doc.subject === subject)
          && (!words || [doc.id, doc.prompt, doc.target, answer.text, base ? base.text : ""]
            .some((text) => text.toLowerCase().includes(words)))));
    };
    for (const input of section.querySelectorAll("[data-filter]")) {
      input.addEventListener(input.tagName === "INPUT" ? "input" : "change", filter);
    }
    more.addEventListener("click", () => {
      const first = showMore();
      if (first) first.querySelector("summary").focus();
    });
    filter();
    /** Show the sample that a link names, alone. */
    return (config, name) => {
      for (const input of section.querySelectorAll("[data-filter]")) input.value = "";
      field("direction").value = "all";
      const cell = table.cells.indexOf(config);
      field("config").value = cell < 0 ? "" : config;
      const first = listOnly(samples.filter((one) => one.cell === cell && one.doc.name === name));
      if (first) {
        first.open = true;
        first.scrollIntoView();
        first.querySelector("summary").focus();
      } else {
        count.textContent = `document ${name} of ${config} is not in this page`;
        section.scrollIntoView();
      }
    };
  };

  const ready = new Map();
  const begin = (section) => {
    if (!ready.has(section)) {
      const count = section.querySelector("output");
      ready.set(section, unpack(section).then((table) => setUp(section, table), (error) => {
        count.textContent = `the samples cannot be unpacked: ${error.message}; a browser of 2023 or later can`;
        throw error;
      }));
    }
    return ready.get(section);
  };
  const sections = [...document.querySelectorAll("[data-folder]")];
  for (const section of sections) {
    section.closest("details").addEventListener("toggle", () => begin(section).catch(() => {}));
  }
  const follow = () => {
    let parts = [];
    try { parts = decodeURIComponent(location.hash.slice(1)).split("/"); } catch { /* no link of ours */ }
    const section = sections.find((one) => one.dataset.folder === parts[0]);
    if (parts.length !== 3 || !section) return;
    section.closest("details").open = true;
    begin(section).then((open) => open(parts[1], parts[2]), () => {});
  };
  addEventListener("hashchange", follow);
  follow();
})();
