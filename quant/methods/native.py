"""Each runtime's own quantizer, as a row of the same table, so that a user sees what this suite buys.

There are no tables: the backend's ``compile_native`` writes the artefact straight from the float model.
"""

METHODS = {
    "native": {"family": "weight_only", "bits": ("int8", "int4"), "core": ("int4",), "native": True},
    "native_static": {"family": "static", "bits": ("int8",), "core": ("int8",), "native": True, "calibrates": True},
    "native_dynamic": {"family": "dynamic", "bits": ("int8",), "core": ("int8",), "native": True},
}
