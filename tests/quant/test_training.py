import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant import training
from quant.progress import reporting
from quant.recipe import Recipe, Shuffled, Training, Validation, in_order, unlabelled
from quant.training import kl_divergence, relative_error, train


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def problem():
    """A classifier that is exact on its own labels, its graph, training and validation data."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    inputs = torch.randn(4096 + 512, 16)
    with torch.no_grad():
        labels = module(inputs).argmax(1)
    graph = quant.capture(module, (inputs[:2],))
    return module, graph, (inputs[512:], labels[512:]), (inputs[:512], labels[:512])


RECIPE = Recipe(steps=60, rate=1e-2, scale_rate=1e-2, validate_every=20)


def accuracy(outputs, labels):
    return (outputs.argmax(1) == labels).float().mean()


def tables_of(quantized):
    parts = {name: (weight.codes, weight.scale, weight.zero_point) for name, weight in quantized.weights.items()}
    return {**parts, **{name: (value,) for name, value in quantized.floats.items()}}


def same(first, second):
    first, second = tables_of(first), tables_of(second)
    return set(first) == set(second) and all(
        all(a is b or torch.equal(a, b) for a, b in zip(first[name], second[name], strict=True)) for name in first
    )


def judged(quantized, data):
    return float(accuracy(quant.simulate(quantized)(data[0])[0], data[1]))


def test_training_regains_what_rounding_lost(problem):
    _, graph, learned, held_out = problem
    start = quant.quantize(graph, "mse", "int2")
    quantized = quant.qat(graph, "int2", Shuffled(learned, 32), F.cross_entropy, Recipe(300, 1e-2, 1e-2))
    assert judged(quantized, held_out) > judged(start, held_out) + 0.03
    assert quantized.scheme == start.scheme
    assert quantized.recipe["training"]["steps"] == 300


def test_labels_are_not_needed(problem):
    _, graph, learned, held_out = problem
    quantized = quant.qat(graph, "int2", Shuffled(learned[:1], 32), None, Recipe(300, 1e-2, 1e-2))
    assert judged(quantized, held_out) > judged(quant.quantize(graph, "mse", "int2"), held_out) + 0.03


def test_a_module_is_captured_with_the_first_batch(problem):
    module, graph, learned, _ = problem
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*learned), batch_size=64, shuffle=True)
    recipe = Recipe(steps=5)
    assert same(
        quant.qat(module, "int4", loader, F.cross_entropy, recipe),
        quant.qat(graph, "int4", loader, F.cross_entropy, recipe),
    )


def test_training_goes_on_from_the_tables_it_is_given(problem):
    _, graph, learned, _ = problem
    start = quant.quantize(graph, "gptq", "int4", [(learned[0],)])
    still = Recipe(steps=1, rate=1e-12, scale_rate=1e-12)
    quantized = quant.qat(start, "int4", [learned], F.cross_entropy, still)
    assert all(torch.equal(quantized.weights[name].codes, start.weights[name].codes) for name in start.weights)
    with pytest.raises(ValueError, match="is in int4, not int3"):
        quant.qat(start, "int3", [learned], F.cross_entropy, still)


def test_the_same_seed_gives_the_same_tables_and_leaves_the_generator_alone(problem):
    _, graph, learned, _ = problem
    loader = Shuffled(learned, 32)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = quant.qat(graph, "int3", loader, F.cross_entropy, RECIPE)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert same(first, quant.qat(graph, "int3", loader, F.cross_entropy, RECIPE))
    other = Recipe(steps=60, rate=1e-2, scale_rate=1e-2, seed=1)
    assert not same(first, quant.qat(graph, "int3", loader, F.cross_entropy, other))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"noise": 0.5, "distillation": 0.5}, id="noise and distillation"),
        pytest.param({"bits": (8, 4)}, id="bits lowered"),
        pytest.param({"patience": 1, "rate": 1e-9, "scale_rate": 1e-9}, id="stopping early"),
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_tables(problem, tmp_path, monkeypatch, settings):
    _, graph, learned, held_out = problem
    recipe = Recipe(**{"steps": 60, "rate": 1e-2, "scale_rate": 1e-2, "validate_every": 20, **settings})
    # Both loaders draw from torch's generator: where a run was stopped must not matter to either.
    judge = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*held_out), batch_size=64, shuffle=True)
    validation, checkpoint = Validation(judge, F.cross_entropy), tmp_path / "run" / "state.pt"

    def noisy(outputs, labels):
        return F.cross_entropy(F.dropout(outputs, 0.1), labels)

    def run(loss):
        return quant.qat(graph, "int2", Shuffled(learned, 32), loss, recipe, validation, checkpoint)

    whole = run(noisy)
    assert not checkpoint.exists(), "a finished run leaves no checkpoint"
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    for last in (7, 9):
        calls = []

        def interrupted(outputs, labels, calls=calls, last=last):
            calls.append(labels)
            if len(calls) > last:
                raise Stopped
            return noisy(outputs, labels)

        with pytest.raises(Stopped):
            run(interrupted)
    assert checkpoint.exists()
    resumed = run(noisy)
    assert same(whole, resumed)
    assert whole.recipe == resumed.recipe


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(problem, tmp_path, monkeypatch):
    _, graph, learned, _ = problem
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    checkpoint = tmp_path / "state.pt"

    def run(recipe, loss=F.cross_entropy):
        return quant.qat(graph, "int4", [learned], loss, recipe, checkpoint=checkpoint)

    def fails_later(outputs, labels, calls=[]):  # noqa: B006 - counts its calls
        calls.append(1)
        if len(calls) > 2:
            raise Stopped
        return F.cross_entropy(outputs, labels)

    with pytest.raises(Stopped):
        run(Recipe(steps=9), fails_later)
    with pytest.raises(ValueError, match=r"state\.pt is of another training"):
        run(Recipe(steps=8))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt cannot be read .*delete it to begin anew"):
        run(Recipe(steps=9))


def test_the_best_tables_are_kept_and_training_stops_when_nothing_improves(problem):
    _, graph, learned, held_out = problem
    start = quant.quantize(graph, "mse", "int4")
    validation = Validation(in_order(held_out, 64), accuracy, "higher")
    ruinous = Recipe(steps=400, rate=5.0, scale_rate=1.0, validate_every=10, patience=3)
    quantized = quant.qat(start, "int4", Shuffled(learned, 32), F.cross_entropy, ruinous, validation)
    described = quantized.recipe["training"]
    assert described["stopped_at"] < 400
    assert judged(quantized, held_out) == pytest.approx(described["accuracy"], abs=1e-6)
    assert judged(quantized, held_out) >= judged(start, held_out)


def test_progress_tells_loss_and_metric(problem, capsys):
    _, graph, learned, held_out = problem
    validation = Validation(in_order(held_out, 64), accuracy, "higher")
    lines = []
    with reporting("qat", lines.append):
        quant.qat(graph, "int4", [learned], F.cross_entropy, Recipe(steps=4, validate_every=2), validation)
    lines = [line for line in lines if line.startswith("qat: step")]
    assert len(lines) == 4
    assert lines[-1].startswith("qat: step 4 of 4, loss 1.")
    assert ", accuracy 0." in lines[-1]
    assert "(best 0." in lines[-1]
    assert capsys.readouterr().err == ""
    quant.qat(graph, "int4", [learned], F.cross_entropy, Recipe(steps=2))
    assert capsys.readouterr().err.startswith("qat: step 1 of 2")


def test_a_loss_that_is_not_finite_ends_training_in_one_sentence(problem):
    _, graph, learned, _ = problem
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"the loss of step 1 is (nan|inf): lower the rate, which is 0\.01"):
            quant.qat(graph, "int4", [learned], lambda outputs, labels, bad=bad: outputs.sum() * bad, RECIPE)


def test_data_that_runs_out_is_one_sentence(problem):
    module, graph, learned, _ = problem
    with pytest.raises(ValueError, match="the loader gives no batch"):
        quant.qat(graph, "int4", [], F.cross_entropy)
    with pytest.raises(ValueError, match="the loader gives no batch"):
        quant.qat(module, "int4", [], F.cross_entropy)
    with pytest.raises(ValueError, match="cannot be gone through again"):
        quant.qat(graph, "int4", (batch for batch in [learned]), F.cross_entropy, Recipe(steps=2))
    with pytest.raises(ValueError, match="the validation loader gives no batch"):
        quant.qat(graph, "int4", [learned], F.cross_entropy, Recipe(steps=2), Validation([]))


def test_schemes_without_integer_weights_are_refused(problem):
    _, graph, learned, _ = problem
    palette = quant.quantize(graph, "palette", "lut4")
    with pytest.raises(ValueError, match="lut4 has no integer weights to train"):
        quant.qat(palette, palette.scheme, [learned], F.cross_entropy, RECIPE)
    for word in ("nf4", "fp32"):
        with pytest.raises(ValueError, match=f"{word} has no integer weights to train"):
            quant.qat(graph, word, [learned], F.cross_entropy, RECIPE)
    with pytest.raises(ValueError, match="int8 quantizes activations: quantize the model by static"):
        quant.qat(graph, quant.parse("int8", "static"), [learned], F.cross_entropy, RECIPE)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"noise": 1.5}, {"rate": math.nan}, {"distillation": -1}])
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_one_sample_and_constant_ones_can_be_trained_on(problem):
    _, graph, learned, _ = problem
    for inputs in (learned[0][:1], torch.zeros(4, 16)):
        quantized = quant.qat(graph, "int4", [(inputs,)], None, Recipe(steps=3))
        assert all(torch.isfinite(weight.scale).all() for weight in quantized.weights.values())


def test_bits_come_down_to_those_of_the_scheme(problem):
    _, graph, learned, held_out = problem
    recipe, validation = Recipe(steps=300, rate=1e-2, scale_rate=1e-2, bits=(8, 4)), Validation(in_order(held_out, 64))
    quantized = quant.qat(graph, "int2", Shuffled(learned, 32), None, recipe, validation)
    assert {weight.format.bits for weight in quantized.weights.values()} == {2}
    assert quantized.recipe["training"]["best_step"] >= 150
    assert judged(quantized, held_out) > judged(quant.quantize(graph, "mse", "int2"), held_out)


def test_pact_learns_clips_from_what_is_clipped(problem):
    _, graph, learned, held_out = problem
    scheme = quant.parse("int8", "static")
    start = quant.quantize(graph, "static", "int8", [(learned[0][:64],)])
    recipe = Recipe(steps=40, estimator="pact", weight_decay=1e-4)
    quantized = quant.qat(start, scheme, Shuffled(learned, 32), None, recipe)
    assert judged(quantized, held_out) > 0.97
    assert any(not torch.equal(quantized.activations[e].scale, start.activations[e].scale) for e in start.activations)


def test_unlabelled_data_is_divided_and_known_by_its_digest():
    batches = [(torch.arange(16.0).reshape(16, 1) + 16 * index,) for index in range(4)]
    found = unlabelled(batches)
    judged = torch.cat([batch[0] for batch in found.validation.loader])
    torch.manual_seed(0)
    learned = torch.cat([batch[0] for batch in found.loader])
    assert len(judged) == 8
    assert not set(judged.flatten().tolist()) & set(learned.flatten().tolist())
    start_data = torch.cat([batch[0] for batch in found.start_data])
    assert set(start_data.flatten().tolist()) == set(range(64)) - set(judged.flatten().tolist())
    assert [len(batch[0]) for batch in found.start_data] == [16, 16, 16, 8]
    assert found.digest == unlabelled(batches).digest != unlabelled(batches[:3]).digest
    with pytest.raises(ValueError, match="needs calibration data"):
        unlabelled([])
    assert unlabelled([(torch.zeros(1, 2),)]).validation is None


def test_each_epoch_has_an_order_of_its_own_and_every_sample_at_most_once():
    loader = Shuffled([torch.arange(10)], 3)
    torch.manual_seed(0)
    first, second = (torch.cat([batch[0] for batch in loader]) for _ in range(2))
    assert len(first) == len(set(first.tolist())) == 9
    assert first.tolist() != second.tolist()


def test_distances_are_those_of_their_definitions():
    outputs, targets = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    p, q = targets.softmax(-1), outputs.softmax(-1)
    assert float(kl_divergence(outputs, targets)) == pytest.approx(float((p * (p / q).log()).sum() / 6))
    assert float(kl_divergence(outputs, outputs)) == pytest.approx(0, abs=1e-12)
    expected = float((outputs - targets).norm() ** 2 / targets.norm() ** 2)
    assert float(relative_error(outputs, targets)) == pytest.approx(expected)


def test_training_data_stands_for_itself(problem):
    """What methods are given needs no recipe of its own."""
    _, graph, learned, _ = problem
    start = quant.quantize(graph, "mse", "int4")
    quantized = train(start, Training([learned], F.cross_entropy, Recipe(steps=2)))
    assert set(quantized.weights) == set(start.weights)
