"""Students that are cut out of their teachers: which weights they have, and what they still answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="models need the extra hf")

from brewer_builtins.surgery import student_from_teacher  # noqa: E402  # after the skip
from brewer_builtins.surgery.anatomy import Anatomy  # noqa: E402
from brewer_builtins.surgery.choice import positions  # noqa: E402
from surgery_models import HEADS, LAYERS, MODELS, WIDTH, logits, sample, tiny  # noqa: E402

HALF = WIDTH // 2
KEPT_CHANNELS = torch.tensor([1, 2, 5, 6, 9, 11, 12, 15, 16, 19, 20, 23])
DEAD_DIMENSIONS = [0, 3, 4]
NOT_ROTATED = ("bert-mlm", "deberta-v2-convolution")
"""These have an activation function between the stream and the embeddings, or inside the stream."""
UNCENTRED = ("bert-mlm", "deberta-v2-convolution", "modernbert")
"""What an activation function gives goes to a norm there, so channels of zeros cannot be left out exactly."""


@pytest.fixture(autouse=True)
def silent():
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


def distance(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", MODELS)
def test_a_student_of_all_of_its_teacher_answers_bit_for_bit(name):
    teacher = tiny(name)
    before = torch.get_rng_state()
    assert torch.equal(logits(student_from_teacher(teacher), name), logits(teacher, name))
    whole = student_from_teacher(teacher, layers=LAYERS, hidden_size=WIDTH, method="pca")
    assert torch.equal(logits(whole, name), logits(teacher, name))
    assert torch.equal(torch.get_rng_state(), before)
    assert not {p.data_ptr() for p in whole.parameters()} & {p.data_ptr() for p in teacher.parameters()}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, method)
        for name in MODELS
        for method in ("truncate", "importance", "pca")
        if method != "pca" or name not in NOT_ROTATED
    ],
)
def test_a_student_is_read_again_as_it_was_saved(name, method, tmp_path):
    teacher = tiny(name)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = student_from_teacher(
        teacher, layers={"count": 2, "by": "skip"}, hidden_size=HALF, method=method, sample=sample(name)
    )
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert teacher.config.hidden_size == WIDTH
    assert student.config.hidden_size == HALF
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    assert torch.allclose(logits(again, name), logits(student, name), atol=1e-5)


def with_channels_of_zeros(name, dead="heads"):
    """A teacher of which half of the channels and neurons, and half of what its head makes, do nothing, and half of its heads.

    dead: "dimensions" for half of the dimensions of each head instead.

    Where norms subtract the mean, the rest of what is added to the stream has a mean of 0, so that it stays where it was.
    """
    teacher = tiny(name)
    anatomy = Anatomy.of(teacher)
    shapes = {
        key: tuple(value.shape)
        for key, value in student_from_teacher(teacher, hidden_size=HALF, method="truncate").state_dict().items()
    }
    dropped = torch.tensor([i for i in range(WIDTH) if i not in KEPT_CHANNELS])
    state = teacher.state_dict()
    for key, axes in anatomy.axes(shapes, HALF).items():
        norm = state[key].dim() == 1 and key.rpartition(".")[0] in anatomy.norms
        for place, axis in enumerate(axes):
            weight = state[key].movedim(place, -1)  # a view
            if axis == "residual":
                if norm and key.endswith("weight"):
                    weight[KEPT_CHANNELS] = 0.8 if anatomy.family.centred else weight[KEPT_CHANNELS]
                    weight[dropped] = -anatomy.family.norm_offset
                    continue
                output = 1 if type(anatomy.modules[key.rpartition(".")[0]]).__name__ == "Conv1D" else 0
                embeds = isinstance(anatomy.modules[key.rpartition(".")[0]], nn.Embedding)
                if anatomy.family.centred and (weight.dim() == 1 or embeds or place == output):
                    weight[..., KEPT_CHANNELS] -= weight[..., KEPT_CHANNELS].mean(-1, keepdim=True)
                weight[..., dropped] = 0
            elif axis == "pooled":
                weight[..., dropped] = 0
            elif axis.startswith("neurons"):
                weight.unflatten(-1, (axis.count("+") + 1, -1))[..., 10:] = 0
            elif dead == "dimensions" and {"query", "key", "value"} & set(axis.replace("&", "+").split("+")):
                sizes = anatomy.sizes.stacks[anatomy.stacks[anatomy.stack_of(key)].name]
                for where in positions(axis, sizes).values():
                    weight[..., where[:, DEAD_DIMENSIONS].flatten()] = 0
            elif "value" in axis:
                sizes = anatomy.sizes.stacks[anatomy.stacks[anatomy.stack_of(key)].name]
                dead = [0, 3] if sizes.kv_heads == HEADS else [1]
                weight[..., positions(axis, sizes)["value"][dead].flatten()] = 0
    return teacher


@pytest.mark.parametrize("method", ["importance", "pca"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in UNCENTRED])
def test_channels_heads_and_neurons_that_do_nothing_are_what_is_left_out(name, method):
    teacher = with_channels_of_zeros(name)
    neurons = 10 if "gpt2" not in name else 4 * HALF
    student = student_from_teacher(
        teacher, hidden_size=HALF, intermediate_size=neurons, method=method, sample=sample(name)
    )
    assert distance(logits(student, name), logits(teacher, name)) < (1e-3 if name.startswith("bart") else 1e-5)
    assert student.num_parameters() < 0.7 * teacher.num_parameters()


@pytest.mark.parametrize(
    "name",
    ["bert", "roberta", "electra", "deberta", "deberta-v2", "deberta-v2-own-keys", "mpnet", "distilbert", "gpt2"],
)
def test_dimensions_of_heads_that_do_nothing_are_what_is_left_out(name):
    teacher = with_channels_of_zeros(name, dead="dimensions")
    student = student_from_teacher(teacher, hidden_size=HALF, num_attention_heads=HEADS, sample=sample(name))
    assert student.config.num_attention_heads == HEADS
    assert distance(logits(student, name), logits(teacher, name)) < 1e-5


def orthogonal(size):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(2)))[0]


def turned(name):
    """A rotation of the stream; where norms subtract the mean, one that leaves the direction of the mean as it is."""
    if name == "llama":
        return orthogonal(WIDTH)
    mean = torch.full((WIDTH, 1), WIDTH**-0.5)
    inside = torch.linalg.qr(torch.cat([mean, torch.eye(WIDTH)[:, 1:]], 1))[0][:, 1:]
    return mean @ mean.T + inside @ orthogonal(WIDTH - 1) @ inside.T


INPUTS_TURNED = (
    "embed_tokens",
    "wte",
    "wpe",
    "q_proj",
    "k_proj",
    "v_proj",
    "gate_proj",
    "up_proj",
    "c_proj",
    "lm_head",
)
OUTPUTS_TURNED = ("o_proj", "down_proj", "c_attn", "c_fc")
"""By the last axis of a weight, and by the first; GPT-2 keeps its matrices the other way round."""


def rotated(name):
    """A teacher whose stream lies in half of its dimensions, none of which is a channel."""
    teacher, turn = with_channels_of_zeros(name), turned(name)
    with torch.no_grad():
        for key, weight in teacher.named_parameters():
            last = key.split(".")[-2]
            if weight.dim() == 1 and ("norm" in last or "ln_" in last):
                weight.fill_(0.0 if key.endswith("bias") else 0.9)  # one for each channel would not go with a rotation
            elif last in INPUTS_TURNED:
                weight.copy_(weight @ turn)
            elif last in OUTPUTS_TURNED and weight.dim() == 2:
                weight.copy_(turn.T @ weight)
    return teacher


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_principal_components_find_the_dimensions_that_a_stream_lies_in(name):
    teacher = rotated(name)
    by = {
        method: student_from_teacher(teacher, hidden_size=HALF, method=method, sample=sample(name))
        for method in ("pca", "importance")
    }
    assert distance(logits(by["pca"], name), logits(teacher, name)) < 2e-3
    assert distance(logits(by["importance"], name), logits(teacher, name)) > 0.1
