// What a row of a table costs, stored as a train of its own or read from a TT-matrix: ttref/rows/packed.py and
// ttref/embeddings/ttm.py in JavaScript. Tests compare sizes with Python's, multiply-adds and peaks with torch's.
const RowCosts = (() => {
  const { ranksOf, prod, sum, range, least, Live } = TrainCosts;

  // rows/packed.py: what is stored of one row, neighbors merged where that takes no more numbers
  function rowLayout(modes, rank, width) {
    const ranks = ranksOf(modes, rank);
    let last = modes.length - 1;
    while (last && ranks[last] === prod(modes.slice(last))) last--;
    let first = 0;
    while (first < last && ranks[first + 1] === prod(modes.slice(0, first + 1))) first++;
    if (first === last) {
      return { dense: true, cores: [[1, 1, width, 1]], numbers: width, reading: { macs: 0, peak: width } };
    }
    const cores = [];
    for (let k = first; k <= last; k++) {
      const core = [ranks[k], modes[k], ranks[k + 1]];
      const [left, n, right] = cores.at(-1) || core;
      const both = [left, n * core[1], core[2]];
      if (cores.length && prod(both) <= prod(core) + left * n * right) cores.splice(-1, 1, both);
      else cores.push(core);
    }
    const numbers = sum(cores.map(prod));
    const ways = range(1, cores.length).map((half) => meeting(cores, half, width));
    const reading = ways.length ? least(ways, (way) => way.price) : { macs: 0, peak: numbers };
    return { dense: false, cores: cores.map(([left, n, right]) => [left, 1, n, right]), numbers, reading };
  }
  // Multiply-adds of a row whose two ends meet before core `half`, and the most numbers alive at once: its cores
  // [r, n, r'], copied out of the table, the products from both ends, and the row. Padding is not computed; `price`,
  // by which the half is chosen, counts it.
  function meeting(cores, half, width) {
    let [macs, front, back] = [0, 0, 0];
    let rows = prod(cores[0].slice(0, 2));
    let columns = prod(cores.at(-1).slice(1));
    const given = sum(cores.map(prod));
    let peak = given;
    for (const [left, n, right] of cores.slice(1, half)) {
      macs += rows * left * n * right;
      rows *= n;
      peak = Math.max(peak, given + front + rows * right);
      front = rows * right;
    }
    for (const [left, n, right] of cores.slice(half, -1).reverse()) {
      macs += left * n * right * columns;
      columns *= n;
      peak = Math.max(peak, given + front + back + left * columns);
      back = left * columns;
    }
    const last = cores[half - 1][2] * columns;
    const needed = Math.ceil(width / columns);
    peak = Math.max(peak, given + front + back + needed * columns);
    return { price: macs + rows * last, macs: macs + needed * last, peak };
  }
  // embeddings/ttm.py: a row of a TT-matrix, contracted from both ends to the cut that evens their widths. Cores of the
  // right end are copied whole, because their axes are sorted; of those of the left end only slices are.
  function readRow(shapes, width) {
    if (shapes.length === 1) return { macs: 0, peak: 2 * width };
    const widths = shapes.map((core) => core[2]);
    const cut = least(range(1, shapes.length), (k) => prod(widths.slice(0, k)) + prod(widths.slice(k)));
    const live = new Live();
    let [rows, front] = [widths[0], 0];
    for (const [r, , n, q] of shapes.slice(1, cut)) {
      live.add(rows * r, r * n * q, rows * n * q);
      live.drop(rows * r, r * n * q, front);
      rows *= n;
      front = rows * q;
    }
    const behind = shapes.slice(cut, -1);
    const copies = behind.map((core) => (core.slice(0, 3).every((size) => size > 1) ? prod(core) : 0));
    const [r, m, n] = shapes.at(-1);
    let [columns, back] = [n, m > 1 && r > 1 ? r * m * n : 0];
    live.add(...copies, back);
    for (const [left, , width, right] of [...behind].reverse()) {
      live.add(left * width * right, right * columns, left * width * columns);
      live.drop(left * width * right, right * columns, back, copies.pop());
      back = left * width * columns;
      columns *= width;
    }
    const needed = Math.ceil(width / columns);
    const bond = shapes[cut][0];
    live.add(width, rows * bond, bond * columns, needed * columns === width ? 0 : needed * columns);
    const { macs } = meeting(shapes.map(([r, , n, q]) => [r, n, q]), cut, width);
    return { macs, peak: live.peak };
  }

  return { rowLayout, readRow };
})();
