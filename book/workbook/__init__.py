"""The chapters' shared code.

`sources` has models, texts and recorded results (behind it `models` and `store`), `docstrings`, `finetuning`,
`training` and `trained` the small tasks that are trained, `tables` the tables, `figures`, `diagrams`, `orders`,
`datapath`, `deployment` and `whole` the pictures, `quantum` and `fusion` what two sections on borrowed ideas need,
`passages`, `vectors`, `questions` and `answering` a search in text, `console` the progress bar.
"""
