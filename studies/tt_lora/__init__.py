"""TT-LoRA beside LoRA and beside no adapter: quality, effect of the settings, GLUE, a language model, the search."""
