"""Two collections with judgments, their vectors by MiniLM, and as many vectors as wanted that are like real ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from book.workbook.store import cache_folder
from ttref import files

from ..embeddings import data
from ..partial_tensorization.tasks import batches_of, minilm

LENGTH = 256  # tokens of a text that are read, as MiniLM's makers advise
LAYERS = (4, 5, 6)  # whose mean states are the views of a text; the last is the sentence vector
SENTENCES = 4000  # of WikiText-2, beside the two collections, to mix vectors from
NEIGHBORS, APART = 16, 0.25  # of a mixture: among how many neighbors the second parent is, and how far it is shaken
KIND = "vectors of texts"


class Collection(NamedTuple):
    """Documents, queries and judgments.

    Attributes:
        name: Of the collection.
        documents: Views of each, ``(n, views, dim)``, every one of norm 1.
        queries: Likewise.
        gains: What each document is worth to each query, ``(queries, n)``; 0 if nothing.
    """

    name: str
    documents: Tensor
    queries: Tensor
    gains: Tensor


def texts_of(path: Path) -> list[str]:
    """The texts (fields ``.W``) of a file in the format of SMART, in its order, each on one line."""
    entries = re.split(r"^\.I +\d+\s*$", path.read_text(encoding="latin-1"), flags=re.M)[1:]
    return [" ".join(re.split(r"^\.W\s*$", entry, flags=re.M)[1].split()) for entry in entries]


def cranfield(folder: Path) -> tuple[list[str], list[str], Tensor]:
    """Documents, queries and gains ``(queries, documents)``: 4 for a complete answer down to 1 for minimum interest.

    Judgments count queries by their order in the file. A grade of -1 stands for no interest.
    """
    folder = folder / "cranfield"
    documents, queries = texts_of(folder / "cran.all.1400"), texts_of(folder / "cran.qry")
    gains = torch.zeros(len(queries), len(documents))
    for line in (folder / "cranqrel").read_text().splitlines():
        if line.strip():
            query, document, grade = map(int, line.split())
            if grade > 0:
                gains[query - 1, document - 1] = 5 - grade
    return documents, queries, gains


@torch.no_grad()
def encoded(texts: Sequence[str]) -> Tensor:
    """Views of texts, ``(texts, views, dim)``: means of the states after some layers, of norm 1."""
    batches, places = batches_of(list(texts), LENGTH)
    model, found = minilm().model, []
    for batch in batches:
        states = model(input_ids=batch, output_hidden_states=True).hidden_states
        found.append(torch.stack([states[layer].mean(1) for layer in LAYERS], 1))
    return normalize(torch.cat(found), dim=2)[places]


def vectors(texts: Sequence[str]) -> Tensor:
    """The same, kept in the user's cache folder: a thousand abstracts take a minute."""
    told = repr((list(texts), LENGTH, LAYERS, minilm().name)).encode()
    folder = cache_folder() / "retrieval"
    path = folder / f"{hashlib.sha256(told).hexdigest()[:24]}.safetensors"

    def restore(tensors: dict[str, Tensor], header: dict) -> Tensor:
        files.check_header(header, {})
        if tensors["vectors"].shape[:2] != (len(texts), len(LAYERS)):
            raise ValueError("it is of other texts")
        return tensors["vectors"]

    try:
        return files.read(path, KIND, restore)
    except FileNotFoundError:
        pass
    except ValueError as error:
        print(f"{error}: it is made anew", flush=True)
    made = encoded(texts)
    folder.mkdir(mode=0o700, exist_ok=True)
    files.write(path, KIND, {"vectors": made}, {}, restore)
    return made


def medlars(folder: Path) -> tuple[list[str], list[str], Tensor]:
    """Documents, queries and gains of 1."""
    documents, queries, relevant = data.medlars(folder)
    return documents, queries, relevant.float()


READERS = {"MEDLARS": medlars, "Cranfield": cranfield}


def collection(name: str, folder: Path, first: int | None = None) -> Collection:
    """A collection with its vectors; or its first documents, and the queries to which one of them is relevant."""
    documents, queries, gains = READERS[name](folder)
    gains = gains[:, :first]
    asked = (gains > 0).any(1)
    queries = [query for query, kept in zip(queries, asked.tolist(), strict=True) if kept]
    return Collection(name, vectors(documents[:first]), vectors(queries), gains[asked])


def sentences(folder: Path) -> Tensor:
    """Sentence vectors of WikiText-2's validation text, ``(SENTENCES, dim)``."""
    return vectors(data.prose_sentences("\n".join(data.wikitext(folder)), SENTENCES))[:, -1]


def mixtures(real: Tensor, count: int, seed: int = 0) -> Tensor:
    """Vectors like real ones, ``(count, dim)`` of norm 1.

    Each lies between a real vector and one of its 16 nearest, at a random place, and is moved by a quarter of the
    difference of two other real vectors: noise with the covariance of the data, because noise that is equal in all
    directions would be held against every projection.
    """
    draw = torch.Generator().manual_seed(seed)
    near = torch.cat([(part @ real.mT).topk(NEIGHBORS + 1, dim=1).indices[:, 1:] for part in real.split(1024)])
    first, one, other = torch.randint(len(real), (3, count), generator=draw)
    second = near[first, torch.randint(near.shape[1], (count,), generator=draw)]
    place = torch.rand(count, 1, generator=draw)
    return normalize(torch.lerp(real[first], real[second], place) + APART * (real[one] - real[other]), dim=1)
