"""The chapters' shared code.

`sources` has models, texts and recorded results (behind it `models` and `store`), `docstrings`, `finetuning`,
`training` and `trained` the small tasks that are trained, `tables` the tables, `figures`, `diagrams`, `orders`,
`datapath` and `whole` the pictures, `console` the progress bar.
"""
