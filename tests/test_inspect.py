"""`brewer inspect`: what it reads, what it shows, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from brewer_core.checkpoints import Checkpoints
from runs import brewer
from test_shape_of_the_house import loaded_after

KEYS = {"name", "path", "parameters", "bytes", "share", "shared", "children"}


def weights() -> dict[str, torch.Tensor]:
    """Two layers, 12 parameters and 48 bytes."""
    return {"body.0.weight": torch.ones(2, 3), "body.0.bias": torch.ones(2), "head.weight": torch.ones(4, 1)}


def tied() -> dict[str, torch.Tensor]:
    """A state dict with a weight under two names."""
    state = weights()
    return {**state, "head.copy": state["head.weight"], "tail.weight": state["body.0.weight"].t()}


@pytest.fixture
def inspected(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The JSON that `brewer inspect --json` prints."""

    def answer(*arguments: Any) -> Any:
        assert brewer("inspect", *arguments, "--json") == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return json.loads(captured.out)

    return answer


def sizes(node: dict[str, Any]) -> dict[str, int]:
    """The parameters of every layer by path."""
    found = {node["path"]: node["parameters"]}
    for child in node["children"]:
        found |= sizes(child)
    return found


WHOLE = {"": 12, "body": 8, "body.0": 8, "body.0.weight": 6, "body.0.bias": 2, "head": 4, "head.weight": 4}


# What is read


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.pkl", "w.bin"])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_files_that_torch_saved_are_read(name: str, form: str, tmp_path: Path, inspected: Any) -> None:
    torch.save(weights(), tmp_path / name, _use_new_zipfile_serialization=form == "zip")

    assert sizes(inspected(tmp_path / name)) == WHOLE


def test_a_safetensors_file_is_read(tmp_path: Path, inspected: Any) -> None:
    save_file(weights(), tmp_path / "w.safetensors")

    assert sizes(inspected(tmp_path / "w.safetensors")) == WHOLE


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bytes_are_those_of_the_type(dtype: torch.dtype, suffix: str, tmp_path: Path, inspected: Any) -> None:
    file, state = tmp_path / f"w{suffix}", {"w": torch.zeros(3, 5).to(dtype), "one": torch.zeros(()).to(dtype)}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)

    tree = inspected(file)

    assert (tree["parameters"], tree["bytes"]) == (16, 16 * dtype.itemsize)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "student/model.safetensors", "model/w.bin"])
def test_folders_are_read(name: str, tmp_path: Path, inspected: Any) -> None:
    file = tmp_path / name.replace("w.bin", "pytorch_model.bin")
    file.parent.mkdir(exist_ok=True)
    save_file(weights(), file) if file.suffix == ".safetensors" else torch.save(weights(), file)

    assert sizes(inspected(tmp_path)) == WHOLE


def test_a_folder_that_transformers_saved_has_the_models_parameters(
    tmp_path: Path, inspected: Any, capsys: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"hidden_size": 8, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=30, **config))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    capsys.readouterr()  # progress of saving

    whole, parts = inspected(tmp_path / "whole"), inspected(tmp_path / "parts")

    assert (tmp_path / "parts" / "model.safetensors.index.json").is_file()
    assert whole == parts
    assert whole["parameters"] == sum(p.numel() for p in model.parameters())
    layers = whole["children"][0]["children"][1]["children"][0]
    assert layers["path"] == "bert.encoder.layer"
    assert [child["name"] for child in layers["children"]] == [str(number) for number in range(12)]


def test_an_index_is_read_with_its_parts(tmp_path: Path, inspected: Any) -> None:
    state = weights()
    torch.save({"head.weight": state.pop("head.weight")}, tmp_path / "2.bin")
    torch.save(state, tmp_path / "1.bin")
    index = {"weight_map": {**dict.fromkeys(state, "1.bin"), "head.weight": "2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    assert sizes(inspected(tmp_path)) == WHOLE
    assert sizes(inspected(tmp_path / "pytorch_model.bin.index.json")) == WHOLE


def test_a_checkpoint_is_shown_with_its_levels(tmp_path: Path, inspected: Any) -> None:
    student = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    student(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {
        "learner": {f"student.{k}": v for k, v in student.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    folder = Checkpoints(tmp_path).save(3, {**state, "scheduler": None, "step": 3, "rng": [torch.zeros(5)]})

    tree = inspected(folder)

    assert [child["name"] for child in tree["children"]] == ["learner", "optimizer", "rng"]
    found = sizes(tree)
    assert found["learner"] == found["learner.student"] == 8
    assert (found["learner.student.weight"], found["optimizer.state.0.momentum_buffer"]) == (6, 6)
    assert (found["rng.0"], tree["parameters"]) == (5, 8 + 8 + 5)


def test_a_single_tensor_is_a_model_without_layers(tmp_path: Path, inspected: Any) -> None:
    torch.save(torch.ones(3), tmp_path / "w.pt")

    assert sizes(inspected(tmp_path / "w.pt")) == {"": 3}


# What is shown


def test_every_object_of_the_json_has_every_key(tmp_path: Path, inspected: Any) -> None:
    torch.save(weights(), tmp_path / "w.pt")

    tree = inspected(tmp_path / "w.pt")
    head = tree["children"][1]

    assert set(tree) == set(head) == KEYS
    assert head == {
        "name": "head",
        "path": "head",
        "parameters": 4,
        "bytes": 16,
        "share": pytest.approx(1 / 3),
        "shared": False,
        "children": [{**head, "name": "weight", "path": "head.weight", "children": []}],
    }
    assert (tree["name"], tree["share"]) == ("model", 1.0)


def test_shared_weights_count_once(tmp_path: Path, inspected: Any) -> None:
    torch.save(tied(), tmp_path / "w.pt")

    tree = inspected(tmp_path / "w.pt")
    _, head, tail = tree["children"]

    assert tree["parameters"] == 12
    assert (head["shared"], head["children"][1]["shared"], head["children"][1]["parameters"]) == (False, True, 0)
    assert (tail["shared"], tail["bytes"], tail["share"]) == (True, 0, 0.0)


@pytest.mark.parametrize(("level", "paths"), [(0, [""]), (1, ["", "body", "head"]), (9, list(WHOLE))])
def test_a_level_cuts_the_json(level: int, paths: list[str], tmp_path: Path, inspected: Any) -> None:
    torch.save(weights(), tmp_path / "w.pt")

    tree = inspected(tmp_path / "w.pt", "--max-level", str(level))

    assert list(sizes(tree)) == paths
    assert tree["parameters"] == 12


def test_the_tree_is_drawn_with_its_numbers(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(tied(), "w.pt")

    assert brewer("inspect", "w.pt") == 0

    captured = capsys.readouterr()
    assert captured.err == ""
    assert [line.rstrip() for line in captured.out.splitlines()] == [
        "layer                    parameters    share    MB",
        "w.pt                             12  100.00%  0.00",
        "├── body                          8   66.67%  0.00",
        "│   └── 0                         8   66.67%  0.00",
        "│       ├── weight                6   50.00%  0.00",
        "│       └── bias                  2   16.67%  0.00",
        "├── head                          4   33.33%  0.00",
        "│   ├── weight                    4   33.33%  0.00",
        "│   └── copy (shared)             0    0.00%  0.00",
        "└── tail (shared)                 0    0.00%  0.00",
        "    └── weight (shared)           0    0.00%  0.00",
    ]


def test_a_level_cuts_the_tree(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": {"b": torch.ones(1024, 1024)}, "c": torch.ones(1024)}, "w.pt")

    assert brewer("inspect", "w.pt", "--max-level", "1") == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "layer  parameters    share    MB",
        "w.pt    1,049,600  100.00%  4.00",
        "├── a   1,048,576   99.90%  4.00",
        "└── c       1,024    0.10%  0.00",
    ]


def test_piped_output_is_not_cut(tmp_path: Path, capsys: Any) -> None:
    name = "long" * 100
    torch.save({f"{name}.{name}": torch.ones(2)}, tmp_path / "w.pt")

    assert brewer("inspect", tmp_path / "w.pt") == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert f"    └── {name} " in lines[-1]


def test_a_name_cannot_steer_the_terminal(tmp_path: Path, capsys: Any) -> None:
    torch.save({"a\x1b[2J\n[red]é": torch.ones(2)}, tmp_path / "w.pt")

    assert brewer("inspect", tmp_path / "w.pt") == 0
    assert "└── a\\x1b[2J\\n[red]\\xe9 " in capsys.readouterr().out.splitlines()[-1]


def test_where_only_ascii_can_be_shown_the_tree_is_drawn_with_it(tmp_path: Path) -> None:
    torch.save({"é.a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "w.pt")
    done = subprocess.run(
        [sys.executable, "-m", "brewer_core", "inspect", "w.pt"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (done.returncode, done.stderr) == (0, "")
    drawn = [re.split(r" +\d", line)[0] for line in done.stdout.splitlines()[2:]]
    assert drawn == ["|-- \\xe9", "|   `-- a", "`-- b"]


def test_in_a_terminal_of_100_columns_no_line_is_broken(tmp_path: Path) -> None:
    state = {f"{'.'.join(['some_longer_layer'] * depth)}.weight": torch.ones(300, 300) for depth in (1, 3, 6)}
    torch.save(state, tmp_path / "w.pt")
    reading, writing = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "brewer_core", "inspect", str(tmp_path / "w.pt"), "--max-level", "6"],
        stdout=writing,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "xterm"},
        timeout=120,
    )
    os.close(writing)
    lines = os.read(reading, 100_000).decode().splitlines()
    os.close(reading)

    assert done.returncode == 0
    shown = [line.rstrip() for line in lines if "some_longer" in line or "weight" in line]
    assert len(shown) == 6 + 2
    assert all(line.endswith("1.03") or line.endswith("0.69") or line.endswith("0.34") for line in shown)


def test_neither_the_help_nor_a_safetensors_file_loads_torch(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "w.safetensors")
    run = "import runpy; runpy.run_module('brewer_core', run_name='__main__', alter_sys=True)"
    for arguments in (["inspect", "--help"], ["inspect", str(tmp_path / "w.safetensors")]):
        loaded = loaded_after(f"import sys; sys.argv[1:] = {arguments!r}\n{run}")
        assert "typer" in loaded
        assert loaded & {"torch", "brewer_builtins"} == set()


# What is refused


def refused(capsys: Any, *arguments: Any) -> str:
    """The one line that a faulty request is answered with."""
    assert brewer("inspect", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("brewer: error: ")
    assert captured.err.count("\n") == 1
    return str(captured.err.removeprefix("brewer: error: ").rstrip("\n"))


class Touch:
    """What writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_code_in_a_pickle_is_never_run(tmp_path: Path, capsys: Any) -> None:
    torch.save({"w": torch.ones(2), "more": Touch(tmp_path / "made")}, tmp_path / "w.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"w": Touch(tmp_path / "made")}, protocol=2))

    for file in (tmp_path / "w.pt", tmp_path / "plain.pkl"):
        said = refused(capsys, file)
        assert said == (
            f"{file} holds a pickled posix.mkdir, which could run code when it is read; only tensors and plain values are: "
            "save model.state_dict() in its place."
        )
    assert not (tmp_path / "made").exists()


def test_a_whole_model_is_refused_with_what_to_save(tmp_path: Path, capsys: Any) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")

    assert refused(capsys, tmp_path / "w.pt") == (
        f"{tmp_path}/w.pt holds a pickled torch.nn.modules.linear.Linear, which could run code when it is read; only tensors "
        "and plain values are: save model.state_dict() in its place."
    )


def cut(file: Path) -> bytes:
    torch.save(weights(), file)
    return file.read_bytes()[:400]


@pytest.mark.parametrize("form", ["empty", "text", "cut", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_damaged_file_is_told(form: str, suffix: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / f"w{suffix}"
    held = {"empty": b"", "text": b"hello there", "cut": cut(file), "pickle": pickle.dumps({"w": 1}, protocol=4)}
    file.write_bytes(held[form])

    assert refused(capsys, file) == f"{file} is damaged, or no file of weights that torch.save wrote."


@pytest.mark.parametrize("form", ["empty", "text", "cut"])
def test_a_damaged_safetensors_file_is_told(form: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "w.safetensors"
    save_file(weights(), file)
    file.write_bytes({"empty": b"", "text": b"hello there", "cut": file.read_bytes()[:-4]}[form])

    assert refused(capsys, file).startswith(f"{file} is damaged, or no safetensors file: ")


def test_a_scripted_model_is_refused_without_a_warning(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "w.pt"
    program = f"import torch; torch.jit.script(torch.nn.Linear(2, 2)).save({str(file)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)

    assert refused(capsys, file) == f"{file} is damaged, or no file of weights that torch.save wrote."


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_without_tensors_is_told(suffix: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / f"w{suffix}"
    save_file({}, file) if suffix == ".safetensors" else torch.save({"epoch": 3}, file)

    assert refused(capsys, file) == f"{file} holds no tensors."


def test_what_is_not_there_is_told(tmp_path: Path, capsys: Any) -> None:
    assert refused(capsys, tmp_path / "w.pt") == (
        f"{tmp_path}/w.pt cannot be read: No such file or directory; name a file of weights, a model's folder, or a run's."
    )


def test_a_file_of_another_kind_is_told(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text("{}")

    assert refused(capsys, tmp_path / "config.json") == (
        f"{tmp_path}/config.json is no file of weights: its name must end in .safetensors, .pt, .pth, .pkl, .bin or "
        ".index.json."
    )


KNOWN = (
    "model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json, state.pt, student/ "
    "and model/"
)


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ([], "name a file of weights."),
        (["notes.txt"], "name a file of weights."),
        (["gs6.pkl", "gs3.pkl"], "name one of its files: gs3.pkl, gs6.pkl."),
        ([f"{n}.pt" for n in range(9)], "name one of its files: 0.pt, 1.pt, 2.pt, 3.pt, 4.pt and others."),
    ],
)
def test_a_folder_without_known_weights_is_told(files: list[str], advice: str, tmp_path: Path, capsys: Any) -> None:
    for name in files:
        (tmp_path / name).touch()

    assert refused(capsys, tmp_path) == f"{tmp_path} holds none of {KNOWN}; {advice}"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"w": 3}}', "\xff"])
def test_an_index_that_is_none_is_told(text: str, tmp_path: Path, capsys: Any) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text, encoding="latin-1")

    assert refused(capsys, tmp_path) == (
        f"{index} is no index of weights: it must hold `weight_map`, from names to files."
    )


def test_parts_that_are_missing_are_told(tmp_path: Path, capsys: Any) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"v": "1.safetensors", "w": "2.safetensors", "x": "1.safetensors"}}))
    save_file({"v": torch.ones(1)}, tmp_path / "1.safetensors")

    assert refused(capsys, tmp_path) == f"{tmp_path}/2.safetensors cannot be read: No such file or directory."
    save_file({"w": torch.ones(1)}, tmp_path / "2.safetensors")
    assert refused(capsys, tmp_path) == f"{index} names tensors that its files do not hold: x."


def test_an_index_that_names_itself_ends(tmp_path: Path, capsys: Any) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": index.name}}))

    assert refused(capsys, tmp_path) == f"{index} is damaged, or no file of weights that torch.save wrote."


def test_a_negative_level_is_told(tmp_path: Path, capsys: Any) -> None:
    assert refused(capsys, tmp_path, "--max-level=-1") == "--max-level is -1; it must be 0, the whole model, or more."
