"""scikit-learn's grammar: its own checks, its NearestNeighbors as a twin, and life without it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from corpora import asked, texts

from book.tools.notebooks import ROOT
from ttref.retrieval import TTIndex

X = texts(300)
Q = asked(X, 8)


@pytest.mark.filterwarnings("ignore:Estimator TTIndex does not inherit")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize(
    "how",
    [{}, {"metric": "inner_product"}, {"metric": "inner_product", "bits": 32}, {"bits": 1, "engine": "float"}],
    ids=str,
)
def test_scikit_learn_finds_no_fault(how):
    """One of its inputs has a row of zeros, which has no cosine with anything and is refused."""
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    cosine = how.get("metric", "cosine") == "cosine"
    refused = {"check_estimators_dtypes": "zero vectors"} if cosine else {}
    found = checks.check_estimator(TTIndex(**how), expected_failed_checks=refused)
    passed = {one["check_name"] for one in found if one["status"] == "passed"}
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(refused)
    assert len(passed) > 30 and {"check_estimators_nan_inf", "check_n_features_in_after_fitting"} <= passed


@pytest.mark.parametrize("core_bits", [8, 32])
def test_its_nearest_neighbors_are_the_same_where_nothing_is_cut(core_bits):
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, q = X.numpy(), Q.numpy()
    twin = neighbors.NearestNeighbors(metric="cosine").fit(x)
    index = TTIndex(None, bits=32, core_bits=core_bits).fit(x)
    for k in (1, 5, 300):
        expected, positions = twin.kneighbors(q, k)
        distances, ids = index.kneighbors(q, k)
        assert np.abs(distances - expected).max() < 1e-5 and (ids == positions).mean() > 0.99
    assert np.array_equal(index.kneighbors(q, 5, return_distance=False), index.kneighbors(q)[1])
    assert index.kneighbors(q, n_neighbors=5)[0].shape == (8, 5)


def test_parameters_are_read_set_and_cloned():
    base = pytest.importorskip("sklearn.base")
    index = TTIndex(20, bits=8, shape=(6, 8), rank=3).fit(X)
    again = base.clone(index)
    assert again.get_params() == index.get_params() and not hasattr(again, "ids_")
    assert set(index.get_params()) == {
        "n_components",
        "bits",
        "metric",
        "rotate",
        "core_bits",
        "shape",
        "rank",
        "engine",
        "backend",
        "random_state",
    }
    expected = index.kneighbors(Q)
    assert index.set_params(bits=2) is index and torch.equal(index.kneighbors(Q)[0], expected[0])  # until the next fit
    assert index.fit(X).code_nbytes == 5 + 2
    with pytest.raises(ValueError, match="Invalid parameter 'bit' for TTIndex; it has n_components, bits, "):
        index.set_params(bits=4, bit=4)
    assert index.bits == 2
    assert repr(TTIndex()) == "TTIndex()" and repr(again) == "TTIndex(n_components=20, bits=8, shape=(6, 8), rank=3)"


def test_it_searches_a_grid_with_scikit_learn():
    """The clones of a search are fitted and scored as any estimator's."""
    selection = pytest.importorskip("sklearn.model_selection")

    def kept(index, x, y=None):
        return -index.kneighbors(x, 1)[0].mean()

    search = selection.GridSearchCV(TTIndex(), {"n_components": [2, 40]}, scoring=kept, cv=2).fit(X.numpy())
    assert search.best_params_ == {"n_components": 40}


def test_what_is_not_fitted_says_so():
    exceptions = pytest.importorskip("sklearn.exceptions")
    for call in (
        lambda index: index.kneighbors(Q),
        lambda index: index.add(Q),
        lambda index: index.remove([0]),
        lambda index: index.dense(),
        lambda index: index.save("nowhere.safetensors"),
        lambda index: index.nbytes,
    ):
        with pytest.raises(exceptions.NotFittedError, match="not fitted yet and holds no documents; call fit"):
            call(TTIndex())
    assert not hasattr(TTIndex(), "n_features_in_")
    validation = pytest.importorskip("sklearn.utils.validation")
    validation.check_is_fitted(TTIndex().fit(X))
    with pytest.raises(exceptions.NotFittedError):
        validation.check_is_fitted(TTIndex())


WITHOUT = """
import sys
hidden = set(sys.argv[1].split(","))

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import torch
from ttref.retrieval import TTIndex
x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
index = TTIndex(6)
try:
    index.kneighbors(x)
except ValueError as error:
    assert isinstance(error, AttributeError) and "not fitted yet" in str(error)
assert index.fit(x).kneighbors(x, 1)[1][:, 0].tolist() == list(range(10))
assert index.fit(x.tolist()).kneighbors(x.tolist(), 1)[1][:, 0].tolist() == list(range(10))
assert index.set_params(bits=8).get_params()["bits"] == 8 and repr(index) == "TTIndex(n_components=6, bits=8)"
try:
    TTIndex(backend="faiss").fit(x)
except ModuleNotFoundError as error:
    assert "python -m pip install faiss-cpu" in str(error) and error.name == "faiss"
else:
    raise AssertionError("faiss was found, so this hides nothing")
assert not hidden & {name.partition(".")[0] for name in sys.modules}
"""


@pytest.mark.parametrize("hidden", ["sklearn,faiss,scipy,safetensors", "sklearn,faiss,scipy,safetensors,numpy"])
def test_torch_is_enough(hidden):
    command = [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", WITHOUT, hidden]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
