"""Run every study whose data is present: ``make studies``."""

from studies import embeddings, overview, toy_classifier

for study in (overview, toy_classifier, embeddings):
    study.main()
