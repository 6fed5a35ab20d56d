// Draws the charts of the page with uPlot, in place of their SVG: the legend shows the values under the pointer, dragging
// zooms, a double click shows the whole again. The pointers of all charts of a page move as one.
"use strict";
(() => {
  const HEIGHT = {broad: 380, wide: 300, narrow: 240};
  const NEAR = 6; // pixels from the pointer to an event
  const HINT = matchMedia("(pointer: coarse)").matches
    ? "tap for the values of a step"
    : "drag to zoom, double click for all steps";
  const MUTED = "#64748b", RULE = "#e2e8f0";
  const format = new Intl.NumberFormat("en-US", {maximumSignificantDigits: 6}).format;

  function element(name, className, text) {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  }

  // Each part on top of the ones before it: the last, which is the sum, comes first, and is painted over by the others.
  function stack(lines) {
    const sums = [];
    let below = lines[0].values.map(() => 0);
    for (const line of lines) {
      below = line.values.map((value, index) => value + below[index]);
      sums.unshift({...line, sums: below});
    }
    return sums;
  }

  // A line with few points has no value at most steps: the pointer takes the nearest it has.
  function nearest(values, index) {
    for (let distance = 0; distance < values.length; distance++)
      for (const candidate of [index - distance, index + distance])
        if (values[candidate] != null) return candidate;
    return index;
  }

  // One slow step, such as the first, must not press all others flat.
  function rangeOfSums(plot) {
    const [first, last] = plot.series[0].idxs ?? [0, plot.data[0].length - 1];
    const sums = plot.data[1].slice(first, last + 1).sort((a, b) => a - b);
    return [0, 1.2 * sums[Math.floor(0.98 * (sums.length - 1))] || 1];
  }

  function seriesOf(line) {
    return {
      label: line.name,
      stroke: line.color,
      fill: line.sums && line.color,
      width: line.sums ? 0 : 1.5,
      spanGaps: true,
      auto: !line.scattered,
      paths: line.scattered ? () => null : undefined,
      points: {show: line.dots, size: 7, fill: line.color},
      value: (plot, _, series, index) => {
        const value = index == null ? null : line.values[index];
        if (value == null) return "-";
        return format(value) + (index === plot.cursor.idx ? "" : ` at ${format(plot.data[0][index])}`);
      },
    };
  }

  // Points in no order; one beyond the other lines' values is drawn at the edge.
  function drawScattered(plot, lines) {
    const {top, height} = plot.bbox, [first, last] = plot.series[0].idxs;
    lines.forEach((line, number) => {
      if (!line.scattered || !plot.series[number + 1].show) return;
      plot.ctx.fillStyle = line.color;
      for (let index = first; index <= last; index++) {
        if (line.values[index] == null) continue;
        const y = plot.valToPos(line.values[index], "y", true);
        const size = 3 * uPlot.pxRatio, at = Math.min(Math.max(y, top), top + height);
        plot.ctx.fillRect(plot.valToPos(plot.data[0][index], "x", true) - size / 2, at - size / 2, size, size);
      }
    });
  }

  // A dashed line for each event, or a tick on the axis where there are many of its kind.
  function drawMarks(plot, marks) {
    const {ctx, bbox} = plot, bottom = bbox.top + bbox.height;
    ctx.save();
    ctx.lineWidth = 1.5 * uPlot.pxRatio;
    for (const mark of marks) {
      const x = plot.valToPos(mark.x, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = mark.color;
      ctx.setLineDash(mark.small ? [] : [3 * uPlot.pxRatio, 3 * uPlot.pxRatio]);
      ctx.beginPath();
      ctx.moveTo(x, mark.small ? bottom - 7 * uPlot.pxRatio : bbox.top);
      ctx.lineTo(x, bottom);
      ctx.stroke();
    }
    ctx.restore();
  }

  function eventsAtPointer(plot, marks) {
    const left = plot.cursor.left;
    if (left == null || left < 0) return HINT;
    const near = marks.filter((mark) => Math.abs(plot.valToPos(mark.x, "x") - left) <= NEAR);
    return near.map((mark) => mark.description || mark.name).join(" · ") || HINT;
  }

  function draw(figure) {
    const chart = JSON.parse(figure.querySelector("script").textContent);
    const lines = chart.stacked ? stack(chart.lines) : chart.lines;
    const live = element("div", "live", ""), events = element("p", "events-at-pointer", HINT);
    const axis = {stroke: MUTED, grid: {stroke: RULE, width: 1}, ticks: {stroke: RULE, width: 1}, labelFont: "12px system-ui"};
    const size = () => {
      const width = live.clientWidth;
      const height = width < 560 ? HEIGHT.narrow : figure.classList.contains("broad") ? HEIGHT.broad : HEIGHT.wide;
      return {width, height};
    };
    live.append(element("h3", "", chart.title));
    figure.append(live);
    figure.classList.add("drawn");
    const plot = new uPlot(
      {
        ...size(),
        scales: {x: {time: false}, y: chart.stacked ? {range: rangeOfSums} : {}},
        axes: [{...axis, label: chart.x_label, labelSize: 18}, {...axis, label: chart.y_label, size: 62, labelSize: 18}],
        series: [{label: chart.x_label, value: (_, value) => (value == null ? "-" : format(value))}, ...lines.map(seriesOf)],
        cursor: {
          sync: {key: "steps", setSeries: false},
          dataIdx: (_, series, index) =>
            series > 0 && lines[series - 1].dots ? nearest(lines[series - 1].values, index) : index,
        },
        legend: {markers: {fill: (_, series) => lines[series - 1].color}},
        hooks: {
          drawAxes: [(plot) => drawMarks(plot, chart.marks)],
          draw: [(plot) => drawScattered(plot, lines)],
          setCursor: [(plot) => { events.textContent = eventsAtPointer(plot, chart.marks); }],
        },
      },
      [chart.x, ...lines.map((line) => line.sums ?? line.values)],
      live,
    );
    const kinds = element("p", "kinds", "");
    for (const [name, color] of new Map(chart.marks.map((mark) => [mark.name, mark.color]))) {
      const kind = element("span", "", name), key = element("i", "key", "");
      key.style.background = color;
      kind.prepend(key);
      kinds.append(kind);
    }
    live.append(kinds, events);
    new ResizeObserver(() => { if (live.clientWidth && live.clientWidth !== plot.width) plot.setSize(size()); }).observe(live);
    figure.plot = plot; // for the browser's console, and for tests
  }

  document.querySelectorAll("figure.chart").forEach(draw);
})();
