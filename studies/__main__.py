"""Run every study whose data is present: ``make studies``."""

from studies import elsewhere, embeddings, fpga, overview, toy_classifier, tt_lora

for study in (overview, toy_classifier, embeddings, tt_lora, fpga, elsewhere):
    study.main()
