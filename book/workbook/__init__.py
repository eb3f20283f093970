"""What the chapters share: models and data (`sources`) and the house style of the figures (`figures`)."""
