"""Run every study whose data is present: ``make studies``."""

from studies import overview, toy_classifier

for study in (overview, toy_classifier):
    study.main()
