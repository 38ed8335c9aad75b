"""Single layers on which quantizers are timed and nothing is judged: one file each, in the form of the zoo's.

Beside the zoo's constants a file has BITS, the bits words, suffixes included, that its cases have.
"""
