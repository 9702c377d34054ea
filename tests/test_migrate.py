"""`brewer migrate`: old scripts and configs are read, never run; each use gets a verdict, and a run config is written."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from brewer_core import default_registry
from brewer_core.config import parse_run_config
from brewer_core.errors import ConfigError, RequestError
from brewer_core.migration import examine, run_document
from brewer_core.migration.names import DISTILLERS, EXPORTS, INTERNAL, MODULES, OVERRIDDEN, SETTINGS
from runs import bert, brewer, labelled, read, write_csv
from test_shape_of_the_house import loaded_after

GENERAL = """
    import torch
    import textbrewer
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    matches = [
        {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 8, 16]},
        {"layer_T": [0, 0], "layer_S": [0, 0], "feature": "hidden", "loss": "mmd", "weight": 1},
    ]
    steps = dict(num_warmup_steps=10, num_training_steps=200)


    def adaptor(batch, outputs):
        return {"logits": outputs[1], "hidden": outputs[2], "losses": outputs[0]}


    def main(teacher, student, rows):
        print(textbrewer.utils.display_parameters(student, max_level=2)[0])
        optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, weight_decay=0.1)
        loader = DataLoader(rows, batch_size=8, shuffle=True)
        distiller = GeneralDistiller(
            train_config=TrainingConfig(gradient_accumulation_steps=2, output_dir="out", device="cpu"),
            distill_config=DistillationConfig(temperature=8, intermediate_matches=matches),
            model_T=teacher,
            model_S=student,
            adaptor_T=adaptor,
            adaptor_S=adaptor,
        )
        with distiller:
            distiller.train(
                optimizer,
                loader,
                num_epochs=3,
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args=steps,
                max_grad_norm=1.0,
                callback=print,
            )
"""


def script(folder: Path, text: str, name: str = "old.py") -> Path:
    file = folder / name
    file.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return file


def rows(folder: Path, text: str) -> list[dict[str, Any]]:
    """What is said of a script."""
    return [finding.to_dict() for finding in examine(script(folder, text), default_registry()).findings]


def said(folder: Path, text: str, used: str) -> dict[str, Any]:
    """The one row in which something is used."""
    found = [row for row in rows(folder, text) if used in row["used"]]
    assert len(found) == 1, found
    return found[0]


def verdicts(folder: Path, text: str, used: str) -> list[tuple[str, int | None]]:
    return [(row["verdict"], row["row"]) for row in rows(folder, text) if used in row["used"]]


def training(text: str) -> str:
    return f"from textbrewer import TrainingConfig, DistillationConfig\nconfig = TrainingConfig({text})\n"


def distillation(text: str) -> str:
    return f"from textbrewer import TrainingConfig, DistillationConfig\nconfig = DistillationConfig({text})\n"


def distiller(train: str, kind: str = "GeneralDistiller", config: str = "", before: str = "") -> str:
    return (
        f"from textbrewer import {', '.join(sorted(EXPORTS))}\n{before}\n"
        f"t = TrainingConfig()\nd = DistillationConfig({config})\n"
        f"distiller = {kind}(t, d, teacher, student, adaptor, adaptor)\nwith distiller:\n    distiller.{train}\n"
    )


# Tables that must follow TextBrewer and brewer


def test_the_names_are_those_of_textbrewer_and_of_brewer() -> None:
    from differential.reference import textbrewer

    for name in EXPORTS:
        assert hasattr(textbrewer, name)
        assert hasattr(importlib.import_module("brewer_core"), name)
    for module, names in MODULES.items():
        old, new = getattr(textbrewer, module), importlib.import_module(f"brewer_core.{module}")
        assert [name for name in names if not (hasattr(old, name) and hasattr(new, name))] == []
    for module in set(INTERNAL) - set(MODULES):
        assert importlib.util.find_spec(f"textbrewer.{module}")
        assert importlib.util.find_spec(f"brewer_core.{module}") is None


def test_the_settings_and_the_methods_that_no_subclass_may_define_are_those_of_the_classes() -> None:
    from brewer_core.distillers import trains
    from differential.reference import textbrewer

    for kind, names in SETTINGS.items():
        assert list(inspect.signature(getattr(textbrewer, kind)).parameters) == names
    assert set(trains._TEXTBREWERS_INTERNALS) == OVERRIDDEN


# Imports


@pytest.mark.parametrize(
    ("line", "verdict", "becomes"),
    [
        ("import textbrewer", "same", "import brewer_core as textbrewer"),
        ("import textbrewer as tb", "same", "import brewer_core as tb"),
        ("import textbrewer.presets as p", "same", "import brewer_core.presets as p"),
        ("import textbrewer.presets", "same", "import brewer_core.presets; import brewer_core as textbrewer"),
        ("from textbrewer import TrainingConfig as TC", "same", "from brewer_core import TrainingConfig as TC"),
        ("from textbrewer import *", "unknown", "from brewer_core import *"),
        ("from textbrewer import presets, utils", "same", "from brewer_core import presets, utils"),
        ("from textbrewer.distillers import BasicTrainer", "same", "from brewer_core.distillers import BasicTrainer"),
        (
            "from textbrewer.distiller_utils import CustomMatch",
            "same",
            "from brewer_core.distiller_utils import CustomMatch",
        ),
        ("from textbrewer.distiller_basic import BasicDistiller", "change", "from brewer_core import BasicDistiller"),
    ],
)
def test_an_import_is_told_what_it_becomes(line: str, verdict: str, becomes: str, tmp_path: Path) -> None:
    (row,) = rows(tmp_path, line)
    assert (row["line"], row["used"], row["verdict"]) == (1, line, verdict)
    assert f"Write `{becomes}`" in row["advice"]
    for statement in becomes.split("; "):
        exec(statement, {})


def test_an_import_of_what_brewer_lacks_is_told_what_takes_its_place(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, "from textbrewer.losses import kd_ce_loss")
    assert row["verdict"] == "change"
    assert row["advice"] == (
        "There is no kd_ce_loss: a loss is an entry of a preset, such as MATCH_LOSS_MAP['hidden_mse'] or KD_LOSS_MAP['ce']."
    )
    assert said(tmp_path, "import textbrewer.losses as l\nl.cos_loss(a, b)", "l.cos_loss")["verdict"] == "change"


def test_a_script_whose_imports_are_changed_is_still_looked_at(tmp_path: Path) -> None:
    text = "import brewer_core as textbrewer\ntextbrewer.KD_LOSS_MAP['x'] = f\nfrom brewer_core import Strategy\n"
    assert [(row["line"], row["verdict"]) for row in rows(tmp_path, text)] == [(1, "same"), (2, "change"), (3, "same")]


@pytest.mark.parametrize(
    "built",
    [
        "import textbrewer as tb\nc = tb.TrainingConfig(data_parallel=True)",
        "import textbrewer\nc = textbrewer.configurations.TrainingConfig(data_parallel=True)",
        "from textbrewer import TrainingConfig as TC\nc = TC(data_parallel=True)",
        "from textbrewer import TrainingConfig\nMake = TrainingConfig\nc = Make(data_parallel=True)",
        "def f():\n    import textbrewer as tb\n    return tb.TrainingConfig(1, 1, 1, None, None, 'o', 'cpu', False, 'O1', True)",
        "from textbrewer import TrainingConfig\nc = TrainingConfig.from_dict({'data_parallel': True})",
        "from textbrewer import TrainingConfig\ngiven = {'data_parallel': True}\nc = TrainingConfig(**given)",
    ],
)
def test_a_config_is_found_under_every_name(built: str, tmp_path: Path) -> None:
    assert verdicts(tmp_path, built, "data_parallel=True") == [("differs", 32)]


def test_a_name_of_another_package_is_not_textbrewers(tmp_path: Path) -> None:
    text = "import textbrewer\nfrom mine import TrainingConfig\nc = TrainingConfig(fp16=True)\n"
    assert [row["line"] for row in rows(tmp_path, text)] == [1]


# Settings of a training


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("fp16=True", ("differs", 45)),
        ("data_parallel=True", ("differs", 32)),
        ("local_rank=0", ("differs", 32)),
        ("gradient_accumulation_steps=4", ("differs", 24)),
        ("output_dir='out'", ("same", 42)),
        ("ckpt_steps=0", ("change", None)),
        ("epochs=3", ("change", None)),
        ("fp16=args.half", ("unknown", 45)),
        ("device=args.device", ("same", None)),
    ],
)
def test_settings_of_a_training(setting: str, expected: tuple[str, int | None], tmp_path: Path) -> None:
    assert verdicts(tmp_path, training(setting), f"{setting.partition('=')[0]}=") == [expected]


def test_defaults_that_are_written_out_are_not_worth_a_row(tmp_path: Path) -> None:
    text = training("fp16=False, data_parallel=False, local_rank=-1, gradient_accumulation_steps=1, device='cuda'")
    assert [row["used"] for row in rows(tmp_path, text)][1:] == ["TrainingConfig"]


# Settings of a distillation


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("temperature_scheduler=['flsw', 1, 2]", ("differs", 15)),
        ("temperature_scheduler=('cwsm', 1)", ("differs", 15)),
        ("temperature_scheduler='flsw'", ("change", 14)),
        ("temperature_scheduler=['flsw', 1]", ("change", None)),
        ("kd_loss_type='ce'", ("same", 10)),
        ("kd_loss_type='mse'", ("same", None)),
        ("kd_loss_type='kld'", ("change", None)),
        ("kd_loss_weight_scheduler='linear_decay'", ("differs", 16)),
        ("kd_loss_weight_scheduler='none'", None),
        ("probability_shift=True", ("differs", 9)),
        ("is_caching_logits=True", ("differs", 25)),
        ("temperature=-2", ("change", None)),
        ("temperature='8'", ("change", None)),
        ("temperature=8", None),
    ],
)
def test_settings_of_a_distillation(setting: str, expected: tuple[str, int | None] | None, tmp_path: Path) -> None:
    found = verdicts(tmp_path, distillation(setting), f"{setting.partition('=')[0]}=")
    assert found == ([expected] if expected else [])


def test_the_default_loss_between_logits_is_told(tmp_path: Path) -> None:
    assert verdicts(tmp_path, distillation("8"), "kd_loss_type='ce', the default") == [("same", 10)]
    assert verdicts(tmp_path, distillation("kd_loss_weight=0"), "kd_loss_type") == []


def test_a_name_that_does_not_exist_is_told_with_a_close_one(tmp_path: Path) -> None:
    row = said(tmp_path, distillation("hard_label_weight_scheduler='linear_decey'"), "linear_decey")
    assert row["advice"].startswith("No weight scheduler is called 'linear_decey'; did you mean 'linear_decay'")


MATCH = "{'layer_T': 0, 'layer_S': 0, 'feature': 'hidden', 'loss': 'LOSS', 'weight': 1}"


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("hidden_mse", ("same", None)),
        ("mmd", ("differs", None)),
        ("nst", ("differs", None)),
        ("attention_ce", ("same", 11)),
        ("attention_mse", ("same", 12)),
        ("hidden_sme", ("change", None)),
    ],
)
def test_each_match_has_a_row(loss: str, expected: tuple[str, int | None], tmp_path: Path) -> None:
    text = distillation(f"intermediate_matches=[{MATCH.replace('LOSS', loss)}]")
    assert verdicts(tmp_path, text, "match of layer_T 0") == [expected]


def test_pkd_needs_its_package(tmp_path: Path) -> None:
    pytest.importorskip("brewer_loss_pkd")
    text = distillation(f"intermediate_matches=[{MATCH.replace('LOSS', 'pkd')}]")
    assert verdicts(tmp_path, text, "pkd") == [("same", 13)]
    without = default_registry().without(["brewer-loss-pkd"])
    (row,) = [f for f in examine(script(tmp_path, text), without).findings if "pkd" in f.used]
    assert (row.verdict, row.row) == ("change", 13)
    assert "pip install brewer-loss-pkd" in row.advice


def test_a_match_that_lacks_a_key_or_has_another_is_refused(tmp_path: Path) -> None:
    match = MATCH.replace("LOSS", "cos").replace("'weight': 1", "'wieght': args.w")
    found = rows(tmp_path, distillation(f"intermediate_matches=[{match}]"))
    assert [row["advice"] for row in found if row["verdict"] == "change"] == ["weight: is required."]
    assert [row["advice"] for row in found if row["verdict"] == "unknown"] == [
        "`args.w` is only known when the script runs."
    ]


# What the text tells


@pytest.mark.parametrize(
    "text",
    [
        "m = [MATCH]\nc = DistillationConfig(intermediate_matches=m)",
        "m = [MATCH]\ndef f():\n    return DistillationConfig(intermediate_matches=m)",
        "k = {'intermediate_matches': (MATCH,)}\nc = DistillationConfig(8, **k)",
        "k = dict(intermediate_matches=[MATCH])\nc = DistillationConfig(**{**k, 'temperature': 2})",
        "one = MATCH\nc = DistillationConfig(intermediate_matches=[one])",
        "class A:\n    def f(self):\n        self.m = [MATCH]\n    def g(self):\n        DistillationConfig(intermediate_matches=self.m)",
        "m = 3\nclass A:\n    m = 5\ndef f():\n    m = [MATCH]\n    DistillationConfig(intermediate_matches=m)",
    ],
)
def test_values_are_followed_to_where_they_are_written(text: str, tmp_path: Path) -> None:
    whole = "from textbrewer import DistillationConfig\n" + text.replace("MATCH", MATCH.replace("LOSS", "mmd"))
    row = said(tmp_path, whole, "match of layer_T 0, layer_S 0: 'mmd'")
    assert row["verdict"] == "differs"
    assert "'mmd'" in whole.splitlines()[row["line"] - 1]


TWICE = "`t` is set or changed in more than one place"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("t = args.temperature\nc = DistillationConfig(t)", "`args.temperature` is only known when the script runs"),
        ("def f(t):\n    DistillationConfig(t)", "`t` is only known when the script runs"),
        ("for t in (4, 8):\n    DistillationConfig(t)", "`t` is only known when the script runs"),
        (
            "class A:\n    t = 4\n    def f(self):\n        DistillationConfig(self.t)",
            "`self.t` is only known when the script runs",
        ),
        ("from settings import t\nDistillationConfig(t)", "`t` comes from the module settings"),
        ("t = t\nDistillationConfig(t)", TWICE),
        ("t = [t]\nDistillationConfig(t)", "`[t]` is only known when the script runs"),
        ("t = 4\nif big:\n    t = 8\nDistillationConfig(t)", TWICE),
        ("t = 4\nt *= 2\nDistillationConfig(t)", TWICE),
        ("t = [4]\nt.append(8)\nDistillationConfig(t)", TWICE),
        ("t = [4]\nt[0] = 8\nDistillationConfig(t)", TWICE),
        ("t = 4\ndef f():\n    global t\n    t = 8\nDistillationConfig(t)", TWICE),
        ("t = [4]\nDistillationConfig(t[0])", "`t[0]` is only known when the script runs"),
        ("DistillationConfig(2 + 2)", "`2 + 2` is only known when the script runs"),
    ],
)
def test_what_the_text_does_not_tell_is_said(text: str, reason: str, tmp_path: Path) -> None:
    found = rows(tmp_path, f"from textbrewer import DistillationConfig\n{text}\n")
    assert [row["advice"] for row in found if row["verdict"] == "unknown"] == [f"{reason}; its meaning is the same."]


def test_settings_out_of_reach_are_said(tmp_path: Path) -> None:
    text = "from textbrewer import TrainingConfig\nc = TrainingConfig(**vars(args))\n"
    (unknown,) = [row for row in rows(tmp_path, text) if row["verdict"] == "unknown"]
    assert (
        unknown["advice"] == "`vars(args)` is only known when the script runs; the settings in it were not looked at."
    )


def test_a_json_file_that_the_script_reads_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "distill.json").write_text('{"temperature": 8, "probability_shift": true}')
    text = "import textbrewer as tb\nc = tb.DistillationConfig.from_json_file('FILE.json')\n"
    row = said(tmp_path, text.replace("FILE", "distill"), "probability_shift")
    assert (row["line"], row["verdict"], row["row"]) == (2, "differs", 9)
    (unknown,) = [row for row in rows(tmp_path, text) if row["verdict"] == "unknown"]
    assert unknown["advice"] == (
        "`FILE.json` cannot be read from the folder of the script; the settings in it were not looked at."
    )


# Distillers and train


def test_a_script_in_the_shape_of_the_examples_needs_its_imports_alone(tmp_path: Path) -> None:
    examination = examine(script(tmp_path, GENERAL), default_registry())
    told = {finding.used: (finding.verdict, finding.row) for finding in examination.findings}
    assert not [finding for finding in examination.findings if finding.verdict in ("change", "unknown")]
    assert told["max_grad_norm=1.0"] == ("differs", 17)
    assert told["gradient_accumulation_steps=2"] == ("differs", 24)
    assert told["match of layer_T [0, 0], layer_S [0, 0]: 'mmd'"] == ("differs", None)
    assert told["GeneralDistiller"] == ("same", None)
    assert told["distiller.train(...)"] == ("same", None)
    assert told["textbrewer.utils.display_parameters"] == ("same", None)
    assert examination.summary == (
        "ready: this script needs no edit but its imports; results may differ: lines 9, 23, 37"
    )


@pytest.mark.parametrize("kind", DISTILLERS[1:])
def test_every_distiller_is_found(kind: str, tmp_path: Path) -> None:
    assert verdicts(tmp_path, distiller("train(o, l, num_steps=3)", kind), kind)[0] == ("same", None)


def test_what_is_built_by_a_key_of_distillers_is_unknown(tmp_path: Path) -> None:
    text = distiller("train(o, l, num_steps=3)", "Distillers['General']")
    assert verdicts(tmp_path, text, "Distillers")[-1] == ("unknown", None)


@pytest.mark.parametrize(
    ("call", "new"),
    [
        ("train(opt, scheduler, loader, 10)", "train(opt, loader, scheduler=scheduler, num_epochs=10)"),
        ("train(opt, None, data, num_epochs=3, callback=None)", "train(opt, data, num_epochs=3, callback=None)"),
        (
            "train(opt, s, train_dataloader, 3, 9)",
            "train(opt, train_dataloader, scheduler=s, num_epochs=3, num_steps=9)",
        ),
        ("train(opt, a, b, num_epochs=1)", "train(opt, b, scheduler=a, num_epochs=1)"),
        ("train(opt, decay, rows, 2)", "train(opt, rows, scheduler=decay, num_epochs=2)"),
    ],
)
def test_the_old_order_of_train_is_told_with_the_new_call(call: str, new: str, tmp_path: Path) -> None:
    text = distiller(call, before="decay = torch.optim.lr_scheduler.StepLR(opt, 3)")
    row = next(row for row in rows(tmp_path, text) if row["used"] == "distiller.train(...)")
    assert (row["verdict"], row["row"]) == ("change", 44)
    assert row["advice"] == f"The scheduler stands in the loader's place: write distiller.{new}."


@pytest.mark.parametrize(
    "call",
    [
        "train(opt, loader, 3)",
        "train(opt, loader, 3, None, None)",
        "train(opt, dataloader=loader, num_epochs=3, scheduler=scheduler)",
        "train(opt, rows, num_epochs=3, scheduler_class=schedule, scheduler_args={})",
        "train(*arguments)",
    ],
)
def test_the_new_order_of_train_is_left_alone(call: str, tmp_path: Path) -> None:
    assert ("same", None) in verdicts(tmp_path, distiller(call), "distiller.train(...)")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (f"intermediate_matches=[{MATCH.replace('LOSS', 'cos')}]", []),
        (
            "intermediate_matches=[{**" + MATCH.replace("LOSS", "cos") + ", 'proj': ['linear', 3, 4]}]",
            [("differs", 17)],
        ),
        ("intermediate_matches=[{**" + MATCH.replace("LOSS", "cos") + ", 'proj': args.proj}]", [("unknown", 17)]),
        ("intermediate_matches=args.matches", [("unknown", 17)]),
        ("**given", [("unknown", 17)]),
    ],
)
def test_clipping_differs_where_there_are_projections(config: str, expected: list[Any], tmp_path: Path) -> None:
    assert verdicts(tmp_path, distiller("train(o, l, 1, max_grad_norm=1)", config=config), "max_grad_norm") == expected
    assert verdicts(tmp_path, distiller("train(o, l, 1, max_grad_norm=-1.0)", config=config), "max_grad_norm") == []


def test_steps_without_ckpt_steps_work(tmp_path: Path) -> None:
    steps = distiller("train(o, l, num_steps=9)")
    assert verdicts(tmp_path, steps, "num_steps without") == [("same", 19)]
    tasks = distiller("train(o, loaders, 9)", "MultiTaskDistiller")
    assert verdicts(tmp_path, tasks, "num_steps without") == [("same", 20)]
    assert verdicts(tmp_path, steps.replace("TrainingConfig()", "TrainingConfig(ckpt_steps=3)"), "num_steps") == []


def test_training_outside_of_with_differs(tmp_path: Path) -> None:
    inside = distiller("train(o, l, 1)")
    assert verdicts(tmp_path, inside, "distiller.train") == [("same", None)]
    bare = inside.replace("with distiller:\n    ", "")
    assert verdicts(tmp_path, bare, "distiller.train") == [("same", None), ("differs", 30)]


def test_the_example_that_textbrewer_ships_has_the_old_order() -> None:
    spec = importlib.util.find_spec("textbrewer")
    assert spec is not None
    assert spec.origin is not None
    examination = examine(Path(spec.origin).parent / "snippet.py", default_registry())
    (found,) = [finding for finding in examination.findings if finding.verdict == "change"]
    assert "write distiller.train(optimizer, dataloader, scheduler=scheduler, " in found.advice


def test_names_that_go_round_in_a_circle_are_no_trap(tmp_path: Path) -> None:
    text = (
        "import textbrewer\n"
        + "a, b = b, a\nc = a\nb = c\na = a.b\n" * 30
        + "a.train(b, c)\ntextbrewer.TrainingConfig(c)\n"
    )
    assert verdicts(tmp_path, text, "gradient_accumulation_steps") == [("unknown", 24)]


def test_a_distiller_that_may_be_several_has_no_config(tmp_path: Path) -> None:
    text = distiller("train(o, l, 1, max_grad_norm=1)") + "distiller = GeneralDistiller(t, d, a, b, c, e)\n"
    assert verdicts(tmp_path, text, "distiller.train") == [("same", None)]
    assert verdicts(tmp_path, text, "max_grad_norm") == [("unknown", 17)]


def test_a_distiller_that_is_an_argument_is_known_by_its_name(tmp_path: Path) -> None:
    text = "import textbrewer\ndef go(distiller, opt, sched, loader):\n    distiller.train(opt, sched, loader, 3)\n    model.train()\n"
    assert [v for v, _ in verdicts(tmp_path, text, ".train(...)")] == ["change", "differs"]


def test_a_parameter_in_the_loaders_place_may_be_a_scheduler(tmp_path: Path) -> None:
    text = distiller("train(o, l, 1)") + "def go(opt, sch, data):\n    distiller.train(opt, sch, data, 3)\n"
    assert verdicts(tmp_path, text, "distiller.train")[0] == ("same", None)
    assert ("unknown", 44) in verdicts(tmp_path, text, "distiller.train")
    text = text.replace("sch", "train_data")
    assert ("unknown", 44) not in verdicts(tmp_path, text, "distiller.train")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("tune(d)", "look whether that assigns to the config, which is frozen"),
        ("setattr(t, 'output_dir', 'x')", "look whether that assigns to the config, which is frozen"),
        ("run.go(steps=3, by=distiller)", "look whether that trains, or uses what is inside a distiller"),
    ],
)
def test_what_a_function_is_given_was_not_followed(line: str, told: str, tmp_path: Path) -> None:
    found = said(tmp_path, f"{distiller('train(o, l, 1)')}{line}\n", " in ")
    assert found["verdict"] == "unknown"
    assert told in found["advice"]


def test_what_only_reads_a_config_is_not_worth_a_row(tmp_path: Path) -> None:
    text = distiller("train(o, l, 1)")
    assert len(rows(tmp_path, f"{text}print(t)\nlogger.info(d)\n")) == len(rows(tmp_path, text))


def test_a_component_takes_its_inputs_by_position(tmp_path: Path) -> None:
    text = (
        "from textbrewer import MATCH_LOSS_MAP as M\nM['cos'](state_S=a, state_T=b, mask=m)\nM['cos'](a, b, mask=m)\n"
    )
    assert [(row["line"], row["advice"]) for row in rows(tmp_path, text) if row["verdict"] == "change"] == [
        (2, "A component takes its inputs by position: write state_S, state_T without the names.")
    ]


def test_matches_of_several_teachers_must_name_theirs(tmp_path: Path) -> None:
    match = MATCH.replace("LOSS", "cos")
    text = distiller("train(o, l, 1)", "MultiTeacherDistiller", f"intermediate_matches=[{match}]")
    assert ("change", 34) in verdicts(tmp_path, text, "MultiTeacherDistiller")
    named = text.replace("'weight': 1", "'weight': 1, 'teacher': 0")
    assert ("change", 34) not in verdicts(tmp_path, named, "MultiTeacherDistiller")


# What must be changed


@pytest.mark.parametrize(
    ("line", "row", "told"),
    [
        ("tb.MATCH_LOSS_MAP['mine'] = f", None, "with_component('match_loss', 'mine', ...)"),
        ("tb.presets.KD_LOSS_MAP.update({'mine': f})", None, "with_component('kd_loss', 'mine', ...)"),
        ("tb.register_new('match_Loss', 'mine', f)", 37, "with_component(kind, 'mine', ...)"),
        ("tb.FEATURES.append('value')", None, "a match takes any feature that the adaptors return"),
        ("config.kd_loss_weight = 0.5", 42, "config.model_copy(update={'kd_loss_weight': ...})"),
        ("config.temperature *= 2", 42, "config.model_copy(update={'temperature': ...})"),
        ("distiller.d_config.temperature = 2", 42, "config.model_copy(update={'temperature': ...})"),
        ("class Mine(tb.TrainingConfig): pass", None, "keep settings of your own beside them"),
        ("distiller.compute_loss = f", None, "brewer's distillers have no `compute_loss`"),
        ("tb.GeneralDistiller.train_on_batch = f", None, "brewer's distillers have no `train_on_batch`"),
        ("distiller.initialize_training(o, None, None, None)", None, "have no `initialize_training`"),
        ("tb.nothing(3)", None, "There is no nothing: brewer has nothing of that name there."),
    ],
)
def test_what_an_old_script_must_change(line: str, row: int | None, told: str, tmp_path: Path) -> None:
    text = (
        "import textbrewer as tb\nconfig = tb.DistillationConfig()\n"
        f"distiller = tb.GeneralDistiller(t, config, a, b, c, d)\n{line}\n"
    )
    (found,) = [row for row in rows(tmp_path, text) if row["line"] == 4]
    assert (found["verdict"], found["row"]) == ("change", row)
    assert told in found["advice"]


def test_a_script_of_several_processes_goes_on(tmp_path: Path) -> None:
    text = "import textbrewer, torch\ntorch.distributed.init_process_group('nccl')\n"
    (found,) = [row for row in rows(tmp_path, text) if row["line"] == 2]
    assert (found["verdict"], found["row"]) == ("differs", 32)
    assert found["advice"] == (
        "It trains under torchrun as before, where each DataLoader has a DistributedSampler, or train() is given sharded=True; the "
        "callback is called in the first process alone, and may not talk to the others."
    )


@pytest.mark.parametrize(
    ("name", "body", "verdict", "told"),
    [
        (
            "Mine",
            "def compute_loss(self, s, t): pass",
            "change",
            "nothing would call its compute_loss: write a brewer_core.Strategy",
        ),
        ("EMDDistiller", "train_on_batch = f", "change", "its place is taken by the strategy `emd`"),
        ("Mine", "def answer(self): pass", "unknown", "It overrides nothing that brewer refuses"),
    ],
)
def test_a_subclass_of_a_distiller_is_told_by_what_it_overrides(
    name: str, body: str, verdict: str, told: str, tmp_path: Path
) -> None:
    text = distiller("train(o, l, 1)", name, before=f"class {name}(GeneralDistiller):\n    {body}")
    found = [row for row in rows(tmp_path, text) if name in row["used"]]
    assert [(row["line"], row["verdict"]) for row in found] == [(2, verdict), (6, verdict)]
    assert all(told in row["advice"] for row in found)


def test_a_loss_that_the_script_registers_is_known(tmp_path: Path) -> None:
    text = (
        "import textbrewer as tb\ntb.MATCH_LOSS_MAP['mine'] = f\nc = tb.DistillationConfig(intermediate_matches=[M])\n"
    )
    row = said(tmp_path, text.replace("M]", MATCH.replace("LOSS", "mine") + "]"), "match of layer_T")
    assert row["advice"].startswith("The script writes this name into a preset")


def test_custom_matches_and_augmentations_are_told(tmp_path: Path) -> None:
    text = (
        "from textbrewer import GeneralDistiller\nfrom textbrewer.distiller_utils import CustomMatch\nfrom textbrewer import data_utils\n"
        "m = CustomMatch(t.a, s.b, 1, f)\nd = GeneralDistiller(x, y, t, s, a, a, [m])\ndata_utils.long_disorder(tokens)\n"
    )
    found = {(row["used"], row["verdict"], row["row"]) for row in rows(tmp_path, text)}
    assert found >= {
        ("CustomMatch", "same", 1),
        ("custom_matches", "same", 2),
        ("data_utils.long_disorder", "same", 40),
        ("train_config=x", "unknown", None),
    }


# Notebooks and JSON


def notebook(folder: Path, *cells: str) -> Path:
    made = [{"cell_type": "markdown", "source": ["import textbrewer"]}]
    made += [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    file = folder / "old.ipynb"
    file.write_text(json.dumps({"cells": made, "nbformat": 4}), encoding="utf-8")
    return file


def test_a_notebook_is_read_cell_by_cell(tmp_path: Path) -> None:
    file = notebook(
        tmp_path,
        "!pip install textbrewer\n%matplotlib inline\nimport textbrewer as tb",
        "%%bash\nexport A=(",
        "%%time\nfiles = !ls\nif files:\n    !echo\nconfig = tb.TrainingConfig(\n    fp16=True)",
    )
    found = [finding.to_dict() for finding in examine(file, default_registry()).findings]
    assert [(row["cell"], row["line"], row["verdict"]) for row in found] == [
        (2, 3, "same"),
        (4, 5, "same"),
        (4, 6, "differs"),
        (3, 1, "unknown"),
    ]


def test_a_json_config_is_judged_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "both.json"
    file.write_text(
        '{"train": {\n"fp16": true,\n"log_dir": null},\n"distill": {\n"probability_shift": true,\n"intermediate_matches":\n'
        '[{"layer_T": 1, "layer_S": 1, "feature": "hidden", "loss": "nst", "weight": -1}]}}'
    )
    examination = examine(file, default_registry())
    found = {(finding.line, finding.used.partition("=")[0], finding.verdict) for finding in examination.findings}
    assert found >= {
        (2, "fp16", "differs"),
        (5, "probability_shift", "differs"),
        (7, "match of layer_T 1, layer_S 1: 'nst'", "differs"),
    }
    assert examination.summary == "ready: brewer reads this config as it is; results may differ: lines 2, 5, 7"


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("no.py", None, "there is no such file."),
        (
            "old.py",
            "print(1)\n",
            "this script imports neither textbrewer nor brewer_core, so there is nothing to migrate.",
        ),
        (
            "old.py",
            "import torch\ntorch.distributed.init_process_group('nccl')\n",
            "this script imports neither textbrewer",
        ),
        ("old.py", f"import textbrewer\nx = {'+'.join(['a'] * 5000)}\n", ""),
        ("old.py", "print 1\n", "this is not Python 3 in line 1: "),
        ("old.py", "x = '\0'\n", "this"),
        ("old.json", "{", "line 1, column 2: not JSON"),
        ("old.json", "[1]", "expected an object with the settings of a config, not list."),
        ("old.json", '{"a": {"lr": 1}}', "it has no setting of TextBrewer's TrainingConfig or DistillationConfig"),
        ("old.ipynb", "{}", 'this is no notebook of format 4; it has no list "cells".'),
        (
            "old.txt",
            "import textbrewer",
            "expected a Python script (.py), a notebook (.ipynb) or a config (.json), not .txt.",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_and_status_2(
    name: str, text: str | None, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    assert brewer("migrate", file) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"brewer: error: {file}: {error}")
    assert captured.err.count("\n") == 1


def test_a_folder_is_no_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("migrate", tmp_path) == 2
    assert "is a folder; expected a Python script" in capsys.readouterr().err


def test_nothing_of_a_script_is_run(tmp_path: Path) -> None:
    text = "import textbrewer\nopen('made', 'w')\nraise SystemExit\n"
    done = subprocess.run(
        [sys.executable, "-m", "brewer_core", "migrate", str(script(tmp_path, text))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "made").exists()


# What is printed


def test_the_table_is_readable_at_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "import textbrewer as tb\ntb.MATCH_LOSS_MAP['[bold]" + "x" * 90 + "'] = f\n"
    assert brewer("migrate", script(tmp_path, text)) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= 100
    assert "[bold]" in "".join(table)
    assert "…" not in "".join(lines)
    assert lines[-1] == "edits needed: line 2"


def test_json_is_a_list_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    assert brewer("migrate", script(tmp_path, GENERAL), "--json", "--output", out) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert {frozenset(row) for row in printed} == {frozenset({"cell", "line", "used", "verdict", "advice", "row"})}
    assert [row["line"] for row in printed] == sorted(row["line"] for row in printed)
    assert captured.err.startswith(f"\n{out} is written; fill in before")


def test_the_help_loads_neither_torch_nor_a_plugin() -> None:
    run = "import runpy; runpy.run_module('brewer_core', run_name='__main__', alter_sys=True)"
    loaded = loaded_after(f"import sys; sys.argv[1:] = ['migrate', '--help']\n{run}")
    assert loaded & {"torch", "brewer_builtins", "brewer_loss_pkd"} == set()


PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "from-textbrewer.md"


def test_the_errors_on_the_page_are_those_that_python_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(block, PAGE.name, "exec"), namespace)
    printed = " ".join(capsys.readouterr().out.split())
    shown = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)

    assert len(shown) == 4
    assert [error for error in shown if " ".join(error.split()) not in printed] == []


def test_the_script_on_the_page_needs_what_the_page_says(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    changes = [row["used"] for row in rows(tmp_path, "\n".join(blocks)) if row["verdict"] == "change"]
    assert changes == [
        "MATCH_LOSS_MAP['hidden_l1'] = hidden_l1",
        "config.temperature = 4",
        "class Softer(GeneralDistiller)",
        "distiller.train(...)",
    ]


# The run config


def written(folder: Path, text: str) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The run config of a script, what must be replaced in it, and what has no counterpart."""
    made = run_document(examine(script(folder, text), default_registry()), default_registry())
    return json.loads(json.dumps(made.document)), dict(made.to_replace), list(made.left_out)


def test_a_script_becomes_a_run_config(tmp_path: Path) -> None:
    document, to_replace, left_out = written(tmp_path, GENERAL)
    (stage,) = document["stages"]
    assert (stage["kind"], stage["strategy"], stage["student"], stage["teachers"]) == (
        "distill",
        "general",
        "student",
        ["teacher"],
    )
    assert stage["training"] == {
        "epochs": 3,
        "batch_size": 8,
        "optimizer": {"name": "adamw", "learning_rate": 5e-5, "weight_decay": 0.1},
        "schedule": {"name": "linear", "warmup": 0.05},
        "max_grad_norm": 1.0,
        "loss_normalization": "micro_batch",
        "group_by_length": False,
        "accumulation": 2,
    }
    assert stage["distillation"]["temperature"] == 8
    assert [match["loss"] for match in stage["distillation"]["intermediate_matches"]] == ["hidden_mse", "mmd"]
    assert list(to_replace) == [
        "tokenizer.max_length",
        "data.loader.source.path.train",
        "data.loader.source.path.eval",
        "data.loader.text",
        "data.loader.label",
        "models.student.path",
        "models.teacher.path",
    ]
    assert [line.partition("=")[0].partition(":")[0] for line in left_out] == [
        "callback",
        "the optimizer's groups",
        "output_dir",
        "device",
        "adaptor_T",
        "adaptor_S",
        "the task",
    ]


def test_a_written_config_runs_once_it_is_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "run.json"
    assert brewer("migrate", script(tmp_path, GENERAL), "-o", out) == 0
    capsys.readouterr()
    assert brewer("run", out, "--dry-run") == 2
    assert "tokenizer.max_length: input should be a valid integer" in capsys.readouterr().err
    document = read(out)
    document["tokenizer"] = {"from": "train", "max_length": 16, "vocab_size": 80}
    out.write_text(json.dumps(document))
    assert brewer("run", out, "--dry-run") == 2
    assert "REPLACE: file with the rows of loader" in capsys.readouterr().err
    for split in ("train", "eval"):
        write_csv(tmp_path / f"{split}.csv", labelled(16))
        document["data"]["loader"]["source"]["path"][split] = f"{split}.csv"
    document["data"]["loader"] |= {"text": "text", "label": "label"}
    for name, width in (("teacher", 16), ("student", 8)):
        sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
        document["models"][name] = {"name": "hf", "config": {"model_type": "bert", **sizes}}
    out.write_text(json.dumps(document))
    assert brewer("run", out, "--dry-run") == 0


def test_what_is_left_in_place_of_a_model_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    document, _, _ = written(tmp_path, GENERAL)
    write_csv(tmp_path / "rows.csv", labelled(16))
    document["data"]["loader"] = {"source": {"name": "csv", "path": {"train": "rows.csv", "eval": "rows.csv"}}}
    document["tokenizer"] = {"from": "train", "max_length": 16, "vocab_size": 80}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document))
    assert brewer("run", file, "--dry-run") == 2
    assert "REPLACE: the folder of teacher, or its name on the Hugging Face hub" in capsys.readouterr().err


def test_a_schedule_or_a_norm_that_the_script_lacks_is_none(tmp_path: Path) -> None:
    document, _, _ = written(tmp_path, distiller("train(torch.optim.SGD(p, 0.1, momentum=0.9), l, num_steps=5)"))
    kept = document["stages"][0]["training"]
    assert (kept["steps"], kept["schedule"], kept["max_grad_norm"]) == (5, {"name": "constant", "warmup": 0}, None)
    assert kept["optimizer"] == {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "momentum": 0.9}
    assert document["trackers"] == []


def test_what_only_a_run_tells_stands_under_its_own_text(tmp_path: Path) -> None:
    text = distiller("train(o, l, args.epochs, max_grad_norm=args.norm)", config="args.t, kd_loss_type=loss")
    document, to_replace, _ = written(
        tmp_path, text.replace("TrainingConfig()", "TrainingConfig(args.steps, fp16=args.half)")
    )
    assert to_replace == to_replace | {
        "precision": '"fp16" or "no", as args.half says',
        "stages[0].distillation.temperature": "args.t",
        "stages[0].distillation.kd_loss_type": "loss",
        "stages[0].training.epochs": "args.epochs",
        "stages[0].training.accumulation": "args.steps",
        "stages[0].training.max_grad_norm": "args.norm",
        "stages[0].training.optimizer.learning_rate": "the optimizer's learning rate",
    }
    with pytest.raises(ConfigError) as caught:
        parse_run_config(document, "run.json", default_registry())
    refused = {problem.partition(": ")[0] for problem in caught.value.problems}
    assert {path for path in to_replace if path.startswith("stages")} <= refused


def test_several_teachers_and_stages(tmp_path: Path) -> None:
    text = """
        from textbrewer import BasicTrainer, DistillationConfig, MultiTeacherDistiller, TrainingConfig

        config = TrainingConfig(log_dir="logs", ckpt_steps=10)
        trainer = BasicTrainer(config, big, adaptor)
        with trainer:
            trainer.train(optimizer, loader, num_epochs=2)
        teachers = [big, wide]
        distiller = MultiTeacherDistiller(config, DistillationConfig(2), teachers, small, adaptor, adaptor)
        with distiller:
            distiller.train(optimizer, loader, num_steps=100)
    """
    document, _, _ = written(tmp_path, text)
    first, second = document["stages"]
    assert (first["kind"], first["name"], first["model"]) == ("supervised", "train-big", "big")
    assert (second["strategy"], second["teachers"], second["student"]) == ("multi_teacher", ["big", "wide"], "small")
    assert "checkpoint_every_steps" not in first["training"]
    assert second["training"]["checkpoint_every_steps"] == 10
    assert list(document["models"]) == ["big", "small", "wide"]
    assert list(document["data"]) == ["loader"]
    assert document["trackers"] == ["tensorboard"]


TASKS = """
    from textbrewer import DistillationConfig, MultiTaskDistiller, TrainingConfig

    teachers = {"topic": by_topic, "mood": by_mood}
    distiller = MultiTaskDistiller(TrainingConfig(), DistillationConfig(), teachers, student, adaptors, adaptors)
    with distiller:
        distiller.train(optimizer, {"topic": topics, "mood": moods}, num_steps=50, tau=0.5)
"""


def test_several_tasks(tmp_path: Path) -> None:
    document, to_replace, _ = written(tmp_path, TASKS)
    (stage,) = document["stages"]
    assert document["tasks"] == {"topic": {}, "mood": {}}
    assert {name: entry["task"] for name, entry in document["data"].items()} == {"topics": "topic", "moods": "mood"}
    assert stage["teachers"] == [{"model": "by_topic", "task": "topic"}, {"model": "by_mood", "task": "mood"}]
    assert (stage["strategy"], stage["train"]) == ({"name": "multi_task", "tau": 0.5}, ["topics", "moods"])
    assert document["evaluation"]["data"] == ["topics", "moods"]
    assert [path for path in to_replace if "task" in path] == []


def test_one_loader_for_two_tasks_is_data_of_each(tmp_path: Path) -> None:
    document, _, _ = written(tmp_path, TASKS.replace("moods}", "topics}").replace("teachers, ", "make(), "))
    assert document["stages"][0]["train"] == ["topics", "topics_mood"]
    assert document["stages"][0]["teachers"][1] == {"model": "teacher_mood", "task": "mood"}


def test_tasks_that_the_text_does_not_name_have_a_stand_in(tmp_path: Path) -> None:
    text = TASKS.replace('{"topic": topics, "mood": moods}', "loaders").replace("teachers, ", "make(), ")
    document, to_replace, _ = written(tmp_path, text)
    assert {
        path: said
        for path, said in to_replace.items()
        if path.startswith(("tasks", "stages[0].teachers")) or "task" in path
    } == {
        "tasks": "the names of the tasks, each with {}",
        "data.loaders.task": "one of the tasks",
        "stages[0].teachers[0].model": "a model for each of make()",
        "stages[0].teachers[0].task": "one of the tasks",
    }
    assert document["evaluation"]["data"] == ["loaders"]


def test_a_written_config_of_several_tasks_runs_once_it_is_filled_in(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    document, _, _ = written(tmp_path, TASKS)
    rows_file = write_csv(tmp_path / "rows.csv", labelled(16)).name
    document["tokenizer"] = {"from": "train", "max_length": 16, "vocab_size": 80}
    for entry in document["data"].values():
        entry |= {
            "source": {"name": "csv", "path": {"train": rows_file, "eval": rows_file}},
            "text": "text",
            "label": "label",
        }
    document["models"] = {name: bert(8, 1) for name in document["models"]}
    document["stages"][0]["training"] |= {"batch_size": 4, "optimizer": {}}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document))
    assert brewer("run", file, "--dry-run") == 0


def test_a_subclass_leaves_the_strategy_open(tmp_path: Path) -> None:
    text = distiller("train(o, l, 1)", "EMDDistiller", before="class EMDDistiller(GeneralDistiller):\n    pass")
    _, to_replace, _ = written(tmp_path, text)
    assert to_replace["stages[0].strategy"] == (
        'the strategy that takes the place of EMDDistiller, {"name": "emd"} of brewer-strategy-emd for TextBrewer\'s example'
    )


def test_a_name_that_the_script_registers_stays_and_is_told(tmp_path: Path) -> None:
    text = distiller("train(o, l, 1)", config="kd_loss_type='mine'", before="KD_LOSS_MAP['mine'] = f")
    document, to_replace, _ = written(tmp_path, text)
    assert document["stages"][0]["distillation"]["kd_loss_type"] == "mine"
    assert to_replace["stages[0].distillation.kd_loss_type"] == (
        "mine is written into a preset by the script; make it a plugin of this name"
    )


def test_values_that_brewer_refuses_are_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = script(tmp_path, distiller("train(o, l, 1)", config="-3, kd_loss_type='kld'")), tmp_path / "run.json"
    assert brewer("migrate", file, "--output", out) == 2
    error = capsys.readouterr().err
    assert f"brewer: error: {file}: 2 problems\n" in error
    assert "stages[0].distillation.temperature: input should be greater than 0, not -3\n" in error
    assert not out.exists()


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    out.write_text("mine")
    assert brewer("migrate", script(tmp_path, GENERAL), "--output", out) == 2
    assert capsys.readouterr().err == f"brewer: error: output {out} is there already; name a new file with --output.\n"
    assert out.read_text() == "mine"


def test_there_may_be_nothing_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = script(tmp_path, "import textbrewer\n"), tmp_path / "run.json"
    assert brewer("migrate", file, "--output", out) == 2
    assert capsys.readouterr().err == (
        f"brewer: error: {file}: there is no config and no distiller in it, so there is nothing to write.\n"
    )
    assert not out.exists()
    assert brewer("migrate", script(tmp_path, GENERAL), "--output", tmp_path / "no" / "run.json") == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_configs_alone_leave_the_rest_open(tmp_path: Path) -> None:
    file = tmp_path / "distill.json"
    file.write_text('{"temperature": 8, "kd_loss_type": "mse"}')
    made = run_document(examine(file, default_registry()), default_registry())
    assert made.document["stages"][0]["distillation"] == {"temperature": 8, "kd_loss_type": "mse"}
    open_paths = {path for path, _ in made.to_replace}
    assert open_paths >= {
        f"stages[0].training.{key}" for key in ("epochs", "max_grad_norm", "schedule.name", "accumulation")
    }


def test_a_training_config_alone_leaves_the_distillation_open(tmp_path: Path) -> None:
    made = run_document(examine(script(tmp_path, training("2")), default_registry()), default_registry())
    assert dict(made.to_replace)["stages[0].distillation"] == "the settings of DistillationConfig"
    with pytest.raises(RequestError):
        parse_run_config(made.document, "run.json")


def test_a_number_of_epochs_that_is_a_float_becomes_the_whole_number_that_textbrewer_takes(tmp_path: Path) -> None:
    script(tmp_path, distiller("train(o, l, num_epochs=3.0)"))
    assert brewer("migrate", tmp_path / "old.py", "--output", tmp_path / "run.json") == 0
    written = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert written["stages"][-1]["training"]["epochs"] == 3
