// What the rank explorer is about: objects, forms, what a form stores at a rank, and the state in the address.
// A form is {kind: "matrix", rows, cols} or {kind: "rows", modes, count, width, bits}; its id is empty if it was typed.
const RankState = (() => {
  const { ranksOf, coresOf, prod, sum } = TrainCosts;
  const { rowLayout, readRow } = RowCosts;
  const MOST = { rank: 4096, vectors: 65536, modes: 24, entries: 2 ** 40 };
  const SLACK = 1.1; // a rival may take a tenth more bytes than the train
  const OWN = {
    id: "own",
    name: "A matrix of your own",
    use: "layer",
    copies: 1,
    errorOf: "weights",
    null: "noise of the same shape",
    forms: [],
    scores: [],
    rivals: [],
  };

  const whole = (value) => value.toLocaleString("en-US");
  const modesOf = (form) => (form.kind === "rows" ? form.modes : form.rows.map((m, k) => m * form.cols[k]));
  const highest = (form) => Math.min(MOST.rank, Math.max(1, ...ranksOf(modesOf(form), MOST.rank)));
  const sizeOf = (object, form) =>
    object.id === "own" ? [prod(form.rows), prod(form.cols)] : [object.rows, object.cols];

  // Inner ranks, cores, numbers and bytes of an object in a form; `reading`: what one row costs.
  function stored(object, form, rank) {
    const ranks = ranksOf(modesOf(form), rank).slice(1, -1);
    if (form.kind === "matrix") {
      const cores = coresOf(form.rows, form.cols, rank);
      const numbers = object.copies * sum(cores.map(prod));
      return { ranks, cores, numbers, bytes: 4 * numbers, reading: readRow(cores, sizeOf(object, form)[1]) };
    }
    const layout = rowLayout(form.modes, rank, form.width);
    const numbers = form.count * layout.numbers;
    const bytes = form.bits === 8 ? numbers + 2 * form.count : 4 * numbers;
    return { ranks, cores: layout.cores, numbers, bytes, reading: layout.reading, dense: layout.dense };
  }
  const same = (a, b) => a.length === b.length && a.every((value, k) => value === b[k]);
  const recordOf = (object, form, ranks) =>
    form.records.find((one) => same(stored(object, form, one.ranks).ranks, ranks));

  // A measure is the place of a score, or -1 for the error. Each has its own best rival, for two scores can be two
  // contests (trained from the start, or cut and trained on). The slack is that of the map in chapter 10.
  const valueOf = (item, measure) => (measure < 0 ? item?.error : item?.scores?.[measure]) ?? null;
  function worth(object, item, measure) {
    const value = valueOf(item, measure);
    if (value === null) return -Infinity;
    return object.scores[measure]?.better === "higher" ? value : -value;
  }
  function bestWithin(object, bytes, measure) {
    const value = (one) => worth(object, one, measure);
    const fitting = object.rivals.filter((one) => one.bytes <= SLACK * bytes && value(one) > -Infinity);
    return fitting.sort((a, b) => value(b) - value(a) || a.bytes - b.bytes)[0];
  }

  function ownForm(object, rows, cols) {
    if (!rows.length && object.use === "table") {
      return { id: "", kind: "rows", modes: cols, count: object.rows, width: object.cols, bits: 32, records: [] };
    }
    return { id: "", kind: "matrix", rows, cols, records: [] };
  }
  // What is wrong with a form for an object, in a sentence; empty if it fits.
  function fault(object, { kind, rows = [], cols = [], modes = [], width }) {
    if (Math.max(rows.length, cols.length, modes.length) > MOST.modes) {
      return `This page computes trains of at most ${MOST.modes} modes.`;
    }
    if (kind === "matrix" && rows.length !== cols.length) {
      const counts = `${rows.length} row modes and ${cols.length} column modes`;
      return `${counts}: there must be as many of one as of the other; fill up with ones.`;
    }
    const all = modes.concat(rows, cols);
    if (!all.length) return "Type modes, such as 8 8 12.";
    if (all.includes(0)) return "A mode of zero leaves no entries: the least is 1.";
    if (prod(all) > MOST.entries) return "That is larger than this page computes.";
    if (object.id === "own") return "";
    const exact = object.use !== "table"; // rows and columns of a table are padded, those of a layer here are not
    const sides = [
      ["The row modes", prod(rows), object.rows],
      ["The column modes", prod(cols), object.cols],
    ];
    for (const [name, product, size] of kind === "rows" ? [["The modes", prod(modes), width]] : sides) {
      if (exact ? product !== size : product < size) {
        return `${name} multiply to ${whole(product)}, and must give ${exact ? "" : "at least "}${whole(size)}.`;
      }
    }
    return "";
  }

  // The state {object, form, rank, vectors}; rank is a cap, or a list of inner ranks that was recorded.
  const firstForm = (object) => object.forms[0] || ownForm(object, [12, 16, 16], [8, 8, 12]);
  function start(object, form = firstForm(object), vectors = 1) {
    const { records } = form;
    const rank = records.length ? records[Math.floor(records.length / 2)].ranks : Math.min(8, highest(form));
    return { object, form, rank, vectors };
  }
  function address({ object, form, rank, vectors }) {
    const { rows = [], cols = form.modes } = form;
    const modes = form.id || `${rows.join("x")}_${cols.join("x")}`;
    const made = new URLSearchParams({ object: object.id, modes, rank: [].concat(rank).join("-") });
    if (vectors !== 1) made.set("vectors", vectors);
    return `#${made}`;
  }
  const numbersIn = (text) => (text.match(/\d+/g) || []).map(Number);
  // The state of an address, and what of it could not be read; the defaults stand in for that.
  function parsed(hash, objects) {
    const asked = new URLSearchParams(hash.slice(1));
    const [name, modes, rank, vectors] = ["object", "modes", "rank", "vectors"].map((key) => asked.get(key));
    const object = objects.find((one) => one.id === name);
    if (!object) return [start(objects[0]), [`no object "${name ?? ""}"`]];
    const wrong = [];
    let form = firstForm(object);
    if (modes !== null) {
      const [rows, cols] = modes.split("_").map(numbersIn);
      const found = object.forms.find((one) => one.id === modes) || (cols && ownForm(object, rows, cols));
      const reason = found ? fault(object, found) : "not known here";
      if (reason) wrong.push(`modes "${modes}" (${reason})`);
      else form = found;
    }
    const state = start(object, form);
    const known = (text, most) => /^\d{1,6}$/.test(text) && Number(text) >= 1 && Number(text) <= most;
    if (rank !== null && !wrong.length) {
      const parts = rank.split("-");
      const fits = parts.length === 1 || parts.length === modesOf(form).length - 1;
      if (!fits || !parts.every((part) => known(part, MOST.rank))) wrong.push(`rank "${rank}"`);
      else state.rank = parts.length > 1 ? parts.map(Number) : Number(rank);
    }
    if (vectors !== null && known(vectors, MOST.vectors)) state.vectors = Number(vectors);
    else if (vectors !== null) wrong.push(`vectors "${vectors}"`);
    return [state, wrong];
  }

  return {
    MOST, SLACK, OWN, whole, highest, sizeOf, stored, recordOf, valueOf, worth, bestWithin, ownForm, fault, start,
    address, numbersIn, parsed,
  };
})();
