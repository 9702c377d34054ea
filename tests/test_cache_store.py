"""What lies on disk of a teacher cache: found again by another teacher object, checked, repaired, limited, and built by one at a time."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from brewer_core.cache import CachedTeacher, CacheFormat
from brewer_core.cache.index import Index
from brewer_core.errors import DataError, RequestError
from brewer_core.features import Feature, Features
from brewer_core.fingerprints import fingerprint
from brewer_core.sparse_logits import SparseLogits
from brewer_core.teachers import LiveTeacher

CPU = torch.device("cpu")
WORDS, WIDTH, CLASSES = 30, 8, 12
READ = frozenset({"logits", "logits_mask", "inputs_mask", "hidden"})


class Encoder(nn.Module):
    """Texts to hidden states of two layers, attention, and logits of each token; a row's do not depend on its padding."""

    def __init__(self, seed: int = 0, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.gain = gain
        self.embedding, self.layer, self.head = (
            nn.Embedding(WORDS, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, CLASSES),
        )
        self.rows_asked = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        self.rows_asked += len(input_ids)
        first = self.embedding(input_ids)
        second = torch.tanh(self.layer(first)) * self.gain
        scores = (first @ second.mT)[:, None] * torch.tensor([1.0, 2.0])[None, :, None, None]
        return {"logits": self.head(second), "hidden": (first, second), "attention": (scores,)}


def adapt(batch: Any, outputs: Any) -> dict[str, Any]:
    mask = batch["attention_mask"]
    return {**outputs, "logits_mask": mask, "inputs_mask": mask}


class Scaled:
    """An adaptor with an option, that counts its calls."""

    def __init__(self, scale: float) -> None:
        self.scale, self.calls = scale, 0

    def __call__(self, batch: Any, outputs: Any) -> dict[str, Any]:
        self.calls += 1
        return {**adapt(batch, outputs), "logits": self.scale * outputs["logits"]}


class Cut:
    """An adaptor that gives some columns."""

    def __init__(self, own: slice) -> None:
        self.own = own

    def __call__(self, batch: Any, outputs: Any) -> dict[str, Any]:
        return {**adapt(batch, outputs), "logits": outputs["logits"][..., self.own]}


def texts(count: int = 24, seed: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(1, WORDS, (int(n),), generator=g) for n in torch.randint(1, 9, (count,), generator=g)]


def padded(rows: list[Tensor], more: int = 0) -> dict[str, Tensor]:
    length = max(map(len, rows)) + more
    ids, mask = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def batches(seed: int = 0, more: int = 0) -> Iterator[dict[str, Tensor]]:
    """The texts in an order of the seed, four at a time."""
    rows = texts()
    for part in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).split(4):
        yield padded([rows[i] for i in part], more)


def live(model: Encoder | None = None, adaptor: Any = adapt, **more: Any) -> LiveTeacher:
    return LiveTeacher(model or Encoder(), adaptor, CPU, **more)


def answers(teacher: Any, seed: int = 0, more: int = 0, needs: frozenset[str] = READ) -> list[Features]:
    return [teacher.features(batch, needs) for batch in batches(seed, more)]


def built(folder: Path, needs: frozenset[str] = READ, **more: Any) -> None:
    with CachedTeacher(live(), folder=folder, **more) as teacher:
        answers(teacher, needs=needs)


def asked(folder: Path, teacher: LiveTeacher, needs: frozenset[str] = READ, **more: Any) -> int:
    """How many rows the teacher is asked about, of those that are read in another order and with more padding."""
    with CachedTeacher(teacher, folder=folder, **more) as cached:
        answers(cached, 7, 3, needs)
    count: int = teacher.model.rows_asked
    return count


def assert_alike(ours: Features, expected: Features, batch_mask: Tensor, tolerance: float = 0.0) -> None:
    valid = batch_mask.bool()
    for name in ours:
        assert len(ours[name]) == len(expected[name])
        for mine, theirs in zip(ours[name], expected[name], strict=True):
            if mine is None:
                continue
            if name == "attention":
                places = (valid[:, :, None] & valid[:, None, :])[:, None].expand(mine.shape)
                torch.testing.assert_close(mine[places], theirs[places], rtol=tolerance, atol=tolerance)
            elif mine.dim() == 3:
                torch.testing.assert_close(mine[valid].float(), theirs[valid], rtol=tolerance, atol=tolerance)
            else:
                assert torch.equal(mine.bool(), theirs.bool())


# What is read is what was computed


@pytest.mark.parametrize("needs", [READ, READ | {"attention"}, frozenset({"hidden[1]", "inputs_mask"})])
def test_a_cache_gives_what_the_teacher_gives_in_any_order_and_padding(needs: frozenset[str], tmp_path: Path) -> None:
    built(tmp_path, needs)
    with CachedTeacher(live(), folder=tmp_path) as cached:
        for batch, ours in zip(batches(5, 2), answers(cached, 5, 2, needs), strict=True):
            assert_alike(ours, live().features(batch, needs), batch["attention_mask"], 1e-6)


def test_only_layers_that_are_read_are_kept(tmp_path: Path) -> None:
    built(tmp_path, frozenset({"hidden[-1]", "inputs_mask"}))
    with CachedTeacher(live(), folder=tmp_path) as cached:
        features = answers(cached, needs=frozenset({"hidden[-1]", "inputs_mask"}))[0]
    assert features["hidden"][0] is None
    assert features["hidden"][1] is not None
    assert sorted(features) == ["hidden", "inputs_mask", "logits_mask"]


@pytest.mark.parametrize(("floats", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_sixteen_bits_are_near(floats: Any, tolerance: float, tmp_path: Path) -> None:
    form = CacheFormat(floats)
    with CachedTeacher(live(), folder=tmp_path, format=form) as cached:
        for batch, ours in zip(batches(), answers(cached), strict=True):
            assert ours["hidden"][0].dtype == getattr(torch, floats)
            assert_alike(ours, live().features(batch, READ), batch["attention_mask"], tolerance)


def test_a_number_beyond_float16_is_its_largest_and_a_ruled_out_class_stays_so(tmp_path: Path) -> None:
    class Extreme:
        def features(self, batch: Any, needs: frozenset[str]) -> Features:
            return Features.of({"logits": torch.tensor([[1e6, -1e6, float("-inf")]]).expand(len(batch["x"]), 3)})

    with CachedTeacher(Extreme(), folder=tmp_path, format=CacheFormat("float16")) as cached:
        (logits,) = cached.features({"x": torch.ones(2, 1)}, frozenset({"logits"}))["logits"]
    assert logits.tolist() == [[65504.0, -65504.0, float("-inf")]] * 2


@pytest.mark.parametrize("k", [3, CLASSES, CLASSES + 5])
def test_top_k_keeps_the_largest_logits_and_what_the_others_have_together(k: int, tmp_path: Path) -> None:
    with CachedTeacher(live(), folder=tmp_path, format=CacheFormat(top_k=k)) as cached:
        answers(cached)
    with CachedTeacher(live(), folder=tmp_path, format=CacheFormat(top_k=k)) as cached:
        for batch, ours in zip(batches(3, 1), answers(cached, 3, 1), strict=True):
            (sparse,) = ours["logits"]
            assert isinstance(sparse, SparseLogits)
            valid = batch["attention_mask"].bool()
            expected = live().features(batch, READ)["logits"][0][valid].log_softmax(-1)
            most = expected.topk(min(k, CLASSES))
            torch.testing.assert_close(sparse[valid].logits, most.values, rtol=1e-5, atol=1e-6)
            assert sparse.log_tail is not None
            tail = sparse[valid].log_tail
            torch.testing.assert_close(tail.exp(), 1 - most.values.exp().sum(-1), rtol=0, atol=1e-5)


def test_draws_are_the_same_whenever_a_row_is_computed(tmp_path: Path) -> None:
    form = CacheFormat(samples=5)
    drawn: list[dict[tuple[int, ...], Any]] = []
    for place, seed, more in (("a", 0, 0), ("b", 9, 4)):
        found = {}
        with CachedTeacher(live(), folder=tmp_path / place, format=form) as cached:
            for batch, ours in zip(batches(seed, more), answers(cached, seed, more), strict=True):
                (sparse,) = ours["logits"]
                for i, ids in enumerate(batch["input_ids"]):
                    text = tuple(ids[batch["attention_mask"][i].bool()].tolist())
                    found[text] = sparse.indices[i, : len(text)].tolist()
        drawn.append(found)
    assert drawn[0] == drawn[1]


# What is another cache, and what is not


@dataclasses.dataclass
class Given:
    teacher: Callable[[], LiveTeacher]
    needs: frozenset[str] = READ
    format: CacheFormat | None = None


def with_one_weight_changed() -> LiveTeacher:
    model = Encoder()
    with torch.no_grad():
        model.head.bias[3] += 1e-6
    return live(model)


OTHERS = {
    "a weight": Given(with_one_weight_changed),
    "a setting of the model": Given(lambda: live(Encoder(gain=0.5))),
    "the adaptor": Given(
        lambda: live(adaptor=lambda batch, outputs: {**adapt(batch, outputs), "logits": -outputs["logits"]})
    ),
    "columns of the adaptor": Given(lambda: live(adaptor=Cut(slice(0, 4)))),
    "an option of the adaptor": Given(lambda: live(adaptor=Scaled(3.0))),
    "the precision": Given(lambda: live(precision="bf16")),
    "what is read": Given(live, READ - {"hidden"}),
    "a layer that is read": Given(live, READ - {"hidden"} | {"hidden[0]"}),
    "the form": Given(live, READ, CacheFormat("float16")),
    "what is kept of the logits": Given(live, READ, CacheFormat(top_k=4)),
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_change_of_the_teacher_or_of_what_is_read_is_another_cache(change: str, tmp_path: Path) -> None:
    built(tmp_path)
    other = OTHERS[change]
    assert asked(tmp_path, other.teacher(), other.needs, format=other.format) == 24


def test_another_version_of_the_form_on_disk_is_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    built(tmp_path)
    monkeypatch.setattr("brewer_core.cache.teacher.VERSION", 2)
    assert asked(tmp_path, live()) == 24
    assert not recwarn.list


def test_an_option_of_an_adaptor_is_known_again(tmp_path: Path) -> None:
    with CachedTeacher(live(adaptor=Scaled(3.0)), folder=tmp_path) as cached:
        answers(cached)
    assert asked(tmp_path, live(adaptor=Scaled(3.0))) == 0
    assert asked(tmp_path, live(adaptor=Scaled(4.0))) == 24


def fingerprint_of(code: str, name: str = "made") -> str:
    """That of what a script makes, as it would be in another run of the script."""
    made: dict[str, Any] = {"__name__": "script", "nn": nn, "torch": torch, "functools": functools}
    exec(code, made)
    return fingerprint(made[name])


ADAPTOR = """
import argparse
SCALES = {"logits": 2.0}
given = argparse.Namespace(shift=1.0, seed=3)
class Base:
    offset = 1.0
    def adapted(self, logits):
        return logits * SCALES["logits"] + self.offset - given.shift
class Adaptor(Base):
    def __init__(self):
        self.calls = 0
    def set_power(self, power):
        self.power = power
        return self
    def __call__(self, batch, outputs):
        self.calls += 1
        return {"logits": self.adapted(outputs) ** self.power}
made = Adaptor().set_power(3)
"""

DECORATED = """
def times(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(batch, outputs):
            return {"logits": factor * function(batch, outputs)}
        return wrapper
    return decorate
@times(2.0)
def made(batch, outputs):
    return outputs
"""

MODEL = """
def halved(x):
    return x / 2
class Base(nn.Module):
    def encoded(self, x):
        return halved(x) * self._gain
class Model(Base):
    def __init__(self):
        super().__init__()
        self._gain, self.act, self.layers, self.options, self.seen = 1.0, torch.relu, [0, 2], {"skip": True}, []
        self.by_size = {}
        self.shift = torch.zeros(2)
    def forward(self, x):
        size = len(x)
        self.seen.append(size)
        self.by_size[size] = x
        return self.act(self.encoded(x)) + self.shift
made = Model()
"""


@pytest.mark.parametrize(
    ("code", "before", "after"),
    [
        (ADAPTOR, '{"logits": 2.0}', '{"logits": 3.0}'),
        (ADAPTOR, "offset = 1.0", "offset = 0.0"),
        (ADAPTOR, "shift=1.0", "shift=2.0"),
        (ADAPTOR, "+ self.offset", "- self.offset"),
        (ADAPTOR, "set_power(3)", "set_power(2)"),
        (DECORATED, "times(2.0)", "times(3.0)"),
        (DECORATED, "factor *", "factor +"),
        (MODEL, "x / 2", "x / 4"),
        (MODEL, "halved(x) *", "halved(x) +"),
        (MODEL, "1.0, torch.relu", "2.0, torch.relu"),
        (MODEL, "torch.relu", "torch.tanh"),
        (MODEL, "torch.relu", "lambda x: x"),
        (MODEL, "[0, 2]", "[0, 1]"),
        (MODEL, "True", "False"),
        (MODEL, "torch.zeros(2)", "torch.ones(2)"),
        ("made = torch.ones(2).mul", "ones", "zeros"),
    ],
)
def test_whatever_an_adaptor_or_a_model_does_is_part_of_its_fingerprint(code: str, before: str, after: str) -> None:
    assert before in code
    assert fingerprint_of(code) == fingerprint_of(code)
    assert fingerprint_of(code) != fingerprint_of(code.replace(before, after))


def test_options_of_a_script_that_a_function_does_not_read_are_no_part_of_its_fingerprint() -> None:
    assert fingerprint_of(ADAPTOR) == fingerprint_of(ADAPTOR.replace("seed=3", "seed=4"))


def test_a_variable_of_a_notebook_that_is_called_as_an_output_is_no_part_of_a_fingerprint() -> None:
    code = "logits = torch.ones(2)\ndef made(batch, outputs):\n    return {'logits': outputs.logits}"
    assert fingerprint_of(code) == fingerprint_of(code.replace("ones", "zeros"))


def test_what_a_call_notes_is_no_part_of_a_fingerprint() -> None:
    made: dict[str, Any] = {"__name__": "script", "nn": nn, "torch": torch}
    for code, given in ((ADAPTOR, ({}, torch.ones(2))), (MODEL, (torch.ones(2),))):
        exec(code, made)
        before = fingerprint(made["made"])
        made["made"](*given)
        assert fingerprint(made["made"]) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_scripted_model_is_known_by_its_code() -> None:
    def traced(function: Any) -> Any:
        torch.manual_seed(0)
        return torch.jit.trace(nn.Sequential(nn.Linear(2, 2), function), torch.ones(1, 2))

    assert fingerprint(traced(nn.ReLU())) == fingerprint(traced(nn.ReLU()))
    assert fingerprint(traced(nn.ReLU())) != fingerprint(traced(nn.Tanh()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantised_model_is_known_by_its_weights() -> None:
    def quantised(weight: float) -> nn.Module:
        linear = nn.Linear(2, 2)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, weight]]))
            linear.bias.zero_()
        made: nn.Module = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, torch.qint8)
        return made

    assert fingerprint(quantised(4.0)) == fingerprint(quantised(4.0))
    assert fingerprint(quantised(4.0)) != fingerprint(quantised(5.0))


def test_a_model_is_the_same_wherever_it_was_loaded_from(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="a model of the extra hf")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    model.save_pretrained(tmp_path)
    assert fingerprint(type(model).from_pretrained(tmp_path)) == fingerprint(model)


@pytest.mark.parametrize("change", ["adaptor.scale", "model.gain", "precision"])
def test_a_setting_that_changes_between_two_caches_is_seen(change: str, tmp_path: Path) -> None:
    teacher = live(adaptor=Scaled(3.0))
    with CachedTeacher(teacher, folder=tmp_path) as cached:
        answers(cached)
    if change == "precision":
        teacher.precision = "bf16"
    else:
        owner, _, name = change.partition(".")
        setattr(getattr(teacher, owner), name, 0.5)
    assert asked(tmp_path, teacher) == 48


@pytest.mark.parametrize("how", ["data", "fused"])
def test_a_change_of_weights_that_torch_does_not_count_is_seen(how: str, tmp_path: Path) -> None:
    teacher = live()
    with CachedTeacher(teacher, folder=tmp_path) as cached:
        answers(cached)
        if how == "data":
            for weight in teacher.model.parameters():
                weight.data.mul_(2)
        else:
            optimizer = torch.optim.SGD(teacher.model.parameters(), 0.1, fused=True)
            sum(weight.sum() for weight in teacher.model.parameters()).backward()
            optimizer.step()
        answers(cached)
    assert teacher.model.rows_asked == 48


def test_a_teacher_made_anew_finds_its_cache(tmp_path: Path) -> None:
    built(tmp_path)
    assert asked(tmp_path, live()) == 0


def test_a_weight_that_changes_while_the_teacher_is_in_use_is_seen(tmp_path: Path) -> None:
    teacher = live()
    with CachedTeacher(teacher, folder=tmp_path) as cached:
        answers(cached)
        with torch.no_grad():
            teacher.model.head.weight.mul_(2)
        ours = answers(cached)
    for batch, mine in zip(batches(), ours, strict=True):
        assert_alike(mine, live(teacher.model).features(batch, READ), batch["attention_mask"])
    assert teacher.model.rows_asked == 24 + 24 + 24


def test_another_process_finds_the_cache(tmp_path: Path) -> None:
    built(tmp_path)
    code = (
        "import sys; from pathlib import Path; import test_cache_store as t; "
        "print(t.asked(Path(sys.argv[1]), t.live()), t.fingerprint(t.adapt, t.Scaled(2.0), t.Encoder()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout
        for _ in range(2)
    }
    (output,) = outputs
    assert output.startswith("0 ")


def test_a_fingerprint_is_that_of_content() -> None:
    def scaled(by: float) -> Callable[[float], float]:
        return lambda x: x * by

    assert fingerprint(scaled(2.0)) == fingerprint(scaled(2.0))
    assert fingerprint(scaled(2.0)) != fingerprint(scaled(3.0))
    assert fingerprint(functools.partial(adapt, 1)) != fingerprint(functools.partial(adapt, 2))
    assert fingerprint({1, 2, "a"}) == fingerprint({"a", 2, 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert fingerprint(1) != fingerprint("1")
    assert fingerprint(Cut(slice(0, 4))) != fingerprint(Cut(slice(4, 8)))
    assert fingerprint(Fraction(1, 3)) != fingerprint(Fraction(2, 3))
    assert fingerprint(itemgetter(1)) != fingerprint(itemgetter(2))
    assert fingerprint(Lock()) == fingerprint(Lock())
    assert fingerprint(torch.ones(2)) != fingerprint(torch.ones(2).double())
    assert fingerprint(nn.Linear(2, 3).requires_grad_(False)) != fingerprint(nn.Linear(2, 3))  # other draws
    held: list[Any] = [1]
    held.append(held)
    assert fingerprint(held) == fingerprint(held)


# Damage


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def damaged(file: Path, at: int) -> None:
    held = bytearray(file.read_bytes())
    held[at] ^= 0x40
    file.write_bytes(bytes(held))


def assert_right_again(folder: Path) -> None:
    with CachedTeacher(live(), folder=folder) as cached:
        for batch, ours in zip(batches(5, 2), answers(cached, 5, 2), strict=True):
            assert_alike(ours, live().features(batch, READ), batch["attention_mask"], 1e-6)


@pytest.mark.parametrize("place", ["header", "index", "records", "end"])
def test_a_flipped_byte_is_noticed_and_its_rows_are_computed_again(place: str, tmp_path: Path) -> None:
    built(tmp_path)
    (file,) = parts_of(tmp_path)
    head = int.from_bytes(file.read_bytes()[:8], "little")
    described = json.loads(file.read_bytes()[8 : 8 + head])
    places = {name: described[name]["data_offsets"] for name in ("keys", "records")}
    at = {
        "header": 20,
        "index": 8 + head + places["keys"][0] + 3,
        "records": 8 + head + places["records"][0] + 40,
        "end": file.stat().st_size - 1,
    }[place]
    damaged(file, at)
    with pytest.warns(UserWarning, match="damaged"):
        assert_right_again(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a part that is still there
        assert asked(tmp_path, live()) == 0


def test_a_part_that_was_renamed_is_read_and_others_are_written_beside_it(tmp_path: Path) -> None:
    built(tmp_path)
    (part,) = parts_of(tmp_path)
    part.rename(part.with_name("copy of a part.safetensors"))
    with CachedTeacher(live(), folder=tmp_path) as cached:
        answers(cached)
        cached.features(padded([torch.arange(1, 20)]), READ)
    assert cached.teacher.model.rows_asked == 1
    assert len(parts_of(tmp_path)) == 2


def test_a_folder_whose_name_the_system_refuses_keeps_nothing(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["x" * 200] * 25)
    with pytest.warns(UserWarning, match="keeps no more rows, as .* cannot be written: file name too long"):
        assert asked(folder, live()) == 24


def test_an_index_knows_the_latest_numbers_of_what_was_not_forgotten() -> None:
    generator = numpy.random.default_rng(0)
    index, expected = Index(), dict[bytes, int]()
    known = [generator.bytes(16) for _ in range(9_000)]
    known += [key[:8] + generator.bytes(8) for key in known[:50]]  # alike in their first halves
    for count in range(0, 120_000, 6_000):
        keys = [known[i] for i in generator.integers(len(known), size=6_000)]
        index.add(numpy.frombuffer(b"".join(keys), numpy.uint8).reshape(-1, 16), count)
        expected |= {key: count + i for i, key in enumerate(keys)}
        for key in generator.permutation(len(known))[:40]:
            index.forget(known[key])
            expected.pop(known[key], None)
    assert index.find(known) == [expected.get(key) for key in known]
    assert len(index) == len(expected)


def test_a_byte_that_flips_after_it_was_read_is_noticed(tmp_path: Path) -> None:
    built(tmp_path)
    (file,) = parts_of(tmp_path)
    with CachedTeacher(live(), folder=tmp_path) as cached:
        expected = answers(cached)
        damaged(file, file.stat().st_size - 5)
        with pytest.warns(UserWarning, match="is damaged"):
            again = answers(cached)
    assert 1 <= cached.teacher.model.rows_asked <= 4
    for batch, ours, theirs in zip(batches(), again, expected, strict=True):
        assert_alike(ours, theirs, batch["attention_mask"], 1e-6)


@pytest.mark.parametrize("left", [0, 5, 300, -10])
def test_a_file_that_was_cut_short_is_noticed(left: int, tmp_path: Path) -> None:
    built(tmp_path)
    (file,) = parts_of(tmp_path)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.warns(UserWarning, match="damaged"):
        assert_right_again(tmp_path)


def test_a_part_that_vanishes_while_it_is_read_is_computed_again(tmp_path: Path) -> None:
    built(tmp_path)
    teacher = live()
    with CachedTeacher(teacher, folder=tmp_path) as cached:
        cached.store(READ)
        parts_of(tmp_path)[0].unlink()
        with pytest.warns(UserWarning, match="is damaged; its rows are checked"):
            answers(cached)
    assert teacher.model.rows_asked == 24


# Building


BUILDING = """
import sys, time
from pathlib import Path
import test_cache_store as t
cached = t.CachedTeacher(t.live(), folder=Path(sys.argv[1]))
cached.features(next(t.batches()), t.READ)
print("building", flush=True)
sys.stdin.read()
"""


def test_of_two_processes_that_build_the_second_keeps_nothing_and_answers_all_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDING, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "building\n"
        second = CachedTeacher(live(), folder=tmp_path)
        with pytest.warns(UserWarning, match="another process is building it"):
            ours = answers(second, 5)
        for batch, mine in zip(batches(5), ours, strict=True):
            assert_alike(mine, live().features(batch, READ), batch["attention_mask"], 1e-6)
        second.close()
        assert parts_of(tmp_path) == []
        builder.kill()
    built(tmp_path)
    assert asked(tmp_path, live()) == 0


def test_two_teachers_of_one_process_may_build_the_same_cache(tmp_path: Path) -> None:
    with CachedTeacher(live(), folder=tmp_path) as one, CachedTeacher(live(), folder=tmp_path) as other:
        for batch in batches():
            one.features(batch, READ)
            other.features(batch, READ)
        one.flush()
        other.flush()
    assert asked(tmp_path, live()) == 0


def test_a_reader_sees_what_a_builder_has_written_since(tmp_path: Path) -> None:
    reader = CachedTeacher(live(), folder=tmp_path)
    reader.store(READ)
    built(tmp_path)
    reader.refresh()
    answers(reader)
    assert reader.teacher.model.rows_asked == 0  # type: ignore[attr-defined]  # a live one
    reader.close()


def test_a_cache_grows_to_its_limit_and_no_further(tmp_path: Path) -> None:
    cached = CachedTeacher(live(), folder=tmp_path, limit_gb=6e-6)
    with pytest.warns(UserWarning, match="keeps no more rows") as caught:
        answers(cached)
    cached.close()
    (name,) = (tmp_path / "teachers").iterdir()
    assert [str(each.message) for each in caught] == [
        f"the teacher cache in {name} keeps no more rows, as it has reached its limit of 6 kB; those that are not in it are computed "
        "each time."
    ]
    with CachedTeacher(live(), folder=tmp_path) as unlimited:
        answers(unlimited)
        assert unlimited.teacher.model.rows_asked == 16  # type: ignore[attr-defined]  # two batches were kept whole


def test_rows_that_are_new_in_every_pass_are_told_of(tmp_path: Path) -> None:
    cached = CachedTeacher(live(), folder=tmp_path)
    for seed in range(2):
        for batch in batches(seed):
            noise = torch.rand(len(batch["input_ids"]))
            rows = cached.rows({**batch, "noise": noise})
            cached.features(batch, READ, rows)
        if seed:
            with pytest.warns(UserWarning, match="0 of 24 rows of this pass were found"):
                cached.end_pass()
        else:
            cached.end_pass()
    cached.close()


def test_a_column_or_a_function_may_tell_rows_apart(tmp_path: Path) -> None:
    model = Encoder()

    def numbered(seed: int) -> Iterator[dict[str, Any]]:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        for batch, ids in zip(batches(seed), order.split(4), strict=True):
            yield {**batch, "id": ids}

    with CachedTeacher(live(model), key="id", folder=tmp_path / "a") as cached:
        for seed in range(2):
            for batch in numbered(seed):
                cached.features(batch, READ)
    assert model.rows_asked == 24
    with CachedTeacher(
        live(model), key=lambda batch: batch["input_ids"][:, 0].tolist(), folder=tmp_path / "b"
    ) as cached:
        for batch in batches():
            cached.features(batch, READ)
    distinct = len({int(text[0]) for text in texts()})
    assert len(CachedTeacher(live(), folder=tmp_path / "b").store(READ)) == distinct


def message(kind: type[Exception], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


def test_a_key_that_is_not_there_or_not_one_a_row_is_an_error(tmp_path: Path) -> None:
    batch = next(batches())
    absent, short = (CachedTeacher(live(), key=key, folder=tmp_path) for key in ("id", lambda _: [1]))
    assert message(RequestError, lambda: absent.features(batch, READ)) == (
        "CachedTeacher: the batch has no column 'id' to know its rows by; it has input_ids, attention_mask."
    )
    assert message(DataError, lambda: short.features(batch, READ)) == (
        "CachedTeacher: the function `key` gave 1 keys for 4 rows; expected one for each."
    )


def test_what_is_no_teacher_or_no_form_is_refused(tmp_path: Path) -> None:
    assert message(RequestError, lambda: CachedTeacher(Encoder())) == (  # type: ignore[arg-type]  # the mistake in question
        "CachedTeacher: a Encoder is no teacher; wrap a model as LiveTeacher(model, adaptor, device) first."
    )
    assert message(RequestError, lambda: CacheFormat(top_k=2, samples=2)) == (
        "CacheFormat: top_k and samples are two ways to keep some logits; give one of them."
    )
    assert message(RequestError, lambda: CacheFormat(top_k=0)) == "CacheFormat: top_k is 0; it must be 1 or more."
    assert message(RequestError, lambda: CacheFormat("int8")) == (  # type: ignore[arg-type]  # the mistake in question
        "CacheFormat: floats is 'int8'; expected float32, float16 or bfloat16."
    )


def test_a_feature_of_unknown_axes_is_known_again_at_its_length_alone(tmp_path: Path) -> None:
    class Halved(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
            return {
                **super().forward(input_ids, attention_mask),
                "pooled": self.embedding(input_ids).unfold(1, 1, 2).squeeze(-1),
            }

    needs, model = frozenset({"pooled"}), Halved()
    with CachedTeacher(live(model), folder=tmp_path) as cached:
        for batch in (padded(texts()), padded(texts()), padded(texts(), more=1)):
            ours = cached.features(batch, needs)["pooled"][0]
            assert torch.equal(ours, live(model).features(batch, needs)["pooled"][0])
    assert model.rows_asked - 3 * 24 == 2 * 24


class Answering:
    """A teacher that answers what a function of the batch gives."""

    def __init__(self, answer: Callable[[Any], dict[str, Any]]) -> None:
        self.answer, self.asked = answer, 0

    def identity(self) -> str:
        return "answering"

    def described(self) -> dict[str, Any]:
        return {}

    def features(self, batch: Any, needs: frozenset[str]) -> Features:
        self.asked += 1
        return Features.of(self.answer(batch)).only_read(needs)


def both_read(answer: Callable[[Any], dict[str, Any]], given: list[Any], folder: Path) -> tuple[list[Features], int]:
    """What is read of batches when they come again, and how many of them are computed again."""
    for _ in range(2):
        teacher = Answering(answer)
        with CachedTeacher(teacher, folder=folder) as cached:
            read = [cached.features(batch, READ) for batch in given]
    return read, teacher.asked


def states_of(ids: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(ids, WORDS).float()


def masked(batch: Any) -> dict[str, Any]:
    return {"logits_mask": batch["attention_mask"], "inputs_mask": batch["attention_mask"]}


OF_OTHER_LENGTHS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "a token before each text": lambda b: {"hidden": [nn.functional.pad(states_of(b["input_ids"]), (0, 0, 1, 0))]},
    "every other token": lambda b: {"hidden": [states_of(b["input_ids"])[:, ::2]]},
    "logits of a row and of its tokens": lambda b: {
        "logits": [states_of(b["input_ids"]).sum(1), states_of(b["input_ids"])],
        "logits_mask": [None, b["attention_mask"]],
    },
}


@pytest.mark.parametrize("case", OF_OTHER_LENGTHS)
def test_features_of_another_length_than_the_texts_have_that_of_the_batch(case: str, tmp_path: Path) -> None:
    def answer(batch: Any) -> dict[str, Any]:
        return {**masked(batch), **OF_OTHER_LENGTHS[case](batch)}

    given = [padded(texts(3)), padded(texts(3), 4)]
    read, _ = both_read(answer, given, tmp_path)
    for batch, ours in zip(given, read, strict=True):
        for name, tensors in Features.of(answer(batch)).items():
            assert [None if t is None else t.shape for t in ours[name]] == [
                None if t is None else t.shape for t in tensors
            ]


def test_what_a_decoder_gives_is_not_cut_to_the_texts_of_the_encoder(tmp_path: Path) -> None:
    def answer(batch: Any) -> dict[str, Any]:
        mask = batch["decoder_attention_mask"]
        return {
            "logits": states_of(batch["decoder_input_ids"]),
            "logits_mask": mask,
            "inputs_mask": batch["attention_mask"],
        }

    def both(more: int, more_decoded: int) -> dict[str, Tensor]:
        decoded = {f"decoder_{name}": value for name, value in padded(texts(4), more_decoded).items()}
        return {**padded(texts(4), more), **decoded}

    given = [both(0, 0), both(3, 0), both(0, 2), both(2, 2)]
    read, _ = both_read(answer, given, tmp_path)
    for batch, ours in zip(given, read, strict=True):
        assert torch.equal(ours["logits"][0], answer(batch)["logits"])


def test_labels_that_a_decoder_begins_with_tell_rows_apart(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="a model of the extra hf")
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": WORDS}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()
    teacher = LiveTeacher(model, lambda _, outputs: {"logits": outputs.logits}, CPU)
    text = padded([torch.tensor([4, 5, 6, 7])])
    with CachedTeacher(teacher, folder=tmp_path) as cached:
        for labels in ([[3, 4, 1]], [[8, 9, 1]], [[8, 9, 10, 1]], [[3, 4, 1]]):
            batch = {**text, "labels": torch.tensor(labels)}
            read = cached.features(batch, frozenset({"logits"}))["logits"][0]
            torch.testing.assert_close(read, teacher.features(batch, frozenset({"logits"}))["logits"][0])


@pytest.mark.parametrize(
    "answer",
    [
        lambda b: {"hidden": [states_of(b["input_ids"])[..., :0]], "logits": states_of(b["input_ids"])},
        lambda b: {"hidden": [states_of(b["input_ids"])[..., :0]]},
        lambda b: {"hidden": [states_of(b["input_ids"])] * 1100},
        lambda b: {"hidden": [states_of(b["input_ids"]).to(torch.float8_e4m3fn)]},
        lambda b: {"hidden": [states_of(b["input_ids"]).to(torch.complex64).conj()]},
    ],
    ids=["no width", "nothing", "more tensors than the system reads at once", "eight bits", "conjugated"],
)
def test_unusual_tensors_are_kept_like_others(answer: Callable[[Any], dict[str, Any]], tmp_path: Path) -> None:
    batch = padded(texts(3))
    (read,), computed = both_read(lambda b: {**masked(b), **answer(b)}, [batch], tmp_path)
    assert computed == 0
    valid = batch["attention_mask"].bool()
    for ours, expected in zip(read["hidden"], answer(batch)["hidden"], strict=True):
        assert ours.dtype == expected.dtype
        assert ours[valid].tolist() == expected[valid].tolist()


def test_texts_without_any_token_are_kept_like_others(tmp_path: Path) -> None:
    nothing = {name: torch.zeros(2, 0, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    read, computed = both_read(lambda b: {**masked(b), "hidden": [states_of(b["input_ids"])]}, [nothing], tmp_path)
    assert (read[0]["hidden"][0].shape, computed) == ((2, 0, WORDS), 0)


def test_features_that_state_their_axes_are_cut_to_the_row(tmp_path: Path) -> None:
    def stating(batch: Any, outputs: Any) -> dict[str, Any]:
        doubled = Feature((outputs["hidden"][1].transpose(1, 2),), "B D L")
        return {"inputs_mask": batch["attention_mask"], "columns": doubled}

    needs, model = frozenset({"columns", "inputs_mask"}), Encoder()
    with CachedTeacher(live(model, stating), folder=tmp_path) as cached:
        cached.features(padded(texts()), needs)
        batch = padded(texts(), more=3)
        ours, asked_before = cached.features(batch, needs)["columns"][0], model.rows_asked
    expected = live(model, stating).features(batch, needs)["columns"][0]
    valid = batch["attention_mask"].bool()
    assert torch.equal(ours.transpose(1, 2)[valid], expected.transpose(1, 2)[valid])
    assert asked_before == 24


def test_features_that_hold_for_one_length_are_kept_for_each_length_that_comes(tmp_path: Path) -> None:
    def unmasked(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs["logits"]}

    needs, model = frozenset({"logits"}), Encoder()
    with CachedTeacher(live(model, unmasked), folder=tmp_path) as cached:
        for more in (0, 3, 0, 3):
            ours = cached.features(padded(texts(), more=more), needs)["logits"][0]
            expected = Encoder()(**padded(texts(), more=more))["logits"]
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert model.rows_asked == 2 * 24
