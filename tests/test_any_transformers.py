"""Limits of transformers: dictionary batches, losses of the model's own, padding, tied embeddings, attention."""

import pytest
import torch
from any_model import Case, check
from helpers import assert_close, random, seeded
from torch import nn
from torch.nn import functional

from estimators import Objective, UserError
from pruning_limits import predict_limit

WORDS = 7


class Output(dict):
    """Reads as a dictionary and by attribute, like the outputs of Hugging Face."""

    __getattr__ = dict.__getitem__


class Language(nn.Module):
    """A decoder with tied embeddings and masked attention that computes its own token-weighted loss."""

    def __init__(self, width=4):
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, width), nn.Linear(width, WORDS, bias=False)
        self.maps, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head.weight = self.embed.weight

    def forward(self, input_ids, attention_mask, labels=None):
        x = self.embed(input_ids)
        q, k, v = self.maps(self.norm(x)).chunk(3, -1)
        allowed = attention_mask[:, None, :].bool() & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        allowed = allowed | torch.eye(x.shape[1], dtype=torch.bool)
        hidden = x + self.out(functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed))
        logits = self.head(torch.tanh(hidden))
        loss = (
            None if labels is None else functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        )
        return Output(loss=loss, logits=logits, hidden_states=(x, hidden))


def texts(padded=False, sizes=(4, 3)):
    """Token batches; with padding every second text is short, its labels beyond the end -100."""
    batches = []
    for number, size in enumerate(sizes):
        ids = torch.randint(0, WORDS, (size, 5), generator=torch.Generator().manual_seed(number))
        mask = torch.ones_like(ids)
        if padded:
            mask[::2, 3:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return batches


def own(model, batch):
    return model(**batch).loss


def per_text(model, batch):
    """Mean over the tokens of every text."""
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return losses.sum(1) / (labels != -100).sum(1)


def test_a_language_model_with_its_own_loss():
    """The embedding is tied to the head, so that it counts, once."""
    limit = check(Case(Language, texts, per_text, WORDS * 4 + 4 * 12 + 4 * 4, loss_fn=own))
    assert "embed.weight" in limit.mask(0.5)


def test_a_language_model_with_padding():
    check(Case(Language, lambda: texts(padded=True), per_text, WORDS * 4 + 4 * 12 + 4 * 4, loss_fn=per_text))


def test_batches_weighted_by_their_tokens_are_refused():
    """A mean over the tokens of a padded batch is no mean over its texts."""
    with pytest.raises(UserError, match=r"^loss_fn: splitting a batch of 3 changes its losses .* shape \(n,\)$"):
        predict_limit(seeded(Language), texts(padded=True, sizes=(3, 3)), own)


def test_all_tokens_weighted_alike():
    """Losses summed over a text and divided by the mean number of tokens give the mean over all tokens."""
    batches, model = texts(padded=True), seeded(Language)
    tokens = [(batch["labels"][:, 1:] != -100).sum(1) for batch in batches]
    average = torch.cat(tokens).double().mean()

    def loss_fn(model, batch):
        logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
        return functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1) / average

    expected = sum(own(model, batch) * count.sum() for batch, count in zip(batches, tokens, strict=True))
    assert_close(Objective(model, batches, loss_fn).value(), expected / torch.cat(tokens).sum())
    predict_limit(model, batches, loss_fn, measure=False)


def test_the_default_loss_tells_what_a_dictionary_needs():
    with pytest.raises(UserError, match=r"got dict; give loss_fn=.*lambda model, batch: model\(\*\*batch\)\.loss$"):
        predict_limit(seeded(Language), texts())


def test_the_output_instead_of_its_loss():
    with pytest.raises(UserError, match=r"^loss_fn: expected a tensor of losses, got Output; return its loss alone$"):
        predict_limit(seeded(Language), texts(), lambda model, batch: model(**batch))


# ---------------------------------------------------------------------------------------- torch's own transformer


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 3, activation="gelu", batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True), nn.Linear(4, 3)

    def forward(self, x, missing):
        return self.head(self.body(x, src_key_padding_mask=missing).mean(1))


def padded_rows():
    missing = torch.tensor([[False, False, False], [False, False, True], [False, True, True]])
    return [{"x": random(3, 3, 4), "missing": missing, "y": torch.tensor([0, 1, 2])}]


def encoder_losses(model, batch):
    return functional.cross_entropy(model(batch["x"], batch["missing"]), batch["y"], reduction="none")


def test_padding_in_torchs_encoder():
    """Its fast path in evaluation mode writes zeros at padded places, which the path with a graph does not."""
    before = torch.backends.mha.get_fastpath_enabled()
    case = Case(Encoder, padded_rows, encoder_losses, 3 * 16 + 16 + 24 + 12, loss_fn=encoder_losses)
    limit = check(case)
    assert "body.layers.0.self_attn.in_proj_weight" in limit.mask(0.5)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_projections_of_different_width_count():
    model = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
    names = Objective(model, [], parameters=None).names
    assert names == ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")


# ----------------------------------------------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("transformers", reason="transformers is not installed")


SMALL = {"vocab_size": 11, "max_position_embeddings": 8, "pad_token_id": 0}


def bert(hub):
    config = hub.BertConfig(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6, num_labels=3, **SMALL
    )
    return hub.BertForSequenceClassification(config)


def gpt2(hub):
    return hub.GPT2LMHeadModel(hub.GPT2Config(n_embd=4, n_layer=1, n_head=2, n_positions=8, **SMALL))


def llama(hub):
    config = hub.LlamaConfig(
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        **SMALL,
    )
    return hub.LlamaForCausalLM(config)


def sentences():
    ids = torch.randint(1, 11, (4, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def classified():
    return [sentences() | {"labels": torch.tensor([0, 1, 2, 1])}]


def continued():
    ids = sentences()["input_ids"]
    return [{"input_ids": ids, "labels": ids}]


def class_losses(model, batch):
    return functional.cross_entropy(model(**batch).logits, batch["labels"], reduction="none")


# build, batches, losses, D, and the type of the loss: causal models compute it in float32
FAMILIES = {
    "bert": (bert, classified, class_losses, 4 * 16 + 2 * 24 + 16 + 12, torch.float64),
    "gpt2": (gpt2, continued, per_text, 11 * 4 + 4 * 12 + 16 + 2 * 64, torch.float32),
    "llama": (llama, continued, per_text, 11 * 4 + 2 * 16 + 2 * 8 + 3 * 24, torch.float32),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_hugging_face(hub, name):
    build, batches, losses, dimension, dtype = FAMILIES[name]
    limit = check(Case(lambda: build(hub), batches, losses, dimension, loss_fn=own, dtype=dtype))
    uncounted = [note for note in limit.notes if "not counted" in note]
    expected = {"bert": "bert.embeddings.word_embeddings.weight", "gpt2": "transformer.wpe.weight", "llama": None}[name]
    assert [expected in note for note in uncounted] == ([] if expected is None else [True])


def test_an_image_classifier_of_hugging_face_needs_no_loss(hub):
    config = hub.ViTConfig(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6, image_size=4, patch_size=2
    )
    config.num_labels = 3
    batches = [(random(4, 3, 4, 4), torch.tensor([0, 1, 2, 1]))]

    def losses(model, batch):
        return functional.cross_entropy(model(batch[0]).logits, batch[1], reduction="none")

    check(Case(lambda: hub.ViTForImageClassification(config), batches.copy, losses, 12 * 4 + 4 * 16 + 2 * 24 + 12))
