"""The numbers of ten small networks against those that ``python -m tests.golden.make`` stored."""

import json
from fnmatch import fnmatchcase

import pytest
from golden.make import STORED, golden_numbers
from golden.networks import NETWORKS
from golden.quantities import environment

FILE = json.loads(STORED.read_text())
EXACT, LIMIT, ROUNDING = 1e-10, 1e-3, {"float32": 1e-4, "float64": 1e-9}
# Numbers that are shares or factors near one; all others are compared relative to the largest of their list.
SHARES = ["limit.sparsity", "limit.lower", "limit.upper", "limit.retrained", "limit.directional", "limit.achieved"]
SHARES += [
    "limit.interval",
    "limit.evidence.already_removed",
    "limit.sharpness.negative_share",
    "limit.layers.sparsity",
]
SHARES += ["limit.*.step_error", "limit.*.sample_error", "limit.*.growth", "limit.*.resolvents", "limit.rises"]
# Sums over the data, which rounding changes in their last digits only.
SUMS = ["limit.epsilon", "limit.objective", "limit.layers.norm", "objective.*", "gradient.*", "hessian.*", "ggn.*"]
# With other kernels the number of steps may change, and all Ritz values that have not converged.
PER_KERNEL = ["limit.*.nodes", "limit.*.weights", "limit.*.count", "limit.*.steps", "limit.*.products", "limit.rises"]
pytestmark = pytest.mark.usefixtures("one_thread", "forking")


def among(key, patterns):
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def listed(value):
    return value if isinstance(value, list) else [value]


def differences(name, numbers, stored, exact):
    """Say which numbers of a network are not those stored.

    Args:
        name: Name of the network.
        numbers: Present numbers by path.
        stored: Stored numbers by path.
        exact: Both come from the same kernels, so that all must be equal; otherwise as far as rounding allows.
    """
    told = [f"{name}: {key} is on one side only" for key in sorted(numbers.keys() ^ stored.keys())]
    for key in sorted(numbers.keys() & stored.keys()):
        if not exact and among(key, PER_KERNEL):
            continue
        present, before = listed(numbers[key]), listed(stored[key])
        if len(present) != len(before) or list(map(type, present)) != list(map(type, before)) or key == "dtype":
            told += [f"{name}: {key} is {present}, stored is {before}"] if present != before else []
            continue
        tolerance = EXACT if exact else ROUNDING[stored["dtype"]] if among(key, SUMS) else LIMIT
        unit = 1.0 if among(key, SHARES) else max((abs(value) for value in before if value is not None), default=0.0)
        for place, (value, expected) in enumerate(zip(present, before, strict=True)):
            if value != expected and not abs(value - expected) <= tolerance * unit:
                told.append(f"{name}: {key}[{place}] is {value!r}, stored is {expected!r}")
    return told


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_those_stored(name):
    told = differences(name, golden_numbers(name), FILE["networks"][name], environment() == FILE["environment"])
    assert not told, "\n".join(told[:20])


def test_the_file_holds_every_network():
    assert list(FILE["networks"]) == list(NETWORKS)


@pytest.mark.parametrize(
    ("key", "factor", "exact"),
    [
        ("limit.sparsity", 1 + 1e-9, True),
        ("hessian.entries", 1 + 1e-9, True),
        ("limit.hessian.bracket.low.nodes", 1 + 1e-9, True),
        ("limit.hessian.steps", 2, True),
        ("limit.sparsity", 1.01, False),
        ("hessian.dots", 1 + 1e-8, False),
        ("limit.ggn.above.resolvents", 1.1, False),
    ],
)
def test_another_number_is_told_with_its_path_and_both_values(key, factor, exact):
    stored = FILE["networks"]["l1 mlp"]
    changed = [value * factor for value in listed(stored[key])]
    numbers = stored | {key: changed if isinstance(stored[key], list) else changed[0]}
    told = differences("l1 mlp", numbers, stored, exact)
    largest = max(range(len(changed)), key=lambda place: abs(changed[place]))
    expected = f"l1 mlp: {key}[{largest}] is {changed[largest]!r}, stored is {listed(stored[key])[largest]!r}"
    assert expected in told


def test_a_number_that_is_missing_or_not_a_number_is_told():
    stored = FILE["networks"]["mlp"]
    for value in (None, float("nan")):
        (told,) = differences("mlp", stored | {"limit.upper": value}, stored, exact=False)
        assert told.startswith("mlp: limit.upper")
    fewer = {key: value for key, value in stored.items() if key != "ggn.dots"}
    assert differences("mlp", fewer, stored, exact=True) == ["mlp: ggn.dots is on one side only"]
