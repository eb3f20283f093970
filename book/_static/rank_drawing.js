// Drawings of the rank explorer: the cores as boxes, and errors or scores against bytes. Each has its words beside it.
const RankDrawing = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const COLORS = { train: "#0072b2", null: "#d55e00", rival: "#009e73" };

  function svg(name, attributes = {}, ...inside) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...inside);
    return made;
  }
  // Edges grow with the logarithm: a rank of 1 beside a mode of 768 would be a line otherwise.
  const edge = (size) => 6 + 7 * Math.log2(size);
  // One core: modes across, the left rank upwards, the right rank backwards.
  function core([r, m, n, q]) {
    const [wide, high, deep] = [edge(m * n), edge(r), edge(q) * 0.5];
    const [x, y, right] = [1, 1 + deep, 1 + wide + deep];
    const points = (...list) => list.map((point) => point.join(",")).join(" ");
    const face = (shade, list) => svg("polygon", { points: points(...list), class: `tt-face tt-${shade}` });
    const [width, height] = [wide + deep + 2, high + deep + 2];
    return svg(
      "svg",
      { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" },
      face("front", [[x, y], [x + wide, y], [x + wide, y + high], [x, y + high]]),
      face("top", [[x, y], [x + deep, y - deep], [right, y - deep], [x + wide, y]]),
      face("side", [[x + wide, y], [right, y - deep], [right, y + high - deep], [x + wide, y + high]]),
    );
  }

  const MARKS = {
    train: (x, y) => svg("circle", { cx: x, cy: y, r: 4.5, fill: COLORS.train }),
    null: (x, y) => svg("polygon", { points: `${x},${y - 5} ${x + 5},${y + 4} ${x - 5},${y + 4}`, fill: COLORS.null }),
    rival: (x, y) => svg("rect", { x: x - 4, y: y - 4, width: 8, height: 8, fill: COLORS.rival }),
  };
  function nice(span) {
    const power = 10 ** Math.floor(Math.log10(span / 4));
    return [1, 2, 5, 10].map((step) => step * power).find((step) => span / step <= 5);
  }
  // Points are {kind, x, y}; x in bytes, on a logarithmic axis. `now` is {x, y or null}.
  function chart({ points, now, width, name, format, bytes, label }) {
    const height = 280;
    const [left, right, top, bottom] = [52, width - 26, 26, height - 42];
    const xs = [...points.map((p) => p.x), now.x].map(Math.log10);
    const ys = points.map((p) => p.y).concat(now.y ?? []);
    const [x0, x1] = [Math.min(...xs) - 0.08, Math.max(...xs) + 0.08];
    const step = nice(Math.max(...ys) - Math.min(...ys) || 1);
    const y0 = Math.floor(Math.min(...ys) / step + 0.02) * step; // a value just below a line needs no line below it
    const y1 = Math.ceil(Math.max(...ys) / step + 1e-9) * step;
    const at = (x) => left + ((Math.log10(x) - x0) / (x1 - x0)) * (right - left);
    const up = (y) => bottom - ((y - y0) / (y1 - y0)) * (bottom - top);
    const made = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    const line = (a, b, c, d, name) => made.append(svg("line", { x1: a, y1: b, x2: c, y2: d, class: name }));
    const text = (words, x, y, anchor) => made.append(svg("text", { x, y, "text-anchor": anchor }, words));
    for (let y = y0; y <= y1 + step / 2; y += step) {
      line(left, up(y), right, up(y), "tt-grid");
      text(format(y), left - 6, up(y) + 4, "end");
    }
    const every = Math.max(1, Math.ceil((x1 - x0) / Math.max(2, (right - left) / 90)));
    for (let power = Math.floor(x0); power <= x1; power += every) {
      for (const x of (x1 - x0 < 1.5 ? [1, 2, 5] : [1]).map((step) => step * 10 ** power)) {
        if (at(x) < left || at(x) > right) continue;
        line(at(x), top, at(x), bottom, "tt-grid");
        text(bytes(x), at(x), bottom + 16, "middle");
      }
    }
    text(name, left - 44, 14, "start");
    text("bytes, logarithmic", right, height - 6, "end");
    line(at(now.x), top, at(now.x), bottom, "tt-now");
    for (const kind of ["rival", "null", "train"]) {
      for (const p of points.filter((one) => one.kind === kind)) made.append(MARKS[kind](at(p.x), up(p.y)));
    }
    if (now.y != null) made.append(svg("circle", { cx: at(now.x), cy: up(now.y), r: 8, class: "tt-ring" }));
    return made;
  }
  // The sign of a kind, for the legend.
  const sign = (kind) =>
    svg("svg", { width: 14, height: 14, viewBox: "0 0 14 14", "aria-hidden": "true" }, MARKS[kind](7, 7));

  return { core, chart, sign };
})();
