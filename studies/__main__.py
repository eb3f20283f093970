"""Run every study whose data is present: ``make studies``."""

from .advise import study as advise
from .convolutions import study as convolutions
from .deployment import study as deployment
from .elsewhere import study as elsewhere
from .embeddings import study as embeddings
from .fitting import study as fitting
from .fpga import study as fpga
from .fusion import study as fusion
from .overview import study as overview
from .partial_tensorization import study as partial_tensorization
from .pays import study as pays
from .retrieval import study as retrieval
from .scale import study as scale
from .structures import study as structures
from .toy_classifier import study as toy_classifier
from .tt_lora import study as tt_lora

STUDIES = (
    overview,
    toy_classifier,
    embeddings,
    tt_lora,
    fpga,
    elsewhere,
    advise,
    fitting,
    partial_tensorization,
    convolutions,
    retrieval,
    fusion,
    deployment,
    scale,
    structures,
    pays,
)

if __name__ == "__main__":
    for study in STUDIES:
        study.main()
