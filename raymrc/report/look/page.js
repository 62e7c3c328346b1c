"use strict";
// Plots are drawn when they come into sight: a page of a hundred opens as fast as one of two.
(() => {
  const plots = [...document.querySelectorAll(".plot")];
  const settings = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  // A narrow screen has room for names in two lines, and none for a scale beside values that stand in their places.
  function narrow({ data, layout }) {
    layout.font.size = 11;
    const names = data[0].type === "heatmap" ? data[0].y : layout.yaxis.categoryarray;
    if (names) Object.assign(layout.yaxis, { tickvals: names, ticktext: names.map((name) => name.replaceAll("/", "/<br>")) });
    for (const trace of data) if (trace.type === "heatmap") trace.showscale = false;
  }

  function draw(plot) {
    if (plot.dataset.state) return;
    plot.dataset.state = "drawing";
    const figure = JSON.parse(plot.nextElementSibling.textContent);
    if (plot.clientWidth < 480) narrow(figure);
    Plotly.newPlot(plot, figure.data, figure.layout, settings).then(
      () => { plot.dataset.state = "drawn"; },
      (error) => { plot.dataset.state = "failed"; console.error(error); });
  }

  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watch.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "300px" });
  plots.forEach((plot) => watch.observe(plot));

  // On paper everything is there, no wider than the page, and nothing is folded away.
  const width = 680;
  let opened = [];
  addEventListener("beforeprint", () => {
    plots.forEach(draw);
    plots.forEach((plot) => Plotly.relayout(plot, { width }));
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => {
    opened.forEach((details) => { details.open = false; });
    plots.forEach((plot) => Plotly.relayout(plot, { width: null, autosize: true }));
  });

  // The contents say where the reader is.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  document.querySelectorAll("main section[id]").forEach((section) => seen.observe(section));
})();
