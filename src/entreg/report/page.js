// Draws the figures embedded in the page when they come near the window, in the page's colours, and lets the legend show and hide groups.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const frames = [...document.querySelectorAll("[data-figure]")];
  const buttons = [...document.querySelectorAll("button[data-group]")];
  const hidden = new Set();
  const near = new Set();

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function layout(given, narrow) {
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true, tickfont: { color: colour("--muted") } };
    const title = (text) => ({ text, standoff: 8, font: { color: colour("--muted"), size: 12 } });
    return {
      ...given,
      autosize: true,
      margin: { l: 8, r: 14, t: 22, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: colour("--font"), size: 12, color: colour("--text") },
      dragmode: narrow ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--text") },
      hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--text"), size: 12 } },
      xaxis: { ...given.xaxis, ...axis, nticks: narrow ? 5 : 8, title: title(given.xaxis.title.text) },
      yaxis: { ...given.yaxis, ...axis, nticks: 6, tickformat: ",.6~g", title: title(given.yaxis.title.text) },
    };
  }

  function draw(frame) {
    near.add(frame);
    const { data, layout: given } = figures[Number(frame.dataset.figure)];
    const traces = data.map((trace) => ({ ...trace, visible: !hidden.has(trace.legendgroup) }));
    const options = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
    Plotly.react(frame, traces, layout(given, frame.clientWidth < 420), options);
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      const group = button.dataset.group;
      if (!hidden.delete(group)) hidden.add(group);
      button.setAttribute("aria-pressed", String(!hidden.has(group)));
      for (const block of document.querySelectorAll(".block")) block.hidden = hidden.has(block.dataset.group);
      near.forEach(draw);
    });
  }

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    },
    { rootMargin: "800px" },
  );
  frames.forEach((frame) => watcher.observe(frame));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => near.forEach(draw));
  addEventListener("beforeprint", () => frames.forEach(draw));
})();
