"""Inference: what each case costs in accuracy and buys in speed and size."""


def test_inference(case, calibration, evaluation, workshop, measurement):
    """Quantize, compile, judge on held-out samples, then time; float on the same backend is the other half of each."""
    tables = workshop.quantize(case, calibration)
    artifact = workshop.compile(case, tables, calibration)
    baseline = workshop.baseline(case)
    measurement.judge(artifact, baseline, evaluation)
    measurement.time(artifact, baseline, evaluation)
    measurement.memory(artifact, baseline, evaluation)
