// Filters for the ledger of claims: by group, by verdict, by word. Without scripts the folds below are plain tables.
document.addEventListener("DOMContentLoaded", () => {
  const folds = [...document.querySelectorAll("details.tt-claims")];
  if (!folds.length) return; // any other page
  const rows = folds.flatMap((fold) => [...fold.querySelectorAll("tbody tr")]);
  const form = document.createElement("form");
  form.className = "tt-claims-filter";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter the claims");

  const field = (name, control) => {
    const label = form.appendChild(document.createElement("label"));
    label.append(name, control);
    return control;
  };
  const menu = (name, values) => {
    const select = document.createElement("select");
    for (const value of ["all", ...values]) select.append(new Option(value, value));
    return field(name, select);
  };
  const inOrder = ["confirmed", "partly", "refuted", "not reproducible", "not testable here", "unverified"];
  const group = menu("Group", folds.map((fold) => fold.dataset.group));
  const verdict = menu("Verdict", inOrder.filter((name) => rows.some((row) => row.dataset.verdict === name)));
  const word = field("Word", document.createElement("input"));
  word.type = "search";
  const clear = form.appendChild(document.createElement("button"));
  clear.type = "reset";
  clear.textContent = "Show all";
  const said = form.appendChild(document.createElement("p"));
  said.setAttribute("role", "status"); // read aloud when it changes

  function apply() {
    const words = word.value.toLowerCase().split(/\s+/).filter(Boolean);
    const narrowed = group.value !== "all" || verdict.value !== "all" || words.length > 0;
    let shown = 0;
    for (const fold of folds) {
      let here = 0;
      for (const row of fold.querySelectorAll("tbody tr")) {
        const text = row.textContent.toLowerCase();
        row.hidden =
          (group.value !== "all" && group.value !== fold.dataset.group) ||
          (verdict.value !== "all" && verdict.value !== row.dataset.verdict) ||
          !words.every((part) => text.includes(part));
        here += !row.hidden;
      }
      fold.hidden = here === 0;
      fold.open = narrowed && here > 0;
      shown += here;
    }
    said.textContent = `${shown} of ${rows.length} claims`;
  }

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply)); // the fields are empty only after this event
  folds[0].before(form);
  apply();

  // A link to one row opens the fold that it is in.
  function reveal() {
    const row = rows.find((one) => `#${one.id}` === location.hash);
    if (!row) return;
    row.closest("details").open = true;
    row.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  reveal();
});
