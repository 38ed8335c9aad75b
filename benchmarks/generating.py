"""How fast a language model goes on with a text, and how far from float: the records of the kind ``generate``."""

import time
from dataclasses import dataclass, replace

import numpy as np

from benchmarks import judging, timing
from benchmarks.matrix import Case
from benchmarks.measurement import Measurement, no_tables
from benchmarks.timing import PairedTimes
from benchmarks.workshop import Artifact, Prepared, Tables, Workshop
from fixtures.model import Generation, Samples
from quant.adaptive import Cascade
from quant.backends import Executable
from quant.generation import Simulated, capture_step, carried_over, extended, followed, greedy, read

CHECKED_PROMPTS = 2
"""On how many float generates once more without its cache."""
PARITY_PROMPTS = 4
TIMED_TOKENS = 8
"""How many tokens a round generates: its time over them is that of a token."""

_NO_METRIC = {"reason": "what is generated has no labels: the inference cases judge quality"}
_NO_MEMORY = {"reason": "memory is measured of the inference cases; a cache takes generation.cache_bytes more"}
_NOT_TIMED = {"reason": timing.DISABLED}


class CacheError(ValueError):
    """A decoder generates otherwise with its cache than without."""


@dataclass(frozen=True)
class Continuation:
    """What float generates: int64 [n, count], each token the most likely; and its logits [n, count, vocabulary]."""

    tokens: np.ndarray
    logits: np.ndarray
    truncated: bool


class Decoders:
    """Makes the artefacts that take steps, for the model that the workshop holds."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._prepared: Prepared | None = None
        self._baseline: tuple[Artifact, Continuation] | None = None

    def generation(self, name: str) -> Generation:
        return self._workshop.model(name).generation

    def prompts(self, name: str) -> Samples:
        """Return the texts to go on with: the beginnings of the first evaluation samples."""
        generation = self.generation(name)
        count = min(generation.prompts, self._workshop.settings.evaluation_samples or generation.prompts)
        samples = self._workshop.model(name).evaluation(count)
        return Samples((samples.inputs[0][:, : generation.prompt_tokens],), None, samples.clusters)

    def prepare(self, name: str) -> Prepared:
        """Return a model with the float graph of its step."""
        self._workshop.prepare(name)
        if self._prepared is None or self._prepared.model.name != name:
            self._prepared = self._baseline = None
            model = self._workshop.model(name)

            def exported(module: object) -> object:
                return capture_step(module, model.generation.cache)

            self._prepared = self._workshop.export(model, model.generation.build, exported, "quant.generation")
        return self._prepared

    def compile(self, case: Case, tables: Tables | None) -> Artifact:
        """Return a case's artefact that takes steps; ``tables`` None means the runtime's own quantizer.

        Raises:
            NoCascade: the case is a cascade that nothing can be certified of.
        """
        prepared, steps = self.prepare(case.model), tables
        if tables is not None:
            steps = Tables(carried_over(tables.quantized, prepared.graph), tables.entry)
        artifact = self._workshop.compile_graph(prepared, case.first, steps, calibration=None)
        return artifact if case == case.first else self._cascade(case, tables, artifact)

    def baseline(self, case: Case) -> tuple[Artifact, Continuation]:
        """Return the float model on the case's backend and what it generates, the same with its cache as without.

        Raises:
            CacheError: it does not.
        """
        if self._baseline is None or self._baseline[0].case != case.baseline:
            calibration = self._workshop.calibration(case.model)
            artifact = self.compile(case.baseline, self._workshop.quantize(case.baseline, calibration))
            found = self._continuation(artifact)
            self._check_cache(case.baseline, found.tokens)
            self._baseline = artifact, found
        return self._baseline

    def logits(self, artifact: Artifact, tokens: np.ndarray) -> np.ndarray:
        """Return what the artefact foretells on the way of ``tokens`` [n, count] after the first n prompts."""
        name = artifact.case.model
        prompts, shape, executable = self.prompts(name).inputs[0], self.generation(name).cache, artifact.executable
        outputs, start = [], time.perf_counter()
        for index in range(len(tokens)):
            text = read(executable, prompts[index : index + 1], shape)
            outputs.append(followed(executable, text, tokens[index : index + 1]))
            self._workshop.report(f"generating with {artifact.case}: {index + 1}/{len(tokens)}")
            if time.perf_counter() - start > self._workshop.settings.case_seconds:
                break
        return np.concatenate(outputs)

    def simulated(self, artifact: Artifact, tokens: np.ndarray) -> np.ndarray:
        """Return what the artefact's tables mean in the same place."""
        simulated = replace(artifact, executable=Simulated(artifact.tables.quantized))
        return self.logits(simulated, tokens)

    def _cascade(self, case: Case, tables: Tables, first: Artifact) -> Artifact:
        """Return the cascade that takes steps, by the threshold of the one that reads whole texts."""
        whole = self._workshop.compile(case, tables, self._workshop.calibration(case.model))
        stronger, _ = self.baseline(case)
        certificate = whole.executable.certificate
        stepping = Cascade(whole.executable.path, first.executable, stronger.executable, certificate)
        return replace(whole, executable=stepping, parts=(first, stronger))

    def _continuation(self, artifact: Artifact) -> Continuation:
        name = artifact.case.model
        prompts, generation, tokens = self.prompts(name).inputs[0], self.generation(name), []
        start = time.perf_counter()
        for prompt in prompts:
            text = read(artifact.executable, prompt[None], generation.cache)
            tokens.append(greedy(artifact.executable, text, generation.new_tokens))
            self._workshop.report(f"generating with {artifact.case}: {len(tokens)}/{len(prompts)}")
            if time.perf_counter() - start > self._workshop.settings.case_seconds:
                break
        tokens = np.concatenate(tokens)
        return Continuation(tokens, self.logits(artifact, tokens), len(tokens) < len(prompts))

    def _check_cache(self, case: Case, tokens: np.ndarray) -> None:
        """Generate anew, reading the whole text for each token."""
        executable = self._workshop.baseline(case).executable
        for prompt, expected in zip(self.prompts(case.model).inputs[0][:CHECKED_PROMPTS], tokens, strict=False):
            self._workshop.report(f"checking the cache of {case}")
            found = _without_cache(executable, prompt, len(expected))
            if not np.array_equal(found, expected):
                place = int(np.argmax(found != expected))
                raise CacheError(
                    f"{case} generates {expected[place]} with its cache where it generates {found[place]} without, "
                    f"in place {place + 1}: check the module that takes a step."
                )


class GenerationMeasurement(Measurement):
    """Collects the figures of a case that generates."""

    def generate(self, decoders: Decoders, tables: Tables | None) -> None:
        """Compare what the case foretells on the way that float goes, and time both, reading and generating.

        Raises:
            CacheError: float generates otherwise with its cache than without.
            ValueError: an output is NaN or infinite.
        """
        baseline, floats = decoders.baseline(self.case)
        artifact = decoders.compile(self.case, tables)
        self._judge_steps(decoders, artifact, floats)
        escalated = _escalated(artifact)
        self._sections |= {
            "accuracy": _NO_METRIC,
            "memory": _NO_MEMORY,
            **self._artifact_sections(artifact, baseline),
        }
        self._time_steps(decoders, artifact, baseline, escalated)

    def _judge_steps(self, decoders: Decoders, artifact: Artifact, floats: Continuation) -> None:
        model, prompts = self._workshop.model(self.case.model), decoders.prompts(self.case.model)
        after = decoders.logits(artifact, floats.tokens)
        if not np.isfinite(after).all():
            raise ValueError(f"{self.case} gives NaN or infinity as it generates: it cannot be judged.")
        before = floats.logits[: len(after)]
        outcomes = judging.outcomes(model, None, before, after, prompts, own=(None, None))
        parity = {"error": None, "reason": no_tables(artifact)}
        if artifact.tables is not None:
            expected = decoders.simulated(artifact, floats.tokens[:PARITY_PROMPTS])
            count = min(len(expected), len(after))
            parity = {"error": judging.relative_error(after[:count], expected[:count]), "n": count}
        truncated = floats.truncated or len(after) < len(floats.tokens)
        self._sections |= {
            "fidelity": {**judging.fidelity(outcomes), "truncated": truncated},
            "parity": parity,
            "scores": judging.scores(outcomes, after, prompts),
        }

    def _time_steps(
        self, decoders: Decoders, artifact: Artifact, baseline: Artifact, escalated: dict[str, float]
    ) -> None:
        generation, prompt = decoders.generation(self.case.model), decoders.prompts(self.case.model).inputs[0][:1]
        text = read(artifact.executable, prompt, generation.cache)
        for _ in range(generation.new_tokens):
            text = extended(artifact.executable, text, text.logits.argmax(axis=-1))
        prefill, speed = self._speeds(artifact, baseline, prompt, generation)
        self._sections |= {
            "prefill": prefill,
            "speed": speed,
            "generation": {
                "prompt_tokens": prompt.shape[1],
                "new_tokens": generation.new_tokens,
                "cache_bytes": text.cache_bytes,
                **escalated,
            },
        }

    def _speeds(
        self, artifact: Artifact, baseline: Artifact, prompt: np.ndarray, generation: Generation
    ) -> tuple[dict[str, object], dict[str, object]]:
        """Return how fast the prompt is read, and how fast a token is generated after it."""
        reason = artifact.executable.untimed_reason
        if reason:
            self._benchmark.pedantic(_reading(artifact.executable, prompt, generation))
            return {"reason": reason}, {"reason": reason}
        executables = artifact.executable, baseline.executable, self._workshop.twin(baseline)
        threads = self._threads(artifact, baseline)
        decoding = timing.Models(*(_decoding(one, prompt, generation) for one in executables))
        times = timing.time_paired(self._benchmark, decoding, self._seconds, threads)
        if times is None:
            return _NOT_TIMED, _NOT_TIMED
        times = _per_token(times)
        self._benchmark.stats.stats.data[:] = times.variant.tolist()
        reading = timing.Models(*(_reading(one, prompt, generation) for one in executables))
        read_times = timing.compare(reading, self._seconds, threads)
        return _with_rate(timing.speed(read_times), prompt.shape[1]), _with_rate(timing.speed(times), 1)


def _escalated(artifact: Artifact) -> dict[str, float]:
    """Return, of a cascade, the share of the tokens asked of it so far that its stronger model gave."""
    return {"escalated": artifact.executable.escalated / artifact.executable.asked} if artifact.parts else {}


def _reading(executable: Executable, prompt: np.ndarray, generation: Generation) -> timing.Call:
    return lambda: read(executable, prompt, generation.cache)


def _decoding(executable: Executable, prompt: np.ndarray, generation: Generation) -> timing.Call:
    """Return a call that generates tokens after the prompt, which is read now."""
    text = read(executable, prompt, generation.cache)
    return lambda: greedy(executable, text, TIMED_TOKENS + 1)  # the first one follows from the prompt alone


def _per_token(times: PairedTimes) -> PairedTimes:
    return replace(times, **{name: getattr(times, name) / TIMED_TOKENS for name in ("baseline", "variant", "twin")})


def _with_rate(speed: dict[str, object], tokens: int) -> dict[str, object]:
    rate = tokens / speed["p50"] if speed["p50"] else None
    return {**speed, "batch": 1, "tokens_per_second": rate}


def _without_cache(executable: Executable, prompt: np.ndarray, count: int) -> np.ndarray:
    text = prompt
    for _ in range(count):
        logits = executable(text[None])[0]
        text = np.append(text, logits[0, -1].argmax())
    return text[len(prompt) :]
