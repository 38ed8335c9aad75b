"""A model and a workshop for searches that compute nothing: an artefact's answers are a function of the samples."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.answers import Answers
from benchmarks.matrix import Case
from fixtures.metrics import metric as named_metric
from fixtures.model import Model, Samples

CLASSES = 4


def make_samples(count, clusters=None, labelled=True):
    numbers = np.arange(count)
    labels = numbers % CLASSES if labelled else None
    return Samples((numbers.astype(np.float32)[:, None],), labels, numbers if clusters is None else np.array(clusters))


def make_model(count=3000, metric="accuracy", clusters=None, labelled=True, **changes):
    samples = make_samples(count, clusters, labelled)
    chosen = named_metric(metric) if metric else None
    return Model(
        **{
            "name": "toy",
            "family": "convolutional",
            "build": None,
            "input_names": ("x",),
            "dynamic_axes": ({0: "batch"},),
            "calibration": lambda: make_samples(4),
            "evaluation": samples.first,
            "evaluation_samples": 300,
            "metric": chosen,
            "no_metric_reason": None if chosen else "nobody labelled them",
            **changes,
        }
    )


class FakeWorkshop:
    """``wrong`` maps a case to the share of samples that it answers wrongly, where float is always right.

    answered  case and number of samples of every call
    """

    def __init__(self, model, wrong):
        self._model, self.wrong, self.answered = model, wrong, []
        self.settings = SimpleNamespace(batch=1, threads=1)
        self.reports = []

    def reference(self, name):
        return None

    def report(self, text):
        self.reports.append(text)

    def calibration(self, name):
        return self._model.calibration()

    def quantize(self, case, calibration):
        return SimpleNamespace(quantized=case)

    def compile(self, case, tables, calibration):
        share = self.wrong.get(case, 0.0)
        if isinstance(share, Exception):
            raise share
        entry = SimpleNamespace(digest=str(case), content_sha256=f"content of {case}")
        return SimpleNamespace(case=case, entry=entry, tables=tables, executable=None, path=Path())

    def baseline(self, case):
        return self.compile(case.baseline, None, None)

    def answers(self, artifact, samples):
        self.answered.append((artifact.case, len(samples)))
        numbers = samples.inputs[0][:, 0].astype(int)
        share = self.wrong.get(artifact.case, 0.0)
        # Spread evenly, so that every stretch of samples has its share.
        wrong = np.floor((numbers + 1) * share) > np.floor(numbers * share)
        chosen = np.where(wrong, (numbers + 1) % CLASSES, numbers % CLASSES)
        outputs = np.eye(CLASSES, dtype=np.float32)[chosen] + np.float32(share)
        return Answers(outputs * np.float32("nan") if share < 0 else outputs)


def case_of(method="mse", bits="int4", backend="torch"):
    return Case("toy", method, bits, backend)
