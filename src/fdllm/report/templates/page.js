"use strict";
/** What every page has: a theme, figures to point at and to take away, tables to sort, filter and take away. */
const make = (name, props = {}, ...children) => {
  const element = Object.assign(document.createElement(name), props);
  element.append(...children);
  return element;
};
const button = (text, label, act) => {
  const one = make("button", { type: "button", textContent: text, onclick: act });
  one.setAttribute("aria-label", label);
  return one;
};
const save = (blob, name) => {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};

// --- theme: the system's, until somebody chooses ----------------------------------------------
(() => {
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
})();

// --- figures: values where one points or where the keyboard is; SVG and PNG -------------------
(() => {
  const tip = make("div", { id: "tip", hidden: true });
  document.body.append(tip);
  const hide = () => { tip.hidden = true; };
  const show = (point) => {
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const at = point.getBoundingClientRect();
    const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const above = at.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(left, 8) + window.scrollX}px`;
    tip.style.top = `${(above > 0 ? above : at.bottom + 6) + window.scrollY}px`;
  };
  for (const point of document.querySelectorAll("svg .point")) {
    point.querySelector("title").remove(); // or the browser would say it twice
    point.addEventListener("pointerenter", () => show(point));
    point.addEventListener("focus", () => show(point));
    point.addEventListener("pointerleave", hide);
    point.addEventListener("blur", hide);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  /** A drawing as a file of its own, in light colours: for paper. */
  const standalone = (svg) => {
    const copy = svg.cloneNode(true);
    const [, , width, height] = svg.getAttribute("viewBox").split(" ");
    const set = { xmlns: svg.namespaceURI, width, height, "data-theme": "light", style: "" };
    for (const [key, value] of Object.entries(set)) copy.setAttribute(key, value);
    const style = document.createElementNS(set.xmlns, "style");
    style.textContent = `${document.getElementById("figure-style").textContent}
svg { background: var(--paper); font-family: system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }`;
    copy.prepend(style);
    return new XMLSerializer().serializeToString(copy);
  };
  const png = (svg) => {
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas", { width: 3 * image.width, height: 3 * image.height });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(blob, `${svg.id}.png`));
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(svg))}`;
  };
  for (const figure of document.querySelectorAll("figure")) {
    const shown = () => [...figure.querySelectorAll("svg.figure")].find((svg) => svg.checkVisibility());
    if (!figure.querySelector("svg.figure")) continue;
    const svg = () => save(new Blob([standalone(shown())], { type: "image/svg+xml" }), `${shown().id}.svg`);
    figure.append(make("p", { className: "tools" },
      button("SVG", "Download the figure as SVG", svg),
      button("PNG", "Download the figure as PNG", () => png(shown()))));
  }
})();

// --- tables -----------------------------------------------------------------------------------
(() => {
  const text = (cell) => cell.textContent.replace(/\s+/g, " ").trim();
  /** The figure that a text begins with; NaN where it begins with none. */
  const figure = (words) => parseFloat(words.replace(/^[<≥≤~ ]+/, "").replace(/−/g, "-").replace(/,(?=\d{3})/g, ""));
  const compare = (a, b) => {
    if (!a || !b) return !a - !b; // what is empty goes last
    const [x, y] = [figure(a), figure(b)];
    return Number.isNaN(x) || Number.isNaN(y) || x === y ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const sort = make("button", { type: "button", className: "sort" }, ...head.childNodes);
      head.append(sort);
      sort.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] || "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        if (next === "none") { body.append(...original); return; }
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const key = (row) => text(row.cells[column]);
        const order = (a, b) => (key(a) && key(b) ? sign : 1) * compare(key(a), key(b));
        body.append(...[...original].sort(order));
      });
    });
  };

  /** Rows as they are shown; an interval fills three columns. */
  const csv = (table) => {
    const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => [...row.cells].map(text));
    const interval = /^(\S+)( %)? \[([^,\]]+), ([^,\]]+)\]$/;
    const heads = [...table.tHead.rows[0].cells].map(text);
    const wide = heads.map((_, i) => rows.some((row) => interval.test(row[i])));
    const split = (words, i) => {
      if (!wide[i]) return [words];
      const found = interval.exec(words);
      return found ? [found[1], found[3], found[4]] : [words, "", ""];
    };
    const named = heads.flatMap((head, i) => {
      const unit = rows.some((row) => interval.exec(row[i])?.[2]) ? ", %" : "";
      const name = head.replace(/ \[95 %\]$/, "") + unit;
      return wide[i] ? [name, `${name}, low`, `${name}, high`] : [head];
    });
    const quoted = (words) => {
      const safe = /^[=+@-]/.test(words) && Number.isNaN(Number(words)) ? `'${words}` : words; // no formula
      return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    return [named, ...rows.map((row) => row.flatMap(split))].map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
  };

  for (const table of document.querySelectorAll("table")) {
    const id = table.getAttribute("aria-labelledby");
    const tools = make("p", { className: "tools" });
    if (table.tBodies[0].rows.length > 1) sortable(table);
    if (table.tBodies[0].rows.length > 4) {
      const field = make("input", { type: "search", placeholder: "filter rows" });
      field.setAttribute("aria-label", "Filter the rows of the table by their text");
      field.addEventListener("input", () => {
        const words = field.value.toLowerCase().split(/\s+/);
        for (const row of table.tBodies[0].rows) {
          row.hidden = !words.every((word) => text(row).toLowerCase().includes(word));
        }
      });
      tools.append(field);
    }
    const name = `${document.title.replace(/[^\w-]+/g, "_")}_${id}.csv`;
    tools.append(button("CSV", "Download the rows that are shown as CSV",
      () => save(new Blob([csv(table)], { type: "text/csv" }), name)));
    table.closest(".scroll").before(tools);
  }
})();

// --- paper: what is folded is printed, but for the samples ------------------------------------
(() => {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("main details:not([open], .flip, .samples)")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
