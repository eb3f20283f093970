"""The ledger of claims as a reader sees it: folded tables on the page, aligned text for nbval and for a terminal."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable

from IPython.display import display

from .claims import VERDICTS, Claim, Source, section
from .tables import Table

__all__ = ["Ledger", "show"]


class Ledger:
    """Rows as text, and as one folded table for each group of sources; `claims.js` adds filters where scripts run."""

    def __init__(self, sources: dict[str, Source], claims: Iterable[Claim]) -> None:
        """Take the sources and the rows to show."""
        self.sources, self.claims = sources, list(claims)

    def __repr__(self) -> str:
        """A table of text."""
        rows = [(claim.id, claim.verdict, f"“{claim.quote}” {claim.did} {_finding(claim)}") for claim in self.claims]
        return repr(Table(rows, ["claim", "verdict", "sentence, what we did, what we found"]))

    def _repr_html_(self) -> str:
        """One fold for each group."""
        groups = dict.fromkeys(self.sources[claim.source].group for claim in self.claims)
        return "\n".join(map(self._fold, groups))

    def _fold(self, group: str) -> str:
        rows = [claim for claim in self.claims if self.sources[claim.source].group == group]
        counted = Counter(claim.verdict for claim in rows)
        said = ", ".join(f"{counted[verdict]} {verdict}" for verdict in VERDICTS if counted[verdict])
        name = html.escape(group)
        heads = "".join(f'<th scope="col" role="columnheader">{head}</th>' for head in ("claim", "verdict", "finding"))
        return (
            f'<details class="tt-claims" data-group="{name}"><summary>{name}: {len(rows)} claims ({said})</summary>\n'
            f'<div class="tt-table" role="region" tabindex="0" aria-label="Table: claims of {name}">\n'
            '<table role="table">\n'
            f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead>\n<tbody role="rowgroup">\n'
            + "\n".join(map(self._row, rows))
            + "\n</tbody></table></div>\n</details>"
        )

    def _row(self, claim: Claim) -> str:
        source = self.sources[claim.source]
        name = html.escape(source.name, quote=False)
        by = f'<a href="{html.escape(source.address)}">{name}</a>' if source.address else name
        links = " · ".join(map(_link, claim.where))
        return (
            f'<tr role="row" id="claim-{claim.id.lower()}" data-verdict="{claim.verdict}">'
            '<th scope="row" role="rowheader">'
            f"<b>{claim.id}</b> “{_text(claim.quote)}” <small>{by}</small></th>"
            f'<td role="cell"><span aria-hidden="true">{VERDICTS[claim.verdict]}</span> {claim.verdict}</td>'
            f'<td role="cell"><i>{_text(claim.did)}</i> {_text(_finding(claim))} <small>{links}</small></td></tr>'
        )


def _finding(claim: Claim) -> str:
    return f"{claim.ours} Needed: {claim.needs}" if claim.needs else claim.ours


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _link(link: str) -> str:
    """A link as a notebook has it; in the book, `reading_aids` turns it into one to the page."""
    title, part = section(link)
    stem, _, anchor = link.partition("#")
    file = f"../{stem}.md" if "/" in stem else f"{stem}.ipynb"
    words = html.escape(f"{title.partition(':')[0]}, {part.title}", quote=False)
    return f'<a class="landing" href="{file}#{anchor}">{words}</a>'


def show(sources: dict[str, Source], claims: Iterable[Claim]) -> None:
    """Show rows below the cell."""
    display(Ledger(sources, claims))
