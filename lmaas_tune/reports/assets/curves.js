"use strict";

(() => {
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const STROKES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4", longdashdot: "11 3 2 3" };
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
  const COLOURS = 8;
  const PAPER = { wide: 660, half: 322, height: 230 }; // CSS pixels that A4 and US Letter have

  const figures = JSON.parse(document.getElementById("figures").textContent);
  const names = [...new Set(figures.flatMap((figure) => figure.series.map((series) => series.name)))];
  const hidden = new Set();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  let printing = false;

  const escaped = (text) => {
    const element = document.createElement("span");
    element.textContent = text;
    return element.innerHTML;
  };

  const colour = (name) => {
    const mode = dark.matches && !printing ? "dark" : "light";
    return getComputedStyle(document.documentElement).getPropertyValue(`--${mode}-${name}`).trim();
  };

  const look = (name) => {
    const index = names.indexOf(name);
    return { colour: colour(`s${index % COLOURS}`), dash: DASHES[index % DASHES.length] };
  };

  const faint = (hex) => `${hex}26`; // 15 % opaque

  const short = (value) => Number(value.toPrecision(4)).toString();

  function lineTraces(series) {
    const { colour: ink, dash } = look(series.name);
    const visible = !hidden.has(series.name);
    const traces = [];
    const shape = series.stepped ? "hv" : "linear";
    if (series.low) {
      const edge = { x: series.x, mode: "lines", line: { width: 0, shape }, hoverinfo: "skip", visible };
      traces.push({ ...edge, y: series.low }, { ...edge, y: series.high, fill: "tonexty", fillcolor: faint(ink) });
    }
    const band = (i) => (series.low ? ` (${short(series.low[i])} to ${short(series.high[i])})` : "");
    traces.push({
      x: series.x,
      y: series.y,
      mode: series.dots ? "markers" : "lines",
      line: { color: ink, width: 2, dash, shape },
      marker: { color: ink, size: 7 },
      text: series.y.map((y, i) => `${escaped(series.name)}: ${short(y)}${band(i)}`),
      hovertemplate: "%{text}<extra></extra>",
      visible,
    });
    return traces;
  }

  // how far an interval goes from its middle, as plotly wants it
  const whiskers = (middle, [low, high], ink) => ({
    type: "data", symmetric: false, array: [high - middle], arrayminus: [middle - low], color: ink, thickness: 1.5, width: 5,
  });

  function dotTraces(series) {
    const ink = look(series.name).colour;
    const visible = !hidden.has(series.name);
    const row = escaped(series.name);
    const traces = [];
    if (series.x.length) {
      traces.push({
        x: series.x,
        y: series.x.map(() => row),
        mode: "markers",
        marker: { color: ink, size: 9, opacity: 0.45 },
        text: series.text.map(escaped),
        hovertemplate: "%{text}: %{x:.4g}<extra></extra>",
        visible,
      });
    }
    if (series.mean !== null) {
      const middle = series.x.length ? colour("ink") : ink; // it stands out among the dots
      const interval = series.interval;
      const more = interval ? ` (95%: ${short(interval[0])} to ${short(interval[1])})` : "";
      traces.push({
        x: [series.mean],
        y: [row],
        mode: "markers",
        marker: { color: middle, size: 10, symbol: "diamond", line: { color: colour("paper"), width: 1 } },
        ...(interval ? { error_x: whiskers(series.mean, interval, middle) } : {}),
        text: [`${row}: mean ${short(series.mean)}${more}`],
        hovertemplate: "%{text}<extra></extra>",
        visible,
      });
    }
    return traces;
  }

  function pointTraces(series, figure) {
    const ink = look(series.name).colour;
    const told = (i) => `${escaped(series.name)}, ${escaped(series.text[i])}: ${short(series.y[i])}`;
    const bounds = (i) => (series.low ? ` (95%: ${short(series.low[i])} to ${short(series.high[i])})` : "");
    const bars = series.low && {
      type: "data",
      symmetric: false,
      array: series.y.map((y, i) => series.high[i] - y),
      arrayminus: series.y.map((y, i) => y - series.low[i]),
      thickness: 1.2,
      width: 4,
      color: ink,
    };
    return [{
      x: series.x,
      y: series.y,
      mode: "markers",
      marker: { color: ink, size: 12, symbol: series.text.map((name) => SYMBOLS[figure.marks.indexOf(name) % SYMBOLS.length]) },
      ...(bars ? { error_y: bars } : {}),
      text: series.x.map((x, i) => `${told(i)}${bounds(i)} at ${short(x)}`),
      hovertemplate: "%{text}<extra></extra>",
      visible: !hidden.has(series.name),
    }];
  }

  // the line through the points of the front, and the bars beside the rows of a group
  function joins(figure) {
    const still = { hoverinfo: "skip", line: { color: colour("soft") } };
    const front = figure.front.length
      ? [{ ...still, x: figure.front.map(([x]) => x), y: figure.front.map(([, y]) => y), mode: "lines", line: { ...still.line, width: 1.5, dash: "dot", shape: "hv" } }]
      : [];
    const bars = figure.groups.map((group, index) => ({
      ...still,
      x: group.map(() => index + 1),
      y: group.map(escaped),
      xaxis: "x2",
      mode: "lines+markers",
      line: { color: colour("ink"), width: 4 },
      marker: { color: colour("ink"), size: 10 },
    }));
    return [...front, ...bars];
  }

  const TRACES = { lines: lineTraces, dots: dotTraces, points: pointTraces };

  function paperSize(figure) {
    const alone = document.getElementById(figure.anchor).closest(".figures").children.length === 1;
    return { width: alone ? PAPER.wide : PAPER.half, height: PAPER.height };
  }

  function layout(figure) {
    const ink = colour("ink");
    const axis = {
      gridcolor: colour("line"),
      linecolor: colour("line"),
      zeroline: false,
      automargin: true,
      fixedrange: coarse.matches,
    };
    const dots = figure.kind === "dots";
    const points = figure.kind === "points";
    const beside = figure.groups.length;
    const marked = figure.target === null ? [] : [{
      type: "line", xref: "paper", x0: 0, x1: 1, y0: figure.target, y1: figure.target,
      line: { color: colour("soft"), width: 1, dash: "dot" },
    }];
    return {
      autosize: !printing,
      ...(printing ? paperSize(figure) : {}),
      margin: { l: 8, r: 10, t: 8, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: printing ? 10 : 12 },
      showlegend: false,
      shapes: marked,
      dragmode: coarse.matches ? false : "zoom", // a finger scrolls the page
      hovermode: dots || points || coarse.matches ? "closest" : "x unified",
      hoverlabel: { bgcolor: colour("shade"), bordercolor: colour("line"), font: { color: ink } },
      xaxis: {
        ...axis,
        title: { text: figure.x },
        unifiedhovertitle: { text: "%{x} calls" },
        ...(points ? { rangemode: "tozero" } : {}),
        ...(figure.whole_x ? { dtick: Math.ceil(figure.series.length / 8) } : {}),
        ...(beside ? { domain: [0, 1 - Math.min(0.4, 0.08 * beside + 0.04)] } : {}),
      },
      ...(beside ? {
        xaxis2: {
          domain: [1 - Math.min(0.4, 0.08 * beside), 1],
          range: [0.4, beside + 0.6],
          visible: false,
          fixedrange: true,
        },
      } : {}),
      yaxis: {
        ...axis,
        title: { text: dots ? "" : figure.y },
        autorange: dots ? "reversed" : true,
        ...(figure.y_is_share ? { tickformat: ".0%" } : {}),
        ...(dots ? { categoryorder: "array", categoryarray: figure.series.map(({ name }) => escaped(name)) } : {}),
      },
    };
  }

  function draw() {
    for (const figure of figures) {
      const traces = [...joins(figure), ...figure.series.flatMap((series) => TRACES[figure.kind](series, figure))];
      const settings = { responsive: !printing, displayModeBar: false };
      Plotly.react(figure.anchor, traces, layout(figure), settings);
    }
    for (const line of document.querySelectorAll(".series line")) {
      line.setAttribute("stroke", look(line.dataset.name).colour);
    }
  }

  function toggle(name) {
    if (!hidden.delete(name)) hidden.add(name);
    for (const button of document.querySelectorAll(".series button")) {
      button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.name)));
    }
    draw();
  }

  function addButtons(group) {
    const section = group.closest("section");
    const own = figures.filter((figure) => section.querySelector(`#${figure.anchor}`));
    for (const name of names) {
      if (!own.some((figure) => figure.series.some((series) => series.name === name))) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.name = name;
      button.setAttribute("aria-pressed", "true");
      button.innerHTML =
        '<svg width="28" height="10" aria-hidden="true"><line x1="1" y1="5" x2="27" y2="5" stroke-width="3"/></svg>';
      const line = button.querySelector("line");
      line.dataset.name = name;
      line.setAttribute("stroke-dasharray", STROKES[look(name).dash]);
      button.append(name);
      button.addEventListener("click", () => toggle(name));
      group.append(button);
    }
  }

  function print(begins) {
    printing = begins;
    for (const details of document.querySelectorAll("details")) {
      if (begins && !details.open) details.dataset.opened = details.open = true;
      else if (!begins && details.dataset.opened) {
        details.open = false;
        delete details.dataset.opened;
      }
    }
    draw();
  }

  document.querySelectorAll(".series").forEach(addButtons);
  draw();
  dark.addEventListener("change", draw);
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
})();
