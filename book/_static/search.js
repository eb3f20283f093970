// The search finds British spellings, too, and leads to sections.

// The book is written in American spelling: a word that its index knows only in that spelling is looked up so.
const AMERICAN = [
  [/is(e|ed|es|er|ers|ing|ation|ations|able)$/, "iz$1"],
  [/ys(e|ed|es|ing)$/, "yz$1"],
  [/our(?=$|s|ed|ing|able|ful|less|ite|hood)/, "or"],
  [/^gre(?=y)/, "gra"],
  [/tre(s?)$/, "ter$1"],
  [/ogue(s?)$/, "og$1"],
  [/ence$/, "ense"],
  [/ell(ed|ing|er|ers)$/, "el$1"], // not "filled": "filed" is another word
];

function american(word, known) {
  const lower = word.toLowerCase();
  const spellings = AMERICAN.map(([british, ours]) => lower.replace(british, ours));
  return spellings.find((spelling) => spelling !== lower && known(spelling)) || word;
}

// The sections of a page that say all words, the shortest ones, as links below the page's own.
function sections(page, words) {
  const found = [...page.querySelectorAll("section[id]")].filter((section) => {
    const said = section.textContent.toLowerCase();
    return words.every((word) => said.includes(word)) && !section.querySelector("h1");
  });
  return found.filter((section) => !found.some((other) => other !== section && section.contains(other))).slice(0, 3);
}

document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return; // any page but the search page
  const { _parseQuery, makeSearchSummary } = Search;
  Search._parseQuery = (query) => {
    const stemmer = new Stemmer();
    const has = (table, stem) => Object.prototype.hasOwnProperty.call(table, stem);
    const known = (word) =>
      [Search._index.terms, Search._index.titleterms].some((table) => has(table, stemmer.stemWord(word)));
    return _parseQuery(query.replace(/\p{Letter}+/gu, (word) => american(word, known)));
  };
  Search.makeSearchSummary = (text, keywords, anchor) => {
    const box = document.createElement("div");
    box.append(makeSearchSummary(text, keywords, anchor) || "");
    if (anchor) return box;
    const page = new DOMParser().parseFromString(text, "text/html");
    page.querySelectorAll(".headerlink").forEach((link) => link.remove());
    const hits = sections(page, [...keywords].map((word) => word.toLowerCase()));
    if (!hits.length) return box;
    const list = box.appendChild(document.createElement("ul"));
    list.className = "search-sections";
    for (const section of hits) {
      const link = list.appendChild(document.createElement("li")).appendChild(document.createElement("a"));
      link.textContent = section.querySelector("h2, h3, h4").textContent;
      // The box has its place below the link to the page only after this function has returned.
      queueMicrotask(() => (link.href = `${box.closest("li").querySelector("a").href.split("#")[0]}#${section.id}`));
    }
    return box;
  };
});
