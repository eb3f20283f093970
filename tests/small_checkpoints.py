"""Small checkpoints on disk for the tests of the audit."""

import json
import math

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from strategies import gaussian


def noise(m, n, seed=0):
    return gaussian((m, n), seed, torch.float32)


def waves(m=512, n=96):
    """Smooth along the rows: trains win."""
    time = torch.linspace(0, 3, m).unsqueeze(1)
    return time * (time * torch.linspace(1, 6, n)).sin()


def falling(m=256, n=96):
    """Singular values that fall by halves: SVD wins, and the order of the rows means nothing."""
    u, _, v = torch.linalg.svd(noise(m, n), full_matrices=False)
    return (u * 0.5 ** torch.arange(n)) @ v


def small_model():
    """One matrix of each fate, and what has no row."""
    return {
        "wpe.weight": waves(),
        "h.0.attn.q_proj.weight": noise(64, 96, 1),
        "h.0.mlp.fc1.weight": falling(),
        "conv.weight": noise(32, 3 * 9, 2).reshape(32, 3, 3, 3),
        "token_type.emb.weight": noise(2, 96, 3),
        "norm.weight": torch.ones(96),
        "codes": torch.ones(16, 16, dtype=torch.int8),
    }


def saved(tensors, folder, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file({key: one.contiguous() for key, one in tensors.items()}, folder / name)
    return folder / name


def sharded(tensors, folder):
    """Two shards and their list."""
    names = list(tensors)
    where = {name: f"model-0000{1 + k % 2}-of-00002.safetensors" for k, name in enumerate(names)}
    for shard in set(where.values()):
        saved({name: tensors[name] for name in names if where[name] == shard}, folder, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def as_gguf(tensors, path, kind=None):
    """A GGUF file; ``kind`` packs the matrices."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_uint32("llama.block_count", 1)
    for name, tensor in tensors.items():
        values = np.ascontiguousarray(tensor.numpy())
        if kind is not None and tensor.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def alike(one, other):
    """True if two results are the same but for the rounding of products, which depends on where numbers lie."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6) if isinstance(one, float) else one == other
