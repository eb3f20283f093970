"""Whole rows of a table clustered: the centers, their bytes, weights and files."""

import math

import pytest
import torch
from sklearn.cluster import KMeans
from strategies import gaussian

from ttref import Baseline
from ttref.clusters import cluster_rows
from ttref.files import write


def table(rows=60, width=5, seed=0, dtype=torch.float32):
    """Rows around eight points."""
    points = 4 * gaussian((8, width), seed)
    return (points.repeat(-(-rows // 8), 1)[:rows] + gaussian((rows, width), seed + 1)).to(dtype)


def test_each_row_is_the_nearest_center_and_each_center_a_mean():
    w = table()
    made = cluster_rows(w, 7, seed=3)
    book, codes = made.stored["codebooks"][0], made.stored["codes"][:, 0].long()
    assert torch.equal(made.approximation, book[codes])
    assert torch.equal(torch.cdist(w, book).argmin(1), codes)
    for k in range(7):
        torch.testing.assert_close(book[k], w[codes == k].mean(0))
    twin = KMeans(7, init="random", n_init=1, max_iter=25, random_state=3).fit(w.numpy())
    assert ((made.approximation - w) ** 2).sum().item() == pytest.approx(twin.inertia_, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("centers, bits", [(1, 1), (2, 1), (3, 2), (16, 4), (17, 5), (300, 9)])
@pytest.mark.parametrize("integers", [None, 8])
def test_bytes_are_codes_and_codebook_and_a_file_keeps_them(centers, bits, integers, dtype, path):
    w = table(400, dtype=dtype)
    made = cluster_rows(w, centers, bits=integers)
    entry = 1 if integers else w.element_size()
    assert made.bits == bits
    assert made.nbytes == math.ceil(400 * bits / 8) + centers * (5 * entry + (2 if integers else 0))
    assert made.params == 400 + centers * (5 + (1 if integers else 0))
    assert made.approximation.dtype == dtype and made.approximation.shape == w.shape
    made.save(path)
    loaded = Baseline.load(path)
    assert torch.equal(loaded.approximation, made.approximation) and loaded.nbytes == made.nbytes


def test_integers_cost_little():
    w = table()
    plain, rounded = cluster_rows(w, 8), cluster_rows(w, 8, bits=8)
    book = plain.stored["codebooks"][0]
    gap = (rounded.approximation - plain.approximation).abs()
    assert (gap <= book.abs().max() / 250).all() and gap.max() > 0


def test_weights_draw_the_centers():
    """Rows without weight are not missed; a row of large weight is met."""
    w = table(40)
    weight = torch.ones(40)
    weight[5] = 1e6
    made = cluster_rows(w, 4, weight=weight)
    assert (made.approximation[5] - w[5]).norm() < 1e-3 < (cluster_rows(w, 4).approximation[5] - w[5]).norm()
    half = torch.cat((torch.ones(20), torch.zeros(20)))
    alone = cluster_rows(w[:20], 20).approximation
    torch.testing.assert_close(alone, w[:20], rtol=0, atol=0)
    seen = cluster_rows(w, 20, weight=half, seed=1).approximation
    missed = ((seen - w).square().sum(1) * half).sum()
    assert missed < ((cluster_rows(w, 20, seed=1).approximation - w).square().sum(1) * half).sum()


def test_as_many_centers_as_different_rows_lose_nothing():
    w = table(6).repeat(3, 1)
    made = cluster_rows(w, 6)
    assert made.relative_error(w) == 0 and made.stored["codebooks"].shape == (1, 6, 5)


def test_the_seed_decides():
    w = table()
    one, two, other = (cluster_rows(w, 5, seed=seed).approximation for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_bad_input_is_refused():
    w = table(10)
    with pytest.raises(ValueError, match="11 centers are more than the 10 rows"):
        cluster_rows(w, 11)
    with pytest.raises(ValueError, match="centers must be at least 1"):
        cluster_rows(w, 0)
    with pytest.raises(ValueError, match="bits must be 8"):
        cluster_rows(w, 2, bits=4)
    with pytest.raises(ValueError, match="weight has shape"):
        cluster_rows(w, 2, weight=torch.ones(5))
    for weight in (-torch.ones(10), torch.zeros(10)):
        with pytest.raises(ValueError, match="at least 0 everywhere"):
            cluster_rows(w, 2, weight=weight)
    with pytest.raises(ValueError, match="NaN"):
        cluster_rows(w * torch.nan, 2)
    with pytest.raises(TypeError, match="centers must be an integer"):
        cluster_rows(w, 2.5)


def test_headers_that_do_not_fit_are_refused(path):
    """Only codes with scales of rows are odd; codes have a shape and bits, factors have none."""
    made = cluster_rows(table(), 5)
    with pytest.raises(ValueError, match="its header says odd, which only codes with scales of rows can be"):
        Baseline(made.name, made.stored, made.dtype, made.bits, odd=True).save(path)
    factors = {"left": torch.ones(2, 1), "right": torch.ones(1, 2)}
    with pytest.raises(ValueError, match="its header says odd"):
        Baseline("factors", factors, torch.float32, odd=True).save(path)
    header = {"name": "forged", "dtype": "float32", "bits": 4, "shape": None, "odd": False}
    codes = {"codes": torch.zeros(2, dtype=torch.uint8), "scales": torch.ones(2, 1).bfloat16()}
    for tensors, more, message in (
        (codes, {}, "its header has codes of 4 bits and shape None"),
        (codes, {"bits": None}, "its header has None bits, and it holds codes, scales"),
        (factors, {}, "its header has 4 bits, and it holds left, right"),
        (factors | codes, {"bits": None}, "its header has None bits, and it holds left, right, codes, scales"),
    ):
        with pytest.raises(ValueError, match=message):
            write(path, "Baseline", tensors, header | more, Baseline._restore)
    assert not path.exists()


def test_a_code_without_center_is_refused_in_a_file(path):
    made = cluster_rows(table(), 5)
    stored = {**made.stored, "codes": made.stored["codes"].clone()}
    stored["codes"][0] = 6
    with pytest.raises(ValueError, match="5 centers, and the code 6"):
        Baseline(made.name, stored, made.dtype, made.bits).save(path)
