"""A record of a run of the tests, as `make test` writes it: for what the book makes of one."""

from book.tools.notebooks import chapters

RUN = {
    "format": 1,
    "date": "2026-01-02",
    "commit": "abc1234",
    "seconds": 598.2,
    "workers": 2,
    "processor": "A processor (family 6; torch: AVX2, mkl)",
    "cores": 2,
    "system": "Linux x86_64",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "parts": [
        {
            "name": f"notebooks/{chapters()[0].name}",
            "seconds": 61.5,
            "peak_mib": 1402,
            "passed": 30,
            "failed": 1,
            "skipped": 0,
        },
        {"name": "tests/core", "seconds": 80.0, "peak_mib": None, "passed": 1301, "failed": 0, "skipped": 6},
    ],
}
