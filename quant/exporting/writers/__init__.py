"""The formats a model can be shipped in: a file each, found by name. ``quant.exporting`` says what a file holds."""
