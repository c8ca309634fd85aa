"""Attention heads: what zeros in a head do, by hand, and which parameters of known layers belong to it."""

import pytest
import torch
from helpers import assert_close, random, seeded
from torch import nn
from torch.func import functional_call

from estimators import Objective, UserError
from pruning_limits.group_profile import GroupProfile
from pruning_limits.patterns import groups_of


class Torch(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 4, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


class Own(nn.Module):
    """Attention whose heads are computed one by one; two heads of keys serve four of queries where asked."""

    def __init__(self, together=False, key_heads=4):
        super().__init__()
        self.num_heads, self.num_kv_heads = 4, key_heads
        if together:
            self.qkv = nn.Linear(8, 24)
        else:
            self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 2 * key_heads)
            self.v_proj = nn.Linear(8, 2 * key_heads, bias=False)
        self.proj, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        maps = self.qkv(x).chunk(3, -1) if hasattr(self, "qkv") else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        queries, keys, values = (part.split(2, dim=-1) for part in maps)
        heads = []
        for number, query in enumerate(queries):
            shared = number * len(keys) // len(queries)
            scores = (query @ keys[shared].transpose(1, 2) / 2**0.5).softmax(-1)
            heads.append(scores @ values[shared])
        return self.head(self.proj(torch.cat(heads, -1)).mean(1))


def objective_of(build):
    return Objective(seeded(build), [(random(6, 5, 8, seed=1), torch.arange(6) % 3)])


BUILDS = {
    "torch": Torch,
    "torch without biases": lambda: Torch(bias=False),
    "torch, other sizes of keys": lambda: Torch(kdim=8, vdim=8),
    "apart": Own,
    "together": lambda: Own(together=True),
    "fewer keys": lambda: Own(key_heads=2),
}


@pytest.mark.parametrize("name", BUILDS)
def test_zeros_in_the_maps_or_the_columns_of_a_head_do_the_same_and_in_no_others(name):
    objective = objective_of(BUILDS[name])
    groups = groups_of("heads", objective)
    assert groups.count == (2 if name == "fewer keys" else 4)
    state, x = {key: p.detach() for key, p in objective.model.named_parameters()}, objective.loader[0][0]

    def outputs(zeros):
        masked = {key: torch.where(ids.expand(state[key].shape) == head, 0.0, state[key]) for key, ids in zeros.items()}
        return functional_call(objective.model, state | masked, (x,))

    for head in range(groups.count):
        rows, columns = groups.members
        within, after = outputs({**rows, **groups.companions}), outputs(columns)
        assert_close(within, after)
        assert float((after - objective.model(x)).detach().abs().max()) > 1e-3
        width = 8 // groups.count
        (name_of_columns,) = columns
        by_hand = state[name_of_columns].clone()
        by_hand[:, head * width : (head + 1) * width] = 0
        assert_close(after, functional_call(objective.model, state | {name_of_columns: by_hand}, (x,)))


def test_of_every_layer_one_head_stays():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Torch(), Torch()

        def forward(self, x):
            return self.first(x) + self.second(x)

    objective = objective_of(Two)
    groups = groups_of("heads", objective)
    profile = GroupProfile(objective.chosen, groups)
    assert groups.families.tolist() == [0] * 4 + [1] * 4
    assert len(profile.counts) == 7
    assert profile.most == pytest.approx(2 * (8 * 24 + 64) * 0.75 / objective.dimension)
    for layer in ("first", "second"):
        mask = profile.masks(profile.most)[f"{layer}.attend.out_proj.weight"]
        assert int(mask.all(0).sum()) == 2


@pytest.mark.parametrize("kind", ["Bert", "GPT2", "Llama", "ViT", "DistilBert"])
def test_the_layers_of_transformers_are_known(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "Bert":
        model = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=32))
    elif kind == "GPT2":
        config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=16)
        config.bos_token_id = config.eos_token_id = 0
        model = transformers.GPT2Model(config)
    elif kind == "Llama":
        model = transformers.LlamaModel(transformers.LlamaConfig(**sizes, num_key_value_heads=2, intermediate_size=32))
    elif kind == "DistilBert":
        model = transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=4, hidden_dim=32)
        )
    else:
        sizes.pop("vocab_size")
        model = transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=32, image_size=8, patch_size=4))

    def loss(model, batch):
        return model(batch[0]).last_hidden_state[:, :, :4].square().flatten(1).mean(1)

    x = random(4, 3, 8, 8).float() if kind == "ViT" else torch.arange(24).reshape(4, 6) % 50
    groups = groups_of("heads", Objective(model.eval(), [(x, torch.zeros(4))], loss))
    assert groups.count == (4 if kind == "Llama" else 8)


def test_layers_that_are_not_known_or_behave_otherwise_are_left_dense():
    class Other(Own):
        def forward(self, x):
            return self.head(
                self.proj(self.q_proj(x) * self.k_proj(x) + self.v_proj(x)).mean(1) + self.q_proj(x).mean(1)
            )

    with pytest.raises(UserError, match=r"^pattern: heads fits no layer .*q_proj.*zeros in its maps and zeros in the"):
        groups_of("heads", objective_of(Other))
    with pytest.raises(
        UserError, match=r"^pattern: heads fits no layer .*no part of an attention whose heads are known"
    ):
        groups_of("heads", objective_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(40, 3))))
