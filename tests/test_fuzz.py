"""Files and command lines from anywhere: one line instead of a traceback, no foreign code, no hang, no blow-up."""

import io
import json
import math
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import classification, seeded
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from estimators import UserError
from estimators.files import load_tensors
from pruning_limits import PruningLimit, predict_limit
from pruning_limits.serial import MOST_BYTES
from pruning_limits.state_dicts import load_weights
from validation import cli
from validation.commands import prediction, validate
from validation.tables.reading import FOLDER, load_suite
from validation.tables.suite import Suite

few = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
OPTIONS = {"epsilon": 0.05, "steps": 4, "probes": 1, "samples": 8, "progress": False, "measure": False}


def model_and_data():
    return seeded(lambda: nn.Sequential(nn.Linear(6, 100), nn.Tanh(), nn.Linear(100, 3))), classification(6)()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def text():
    return predict_limit(*model_and_data(), **OPTIONS).to_json()


def one_line(action, *arguments, **options):
    """Run what may fail with a ``UserError`` of one line only; return None when it did."""
    try:
        return action(*arguments, **options)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
    return None


def used(limit):
    """Ask everything of a limit that was loaded."""
    for sparsity in (0.0, 0.5, 0.999):
        one_line(limit.check, sparsity)
        one_line(limit.epsilon_for, sparsity)
    one_line(limit.what_if, epsilon=0.1, weight_scale=2.0)
    one_line(limit.what_if, weight_scale=1e50, curvature_scale=1e50)
    one_line(limit.what_if, curvature_scale=1e300)
    for text in (repr(limit), limit.summary(), limit._repr_html_(), limit.to_json()):
        assert text
    assert limit.layers() is not None
    assert limit == limit


def mutated(content, places):
    """Change a file of bytes: at every place, given as a share of the length, put another byte or cut there."""
    result = bytearray(content)
    for share, value in places:
        at = min(int(share * len(result)), len(result) - 1)
        if value is None:
            del result[at:]
        elif result:
            result[at] = value
        if not result:
            break
    return bytes(result)


numbers = st.integers(0, 10**6)
places = st.lists(st.tuples(st.floats(0, 1), st.none() | st.integers(0, 255)), min_size=1, max_size=4)


# ---------------------------------------------------------------------------------------------- limits as JSON


@few
@given(JSON)
def test_any_json_is_no_limit(folder, value):
    path = folder / "any.json"
    path.write_text(json.dumps(value))
    assert one_line(PruningLimit.from_json, path) is None
    path.write_text(
        json.dumps({"format": "pruning-limit/3"} | (value if isinstance(value, dict) else {"curve": value}))
    )
    assert one_line(PruningLimit.from_json, path) is None


def paths(value, path=()):
    """Yield the place of every value inside a nested one."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from paths(child, (*path, key))


@pytest.mark.parametrize("wrong", [-1, 0, 5e-324, 899, 2**62, 1e308])
def test_every_measure_has_the_dimension_of_the_limit(folder, text, wrong):
    places = [number for number, place in enumerate(paths(json.loads(text))) if place[-1] == "dimension"]
    assert len(places) == 5
    for number in places:
        path = folder / "dimension.json"
        path.write_text(json.dumps(changed(json.loads(text), number, wrong)))
        with pytest.raises(UserError, match="dimensions of hessian and ggn differ"):
            PruningLimit.from_json(path)


def changed(value, number, new, remove=False):
    """Change the value at the place of a number, counted around, in a nested value."""
    places = list(paths(value))
    *way, last = places[number % len(places)]
    parent = value
    for key in way:
        parent = parent[key]
    if remove:
        del parent[last]
    else:
        parent[last] = new
    return value


@settings(few, max_examples=300)
@given(numbers, JSON | st.sampled_from([2**63, -1, 1e308, 5e-324, "1e999", [[]], "x" * 5000]))
def test_a_value_anywhere_in_a_limit(folder, text, number, value):
    path = folder / "value.json"
    path.write_text(json.dumps(changed(json.loads(text), number, value)))
    loaded = one_line(PruningLimit.from_json, path)
    if loaded is not None:
        used(loaded)


@pytest.fixture(scope="module")
def ends(text):
    """Numbers of places in a limit: of every kind, such as an entry of one list, the first and the last."""
    kinds = {}
    for number, place in enumerate(paths(json.loads(text))):
        kinds.setdefault(tuple(key for key in place if isinstance(key, str)), []).append(number)
    assert len(kinds) > 150
    return sorted({number for alike in kinds.values() for number in (alike[0], alike[-1])})


@pytest.mark.parametrize("value", [1e308, 5e-324])
def test_a_number_at_the_ends_of_floating_point_anywhere_in_a_limit(folder, text, ends, value):
    path = folder / "end.json"
    for number in ends:
        path.write_text(json.dumps(changed(json.loads(text), number, value)))
        loaded = one_line(PruningLimit.from_json, path)
        if loaded is not None:
            used(loaded)


@settings(few, max_examples=200)
@given(places)
def test_bytes_of_a_limit(folder, text, changes):
    path = folder / "bytes.json"
    path.write_bytes(mutated(text.encode(), changes))
    loaded = one_line(PruningLimit.from_json, path)
    if loaded is not None:
        used(loaded)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_are_not_json(tmp_path, text, constant):
    plain = json.loads(text) | {"objective": {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[constant]}
    (tmp_path / "limit.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="is not valid JSON"):
        PruningLimit.from_json(tmp_path / "limit.json")


def test_keys_that_occur_twice(tmp_path, text):
    (tmp_path / "limit.json").write_text(text.rstrip()[:-1] + ', "upper": 1.0}')
    with pytest.raises(UserError, match="is not valid JSON"):
        PruningLimit.from_json(tmp_path / "limit.json")


@pytest.mark.parametrize("name", ["parameters", "samples", "steps", "dimension", "weights"])
@pytest.mark.parametrize("count", [2**62, 10**30, 1e300])
def test_giant_counts_take_no_memory(tmp_path, text, name, count):
    def enlarged(value):
        if isinstance(value, dict):
            return {
                key: count if key == name and not isinstance(entry, list) else enlarged(entry)
                for key, entry in value.items()
            }
        return [enlarged(entry) for entry in value] if isinstance(value, list) else value

    (tmp_path / "limit.json").write_text(json.dumps(enlarged(json.loads(text))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = one_line(PruningLimit.from_json, tmp_path / "limit.json")
    if loaded is not None:
        used(loaded)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_files_without_an_end():
    with pytest.raises(UserError, match=f"has more than {MOST_BYTES >> 20} MiB"):
        PruningLimit.from_json("/dev/zero")


@pytest.mark.parametrize("depth", [100, 400, 900, 100_000])
def test_deep_nesting(tmp_path, text, depth):
    nested = "[" * depth + "]" * depth
    (tmp_path / "limit.json").write_text(text.replace('"settings": {', '"settings": {"deep": ' + nested + ", "))
    loaded = one_line(PruningLimit.from_json, tmp_path / "limit.json")
    if loaded is not None:
        used(loaded)


# ------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(kind):
    state = {"0.weight": torch.randn(5, 6), "0.bias": torch.zeros(5), "steps": torch.tensor(3)}
    if kind == "safetensors":
        return save(state)
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=kind == "pt")
    return stream.getvalue()


CHECKPOINTS = {kind: checkpoint(kind) for kind in ("pt", "legacy", "safetensors")}


@settings(few, max_examples=150)
@given(st.sampled_from(sorted(CHECKPOINTS)), places)
def test_bytes_of_a_checkpoint(folder, kind, changes):
    path = folder / f"bytes.{'safetensors' if kind == 'safetensors' else 'pt'}"
    path.write_bytes(mutated(CHECKPOINTS[kind], changes))
    loaded = one_line(load_tensors, path)
    if loaded is not None:
        one_line(load_weights, nn.Sequential(nn.Linear(6, 5)), path)


@few
@given(st.binary(max_size=200))
@example(b"")
@example((2**62).to_bytes(8, "little") + b"{}")
@example(b"\x80\x02]q\x00.")
def test_any_bytes_are_no_checkpoint(folder, content):
    for suffix in ("pt", "safetensors"):
        (folder / f"any.{suffix}").write_bytes(content)
        one_line(load_tensors, folder / f"any.{suffix}")


class Hostile:
    """An object whose unpickling would call something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@few
@given(
    st.sampled_from([(exec, "open('owned', 'w')"), (eval, "open('owned', 'w')"), (Path.touch, Path("owned"))]),
    st.integers(0, 5),
    st.booleans(),
)
def test_no_pickle_executes_code(folder, call, protocol, archive):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        content = pickle.dumps({"0.weight": [Hostile(*call)]}, protocol)
        if archive:
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w") as file:
                file.writestr("archive/data.pkl", content)
                file.writestr("archive/version", "3\n")
            content = stream.getvalue()
        Path("hostile.pt").write_bytes(content)
        assert one_line(load_tensors, Path("hostile.pt")) is None
        assert not Path("owned").exists()


def test_a_tensor_that_claims_more_than_its_file_holds(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    assert one_line(load_tensors, tmp_path / "w.safetensors") is None


# ------------------------------------------------------------------------------- the state of the recurrences


@pytest.fixture(scope="module")
def state(folder):
    class StopError(Exception):
        pass

    def stop(stage, done, total):
        if stage.startswith("ggn") and done:
            raise StopError

    with pytest.raises(StopError):
        predict_limit(*model_and_data(), **(OPTIONS | {"steps": 8, "progress": stop}), checkpoint=folder / "state.pt")
    return load_tensors(folder / "state.pt")


def stored(folder, state):
    """Continue from a stored state; return the limit, or None when it was refused in one line."""
    torch.save(state, folder / "changed.pt")
    return one_line(predict_limit, *model_and_data(), **(OPTIONS | {"steps": 8}), checkpoint=folder / "changed.pt")


VALUES = [None, -1, 2**62, math.nan, "x", [], {}, torch.ones(3), torch.full((900,), math.nan), [torch.ones(900)] * 3]


@settings(few, max_examples=50)
@given(numbers, st.sampled_from(VALUES), st.booleans())
def test_a_value_anywhere_in_the_state(folder, state, number, value, remove):
    stored(folder, changed(load_tensors(folder / "state.pt"), number, value, remove))


@pytest.mark.parametrize("key", ["steps", "alpha", "beta", "exhausted", "current", "previous", "basis"])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value)[:8])
def test_a_damaged_recurrence_is_refused(folder, state, key, value):
    damaged = load_tensors(folder / "state.pt")
    for recurrence in damaged["states"].values():
        recurrence[key] = value
    if not (isinstance(value, list) and not value):  # vectors may be absent where a run is finished
        assert stored(folder, damaged) is None


def test_the_state_itself_continues(folder, state):
    assert stored(folder, state) is not None


# ------------------------------------------------------------------------------------------------------ suites


SUITE = (FOLDER / "quick.toml").read_bytes()


@settings(few, max_examples=200)
@given(places)
def test_bytes_of_a_suite(folder, changes):
    (folder / "bytes.toml").write_bytes(mutated(SUITE, changes))
    loaded = one_line(load_suite, str(folder / "bytes.toml"))
    assert loaded is None or isinstance(loaded, Suite)


WRONG = ["nan", "inf", "-1", "1e999", "[]", "[[[]]]", "{}", "'x'", "true", "1979-05-27", "{a={b=1}}"]
TOML = st.sampled_from([*WRONG, "9" * 5000, "[" * 2000, f"'{'x' * 5000}'"])


@settings(few, max_examples=200)
@given(numbers, TOML)
def test_a_value_anywhere_in_a_suite(folder, number, value):
    lines = SUITE.decode().splitlines()
    assigning = [n for n, line in enumerate(lines) if "=" in line]
    number = assigning[number % len(assigning)]
    lines[number] = f"{lines[number].partition('=')[0]} = {value}"
    (folder / "value.toml").write_text("\n".join(lines))
    loaded = one_line(load_suite, str(folder / "value.toml"))
    assert loaded is None or isinstance(loaded, Suite)


# ----------------------------------------------------------------------------------------------- command lines


WORDS = st.sampled_from(
    [
        *("predict", "spectrum", "check", "validate", "--model", "fc5-mini", "--dataset", "--sparsity", "0.5", "nan"),
        *(
            "-1",
            "--limit",
            "--json",
            "--junit",
            "--dense",
            "--pruned",
            "--device",
            "--help",
            "--seed",
            "9" * 20,
            "--l1",
        ),
        *("--l1", "--suite", "--table", "--only", "[", "--jobs", "0", "/dev/null", ".", "🎈", "--", "-h", "1e999", ""),
    ]
)


def refused(message):
    raise UserError(message)


@settings(few, max_examples=150)
@given(st.lists(WORDS, max_size=7))
@example(["check", "--sparsity", "0.5", "--limit", "/dev/zero"])
@example(["check", "--dense", "--pruned", "", "--model", "fc5-mini", "--dataset", "digits"])
@example(["validate", "--only", "[", "--suite", "\x00"])
def test_any_command_line(folder, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(prediction, "load_task", lambda _: refused("no task"))
        patch.setattr(validate, "run_table", lambda *_: refused("no table"))
        result = CliRunner().invoke(cli.main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    assert result.exit_code in (0, 1, 2)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30])
def test_seeds_beyond_what_pytorch_takes(seed):
    model, data = model_and_data()
    with pytest.raises(UserError, match=r"^seed: "):
        predict_limit(model, data, **OPTIONS, seed=seed)
    assert np.isfinite(predict_limit(model, data, **OPTIONS, seed=2**62 - 1).sparsity)
