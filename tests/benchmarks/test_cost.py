"""Quantizers in processes of their own, against libraries made up here whose cost is known."""

import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import quant
from benchmarks import memory
from benchmarks.child import Job, LinearOnly, batches_of, linear_layers, serve
from benchmarks.cost import Child, QuantizerError
from quant.storage import load_graph, save_graph

MEGABYTE = 1_000_000
LIBRARY = """
import os
import time

import torch

from benchmarks.child import with_parameters

print("a library that prints when it is imported")


def prepare(subject):
    torch.ones(300 * 250_000)  # what preparing takes is none of quantizing

    def work():
        print("a library that prints at work")
        return globals()[subject.job.method](subject)

    return work


def works(subject):
    subject.progress(f"{torch.get_num_threads()} thread, OMP {os.environ['OMP_NUM_THREADS']}")
    subject.progress(f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1} core")
    torch.ones(200 * 250_000)
    time.sleep(0.5)
    return lambda *batch: batch[0]


def fails(subject):
    raise ValueError("it cannot quantize: use another.")


def dies(subject):
    os._exit(7)


def halves(subject):
    return with_parameters(subject.graph, lambda: {"1.weight": subject.graph.parameters["1.weight"] / 2})
"""


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 64)
        self.linear = nn.Linear(64, 24)

    def forward(self, tokens):
        return self.linear(self.embedding(tokens))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job of our own on two linear layers, and the folder that its files are in."""
    folder = tmp_path_factory.mktemp("job")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8, bias=False)).eval()
    save_graph(quant.capture(module, (torch.randn(2, 64),), ({0: "batch"},)), folder)
    np.savez(folder / "inputs.npz", torch.randn(40, 64).numpy())
    (folder / "library.py").write_text(LIBRARY)
    return Job(None, "rtn", "int4", "token", "made_up", str(folder), str(folder / "inputs.npz"))


@pytest.fixture(scope="module")
def worked(job):
    """What the made-up library's work cost, and what was said meanwhile."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", job.graph)
        patch.setenv("OMP_NUM_THREADS", "4")
        with Child(replace(job, library="library", method="works"), said.append) as child:
            return child.quantize(), said


def ignore(text):
    pass


def inputs_of(job):
    return np.load(job.calibration)["arr_0"]


def serve_here(job, folder):
    """What a child answers to the job and to the request for outputs, and those outputs."""
    file = folder / "outputs.npy"
    requests = [asdict(job), "go", {"inputs": job.calibration, "file": str(file)}]
    channel = io.StringIO()
    serve(io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), channel)
    return [json.loads(line) for line in channel.getvalue().splitlines()], np.load(file)


def test_a_child_makes_what_the_library_makes_here(job):
    with Child(job, ignore) as child:
        cost = child.quantize()
        outputs = child.outputs(job.calibration)
    quantized = quant.quantize(load_graph(Path(job.graph)), "rtn", "int4")
    expected = quant.simulate(quantized)(torch.from_numpy(inputs_of(job)))[0].numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert cost.seconds > 0
    assert cost.elapsed_seconds > 0


def test_a_calibrating_method_is_given_the_data(job, tmp_path):
    answers, outputs = serve_here(replace(job, method="gptq"), tmp_path)
    quantized = quant.quantize(load_graph(Path(job.graph)), "gptq", "int4", batches_of(job.calibration))
    expected = quant.simulate(quantized)(torch.from_numpy(inputs_of(job)))[0].numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    words = [next(iter(answer)) for answer in answers]
    assert words == ["ready", *["progress"] * (len(words) - 3), "cost", "done"]
    assert len(words) > 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_only_what_quantizing_allocates_counts(worked):
    assert 195 * MEGABYTE < worked[0].peak_bytes < 260 * MEGABYTE


def test_waiting_is_no_processor_time(worked):
    assert worked[0].elapsed_seconds >= 0.5
    assert worked[0].seconds < worked[0].elapsed_seconds - 0.4


def test_a_child_has_one_thread_on_one_core(worked):
    assert worked[1] == ["1 thread, OMP 1", "1 core"]


def test_what_a_peer_made_is_run_on_the_float_graph(job, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(job.graph)
    _, halved = serve_here(replace(job, library="library", method="halves"), tmp_path)
    whole = load_graph(Path(job.graph)).module()(torch.from_numpy(inputs_of(job)))[0].detach().numpy()
    np.testing.assert_allclose(halved, whole / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "end"), [("fails", "ValueError: it cannot quantize: use another."), ("dies", "work")]
)
def test_a_failure_is_one_sentence(job, monkeypatch, method, end):
    monkeypatch.setenv("PYTHONPATH", job.graph)
    library_job = replace(job, library="library", method=method)
    with pytest.raises(QuantizerError) as raised, Child(library_job, ignore) as child:
        child.quantize()
    sentence = str(raised.value)
    assert sentence.startswith(f"{method} could not quantize made_up to int4: ")
    assert sentence.endswith(end)
    assert "\n" not in sentence


def test_linear_only_leaves_embeddings_float():
    torch.manual_seed(0)
    graph = quant.capture(Network().eval(), (torch.randint(0, 40, (2, 7)),))
    assert set(graph.quantizable()) == {"embedding.weight", "linear.weight"}
    linear = LinearOnly(graph.graphs, graph.parameters, graph.examples)
    assert set(linear.quantizable()) == {"linear.weight"}
    assert set(quant.quantize(linear, "rtn", "int4").weights) == {"linear.weight"}


def test_linear_layers_have_the_graphs_names():
    module = Network().eval()
    graph = quant.capture(module, (torch.randint(0, 40, (2, 7)),))
    for name, layer in linear_layers(module):
        assert torch.equal(graph.parameters[name], layer.weight)


def test_a_peak_is_never_under_what_is_held():
    held = memory.start_peak()
    ballast = np.ones(5_000_000)
    assert memory.peak() >= held + ballast.nbytes * 0.9
