"""The commands of ``python -m quant``: a file each, found by name.

A file has a docstring, which ``--help`` of the command prints; ``HELP``, one line; ``add_arguments(parser)``; and
``run(options)``, which returns the exit status. It imports what is slow to import where it uses it.
"""
