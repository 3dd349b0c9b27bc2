// What the page does beyond being read: choose its colours, sort and filter its tables, enlarge its figures.
// It loads nothing, and writes text as text alone. Without it, all is there to be read.
"use strict";
(() => {
  const MISSING = "\u2013";
  const root = document.documentElement;
  const preference = matchMedia("(prefers-color-scheme: dark)");

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  // Colours: the system's until others are chosen; a choice that agrees with the system is none.
  const stored = "lrbench-scheme";
  const remember = (action) => {
    try {
      return action(localStorage);
    } catch {
      return null; // a browser may keep nothing for files
    }
  };
  const system = () => (preference.matches ? "dark" : "light");
  const scheme = () => root.dataset.scheme ?? system();
  const chosen = remember((storage) => storage.getItem(stored));
  if (chosen === "dark" || chosen === "light") root.dataset.scheme = chosen;

  function offerSchemes() {
    const button = element("button", { type: "button", className: "scheme" });
    const other = () => (scheme() === "dark" ? "light" : "dark");
    const label = () => { button.textContent = other() === "dark" ? "Dark colours" : "Light colours"; };
    button.addEventListener("click", () => {
      const next = other();
      if (next === system()) {
        delete root.dataset.scheme;
        remember((storage) => storage.removeItem(stored));
      } else {
        root.dataset.scheme = next;
        remember((storage) => storage.setItem(stored, next));
      }
      label();
    });
    preference.addEventListener("change", label);
    label();
    document.querySelector(".brand").after(button);
  }

  const textOf = (row, column) => row.cells[column].textContent.trim();
  const plain = (text) => text.replaceAll(",", "").replace(/^< /, "").replace("\u2212", "-").replace(/\s*%$/, "");

  // A column is of numbers if it says so, or if there is nothing else in it; in it, what begins with none is missing.
  function valuesOf(rows, column, numeric) {
    const texts = rows.map((row) => textOf(row, column));
    const strict = texts.every((text) => text === MISSING || (text !== "" && !Number.isNaN(Number(plain(text)))));
    const value = (text) => (numeric || strict ? Number.parseFloat(plain(text)) : text);
    return new Map(rows.map((row, place) => [row, { text: texts[place], value: value(texts[place]) }]));
  }

  const isMissing = ({ text, value }) => text === MISSING || text === "" || Number.isNaN(value);

  // What is missing comes last, up or down; what is equal as a number is ordered as text, then as it was.
  function order(a, b, sign) {
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
    if (a.value !== b.value && typeof a.value === "number") return sign * (a.value - b.value);
    return sign * a.text.localeCompare(b.text, "en", { numeric: true });
  }

  function makeSortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...table.tBodies[0].rows];
    const next = { null: "ascending", ascending: "descending", descending: null };
    heads.forEach((head, column) => {
      const button = element("button", { type: "button", className: "sort" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const direction = next[head.getAttribute("aria-sort")];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (direction) head.setAttribute("aria-sort", direction);
        const values = valuesOf(rows, column, head.classList.contains("number"));
        const sign = direction === "descending" ? -1 : 1;
        const compare = (a, b) => order(values.get(a), values.get(b), sign);
        table.tBodies[0].append(...(direction ? [...rows].sort(compare) : rows));
      });
    });
  }

  // Words must all stand in a row; a column with few values offers them, and then a row must have that one.
  function makeFilterable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...table.tBodies[0].rows];
    const words = element("input", { type: "search", autocomplete: "off", placeholder: "words of a row" });
    const count = element("output");
    const tools = element("div", { className: "tools" }, element("label", {}, "Find ", words));
    const choices = [];
    heads.forEach((head, column) => {
      const values = [...new Set(rows.map((row) => textOf(row, column)))];
      if (head.dataset.choose === undefined || values.length < 2 || values.length > 40) return;
      const select = element("select", { autocomplete: "off" }, element("option", {}, "all"));
      select.append(...values.map((value) => element("option", {}, value)));
      tools.append(element("label", {}, `${head.textContent.trim()} `, select));
      choices.push((row) => select.selectedIndex < 1 || textOf(row, column) === values[select.selectedIndex - 1]);
    });
    const show = () => {
      const wanted = words.value.toLowerCase().split(/\s+/);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !(wanted.every((word) => text.includes(word)) && choices.every((choice) => choice(row)));
      }
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    };
    tools.append(count);
    tools.addEventListener("input", show);
    show();
    table.closest(".scroll").before(tools);
  }

  // A figure moves into a dialog and back: a copy would repeat its names, which must be unique.
  function makeFiguresEnlarge() {
    const title = element("h2", { id: "enlarged-title" });
    const close = element("button", { type: "button" }, "Close");
    const stage = element("div", { className: "stage", tabIndex: 0 });
    const dialog = element("dialog", { className: "enlarged" }, element("div", { className: "bar" }, title, close), stage);
    dialog.setAttribute("aria-labelledby", title.id);
    document.body.append(dialog);
    let home = null;
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => {
      home.append(...stage.childNodes);
      home.style.minHeight = "";
    });
    for (const drawing of document.querySelectorAll(".drawing")) {
      const heading = drawing.closest("figure").querySelector("h4");
      const enlarge = () => {
        home = drawing;
        home.style.minHeight = `${home.getBoundingClientRect().height}px`; // the page behind stays as it is
        title.textContent = heading.textContent;
        stage.append(...home.childNodes);
        dialog.showModal();
      };
      drawing.setAttribute("role", "button");
      drawing.setAttribute("aria-haspopup", "dialog");
      drawing.setAttribute("aria-label", `Enlarge: ${heading.textContent}`);
      heading.addEventListener("click", enlarge);
      drawing.addEventListener("click", enlarge);
      drawing.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        enlarge();
      });
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    root.classList.add("alive");
    offerSchemes();
    for (const table of document.querySelectorAll(".scroll > table")) {
      if (table.closest(".facts") || table.tBodies[0].rows.length < 2) continue;
      makeSortable(table);
      if (table.querySelector("[data-choose]")) makeFilterable(table);
    }
    makeFiguresEnlarge();
  });
})();
