"""The formulas and words of the report in JavaScript against ``PruningLimit.what_if``, ``check`` and ``ladder``."""

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
from pruning_limits import PruningLimit, Retuning, predict_limit
from pruning_limits.ladder import allowed, percent, rows, target_line
from pruning_limits.measured import monotone
from validation.models import build_model

PAGE = Path(pruning_limits.__file__).parent / "page"
FORMULAS = [PAGE / name for name in ("text.js", "limit.js", "measured.js", "ladder.js")]
PROGRAM = Path(__file__).parent / "report_program.js"
NUMBERS = ("sparsity", "lower", "upper", "retrained", "directional")
NEUTRAL = {"epsilon": None, "weightScale": 1.0, "curvatureScale": 1.0, "maxDrop": None}

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed, which runs the formulas")


def metric_limit(**options) -> PruningLimit:
    return small_limit(metric="accuracy", **options)


def minus_loss(model, batch):
    return -(model(batch[0]) - model(batch[0]).mean(1, keepdim=True)).square().mean(1)


@pytest.fixture(scope="module")
def limits(trained, digits) -> dict[str, PruningLimit]:
    """Limits of every kind: exact and sampled spectra, both curvatures, both signs, with and without measurement."""

    def larger(**options):
        batches = digits.batches("train", limit=300)
        return predict_limit(trained, batches, penalty=L1(1e-3), samples=100, steps=12, **options)

    flat = build_model("fc5-mini", digits.shape, digits.classes, seed=1).eval()
    held_out = digits.batches("test", limit=200)
    limits = {
        "exact": small_limit(),
        "exact, clipped GGN": small_limit(measure=False, curvature="ggn", negative="clip"),
        "sampled": larger(probes=2, criterion="objective"),
        "sampled GGN": larger(probes=1, curvature="ggn"),
        "clipped": larger(probes=3, negative="clip", measure=False, epsilon=0.3),
        "unknown": unknown_limit(),
        "unknown, not measured": unknown_limit(measure=False, negative="clip"),
        "untrained": predict_limit(flat, digits.batches("train", limit=100), samples=64, steps=6, probes=2),
        "accuracy": metric_limit(),
        "accuracy falls": metric_limit(epsilon="batch-std", max_drop=0.05),
        "held-out": larger(probes=1, metric="accuracy", max_drop=0.02, held_out=held_out),
        "re-tuned": larger(probes=1, retune=Retuning(samples=100, passes=1)),
        "re-tuned, accuracy": larger(
            probes=1, metric="accuracy", max_drop=0.02, held_out=held_out, retune=Retuning(128, 1, seeds=2)
        ),
        "drawn losses": larger(probes=1, budget=0.9),
        "other metric": small_limit(metric=minus_loss, epsilon="batch-std", max_drop=0.05),
    }
    assert limits["sampled"].evidence.ggn.growth > 1
    assert limits["sampled"].evidence.hessian.bracket is not None
    assert limits["clipped"].evidence.hessian.bracket is None
    assert limits["sampled GGN"].evidence.hessian.above is not None
    assert limits["exact"].evidence.hessian.measure.exact
    assert limits["drawn losses"].evidence.dense.objective_error > 0
    assert limits["unknown"].evidence.unknown
    assert limits["untrained"].evidence.dense.at_chance
    assert limits["accuracy falls"].allowed.origin == limits["held-out"].allowed.origin == "max-drop"
    known = limits["exact"].evidence.directions
    steep = tuple((np.ones_like(nodes), 1e-9 * weights) for nodes, weights in known.rules)
    hopeless = dataclasses.replace(known, rules=steep, rises=tuple(1e9 for _ in known.rises))
    limits["contradictory"] = with_evidence(limits["exact"], directions=hopeless)
    loose = dataclasses.replace(known, step_error=0.2)
    limits["loose bound"] = with_evidence(limits["exact"], directions=loose).what_if()
    assert limits["loose bound"].answer("bound").status.endswith("reaches 100 %")
    points = tuple(dataclasses.replace(point, rise=0.0) for point in limits["exact"].evidence.points)
    limits["refuted bound"] = with_evidence(
        limits["exact"], points=(*points, dataclasses.replace(points[-1], sparsity=0.99))
    ).what_if()
    points = limits["accuracy falls"].evidence.points
    last = dataclasses.replace(points[-1], rise=np.inf, drop=np.inf, drop_error=np.inf)
    limits["infinite fall"] = with_evidence(limits["accuracy falls"], points=(*points[:5], last)).what_if(max_drop=0.03)
    single = tuple(dataclasses.replace(point, drop_error=np.inf) for point in points)
    limits["one sample"] = with_evidence(limits["accuracy falls"], points=single).what_if(max_drop=0.05)
    limits["pruned already"] = with_evidence(limits["accuracy falls"], already_removed=0.05).what_if(max_drop=0.04)
    tuned = limits["re-tuned"].evidence.retuned
    tuned = dataclasses.replace(
        tuned, points=(*tuned.points, dataclasses.replace(tuned.points[-1], sparsity=0.999, rise=np.inf))
    )
    limits["infinite rise"] = with_evidence(limits["re-tuned"], retuned=tuned).what_if()
    assert "is refuted" in limits["refuted bound"].answer("bound").status
    return limits


def with_evidence(limit, **changes):
    return dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, **changes))


def questions(limits):
    """Unchanged conditions, each condition alone, and all at once, with random sizes and targets."""
    generator = np.random.default_rng(0)
    for name, limit in limits.items():
        has_metric = limit.metric is not None
        asked = [[], ["epsilon"], ["weightScale"], ["curvatureScale"]]
        asked += [["epsilon", "weightScale", "curvatureScale"]] * 8
        asked += [["maxDrop"]] * 8 + [["maxDrop", "weightScale"]] * 2 if has_metric else []
        for moved in asked:
            sizes = {
                "epsilon": limit.epsilon * 10 ** generator.uniform(-2, 2),
                "weightScale": 10 ** generator.uniform(-1, 1),
                "curvatureScale": 10 ** generator.uniform(-2, 2),
                "maxDrop": 0.05 * 10 ** generator.uniform(-1, 1.6),
            }
            changes = NEUTRAL | {key: sizes[key] for key in moved}
            yield {"limit": name, "changes": changes, "target": round(generator.uniform(0, 0.999), 3)}


def run(program, text):
    done = subprocess.run(["node", *program], input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def asked(limits, questions):
    plain = {name: json.loads(limit.to_json()) for name, limit in limits.items()}
    return run([PROGRAM, *FORMULAS], json.dumps({"limits": plain, "questions": questions}))


def numbers_of(limit):
    ends = [(answer.sparsity, answer.low, answer.high, answer.metric) for answer in limit.answers]
    allowed = (limit.allowed.epsilon, limit.allowed.low, limit.allowed.high)
    return [*(getattr(limit, name) for name in NUMBERS), *limit.interval, limit.achieved, *allowed, *sum(ends, ())]


def test_javascript_answers_as_python_does(limits):
    every = list(questions(limits))
    refused, statuses = set(), set()
    for question, answer in zip(every, asked(limits, every), strict=True):
        changes = question["changes"]
        arguments = [changes[name] for name in ("epsilon", "weightScale", "curvatureScale", "maxDrop")]
        try:
            expected = limits[question["limit"]].what_if(*arguments)
        except UserError as error:
            refused.add(question["limit"])
            reason = "has lost so much" if "has lost" in str(error) else "no re-tuning reaches"
            assert reason in answer["error"], question
            continue
        assert "error" not in answer, (question, answer)
        numbers = numbers_of(expected)
        assert [number is None for number in answer["numbers"]] == [number is None for number in numbers], question
        actual, numbers = (np.array(values, dtype=np.float64) for values in (answer["numbers"], numbers))  # None as NaN
        np.testing.assert_allclose(actual, numbers, rtol=0, atol=1e-9, err_msg=str(question))
        assert answer["bases"] == [[rung.rung, rung.basis] for rung in expected.answers]
        assert answer["rows"] == [list(dataclasses.astuple(row)) for row in rows(expected)]
        assert answer["allowed"] == allowed(expected)
        verdict = expected.check(question["target"])
        statuses.add(verdict.status)
        assert (answer["verdict"]["status"], answer["verdict"]["reason"]) == (verdict.status, verdict.reason)
        assert answer["line"] == target_line(expected, question["target"])
        assert answer["verdict"]["margin"] == pytest.approx(verdict.margin, abs=1e-9)
        assert answer["verdict"]["metric"] == pytest.approx(verdict.metric, abs=1e-9)
    assert statuses == {"achievable", "open", "infeasible"}
    assert {"contradictory", "accuracy falls", "held-out"} <= refused
    assert not any(limit.metric is None for name, limit in limits.items() if name in refused - {"contradictory"})


def test_a_verdict_at_a_bound_is_the_same(limits):
    limit = limits["exact"]
    targets = (0.0, limit.lower, limit.lower + 1e-12, limit.answer("bound").high, limit.answer("bound").high + 1e-9)
    every = [{"limit": "one", "changes": NEUTRAL, "target": target} for target in targets]
    answers = [answer["verdict"]["status"] for answer in asked({"one": limit}, every)]
    assert answers == [limit.check(target).status for target in targets]
    assert answers == ["achievable", "achievable", "open", "open", "infeasible"]


CALLS = """
const fs = require("fs");
const vm = require("vm");
for (const file of process.argv.slice(2)) vm.runInThisContext(fs.readFileSync(file, "utf8"));
const calls = JSON.parse(fs.readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(calls.map(([name, ...values]) => vm.runInThisContext(name)(...values))));
"""


@pytest.fixture
def called(tmp_path):
    """Call functions of the page by name."""
    program = tmp_path / "calls.js"
    program.write_text(CALLS)
    return lambda calls: run([program, *FORMULAS], json.dumps(calls))


def test_numbers_are_written_as_python_writes_them(called):
    generator = np.random.default_rng(1)
    values = [0.0, 0.5, 1.5, 2.5, 0.125, 0.375, 6.25, 18.75, 9.5, 99.5, 0.00001234, 1e-5, 123456.0, 12345.0, 1e21, 0.1]
    values += [9.9996, 9.9995, 0.00099999, -0.25, -1234.5, *(10.0 ** generator.uniform(-8, 8, 300)).tolist()]
    cases = [("general", value, digits) for value in values for digits in (2, 3, 4)]
    cases += [("fixed", value, digits) for value in values if abs(value) < 1e15 for digits in (0, 1, 2)]
    kinds = {"general": "g", "fixed": "f"}
    expected = [f"{value:.{digits}{kinds[kind]}}" for kind, value, digits in cases]
    assert called(cases) == expected
    shares = [0.0, 1.0, 0.5, 0.0625, 0.1875, 0.999, 0.9999, 0.99995, 1 - 1e-7, 0.671]
    shares += [*generator.uniform(0, 1, 100).tolist(), *(1 - 10 ** generator.uniform(-8, 0, 100)).tolist()]
    assert called([("percent", share) for share in shares]) == [percent(share) for share in shares]


def test_the_isotonic_fit_is_that_of_python(called):
    generator = np.random.default_rng(2)
    for size in (1, 2, 3, 10, 40):
        values = (np.linspace(0, 1, size) + generator.normal(0, 0.5, size)).tolist()
        errors = np.where(generator.uniform(size=size) < 0.3, 0.0, generator.uniform(0.1, 2, size)).tolist()
        plain, weighted, zero = called(
            [("monotone", values), ("monotone", values, errors), ("monotone", values, [0.0] * size)]
        )
        np.testing.assert_allclose(plain, monotone(values), rtol=0, atol=1e-12)
        np.testing.assert_allclose(weighted, monotone(values, errors), rtol=0, atol=1e-12)
        np.testing.assert_allclose(zero, plain, rtol=0, atol=0)
