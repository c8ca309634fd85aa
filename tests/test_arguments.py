"""Models, loaders, losses and labels of the wrong kind: one line that says what came and what to do."""

import functools
import inspect

import pytest
import torch
from helpers import assert_close, random, same, seeded, snapshot
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from estimators import Hessian, Objective, UserError
from estimators.arguments import refuse_loader, refuse_loss, refuse_model
from pruning_limits import predict_limit


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))


X, Y = random(30, 4, seed=1), torch.arange(30) % 3


def entropies(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------------------------- models


def scripted():
    return torch.jit.script(mlp())


def traced():
    return torch.jit.trace(mlp(), X)


SCRIPTED = {
    "scripted": (scripted, "the model"),
    "traced": (traced, "the model"),
    "frozen": (lambda: torch.jit.freeze(scripted().eval()), "the model"),
    "a scripted layer": (lambda: nn.Sequential(nn.Linear(4, 4), scripted()), "layer '1'"),
    "a traced layer": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(traced())), "layer '1.0'"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SCRIPTED)
def test_scripted_models_are_refused(name):
    build, where = SCRIPTED[name]
    for call in (lambda model: predict_limit(model, [(X, Y)]), lambda model: Objective(model, [(X, Y)]), refuse_model):
        assert refusal(call, build()) == (
            f"model: {where} is scripted or traced, so that its weights cannot be substituted; give the Python module "
            "that it was made from"
        )


@pytest.mark.parametrize("model", [lambda x: x, functional.relu, "resnet18", None, {"0.weight": X}, nn.Linear, 3])
def test_what_is_no_module_is_refused(model):
    told = refusal(predict_limit, model, [(X, Y)])
    assert told == f"model: expected a torch.nn.Module, got {type(model).__name__}"


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_weights_that_are_stored_sparsely_are_named():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)
    told = refusal(predict_limit, model, [(X.float(), Y)])
    assert told == "model: 'weight' of layer '1' (Linear) is stored as torch.sparse_coo; convert it with to_dense()"
    model[1].weight = nn.Parameter(torch.eye(3).to_sparse_csr(), requires_grad=False)
    assert "torch.sparse_csr; convert it with to_dense()" in refusal(predict_limit, model, [(X.float(), Y)])
    model[1].weight = nn.Parameter(torch.eye(3))
    model[0].register_buffer("mask", torch.eye(3).to_sparse())
    assert "'mask' of layer '0' (Linear) is stored as torch.sparse_coo" in refusal(
        predict_limit, model, [(X.float(), Y)]
    )


class Rows(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, words):
        return self.head(torch.tanh(self.table(words)).mean(1))


def words():
    generator = torch.Generator().manual_seed(2)
    return [(torch.randint(0, 7, (20, 3), generator=generator), torch.arange(20) % 3) for _ in range(2)]


class Bag(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(7, 4, sparse=sparse, mode="sum"), nn.Linear(4, 3)

    def forward(self, words):
        return self.head(torch.tanh(self.table(words)))


@pytest.mark.parametrize(("kind", "parameters"), [(Rows, "table.weight"), (Rows, "*weight"), (Rows, None), (Bag, None)])
def test_embeddings_with_sparse_gradients_have_the_curvature_of_usual_ones(parameters, kind):
    sparse, usual = (seeded(lambda flag=flag: kind(flag)) for flag in (True, False))
    objective, expected = (Objective(model, words(), parameters=parameters) for model in (sparse, usual))
    assert_close(objective.gradient(), expected.gradient())
    vectors = random(objective.dimension, 2)
    assert_close(Hessian(objective) @ vectors, Hessian(expected) @ vectors)
    limits = [predict_limit(model, words(), parameters=parameters, progress=False) for model in (sparse, usual)]
    assert limits[0].sparsity == pytest.approx(limits[1].sparsity, abs=1e-9)
    assert not next(sparse.parameters()).grad


@pytest.mark.parametrize("sparse", [False, True])
def test_bags_of_embeddings_have_no_second_derivative(sparse):
    objective = Objective(seeded(lambda: Bag(sparse)), words(), parameters="table.weight")
    told = refusal(Hessian(objective).matmat, random(objective.dimension, 1))
    assert told.startswith("model: no second derivative of layer 'table' (EmbeddingBag) (")


# --------------------------------------------------------------------------------------------- layers of width zero


class Pruned(nn.Module):
    """What structured pruning leaves: layers without units, whose output is what their bias says, or nothing."""

    def __init__(self, image):
        super().__init__()
        self.gone = nn.Conv2d(3, 0, 1) if image else nn.Linear(3, 0)
        self.after = nn.Conv2d(0, 2, 1) if image else nn.Linear(0, 2)
        self.body, self.head = nn.Conv2d(3, 2, 1) if image else nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, x):
        y = self.body(x) if x.dim() > 2 else torch.tanh(self.body(x) + self.after(self.gone(x)))
        return self.head(y.flatten(2).mean(2) if x.dim() > 2 else y)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize("image", [False, True])
def test_layers_of_width_zero_count_nothing(image):
    model, x = seeded(lambda: Pruned(image)), random(20, 3, 2, 2, seed=2) if image else random(20, 3, seed=2)
    limit = predict_limit(model, [(x, torch.arange(20) % 3)], epsilon=0.05, progress=False)
    assert limit.parameters == 6 + 6
    assert list(limit.settings.parameters) == ["body.weight", "head.weight"]
    assert [layer.name for layer in limit.layers()] == ["body.weight", "head.weight"]
    chosen = predict_limit(model, [(x, torch.arange(20) % 3)], epsilon=0.05, parameters="*weight", progress=False)
    assert chosen.sparsity == limit.sparsity


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_a_model_of_nothing_but_width_zero_is_refused():
    told = refusal(predict_limit, nn.Sequential(nn.Linear(3, 0)), [(torch.zeros(2, 3), torch.zeros(2).long())])
    assert told.startswith("model: has no convolution or linear layers")


# ---------------------------------------------------------------------------------------------------------- loaders


class Mapped(torch.utils.data.Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, number):
        return X[number], Y[number]


WANTED = "loader: expected an iterable of batches"
BATCHES = "give a DataLoader or a list of batches, [(x, y)]"
LOADERS = {
    "tensor data set": (
        lambda: TensorDataset(X, Y),
        r"got TensorDataset, which yields single samples: wrap it in a Da",
    ),
    "subset": (
        lambda: Subset(Mapped(), [0, 1, 2]),
        r"got Subset, which yields single samples: wrap it in a DataLoader",
    ),
    "own data set": (Mapped, r"got Mapped, which yields single samples: wrap it in a DataLoader"),
    "pair": (lambda: (X, Y), r"got a tuple of tensors, which is one batch: give a list of batches, \[\(x, y\)\]"),
    "triple": (lambda: (X, Y, X), r"got a tuple of tensors, which is one batch"),
    "dict": (lambda: {"x": X, "y": Y}, r"got dict: give a DataLoader or a list of batches"),
    "tensor": (lambda: X, r"got Tensor: give a DataLoader"),
    "string": (lambda: "train.pt", r"got str: give a DataLoader"),
    "bytes": (lambda: b"train", r"got bytes: give a DataLoader"),
    "nothing": (lambda: None, r"got NoneType: give a DataLoader"),
    "number": (lambda: 3, r"got int: give a DataLoader"),
    "function": (lambda: mlp, r"got function: give a DataLoader"),
    "class": (lambda: DataLoader, r"got type: give a DataLoader"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_wrong_thing_as_a_loader_is_refused(name):
    build, told = LOADERS[name]
    for call in (lambda loader: predict_limit(mlp(), loader), lambda loader: Objective(mlp(), loader), refuse_loader):
        with pytest.raises(UserError, match=rf"^{WANTED}, {told}[^\n]*$"):
            call(build())


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


class BatchStream(IterableDataset):
    def __iter__(self):
        yield from [(X[:20], Y[:20]), (X[20:], Y[20:])]


SINGLE = {
    "list of samples": lambda: [(X[k], Y[k]) for k in range(30)],
    "list of pairs of numbers": lambda: [(X[k], int(Y[k])) for k in range(30)],
    "stream of samples": Stream,
    "unbatched data loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=None),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_samples_in_the_place_of_batches_are_refused(name):
    told = refusal(predict_limit, mlp(), SINGLE[name](), progress=False)
    assert told == (
        "loader: labels have no dimension that counts samples beside inputs (4,): where it yields single samples wrap "
        "it in a DataLoader, torch.utils.data.DataLoader(dataset, batch_size=128)"
    )


def test_a_list_of_two_tensors_is_no_loader_of_pairs():
    told = refusal(predict_limit, mlp(), [X, Y], progress=False)
    assert told.startswith("loader: the default loss needs (x, y) batches, got Tensor; give loss_fn=")


@pytest.mark.parametrize(
    "build",
    [
        BatchStream,
        lambda: ((X[:20], Y[:20]), (X[20:], Y[20:])),
        lambda: DataLoader(TensorDataset(X, Y), 7),
        lambda: DataLoader(Stream(), 7),
        lambda: [[X[:20], Y[:20]], [X[20:], Y[20:]]],
    ],
    ids=["stream of batches", "tuple of batches", "data loader", "loader of a stream", "lists"],
)
def test_iterables_of_batches_are_taken(build):
    assert_close(Objective(mlp(), build()).value(), entropies(mlp(), (X, Y)).mean())


def test_an_iterator_is_refused_in_its_second_pass():
    told = refusal(predict_limit, mlp(), iter([(X[:20], Y[:20]), (X[20:], Y[20:])]), progress=False)
    assert told.startswith("loader: this pass yielded 0 samples, an earlier one 30; give a loader that yields the same")


# ----------------------------------------------------------------------------------------------------------- losses


class Criterion:
    def __call__(self, model, batch):
        return entropies(model, batch)


class WithOne:
    def __call__(self, batch):
        return batch


def scaled(factor, model, batch):
    return factor * entropies(model, batch)


def three(model, x, y):
    return functional.cross_entropy(model(x), y, reduction="none")


REMEDY = "give lambda model, batch: criterion(model(batch[0]), batch[1])"
LOSSES = {
    "function of torch": (functional.cross_entropy, "got cross_entropy; "),
    "another": (functional.mse_loss, "got mse_loss; "),
    "criterion": (nn.CrossEntropyLoss(), "got CrossEntropyLoss; "),
    "weighted criterion": (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), "got BCEWithLogitsLoss; "),
    "distance": (nn.TripletMarginLoss(), "got TripletMarginLoss"),
    "cosine": (nn.CosineEmbeddingLoss(), "got CosineEmbeddingLoss"),
    "class": (nn.CrossEntropyLoss, "got CrossEntropyLoss"),
    "one argument": (lambda model: model, r"got <lambda>(model); "),
    "three arguments": (three, "got three(model, x, y); "),
    "no argument": (lambda: 0, "got <lambda>(); "),
    "keywords alone": (lambda *, model, batch: 0, "got <lambda>(*, model, batch); "),
    "object of one argument": (WithOne(), "got WithOne(batch); "),
    "partial that leaves three": (functools.partial(scaled), "got scaled(factor, model, batch); "),
    "partial of a criterion": (functools.partial(functional.cross_entropy, reduction="none"), "got cross_entropy; "),
    "string": ("cross_entropy", "got str; "),
    "number": (0.5, "got float; "),
    "tensor": (torch.tensor(1.0), "got Tensor; "),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_cannot_be_called_with_model_and_batch_are_refused(name):
    loss, got = LOSSES[name]
    for call in (
        lambda loss: predict_limit(mlp(), [(X, Y)], loss),
        lambda loss: Objective(mlp(), [(X, Y)], loss),
        refuse_loss,
    ):
        told = refusal(call, loss)
        assert told.startswith(f"loss_fn: expected a function of model and batch, {got}")
        assert told.endswith(REMEDY)


class Holder:
    def losses(self, model, batch):
        return entropies(model, batch)

    @staticmethod
    def plain(model, batch):
        return entropies(model, batch)


class AsModule(nn.Module):
    def forward(self, model, batch):
        return entropies(model, batch)


TAKEN = {
    "function": entropies,
    "lambda": lambda model, batch: entropies(model, batch),
    "default arguments": lambda model, batch, reduction="none": entropies(model, batch),
    "any arguments": lambda *arguments: entropies(*arguments),
    "object": Criterion(),
    "method": Holder().losses,
    "static method": Holder.plain,
    "partial": functools.partial(scaled, 1.0),
    "partial by name": functools.partial(lambda model, batch, factor: factor * entropies(model, batch), factor=1.0),
    "module": AsModule(),
    "decorated": functools.wraps(entropies)(lambda *arguments: entropies(*arguments)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_whatever_can_be_called_with_model_and_batch_is_taken(name):
    assert_close(Objective(mlp(), [(X, Y)], TAKEN[name]).value(), entropies(mlp(), (X, Y)).mean())


def test_functions_without_a_signature_are_left_to_the_call():
    with pytest.raises(ValueError, match="no signature found"):
        inspect.signature(max)
    refuse_loss(max)


def popping(model, batch):
    labels = batch.pop("labels")
    return functional.cross_entropy(model(batch.pop("x")), labels, reduction="none")


def popping_inside(model, batch):
    batch["inside"]["x"] = batch["inside"]["x"] * 1.0
    labels = batch["inside"].pop("labels")
    return functional.cross_entropy(model(batch["inside"]["x"]), labels, reduction="none")


def popping_list(model, batch):
    labels = batch.pop()
    return functional.cross_entropy(model(batch.pop()), labels, reduction="none")


@pytest.mark.parametrize(
    ("loss", "wrap"),
    [
        (popping, lambda x, y: {"x": x, "labels": y}),
        (popping_inside, lambda x, y: {"inside": {"x": x, "labels": y}}),
        (popping_list, lambda x, y: [x, y]),
    ],
)
def test_a_loss_may_take_its_batch_apart(loss, wrap):
    model, batches = mlp(), [wrap(X[:20], Y[:20]), wrap(X[20:], Y[20:])]
    limit = predict_limit(model, batches, loss, progress=False)
    expected = predict_limit(model, [(X[:20], Y[:20]), (X[20:], Y[20:])], entropies, progress=False)
    assert limit.sparsity == expected.sparsity
    assert same(batches, [wrap(X[:20], Y[:20]), wrap(X[20:], Y[20:])])


# ----------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.int64], ids=str)
def test_labels_of_any_integer_type_are_class_indices(dtype):
    model = mlp()
    before = snapshot(model)
    limit = predict_limit(model, [(X, Y.to(dtype))], progress=False)
    expected = predict_limit(model, [(X, Y)], progress=False)
    assert (limit.sparsity, limit.epsilon, limit.lower) == (expected.sparsity, expected.epsilon, expected.lower)
    assert same(before, snapshot(model))


def test_labels_that_are_true_or_false():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))
    truth, expected = (Objective(model, [(X, labels)]) for labels in (Y == 1, (Y == 1).long()))
    assert truth.value() == expected.value()
    assert torch.equal(truth.gradient(), expected.gradient())


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8], ids=str)
def test_labels_out_of_range_of_any_integer_type(dtype):
    told = refusal(predict_limit, mlp(), [(X, (Y + 1).to(dtype))])
    assert told.startswith("loader: labels must be class indices in 0..2, got 1..3; ")


@pytest.mark.parametrize("labels", [Y.double(), Y.half(), Y.bfloat16()], ids=["float64", "float16", "bfloat16"])
def test_labels_that_are_no_integers_are_named_by_their_type(labels):
    told = refusal(predict_limit, mlp(), [(X, labels)])
    assert told.startswith(f"loader: labels must be class indices in 0..2, got {labels.dtype}; ")


@pytest.mark.parametrize("labels", [["a"] * 30, None, 0.5, Y.tolist()], ids=["strings", "none", "number", "list"])
def test_labels_that_are_no_tensor(labels):
    told = refusal(predict_limit, mlp(), [(X, labels)])
    assert told.startswith(f"loader: labels must be a tensor of class indices, got {type(labels).__name__}; ")


# ----------------------------------------------------------------------------------------- old-style parametrisations


def old_norm(function):
    with torch.random.fork_rng():
        return nn.Sequential(function(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)).double()


OLD = {
    "weight norm": (nn.utils.weight_norm, "torch.nn.utils.remove_weight_norm", nn.utils.remove_weight_norm),
    "spectral norm": (nn.utils.spectral_norm, "torch.nn.utils.remove_spectral_norm", nn.utils.remove_spectral_norm),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore::FutureWarning")
@pytest.mark.parametrize("name", OLD)
def test_parametrisations_that_live_in_hooks_are_told_their_own_remedy(name):
    function, remedy, remove = OLD[name]
    model = old_norm(function)
    before = snapshot(model)
    told = refusal(predict_limit, model, [(X, Y)])
    assert told == (
        f"model: the weight of layer '0' is computed by a parametrisation; fix it with {remedy}, or name the "
        "parameters behind it with parameters="
    )
    assert same(before, snapshot(model))
    remove(model[0])
    assert predict_limit(model, [(X, Y)], progress=False).parameters == 42
