"""The public names, arguments, defaults and commands that other programs rely on, walked one by one."""

import inspect
import json

import pytest
from click.testing import CliRunner
from helpers import small_limit

import estimators
import pruning_limits
from pruning_limits import Answer, PruningLimit, Verdict, predict_limit
from validation.cli import main

DEFAULTS = {
    "loss_fn": None,
    "metric": None,
    "max_drop": None,
    "held_out": None,
    "criterion": "loss",
    "epsilon": "batch-std",
    "penalty": None,
    "retune": False,
    "curvature": "hessian",
    "negative": "abs",
    "parameters": None,
    "samples": None,
    "probes": None,
    "steps": None,
    "tolerance": 0.005,
    "max_batches": None,
    "measure": True,
    "pattern": "unstructured",
    "seed": 0,
    "progress": None,
    "checkpoint": None,
    "precision": "full",
    "budget": None,
    "forecast": None,
}
NUMBERS = ["sparsity", "lower", "achieved", "retrained", "upper", "directional", "headroom", "objective", "epsilon"]
TEXTS = ["status", "criterion"]
OTHERS = [
    "pattern",
    "interval",
    "answers",
    "notes",
    "sharpness",
    "cost",
    "evidence",
    "metric",
    "max_drop",
    "dense_metric",
]
METHODS = ["answer", "what_if", "check", "mask", "prune", "layers", "summary", "details", "report", "to_json", "plot"]
METHODS += ["retune", "for_pattern", "to_pandas", "from_json", "epsilon_for", "weight_scale_for", "curvature_scale_for"]
COMMANDS = {
    "demo": "--out",
    "predict": "--model --model-arg --checkpoint --dataset --data --loss --metric --max-drop --held-out --criterion "
    "--mean --std --scale --no-normalise --json --plot --report --device --epsilon --l1 --l2 --pattern --budget",
    "check": "--sparsity --pattern --limit --dense --pruned --max-drop --junit --json",
    "spectrum": "--model --dataset --plot",
    "report": "--out",
    "retune": "--sparsity --model --checkpoint --dataset --out --force --limit",
    "validate": "--suite --table --out --resume --jobs",
}


@pytest.fixture(scope="module")
def limit():
    return small_limit(metric="accuracy")


def test_what_is_imported_from_the_two_packages():
    for name in ("predict_limit", "PruningLimit", "Answer", "Verdict", "L1", "L2"):
        assert name in pruning_limits.__all__
        assert getattr(pruning_limits, name)
    for name in ("Hessian", "GGN", "Objective", "lanczos", "spectral_measure", "L1", "L2"):
        assert name in estimators.__all__
        assert getattr(estimators, name)


def test_arguments_and_their_defaults():
    parameters = inspect.signature(predict_limit).parameters
    assert list(parameters)[:3] == ["model", "loader", "loss_fn"]
    assert {name: parameter.default for name, parameter in parameters.items() if name in DEFAULTS} == DEFAULTS
    assert set(parameters) == {"model", "loader", *DEFAULTS}


@pytest.mark.parametrize("name", [*NUMBERS, *TEXTS, *OTHERS, "parameters"])
def test_attributes_of_a_limit(limit, name):
    kinds = {**dict.fromkeys(NUMBERS, (float, type(None))), **dict.fromkeys(TEXTS, str)}
    assert isinstance(getattr(limit, name), kinds.get(name, object))


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_a_limit(limit, name):
    assert callable(getattr(limit, name))
    assert inspect.getdoc(getattr(PruningLimit, name))


def test_answers(limit):
    assert [answer.rung for answer in limit.answers] == ["one-shot", "re-trained", "bound", "formula"]
    names = [
        "rung",
        "sparsity",
        "low",
        "high",
        "basis",
        "metric",
        "status",
    ]
    assert list(inspect.signature(Answer).parameters) == names
    for answer in limit.answers:
        assert limit.answer(answer.rung) == answer
        assert answer.basis in ("measured", "forecast", "bound", "formula", "unknown")
    assert limit.answer("formula").sparsity == limit.sparsity
    assert limit.answer("one-shot").sparsity == limit.lower == limit.achieved
    with pytest.raises(pruning_limits.UserError, match=r"^rung: expected one of one-shot, .*, got 'second'$"):
        limit.answer("second")


def test_verdicts(limit):
    verdict = limit.check(0.9)
    assert isinstance(verdict, Verdict)
    assert list(inspect.signature(Verdict).parameters) == ["status", "reason", "margin", "metric"]
    assert verdict.status in ("achievable", "open", "infeasible")


@pytest.mark.parametrize("name", [f"pruning-limit/{number}" for number in (1, 2, 3, 4, 5, 6, 8)])
def test_files_of_other_versions_are_refused_in_one_line(name, limit, tmp_path):
    path = tmp_path / "limit.json"
    path.write_text(json.dumps(json.loads(limit.to_json()) | {"format": name}))
    with pytest.raises(pruning_limits.UserError) as caught:
        PruningLimit.from_json(path)
    stated = f"has format {name} of another version, not pruning-limit/7"
    assert str(caught.value) == f"limit: {path} {stated}; predict it again"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options(command):
    result = CliRunner().invoke(main, [command, "--help"], terminal_width=200)
    assert result.exit_code == 0
    for option in COMMANDS[command].split():
        assert option in result.output, option
