"""Which leaves of a batch count samples, how batches are cut, joined and copied, and what states its own size."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from helpers import random
from torch.nn.utils.rnn import pack_sequence

from estimators import UserError
from estimators.batches import (
    copied,
    described,
    empty,
    leaves,
    map_leaves,
    memory_of,
    move,
    opaque,
    rows_of,
    same_leaf,
    stated_size,
)
from estimators.layouts import leading_layout, obvious, of_length, one_length, refuse_without_samples

CPU = torch.device("cpu")
Pair = namedtuple("Pair", ["x", "y"])


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "none"


@dataclass
class Holder:
    inside: Record
    scale: float = 2.0


class Graphs:
    """A home-made batch of graphs: nodes of all of them in one tensor."""

    def __init__(self, nodes, of, graphs):
        self.nodes, self.of, self.num_graphs = nodes, of, graphs

    def to(self, device):
        return Graphs(self.nodes.to(device), self.of.to(device), self.num_graphs)


def graphs():
    return Graphs(random(7, 2), torch.tensor([0, 0, 0, 1, 1, 2, 2]), 3)


X, Y = random(5, 3, seed=1), torch.arange(5)
CONTAINERS = {
    "tensor": (X, [0]),
    "pair": ((X, Y), [0, 1]),
    "list": ([X, Y], [0, 1]),
    "named tuple": (Pair(X, Y), [0, 1]),
    "dict": ({"x": X, "y": Y}, [0, 1]),
    "ordered dict": (OrderedDict(x=X, y=Y), [0, 1]),
    "user dict": (UserDict(x=X, y=Y), [0, 1]),
    "dataclass": (Record(X, Y), [0, 1]),
    "nested dataclass": (Holder(Record(X, Y)), [0, 1]),
    "object": (SimpleNamespace(x=X, y=Y, flag=True), [0, 1]),
    "nested": ([{"x": [X]}, (Y, None)], [0, 1]),
    "names": ({"x": X, "name": list("abcde"), "split": "train"}, [0, 1]),
    "names in a tuple": ((X, tuple("abcde"), Y), [0, 1, 2]),
    "scalars": ({"x": X, "scale": torch.tensor(2.0), "weight": 3.5, "y": Y}, [0, 3]),
    "shared matrix": ((X, torch.eye(3), Y), [0, 2]),
    "shared first": ((torch.ones(3), X, Y), [1, 2]),
    "sparse": ((X, torch.eye(5).to_sparse(), Y), [0, 2]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_counts_samples_and_what_a_cut_holds(name):
    batch, counting = CONTAINERS[name]
    layout = leading_layout(batch)
    assert sorted(layout.counting) == counting
    assert layout.size(batch) == 5
    rows = torch.tensor([3, 0])
    cut = layout.cut(batch, rows)
    assert type(cut) is type(batch)
    assert layout.size(cut) == 2
    for place, (leaf, part) in enumerate(zip(leaves(batch), leaves(cut), strict=True)):
        if place not in counting:
            assert part is leaf
        elif isinstance(leaf, torch.Tensor):
            assert torch.equal(part, leaf[rows])
        else:
            assert part == type(leaf)([leaf[3], leaf[0]])
    assert len(layout.shared(batch)) == sum(1 for _ in leaves(batch)) - len(counting)
    refuse_without_samples(batch)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_copy_has_containers_of_its_own_and_the_same_leaves(name):
    batch, _ = CONTAINERS[name]
    for copy in (copied(batch), map_leaves(lambda leaf: leaf, batch)):
        assert type(copy) is type(batch)
        assert all(map(lambda a, b: a is b, leaves(batch), leaves(copy)))
        if not isinstance(batch, torch.Tensor):
            assert copy is not batch


def test_a_loss_may_empty_the_copy_it_is_given():
    batch = {"x": X, "labels": Y, "inside": {"scale": 2.0, "mask": X}, "list": [X, Y]}
    copy = copied(batch)
    copy.pop("labels")
    copy["inside"].pop("mask")
    copy["list"].append(3)
    copy["x"] = None
    assert batch.keys() == {"x", "labels", "inside", "list"}
    assert batch["inside"].keys() == {"scale", "mask"}
    assert len(batch["list"]) == 2
    assert batch["x"] is X


class Padded(dict):
    """A dictionary whose making takes more than its entries, as that of tokenisers does."""

    def __init__(self, data, encoding):
        super().__init__(data)
        self.encoding = encoding


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


@dataclass
class Late:
    x: torch.Tensor
    length: int = field(init=False)

    def __post_init__(self):
        self.length = len(self.x)


class Two(tuple):
    """A tuple that is made from two arguments."""

    def __new__(cls, x, y):
        return super().__new__(cls, (x, y))


def test_containers_that_cannot_be_made_from_their_entries():
    padded = map_leaves(lambda leaf: leaf, Padded({"x": X}, "utf-8"))
    assert type(padded) is Padded
    assert padded.encoding == "utf-8"
    assert padded["x"] is X
    late = leading_layout(Late(X)).cut(Late(X), torch.tensor([1]))
    assert len(late.x) == 1
    two = map_leaves(lambda leaf: leaf, Two(X, Y))
    assert type(two) is Two
    assert two[1] is Y


class Growing(list):
    """A list with a name of its own."""

    source = "none"


def test_a_list_of_a_kind_of_its_own_stays_one():
    batch = Growing([X, Y])
    batch.source = "file"
    copy = copied(batch)
    assert type(copy) is Growing
    assert copy.source == "file"


def test_batches_that_hold_no_samples():
    for batch in (3, "text", None, [], {}, {"a": {}}, [1, 2], torch.tensor(1.0), ("a", torch.tensor(2)), Slotted(X)):
        with pytest.raises(
            UserError, match=r"^loader: a batch of type \w+ holds no tensor with a sample dimension; give"
        ):
            refuse_without_samples(batch)
    for batch in (graphs(), pack_sequence([X, X[:3]]), (graphs(), Y), {"g": graphs()}):
        refuse_without_samples(batch)


def test_empty_batches():
    for batch in ((X[:0], Y[:0]), {"x": X[:0], "scale": 2.0}, [X[:0]], X[:0]):
        assert empty(batch)
    for batch in ((X, Y), (X, []), {"x": X, "names": ()}, torch.tensor(1.0), None, [], {}, (graphs(), []), graphs()):
        assert not empty(batch)
    assert not empty((pack_sequence([X, X[:3]]), []))


def test_lengths():
    assert of_length((X, Y, X[:3]), 3).counting == {2}
    assert of_length((X, Y, X[:3]), None).counting == frozenset()
    assert obvious((X, Y), leading_layout((X, Y)))
    assert obvious({"x": X, "scale": torch.tensor(1.0)}, leading_layout({"x": X}))
    assert not obvious((X, Y, Y), leading_layout((X, Y, Y)))
    assert not obvious((X, Y[:3]), leading_layout((X, Y[:3])))
    assert one_length((X, Y, torch.tensor(3.0)))
    assert not one_length((X, Y[:2]))
    assert not one_length((X, pack_sequence([X, X[:3]])))
    assert rows_of([1, 2, 3]) == 3
    assert rows_of("abc") is None
    assert rows_of(torch.tensor(1.0)) is None
    assert rows_of(pack_sequence([X, X[:3]])) is None


def test_what_states_its_own_size():
    assert stated_size(graphs()) == 3
    assert stated_size(SimpleNamespace(batch_size=4)) == 4
    assert stated_size(SimpleNamespace(batch_size=[4])) is None
    assert stated_size(SimpleNamespace(num_graphs=True)) is None
    assert stated_size((X, Y)) is None


def test_what_is_whole():
    nested = torch.nested.nested_tensor([X, X[:3]], layout=torch.jagged)
    for leaf in (graphs(), pack_sequence([X, X[:3]]), X.to_sparse(), nested):
        assert opaque(leaf)
        assert next(leaves(leaf)) is leaf
    for leaf in (X, Y, "a", 3.0, None, Record(X, Y), SimpleNamespace(x=X), Pair(X, Y)):
        assert not opaque(leaf)


def test_moving_makes_containers_and_usual_tensors():
    with torch.inference_mode():
        inside = X.clone()
    batch = {"x": inside, "y": [Y], "g": graphs(), "p": pack_sequence([X, X[:3]]), "name": "a"}
    moved = move(batch, CPU)
    assert not moved["x"].is_inference()
    assert torch.equal(moved["x"], X)
    assert moved["y"] is not batch["y"]
    assert moved["y"][0] is Y
    assert torch.equal(moved["g"].nodes, batch["g"].nodes)
    assert torch.equal(moved["p"].data, batch["p"].data)
    assert moved["name"] == "a"


def test_equal_leaves():
    assert same_leaf(X, X.clone())
    assert not same_leaf(X, X + 1)
    assert not same_leaf(X, X[:3])
    assert not same_leaf(X, 3.0)
    assert same_leaf("a", "a")
    assert not same_leaf(1, 1.0)
    assert same_leaf(None, None)
    assert not same_leaf(graphs(), graphs())
    assert same_leaf({1, 2}, {2, 1})
    assert not same_leaf(torch.tensor(1.0), torch.tensor(2.0))
    assert not same_leaf(float("nan"), 1.0)
    assert same_leaf(torch.tensor(float("nan")), torch.tensor(float("nan")))
    assert same_leaf(float("nan"), float("nan"))


def test_equal_leaves_of_arrays():
    import numpy as np

    assert same_leaf(np.arange(3), np.arange(3))
    assert not same_leaf(np.arange(3), np.arange(3) + 1)
    assert not same_leaf(np.arange(3), np.arange(4))


def test_descriptions():
    assert described((X, Y)) == "(5, 3) float64, (5,) int64"
    assert described([X.bfloat16(), "a", 3]) == "(5, 3) bfloat16"
    assert described([Y] * 7) == "(5,) int64, " * 6 + "..."
    assert memory_of({"x": X, "y": [Y], "name": "a"}) == 5 * 3 * 8 + 5 * 8
