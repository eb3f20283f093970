// The rank explorer: choose an object, modes and a rank; see sizes and costs computed, and errors where recorded.
// The state stands in the address, behind #, and is restored from it: object, modes, rank and vectors.
document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("tt-ranks");
  if (!place) return;
  const { MOST, OWN, highest, stored, recordOf, ownForm, fault, start, address, numbersIn, parsed } = RankState;
  const { all, summary, described, element } = RankResults;
  const objects = [...JSON.parse(document.getElementById("tt-ranks-records").textContent), OWN];

  const form = element("form", { class: "tt-ranks-choose", "aria-label": "Choose a train" });
  function field(name, control) {
    control.id = `tt-ranks-${form.children.length}`;
    form.append(element("div", {}, element("label", { for: control.id }, name), control));
    return control;
  }
  const typed = { type: "text", inputmode: "numeric", autocomplete: "off" };
  const objectMenu = field("Object", element("select"));
  const formMenu = field("Written as", element("select"));
  const rowsField = field("Row modes", element("input", typed));
  const colsField = field("Column modes", element("input", typed));
  const slider = field("Rank", element("input", { type: "range", min: 1 }));
  const exact = field("Rank, typed", element("input", { type: "number", min: 1 }));
  const vectorsField = field("Vectors at once", element("input", { type: "number", min: 1, max: MOST.vectors }));
  const trouble = element("p", { role: "alert", class: "tt-ranks-trouble" });
  const said = element("p", { role: "status", class: "tt-ranks-said" });
  const results = element("div");
  objects.forEach((object) => objectMenu.append(new Option(object.name, object.id)));
  place.replaceChildren(form, trouble, said, results);

  let state = start(objects[0]);
  let later = 0;
  const largest = (rank) => Math.max(...[].concat(rank));
  // What somebody is typing is not rewritten under their hands.
  function fill(control, value) {
    if (document.activeElement !== control) control.value = value;
  }
  function show(wrong = "") {
    const { object, form, rank, vectors } = state;
    const found = stored(object, form, rank);
    const record = recordOf(object, form, found.ranks);
    objectMenu.value = object.id;
    const options = object.forms.map((one) => new Option(`${one.name}: ${described(one)}`, one.id));
    formMenu.replaceChildren(...options, new Option("modes of your own", ""));
    formMenu.value = form.id;
    for (const control of [rowsField, colsField]) control.parentElement.hidden = form.id !== "";
    fill(rowsField, (form.rows || []).join(" "));
    fill(colsField, (form.cols || form.modes).join(" "));
    rowsField.placeholder = object.use === "table" ? "none: a train a row" : "";
    slider.max = exact.max = highest(form);
    slider.value = largest(rank);
    fill(exact, slider.value);
    vectorsField.parentElement.hidden = object.use === "table";
    fill(vectorsField, vectors);
    trouble.textContent = wrong;
    trouble.hidden = !wrong;
    const focused = results.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    results.replaceChildren(...all(state, found, record, place.clientWidth));
    if (focused) results.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    clearTimeout(later); // a slider that moves is not read aloud at each step
    later = setTimeout(() => (said.textContent = summary(state, found, record)), 250);
  }

  const limited = (control, most) => Math.min(most, Math.max(1, Math.round(Number(control.value)) || 1));
  // Take over what was chosen; returns what is wrong with it.
  function take(control) {
    const { object, form, vectors } = state;
    if (control === objectMenu) {
      state = start(objects.find((one) => one.id === control.value), undefined, vectors);
    } else if (control === formMenu) {
      const cut = [form, ...object.forms].find((one) => one.kind === "matrix");
      const own = cut ? ownForm(object, cut.rows, cut.cols) : ownForm(object, [], form.modes);
      state = start(object, object.forms.find((one) => one.id === control.value) || own, vectors);
    } else if (control === vectorsField) {
      state.vectors = limited(control, MOST.vectors);
    } else if (control === slider || control === exact) {
      state.rank = limited(control, highest(form));
    } else {
      const next = ownForm(object, numbersIn(rowsField.value), numbersIn(colsField.value));
      const wrong = fault(object, next);
      if (wrong) return wrong;
      state = { ...state, form: next, rank: Math.min(largest(state.rank), highest(next)) };
    }
    return "";
  }
  form.addEventListener("input", (event) => show(take(event.target)));
  form.addEventListener("change", () => {
    if (address(state) !== location.hash) history.pushState(null, "", address(state));
  });
  form.addEventListener("submit", (event) => event.preventDefault());

  function restore() {
    if (location.hash && !location.hash.includes("=")) return; // the name of a section
    const [next, wrong] = location.hash ? parsed(location.hash, objects) : [start(objects[0]), []];
    state = next;
    show(wrong.length ? `Not found: ${wrong.join("; ")}. Shown instead: ${state.object.name}.` : "");
  }
  window.addEventListener("hashchange", restore);
  window.addEventListener("resize", () => show(trouble.textContent));
  show();
  restore();
});
