"""A decoder's step as a Core ML program that keeps its caches itself, as states, from call to call.

The program of a step (see :mod:`quant.generation`) takes the caches of what was read, and returns them grown by an
entry. Here it takes a token and its place alone:

    past     is computed from the place: which entries of the states stand before it; the others stand after every text
    caches   are read from the states, which Core ML keeps in half precision
    grown    only the new entry is taken, and written into the states at the token's place
"""

import numpy as np

from quant.backends._coreml_package import Package, coremltools, declare, operation, scalar, shape_of, type_word
from quant.generation import BEYOND

_STATE_WORD = "fp16"
"""The only type of elements that states have."""


def keep_caches(package: Package) -> None:
    """Change the program of a step of one token, made of :func:`quant.generation.one_token`, to keep its caches.

    It then takes the token int32 [1, 1] and its place int32 [1], and returns the logits alone.
    """
    token, place, past, *caches = package.names["inputs"]
    logits, *grown = package.names["outputs"]
    before = _past(past, place, shape_of(package.types[past]))
    after = _bounds(place, shape_of(package.types[caches[0]]))
    for cache, result in zip(caches, grown, strict=True):
        before += _read(cache, package.types[cache])
        after += _written(cache, result, package.types)
    states = {_state(cache): shape_of(package.types[cache]) for cache in caches}
    _declare(package, [token, place], states, logits)
    operations = [*before, *package.operations, *after]
    del package.block.operations[:]
    package.block.operations.extend(operations)


def _state(cache: str) -> str:
    return f"{cache}_state"


def _past(past: str, place: str, shape: tuple[int, ...]) -> list:
    """Return operations for where the entries of the states stand."""
    return [
        _integers("states_entries", np.arange(*shape)),
        _integers("states_beyond", np.full(shape, BEYOND)),
        operation("less", "states_written", declare("bool", shape), x="states_entries", y=place),
        operation(
            "select", past, declare("int32", shape), cond="states_written", a="states_entries", b="states_beyond"
        ),
    ]


def _bounds(place: str, shape: tuple[int, ...]) -> list:
    """Return operations for where, in a state of ``shape``, the token's entry begins and ends, and in a grown cache."""
    _, heads, entries, size = shape
    joined = [
        operation("concat", name, declare("int32", (4,)), values=parts, axis="states_axis", interleave="states_apart")
        for name, parts in {
            "states_begin": ("states_first", place, "states_zero"),
            "states_end": ("states_heads", "states_next_place", "states_size"),
        }.items()
    ]
    return [
        _integers("states_first", np.zeros(2)),
        _integers("states_zero", np.zeros(1)),
        _integers("states_heads", np.array([1, heads])),
        _integers("states_size", np.array([size])),
        _integers("states_one", np.ones(1)),
        _integers("states_new_begin", np.array([0, 0, entries, 0])),
        _integers("states_new_end", np.array([1, heads, entries + 1, size])),
        operation("const", "states_axis", declare("int32"), val=scalar(0, "int32")),
        operation("const", "states_apart", declare("bool"), val=scalar(False, "bool")),
        operation("add", "states_next_place", declare("int32", (1,)), x=place, y="states_one"),
        *joined,
    ]


def _read(cache: str, declared: object) -> list:
    """Return operations that read a cache from its state, in the type that the program takes."""
    state, word, shape = _state(cache), type_word(declared), shape_of(declared)
    if word == _STATE_WORD:
        return [operation("read_state", cache, declared, input=state)]
    half = f"{state}_before"
    return [operation("read_state", half, declare(_STATE_WORD, shape), input=state), *_cast(half, cache, word, shape)]


def _written(cache: str, grown: str, types: dict[str, object]) -> list:
    """Return operations that write the last entry of a grown cache into the state."""
    state, word, shape = _state(cache), type_word(types[grown]), shape_of(types[cache])
    before = cache if type_word(types[cache]) == _STATE_WORD else f"{state}_before"
    new, after, entry = f"{state}_new", f"{state}_after", (*shape[:2], 1, shape[3])
    taken = operation(
        "slice_by_index", new, declare(word, entry), x=grown, begin="states_new_begin", end="states_new_end"
    )
    casts = [] if word == _STATE_WORD else _cast(new, f"{new}_half", _STATE_WORD, entry)
    update = f"{new}_half" if casts else new
    kind = declare(_STATE_WORD, shape)
    updated = operation("slice_update", after, kind, x=before, update=update, begin="states_begin", end="states_end")
    write = operation("write_state", f"{state}_write", kind, input=state, data=after)
    del write.outputs[:]
    return [taken, *casts, updated, write]


def _cast(source: str, name: str, word: str, shape: tuple[int, ...]) -> list:
    target = f"{name}_type"
    return [
        operation("const", target, declare("string"), val=scalar(word, "string")),
        operation("cast", name, declare(word, shape), x=source, dtype=target),
    ]


def _integers(name: str, values: np.ndarray) -> object:
    from coremltools.converters.mil.backend.mil.helper import create_tensor_value

    value = create_tensor_value(values.astype(np.int32))
    return operation("const", name, value.type, val=value)


def _declare(package: Package, inputs: list[str], states: dict[str, tuple[int, ...]], output: str) -> None:
    """Declare the inputs, the states and the one output that the program has from now on."""
    function, description, messages = package.function, package.model.description, coremltools().proto
    kept = [value for value in function.inputs if value.name in inputs]
    del function.inputs[:]
    function.inputs.extend(kept)
    for name, shape in states.items():
        value = function.inputs.add(name=name)
        value.type.stateType.wrappedType.CopyFrom(declare(_STATE_WORD, shape))
        array = description.state.add(name=name).type.stateType.arrayType
        array.shape.extend(shape)
        array.dataType = messages.FeatureTypes_pb2.ArrayFeatureType.FLOAT16
    del package.block.outputs[:]
    package.block.outputs.append(output)
    for features, names in ((description.input, inputs), (description.output, [output])):
        described = [feature for feature in features if feature.name in names]
        del features[:]
        features.extend(described)
