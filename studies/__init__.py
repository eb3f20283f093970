"""Quality on data that is not shipped. Each study writes ``book/results/<name>.json``; ``make studies`` runs them."""
