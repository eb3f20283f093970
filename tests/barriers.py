"""What keeps readers out of a page, looked for by axe in a browser. Only what it calls serious or critical counts."""

from pathlib import Path

import axe_playwright_python

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
# The letters of a formula and the words of a program are thousands of elements; looking at each would take minutes.
PLAIN = """document.querySelectorAll("pre").forEach(e => { e.textContent = e.textContent });
document.querySelectorAll("mjx-container").forEach(e => e.replaceWith("x"))"""
# A fold that fades in has pale letters half way, as everything has whose colors change: what moves is stopped first.
STILL = "document.getAnimations().forEach(moving => moving.cancel())"
# Without its preload, which asks for the imports of a style sheet beside the page instead of beside the sheet.
RUN = """options => axe.run({preload: false, resultTypes: ["violations"], ...options})
.then(found => found.violations.filter(v => ["serious", "critical"].includes(v.impact))
.map(v => `${v.id}: ${v.nodes[0].html.slice(0, 200)} (${v.nodes.length})`))"""
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
ALL_ELSE = {"rules": {"color-contrast": {"enabled": False}}}
# Hides what looks like something known, and returns the looks that are new. A look is what decides how hard words are
# to tell from what lies behind them: the colors and letters that an element ends up with, and the backgrounds of all
# above it, whatever a style sheet chooses them by (a number among others, an id, what stands before); the names and
# classes of all of these, because by them things lie upon others; and of its words only whether there are any. What
# holds something of a new look stays.
ALIKE = """known => {
  const seen = new Set(known), fresh = [], hidden = [];
  const hash = text => {
    let a = 0xdeadbeef, b = 0x41c6ce57;
    for (let i = 0; i < text.length; i++) {
      a = Math.imul(a ^ text.charCodeAt(i), 2654435761);
      b = Math.imul(b ^ text.charCodeAt(i), 1597334677);
    }
    return 4294967296 * (2097151 & (b ^ (a >>> 13))) + ((a ^ (b >>> 16)) >>> 0);
  };
  const VALUES = ["class", "style", "role", "type", "tabindex", "color", "bgcolor", "fill", "open", "aria-disabled"];
  const BEHIND = ["backgroundColor", "backgroundImage", "backgroundClip", "opacity", "filter", "mixBlendMode",
    "position", "zIndex", "transform", "clipPath"];
  const LETTERS = ["color", "webkitTextFillColor", "webkitTextStroke", "textShadow", "fontSize", "fontWeight"];
  const PSEUDO = ["content", "position", ...BEHIND];
  const computed = (e, what, part) => { const all = getComputedStyle(e, part); return what.map(one => all[one]); };
  const drawn = (e, part) => getComputedStyle(e, part).content === "none" ? [] : computed(e, PSEUDO, part);
  const name = e => e.tagName + [...e.attributes].filter(a => a.name !== "data-alike")
    .map(a => VALUES.includes(a.name) ? `${a.name}=${a.value}` : a.name).sort().join(" ");
  const own = e => [name(e), ...computed(e, BEHIND), ...drawn(e, "::before"), ...drawn(e, "::after")].join("|");
  const words = e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join("").length;
  const walk = (parent, path) => [...parent.children].map(e => {
    if (!e.checkVisibility()) return true;
    const here = hash(path + own(e));
    const look = hash([here, ...computed(e, LETTERS), Math.min(2, words(e))].join("|"));
    const within = walk(e, here), old = seen.has(look);
    if (!old) seen.add(look), fresh.push(look);
    else if (within) hidden.push(e);
    return old && within;
  }).every(Boolean);
  walk(document.body, hash(own(document.documentElement) + own(document.body)));
  hidden.forEach(e => e.setAttribute("data-alike", ""));
  return fresh;
}"""
AGAIN = "document.querySelectorAll('[data-alike]').forEach(e => e.removeAttribute('data-alike'))"
# What hides columns behind a scroll bar. A table of results may, if the name and the result are in sight.
CLIPPED = """[...document.querySelectorAll("article :is(pre, .pst-scrollable-table-container, table, .tt-table)")]
.filter(e => {
  if (!e.clientWidth || e.scrollWidth <= e.clientWidth + 1) return false;
  if (!e.matches(".tt-table")) return true;
  const second = e.querySelector("thead th:nth-child(2)") || e.querySelector("th");
  return second.getBoundingClientRect().right > e.getBoundingClientRect().right + 1;
})
.map(e => `${e.tagName} ${e.className} ${e.clientWidth} < ${e.scrollWidth}: ${e.textContent.trim().slice(0, 80)}`)"""


def prepare(page) -> None:
    """Leave out what axe need not read, and load axe."""
    page.evaluate(PLAIN)
    page.add_style_tag(content="[data-alike] { display: none !important }")
    page.evaluate(AXE)


def found(page) -> list[str]:
    """Every barrier of a prepared page but pale words."""
    page.evaluate(STILL)
    return page.evaluate(RUN, ALL_ELSE)


def pale(page, known: set[int]) -> list[str]:
    """Words that are hard to tell from what lies behind them, where no page before had any that look the same.

    This one rule takes nine tenths of axe's time, and most of what stands on a page stands on all.
    """
    page.evaluate(STILL)
    known.update(page.evaluate(ALIKE, sorted(known)))
    pale = page.evaluate(RUN, CONTRAST)
    page.evaluate(AGAIN)
    return pale


def of_small_page(page) -> list[str]:
    """Every barrier, pale words among them, of a page that is small enough to be read as it is."""
    page.evaluate(AXE)
    page.evaluate(STILL)
    return page.evaluate(RUN, {})
