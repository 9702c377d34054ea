"""A cached teacher is asked about each row once, and the student is the one that an asked teacher gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from brewer_core import (
    BasicDistiller,
    DistillationConfig,
    Features,
    GeneralDistiller,
    MultiTaskDistiller,
    MultiTeacherDistiller,
    TrainingConfig,
)
from brewer_core.cache import CachedTeacher
from brewer_core.cache.rows import rows_of
from brewer_core.errors import AdaptorError, BrewerError, DataError
from brewer_core.teachers import LiveTeacher
from tiny import Tiny, adaptor, assert_same, mappings, table, tuples, weights

MATCH = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 8, 16]}
LOGITS = frozenset({"logits", "logits_mask"})


def keys_of(batch: Any) -> list[bytes]:
    return list(rows_of(batch).keys)


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREWER_CACHE", str(tmp_path / "cache"))


class Asked(Tiny):
    """A teacher that notes how many rows it was asked about, call by call."""

    def __init__(self, *size: int, **more: Any) -> None:
        super().__init__(*size, **more)
        self.asked: list[int] = []

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor, tags: Tensor, gain: float = 1.0) -> dict[str, Any]:
        self.asked.append(len(ids))
        return super().forward(ids, mask, labels, tags, gain)


def unmasked(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"logits": outputs["token_logits"]}


ADAPTORS: dict[str, Callable[..., dict[str, Any]]] = {
    "rows": adaptor("row_logits", "losses"),
    "masked tokens": adaptor("token_logits", "losses"),
    "unmasked tokens": unmasked,
    "two heads": adaptor("two_heads", "losses"),
}


def two_sided(columns: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Rows that are longer on the teachers' side, with as many valid tokens."""
    longer = {**table(len(columns["ids"]), length=9, seed=4), "mask": nn.functional.pad(columns["mask"], (3, 0))}
    return [{"teacher": t, "student": s} for t, s in zip(mappings(longer), mappings(columns), strict=True)]


FORMS: dict[str, Callable[..., Any]] = {"tuples": tuples, "mappings": mappings, "two-sided": two_sided}


def distilled(
    door: str,
    folder: Path,
    caching: bool,
    *,
    adapt: Callable[..., Any] = ADAPTORS["rows"],
    form: Callable[..., Any] = mappings,
    length: Mapping[str, int] | None = None,
    collate: Callable[..., Any] | None = None,
    **distillation: Any,
) -> tuple[dict[str, Tensor], list[Asked], Any]:
    """The student of a run with a shuffling loader of 20 rows, its teachers, and the distiller."""
    torch.manual_seed(0)
    numpy.random.seed(0)
    config = TrainingConfig(output_dir=str(folder), device="cpu", gradient_accumulation_steps=2)
    terms = DistillationConfig(is_caching_logits=caching, hard_label_weight=0.5, **distillation)
    teachers, student = [Asked(16, 3), Asked(12, 2)], Tiny(8, 2, dropout=0.1)
    loader: Any = DataLoader(form(table(20)), batch_size=4, shuffle=True, collate_fn=collate)
    length = length or {"num_epochs": 3}
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    if door == "MultiTask":
        by_task = {"a": teachers[0], "b": teachers[1]}
        distiller: Any = MultiTaskDistiller(config, terms, by_task, student, adapt, adapt)
        loader, length = {"a": loader, "b": loader}, {"num_steps": 40}
    elif door == "MultiTeacher":
        distiller = MultiTeacherDistiller(config, terms, teachers, student, adapt, adapt)
    else:
        teachers = teachers[:1]
        kind = {"Basic": BasicDistiller, "General": GeneralDistiller}[door]
        distiller = kind(config, terms, teachers[0], student, adapt, adapt)
    with distiller:
        distiller.train(optimizer, loader, **length)
    return weights(student), teachers, distiller


def assert_remembered(door: str, folder: Path, **case: Any) -> None:
    """The same student bit for bit, of teachers that were asked once a row."""
    expected, always, _ = distilled(door, folder / "asked", False, **case)
    ours, once, _ = distilled(door, folder / "remembered", True, **case)
    assert_same(ours, expected)
    assert all(teacher.asked == [4] * 5 for teacher in once)
    assert all(len(teacher.asked) > 10 for teacher in always)


@pytest.mark.parametrize("door", ["Basic", "General", "MultiTeacher", "MultiTask"])
@pytest.mark.parametrize("features", ADAPTORS)
def test_every_door_ends_with_the_same_student_of_teachers_asked_once_a_row(
    door: str, features: str, tmp_path: Path
) -> None:
    assert_remembered(door, tmp_path, adapt=ADAPTORS[features])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", ["Basic", "MultiTeacher"])
def test_batches_of_every_form_are_known_again(door: str, form: str, tmp_path: Path) -> None:
    assert_remembered(door, tmp_path, form=FORMS[form], adapt=ADAPTORS["masked tokens"])


def test_steps_are_remembered_as_epochs_are(tmp_path: Path) -> None:
    assert_remembered("General", tmp_path, length={"num_steps": 12})


def test_batches_that_are_batch_encodings_are_known_again(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    def encoded(rows: Sequence[Mapping[str, Tensor]]) -> Any:
        return transformers.BatchEncoding({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    assert_remembered("Basic", tmp_path, collate=encoded)


def test_probability_shift_and_a_temperature_scheduler_read_remembered_logits(tmp_path: Path) -> None:
    adapt = adaptor("row_logits", "labels")
    assert_remembered("General", tmp_path, adapt=adapt, probability_shift=True, temperature_scheduler=["flsw", 1, 1])


def test_the_config_is_not_changed(tmp_path: Path) -> None:
    _, _, distiller = distilled("General", tmp_path, True)
    assert distiller.d_config.is_caching_logits is True


@pytest.mark.parametrize("door", ["General", "MultiTeacher"])
def test_hidden_states_that_matches_read_are_kept_too(door: str, tmp_path: Path) -> None:
    match = {**MATCH, **({"teacher": 0} if door == "MultiTeacher" else {})}
    case = {"adapt": adaptor("row_logits", "hidden", "mask"), "intermediate_matches": [match]}
    assert_remembered(door, tmp_path, **case)


def test_a_second_training_asks_the_teacher_nothing(tmp_path: Path) -> None:
    case = {"adapt": adaptor("row_logits", "hidden", "mask"), "intermediate_matches": [MATCH]}
    first, _, _ = distilled("General", tmp_path, True, **case)
    second, teachers, _ = distilled("General", tmp_path, True, **case)
    assert_same(second, first)
    assert teachers[0].asked == []


def test_a_teacher_that_is_cached_already_takes_the_place_of_a_model(tmp_path: Path) -> None:
    expected, _, _ = distilled("General", tmp_path, False)
    torch.manual_seed(0)
    numpy.random.seed(0)
    asked, _, student = Asked(16, 3), Asked(12, 2), Tiny(8, 2, dropout=0.1)
    columns = [{**row, "id": torch.tensor(i)} for i, row in enumerate(mappings(table(20)))]
    live = LiveTeacher(asked, ADAPTORS["rows"], torch.device("cpu"))
    with CachedTeacher(live, key="id") as teacher:
        config = TrainingConfig(output_dir=str(tmp_path), device="cpu", gradient_accumulation_steps=2)
        terms = DistillationConfig(hard_label_weight=0.5)
        distiller = GeneralDistiller(config, terms, teacher, student, None, ADAPTORS["rows"])
        loader = DataLoader(columns, batch_size=4, shuffle=True)
        with distiller:
            distiller.train(torch.optim.AdamW(student.parameters(), lr=1e-2), loader, num_epochs=3)
    assert_same(weights(student), expected)
    assert asked.asked == [4] * 5


# Padding


class Padded(nn.Module):
    """A teacher or student of texts of different length, whose answer does not depend on their padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.of_rows, self.of_tokens = nn.Embedding(20, width), nn.Linear(width, 4), nn.Linear(width, 5)
        self.asked: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        self.asked.append(len(input_ids))
        states = self.embedding(input_ids)
        valid = attention_mask.unsqueeze(-1)
        pooled = (states * valid).sum(1) / valid.sum(1)
        return {"rows": self.of_rows(pooled), "tokens": self.of_tokens(states)}


def padded(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(list(rows), batch_first=True, padding_value=19),
        "attention_mask": pad_sequence(mask, batch_first=True),
    }


HEADS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "rows": lambda batch, outputs: {"logits": outputs["rows"]},
    "tokens": lambda batch, outputs: {"logits": outputs["tokens"], "logits_mask": batch["attention_mask"]},
    "rows between tokens": lambda batch, outputs: {
        "logits": [outputs["tokens"], outputs["rows"], -outputs["tokens"]],
        "logits_mask": batch["attention_mask"],
    },
    "unmasked tokens": lambda batch, outputs: {"logits": outputs["tokens"]},
}


@pytest.mark.parametrize("heads", HEADS)
def test_texts_are_known_again_whatever_they_are_padded_to(heads: str, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(1)
    texts = [torch.randint(19, (int(length),), generator=g) for length in torch.randint(1, 9, (20,), generator=g)]

    def trained(caching: bool) -> tuple[dict[str, Tensor], Padded]:
        torch.manual_seed(0)
        teacher, student = Padded(16), Padded(8)
        config = TrainingConfig(output_dir=str(tmp_path), device="cpu")
        terms = DistillationConfig(is_caching_logits=caching)
        distiller = BasicDistiller(config, terms, teacher, student, HEADS[heads], HEADS[heads])
        loader = DataLoader(texts, batch_size=4, shuffle=True, collate_fn=padded)
        distiller.train(torch.optim.SGD(student.parameters(), lr=0.5), loader, 4)
        return weights(student), teacher

    expected, _ = trained(False)
    if heads != "unmasked tokens":
        ours, teacher = trained(True)
        assert teacher.asked == [4] * 5
    else:  # the padding itself is taught, so a text that is padded anew is asked about anew
        with pytest.warns(UserWarning, match="known again at one padded length alone"):
            ours, teacher = trained(True)
        assert len(teacher.asked) > 5
    assert_same(ours, expected, atol=1e-6)


class Placed:
    """A teacher whose logits tell the token and its place, and whose mask is one of the batch."""

    def features(self, batch: Any, needs: frozenset[str]) -> Features:
        ids = batch["input_ids"]
        places = torch.arange(ids.shape[1]).expand_as(ids)
        logits = torch.stack([ids, places, ids * places], dim=-1).float()
        mask = batch.get("logits_mask")
        return Features.of({"logits": logits, **({} if mask is None else {"logits_mask": mask})})


def texts_in_batches(g: torch.Generator, *, masks: str, side: str) -> list[dict[str, Tensor]]:
    """Batches of 12 texts, some with the same tokens, shuffled and padded five times over."""
    texts = [torch.randint(1, 4, (1 + i % 5,), generator=g) for i in range(12)]
    kept = [torch.rand(len(text), generator=g) > 0.4 for text in texts]
    made = []
    for _ in range(5):
        for rows in torch.randperm(12, generator=g).split(3):
            length = max(len(texts[i]) for i in rows) + int(torch.randint(1, 4, (1,), generator=g))
            ids, mask, marks = (torch.zeros(3, length, dtype=torch.long) for _ in range(3))
            for row, i in enumerate(rows):
                end = length - len(texts[i]) if side == "left" else 0
                place = slice(end, end + len(texts[i]))
                ids[row, place], mask[row, place], marks[row, place] = texts[i], 1, kept[i].long()
                if masks == "beyond padding":
                    marks[row, place.start - 1 if side == "left" else place.stop] = 1
            if side == "holes":
                mask[:, 1:] &= (ids[:, 1:] != 2).long()
                marks &= mask | (marks if masks == "beyond padding" else 0)
            batch = {"input_ids": ids, "attention_mask": mask}
            made.append(batch if masks == "none" else {**batch, "logits_mask": marks})
    return made


class Alternating(Placed):
    """The same, with a mask of one row for all."""

    def features(self, batch: Any, needs: frozenset[str]) -> Features:
        return super().features({**batch, "logits_mask": torch.tensor([[1, 0, 1]])}, needs)


def test_a_mask_of_one_row_is_remembered_for_each() -> None:
    ids = torch.tensor([[1, 2, 3], [3, 1, 2]])
    batch, remembering = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, CachedTeacher(Alternating())
    remembering.features(batch, LOGITS)
    assert remembering.features(batch, LOGITS)["logits_mask"][0].tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("masks", ["none", "within", "beyond padding"])
@pytest.mark.parametrize("seed", range(5))
def test_remembered_logits_are_those_that_the_teacher_would_give(masks: str, side: str, seed: int) -> None:
    live, remembering = Placed(), CachedTeacher(Placed())
    for batch in texts_in_batches(torch.Generator().manual_seed(seed), masks=masks, side=side):
        expected, ours = live.features(batch, LOGITS), remembering.features(batch, LOGITS)
        mask = expected.first("logits_mask")
        if mask is None:
            assert torch.equal(ours["logits"][0], expected["logits"][0])
            continue
        assert torch.equal(ours["logits_mask"][0].bool(), mask.bool())
        assert torch.equal(ours["logits"][0][mask.bool()], expected["logits"][0][mask.bool()])
        assert ours.axes("logits") == "B L V"


# What tells rows apart


def known_apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return keys_of(one) != keys_of(other)


def test_rows_are_told_apart_by_all_that_they_hold() -> None:
    base: dict[str, Any] = {"ids": torch.tensor([[1, 2, 3]]), "text": ["a"], "labels": torch.tensor([0])}
    assert not known_apart(base, {**base, "ids": base["ids"].clone(), "text": ("a",)})
    assert known_apart(base, {**base, "ids": torch.tensor([[1, 2, 4]])})
    assert known_apart(base, {**base, "ids": torch.tensor([[1, 2, 3]], dtype=torch.int32)})
    assert known_apart(base, {**base, "ids": torch.tensor([[[1], [2], [3]]])})
    assert known_apart(base, {**base, "labels": torch.tensor([1])})
    assert known_apart(base, {**base, "text": ["b"]})
    assert known_apart(base, {**base, "more": torch.tensor([0])})
    assert known_apart({"a": base["ids"], "b": base["labels"]}, {"b": base["ids"], "a": base["labels"]})
    assert known_apart({**base, "flag": True}, {**base, "flag": False})


def test_a_row_has_its_key_in_every_batch() -> None:
    ids, texts = torch.randint(9, (4, 3), generator=torch.Generator().manual_seed(0)), ["a", "b", "c", "d"]
    together = keys_of({"ids": ids, "texts": texts})
    alone = [keys_of({"ids": ids[i : i + 1], "texts": texts[i : i + 1]})[0] for i in range(4)]
    assert together == alone
    assert len(set(together)) == 4
    assert keys_of((ids, texts)) == [keys_of([ids[i : i + 1], texts[i : i + 1]])[0] for i in range(4)]


def test_a_text_of_two_parts_is_not_its_parts_joined() -> None:
    assert known_apart({"ids": torch.ones(1), "a": ["x1"], "b": ["2"]}, {"ids": torch.ones(1), "a": ["x"], "b": ["12"]})


@pytest.mark.parametrize("mask", [[0, 1], [1, 1], [1, 0]], ids=["left", "none", "right"])
def test_texts_are_told_apart_by_their_tokens_and_not_by_padding_on_the_right(mask: list[int]) -> None:
    one, other = (
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([mask])} for ids in ([7, 8], [7, 9])
    )
    assert known_apart(one, other) == (mask != [1, 0])
    longer = {"input_ids": torch.tensor([[7, 8, 8, 8]]), "attention_mask": torch.tensor([[*mask, 0, 0]])}
    assert not known_apart(one, longer)


def test_what_stands_in_the_padding_of_another_mask_tells_rows_apart() -> None:
    source = {"input_ids": torch.tensor([[5, 6, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
    first = {**source, "decoder_input_ids": torch.tensor([[1, 2, 3, 4]])}
    assert known_apart(first, {**source, "decoder_input_ids": torch.tensor([[1, 2, 3, 5]])})
    assert known_apart(first, {**source, "decoder_input_ids": torch.tensor([[1, 2, 4, 4]])})


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


def test_what_has_no_entry_for_each_row_is_refused() -> None:
    ids = torch.ones(2, 3)
    end = (
        "has not one entry for each of the 2 rows, so rows cannot be told by what they hold; name the column that tells them, `key=`, or "
        "a function from a batch to the keys of its rows."
    )
    assert message(DataError, lambda: keys_of({"ids": ids, "gain": torch.tensor(2.0)})) == (
        f"CachedTeacher: the tensor 'gain' of shape () {end}"
    )
    assert message(DataError, lambda: keys_of((ids, {"images": object()}))) == (
        f"CachedTeacher: '1/images', a object, {end}"
    )


def test_a_teacher_without_one_logit_a_row_is_refused() -> None:
    class Hidden:
        def features(self, batch: Any, needs: frozenset[str]) -> Features:
            return Features.of({"logits": torch.ones(3, 4)})

    batch = {"ids": torch.ones(2, 3)}
    assert message(AdaptorError, lambda: CachedTeacher(Hidden()).features(batch, LOGITS)) == (
        "the teacher's 'logits' of shape (3, 4) has not one entry for each of 2 rows, so it cannot be kept by row; let the adaptor "
        'return it by row, or train with the cache "off".'
    )


def test_outputs_that_a_batch_brings_along_are_not_taken_for_those_of_the_row() -> None:
    class Brought:
        def features(self, batch: Any, needs: frozenset[str]) -> Features:
            return Features.of({"logits": batch["teacher_cache"]})

    remembering, ids = CachedTeacher(Brought()), torch.ones(2, 3)
    for factor in (1, 2):
        batch = {"teacher": {"ids": ids}, "student": {"ids": ids}, "teacher_cache": factor * torch.ones(2, 4)}
        assert torch.equal(remembering.features(batch, LOGITS)["logits"][0], batch["teacher_cache"])


def test_the_same_row_several_times_in_a_batch_is_one_row() -> None:
    remembering = CachedTeacher(Placed())
    ids = torch.tensor([[1, 2], [1, 2], [3, 4]])
    for rows in ([0, 1, 2], [2, 1, 0], [1, 1]):
        batch = {"input_ids": ids[rows]}
        assert torch.equal(
            remembering.features(batch, LOGITS)["logits"][0], Placed().features(batch, LOGITS)["logits"][0]
        )
