// A table that is wider than its box says so: custom.css writes the hint for the class "scrolls".
function markTables() {
  for (const box of document.querySelectorAll(".tt-table")) {
    box.classList.toggle("scrolls", box.clientWidth > 0 && box.scrollWidth > box.clientWidth + 1);
  }
}
window.addEventListener("load", markTables);
window.addEventListener("resize", markTables);
document.addEventListener("toggle", markTables, true); // a folded table has no width until it is opened
