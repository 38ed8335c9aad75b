"""Damaging files at random, for tests of what reads them: it ends in a result or in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

ODD = (None, True, -1, 0, 3, 10**30, 1.5, "", "x", "../../x", "\0", [], {}, [[]], {"value": 1}, {"a": {"b": []}})


def places(document, path=()):
    """Every place in a JSON document."""
    if path:
        yield path
    if isinstance(document, dict | list):
        keys = document if isinstance(document, dict) else range(len(document))
        for key in keys:
            yield from places(document[key], (*path, key))


def damaged_json(document, random):
    """A copy in which one to three values are something else, or gone."""
    document = json.loads(json.dumps(document))
    for _ in range(random.integers(1, 4)):
        known = list(places(document))
        *path, last = known[random.integers(len(known))]
        holder = document
        for key in path:
            holder = holder[key]
        if random.random() < 0.3:
            del holder[last]
        else:
            holder[last] = ODD[random.integers(len(ODD))]
        if not document:
            break
    return document


def damaged_bytes(content, random):
    """Cut short, or with some bytes changed, removed or put in."""
    content = bytearray(content)
    kind = random.integers(4)
    if kind == 0 or not content:
        return bytes(content[: random.integers(len(content) + 1)])
    for _ in range(random.integers(1, 9)):
        at = int(random.integers(len(content)))
        if kind == 1:
            content[at] = int(random.integers(256))
        elif kind == 2:
            del content[at]
        else:
            content.insert(at, int(random.integers(256)))
        if not content:
            break
    return bytes(content)


def damage(path, random):
    """Damage a file, as JSON where it is JSON and by its bytes otherwise or else."""
    if path.suffix == ".json" and random.random() < 0.7:
        path.write_text(json.dumps(damaged_json(json.loads(path.read_text()), random)))
    elif path.suffix == ".safetensors" and random.random() < 0.5:
        from safetensors.torch import load_file, save_file

        tensors = load_file(path)
        name = list(tensors)[random.integers(len(tensors))]
        value = tensors.pop(name)
        if random.random() < 0.7:
            tensors[name] = value.flatten()[: value.numel() // 2].clone() if random.random() < 0.5 else value[None]
        save_file(tensors, path)
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), random))


def in_a_sentence(read: Callable, *arguments: object, refusal: type[Exception] = ValueError) -> object:
    """What reading returns; None where it ends in one sentence, which an error of just this type holds."""
    try:
        return read(*arguments)
    except refusal as error:
        said, kind = str(error), type(error)
    assert kind is refusal, f"{kind.__name__} is no sentence of ours: {said}"
    assert said
    assert "\n" not in said
    assert len(said) < 600
    return None


def fuzz(source: Path, folder: Path, seed: int, read: Callable[[Path], object]) -> object:
    """Copy a folder, damage one of its files, and read it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    random = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    damage(files[random.integers(len(files))], random)
    return in_a_sentence(read, folder)
