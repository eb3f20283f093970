// The results of the rank explorer: cores, sizes and costs, what was measured, a chart, and all records, as elements.
const RankResults = (() => {
  const { cheapest, prod, sum } = TrainCosts;
  const { SLACK, whole, sizeOf, stored, valueOf, worth, bestWithin, address } = RankState;

  const short = (value) => (value < 0.001 && value > 0 ? "under 0.001" : String(Number(value.toPrecision(3))));
  const times = (value) =>
    `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : whole(Math.round(value))}×`;
  function inBytes(value) {
    const power = value < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
    return `${Number((value / 1000 ** power).toPrecision(3))}\u00a0${["bytes", "kB", "MB", "GB", "TB"][power]}`;
  }
  function asScore({ unit }, value) {
    if (value == null) return "not measured";
    const words = unit === "%" ? `${(100 * value).toFixed(1)}\u00a0%` : `${value.toFixed(3)}${unit && ` ${unit}`}`;
    return words.replace("-", "−");
  }
  const asError = (item) =>
    item?.error == null ? "not measured" : `${item.most ? "at most " : ""}${short(item.error)}`;
  const listed = (modes) => modes.join(" × ");
  const described = (form) =>
    form.kind === "rows" ? listed(form.modes) : `(${listed(form.rows)}) by (${listed(form.cols)})`;
  function inner(ranks) {
    return ranks.length && new Set(ranks).size > 1 ? `ranks ${ranks.join(", ")}` : `rank ${ranks[0] ?? 1}`;
  }

  function element(name, attributes = {}, ...inside) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...inside);
    return made;
  }
  const section = (name, ...inside) => element("section", { "aria-label": name }, element("h3", {}, name), ...inside);
  function table(caption, head, rows) {
    const columns = head.map((text) => element("th", { scope: "col" }, text));
    if (!head[0]) columns[0] = element("td"); // a corner without words is no header
    const lines = rows.map(([name, ...rest]) =>
      element("tr", {}, element("th", { scope: "row" }, name), ...rest.map((text) => element("td", {}, text))),
    );
    const parts = [element("caption", {}, caption), element("thead", {}, element("tr", {}, ...columns))];
    return element("div", { class: "tt-ranks-table" }, element("table", {}, ...parts, element("tbody", {}, ...lines)));
  }

  function cores({ object, form }, { cores, ranks, dense }) {
    const all = sum(cores.map(prod));
    const items = cores.map((core, k) => {
      const [r, m, n, q] = core;
      const size = form.kind === "matrix" && m > 1 && n > 1 ? [r, m, n, q] : [r, m * n, q];
      const share = Math.round((100 * prod(core)) / all);
      const words = `${listed(size)}, ${whole(prod(core))} numbers, ${share} %`;
      const spoken = element("span", { class: "tt-ranks-hidden" }, `Core ${k + 1} of ${cores.length}: `);
      return element("li", {}, RankDrawing.core(core), element("span", {}, spoken, words));
    });
    const said = [`Modes ${described(form)}, ${inner(ranks)}.`];
    const copies = form.kind === "rows" ? form.count : object.copies;
    if (copies > 1) said.push(`This is one of ${whole(copies)} trains.`);
    if (form.kind === "rows" && cores.length < form.modes.length) {
      said.push(`Of its ${form.modes.length} cores, neighbors are stored merged where that takes no more numbers.`);
    }
    said.push("The edges of a box grow with the logarithm of the sizes; the words are exact.");
    const wholeRow = "At this rank a train holds as many numbers as the row, so the row itself is stored.";
    const list = element("ol", { class: "tt-ranks-cores" }, ...items);
    return section("The cores", element("p", {}, dense ? wholeRow : said.join(" ")), list);
  }

  function sizes({ object, form, vectors }, found) {
    const [rows, cols] = sizeOf(object, form);
    const entries = object.copies * rows * cols;
    const lines = [
      ["numbers", whole(found.numbers), whole(entries)],
      ["bytes, float32", whole(4 * found.numbers), whole(4 * entries)],
      ["bytes, float16", whole(2 * found.numbers), whole(2 * entries)],
      ["bytes, eight bits, scales aside", whole(found.numbers), whole(entries)],
      [`times smaller${form.bits === 8 ? ", in eight bits" : ""}`, times((4 * entries) / found.bytes), "1×"],
    ];
    if (object.use === "table") {
      const what = form.kind === "rows" && form.count !== rows ? "column" : "row";
      const bytes = (numbers) => whole(4 * numbers);
      lines.push([`multiply-adds to read a ${what}`, whole(found.reading.macs), "0"]);
      lines.push([`peak bytes to read a ${what}`, bytes(found.reading.peak), bytes(what === "row" ? cols : rows)]);
    } else {
      const plan = cheapest(found.cores, vectors);
      const many = `${object.copies > 1 ? "one matrix, " : ""}${whole(vectors)} vector${vectors > 1 ? "s" : ""}`;
      lines.push([`multiply-adds, ${many}`, whole(plan.macs), whole(vectors * rows * cols)]);
      lines.push([`peak bytes beside the weights, ${many}`, whole(plan.forward), whole(4 * vectors * rows)]);
      lines.push(["order of the product", plan.order, "one product"]);
    }
    const matrices = object.copies > 1 ? `, ${object.copies} matrices` : "";
    const caption = `${whole(rows)} rows, ${whole(cols)} columns${matrices}`;
    return section("Size and cost, computed", table(caption, ["", "train", "dense"], lines));
  }

  const hasErrors = (object) =>
    [...object.rivals, ...object.forms.flatMap((form) => form.records)].some((one) => one.error != null);

  function measured({ object }, found, record) {
    if (object.id === "own") {
      const words = "Nothing was measured on a matrix of your own. ttref.advise does that.";
      return section("Measured", element("p", {}, words));
    }
    const rivalOf = (measure, said) => {
      const rival = bestWithin(object, found.bytes, measure);
      return rival ? `${said(rival)}: ${rival.name}, ${inBytes(rival.bytes)}` : "none of this size";
    };
    const size = inBytes(found.bytes);
    const noise = inBytes(object.nullBytes ?? record?.nullBytes ?? found.bytes);
    const lines = [["bytes", size, noise, `at most ${inBytes(SLACK * found.bytes)}`]];
    if (hasErrors(object)) {
      const bound = record?.nullBytes ? `at most ${short(record.bound)}` : asError({ error: record?.nullError });
      lines.push([`error of the ${object.errorOf}`, asError(record), bound, rivalOf(-1, asError)]);
    }
    object.scores.forEach((one, k) => {
      const name = `${one.name} (${object.whole || "dense"}: ${asScore(one, one.dense)})`;
      const own = [record?.scores, record?.nullScores].map((scores) => asScore(one, scores?.[k]));
      lines.push([name, ...own, rivalOf(k, (rival) => asScore(one, rival.scores[k]))]);
    });
    const first = record ? "Recorded." : "At this rank and these modes nothing was measured.";
    const rest = "The last column is, for each row, the best other method in at most a tenth more bytes.";
    const link = element("a", { href: `../notebooks/${object.chapter}.html` }, object.title);
    const from = element("p", {}, `${first} ${rest} From `, link);
    from.append(`, by ${object.command}, ${object.date}. ${object.note || ""}`);
    const head = ["", "train", object.null, "best rival of this size"];
    return section("Measured", from, table("Beside the null, and rivals in at most a tenth more bytes", head, lines));
  }

  function chart({ object, form }, found, record, room) {
    const scored = object.scores[0];
    const measure = scored ? 0 : -1;
    const value = (one) => valueOf(one, measure);
    const points = [];
    for (const one of form.records) {
      const x = stored(object, form, one.ranks).bytes;
      if (value(one) !== null) points.push({ kind: "train", x, y: value(one) });
      const noise = scored ? one.nullScores?.[0] : one.nullBytes ? one.bound : one.nullError;
      if (noise != null) points.push({ kind: "null", x: one.nullBytes || x, y: noise });
    }
    let best = -Infinity; // of the rivals, those that no smaller one equals
    const worthOf = (one) => worth(object, one, measure);
    for (const one of [...object.rivals].sort((a, b) => a.bytes - b.bytes || worthOf(b) - worthOf(a))) {
      if (worthOf(one) <= best) continue;
      best = worthOf(one);
      if (one.bytes) points.push({ kind: "rival", x: one.bytes, y: value(one) });
    }
    if (points.length < 2) return [];
    const name = scored ? scored.name : `error of the ${object.errorOf}`;
    const rounded = (y) => String(Math.round(1000 * y) / 1000);
    const format = (y) => (scored?.unit === "%" ? `${rounded(100 * y)} %` : rounded(y));
    const label = `${name} against bytes. The tables hold the same values.`;
    const now = { x: found.bytes, y: value(record) };
    const width = Math.max(280, Math.min(760, room));
    const drawn = RankDrawing.chart({ points, now, width, name, format, bytes: inBytes, label });
    const kinds = { train: "trains of these modes", null: object.null, rival: "rivals that no smaller one equals" };
    const legend = element("p", { class: "tt-ranks-legend" });
    for (const [kind, words] of Object.entries(kinds)) {
      const shown = points.some((one) => one.kind === kind);
      if (shown) legend.append(element("span", {}, RankDrawing.sign(kind), ` ${words}`));
    }
    return [section("Size against quality", drawn, legend)];
  }

  function records(state, record) {
    const { object, form } = state;
    if (!form.records.length) return [];
    const [rows, cols] = sizeOf(object, form);
    const dense = 4 * object.copies * rows * cols;
    const errors = form.records.some((one) => one.error != null);
    const lines = form.records.map((one) => {
      const link = element("a", { href: address({ ...state, rank: one.ranks }) }, [].concat(one.ranks).join(", "));
      if (one === record) link.setAttribute("aria-current", "true");
      const noise = one.nullBytes ? times(dense / one.nullBytes) : asError({ error: one.nullError });
      const scores = object.scores.map((kind, k) => asScore(kind, one.scores?.[k]));
      const smaller = times(dense / stored(object, form, one.ranks).bytes);
      return [link, smaller, ...(errors ? [asError(one), noise] : []), ...scores];
    });
    const bounded = form.records.some((one) => one.nullBytes);
    const noise = bounded ? "noise at this error, times smaller" : `error of ${object.null}`;
    const head = ["rank", "times smaller", ...(errors ? [`error of the ${object.errorOf}`, noise] : [])];
    head.push(...object.scores.map((one) => one.name));
    return [section("All records of these modes", table("Choose a rank to see it above", head, lines))];
  }

  // One sentence that says it all, for whoever cannot see the rest change.
  function summary({ object, form }, found, record) {
    const [rows, cols] = sizeOf(object, form);
    const ratio = (4 * object.copies * rows * cols) / found.bytes;
    const size = ratio >= 1 ? `${times(ratio)} smaller than dense` : `not smaller than dense (${times(ratio)})`;
    const [kind] = object.scores;
    const said = [`${whole(found.numbers)} numbers`, inBytes(found.bytes), size];
    if (record?.error != null) said.push(`error ${asError(record)}`);
    if (record && kind) said.push(`${kind.name} ${asScore(kind, record.scores?.[0])}`);
    if (!record) said.push("error not measured");
    return `${object.name}, ${inner(found.ranks)}: ${said.join(", ")}.`;
  }

  const all = (state, found, record, room) => [
    cores(state, found),
    sizes(state, found),
    measured(state, found, record),
    ...chart(state, found, record, room),
    ...records(state, record),
  ];
  return { all, summary, described, element };
})();
