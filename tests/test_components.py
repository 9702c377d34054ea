"""The rules of a component's signature: what is an input, what is an option, what is refused and with which words."""

from __future__ import annotations

import functools
import importlib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import ConfigDict, Field, ValidationError, with_config
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from brewer_core.components import KINDS, Component, Method, component, facts_of, kind_named
from brewer_core.components.kinds import RESERVED
from brewer_core.errors import ComponentError, RequestError
from brewer_core.features import Counts
from brewer_core.protocols import CountingAdaptor


def of_kind(kind: str, implementation: Any, name: str = "x") -> Component:
    return Component(KINDS[kind], name, implementation)


def kd(implementation: Any) -> Component:
    return of_kind("kd_loss", implementation)


def match(implementation: Any) -> Component:
    return of_kind("match_loss", implementation)


def refusal(kind: str, implementation: Any) -> str:
    with pytest.raises(ComponentError) as caught:
        of_kind(kind, implementation)
    return str(caught.value)


def option_names(made: Component) -> list[str]:
    return [option.name for option in made.signature.options]


def with_option(annotation: Any, *default: Any) -> Component:
    """A kd loss with the one option `value`."""

    def loss(s, t, temperature, *, value): ...

    loss.__annotations__["value"] = annotation
    loss.__kwdefaults__ = {"value": default[0]} if default else None
    return kd(loss)


def write_module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (folder / f"{name}.py").write_text(dedent(text))
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


# Inputs


def test_positional_inputs_go_by_position_whatever_they_are_called() -> None:
    def ce(logits_S, logits_T, tau=1): return (logits_S, logits_T, tau)  # fmt: skip

    assert kd(ce).bind()("s", "t", 4) == ("s", "t", 4)


def test_a_positional_parameter_called_like_a_named_input_is_still_passed_by_position() -> None:
    def loss(labels, mask, progress): return (labels, mask, progress)  # fmt: skip

    assert kd(loss).signature.inputs == ()
    assert kd(loss).bind()(1, 2, 3, labels="never") == (1, 2, 3)


def test_a_match_loss_may_leave_out_the_mask() -> None:
    assert match(lambda student, teacher: (student, teacher)).bind()(1, 2, "mask") == (1, 2)
    assert match(lambda student, teacher, mask=None: mask).bind()(1, 2, "mask") == "mask"


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("kd_loss", ("mask", "labels", "progress")),
        ("match_loss", ("teacher_mask", "labels", "progress")),
        ("projection", ()),
        ("weight_scheduler", ("step", "total_steps")),
        ("temperature_scheduler", ("progress", "mask")),
        ("adaptor", ("role",)),
        ("augmentation", ("generator",)),
        ("metric", ("task",)),
    ],
)
def test_keyword_only_parameters_named_as_the_kinds_inputs_are_inputs(kind: str, named: tuple[str, ...]) -> None:
    positional = [f"p{i}" for i in range(len(KINDS[kind].positional))]
    parameters = ", ".join([*positional, *(["*", *named] if named else [])])
    function = eval(f"lambda {parameters}: None")

    made = of_kind(kind, function)

    assert made.signature.inputs == named
    assert made.signature.required == named
    assert made.signature.positional == len(positional)
    assert made.signature.options == ()


def test_models_and_datasets_take_their_inputs_by_name() -> None:
    def tiny(*, role, task, teacher=None, num_labels, seed, hidden: int = 32):
        return (role, task, teacher, num_labels, seed, hidden)

    made = of_kind("model", tiny)

    assert made.signature.inputs == ("role", "task", "teacher", "num_labels", "seed")
    assert made.signature.required == ("role", "task", "num_labels", "seed")
    bound = made.bind({"hidden": 8})
    assert bound(role="student", task="t", num_labels=3, seed=0, base_dir="x") == ("student", "t", None, 3, 0, 8)


def test_an_input_with_default_none_gets_none_where_the_run_has_none() -> None:
    def loss(s, t, temperature, *, labels=None): return labels  # fmt: skip

    assert kd(loss).signature.required == ()
    assert kd(loss).bind()(1, 2, 3) is None
    assert kd(loss).bind()(1, 2, 3, labels=None) is None
    assert kd(loss).bind()(1, 2, 3, labels="l") == "l"


def test_an_input_with_another_default_keeps_it_where_the_run_has_none() -> None:
    def loss(s, t, temperature, *, progress=1.0): return progress  # fmt: skip

    assert kd(loss).bind()(1, 2, 3, progress=None) == 1.0
    assert kd(loss).bind()(1, 2, 3, progress=0.0) == 0.0


def test_a_call_passes_only_the_inputs_that_are_asked_for() -> None:
    def loss(s, t, temperature, *, labels, scale: float = 1.0): return (labels, scale)  # fmt: skip

    assert kd(loss).bind()(1, 2, 3, labels="l", mask="m", progress=0.5) == ("l", 1.0)


@pytest.mark.parametrize("available", [{}, {"labels": None}])
def test_a_call_without_a_required_input_says_which(available: dict[str, Any]) -> None:
    def loss(s, t, temperature, *, labels): ...

    with pytest.raises(RequestError) as caught:
        kd(loss).bind()(1, 2, 3, **available)
    assert str(caught.value) == "the kd loss `x` needs the input `labels`, which this run does not have."


@pytest.mark.parametrize(
    ("kind", "implementation", "text"),
    [
        (
            "kd_loss",
            lambda s, t: 0,
            "kd loss `x` has too few positional parameters, 2; it is called with "
            "(student_logits, teacher_logits, temperature).",
        ),
        (
            "match_loss",
            lambda s: 0,
            "match loss `x` has too few positional parameters, 1; it is called with (student, teacher, mask).",
        ),
        (
            "kd_loss",
            lambda s, t, temperature, beta: 0,
            "kd loss `x` has the further positional parameter `beta`; it is called with "
            "(student_logits, teacher_logits, temperature), options follow a `*`.",
        ),
        (
            "dataset",
            lambda path: 0,
            "dataset `x` has the further positional parameter `path`; it is called without positional inputs, "
            "options follow a `*`.",
        ),
        ("kd_loss", lambda s, t, temperature, *rest: 0, "kd loss `x` takes `*rest`; name every input and option."),
        ("kd_loss", lambda s, t, temperature, **rest: 0, "kd loss `x` takes `**rest`; name every input and option."),
        (
            "match_loss",
            lambda s, t, eps=1e-8: 0,
            "match loss `x` has the positional parameter `eps=1e-08` in the place of the input `mask`; "
            "options follow a `*`.",
        ),
        ("kd_loss", 3, "kd loss `x` is 3, which is neither a function nor a class."),
    ],
)
def test_positional_parameters_that_are_not_the_kinds_are_refused(kind: str, implementation: Any, text: str) -> None:
    assert refusal(kind, implementation) == text


def test_further_positional_parameters_with_a_default_are_left_alone() -> None:
    def loss(s, t, temperature, reduction="mean"): return reduction  # fmt: skip

    assert option_names(kd(loss)) == []
    assert kd(loss).bind()(1, 2, 3) == "mean"


# Options


@pytest.mark.parametrize(
    ("annotation", "given", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, 0.5, 0.5),
        (bool, True, True),
        (str, "3", "3"),
        (str | None, None, None),
        (list[int], [1, 2], [1, 2]),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[int, ...], (1, 2), (1, 2)),
        (Sequence[float], [1, 2.5], [1.0, 2.5]),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (Literal["mean", "sum"], "sum", "sum"),
        (int | list[str], ["a"], ["a"]),
        (list, [1, "a"], [1, "a"]),
    ],
)
def test_options_take_the_json_values_of_their_type(annotation: Any, given: Any, expected: Any) -> None:
    checked = with_option(annotation).check({"value": given})["value"]

    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "given"),
    [
        (int, "3"),
        (int, 3.0),
        (int, True),
        (float, "0.5"),
        (float, True),
        (bool, "yes"),
        (bool, 1),
        (str, 3),
        (str, None),
        (list[int], "12"),
        (Literal["mean", "sum"], "max"),
        (Annotated[float, Field(gt=0)], 0),
        (Annotated[int, Field(ge=1, le=3)], 4),
        (Annotated[list[int], Field(min_length=1)], []),
    ],
)
def test_options_are_validated_strictly(annotation: Any, given: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        with_option(annotation).check({"value": given})
    assert {error["loc"][0] for error in caught.value.errors()} == {"value"}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        with_option(float).check({"value": number})
    with pytest.raises(RequestError, match=r"^options of the kd loss `x` are no JSON values: "):
        with_option(float).bind({"value": number})


def test_a_value_that_json_does_not_have_is_refused_in_one_sentence() -> None:
    with pytest.raises(RequestError) as caught:
        with_option(float).bind({"value": {1, 2}})
    assert str(caught.value) == (
        "options of the kd loss `x` are no JSON values: Object of type set is not JSON serializable."
    )


def test_an_option_without_a_default_is_required() -> None:
    with pytest.raises(RequestError) as caught:
        with_option(float).bind()
    assert str(caught.value) == "options of the kd loss `x`: value: Field required."


def test_all_wrong_options_are_told_at_once() -> None:
    def loss(s, t, temperature, *, scale: Annotated[float, Field(gt=0)], rank: int = 1): ...

    with pytest.raises(RequestError) as caught:
        kd(loss).bind({"scale": 0, "rank": "2", "rnak": 3})
    assert str(caught.value) == (
        "options of the kd loss `x`: scale: Input should be greater than 0; rank: Input should be a valid integer; "
        "rnak: Extra inputs are not permitted."
    )


def test_options_that_are_not_given_have_their_defaults() -> None:
    def loss(s, t, temperature, *, scale: float = 2.0, ranks: tuple[int, ...] = (1, 2)): ...

    assert kd(loss).check({}) == {"scale": 2.0, "ranks": (1, 2)}
    assert kd(loss).check({"scale": 3}) == {"scale": 3.0, "ranks": (1, 2)}


def test_options_reach_the_call() -> None:
    def loss(s, t, temperature, *, scale: float = 2.0): return scale * s  # fmt: skip

    assert kd(loss).bind({"scale": 3})(2, 0, 1) == 6.0


def test_checked_options_are_a_plain_dict_that_pickles_and_is_json() -> None:
    def loss(s, t, temperature, *, scale: float = 2.0, copy: str = "a"): ...

    checked = kd(loss).check({"copy": "b"})

    assert type(checked) is dict
    assert pickle.loads(pickle.dumps(checked)) == json.loads(json.dumps(checked)) == {"scale": 2.0, "copy": "b"}


@pytest.mark.parametrize(
    "name", ["copy", "schema", "model_config", "model_fields", "json", "dict", "validate", "self", "cls"]
)
def test_options_may_be_called_like_attributes_of_pydantic_models(name: str) -> None:
    made = kd(_option_called(name))

    assert made.check({name: 5}) == {name: 5}
    assert made.bind({name: 5})(1, 2, 3) == 5


def _option_called(name: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {}
    exec(f"def loss(p, q, r, *, {name}: int = 0): return {name}", namespace)
    made: Callable[..., Any] = namespace["loss"]
    return made


def test_the_numbers_of_the_models_fields_are_no_options() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        with_option(int).check({"value": 1, "option_0": 2})


def test_the_json_schema_knows_types_ranges_descriptions_and_what_is_required() -> None:
    def loss(s, t, temperature, *, rank: int, eps: Annotated[float, Field(gt=0, description="A floor.")] = 1e-6): ...

    schema = kd(loss).options_model.model_json_schema()

    assert schema["required"] == ["rank"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {"rank", "eps"}
    eps = schema["properties"]["eps"]
    assert (eps["type"], eps["exclusiveMinimum"], eps["default"]) == ("number", 0, 1e-6)
    assert eps["description"] == "A floor."


@with_config(ConfigDict(extra="forbid", strict=True))
class Sizes(TypedDict):
    width: Annotated[int, Field(gt=0, description="How wide.")]
    deep: NotRequired[Literal["yes", "no"]]


class Loose(TypedDict):
    width: int


class WithAModule(TypedDict):
    layer: nn.Module


def test_an_option_may_be_an_object_of_named_settings() -> None:
    made = with_option(Sizes | None, None)

    assert made.check({"value": {"width": 3}}) == {"value": {"width": 3}}
    assert made.check({"value": {"width": 3, "deep": "no"}})["value"] == {"width": 3, "deep": "no"}
    for wrong in ({}, {"width": 0}, {"width": "3"}, {"width": 3, "deep": 1}, {"width": 3, "tall": 4}):
        with pytest.raises(ValidationError):
            made.check({"value": wrong})


def test_the_json_schema_of_named_settings_stands_in_its_place() -> None:
    schema = with_option(Sizes | None, None).options_schema()

    assert "$defs" not in schema
    settings = schema["properties"]["value"]["anyOf"][0]
    assert (settings["type"], settings["required"], settings["additionalProperties"]) == ("object", ["width"], False)
    assert settings["properties"]["width"]["description"] == "How wide."
    assert settings["properties"]["deep"]["enum"] == ["yes", "no"]


def test_named_settings_that_take_any_key_are_refused() -> None:
    with pytest.raises(ComponentError) as caught:
        with_option(list[Loose])
    assert str(caught.value) == (
        "kd loss `x` has the option `value` of type Loose, which takes keys that it does not know; decorate it with "
        '`@pydantic.with_config(extra="forbid", strict=True)`.'
    )


def test_named_settings_hold_json_types_alone() -> None:
    annotation = with_config(ConfigDict(extra="forbid"))(WithAModule)
    with pytest.raises(ComponentError) as caught:
        with_option(annotation)
    assert str(caught.value) == "kd loss `x` has the option `value` of type Module, which is no JSON type."


@pytest.mark.parametrize("name", sorted(RESERVED - {"name", *KINDS["kd_loss"].named}))
def test_names_of_inputs_of_any_kind_are_no_options(name: str) -> None:
    assert refusal("kd_loss", _option_called(name)) == (
        f"kd loss `x` has the option `{name}`, which is the name of an input elsewhere; call it something else "
        "(named inputs of this kind: mask, labels, progress)."
    )


def test_the_reserved_names_are_those_of_the_contract() -> None:
    contract = (
        "student_logits teacher_logits temperature mask labels progress student teacher teacher_mask dim_in dim_out"
    )
    contract += (
        " step total_steps base_temperature batch model_outputs role tokens generator task num_labels seed base_dir"
    )
    contract += " predictions references student_dim teacher_dim name"
    assert set(contract.split()) <= RESERVED


def test_name_is_no_option() -> None:
    assert refusal("kd_loss", _option_called("name")) == (
        "kd loss `x` has the option `name`, which names the component itself in a config; call it something else."
    )


def test_an_option_does_not_begin_with_an_underscore() -> None:
    assert refusal("kd_loss", _option_called("_eps")) == (
        "kd loss `x` has the option `_eps`; an option does not begin with an underscore."
    )


def test_an_option_needs_an_annotation() -> None:
    assert refusal("kd_loss", lambda s, t, temperature, *, eps=1.0: 0) == (
        "kd loss `x` has the option `eps` without an annotation; write its type, such as `eps: float`."
    )


def test_an_option_without_annotation_that_is_nearly_an_input_gets_a_hint() -> None:
    assert refusal("kd_loss", lambda s, t, temperature, *, label=None: 0) == (
        "kd loss `x` has the option `label` without an annotation; write its type, such as `label: float`; "
        "did you mean the input `labels`?"
    )


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (Tensor, "Tensor"),
        (Tensor | None, "Tensor"),
        (list[Tensor], "Tensor"),
        (Annotated[Tensor, Field(description="Labels.")], "Tensor"),
        (torch.dtype, "dtype"),
        (Path, "Path"),
        (object, "object"),
        (complex, "complex"),
        (Literal[b"x"], "typing.Literal[b'x']"),
        (Callable[[int], int], "collections.abc.Callable[[int], int]"),
    ],
)
def test_an_option_whose_type_json_does_not_have_is_refused(annotation: Any, shown: str) -> None:
    with pytest.raises(ComponentError) as caught:
        with_option(annotation)
    assert str(caught.value) == f"kd loss `x` has the option `value` of type {shown}, which is no JSON type."


def test_a_tensor_option_that_is_nearly_an_input_gets_a_hint() -> None:
    def loss(s, t, temperature, *, label: Tensor): ...

    assert refusal("kd_loss", loss) == (
        "kd loss `x` has the option `label` of type Tensor, which is no JSON type; did you mean the input `labels`?"
    )


@pytest.mark.parametrize(
    ("annotation", "default", "reason"),
    [
        (int, "3", "Input should be a valid integer"),
        (float, None, "Input should be a valid number"),
        (bool, 1, "Input should be a valid boolean"),
        (Annotated[float, Field(gt=0)], 0.0, "Input should be greater than 0"),
    ],
)
def test_a_default_that_its_own_type_refuses_is_refused(annotation: Any, default: Any, reason: str) -> None:
    with pytest.raises(ComponentError) as caught:
        with_option(annotation, default)
    assert str(caught.value) == (
        f"kd loss `x` has the option `value` with the default {default!r}, which its own type refuses: {reason}."
    )


@pytest.mark.parametrize("default", [float("inf"), float("nan"), {1, 2}])
def test_a_default_that_json_does_not_have_is_refused(default: Any) -> None:
    with pytest.raises(ComponentError, match=r"^kd loss `x` has the option `value` with the default .* refuses: "):
        with_option(float, default)


def test_a_type_that_pydantic_cannot_read_is_refused_at_collection() -> None:
    with pytest.raises(
        ComponentError, match=r"^kd loss `x` has the option `value` annotated .*, which pydantic refuses: "
    ):
        with_option(Annotated[str, Field(pattern="(")])


@pytest.mark.parametrize("name", ["attention-mse", "2d", "", "a b", 3, None])
def test_a_component_has_an_identifier_for_a_name(name: Any) -> None:
    with pytest.raises(ComponentError) as caught:
        of_kind("kd_loss", lambda s, t, temperature: 0, name)
    assert str(caught.value) == f"kd loss {name!r} has a name that is not an identifier."


# Annotations that are text


def test_tensor_under_type_checking_does_not_hinder_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write_module(
        tmp_path,
        "lazy_loss",
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING, Annotated
        from pydantic import Field
        if TYPE_CHECKING:
            from torch import Tensor

        def loss(s: Tensor, t: Tensor, temperature: float | Tensor, *, labels: Tensor | None = None,
                 eps: Annotated[float, Field(gt=0)] = 1e-6, quoted: "int | None" = None) -> Tensor:
            return eps

        class Loss:
            def __init__(self, *, eps: Annotated[float, Field(gt=0)] = 1e-6) -> None:
                self.eps = eps
            def __call__(self, s: Tensor, t: Tensor, temperature: float, *, mask: Tensor | None = None) -> Tensor:
                return self.eps
        """,
        monkeypatch,
    )

    assert kd(module.loss).check({"eps": 1}) == {"eps": 1.0, "quoted": None}
    assert kd(module.Loss).bind({"eps": 2})(1, 2, 3) == 2.0
    with pytest.raises(ValidationError):
        kd(module.loss).check({"eps": 0})


def test_an_annotation_that_does_not_evaluate_is_told_with_its_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_module(
        tmp_path,
        "lazy_option",
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from torch import Tensor

        def loss(s, t, temperature, *, label: Tensor | None = None): ...
        """,
        monkeypatch,
    )

    assert refusal("kd_loss", module.loss) == (
        "kd loss `x` has the option `label` annotated 'Tensor | None', which does not evaluate (name 'Tensor' is not "
        "defined); import what it names at run time; did you mean the input `labels`?"
    )


def test_the_annotations_of_a_decorated_function_evaluate_where_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_module(
        tmp_path,
        "decorated_loss",
        """
        from __future__ import annotations
        from typing import Literal

        def loss(s, t, temperature, *, reduction: Literal["mean", "sum"] = "mean"):
            return reduction
        """,
        monkeypatch,
    )

    @functools.wraps(module.loss)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return module.loss(*args, **kwargs)

    assert kd(wrapped).bind({"reduction": "sum"})(1, 2, 3) == "sum"


# Partials


def scaled(s: Any, t: Any, temperature: Any, *, mask: Any = None, scale: float, shift: float = 0.0) -> Any:
    """Scaled and shifted."""
    return (s * scale + shift, mask)


def test_an_option_bound_by_a_partial_has_that_default() -> None:
    made = kd(functools.partial(scaled, scale=2.0))

    assert made.check({}) == {"scale": 2.0, "shift": 0.0}
    assert made.bind()(3, 0, 1) == (6.0, None)
    assert made.bind({"scale": 5, "shift": 1})(3, 0, 1) == (16.0, None)
    assert made.summary == "Scaled and shifted."


def test_a_partial_keeps_its_functions_inputs() -> None:
    def att(student, teacher, mask=None, *, eps: float = 1.0): return (mask, eps)  # fmt: skip

    made = match(functools.partial(att, eps=2.0))

    assert (made.signature.positional, made.signature.inputs) == (3, ())
    assert made.bind()(1, 2, "mask") == ("mask", 2.0)


def test_a_partial_of_a_partial_is_read_too() -> None:
    made = kd(functools.partial(functools.partial(scaled, scale=2.0), shift=1.0))

    assert made.check({}) == {"scale": 2.0, "shift": 1.0}


def test_what_a_partial_binds_by_position_is_gone() -> None:
    made = kd(functools.partial(lambda factor, s, t, temperature: factor * s, 3))

    assert made.signature.positional == 3
    assert made.bind()(2, 0, 1) == 6


def test_a_partial_that_binds_an_input_by_position_is_refused() -> None:
    assert refusal("kd_loss", functools.partial(scaled, 1, scale=2.0)).startswith(
        "kd loss `x` has too few positional parameters, 2;"
    )


@pytest.mark.parametrize("bound", ["temperature", "mask"])
def test_a_partial_that_binds_an_input_by_name_is_refused(bound: str) -> None:
    assert refusal("kd_loss", functools.partial(scaled, scale=1.0, **{bound: 1})) == (
        f"kd loss `x` is a partial that binds its input `{bound}`; bind options only."
    )


def test_a_partial_that_binds_what_its_function_does_not_take_is_refused() -> None:
    assert refusal("kd_loss", functools.partial(scaled, scale=1.0, scael=2.0)) == (
        "kd loss `x` is a partial that binds `scael`, which its function does not take."
    )


def test_a_bound_option_must_fit_its_type() -> None:
    assert refusal("kd_loss", functools.partial(scaled, scale="2")) == (
        "kd loss `x` has the option `scale` with the default '2', which its own type refuses: "
        "Input should be a valid number."
    )


def test_a_partial_of_a_class_is_refused() -> None:
    assert refusal("match_loss", functools.partial(Learned, rank=3)) == (
        "match loss `x` is a partial of the class Learned; give a subclass with other defaults."
    )


# Classes


class Learned(nn.Module):
    """A learned distance."""

    def __init__(self, *, student_dim: int, teacher_dim: int, rank: int = 2) -> None:
        super().__init__()
        self.to_student = nn.Linear(student_dim, rank)
        self.to_teacher = nn.Linear(teacher_dim, rank)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, labels: Any = None) -> Tensor:
        return (self.to_student(student) - self.to_teacher(teacher)).square().mean()


def test_a_class_takes_options_from_init_and_inputs_from_forward() -> None:
    made = match(Learned)

    assert made.stateful
    assert option_names(made) == ["rank"]
    assert made.signature.sizes == ("student_dim", "teacher_dim")
    assert (made.signature.positional, made.signature.inputs, made.signature.required) == (3, ("labels",), ())
    assert made.summary == "A learned distance."


def test_a_class_is_built_once_a_bind_with_the_sizes_it_names() -> None:
    first = match(Learned).bind({"rank": 5}, student_dim=4, teacher_dim=6)
    second = match(Learned).bind({"rank": 5}, student_dim=4, teacher_dim=6)

    assert isinstance(first.target, Learned)
    assert first.target is not second.target
    assert first.target.to_student.weight.shape == (5, 4)
    assert first.target.to_teacher.weight.shape == (5, 6)
    assert first.options == {}
    loss = first(torch.ones(2, 4), torch.ones(2, 6), None)
    assert loss.requires_grad
    assert loss.shape == ()


def test_a_class_that_names_no_sizes_gets_none() -> None:
    class Plain:
        def __init__(self, *, scale: float = 1.0) -> None:
            self.scale = scale

        def __call__(self, student, teacher, mask=None): return self.scale * (student - teacher)  # fmt: skip

    made = match(Plain)

    assert made.signature.sizes == ()
    assert made.bind({"scale": 3}, student_dim=4, teacher_dim=4)(2, 1) == 3.0


def test_a_module_without_an_init_of_its_own_has_no_options() -> None:
    class Stateless(nn.Module):
        def forward(self, student, teacher, mask=None): return student - teacher  # fmt: skip

    made = match(Stateless)

    assert made.signature.options == ()
    assert made.bind()(3, 1) == 2
    assert made.summary == "", "nn.Module's docstring is not the loss's"


def test_an_inherited_init_is_read_where_it_is_written() -> None:
    class Narrow(Learned):
        """A narrower one."""

    assert option_names(match(Narrow)) == ["rank"]


def test_a_class_with_call_is_a_component() -> None:
    class Tagger:
        """Logits of a tagger."""

        def __call__(self, batch, model_outputs, *, role): return {"logits": (batch, model_outputs, role)}  # fmt: skip

    made = of_kind("adaptor", Tagger)

    assert made.signature.inputs == ("role",)
    assert made.bind()("b", "o", role="teacher") == {"logits": ("b", "o", "teacher")}


def test_an_inherited_call_is_found() -> None:
    class Base:
        def __call__(self, s, t, temperature): return 7  # fmt: skip

    class Derived(Base):
        def __init__(self, *, scale: float = 1.0) -> None: ...

    assert kd(Derived).bind()(1, 2, 3) == 7


def test_a_class_may_inherit_the_protocol_that_it_follows() -> None:
    class Tagger(CountingAdaptor):
        """Logits of a tagger."""

        def __call__(self, batch, model_outputs):
            return {"logits": model_outputs}

        def counts(self, batch):
            return Counts.of_rows(1)

    assert of_kind("adaptor", Tagger).bind()("b", "o") == {"logits": "o"}


def test_a_class_whose_instances_cannot_be_called_is_refused() -> None:
    class Silent:
        def __init__(self, *, scale: float = 1.0) -> None: ...

        def forward(self, s, t, temperature): ...

    assert refusal("kd_loss", Silent) == (
        "kd loss `x` is a class whose instances cannot be called; give it `__call__`, or an nn.Module `forward`."
    )


def test_an_option_in_the_call_of_a_class_is_refused() -> None:
    class Loss:
        def __call__(self, s, t, temperature, *, eps: float = 1.0): ...

    assert refusal("kd_loss", Loss) == (
        "kd loss `x` names `eps` in its call, which is no input of this kind; options of a class belong to its `__init__`."
    )


def test_a_positional_parameter_of_init_is_refused() -> None:
    class Loss(nn.Module):
        def __init__(self, dim): ...

        def forward(self, s, t, temperature): ...

    assert refusal("kd_loss", Loss) == (
        "kd loss `x` has the positional parameter `dim` in `__init__`; options of a class follow a `*`."
    )


def test_a_module_that_was_built_already_is_called_as_its_forward_is() -> None:
    class Weighted(nn.Module):
        def forward(self, student: Tensor, teacher: Tensor, temperature: float, *, labels: Tensor) -> Tensor:
            return temperature * labels.sum()

    made = of_kind("kd_loss", Weighted())

    assert made.bind()(torch.zeros(1), torch.zeros(1), 3.0, labels=torch.ones(2), progress=0.5) == 6
    assert refusal("kd_loss", nn.Linear(1, 1)) == (
        "kd loss `x` has too few positional parameters, 1; it is called with (student_logits, teacher_logits, temperature)."
    )


def test_a_projection_is_made_by_one_call_also_of_a_class() -> None:
    class Bottleneck(nn.Module):
        def __init__(self, dim_in: int, dim_out: int, *, rank: int = 2) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(dim_in, rank), nn.Linear(rank, dim_out))

        def forward(self, hidden: Tensor) -> Tensor:
            return self.layers(hidden)

    made = of_kind("projection", Bottleneck)

    assert not made.stateful
    assert option_names(made) == ["rank"]
    assert made.bind({"rank": 3})(4, 6)(torch.ones(2, 4)).shape == (2, 6)


def test_a_strategy_is_a_class_with_options_in_init() -> None:
    class Every:
        def __init__(self, *, every: int = 2) -> None:
            self.every = every

        def terms(self, task, student, teachers, objective, step): ...

    assert of_kind("strategy", Every).bind({"every": 3})().every == 3
    assert option_names(of_kind("strategy", Every)) == ["every"]


def test_a_tracker_is_a_class_built_with_folder_and_stage() -> None:
    class Printer:
        def __init__(self, run_dir, stage, *, digits: int = 3) -> None:
            self.given = (run_dir, stage, digits)

    assert of_kind("tracker", Printer).bind({"digits": 1})("run", "distill").given == ("run", "distill", 1)


# @component


def test_component_returns_the_same_object_with_its_facts() -> None:
    def loss(s, t, temperature, *, beta: float = 1.0, gamma: float = 1.0): ...

    declared = component(over="tokens", positional=("beta", "gamma"), source="Somebody 2024", name="A loss")(loss)

    assert declared is loss
    facts = kd(loss).facts
    assert (facts.over, facts.positional) == ("tokens", ("beta", "gamma"))
    assert (facts.source, facts.title) == ("Somebody 2024", "A loss")


def test_an_undecorated_function_has_no_facts() -> None:
    facts = facts_of(lambda s, t, temperature: 0)

    assert (facts.over, facts.positional, facts.source, facts.title) == (None, (), None, None)


def test_facts_are_those_of_the_function_inside_a_partial() -> None:
    @component(over="logits")
    def loss(s, t, temperature, *, scale: float): ...

    assert facts_of(functools.partial(loss, scale=1.0)).over == "logits"


def test_facts_may_be_declared_of_classes_and_with_a_function_of_counts() -> None:
    @component(over=lambda counts: counts.rows + 1)
    class Loss:
        def __call__(self, s, t, temperature): ...

    assert callable(kd(Loss).facts.over)


def test_an_unknown_over_is_refused() -> None:
    with pytest.raises(ComponentError) as caught:
        component(over="row")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "over='row' is not one of rows, tokens, token_pairs, logits, batch, nor a function of counts."
    )


def test_sparse_is_declared_of_what_gets_the_teachers_logits() -> None:
    @component(sparse=True)
    def scheduler(s, t, temperature): ...

    @component(sparse=True)
    def loss(student, teacher): ...

    assert kd(scheduler).facts.sparse
    assert of_kind("temperature_scheduler", scheduler).facts.sparse
    assert not facts_of(refusal).sparse
    assert refusal("match_loss", loss) == (
        "match loss `x` declares sparse=True; only what gets the teacher's logits may, a kd loss or a temperature scheduler."
    )


def test_only_a_metric_declares_that_less_is_better() -> None:
    declared = component(lower_is_better=True)
    metric = Component.passed("metric", declared(lambda predictions, references: 0.0))
    assert metric.facts.lower_is_better
    with pytest.raises(ComponentError) as caught:
        Component.passed("kd_loss", declared(lambda student, teacher, temperature: student.mean()))
    assert str(caught.value) == "kd loss `passed` declares lower_is_better=True; only a metric may."
    with pytest.raises(ComponentError) as caught:
        component(lower_is_better="yes")  # type: ignore[arg-type]
    assert str(caught.value) == "lower_is_better='yes' must be True or False."


def test_sparse_is_a_bool_or_a_function() -> None:
    with pytest.raises(ComponentError) as caught:
        component(sparse="top_k")  # type: ignore[arg-type]
    assert (
        str(caught.value) == "sparse='top_k' must be True or False, or a function of what is kept and of the options."
    )


def test_positional_must_be_a_tuple_of_names() -> None:
    with pytest.raises(ComponentError) as caught:
        component(positional="beta")
    assert str(caught.value) == "positional='beta' must be a tuple of option names."


def test_positional_names_options_that_are_there() -> None:
    @component(positional=("beta",))
    def loss(s, t, temperature): ...

    assert refusal("kd_loss", loss) == "kd loss `x` declares positional option `beta`, which it does not have."


# Kinds and names


@pytest.mark.parametrize("word", ["match_loss", "match_losses", "match-loss", "match-losses", " Match-Losses "])
def test_kinds_are_understood_in_every_spelling(word: str) -> None:
    assert kind_named(word) is KINDS["match_loss"]


def test_an_unknown_kind_is_answered_with_all_kinds() -> None:
    with pytest.raises(RequestError) as caught:
        kind_named("loss")
    assert str(caught.value) == (
        "no kind of component is called 'loss'; the kinds are kd_loss, match_loss, projection, weight_scheduler, "
        "temperature_scheduler, adaptor, strategy, model, dataset, metric, augmentation, balancer, tracker."
    )


def test_a_callable_that_was_passed_in_python_is_a_component() -> None:
    assert Component.passed("kd_loss", lambda s, t, temperature: 0).name == "passed"
    passed = Component.passed("kd_loss", functools.partial(scaled, scale=1.0))
    assert (passed.name, str(passed.provenance)) == ("partial", "(passed in Python)")
    assert Component.passed("match_loss", Learned).name == "Learned"


def test_a_method_is_ready_to_be_called() -> None:
    method = kd(functools.partial(scaled, scale=1.0)).bind()

    assert isinstance(method, Method)
    assert method.options == {"scale": 1.0, "shift": 0.0}
