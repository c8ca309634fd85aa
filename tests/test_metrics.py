"""Accuracy of every kind of labels against scikit-learn, metrics of the user, and what is said of others."""

import functools
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import assert_close, random, seeded
from sklearn.metrics import accuracy_score, hamming_loss
from torch import nn
from torch.nn import functional

from estimators import Objective, UserError
from pruning_limits.metrics import accuracy, metric_errors, metric_loss, metric_name, resolution


def whole(count, *shape, seed=0):
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed))


def measured(outputs, targets, unit=nn.Identity()):  # noqa: B008
    """Accuracy of outputs that a model passes on, as a list."""
    values = accuracy(unit, (outputs, targets))
    assert values.dtype == torch.float64
    assert values.shape == (len(outputs),)
    return values.tolist()


def refusal(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def linear():
    return seeded(lambda: nn.Linear(4, 3))


def scores_of(answers, truths):
    """Scikit-learn's accuracy of each sample, over the labels that are not -100."""
    pairs = [(np.ravel(answer), np.ravel(truth)) for answer, truth in zip(answers, truths, strict=True)]
    return [accuracy_score(truth[truth != -100], answer[truth != -100]) for answer, truth in pairs]


# -------------------------------------------------------------------------------------------------- class labels


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("shape", [(30,), (5, 6, 7), (5, 9)], ids=["labels", "pixels", "tokens"])
def test_class_labels(shape, dtype):
    outputs, targets = random(shape[0], 4, *shape[1:]), whole(4, *shape)
    expected = scores_of(outputs.numpy().argmax(1), targets.numpy())
    assert measured(outputs, targets.to(dtype)) == pytest.approx(expected, rel=1e-15)
    assert 0.05 < np.mean(expected) < 0.6
    assert measured(outputs.float(), targets) == pytest.approx(expected, rel=1e-15)


def test_two_classes_in_booleans():
    outputs, targets = random(20, 2), whole(2, 20)
    assert measured(outputs, targets.bool()) == scores_of(outputs.numpy().argmax(1), targets.numpy())


def test_labels_that_do_not_count():
    outputs, targets = random(4, 3, 6), whole(3, 4, 6)
    targets[0, 2:] = -100
    targets[3, 0] = -100
    expected = scores_of(outputs.numpy().argmax(1), targets.numpy())
    assert measured(outputs, targets) == pytest.approx(expected, rel=1e-15)
    assert min(expected) > 0
    targets[1] = -100
    assert "accuracy needs a label in every sample; leave out those without" in refusal(measured, outputs, targets)


def test_a_byte_is_a_class_and_never_the_label_that_does_not_count():
    """In bytes 156 is what -100 wraps to."""
    targets = torch.tensor([156, 156], dtype=torch.uint8)
    outputs = torch.zeros(2, 200)
    outputs[0, 156] = outputs[1, 7] = 1
    assert measured(outputs, targets) == [1, 0]


@dataclass
class Output:
    logits: torch.Tensor


def test_outputs_of_libraries():
    x, y = random(3, 2, 4, 4), whole(2, 3, 4, 4)
    expected = measured(x, y)
    for wrap in (Output, lambda x: {"out": x, "aux": -x}):
        model = nn.Identity()
        model.register_forward_hook(lambda module, inputs, output, wrap=wrap: wrap(output))
        assert measured(x, y, model) == expected


def test_an_undefined_output_is_wrong():
    outputs = torch.tensor([[torch.nan, 0.0], [0.0, torch.nan], [torch.inf, 0.0]])
    assert measured(outputs, torch.tensor([0, 1, 0])) == [0, 0, 1]
    assert measured(outputs[:, 0], torch.tensor([0, 0, 1])) == [0, 1, 1]
    assert measured(outputs, torch.tensor([[0, 0], [0, 0], [1, 1]])) == [0.5, 0.5, 0.5]


def test_any_order_in_memory():
    outputs, targets = random(3, 4, 5, 6), whole(4, 3, 5, 6)
    expected = measured(outputs, targets)
    assert measured(outputs.to(memory_format=torch.channels_last), targets.mT.contiguous().mT) == expected
    scores, binary = random(3, 5, 1).mT, whole(2, 5, 3).T
    assert measured(scores, binary) == measured(scores.contiguous(), binary.contiguous())


def test_no_samples():
    assert accuracy(nn.Identity(), (torch.zeros(0, 3), whole(3, 0))).shape == (0,)
    assert accuracy(nn.Identity(), (torch.zeros(0, 3, 2), whole(3, 0, 2))).shape == (0,)


# ------------------------------------------------------------------------------------------------ labels 0 and 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_several_labels_of_a_sample(dtype):
    outputs, targets = random(20, 5), whole(2, 20, 5)
    answers = outputs.numpy() > 0
    expected = [1 - hamming_loss(t, a) for t, a in zip(targets.numpy(), answers, strict=True)]
    assert measured(outputs, targets.to(dtype)) == pytest.approx(expected, rel=1e-15)
    assert len(set(expected)) > 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_one_output(shape, dtype):
    outputs, targets = random(20), whole(2, 20)
    expected = scores_of(outputs.numpy() > 0, targets.numpy())
    assert measured(outputs.view(shape), targets.to(dtype)) == expected
    assert measured(outputs.view(shape), targets.to(dtype).view(shape)) == expected


def test_one_output_of_every_pixel():
    outputs, targets = random(4, 1, 3, 5), whole(2, 4, 3, 5)
    expected = pytest.approx(scores_of(outputs[:, 0].numpy() > 0, targets.numpy()), rel=1e-15)
    assert measured(outputs, targets) == expected
    assert measured(outputs, targets[:, None].float()) == expected


def test_one_hot_rows_are_labels_each_for_itself():
    """Of softmax outputs none need be positive; the same rule reads all batches."""
    outputs = torch.tensor([[-1.0, -2.0, -3.0], [2.0, 1.0, -1.0]])
    rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    expected = [accuracy_score([1, 0, 0], [0, 0, 0]), accuracy_score([1, 0, 0], [1, 1, 0])]
    assert measured(outputs, rows) == pytest.approx(expected)
    assert measured(outputs, rows.argmax(1)) == [1, 1]


# ---------------------------------------------------------------------------------------------- Hugging Face's


SIZES = {"vocab_size": 11, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, **SIZES}
GPT = {"n_embd": 8, "n_layer": 1, "n_head": 2, **SIZES}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0, **SIZES}


def hugging_face(name, config, **options):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    kind = getattr(transformers, name)
    return seeded(lambda: kind(kind.config_class(**config, **options))).eval()


def tokens(labels):
    ids = whole(11, 4, 6)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids if labels is None else labels}


def answers_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits.numpy()


@pytest.mark.parametrize("width", [3, 6])
def test_labels_of_tokens(width):
    """Also where there are as many classes as tokens."""
    model = hugging_face("BertForTokenClassification", BERT, num_labels=width)
    batch = tokens(whole(width, 4, 6, seed=1))
    batch["labels"][1, 4:] = -100
    expected = scores_of(answers_of(model, batch).argmax(-1), batch["labels"].numpy())
    assert accuracy(model, batch).tolist() == pytest.approx(expected, rel=1e-15)


def test_masked_tokens():
    model = hugging_face("BertForMaskedLM", BERT)
    batch = tokens(whole(11, 4, 6, seed=1))
    expected = scores_of(answers_of(model, batch).argmax(-1), batch["labels"].numpy())
    assert accuracy(model, batch).tolist() == pytest.approx(expected, rel=1e-15)


def test_next_tokens():
    """Trained a little, so that right answers are there and the model's own loss falls with them."""
    model = hugging_face("GPT2LMHeadModel", GPT)
    batch = tokens(None)
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][2, 3:] = -100
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    answers, labels = answers_of(model, batch).argmax(-1), batch["labels"].numpy()
    expected = scores_of(answers[:, :-1], labels[:, 1:])
    assert accuracy(model, batch).tolist() == pytest.approx(expected, rel=1e-15)
    assert np.mean(expected) > 0.8 > np.mean(scores_of(answers, labels)) + 0.3


def test_tokens_of_a_decoder_beside_an_encoder():
    """Its inputs are made of the labels, and its outputs stand at their places."""
    model = hugging_face("T5ForConditionalGeneration", T5)
    batch = tokens(whole(11, 4, 5, seed=1))
    logits = answers_of(model, batch)
    loss = functional.cross_entropy(torch.from_numpy(logits).flatten(0, 1), batch["labels"].flatten())
    with torch.no_grad():
        assert float(model(**batch).loss) == pytest.approx(float(loss))
    expected = scores_of(logits.argmax(-1), batch["labels"].numpy())
    assert accuracy(model, batch).tolist() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_labels_of_texts(kind):
    model = hugging_face("BertForSequenceClassification", BERT, num_labels=3, problem_type=kind)
    single = kind.startswith("single")
    batch = tokens(whole(3, 4) if single else whole(2, 4, 3).float())
    logits, labels = answers_of(model, batch), batch["labels"].numpy()
    assert accuracy(model, batch).tolist() == scores_of(logits.argmax(1) if single else logits > 0, labels)


# ------------------------------------------------------------------------------------------------ no accuracy


@pytest.mark.parametrize(
    ("outputs", "targets", "reason"),
    [
        (
            random(4, 3),
            random(4, 3).softmax(1),
            "labels 0 and 1 where there are as many as outputs, got targets (4, 3)",
        ),
        (
            random(4, 3),
            whole(5, 4, 3),
            "labels 0 and 1 where there are as many as outputs, got targets (4, 3) int64 in",
        ),
        (random(4), random(4), "labels 0 and 1"),
        (random(4, 1), torch.tensor([0, 1, 2, 0]), "targets (4,) int64 in 0..2 for outputs (4, 1) float64"),
        (random(4, 3), torch.ones(4), "class labels in 0..2, or -100 for none, got targets (4,) float32 in 1..1"),
        (random(4, 3), torch.tensor([0, 1, 3, 0]), "class labels in 0..2, or -100 for none, got targets (4,) int64"),
        (random(4, 3), torch.tensor([0, 1, -1, 0]), "int64 in -1..1 for outputs (4, 3) float64"),
        (random(4, 3, 2, 2), torch.full((4, 2, 2), 255), "class labels in 0..2, or -100 for none"),
        (random(4, 3), whole(3, 5), "no labels of the outputs in the targets, got targets (5,)"),
        (random(4, 6, 3), whole(3, 4, 6), "no labels of the outputs in the targets, got targets (4, 6) int64"),
        (random(4, 3, 5, 5), whole(3, 4, 10, 10), "no labels of the outputs in the targets"),
        (torch.tensor(1.0), torch.tensor(1), "outputs with a dimension that counts samples"),
    ],
)
def test_targets_without_accuracy(outputs, targets, reason):
    message = refusal(accuracy, nn.Identity(), (outputs, targets))
    assert message.startswith("metric: accuracy ")
    assert reason in message
    assert message.endswith("; give metric= a function (model, batch) -> one value per sample, (n,), larger is better")


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("model", "batch", "reason"),
    [
        (nn.Identity(), torch.ones(3, 2), "accuracy needs batches (x, y) or dictionaries with 'labels', got Tensor"),
        (nn.Identity(), {"x": 1, "y": 2}, "got a dictionary of 'x', 'y'"),
        (nn.Identity(), [torch.ones(3, 2)], "got list"),
        (nn.Identity(), (torch.ones(3, 2), [1, 0, 1]), "accuracy needs a tensor of labels, got list"),
        (Pair(), (torch.ones(3, 2), whole(2, 3)), "accuracy needs one tensor of outputs, got tuple"),
    ],
)
def test_batches_without_accuracy(model, batch, reason):
    message = refusal(accuracy, model, batch)
    assert message.startswith("metric: ")
    assert reason in message
    assert "give metric= a function" in message


# ------------------------------------------------------------------------------------------ metrics of the user


def likelihood(model, batch):
    return -functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def batches():
    return [(random(5, 4, seed=1), whole(3, 5, seed=1)), (random(3, 4, seed=2), whole(3, 3, seed=2))]


def test_a_metric_takes_the_place_of_a_loss():
    model, data = linear(), batches()
    values, sizes = Objective(model, data, metric_loss(likelihood)).sample_losses()
    rows = torch.cat([likelihood(model, batch) for batch in data])
    assert_close(values, rows)
    assert sizes.tolist() == [1] * 8
    right = Objective(model, data, metric_loss("accuracy")).sample_losses()[0]
    with torch.no_grad():
        expected = [float(accuracy_score(y, model(x).argmax(1), normalize=False)) for x, y in data]
    assert [float(right[:5].sum()), float(right[5:].sum())] == expected


@pytest.mark.parametrize("convert", [torch.Tensor.bool, torch.Tensor.int, torch.Tensor.half, torch.Tensor.double])
def test_values_of_any_real_type(convert):
    values, _ = Objective(
        linear(), batches(), metric_loss(lambda model, batch: convert(model(batch[0]).argmax(1) == batch[1]))
    ).sample_losses()
    assert torch.equal(values, Objective(linear(), batches(), accuracy).sample_losses()[0])


def test_pruned_weights_may_have_values_that_are_not_finite():
    objective = Objective(linear(), batches(), metric_loss(lambda model, batch: -1 / model(batch[0]).norm(dim=1)))
    with torch.no_grad():
        objective.model.bias.zero_()
    assert objective.sample_losses(torch.zeros(objective.dimension, dtype=torch.float64))[0].isinf().all()


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (lambda model, batch: 0.9, "metric: expected a tensor of values, one per sample, got float"),
        (lambda model, batch: likelihood(model, batch).numpy(), "got ndarray"),
        (
            lambda model, batch: likelihood(model, batch).mean(),
            "metric: expected one value per sample, shape (n,), got",
        ),
        (lambda model, batch: model(batch[0]), "got shape (5, 3); return the values before their mean"),
        (lambda model, batch: likelihood(model, batch) + 1j, "metric: expected real values, got torch.complex128"),
        (lambda model, batch: likelihood(model, batch)[1:], "metric: expected values of shape (5,), got (4,)"),
        (lambda model, batch: likelihood(model, batch) * torch.nan, "metric: 8 of 8 values are NaN or infinite; check"),
        (
            lambda model, batch: likelihood(model, batch) * len(batch[0]),
            "metric: splitting a batch of 5 changes its val",
        ),
        (lambda model, batch: batch[2], "model or metric: failed on batch 0 ((5, 4) float64, (5,) int64) on cpu"),
    ],
)
def test_functions_that_are_no_metric(metric, reason):
    def use():
        with metric_errors():
            Objective(linear(), batches(), metric_loss(metric)).sample_losses()

    message = refusal(use)
    assert reason in message
    assert not re.search("loss", message.split(" on cpu")[0])


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("acc", "metric: expected 'accuracy' or a function (model, batch) -> values, got 'acc'"),
        (3, "metric: expected a function of model and batch, got int; give 'accuracy' or lambda model, batch: score"),
        (nn.CrossEntropyLoss, "got CrossEntropyLoss"),
        (lambda outputs: outputs, "got <lambda>(outputs)"),
    ],
)
def test_what_is_no_function_of_model_and_batch(metric, reason):
    assert reason in refusal(metric_loss, metric)


def test_names():
    class Score:
        def __call__(self, model, batch):
            return likelihood(model, batch)

    assert metric_name("accuracy") == metric_name(accuracy) == "accuracy"
    assert metric_name(likelihood) == metric_name(functools.partial(functools.partial(likelihood))) == "likelihood"
    assert metric_name(lambda model, batch: None) == "metric"
    assert metric_name(Score()) == "Score"


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss_fn: 3 of 9 losses are NaN", "metric: 3 of 9 values are NaN"),
        ("loss_fn: the objective is no mean; return one loss", "metric: the metric is no mean; return one value"),
        ("model or loss_fn: failed: lossless", "model or metric: failed: lossless"),
        ("loader: yields no samples", "held_out: yields no samples"),
        ("memory: loader: ran out", "memory: loader: ran out"),
    ],
)
def test_errors_speak_of_the_metric(old, new):
    cause = LookupError("why")

    def use():
        with metric_errors():
            raise UserError(old) from cause

    with pytest.raises(UserError) as error:
        use()
    assert str(error.value) == new
    assert error.value.__cause__ is cause


def test_errors_name_the_loader_that_was_given():
    def use():
        with metric_errors("loader"):
            _ = Objective(linear(), [], accuracy).samples

    assert refusal(use).startswith("loader: yields no samples")


# --------------------------------------------------------------------------------------------------- resolution


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 0, 0, 1], 0.25), ([1.0] * 8, 0.125), ([0.0], 1.0), ([0.5, 1], None), ([-1, 0], None), ([], None)],
)
def test_the_resolution_of_a_mean(values, expected):
    assert resolution(torch.tensor(values)) == expected
