"""What bits, components and the rotation do to the documents that are found."""

import pytest
import torch
from corpora import asked, recall, scores, texts

from ttref.retrieval import TTIndex

X = texts(1500, 64, seed=3)
Q = asked(X, 120, seed=4, noise=0.6)


def share(*args, x=X, q=Q, k=10, metric="cosine", **how):
    return recall(TTIndex(*args, metric=metric, **how).fit(x).kneighbors(q, k)[1], x, q, metric)


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_more_bits_find_more(metric):
    x = X if metric == "cosine" else X * (0.5 + torch.rand(len(X), 1, generator=torch.Generator().manual_seed(0)))
    found = [share(64, bits=bits, x=x, metric=metric) for bits in (1, 2, 4, 8, 32)]
    assert found == sorted(found) and found[0] < found[2] - 0.1 and found[2] > 0.85 and found[-1] == 1


@pytest.mark.parametrize("bits", [4, 32])
def test_more_components_find_more(bits):
    found = [share(r, bits=bits) for r in (8, 16, 32, 64)]
    assert found == sorted(found) and found[0] < found[-1] - 0.2


def test_a_wider_train_of_shared_cores_finds_more():
    found = [share(48, bits=8, shape=(8, 8), rank=rank) for rank in (2, 4, None)]
    assert found == sorted(found) and found[-1] > found[0] + 0.1
    assert abs(found[-1] - share(48, bits=8)) < 0.03


def test_the_rotation_makes_few_bits_work():
    """Principal components share a document's variance unevenly: most of their bits say little."""
    turned = [share(64, bits=1, random_state=seed) for seed in range(3)]
    assert min(turned) > share(64, bits=1, rotate=False) + 0.02


def test_a_common_mean_costs_nothing():
    """It adds the same to all documents of a query, so it is stored once and not in the codes."""
    near = texts(800, 64, seed=5, mean=0.0)
    far = near + 5 * texts(1, 64, seed=6, mean=0.0)
    q = asked(near, 60, seed=7)
    one = TTIndex(64, bits=2, metric="inner_product").fit(near)
    other = TTIndex(64, bits=2, metric="inner_product").fit(far)
    error = [(i.dense() - x).norm() / near.norm() for i, x in ((one, near), (other, far))]
    assert error[1] < 1.1 * error[0]
    assert recall(other.kneighbors(q, 10)[1], far, q, "inner_product") > 0.4


def test_the_error_is_that_of_the_bits():
    """Against numbers of the textbook: 1 - the distortion of a Gaussian in 1, 2 and 4 bits is the squared cosine."""
    x = torch.randn(300, 256, generator=torch.Generator().manual_seed(0))
    for bits, distortion in ((1, 0.3634), (2, 0.1188), (4, 0.01154)):
        index = TTIndex(None, bits=bits, metric="inner_product", core_bits=32).fit(x)
        made, true = index.dense() - x.mean(0), x - x.mean(0)
        cosine = ((made * true).sum(1) / made.norm(dim=1) / true.norm(dim=1)).square().mean()
        assert abs((1 - cosine).item() - distortion) < 0.15 * distortion


def test_seeds_give_other_codes_and_the_same_seed_the_same():
    one, again, other = (TTIndex(32, random_state=seed).fit(X)._stored for seed in (0, 0, 1))
    assert torch.equal(one.codes, again.codes) and not torch.equal(one.codes, other.codes)
    assert torch.equal(one.shared.mean, other.shared.mean)


def test_the_rotation_is_one():
    """Without rounding, the shared core has orthonormal rows that span what the principal axes span."""
    turned, plain = (TTIndex(20, rotate=r, core_bits=32).fit(X)._stored.shared.basis().double() for r in (True, False))
    torch.testing.assert_close(turned @ turned.mT, torch.eye(20).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned.mT @ turned, plain.mT @ plain, rtol=0, atol=1e-5)
    assert (turned @ plain.mT - torch.eye(20)).abs().max() > 0.3


def test_a_stack_is_coded_as_one_long_document():
    stack = X.reshape(1500, 4, 16)
    index, flat = TTIndex(40).fit(stack), TTIndex(40).fit(X)
    assert index.n_features_in_ == 64 and torch.equal(index._stored.codes, flat._stored.codes)
    for q in (Q, Q.reshape(-1, 4, 16)):
        torch.testing.assert_close(index.kneighbors(q)[0], flat.kneighbors(Q)[0], rtol=0, atol=1e-6)
    index.add(stack[:3] + 0.1)
    with pytest.raises(ValueError, match=r"X is a stack of \(16, 4\) views and entries, but the documents are of \(4,"):
        index.kneighbors(Q.reshape(-1, 16, 4))
    with pytest.raises(ValueError, match=r"X has 16 features, but TTIndex is expecting 64 .* of shape \(4, 16\)"):
        index.kneighbors(Q[:, :16])


def test_joint_codes_of_a_stack_beat_codes_of_each_view():
    """Views of a document that resemble each other: the coordinates go where the variance is."""
    base = texts(600, 24, seed=8)
    views = torch.stack([base + 0.1 * texts(600, 24, seed=9 + k) for k in range(3)], 1)
    q = asked(base, 60, seed=20).unsqueeze(1).repeat(1, 3, 1)
    joint = recall(TTIndex(24, bits=4).fit(views).kneighbors(q, 10)[1], views.flatten(1), q.flatten(1))
    each = sum(
        (1 - TTIndex(8, bits=4).fit(views[:, k]).kneighbors(q[:, k], 600)[0].gather(1, order))
        for k in range(3)
        for order in [TTIndex(8, bits=4).fit(views[:, k]).kneighbors(q[:, k], 600)[1].argsort(1)]
    )
    apart = recall(each.topk(10, dim=1).indices, views.flatten(1), q.flatten(1))
    assert joint > apart + 0.1


def test_the_stored_score_is_close_to_the_true_one():
    index = TTIndex(64, bits=8).fit(X)
    distances, ids = index.kneighbors(Q, 10)
    assert (1 - distances - scores(X, Q).gather(1, ids)).abs().max() < 0.01
