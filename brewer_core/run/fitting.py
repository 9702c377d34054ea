"""What a recipe has to know of a teacher: the sizes of a student that is cut out of it, and settings that depend on its own.

All of it is read off the teacher's config.json, so that no weights are loaded. Where that is not to be had, the student has half of the
teacher's layers and is as wide, which any teacher can give, and settings are those for BERT base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta", "deberta-v2", "mpnet", "distilbert")
"""Models, by `model_type`, whose heads can be made narrower, for their positions are not bound to the dimensions of a head."""
ROTARY_ENCODERS = ("modernbert",)
"""Encoders whose heads are kept or left out as a whole, and whose first layer has to stay."""
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")

_CALLED_N_POSITIONS = ("gpt2", "gpt_bigcode", "gptj", "codegen", "openai-gpt", "ctrl")
"""Models, by `model_type`, whose positions a config.json does not call `max_position_embeddings`."""
_BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")
"""Models that count positions from behind the padding token's."""

_BASE_LAYERS, _BASE_WIDTH = 12, 768
_LARGE = 24
"""Layers from which on MiniLMv2 takes its relations from below the teacher's last layer."""
_RELATION_WIDTH = 16
"""Dimensions of a relation head in the teacher: 48 heads of 768 and 64 of 1,024."""
_PATIENCE = 100
"""What PKD multiplies the mean over layers and widths with."""
_WHICH = {
    "skip": "evenly spaced from the first on",
    "uniform": "evenly spaced up to the last",
    "first": "the first ones",
}


@dataclass(frozen=True)
class Share:
    """How much of a teacher a recipe's student is.

    layers: the word for which ones, and one_in: of so many layers one. at_least: layers of the student.
    width, neurons: shares of the teacher's; None where they stay. heads: whether the losses compare head by head.
    """

    layers: str
    one_in: int = 2
    at_least: int = 1
    width: float | None = None
    neurons: float | None = None
    heads: bool = False

    def count(self, depth: int) -> int:
        """The layers of the student, of a teacher that has so many."""
        return min(depth, max(self.at_least, depth // self.one_in))


@dataclass(frozen=True)
class TeacherSizes:
    """The sizes that a model's config.json tells, whatever it calls them; None for what it does not.

    tokens: of the longest text that it takes.
    """

    kind: str | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    neurons: int | None = None
    embeddings: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TeacherSizes:
        """Of what stands in a config.json, or under `config` of a model."""

        def first(*names: str) -> int | None:
            return next((int(settings[name]) for name in names if isinstance(settings.get(name), int)), None)

        return cls(
            settings.get("model_type"),
            first("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"),
            first("hidden_size", "n_embd", "dim", "d_model"),
            first("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "num_heads"),
            first("intermediate_size", "n_inner", "hidden_dim", "encoder_ffn_dim", "d_ff"),
            first("embedding_size"),
            _tokens(settings),
        )


def cut(share: Share, teacher: TeacherSizes) -> dict[str, Any]:
    """`from_teacher` of a student that is such a share of its teacher."""
    by = "skip" if teacher.kind in ROTARY_ENCODERS and share.layers == "uniform" else share.layers
    layers: Any = by if teacher.layers is None else {"count": share.count(teacher.layers), "by": by}
    return {"layers": layers, **_narrower(share, teacher)}


def _tokens(settings: Mapping[str, Any]) -> int | None:
    kind = settings.get("model_type")
    positions = settings.get("n_positions" if kind in _CALLED_N_POSITIONS else "max_position_embeddings")
    if not isinstance(positions, int):
        return None
    padding = settings.get("pad_token_id")
    return positions - (padding + 1 if kind in _BEHIND_PADDING and isinstance(padding, int) else 0)


def fit(document: dict[str, Any], share: Share, teacher: TeacherSizes) -> None:
    """Set what depends on the teacher in a recipe's config: its student, the length of texts, and options that go with sizes."""
    if teacher.tokens is not None:
        document["tokenizer"]["max_length"] = min(document["tokenizer"]["max_length"], teacher.tokens)
    own = document["models"]["student"]["from_teacher"] = cut(share, teacher)
    layers, width = teacher.layers or _BASE_LAYERS, teacher.width or _BASE_WIDTH
    for stage in document["stages"]:
        for match in stage.get("distillation", {}).get("intermediate_matches", ()):
            if _name(match["loss"]) == "minilmv2":
                match["loss"]["relation_heads"] = relation_heads(width, own.get("hidden_size", width))
                match["layer_T"] = teaching_layer(layers)
        if _name(stage.get("strategy")) == "pkd":
            stage["strategy"]["weight"] = patience(share.count(layers), width)


def relation_heads(teacher_width: int, student_width: int) -> int:
    """As many as the paper has for the teacher's width (48 of 768, 64 of 1,024), or the next fewer that divide both widths."""
    common = math.gcd(teacher_width, student_width)
    most = max(1, teacher_width // _RELATION_WIDTH)
    return next(heads for heads in range(min(most, common), 0, -1) if common % heads == 0)


def teaching_layer(depth: int) -> int:
    """The layer whose relations MiniLMv2 takes: the last, but of a large teacher one of the upper middle, the 21st of 24."""
    return -1 if depth < _LARGE else depth * 7 // 8 - 1


def patience(student_layers: int, width: int) -> float:
    """The weight of PKD's term, which is a sum over layers and widths: what the authors' mean times 100 comes to."""
    return float(f"{_PATIENCE / (max(1, student_layers - 1) * width):.3g}")


def told(document: Mapping[str, Any], teacher: TeacherSizes) -> str:
    """The student of a filled recipe, in words."""
    own = document["models"]["student"]["from_teacher"]
    if isinstance(own["layers"], str):
        which = _WHICH[own["layers"]]
        return (
            f"half of the teacher's layers, {which}, and as wide; the teacher's sizes are not known here, and settings are those for "
            "BERT base"
        )
    which = f"{own['layers']['count']} of the teacher's {teacher.layers} layers, {_WHICH[own['layers']['by']]}"
    if "hidden_size" not in own:
        return f"{which}, as wide"
    width, heads = own["hidden_size"], own["num_attention_heads"]
    neurons = f", {own['intermediate_size']} neurons" if "intermediate_size" in own else ""
    return f"{which}, {width} of {teacher.width} wide, {heads} heads of {width // heads}{neurons}"


def _narrower(share: Share, teacher: TeacherSizes) -> dict[str, int]:
    """The sizes of a layer; none where they stay, or how they could be smaller is not known."""
    if share.width is None or not (teacher.width and teacher.heads) or teacher.width % teacher.heads:
        return {}
    dimensions = teacher.width // teacher.heads
    if teacher.kind in ENCODERS:
        heads, dimensions = teacher.heads, max(1, round(dimensions * share.width))
    elif teacher.kind in ROTARY_ENCODERS and not share.heads:
        heads = max(1, round(teacher.heads * share.width))
    else:
        return {}
    if heads * dimensions == teacher.embeddings != teacher.width:
        # an ELECTRA as wide as its embeddings would lack the projection of them that its teacher has
        dimensions += max(1, dimensions // 8)
    sizes = {"hidden_size": heads * dimensions, "num_attention_heads": heads}
    if share.neurons is not None and teacher.neurons:
        sizes["intermediate_size"] = max(1, round(teacher.neurons * share.neurons))
    return sizes


def _name(ref: Any) -> Any:
    return ref.get("name") if isinstance(ref, Mapping) else ref
