"""TT-LoRA beside LoRA and beside no adapter: quality, what the settings do, GLUE, a language model, the search."""
