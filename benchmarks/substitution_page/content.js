"use strict";

// The cards and the tables, as HTML.
const content = (() => {
  const { times, error, short, escape } = charts;
  const { QUANTITIES, REFERENCES, state } = view;
  const STEP = 1.25; // the threshold of regressions in asv.conf.json
  const MOST_STEPS = 10;

  const text = (number, format) => (number === null ? '<span aria-label="none">\u2013</span>' : format(number));
  const cell = (number, format) => `<td>${text(number, format)}</td>`;
  const head = (names) => `<thead><tr>${names.map((name) => `<th scope="col">${name}</th>`).join("")}</tr></thead>`;
  const WHAT = "kernel, layer or network";
  const body = (rows) => `<tbody>${rows.map((row) => `<tr>${row}</tr>`).join("")}</tbody>`;
  const caption = (words) => `<caption><span>${words}</span></caption>`;
  const breakable = (name) => escape(name).replaceAll("_", "_<wbr>");
  const rowHead = (one, theme) =>
    `<th scope="row"><div>${charts.swatch(view.place(one), theme)}<span>${breakable(one.name)}</span></div></th>`;

  function legend(list, guides, theme) {
    const items = list.map((one) => charts.swatch(view.place(one), theme) + escape(one.name));
    const lines = guides.map(([dash, words]) => charts.guideSwatch(dash, theme) + words);
    return [...items, ...lines].map((item) => `<li>${item}</li>`).join("");
  }

  // A curve of speed-ups over the commits, on a logarithmic scale; the dashed line is "as fast as before".
  function spark(values, label) {
    const logs = values.map((number) => (number === null ? null : Math.log(number)));
    const known = logs.filter((log) => log !== null);
    const low = Math.min(0, ...known), high = Math.max(0.1, ...known);
    const x = (at) => (values.length > 1 ? 3 + (294 * at) / (values.length - 1) : 150);
    const y = (log) => 51 - (46 * (log - low)) / (high - low);
    const path = logs.map((log, at) => {
      if (log === null) return "";
      const joined = at > 0 && logs[at - 1] !== null;
      return `${joined ? "L" : "M"}${x(at).toFixed(1)} ${y(log).toFixed(1)}${joined ? "" : "h.01"}`;
    });
    return '<svg class="spark" viewBox="0 0 300 56" preserveAspectRatio="none" role="img"' +
      ` aria-label="${escape(label)}"><line x1="0" x2="300" y1="${y(0)}" y2="${y(0)}"/>` +
      `<path d="${path.join("")}" stroke-linecap="round"/></svg>`;
  }

  function card(one) {
    const at = state.commit, commits = view.commits(), over = view.referenceOf(one.kind);
    const ratio = one.macs ? one.macs[0] / one.macs[1] : view.ratio(one, at);
    const share = view.recorded(one, "macs_share", at);
    const title = one.macs ? `${one.macs[0]} to ${one.macs[1]} multiplications`
      : share === null ? "not recorded here" : `${Math.round(100 * share)} % of the MACs`;
    const rows = [["speed-up by the arithmetic", ratio, times]];
    for (const [reference, name] of Object.entries(REFERENCES)) {
      if (!one.values[`time_over_${reference}`]) continue;
      rows.push([`by the clock, over ${name}`, view.speed(one, reference, at), times]);
    }
    rows.push(["relative error", view.recorded(one, "error", at), error]);
    const curve = commits.map((_, step) => view.speed(one, over, step));
    const known = [...curve.keys()].filter((step) => curve[step] !== null);
    const say = (step) => `${times(curve[step])} with \u201c${commits[step].label}\u201d`;
    const story = known.length ? `Over ${REFERENCES[over]}: ${say(known[0])}, ${say(known.at(-1))}.` : "";
    return `<li><h3>${escape(one.name)}</h3><p class="count">${title}</p>` +
      `<dl>${rows.map(([name, number, format]) => `<dt>${name}</dt><dd>${text(number, format)}</dd>`).join("")}</dl>` +
      (known.length ? spark(curve, `Speed-up of ${one.name}, commit by commit. ${story}`) : "") +
      `<p class="note">${escape(story)}</p></li>`;
  }

  // A card for each substitution whose name says its multiplications, and for each network with small kernels.
  function cards() {
    const all = view.record().series.filter(({ kind }) => kind === "substitution");
    const counted = all.filter(({ macs }) => macs).sort((a, b) => b.macs[0] - a.macs[0]);
    return [...counted, ...all.filter(({ network }) => network)].map(card).join("");
  }

  function figures(theme) {
    const at = state.commit, { subject, hash, date } = view.commit();
    const rows = view.series().filter((one) => !view.isTime(one)).map((one) => rowHead(one, theme) +
      cell(view.ratio(one, at), times) +
      Object.keys(REFERENCES).map((over) => cell(view.speed(one, over, at), times)).join("") +
      cell(view.recorded(one, "clock_over_arithmetic", at), short) + cell(view.recorded(one, "error", at), error));
    const overs = ["over dense by jaxcnn", "over lax", "over PyTorch"];
    return caption(`${escape(subject)} (${hash}, ${view.day(date)}). \u201cOver\u201d: the speed-up. ` +
      "A dash: not recorded.") +
      head([WHAT, "MACs ratio", ...overs, "clock over arithmetic", "relative error"]) + body(rows);
  }

  function steps(theme) {
    const { name, format } = QUANTITIES[state.quantity];
    const all = view.steps(STEP), largest = all.slice(0, MOST_STEPS);
    if (!all.length) return caption(`${name}: no step of a quarter or more.`);
    const rows = largest.map(({ one, commit, before, number, factor }) => rowHead(one, theme) +
      cell(before, format) + cell(number, format) + cell(factor, times) + `<td>${escape(commit.label)}</td>`);
    return caption(`${name}: ${largest.length} of ${all.length} steps.`) +
      head([WHAT, "before", "after", "factor", "with"]) + body(rows);
  }

  function values(theme) {
    const { name, note, format } = QUANTITIES[state.quantity], isSpeed = state.quantity === "speed";
    const over = (one) => (isSpeed ? `<td>${REFERENCES[view.referenceOf(one.kind)]}</td>` : "");
    const rows = view.series().map((one) => ({ one, curve: view.curve(one) }))
      .filter(({ curve }) => curve.some((number) => number !== null))
      .map(({ one, curve }) => rowHead(one, theme) + over(one) + curve.map((number) => cell(number, format)).join(""));
    const labels = view.commits().map(({ label }) => escape(label));
    return caption(`${name}. ${note}`) + head([WHAT, ...(isSpeed ? ["over"] : []), ...labels]) + body(rows);
  }

  return { legend, cards, figures, steps, values };
})();
