"""The formulas of the report in JavaScript against ``PruningLimit.what_if`` and ``check``."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import small_limit, unknown_limit

import pruning_limits
from estimators import L1, UserError
from pruning_limits import PruningLimit, predict_limit
from validation.models import build_model

FORMULAS = Path(pruning_limits.__file__).parent / "page" / "limit.js"
PROGRAM = Path(__file__).parent / "report_program.js"
NUMBERS = ("sparsity", "lower", "upper", "retrained", "directional")
NEUTRAL = {"epsilon": None, "weightScale": 1.0, "curvatureScale": 1.0}

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed, which runs the formulas")


@pytest.fixture(scope="module")
def limits(trained, digits) -> dict[str, PruningLimit]:
    """Limits of every kind: exact and sampled spectra, both curvatures, both signs, with and without measurement."""

    def larger(**options):
        batches = digits.batches("train", limit=300)
        return predict_limit(trained, batches, penalty=L1(1e-3), samples=100, steps=12, **options)

    flat = build_model("fc5-mini", digits.shape, digits.classes, seed=1).eval()
    limits = {
        "exact": small_limit(),
        "exact, clipped GGN": small_limit(measure=False, curvature="ggn", negative="clip"),
        "sampled": larger(probes=2),
        "sampled GGN": larger(probes=1, curvature="ggn"),
        "clipped": larger(probes=3, negative="clip", measure=False, epsilon=0.3),
        "unknown": unknown_limit(),
        "unknown, not measured": unknown_limit(measure=False, negative="clip"),
        "untrained": predict_limit(flat, digits.batches("train", limit=100), samples=64, steps=6, probes=2),
    }
    assert limits["sampled"].ggn.growth > 1
    assert limits["sampled"].hessian.bracket is not None
    assert limits["clipped"].hessian.bracket is None
    assert limits["sampled GGN"].hessian.above is not None
    assert limits["exact"].hessian.measure.exact
    assert limits["unknown"].unknown
    known = limits["exact"].directions
    steep = tuple((np.ones_like(nodes), 1e-9 * weights) for nodes, weights in known.rules)
    hopeless = dataclasses.replace(known, rules=steep, rises=tuple(1e9 for _ in known.rises))
    limits["contradictory"] = dataclasses.replace(limits["exact"], directions=hopeless)
    return limits


def questions(limits):
    """Unchanged conditions, each condition alone, and all at once, with random sizes and targets."""
    generator = np.random.default_rng(0)
    for name, limit in limits.items():
        for moved in ([], ["epsilon"], ["weightScale"], ["curvatureScale"], *[list(NEUTRAL)] * 8):
            sizes = {
                "epsilon": limit.epsilon * 10 ** generator.uniform(-2, 2),
                "weightScale": 10 ** generator.uniform(-1, 1),
                "curvatureScale": 10 ** generator.uniform(-2, 2),
            }
            changes = NEUTRAL | {one: sizes[one] for one in moved}
            yield {"limit": name, "changes": changes, "target": round(generator.uniform(0, 0.999), 3)}


def asked(limits, questions):
    plain = {name: json.loads(limit.to_json()) for name, limit in limits.items()}
    text = json.dumps({"limits": plain, "questions": questions})
    done = subprocess.run(["node", PROGRAM, FORMULAS], input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_javascript_answers_as_python_does(limits):
    every = list(questions(limits))
    refused, statuses = [], set()
    for question, answer in zip(every, asked(limits, every), strict=True):
        changes = question["changes"]
        arguments = (changes["epsilon"], changes["weightScale"], changes["curvatureScale"])
        try:
            expected = limits[question["limit"]].what_if(*arguments)
        except UserError:
            assert "re-tuning reaches" in answer["error"]
            refused.append(question["limit"])
            continue
        numbers = [*(getattr(expected, name) for name in NUMBERS), *expected.interval]
        assert [number is None for number in answer["numbers"]] == [number is None for number in numbers]
        found, numbers = (np.array(one, dtype=np.float64) for one in (answer["numbers"], numbers))  # None as NaN
        np.testing.assert_allclose(found, numbers, rtol=0, atol=1e-9, err_msg=str(question))
        verdict = expected.check(question["target"])
        statuses.add(verdict.status)
        assert (answer["verdict"]["status"], answer["verdict"]["reason"]) == (verdict.status, verdict.reason)
        assert answer["verdict"]["margin"] == pytest.approx(verdict.margin, abs=1e-9)
        assert answer["achieved"] == pytest.approx(expected.achieved)
    assert statuses == {"achievable", "open", "infeasible"}
    assert set(refused) == {"contradictory"}


def test_a_verdict_at_a_bound_is_the_same(limits):
    limit = dataclasses.replace(limits["exact"], lower=0.25, achieved=0.25)
    ceiling = min(1.0, limit.upper + (limit.ggn.step_error + limit.ggn.sample_error + limit.directions.step_error))
    every = [{"limit": "one", "changes": NEUTRAL, "target": target} for target in (0.0, 0.25, 0.25 + 1e-12, ceiling)]
    for question, answer in zip(every, asked({"one": limit}, every), strict=True):
        assert answer["verdict"]["status"] == limit.check(question["target"]).status
