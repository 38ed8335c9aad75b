"""The planted faults: what a tired programmer might write in the numerics, and the tests that should notice."""

from tests.mutants.trials import Mutant

_NUMERICS = ("tests/quant/test_tensor.py", "tests/quant/test_numerics.py")
_FORMATS = ("tests/quant/test_formats.py",)
_SCHEME = ("tests/quant/test_scheme.py",)
_GRIDS = ("tests/quant/test_grids.py",)
_CALIBRATE = ("tests/quant/test_calibrate.py",)
_GRAPH = ("tests/quant/test_graph.py",)
_LAYERS = ("tests/quant/test_layers.py",)
_RECURRENT = ("tests/quant/test_recurrent.py",)
_WEIGHTS = ("tests/quant/methods/test_weights.py",)
_GPTQ = ("tests/quant/methods/test_gptq.py",)
_AWQ = ("tests/quant/methods/test_awq.py",)
_ADAROUND = ("tests/quant/methods/test_adaround.py",)
_PALETTE = ("tests/quant/methods/test_palette.py",)
_SMOOTHQUANT = ("tests/quant/methods/test_smoothquant.py",)
_STATIC = ("tests/quant/methods/test_static.py", "tests/quant/test_bias.py")
_STATISTICS = ("tests/reports/test_statistics.py",)
_PAIRED = ("tests/reports/test_paired.py",)
_JUDGEMENT = ("tests/reports/test_judgement.py",)
_TIMING = ("tests/benchmarks/test_timing.py",)


def _of(file: str, tests: tuple[str, ...], edits: dict[str, str]) -> list[Mutant]:
    return [Mutant(file, before, after, tests) for before, after in edits.items()]


MUTANTS = [
    *_of(
        "quant/tensor.py",
        _NUMERICS,
        {
            "values - expand(self.zero_point": "values + expand(self.zero_point",
            "    codes.round_()": "    codes.floor_()",
            "codes += expand(zero_point.float()": "codes -= expand(zero_point.float()",
            "codes.clamp_(format.lowest, format.highest)": "codes.clamp_(format.lowest, format.highest - 1)",
            "format.highest - format.lowest\n": "format.highest - format.lowest + 1\n",
            ".float().clamp(max=0), high": ".float(), high",
            "extent = torch.maximum(-low, high) if": "extent = high if",
            "(scale > 0, scale, torch.ones_like(scale))": "(scale > 0, scale, torch.zeros_like(scale))",
            "(-low / scale).round()": "(-low / scale).floor()",
            "exponent - format.scale_significant_bits)": "exponent - format.scale_significant_bits - 1)",
            "int(np.log2(_SMALLEST_NORMAL_FLOAT16)) + 1": "int(np.log2(_SMALLEST_NORMAL_FLOAT16))",
            "(scale / step).round() * step": "(scale / step).floor() * step",
            "min(format.group_size, shape[-1])": "format.group_size",
            'count=bits, bitorder="little"), bit': 'count=bits, bitorder="big"), bit',
            ".view(np.int8) >> shift": " >> shift",
            "stream.numel() != -(-count * bits // 8)": "stream.numel() < -(-count * bits // 8) - 1",
            "self.zero_point.numel() * self.format.bits": "self.zero_point.numel() * 8",
            "for side in (0, extra)": "for side in (extra, 0)",
            "amin(within).clamp(max=0)": "amin(within)",
        },
    ),
    *_of(
        "quant/tensor.py",
        _FORMATS,
        {
            "format.group_size // prod(shape[2:])": "format.group_size // shape[2]",
        },
    ),
    *_of(
        "quant/tensor.py",
        _PALETTE,
        {
            "return -(-self.codes.shape[0] // tables)": "return max(1, self.codes.shape[0] // tables)",
        },
    ),
    *_of(
        "quant/formats.py",
        _FORMATS,
        {
            "upper_wins = codes[1:] % 2 == 0": "upper_wins = codes[1:] % 2 == 1",
            "middle = (values[1:] + values[:-1]) / 2": "middle = (values[1:] + 3 * values[:-1]) / 4",
            "exponent - (mantissa == 0.5).int()": "exponent",
            ".float().clamp(min=_SMALLEST_E4M3) * shared": ".float() * shared",
            "largest / _E4M3.max": "largest / 256",
            "2.0, 3.0, 4.0, 6.0)": "2.0, 3.0, 4.0, 5.0)",
        },
    ),
    *_of(
        "quant/scheme.py",
        _SCHEME,
        {
            "return -(2 ** (self.bits - 1) - 1) if": "return -(2 ** (self.bits - 1)) if",
            "DEFAULT_GROUP_SIZE = 32": "DEFAULT_GROUP_SIZE = 64",
            'symmetric=dynamic_granularity != "tensor"': "symmetric=True",
        },
    ),
    *_of(
        "quant/scheme.py",
        _NUMERICS,
        {
            "return _FLOAT16_SIGNIFICANT_BITS - self.bits": "return _FLOAT16_SIGNIFICANT_BITS - 1",
        },
    ),
    *_of(
        "quant/grids.py",
        _GRIDS,
        {
            "better = other.error < self.error": "better = other.error > self.error",
            "torch.linalg.vecdot(weighted, targets)": "torch.linalg.vecdot(codes, targets)",
            "usable = (norm > 0) & (fitted > 0)": "usable = norm >= 0",
            "weights.repeat(rows, 1)": "weights.repeat_interleave(rows, 0)",
        },
    ),
    *_of(
        "quant/grids.py",
        _WEIGHTS,
        {
            "self.format.lowest - zero_point": "self.format.lowest + zero_point",
        },
    ),
    *_of(
        "quant/calibrate.py",
        _CALIBRATE,
        {
            "MOMENTUM * self.low + (1 - MOMENTUM) * low": "(1 - MOMENTUM) * self.low + MOMENTUM * low",
            "torch.minimum(low, self.low)": "low",
            "reshape(-1, _BINS // 2, 2).sum(2)": "reshape(-1, _BINS // 2, 2)[..., 0]",
            "(1 - percent / 100, percent / 100)": "(1 - percent / 100, 1 - percent / 100)",
            "    counts[:, _BINS // 2] += histogram.zeros\n": "",
            "    reference[0] += counts[:start].sum()\n": "",
            ".clamp_(format.lowest, format.highest)\n    return ((codes": "\n    return ((codes",
            "_ROUNDS = 3": "_ROUNDS = 0",
        },
    ),
    *_of(
        "quant/graph.py",
        _GRAPH,
        {
            "return (codes - offset) * scale": "return codes * scale",
            "values = values * self.input_scale": "values = values / self.input_scale",
            "values.amax(-1, keepdim=True), self.format": "values.amax(), self.format",
            "min(self.format.group_size, values.shape[-1])": "values.shape[-1]",
            "bits += 8 * value.numel() * self.floats": "bits += 8 * self.floats",
        },
    ),
    *_of(
        "quant/layers.py",
        _LAYERS,
        {
            "self.cross.baddbmm_(originals.mT, rows)": "self.cross.baddbmm_(rows.mT, originals)",
            "        self.count += rows.shape[1]": "        self.count = rows.shape[1]",
        },
    ),
    *_of(
        "quant/recurrent.py",
        _RECURRENT,
        {
            "enter, keep, candidate, leave =": "keep, enter, candidate, leave =",
            "outputs[::-1] if backwards else outputs": "outputs",
        },
    ),
    *_of(
        "quant/methods/mse.py",
        _WEIGHTS,
        {
            "_RANGES).tolist()[1:]": "_RANGES).tolist()[:1]",
            "torch.linspace(1.0, _NARROWEST": "torch.linspace(1.0, 2 - _NARROWEST",
        },
    ),
    *_of(
        "quant/methods/hqq.py",
        _WEIGHTS,
        {
            "_ITERATIONS = 8": "_ITERATIONS = 0",
            "difference.abs_().pow_(POWER)": "difference.abs_().pow_(2)",
            "magnitude.sub_(threshold)": "magnitude.add_(threshold)",
        },
    ),
    *_of(
        "quant/methods/gptq.py",
        _GPTQ,
        {
            "error.unsqueeze(1))\n": "error.unsqueeze(1), value=-1)\n",
            "earlier].mT, errors[:, done])": "earlier].mT, errors[:, done], alpha=-1)",
            "dim2=-1).argsort(-1)": "dim2=-1).argsort(-1, descending=True)",
            "gram / moments.count\n    correction": "gram\n    correction",
            "return matrix + correction": "return matrix - correction",
            "lowest -= _per_row(layer, zero_point": "lowest += _per_row(layer, zero_point",
            "order // grid.width": "order.sort().values // grid.width",
        },
    ),
    *_of(
        "quant/methods/awq.py",
        _AWQ,
        {
            "size ** (-step / _POWERS)": "size ** (step / _POWERS)",
            "input_scale.square() * self.energy": "self.energy",
            "(weight - weights[name].dequantize())": "(weights[name].dequantize() - weight)",
        },
    ),
    *_of(
        "quant/methods/adaround.py",
        _ADAROUND,
        {
            "(_share(self.v.detach()) >= 0.5)": "(_share(self.v.detach()) >= 0.0)",
            ".mul_(-2 * sharpness)": ".mul_(-sharpness)",
            "return min(candidates, key=self.error)": "return candidates[-1]",
        },
    ),
    *_of(
        "quant/methods/palette.py",
        _PALETTE,
        {
            "else -(-weight.shape[0] // rows)": "else max(1, weight.shape[0] // rows)",
        },
    ),
    *_of(
        "quant/methods/_k_means.py",
        _PALETTE,
        {
            "mass[edges].diff() + centre": "mass[edges].diff()",
            "return ((table[:, 1:] + table[:, :-1]) / 2)": "return (table[:, 1:] + 0 * table[:, :-1])",
        },
    ),
    *_of(
        "quant/methods/smoothquant.py",
        _SMOOTHQUANT,
        {
            "** (1 - strength) / inputs**strength": "** strength / inputs**strength",
            "torch.maximum(-sample.low, sample.high)": "sample.high",
        },
    ),
    *_of(
        "quant/methods/static.py",
        _STATIC,
        {
            "(bias.double() / grid).round() * grid": "(bias.double() / grid).floor() * grid",
        },
    ),
    *_of(
        "reports/statistics.py",
        _STATISTICS,
        {
            "return min(1.0, 2 * tail / 2**n)": "return min(1.0, tail / 2**n)",
            "regressed=int((baseline & ~variant)": "regressed=int((~baseline & variant)",
            "quadratic = 2 * n\n": "quadratic = n\n",
            "(len(order) - rank) *": "(len(order) - rank - 1) *",
            "(extreme + 1) / (PERMUTATIONS + 1)": "extreme / PERMUTATIONS",
            "return _logs(baseline) - _logs(variant)": "return _logs(variant) - _logs(baseline)",
            "lambda growth: -math.expm1(growth)": "lambda growth: math.expm1(growth)",
            "_variance_of_median(rounds) + between_runs**2": "_variance_of_median(rounds)",
            "_variance_of_mean(sums, sizes) / independent, 1.0)": "1.0, 1.0)",
            "(0.025 * last, 0.975 * last)": "(0.05 * last, 0.95 * last)",
        },
    ),
    *_of(
        "reports/paired.py",
        _PAIRED,
        {
            '"root_mean": numpy.sqrt': '"root_mean": numpy.square',
            "parts += sign * slope": "parts += slope",
            "ratio * sums[:, 3]) - (sums[:, 0]": "ratio * sums[:, 3]) + (sums[:, 0]",
            "parts.var(ddof=1)": "parts.var()",
        },
    ),
    *_of(
        "reports/findings.py",
        _JUDGEMENT,
        {
            "p_value is not None and p_value < LEVEL": "p_value is not None",
            "if bounds and bounds[1] <= amount": "if bounds and bounds[0] <= amount",
            "sign = -scale if higher else scale": "sign = scale",
            "holm([findings[index].p_value for index in tested])": "[findings[index].p_value for index in tested]",
            "(margin / distance) ** 2": "(margin / distance)",
        },
    ),
    *_of(
        "reports/judgement.py",
        _JUDGEMENT,
        {
            "return judged or bool(self.lost or self.failed or self.problems)": "return judged",
            '{"regressed", "inconclusive"} if': '{"regressed"} if',
        },
    ),
    *_of(
        "benchmarks/timing.py",
        _TIMING,
        {
            '"baseline variant twin"': '"baseline twin variant"',
            "    call()\n    start = time.perf_counter()\n    call()": "    start = time.perf_counter()\n    call()",
            "low <= 1 + TOLERATED_NULL and": "low <= 1 + TOLERATED_NULL or",
            "speed_ratio(times.baseline, times.variant)": "speed_ratio(times.variant, times.baseline)",
            "if rounds >= ROUNDS_FOR_P99 else None": "if rounds else None",
            "> 2 * WIDE": "> 200 * WIDE",
        },
    ),
]
