"""Run every study whose data is present: ``make studies``."""

from studies import overview

for study in (overview,):
    study.main()
