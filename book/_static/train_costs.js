// Sizes and costs of tensor trains: ttref/shapes.py, steps.py, costs.py and plans.py in JavaScript, for products
// without gradients. A test compares each figure with Python's, number by number. A core is [r, m, n, r'].
const TrainCosts = (() => {
  const WORKING_BYTES = 2 ** 23; // as in ttref/costs.py, with the share
  const LEAST_SHARE = 32;
  const WORTH_KEEPING = 2 ** 19; // as in ttref/scratch.py
  const LEFT = "left-to-right";
  const RIGHT = "right-to-left";
  const ORDERS = [RIGHT, LEFT, "two-gemm", "dense"];

  const prod = (list) => list.reduce((a, b) => a * b, 1);
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const div = (a, b) => Math.floor(a / b);
  const range = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, k) => from + k);
  // The first of equals.
  const least = (list, price) => list.reduce((best, one) => (price(one) < price(best) ? one : best));

  // shapes.py
  function ranksOf(modes, rank) {
    const d = modes.length;
    const caps = Array.isArray(rank) ? [1, ...rank, 1] : [1, ...Array(d - 1).fill(rank), 1];
    for (let k = 1; k < d; k++) caps[k] = Math.min(caps[k], caps[k - 1] * modes[k - 1]);
    for (let k = d - 1; k > 0; k--) caps[k] = Math.min(caps[k], caps[k + 1] * modes[k]);
    return caps;
  }
  function coresOf(rows, cols, rank) {
    const ranks = ranksOf(rows.map((m, k) => m * cols[k]), rank);
    return rows.map((m, k) => [ranks[k], m, cols[k], ranks[k + 1]]);
  }

  // steps.py
  const merged = (part) => [part[0][0], prod(part.map((c) => c[1])), prod(part.map((c) => c[2])), part.at(-1)[3]];
  function steps(way, shapes) {
    const ordered = way === LEFT ? shapes : [...shapes].reverse().map(([r, m, n, q]) => [q, m, n, r]);
    let inputs = prod(ordered.map((core) => core[2]));
    let outputs = 1;
    return ordered.map(([r, m, n, q]) => {
      inputs /= n;
      const [slices, width] = way === LEFT ? [outputs, inputs] : [inputs, outputs];
      outputs *= m;
      return [slices, m * q, r * n, width];
    });
  }
  const folds = ([slices, p, q, w]) => slices > 1 && w > 1 && p * q >= 8 * w * (p + q);
  const macsOf = (way, shapes) => sum(steps(way, shapes).map(prod));
  const wayThrough = (shapes) => (macsOf(RIGHT, shapes) <= macsOf(LEFT, shapes) ? RIGHT : LEFT);
  function mergeable(sizes, groups) {
    const strides = sizes.map((_, k) => prod(sizes.slice(k + 1)));
    return groups.every((group) => {
      const axes = group.filter((axis) => sizes[axis] > 1);
      return range(1, axes.length).every((k) => strides[axes[k - 1]] === sizes[axes[k]] * strides[axes[k]]);
    });
  }
  function joins(part, right) {
    const found = [];
    let whole = null;
    for (const core of right ? [...part].reverse() : part) {
      if (whole) {
        const [one, other] = right ? [core, whole] : [whole, core];
        whole = merged([one, other]);
        found.push([prod(whole), other[0], [one, other]]);
      } else whole = core;
    }
    return found;
  }
  const sorts = (one, other) => !mergeable([...one.slice(0, 3), ...other.slice(1)], [[0], [1, 3], [2, 4], [5]]);
  const joining = (part, right) => sum(joins(part, right).map(([entries, bond]) => entries * bond));
  const fromRight = (part) => joining(part, true) < joining(part, false);
  const halved = (shapes, cut) => [shapes.slice(0, cut), shapes.slice(cut)].filter((part) => part.length);
  function buffers(way, shapes) {
    const results = steps(way, shapes).map(([slices, p, , w]) => slices * p * w).slice(0, -1);
    return [0, 1].map((k) => Math.max(0, ...results.filter((_, at) => at % 2 === k)));
  }

  class Live {
    held = 0;
    peak = 0;
    add(...numbers) {
      this.held += sum(numbers);
      this.peak = Math.max(this.peak, this.held);
    }
    drop(...numbers) {
      this.held -= sum(numbers);
    }
    sort(entries, needed) {
      if (!needed) return;
      this.add(entries);
      this.drop(entries);
    }
    merge(part) {
      let before = 0;
      for (const [entries, , pair] of joins(part, fromRight(part))) {
        this.add(entries);
        this.sort(entries, sorts(...pair));
        this.drop(before);
        before = entries;
      }
      return before;
    }
    walk(way, shapes, batch, chunk, kept) {
      if (way === LEFT) this.add(...shapes.map((core) => (mergeable(core, [[0, 2], [1, 3]]) ? 0 : prod(core))));
      if (kept) {
        this.add(batch * merged(shapes)[1], chunk * sum(buffers(way, shapes)));
        return;
      }
      let before = 0;
      for (const [slices, p, q, w] of steps(way, shapes)) {
        const sorting = folds([batch * slices, p, q, w]);
        const copy = sorting ? batch * slices * q * w : 0;
        this.add(copy, batch * slices * p * w);
        this.sort(batch * slices * p * w, sorting);
        this.drop(before, copy);
        before = batch * slices * p * w;
      }
    }
  }
  function forwardPeak({ order, shapes, batch, chunk, cut, block, temporary }) {
    const live = new Live();
    const [, rows, cols] = merged(shapes);
    if (order === "dense") {
      const rest = live.merge(shapes.slice(1));
      const whole = block === shapes[0][1];
      const built = shapes.length > 1 ? (rows * cols * block) / shapes[0][1] : 0;
      live.add(whole ? 0 : batch * rows, built);
      live.sort(built, shapes.length > 1 && sorts(shapes[0], merged(shapes.slice(1))));
      live.drop(rest);
      live.add(whole ? batch * rows : 0);
      return live.peak;
    }
    if (order === "two-gemm") {
      const parts = halved(shapes, cut);
      parts.forEach((part) => live.merge(part));
      shapes = parts.map(merged);
      order = wayThrough(shapes);
    }
    live.walk(order, shapes, batch, chunk, chunk < batch || temporary >= WORTH_KEEPING);
    return live.peak;
  }

  // costs.py
  function room(shapes, batch) {
    const [, rows, cols] = merged(shapes);
    return 4 * (rows * cols - sum(shapes.map(prod))) + div(4 * (rows * cols + batch * rows), 10);
  }
  function merging(parts) {
    const found = parts.flatMap((part) =>
      joins(part, fromRight(part)).map(([entries, bond]) => [entries * bond, 12 * entries, 4 * entries]),
    );
    return [parts.map(merged), found];
  }
  function walkPlan(order, way, shapes, batch, space, before = [], cut = 0) {
    const products = steps(way, shapes);
    const widest = Math.max(0, ...products.slice(0, -1).map(([slices, p, , w]) => slices * p * w));
    const each = sum(buffers(way, shapes));
    const left = space - sum(before.map(([, , result]) => result));
    const most = Math.max(div(WORKING_BYTES, LEAST_SHARE), Math.min(2 * WORKING_BYTES, left));
    let chunk = widest ? Math.min(batch, Math.max(1, div(most, 4 * each))) : batch;
    const passes = Math.ceil(batch / chunk);
    chunk = Math.ceil(batch / passes);
    const moved = products.map(
      ([slices, p, q, w]) => batch * slices * (q + p) * w + p * q * (w === 1 ? passes : batch * slices),
    );
    return {
      order,
      macs: batch * sum(products.map(prod)) + sum(before.map(([macs]) => macs)),
      bytes: 4 * sum(moved) + sum(before.map(([, bytes]) => bytes)),
      temporary: Math.max(4 * chunk * widest, ...before.map(([, , result]) => result)),
      chunk,
      cut,
      block: 0,
    };
  }
  function rebuildPlan(shapes, batch, space) {
    const [, rows, cols] = merged(shapes);
    const first = shapes[0][1];
    let block = first;
    let before = [];
    if (shapes.length > 1) {
      const rest = shapes.slice(1);
      before = merging([rest])[1];
      const left = div(space - 4 * prod(merged(rest)), 2);
      const most = Math.max(div(WORKING_BYTES, LEAST_SHARE), Math.min(WORKING_BYTES, left));
      block = Math.max(1, Math.min(first, div(most * first, 4 * rows * cols)));
      before.push([rows * cols * shapes[0][3], 12 * rows * cols, ((4 * rows * cols) / first) * block]);
    }
    const blocks = Math.ceil(first / block);
    return {
      order: "dense",
      macs: sum(before.map(([macs]) => macs)) + batch * rows * cols,
      bytes: sum(before.map(([, bytes]) => bytes)) + 4 * (rows * cols + batch * (blocks * cols + rows)),
      temporary: Math.max(0, ...before.map(([, , result]) => result)),
      chunk: batch,
      cut: 0,
      block,
    };
  }
  function cost(order, shapes, batch) {
    const space = room(shapes, batch);
    let plan;
    if (order === "dense") plan = rebuildPlan(shapes, batch, space);
    else if (order === "two-gemm") {
      const plans = range(1, Math.max(shapes.length, 2)).map((cut) => {
        const [halves, before] = merging(halved(shapes, cut));
        return walkPlan(order, wayThrough(halves), halves, batch, space, before, cut);
      });
      plan = least(plans, price);
    } else plan = walkPlan(order, order, shapes, batch, space);
    Object.assign(plan, { shapes, batch });
    return { ...plan, forward: 4 * forwardPeak(plan) };
  }
  function price(plan) {
    const total = plan.macs + plan.bytes / 4;
    return plan.cut ? total + div(total, 8) : total;
  }

  // plans.py
  function cheapest(shapes, batch) {
    const [, rows, cols] = merged(shapes);
    const plans = ORDERS.map((order) => cost(order, shapes, batch));
    const weights = 4 * sum(shapes.map(prod));
    const modest = (plan) => 10 * (plan.forward + weights) <= 11 * (4 * batch * rows + 4 * rows * cols);
    const best = least(plans, price);
    if (modest(best)) return best;
    const close = plans.filter((plan) => modest(plan) && 10 * price(plan) <= 11 * price(best));
    return least(close.length ? close : plans, price);
  }

  return { ranksOf, coresOf, cost, cheapest, prod, sum, range, least, Live, ORDERS };
})();
