"""A cascade of two models: tables of the method ``first`` answer, and float where they are unsure (``quant.adaptive``).

There are no tables of its own: a cascade is an executable made of executables, whose threshold needs labelled data.
"""

METHODS = {"adaptive": {"family": "dynamic", "bits": ("int8",), "first": "dynamic"}}
