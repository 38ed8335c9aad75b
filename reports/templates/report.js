"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, text, attributes = {}) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const data = JSON.parse($("#data").textContent);
  const body = $("#table tbody");
  const rows = $$("tr", body).map((row) => ({
    row,
    index: row.dataset.i,
    model: row.dataset.m,
    axes: JSON.parse(row.dataset.f),
    text: row.textContent.toLowerCase(),
  }));
  const names = rows.map(({ row }) => $(".case", row).textContent);
  const points = $$(".grid .p");
  const byRow = new Map();
  for (const point of points) {
    if (!byRow.has(point.dataset.i)) byRow.set(point.dataset.i, []);
    byRow.get(point.dataset.i).push(point);
  }

  // Theme: what the system prefers, unless chosen here. Storage may be denied to a file.
  const themes = ["auto", "light", "dark"];
  const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* not kept */ } };
  const theme = $("#theme");
  const setTheme = (name) => {
    document.documentElement.style.colorScheme = name === "auto" ? "" : name;
    theme.dataset.name = name;
    theme.textContent = `Theme: ${name}`;
  };
  setTheme(themes.includes(remembered()) ? remembered() : "auto");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    setTheme(themes[(themes.indexOf(theme.dataset.name) + 1) % themes.length]);
    remember(theme.dataset.name);
  });

  // Sorting: a heading becomes a button; missing figures stay last in both directions.
  const headings = $$("#table thead th");
  const key = (row, column) => {
    const cell = row.cells[column];
    if (column === 0) return Number(row.dataset.i);
    const value = cell.dataset.v ?? (cell.classList.contains("num") || !cell.textContent ? undefined : cell.textContent);
    return value === undefined ? undefined : value !== "" && !Number.isNaN(Number(value)) ? Number(value) : value;
  };
  const sortBy = (column) => {
    const heading = headings[column];
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = rows.map(({ row }) => [key(row, column), row]);
    keyed.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return down ? -order : order;
    });
    body.append(...keyed.map(([, row]) => row));
  };
  headings.forEach((heading, column) => {
    const button = make("button", heading.textContent, { type: "button", class: "sort" });
    heading.replaceChildren(button);
    button.addEventListener("click", () => sortBy(column));
  });
  headings[0].setAttribute("aria-sort", "ascending");

  // Filtering: table, plots and history follow the same filters.
  const form = $("#filters");
  const search = $("#search");
  const selects = $$("select", form);
  const past = $$("#past tbody tr");
  const tabs = $$("[data-tab]");
  const plots = $$(".plots");
  const openTab = (chosen) => {
    plots.forEach((plot, index) => { plot.hidden = index !== chosen; });
    tabs.forEach((tab, index) => tab.setAttribute("aria-pressed", String(index === chosen)));
  };
  const filter = () => {
    const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.map((select) => select.value);
    let count = 0;
    const hidden = new Set();
    for (const { row, index, axes, text } of rows) {
      const shown = wanted.every((word, axis) => !word || axes[axis] === word) && terms.every((term) => text.includes(term));
      row.hidden = !shown;
      count += shown;
      if (!shown) hidden.add(index);
    }
    for (const point of points) point.classList.toggle("out", hidden.has(point.dataset.i));
    for (const row of past) row.hidden = hidden.has(row.dataset.i);
    $("#shown").textContent = count === rows.length ? `${count} cases` : `${count} of ${rows.length} cases`;
    $("#none").hidden = count > 0;
    if (tabs.length) {
      const seen = new Set(rows.filter(({ index }) => !hidden.has(index)).map(({ model }) => model));
      const current = tabs.findIndex((tab) => tab.getAttribute("aria-pressed") === "true");
      if (current < 0 || !seen.has(plots[current].dataset.model)) {
        const first = plots.findIndex((plot) => seen.has(plot.dataset.model));
        openTab(Math.max(first, 0));
      }
    }
    for (const svg of $$(".grid svg")) enter(svg);
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  $("#reset").addEventListener("click", () => { form.reset(); search.focus(); });
  tabs.forEach((tab, index) => tab.addEventListener("click", () => openTab(index)));
  if (tabs.length) {
    $(".tabs").hidden = false;
    for (const title of $$(".plots > h3")) title.classList.add("vh");
  }

  // Details of a case.
  const dialog = $("#details");
  const show = (index) => {
    $("#details-title").textContent = names[index];
    const sections = new Map();
    const flat = data.rows[index];
    for (let at = 0; at < flat.length; at += 2) {
      const [section, ...rest] = data.columns[flat[at]].split(".");
      const title = rest.length ? section : "record";
      if (!sections.has(title)) sections.set(title, []);
      sections.get(title).push([rest.join(".") || section, flat[at + 1]]);
    }
    const parts = [];
    for (const [title, figures] of sections) {
      const list = make("dl");
      for (const [name, value] of figures) {
        const pair = make("div");
        pair.append(make("dt", name.replaceAll("_", " ")), make("dd", typeof value === "number" ? plain(value) : String(value)));
        list.append(pair);
      }
      parts.push(make("h3", title.replaceAll("_", " ")), list);
    }
    if (data.layers[index]) parts.push(make("h3", "layers"), layerTable(index));
    $("#details-body").replaceChildren(...parts);
    dialog.showModal();
    dialog.scrollTop = 0;
  };
  const plain = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(5))));
  for (const { row, index } of rows) {
    const button = make("button", names[index], { type: "button", class: "case" });
    $(".case", row).replaceWith(button);
    button.addEventListener("click", () => show(Number(index)));
    row.addEventListener("pointerenter", () => byRow.get(index)?.forEach((point) => point.classList.add("hot")));
    row.addEventListener("pointerleave", () => byRow.get(index)?.forEach((point) => point.classList.remove("hot")));
  }
  $("#close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // Points: hover and focus show what they are; arrow keys walk along the cost.
  const tip = $("#tip");
  const showTip = (point) => {
    const label = point.getAttribute("aria-label");
    const split = label.indexOf(": ");
    tip.replaceChildren(make("b", label.slice(0, split)), label.slice(split + 2));
    tip.hidden = false;
    const at = point.lastElementChild.getBoundingClientRect();
    const box = tip.getBoundingClientRect();
    const above = at.top - box.height - 8;
    tip.style.left = `${Math.max(8, Math.min(innerWidth - box.width - 8, at.left + at.width / 2 - box.width / 2))}px`;
    tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  const along = (svg) => {
    const place = (point) => Number(/translate\((\S+)/.exec(point.lastElementChild.getAttribute("transform"))[1]);
    return $$(".p:not(.out)", svg).map((point) => [place(point), point]).sort((a, b) => a[0] - b[0]).map(([, point]) => point);
  };
  const enter = (svg) => {
    for (const point of $$('.p[tabindex="0"]', svg)) point.tabIndex = -1;
    const first = $(".p.lead:not(.out)", svg) ?? $(".p:not(.out)", svg);
    if (first) first.setAttribute("tabindex", "0");
  };
  for (const svg of $$(".grid svg")) {
    svg.addEventListener("pointerover", (event) => { const point = event.target.closest(".p"); if (point) showTip(point); });
    svg.addEventListener("pointerout", hideTip);
    svg.addEventListener("focusin", (event) => showTip(event.target.closest(".p")));
    svg.addEventListener("focusout", hideTip);
    svg.addEventListener("click", (event) => { const point = event.target.closest(".p"); if (point) show(Number(point.dataset.i)); });
    svg.addEventListener("keydown", (event) => {
      const point = event.target.closest(".p");
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); show(Number(point.dataset.i)); return; }
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity }[event.key];
      if (!step) return;
      event.preventDefault();
      const line = along(svg);
      const next = line[Math.max(0, Math.min(line.length - 1, line.indexOf(point) + step))];
      point.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }
  addEventListener("scroll", hideTip, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  // Layers.
  const layerTable = (index) => {
    const [namesAt, errors] = data.layers[index];
    const largest = Math.max(...errors.filter((error) => error !== null), 0) || 1;
    const table = make("table");
    table.append(make("caption", `Error of each layer of ${names[index]}`, { class: "vh" }));
    const head = make("tr");
    for (const [title, kind] of [["Layer", "first"], ["Error", "num"], ["", ""]]) head.append(make("th", title, { scope: "col", class: kind }));
    const thead = make("thead");
    thead.append(head);
    const rowsOf = make("tbody");
    data.layerNames[namesAt].forEach((name, at) => {
      const error = errors[at];
      const row = make("tr");
      row.append(make("th", name, { scope: "row", class: "first" }), make("td", error === null ? "–" : plain(error), { class: "num" }));
      const cell = make("td");
      const bar = make("span", "", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${(100 * (error ?? 0)) / largest}%`;
      cell.append(bar);
      row.append(cell);
      rowsOf.append(row);
    });
    table.append(thead, rowsOf);
    return table;
  };
  const chosen = $("#layer-case");
  if (chosen) {
    const draw = () => $("#layer-table").replaceChildren(layerTable(Number(chosen.value)));
    chosen.addEventListener("change", draw);
    draw();
  }

  filter();
})();
