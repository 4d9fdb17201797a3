"use strict";

// Figures for Plotly. Each function takes the series to draw and returns {data, layout}; none reads the page.
const charts = (() => {
  // Okabe and Ito's colours, which colour-blind readers can tell apart; yellow is left out, which white swallows.
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
  const MARKERS = {
    "circle": "M15 3a5 5 0 1 0 .01 0z",
    "square": "M10.5 3.5h9v9h-9z",
    "diamond": "M15 1.5l6 6.5-6 6.5-6-6.5z",
    "triangle-up": "M15 2l6 11h-12z",
    "cross": "M13 2h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "star": "M15 1l1.9 4.6 5 .4-3.8 3.2 1.2 4.8-4.3-2.6-4.3 2.6 1.2-4.8-3.8-3.2 5-.4z",
    "triangle-down": "M15 14l6-11h-12z",
  };
  const DASHES = ["solid", "dash", "dot"];
  const DIGITS = [[1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8], [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]; // of ticks
  const LABEL_LINES = 5;
  const GAPS = { x: 44, y: 26 };
  const EXACT = 1e-6; // what the tracked set records for an error that is rounding

  // Returns the colour, the marker and the dash of a series, by its place among those of its chart.
  function look(index, theme) {
    const colours = [...COLOURS, theme.text], symbols = Object.keys(MARKERS);
    return {
      colour: colours[index % colours.length],
      symbol: symbols[(index + Math.floor(index / colours.length)) % symbols.length],
      dash: DASHES[Math.floor(index / colours.length) % DASHES.length],
    };
  }

  function swatch(index, theme) {
    const { colour, symbol, dash } = look(index, theme);
    const dashes = { solid: "none", dash: "5 3", dot: "2 2" }[dash];
    return `<svg class="swatch" viewBox="0 0 30 16" aria-hidden="true"><line x1="0" x2="30" y1="8" y2="8"` +
      ` stroke="${colour}" stroke-width="2" stroke-dasharray="${dashes}"/>` +
      `<path d="${MARKERS[symbol]}" fill="${colour}" stroke="${theme.text}"/></svg>`;
  }

  function guideSwatch(dash, theme) {
    return '<svg class="swatch" viewBox="0 0 30 16" aria-hidden="true"><line x1="0" x2="30" y1="8" y2="8"' +
      ` stroke="${theme.soft}" stroke-width="2" stroke-dasharray="${dash}"/></svg>`;
  }

  // Three significant digits without a trailing zero after the point.
  function short(value) {
    if (value >= 100) return String(Math.round(value));
    return String(Number(value.toPrecision(value >= 10 ? 3 : 2 + (value >= 1))));
  }
  const times = (value) => `${short(value)}x`;
  const error = (value) => (value <= EXACT ? "rounding" : short(value));

  // Ticks of a logarithmic axis at round numbers, as many as have room: so many pixels from each to the next.
  function ticks([low, high], format, pixels, gap) {
    const steps = [];
    const at = (value) => (pixels * Math.log(value / low)) / Math.log(high / low);
    for (const digits of DIGITS) {
      steps.length = 0;
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
        for (const digit of digits) {
          const value = Number(`${digit}e${power}`);
          if (value >= low * 0.999 && value <= high * 1.001) steps.push(value);
        }
      }
      if (steps.every((value, index) => index === 0 || at(value) - at(steps[index - 1]) >= gap)) break;
    }
    return { tickvals: [...steps], ticktext: steps.map(format) };
  }

  // The range of a logarithmic axis around values, a little wider than these.
  function range(values) {
    const low = Math.min(...values), high = Math.max(...values);
    const margin = Math.max(Math.pow(high / low, 0.08), 1.15);
    return [low / margin, high * margin];
  }

  function axis(title, limits, format, pixels, gap, theme) {
    return {
      title: { text: title, standoff: 8 }, type: "log", range: limits.map(Math.log10), tickangle: 0,
      ...ticks(limits, format, pixels, gap), fixedrange: true, automargin: true, zeroline: false,
      gridcolor: theme.line, linecolor: theme.line, tickcolor: theme.line,
    };
  }

  function layout(xaxis, yaxis, theme) {
    return {
      xaxis, yaxis, showlegend: false, dragmode: false, hovermode: "closest",
      margin: { l: 56, r: 14, t: 10, b: 50 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: theme.font, size: 13, color: theme.text },
      hoverlabel: { bgcolor: theme.raised, bordercolor: theme.line, font: { color: theme.text }, align: "left" },
    };
  }

  function guide(x, y, dash, theme) {
    return { x, y, mode: "lines", line: { color: theme.soft, width: 1.5, dash }, hoverinfo: "skip", name: "guide" };
  }

  // Points {series, index, path: [{x, y, text}]}: the last one of a path is the commit shown, the others lead to it.
  function scatter(points, titles, formats, guides, size, theme) {
    const all = points.flatMap(({ path }) => path);
    const limits = ["x", "y"].map((key) => range([...all.map((point) => point[key]), ...guides[key]]));
    const data = guides.lines(limits).map(([x, y, dash]) => guide(x, y, dash, theme));
    for (const { series, index, path } of points) {
      const { colour, symbol } = look(index, theme);
      data.push({
        name: series.name, x: path.map(({ x }) => x), y: path.map(({ y }) => y),
        customdata: path.map(({ text }) => text),
        mode: path.length > 1 ? "lines+markers" : "markers", line: { color: colour, width: 1.5 },
        marker: {
          symbol, color: colour, size: path.map((_, step) => (step === path.length - 1 ? 14 : 6)),
          line: { color: theme.text, width: 1 }, opacity: 1,
        },
        hovertemplate: "%{customdata}<extra></extra>",
      });
    }
    const x = axis(titles[0], limits[0], formats[0], size.width - 80, GAPS.x, theme);
    const y = axis(titles[1], limits[1], formats[1], size.height - 60, GAPS.y, theme);
    return { data, layout: layout(x, y, theme) };
  }

  function clock(points, size, theme) {
    const lines = ([[low, high], [bottom, top]]) => [
      [[Math.max(low, bottom), Math.min(high, top)], [Math.max(low, bottom), Math.min(high, top)], "dash"],
      [[low, high], [1, 1], "dot"],
    ];
    const guides = { x: [1], y: [1], lines };
    return scatter(points, ["times fewer MACs", "times as fast"], [times, times], guides, size, theme);
  }

  function errors(points, size, theme) {
    const lines = ([, [bottom, top]]) => [[[1, 1], [bottom, top], "dot"]];
    const guides = { x: [1], y: [], lines };
    return scatter(points, ["times as fast", "relative error"], [times, error], guides, size, theme);
  }

  // Breaks a label into lines of at most so many characters, and cuts what is longer than the lines that there are.
  function wrap(label, width) {
    const lines = [""];
    for (const word of label.split(" ")) {
      const line = lines[lines.length - 1];
      if (line && line.length + word.length + 1 > width) lines.push(word);
      else lines[lines.length - 1] = line ? `${line} ${word}` : word;
    }
    const kept = lines.slice(0, LABEL_LINES).map((line) => cut(line, width));
    if (lines.length > LABEL_LINES) kept[LABEL_LINES - 1] = `${kept[LABEL_LINES - 1].slice(0, width - 2)} \u2026`;
    return kept.map(escape).join("<br>");
  }
  const cut = (text, width) => (text.length > width ? `${text.slice(0, width - 1)}\u2026` : text);
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

  // One curve over the commits for each of curves {series, index, values, texts}; null is a gap.
  function history(curves, quantity, commits, selected, size, theme) {
    const values = curves.flatMap((curve) => curve.values).filter((value) => value !== null);
    const limits = range(quantity.reference ? [...values, quantity.reference] : values);
    const data = [guide([selected, selected], limits, "dot", theme)];
    const { reference } = quantity;
    if (reference) data.push(guide([-0.5, commits.length - 0.5], [reference, reference], "dash", theme));
    for (const { series, index, values, texts } of curves) {
      const { colour, symbol, dash } = look(index, theme);
      data.push({
        name: series.name, x: commits.map((_, at) => at), y: values, customdata: texts, mode: "lines+markers",
        connectgaps: false, line: { color: colour, width: 2, dash },
        marker: { symbol, color: colour, size: 9, line: { color: theme.text, width: 1 } },
        hovertemplate: "%{customdata}<extra></extra>",
      });
    }
    const room = (size.width - 80) / commits.length; // pixels for the label of a commit
    const upright = room >= 70;
    const every = upright ? 1 : Math.max(1, Math.ceil(18 / room));
    const shown = commits.map((_, at) => at).filter((at) => (commits.length - 1 - at) % every === 0);
    const write = (label) => (upright ? wrap(label, Math.floor(room / 8)) : escape(cut(label, 24)));
    const xaxis = {
      range: [-0.5, commits.length - 0.5], tickvals: shown, ticktext: shown.map((at) => write(commits[at].label)),
      tickangle: upright ? 0 : -90, tickfont: { size: 12 }, fixedrange: true, automargin: true, zeroline: false,
      showgrid: false, linecolor: theme.line,
    };
    const yaxis = axis(quantity.axis, limits, quantity.format, size.height - (upright ? 80 : 190), GAPS.y, theme);
    return { data, layout: layout(xaxis, yaxis, theme) };
  }

  return { clock, errors, history, swatch, guideSwatch, short, times, error, escape };
})();
