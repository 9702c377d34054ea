"""Models of tokens that compute no padding: the rows of a batch stand one after another in few long ones, and see only themselves.

Shapes: B rows, L tokens of the longest; R packed rows, N tokens of each; the values of a token are whatever follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brewer_core.errors import RequestError

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Packed:
    """Rows of a batch in packed rows.

    valid: [B, L], bool, the tokens that are no padding. places: where each of them stands in the packed rows, counted through,
    [T]. segments: [R, N], which row a token is of; -1 where there is none. positions: [R, N], a token's place in its row.
    """

    valid: Tensor
    places: Tensor
    segments: Tensor
    positions: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor, row_tokens: int = 0) -> Packed:
        """Rows by their mask, [B, L]. row_tokens: how long a packed row may be; as long as the longest row where that is less."""
        valid = attention_mask.bool()
        lengths: list[int] = valid.sum(1).tolist()
        rows = _fitted(lengths, max(row_tokens, *lengths))
        width = max(sum(lengths[i] for i in row) for row in rows)
        starts = [0] * len(lengths)
        for number, row in enumerate(rows):
            place = number * width
            for i in row:
                starts[i], place = place, place + lengths[i]
        own = (valid.long().cumsum(1) - 1)[valid]
        of_row = torch.arange(len(lengths), device=valid.device)[:, None].expand_as(valid)[valid]
        places = torch.tensor(starts, device=valid.device)[of_row] + own
        empty = torch.full((len(rows) * width,), -1, device=valid.device)
        segments = empty.index_copy(0, places, of_row).view(-1, width)
        return cls(valid, places, segments, empty.clamp(min=0).index_copy(0, places, own).view(-1, width))

    def pack(self, column: Tensor) -> Tensor:
        """[B, L, ...] as [R, N, ...], with zeros where there is no token."""
        packed = column.new_zeros(self.segments.numel(), *column.shape[2:])
        return packed.index_copy(0, self.places, column[self.valid]).view(*self.segments.shape, *column.shape[2:])

    def unpack(self, column: Tensor) -> Tensor:
        """[R, N, ...] as [B, L, ...], with zeros at padding."""
        unpacked = column.new_zeros(*self.valid.shape, *column.shape[2:])
        return unpacked.masked_scatter(_like(self.valid, unpacked), column.flatten(0, 1)[self.places])

    def mask(self, causal: bool, dtype: torch.dtype) -> Tensor:
        """[R, 1, N, N]: 0 where a token sees another, and the least number where it does not."""
        seen = self.segments[:, :, None] == self.segments[:, None, :]
        if causal:
            seen = seen.tril()
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[
            :, None
        ]


class PackedModel(nn.Module):
    """A model that is called with padded batches, and gives what it gave for them, zeros at padding; made by `packed`.

    Its outputs are those with a value for each token; attention maps, and losses of its own, there are none. What it saves has
    the names of the model's weights behind `model.`; save `model` itself for what is to be loaded elsewhere.
    """

    def __init__(self, model: nn.Module, causal: bool, first_position: int, row_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.causal = causal
        self.first_position = first_position
        self.row_tokens = row_tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Any:
        """What the model returns, each value [B, L, ...]. more: columns [B, L], and settings for the model as they are."""
        if more.get("labels") is not None or more.get("output_attentions"):
            raise RequestError(
                "a packed model takes no labels and gives no attention maps: rows stand side by side in it. Compute the loss of its "
                "logits, or pass it padded."
            )
        rows = Packed.of(attention_mask, self.row_tokens)
        columns = {"input_ids": input_ids, **more}
        inputs = {name: rows.pack(value) if isinstance(value, Tensor) else value for name, value in columns.items()}
        dtype = _computed_in(self.model, input_ids.device)
        inputs |= {
            "attention_mask": rows.mask(self.causal, dtype),
            "position_ids": rows.positions + self.first_position,
        }
        return _unpacked(self.model(**inputs), rows)


def packed(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    causal: bool,
    first_position: int = 0,
    row_tokens: int = 0,
) -> PackedModel:
    """A model of tokens, tried on a batch, that computes no padding from now on. It shares the weights.

    batch: input_ids and attention_mask, [B, L], with rows of several lengths, and what else the model takes. causal: tokens see
    those before them alone. first_position: the number of the first token's position: 0; 2 in RoBERTa and MPNet. row_tokens: up to
    how many tokens are put in a row. The cost of attention grows with its square; that of the other layers with their sum alone.
    Raises RequestError where the model gives other values than for the padded batch, such as one with windows of attention, or
    none by token; and where the batch has no two rows that fit into one.
    """
    shape = batch["attention_mask"].shape
    if len(Packed.of(batch["attention_mask"], row_tokens).segments) == len(batch["attention_mask"]):
        raise RequestError(
            f"the batch of shape {tuple(shape)} that a packed model is tried on has no two rows that fit into one; take shorter rows "
            "into it, or more `row_tokens`."
        )
    candidate, modes = (
        PackedModel(model, causal, first_position, row_tokens),
        [part.training for part in model.modules()],
    )
    try:
        model.eval()
        with torch.no_grad():
            expected, given = (_by_token(each(**batch), shape) for each in (model, candidate))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise RequestError(
            f"{type(model).__name__} cannot be packed: {str(error).partition(chr(10))[0].rstrip('.')}; pass it padded batches."
        ) from error
    finally:
        for part, mode in zip(model.modules(), modes, strict=True):
            part.training = mode
    if not expected or given.keys() != expected.keys():
        raise RequestError(
            f"{type(model).__name__} cannot be packed: it gives no values by token; pass it padded batches."
        )
    valid = batch["attention_mask"].bool()
    for name, values in expected.items():
        apart = (given[name][valid] - values[valid]).abs().max().item()
        if not apart <= _TOLERANCE * max(1.0, values[valid].abs().max().item()):
            raise RequestError(
                f"{type(model).__name__} cannot be packed: its {name} are up to {apart:.2g} from those of the padded batch. Check "
                "`causal` and `first_position`, or pass it padded batches."
            )
    return candidate


def _fitted(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which rows go into each packed row of a width: the longest first, each into the first one with room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        number = next((n for n, left in enumerate(room) if left >= lengths[i]), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(width)
        rows[number].append(i)
        room[number] -= lengths[i]
    return rows


def _computed_in(model: nn.Module, device: torch.device) -> torch.dtype:
    """What attention is computed in, which its mask must be in too."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _unpacked(outputs: Any, rows: Packed) -> Any:
    if isinstance(outputs, Tensor):
        return rows.unpack(outputs) if outputs.shape[:2] == rows.segments.shape else None
    if isinstance(outputs, Mapping) or is_dataclass(outputs):
        named = outputs if isinstance(outputs, Mapping) else {f.name: getattr(outputs, f.name) for f in fields(outputs)}
        values = {name: _unpacked(value, rows) for name, value in named.items()}
        made: Any = type(outputs)
        return made(**{name: value for name, value in values.items() if value is not None})
    if isinstance(outputs, (tuple, list)):
        return tuple(_unpacked(value, rows) for value in outputs)
    return None


def _by_token(outputs: Any, shape: torch.Size, name: str = "outputs") -> dict[str, Tensor]:
    """The values that there are for each token, by name."""
    if isinstance(outputs, Tensor):
        return {name: outputs.float()} if outputs.shape[:2] == shape and outputs.is_floating_point() else {}
    if isinstance(outputs, Mapping):
        return {k: v for key, value in outputs.items() for k, v in _by_token(value, shape, str(key)).items()}
    if isinstance(outputs, (tuple, list)):
        return {k: v for i, each in enumerate(outputs) for k, v in _by_token(each, shape, f"{name}[{i}]").items()}
    return {}


def _like(valid: Tensor, values: Tensor) -> Tensor:
    return valid.view(*valid.shape, *[1] * (values.dim() - 2)).expand_as(values)
