"""The language-model chapter on another model: what a reader gets with TTREF_LM, tried on a tiny random GPT-2."""

import os
import re

import tiny_gpt2
from nbclient import NotebookClient

from book.tools import notebooks, rules
from book.tools.execute import QUIET


def test_the_embedding_chapter_runs_on_a_gpt2(tmp_path):
    folder = tiny_gpt2.write(tmp_path / "gpt2-of-the-test", positions=512, width=48)
    (path,) = (path for path in notebooks.chapters() if path.stem == "03_gpt2_embeddings")
    nb = notebooks.read(path)
    client = NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute(env=os.environ | QUIET | {"TTREF_LM": str(folder)})
    printed = "".join(
        output.text for cell in rules.code_cells(nb) for output in cell.outputs if output.output_type == "stream"
    )
    assert re.search(r"token table  300 x 48, \d+\.\d% of the model", printed)
    assert "padded       48 -> 64 = 2^6" in printed
    assert "head         tied to the table" in printed
    assert "SmolLM2" not in printed
