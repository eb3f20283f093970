"""Texts and tables of the embedding study, for scoring, counting and encoding."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from book.workbook import sources
from book.workbook.console import quiet

WINDOWS, LENGTH = 8, 128  # of WikiText-2's second half
PAIRS = 12  # of MRPC


def wikitext(folder: Path) -> tuple[str, str]:
    """WikiText-2's validation text as it is (" @-@ " and "<unk>" stay), cut in two at the line nearest the middle."""
    text = (folder / "wikitext2" / "valid.txt").read_text(encoding="utf-8-sig")
    cut = text.index("\n", len(text) // 2) + 1
    return text[:cut], text[cut:]


def mrpc(folder: Path, pairs: int) -> list[str]:
    """Both sentences of ``pairs`` pairs, evenly spread."""
    lines = (folder / "mrpc" / "msr_paraphrase_train.txt").read_text(encoding="utf-8-sig").splitlines()
    return [part for k in range(pairs) for part in lines[k * len(lines) // pairs].split("\t")[3:5]]


def sst2(folder: Path) -> str:
    """The training sentences of SST-2, for counting tokens only."""
    lines = (folder / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return "\n".join(line.split("\t")[0] for line in lines)


def prose_sentences(text: str, count: int) -> list[str]:
    """Sentences of 6 to 40 words, evenly spread."""
    found = [part.strip() for part in re.split(r"(?<=[.!?]) +|\n+", text)]
    found = [part for part in found if 6 <= len(part.split()) <= 40]
    return [found[k * len(found) // count] for k in range(count)]


def token_ids(tokenizer, text: str) -> Tensor:
    with quiet():
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def windows(tokenizer, text: str, *, count: int = WINDOWS, length: int = LENGTH) -> list[Tensor]:
    """``count`` windows of ``length`` tokens, evenly spread over a text."""
    ids = token_ids(tokenizer, text)
    return [ids[k * len(ids) // count :][:length] for k in range(count)]


def token_counts(tokenizer, rows: int, folder: Path) -> Tensor:
    """How often each token comes in WikiText-2's first half, SST-2's training sentences and scikit-learn's prose.

    None of it is scored.
    """
    text = "\n".join((wikitext(folder)[0], sst2(folder), sources.load_prose()))
    return torch.bincount(token_ids(tokenizer, text), minlength=rows)


def frequency_orders(counts: Tensor) -> dict[str, Tensor]:
    """Row numbers, frequent first: by id (a BPE id is the age of its merge), and by counts with ties by id."""
    rows = len(counts)
    return {"id": torch.arange(rows), "counted": counts.argsort(descending=True, stable=True)}


def medlars(folder: Path) -> tuple[list[str], list[str], Tensor]:
    """Documents, queries, and the relevance of each document to each query (bool, queries x documents)."""

    def texts(name: str) -> list[str]:
        raw = (folder / "med" / name).read_text(encoding="latin-1")
        found = re.findall(r"^\.I +\d+\s+\.W\s(.*?)(?=^\.I +\d+\s+\.W|\Z)", raw, flags=re.M | re.S)
        return [" ".join(text.split()) for text in found]

    documents, queries = texts("MED.ALL"), texts("MED.QRY")
    relevant = torch.zeros(len(queries), len(documents), dtype=torch.bool)
    for line in (folder / "med" / "MED.REL").read_text().splitlines():
        if line.strip():
            query, _, document, _ = map(int, line.split()[:4])
            relevant[query - 1, document - 1] = True
    return documents, queries, relevant


def gpt2_matrices(folder: Path) -> dict[str, Tensor]:
    """GPT-2's matrices at hand, (out, in): the positions, and the attention outputs of the first six blocks."""
    import numpy as np

    with np.load(folder / "gpt2" / "gpt2_small_part.npz") as arrays:
        found = {"positions": torch.from_numpy(arrays["wpe"]).float()}
        for block in range(6):
            stored = torch.from_numpy(arrays[f"blocks_{block}_attn_c_proj_w"]).float()
            found[f"attention output, block {block}"] = stored.mT.contiguous()
    return found


def position_tables(folder: Path) -> dict[str, Tensor]:
    """MiniLM's and GPT-2's learned position tables, and the sinusoidal one of the same size as GPT-2's."""
    gpt2 = gpt2_matrices(folder)["positions"]
    place = torch.arange(1024, dtype=torch.float64).unsqueeze(1)
    pace = 10_000 ** (-torch.arange(0, 768, 2, dtype=torch.float64) / 768)
    waves = torch.stack(((place * pace).sin(), (place * pace).cos()), -1).flatten(1).float()
    minilm = sources.load_encoder().model.embeddings.position_embeddings.weight.detach()
    return {"MiniLM": minilm, "GPT-2": gpt2, "sinusoidal": waves}
