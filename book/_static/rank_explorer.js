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
  const trouble = element("p", { role: "alert", class: "tt-ranks-trouble", id: "tt-ranks-trouble" });
  const said = element("p", { role: "status", class: "tt-ranks-said" });
  const results = element("div");
  objects.forEach((object) => objectMenu.append(new Option(object.name, object.id)));
  place.replaceChildren(form, trouble, said, results);

  let state = start(objects[0]);
  let wrong = ""; // with the modes that were typed: they and this sentence stay until they fit or others are chosen
  let typing = null; // what somebody is typing is not rewritten under their hands
  let later = 0;
  const largest = (rank) => Math.max(...[].concat(rank));
  function fill(control, value) {
    if (control !== typing) control.value = value;
  }
  function fillFields() {
    const { form, rank, vectors } = state;
    for (const control of [rowsField, colsField]) {
      if (wrong) {
        control.setAttribute("aria-invalid", "true");
        control.setAttribute("aria-describedby", trouble.id);
        continue;
      }
      control.removeAttribute("aria-invalid");
      control.removeAttribute("aria-describedby");
      fill(control, ((control === rowsField ? form.rows : form.cols || form.modes) || []).join(" "));
    }
    slider.value = largest(rank);
    fill(exact, slider.value);
    fill(vectorsField, vectors);
  }
  function show(missing = "") {
    const { object, form, rank } = state;
    const found = stored(object, form, rank);
    const record = recordOf(object, form, found.ranks);
    objectMenu.value = object.id;
    const options = object.forms.map((one) => new Option(`${one.name}: ${described(one)}`, one.id));
    formMenu.replaceChildren(...options, new Option("modes of your own", ""));
    formMenu.value = form.id;
    for (const control of [rowsField, colsField]) control.parentElement.hidden = form.id !== "";
    rowsField.placeholder = object.use === "table" ? "none: a train a row" : "";
    slider.max = exact.max = highest(form);
    vectorsField.parentElement.hidden = object.use === "table";
    fillFields();
    trouble.textContent = wrong || missing;
    trouble.hidden = !trouble.textContent;
    const focused = results.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    results.replaceChildren(...all(state, found, record, place.clientWidth));
    if (focused) results.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    clearTimeout(later); // a slider that moves is not read aloud at each step
    later = setTimeout(() => (said.textContent = summary(state, found, record)), 250);
  }

  const limited = (control, most) => Math.min(most, Math.max(1, Math.round(Number(control.value)) || 1));
  // Take over what was chosen, if nothing is wrong with it.
  function take(control) {
    const { object, form, vectors } = state;
    if (control === objectMenu || control === formMenu) wrong = "";
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
      wrong = fault(object, next);
      if (!wrong) state = { ...state, form: next, rank: Math.min(largest(state.rank), highest(next)) };
    }
  }
  form.addEventListener("input", (event) => {
    typing = event.target;
    take(typing);
    show();
  });
  form.addEventListener("change", () => {
    typing = null;
    fillFields(); // what was typed may be empty, or more than there is
    if (address(state) !== location.hash) history.pushState(null, "", address(state));
  });
  form.addEventListener("submit", (event) => event.preventDefault());

  function restore() {
    if (location.hash && !location.hash.includes("=")) return; // the name of a section
    const [next, unread] = location.hash ? parsed(location.hash, objects) : [start(objects[0]), []];
    [state, wrong, typing] = [next, "", null];
    show(unread.length ? `Not found: ${unread.join("; ")}. Shown instead: ${state.object.name}.` : "");
  }
  window.addEventListener("hashchange", restore);
  window.addEventListener("resize", () => show(trouble.textContent));
  show();
  restore();
});
