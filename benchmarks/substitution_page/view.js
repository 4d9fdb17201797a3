"use strict";

// What is shown: the records, what the reader has chosen, and the values that follow. Nothing here touches the page.
const view = (() => {
  const { times, error, short, escape } = charts;
  const machines = JSON.parse(document.getElementById("data").textContent);
  const state = {
    machine: 0,
    commit: 0,
    over: "exact",
    quantity: "speed",
    trails: false,
    hidden: { layer: new Set(), scheme: new Set(), network: new Set() },
  };

  // What a speed-up is over.
  const REFERENCES = { exact: "the dense kernel by jaxcnn", lax: "lax", torch: "PyTorch" };
  const KINDS = {
    substitution: "Small kernels in place of large ones",
    layer: "Layers by exact methods",
    network: "Networks by accelerate",
  };
  const FILTERS = { layer: "Layer", scheme: "Scheme", network: "Network" };
  // What a history can show. Records hold shares of which less is better; an inverse of a share is shown.
  const QUANTITIES = {
    speed: {
      name: "Speed-up", axis: "times as fast", reference: 1, format: times,
      note: "Higher is better. Below the dashed line it is slower.",
    },
    clock_over_arithmetic: {
      name: "Clock over arithmetic", axis: "clock / arithmetic", reference: 1, format: short,
      note: "Share of the time over share of the multiply-accumulates. At the dashed line the clock agrees with the " +
        "arithmetic; above it less time is saved than arithmetic.",
    },
    error: { name: "Error", axis: "relative error", format: error, note: "Lower is better." },
    macs_share: {
      name: "MACs ratio", axis: "times fewer MACs", inverse: true, format: times,
      note: "Multiply-accumulates of the dense kernel over those of the small ones.",
    },
    compilation_over_lax: {
      name: "Time to compile a layer", axis: "times lax's time", reference: 1, format: times,
      note: "Over lax's. Lower is better.",
    },
    first_call_over_lax: {
      name: "Time of a network's first call", axis: "times lax's time", reference: 1, format: times,
      note: "Tracing, compiling and running, over lax's. Lower is better.",
    },
    search_over_compilation: {
      name: "Time of substitute's search", axis: "times one compilation", format: times,
      note: "Over the time to compile the network once. Lower is better.",
    },
    compilations: {
      name: "Programs compiled in the search", axis: "programs", format: short, note: "Lower is better.",
    },
  };

  const record = () => machines[state.machine];
  const commits = () => record().commits;
  const commit = () => commits()[state.commit];
  const day = (date) => new Date(date).toISOString().slice(0, 10);
  const isTime = (series) => Boolean(series.values.compilation_over_lax);

  // Every series that the filters leave, small kernels first.
  function series(kind = null) {
    const order = Object.keys(KINDS);
    return record().series
      .filter((one) => Object.keys(FILTERS).every((key) => !state.hidden[key].has(one[key])))
      .filter((one) => kind === null || one.kind === kind)
      .sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
  }

  // The place of a series among those that share its charts. It gives the series its look, whatever the filters leave.
  function place(one) {
    return record().series.filter((other) => other.kind === one.kind && isTime(other) === isTime(one)).indexOf(one);
  }

  // A value as it is recorded, or null in a gap.
  function recorded(one, name, at) {
    const curve = one.values[name];
    return curve && curve[at] !== null && curve[at] > 0 ? curve[at] : null;
  }
  const inverse = (number) => (number === null ? null : 1 / number);
  const speed = (one, over, at) => inverse(recorded(one, `time_over_${over}`, at));
  const ratio = (one, at) => inverse(recorded(one, "macs_share", at));

  // The chosen reference, or lax for a kind that was never compared with it.
  function referenceOf(kind) {
    const compared = record().series.some((one) => one.kind === kind && one.values[`time_over_${state.over}`]);
    return compared ? state.over : "lax";
  }

  // The values of the chosen quantity over the commits.
  function curve(one) {
    const quantity = QUANTITIES[state.quantity];
    return commits().map((_, at) => {
      if (state.quantity === "speed") return speed(one, referenceOf(one.kind), at);
      const number = recorded(one, state.quantity, at);
      return quantity.inverse ? inverse(number) : number;
    });
  }

  // The text beside a point.
  function describe(one, at) {
    const lines = [`<b>${escape(one.name)}</b>`];
    const add = (number, text) => number !== null && lines.push(text(number));
    add(ratio(one, at), (number) => `${times(number)} fewer MACs`);
    for (const [over, name] of Object.entries(REFERENCES)) {
      add(speed(one, over, at), (number) => `${times(number)} as fast as ${name}`);
    }
    add(recorded(one, "clock_over_arithmetic", at), (number) => `clock over arithmetic ${short(number)}`);
    add(recorded(one, "error", at), (number) => `error ${error(number)}`);
    const { label, hash, date } = commits()[at];
    return [...lines, `<i>${escape(label)}</i>`, `${hash} ${day(date)}`].join("<br>");
  }

  // The steps of the chosen quantity by at least a factor, the largest first.
  function steps(least) {
    const found = [];
    for (const one of series()) {
      let before = null;
      curve(one).forEach((number, at) => {
        if (number === null) return;
        const factor = before === null ? 1 : number / before;
        const step = { one, commit: commits()[at], before, number, factor };
        if (Math.max(factor, 1 / factor) >= least) found.push(step);
        before = number;
      });
    }
    return found.sort((a, b) => Math.abs(Math.log(b.factor)) - Math.abs(Math.log(a.factor)));
  }

  return {
    machines, state, REFERENCES, KINDS, FILTERS, QUANTITIES, record, commits, commit, day, isTime, series, place,
    recorded, speed, ratio, referenceOf, curve, describe, steps,
  };
})();
