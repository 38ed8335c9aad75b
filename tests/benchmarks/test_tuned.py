import json

import pytest

from benchmarks import environment, tuned
from benchmarks.matrix import Case
from benchmarks.measurement import about_start
from benchmarks.tuned import Entry, Tuning
from benchmarks.workshop import Artifact

CASE = Case("digits", "rtn", "int4", "onnxruntime")


def entry(backend="onnxruntime", numbers="weight_only int4", batch=1, **settings):
    return Entry("digits", numbers, backend, batch, settings, 1.25, (1.2, 1.3))


def test_what_is_kept_is_read_again(tmp_path):
    path = tuned.keep(tmp_path, entry(threads=2, arena=False))
    assert path == tuned.file_of(tmp_path)
    assert tuned.read(tmp_path).entries == (entry(threads=2, arena=False),)
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_subject_tuned_again_takes_the_place_of_the_first(tmp_path):
    for one in (entry(threads=2), entry(batch=8, threads=4), entry(arena=False)):
        tuned.keep(tmp_path, one)
    assert set(map(repr, tuned.read(tmp_path).entries)) == {repr(entry(batch=8, threads=4)), repr(entry(arena=False))}


def test_settings_are_those_of_the_numbers_the_backend_and_the_batch():
    known = Tuning((entry(arena=False), entry(backend="torch", threads=2), entry(numbers="native int4", threads=4)))
    assert known.of(CASE, 1) == {"arena": False}
    assert known.of(Case("digits", "gptq", "int4", "onnxruntime"), 1) == {"arena": False}
    assert known.of(Case("digits", "native", "int4", "onnxruntime"), 1) == {"threads": 4}
    for other in ("rtn-int8-onnxruntime", "float-fp32-onnxruntime", "rtn-int4-mlx"):
        assert known.of(Case("digits", *other.split("-")), 1) == {}
    assert known.of(CASE, 8) == {}
    assert Tuning().of(CASE, 1) == {}


def test_another_machine_or_library_is_another_file(tmp_path, monkeypatch):
    tuned.keep(tmp_path, entry(threads=2))
    here = environment.describe(0)
    monkeypatch.setattr(environment, "describe", lambda threads: {**here, "versions": {"torch": "9.9"}})
    assert tuned.read(tmp_path) == Tuning()
    monkeypatch.setattr(environment, "describe", lambda threads: {**here, "isa_caps": {"ONEDNN_MAX_CPU_ISA": "AVX2"}})
    assert tuned.read(tmp_path) == Tuning()
    monkeypatch.setattr(environment, "describe", lambda threads: {**here, "threads": 7})
    assert len(tuned.read(tmp_path).entries) == 1


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"entries": [{"model": "digits"}]})])
def test_a_damaged_file_is_a_sentence(tmp_path, text):
    path = tuned.keep(tmp_path, entry())
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is damaged \(.+\): delete it"):
        tuned.read(tmp_path)


def test_settings_are_told_in_words():
    assert tuned.settings_text({"threads": 2, "arena": False, "optimization": "basic"}) == (
        "2 threads, arena off, optimization basic"
    )
    assert tuned.settings_text({"threads": 1}) == "1 thread"
    assert tuned.speed_text(1.254, (1.2, 1.3)) == "1.25× (1.20 to 1.30)"


@pytest.mark.parametrize(
    ("backend", "settings", "notes"),
    [
        ("torch", {}, []),
        ("torch", {"threads": 2}, ["Ran tuned: 2 threads."]),
        ("torch_compile", {}, ["Loading it and a first call took 41 s."]),
    ],
)
def test_a_record_says_how_its_artefact_was_opened(backend, settings, notes):
    case = Case("digits", "rtn", "int4", backend)
    artifact = Artifact(case, None, None, None, settings=settings, start_seconds=41.4)
    assert list(about_start(artifact)) == notes
