"use strict";

// The page: controls, colours, and what is drawn again after a choice.
(() => {
  const { state, REFERENCES, KINDS, FILTERS, QUANTITIES } = view;
  const { escape } = charts;
  const $ = (id) => document.getElementById(id);
  let theme = {};

  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    const names = ["text", "soft", "line", "raised"];
    theme = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    theme.font = getComputedStyle(document.body).fontFamily;
  }

  // Draws what a function makes of the size of the place.
  function plot(id, figureOf, label) {
    const place = $(id), size = { width: place.clientWidth, height: place.clientHeight };
    const { data, layout } = figureOf(size);
    place.setAttribute("aria-label", label);
    Plotly.react(place, data, { ...layout, ...size, autosize: false }, { displayModeBar: false, responsive: false });
  }

  // Draws a chart of the substitutions at the commit, which earlier ones lead to where trails are wanted.
  function drawScatter(id, figure, x, y, guides, what) {
    const steps = [...view.commits().keys()].slice(state.trails ? 0 : state.commit, state.commit + 1);
    const points = view.series("substitution").map((one) => ({
      series: one,
      index: view.place(one),
      path: steps.map((at) => ({ at, x: x(one, at), y: y(one, at), text: view.describe(one, at) }))
        .filter((point) => point.x !== null && point.y !== null),
    })).filter(({ path }) => path.length && path.at(-1).at === state.commit);
    const { label } = view.commit(), reference = REFERENCES[state.over];
    $(id).hidden = $(`${id}-legend`).hidden = !points.length;
    $(`${id}-note`).textContent = points.length ? `At \u201c${label}\u201d, over ${reference}.`
      : `At \u201c${label}\u201d nothing that is shown was compared with ${reference}.`;
    if (!points.length) return;
    plot(id, (size) => figure(points, size, theme),
      `${what} of ${points.length} substitutions at ${label}. A table below has the figures.`);
    $(`${id}-legend`).innerHTML = content.legend(points.map(({ series }) => series), guides, theme);
  }

  function drawScatters() {
    const speed = (one, at) => view.speed(one, state.over, at);
    const error = (one, at) => view.recorded(one, "error", at);
    const before = ["2 3", "as fast as before"], agrees = ["6 4", "the clock agrees with the arithmetic"];
    drawScatter("clock", charts.clock, view.ratio, speed, [agrees, before], "Speed-up against MACs ratio");
    drawScatter("error", charts.errors, speed, error, [before], "Error against speed-up");
  }

  function drawHistory(kind) {
    const quantity = QUANTITIES[state.quantity], commits = view.commits();
    const curves = view.series(kind).map((one) => ({
      series: one,
      index: view.place(one),
      values: view.curve(one),
      texts: commits.map((_, at) => view.describe(one, at)),
    })).filter(({ values }) => values.some((number) => number !== null));
    $(`history-${kind}`).hidden = !curves.length;
    if (!curves.length) return;
    const over = state.quantity === "speed" ? ` over ${REFERENCES[view.referenceOf(kind)]}` : "";
    const label = `${quantity.name}${over}`;
    $(`note-${kind}`).textContent = `${label}.`;
    const figure = (size) => charts.history(curves, quantity, commits, state.commit, size, theme);
    const count = `${curves.length} series over ${commits.length} commits`;
    plot(`plot-${kind}`, figure, `${KINDS[kind]}: ${label} of ${count}. A table below has the values.`);
    const guides = [["2 3", "the commit chosen above"]];
    $(`legend-${kind}`).innerHTML = content.legend(curves.map(({ series }) => series), guides, theme);
  }

  function draw() {
    readTheme();
    const hidden = Object.values(state.hidden).reduce((sum, names) => sum + names.size, 0);
    $("filter-count").textContent = hidden ? `${hidden} hidden` : "all are shown";
    $("empty").hidden = view.series().length > 0;
    for (const place of document.querySelectorAll(".commit-label")) {
      place.textContent = `\u201c${view.commit().label}\u201d`;
    }
    $("cards").innerHTML = content.cards();
    drawScatters();
    $("figures").innerHTML = content.figures(theme);
    $("quantity-note").textContent = QUANTITIES[state.quantity].note;
    Object.keys(KINDS).forEach(drawHistory);
    $("steps").innerHTML = content.steps(theme);
    $("values").innerHTML = content.values(theme);
  }

  function fillSelect(id, entries, chosen) {
    $(id).replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
    $(id).value = chosen;
  }

  function fieldset([key, title], series) {
    const names = [...new Set(series.map((one) => one[key]).filter((name) => name !== null))].sort();
    const box = (name) => `<label><input type="checkbox" data-filter="${key}" value="${escape(name)}" checked>` +
      `${escape(name)}</label>`;
    return `<fieldset><legend>${title}</legend><div class="choices">${names.map(box).join("")}</div><div class="all">` +
      `<button type="button" data-filter="${key}" data-checked="yes">all of these</button>` +
      `<button type="button" data-filter="${key}">none</button></div></fieldset>`;
  }

  // Fills the controls with what a machine's records have.
  function fill() {
    const { commits, series, machine } = view.record(), days = commits.map(({ date }) => view.day(date));
    state.commit = commits.length - 1;
    const names = commits.map(({ label, hash }, at) => [at, `${label} (${hash}, ${days[at]})`]).reverse();
    fillSelect("commit", names, state.commit);
    const recorded = Object.keys(QUANTITIES)
      .filter((name) => name === "speed" || series.some(({ values }) => values[name]));
    if (!recorded.includes(state.quantity)) state.quantity = "speed";
    fillSelect("quantity", recorded.map((name) => [name, QUANTITIES[name].name]), state.quantity);
    $("source").textContent = `${commits.length} commits from ${days[0]} to ${days.at(-1)}, measured on one machine, ` +
      `\u201c${machine}\u201d. Each value is a ratio of two times that took turns in one process, an error or a count.`;
    for (const names of Object.values(state.hidden)) names.clear();
    $("fieldsets").innerHTML = Object.entries(FILTERS).map((filter) => fieldset(filter, series)).join("");
    $("histories").innerHTML = Object.entries(KINDS).map(([kind, title]) =>
      `<section id="history-${kind}" aria-labelledby="title-${kind}"><h3 id="title-${kind}">${title}</h3>` +
      `<p class="note" id="note-${kind}"></p><div class="plot" id="plot-${kind}" role="img"></div>` +
      `<ul class="legend" id="legend-${kind}"></ul></section>`).join("");
  }

  function choose(boxes, checked) {
    for (const box of boxes) {
      const names = state.hidden[box.dataset.filter];
      box.checked = checked;
      if (checked) names.delete(box.value);
      else names.add(box.value);
    }
    draw();
  }

  function listen() {
    const on = (id, read) => $(id).addEventListener("change", ({ target }) => {
      state[id] = read(target);
      if (id === "machine") fill();
      draw();
    });
    on("machine", ({ value }) => Number(value));
    on("commit", ({ value }) => Number(value));
    on("over", ({ value }) => value);
    on("quantity", ({ value }) => value);
    on("trails", ({ checked }) => checked);
    $("fieldsets").addEventListener("change", ({ target }) => choose([target], target.checked));
    $("fieldsets").addEventListener("click", ({ target }) => {
      if (target.type !== "button") return;
      const boxes = $("fieldsets").querySelectorAll(`input[data-filter="${target.dataset.filter}"]`);
      choose(boxes, "checked" in target.dataset);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth === width) return; // the bars of a phone's browser come and go
      width = innerWidth;
      draw();
    });
  }

  // Colours. Storage is refused to some pages that are opened from a file; the choice then lasts as long as the page.
  function setTheme(name) {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    document.querySelector(`input[name="theme"][value="${name}"]`).checked = true;
  }
  const stored = {
    read() {
      try {
        return localStorage.getItem("jaxcnn-theme");
      } catch {
        return null;
      }
    },
    write(name) {
      try {
        localStorage.setItem("jaxcnn-theme", name);
      } catch { /* as said above */ }
    },
  };

  setTheme(["light", "dark"].includes(stored.read()) ? stored.read() : "auto");
  for (const radio of document.querySelectorAll('input[name="theme"]')) {
    radio.addEventListener("change", () => {
      setTheme(radio.value);
      stored.write(radio.value);
      if (view.machines.length) draw();
    });
  }
  $("nothing").hidden = view.machines.length > 0;
  $("content").hidden = !view.machines.length;
  if (!view.machines.length) return;
  fillSelect("machine", view.machines.map(({ machine }, at) => [at, machine]), 0);
  $("machine-label").hidden = view.machines.length < 2;
  $("filters").open = innerWidth > 900;
  listen();
  fill();
  draw();
})();
