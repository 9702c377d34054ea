"""Finds every use of TextBrewer in a script, a notebook or a JSON config."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from brewer_core.errors import BrewerError
from brewer_core.migration.bindings import Bindings, dotted
from brewer_core.migration.names import (
    CONFIGS,
    DISTILLER_ARGUMENTS,
    DISTILLERS,
    INSIDES,
    LISTS,
    PRESETS,
    SETTINGS,
    TRAINER_ARGUMENTS,
    OfTextBrewer,
    of_textbrewer,
)
from brewer_core.migration.naming import Naming
from brewer_core.migration.sources import Source, read_source
from brewer_core.migration.train_orders import ORDERS, old_order
from brewer_core.migration.uses import ConfigUse, DistillerUse, ImportUse, Mention, Setting, TrainUse, Uses
from brewer_core.migration.values import Unknown, Values, Written

_LISTS_AND_MAPS = (*PRESETS, *LISTS)
_CHANGES = ("update", "setdefault", "pop", "popitem", "clear", "append", "extend", "insert", "remove")


def find_uses(source: Source) -> Uses:
    """The uses of TextBrewer in a file."""
    if source.kind == "json":
        return _uses_of_json(source)
    return _Finder(source).uses()


# JSON configs


def _uses_of_json(source: Source) -> Uses:
    bindings = Bindings(source.tree)
    uses = Uses(source, Values(bindings, json=True), bindings)
    statement = source.tree.body[0]
    document = uses.values.of(statement.value) if isinstance(statement, ast.Expr) else None
    parts = [document, *document.values()] if isinstance(document, Written) else []
    for part in parts:
        kind = _kind_of(part)
        if kind is not None:
            uses.configs.append(ConfigUse(kind, part.line, kind, _settings(part)))
    return uses


def _kind_of(document: Any) -> str | None:
    """The config whose settings a mapping holds; None where it holds none."""
    if not isinstance(document, Written):
        return None
    matching = {kind: len(set(document) & set(names)) for kind, names in SETTINGS.items()}
    best = max(matching, key=lambda kind: matching[kind])
    return best if matching[best] else None


def _settings(written: Written) -> dict[str, Setting]:
    return {key: Setting(value, written.lines[key]) for key, value in written.items()}


# Scripts


class _Finder:
    """Walks a script once for its configs, once for its distillers, and once for the rest."""

    def __init__(self, source: Source) -> None:
        self._bindings = Bindings(source.tree)
        self._values = Values(self._bindings)
        self._uses = Uses(source, self._values, self._bindings)
        self._configs: dict[ast.AST, ConfigUse] = {}
        self._distillers: dict[ast.AST, DistillerUse] = {}
        self._seen: set[ast.AST] = set()
        nodes = list(ast.walk(source.tree))
        self._naming = Naming(self._bindings, self._values, nodes)
        self._nodes = sorted(nodes, key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0)))

    def uses(self) -> Uses:
        """Everything found, in the order of the text."""
        calls = [node for node in self._nodes if isinstance(node, ast.Call)]
        for make in (self._config, self._distiller, self._train, self._call):
            for call in calls:
                make(call)
        for node in self._nodes:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node)
            elif isinstance(node, ast.ClassDef):
                self._subclass(node)
            elif isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete)):
                self._written(node)
        for node in self._nodes:
            if isinstance(node, (ast.Name, ast.Attribute)):
                self._mention(node)
        return self._uses

    # Calls

    def _config_at(self, node: ast.AST | None) -> ConfigUse | None:
        found = self._uses.defined(node) if node is not None else None
        return self._configs.get(found) if found is not None else None

    def _is(self, node: ast.AST, known: Mapping[ast.AST, Any]) -> Any:
        """The first of the known objects that a name may stand for."""
        return next((known[made] for made in self._naming.definitions(node) if made in known), None)

    def _config(self, call: ast.Call) -> None:
        found, reader = self._naming.of_class(call.func), ""
        if found is None and isinstance(call.func, ast.Attribute) and call.func.attr in ("from_dict", "from_json_file"):
            found, reader = self._naming.of_class(call.func.value), call.func.attr
        if found is None or found[0] not in CONFIGS:
            return
        self._seen.update(ast.walk(call.func))
        kind = found[0]
        settings, unread = self._settings_read(call, reader) if reader else self._settings_given(call, kind)
        use = ConfigUse(
            kind, call.lineno, f"{found[1] or kind}{'.' if reader else ''}{reader}", settings, tuple(unread)
        )
        self._configs[call] = use
        self._uses.configs.append(use)

    def _settings_given(self, call: ast.Call, kind: str) -> tuple[dict[str, Setting], list[Unknown]]:
        settings: dict[str, Setting] = {}
        unread = []
        for name, argument in zip(SETTINGS[kind], call.args, strict=False):
            if isinstance(argument, ast.Starred):
                unread.append(Unknown(ast.unparse(argument), f"`{ast.unparse(argument)}` was not taken apart"))
                break
            settings[name] = Setting(self._values.of(argument), argument.lineno)
        for keyword in call.keywords:
            value = self._values.of(keyword.value)
            if keyword.arg is not None:
                settings[keyword.arg] = Setting(value, keyword.value.lineno)
            elif isinstance(value, Written):
                settings.update(_settings(value))
            else:
                unread.append(_as_unknown(value, keyword.value))
        return settings, unread

    def _settings_read(self, call: ast.Call, reader: str) -> tuple[dict[str, Setting], list[Unknown]]:
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        value = self._values.of(arguments[0]) if arguments else None
        if reader == "from_json_file" and isinstance(value, str):
            return self._settings_in(value, call.lineno)
        if reader == "from_dict" and isinstance(value, Written):
            return _settings(value), []
        return {}, [_as_unknown(value, arguments[0])] if arguments else []

    def _settings_in(self, file: str, line: int) -> tuple[dict[str, Setting], list[Unknown]]:
        """The settings in a JSON file that the script reads; its folder is taken for the one where it runs."""
        path = self._uses.source.path.parent / file
        try:
            found = find_uses(read_source(path)).configs
        except BrewerError:
            return {}, [Unknown(file, f"`{file}` cannot be read from the folder of the script")]
        settings = found[0].settings if found else {}
        return {key: Setting(setting.value, line) for key, setting in settings.items()}, []

    def _distiller(self, call: ast.Call) -> None:
        found = self._naming.of_class(call.func)
        if found is None or found[0] not in DISTILLERS:
            return
        self._seen.update(ast.walk(call.func))
        kind, own = found
        order = TRAINER_ARGUMENTS if kind == "BasicTrainer" else DISTILLER_ARGUMENTS
        arguments, _ = self._arguments(call, order)
        use = DistillerUse(
            kind,
            call.lineno,
            own or kind,
            own,
            arguments,
            self._config_at(arguments.get("train_config")),
            self._config_at(arguments.get("distill_config")),
        )
        self._distillers[call] = use
        self._uses.distillers.append(use)

    def _arguments(self, call: ast.Call, order: Sequence[str]) -> tuple[dict[str, ast.expr], bool]:
        """Arguments by name, and whether there are some that the text does not tell."""
        given = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
        starred = len(given) < len(call.args)
        arguments = {} if starred else dict(zip(order, given, strict=False))
        for keyword in call.keywords:
            inner = self._uses.defined(keyword.value) if keyword.arg is None else None
            if keyword.arg is not None:
                arguments[keyword.arg] = keyword.value
            elif isinstance(inner, ast.Dict) and all(isinstance(key, ast.Constant) for key in inner.keys):
                arguments.update({str(k.value): v for k, v in zip(inner.keys, inner.values, strict=True)})  # type: ignore[union-attr]
            else:
                starred = True
        return arguments, starred

    def _train(self, call: ast.Call) -> None:
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "train":
            return
        receiver = call.func.value
        distiller = self._is(receiver, self._distillers)
        named = (dotted(receiver) or "").lower()
        if distiller is None and not ("distill" in named and len(call.args) + len(call.keywords) > 1):
            return
        old = old_order(call, self._naming)
        tasks = distiller is not None and distiller.kind == "MultiTaskDistiller"
        arguments, starred = self._arguments(call, ORDERS[tasks, old])
        self._uses.trains.append(
            TrainUse(
                call.lineno,
                ast.unparse(receiver),
                distiller,
                arguments,
                old,
                any(self._holds(outer, receiver) for outer in self._bindings.around(call)),
                starred,
            )
        )

    def _holds(self, outer: ast.AST, receiver: ast.AST) -> bool:
        """Whether a statement is a `with` on the object."""
        items = outer.items if isinstance(outer, (ast.With, ast.AsyncWith)) else []
        return any(
            dotted(receiver) in (dotted(item.context_expr), item.optional_vars and dotted(item.optional_vars))
            for item in items
        )

    def _call(self, call: ast.Call) -> None:
        name = self._naming.name(call.func)
        function = dotted(call.func) or ""
        if name and name.name == "register_new":
            self._seen.update(ast.walk(call.func))
            registered = self._values.of(call.args[1]) if len(call.args) > 1 else None
            self._note("registered", call, name, registered if isinstance(registered, str) else "")
        elif name and name.name in _LISTS_AND_MAPS and name.rest and name.rest[0] in _CHANGES:
            self._seen.update(ast.walk(call.func))
            given = self._values.of(call.args[0]) if call.args else None
            names = given if isinstance(given, Mapping) else [given] if isinstance(given, str) else []
            for registered in names or [""]:
                self._note("registered", call, name, str(registered))
        elif function.endswith("init_process_group"):
            self._note("processes", call)
        elif function == "setattr" and len(call.args) == 3:
            key = self._values.of(call.args[1])
            if self._is_config(call.args[0]):
                self._note("assigned", call, None, key if isinstance(key, str) else "")
        elif isinstance(call.func, ast.Attribute) and call.func.attr in INSIDES and self._is_distiller(call.func.value):
            self._note("inside", call, None, call.func.attr)

    # Statements

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            found = [of_textbrewer(alias.name) for alias in node.names]
        elif node.level:
            found = []
        else:
            found = [of_textbrewer(f"{node.module}.{alias.name}".removesuffix(".*")) for alias in node.names]
        names = [name for name in found if name is not None]
        if names:
            self._uses.imports.append(ImportUse(node.lineno, node, names))

    def _subclass(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            found = self._naming.of_class(base)
            if found is not None:
                self._seen.update(ast.walk(base))
                kind = "config subclass" if found[0] in CONFIGS else "subclass"
                self._uses.mentions.append(
                    Mention(kind, node.lineno, f"class {node.name}({ast.unparse(base)})", None, node.name)
                )

    def _written(self, node: ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete) -> None:
        targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else [node.target]
        for target in targets:
            for part in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
                self._target(part, node)

    def _target(self, target: ast.AST, node: ast.AST) -> None:
        if isinstance(target, ast.Subscript):
            name, key = self._naming.name(target.value), self._values.of(target.slice)
            if name and name.name in PRESETS and not name.rest:
                self._seen.update(ast.walk(target.value))
                self._note("registered", node, name, key if isinstance(key, str) else "")
        elif isinstance(target, ast.Attribute):
            if self._is_config(target.value):
                self._note("assigned", node, None, target.attr)
            elif self._is_distiller(target.value) or (self._naming.of_class(target.value) or ("",))[0] in DISTILLERS:
                self._seen.update(ast.walk(target.value))
                self._note("inside", node, None, target.attr)
        elif isinstance(node, ast.AugAssign):
            name = self._naming.name(target)
            if name and name.name in _LISTS_AND_MAPS:
                self._note("registered", node, name)

    def _is_config(self, node: ast.AST) -> bool:
        """Whether a name may stand for a config: one that is built here, or that of a distiller."""
        if self._is(node, self._configs) is not None:
            return True
        held = isinstance(node, ast.Attribute) and node.attr in ("d_config", "t_config")
        return held and self._is_distiller(node.value)  # type: ignore[attr-defined]  # an attribute has a value

    def _is_distiller(self, node: ast.AST) -> bool:
        return self._is(node, self._distillers) is not None

    def _mention(self, node: ast.Name | ast.Attribute) -> None:
        """A name of TextBrewer that is read, where nothing else has told of it."""
        if node in self._seen or not isinstance(node.ctx, ast.Load):
            return
        name = self._naming.name(node)
        if name is None or not (name.name or name.module):
            return
        whole = next(iter(self._bindings.around(node)), None)
        if (
            isinstance(whole, ast.Attribute)
            and self._naming.name(whole) is not None
            and self._naming.name(whole) != name
        ):
            return  # the longer name tells more
        self._seen.update(ast.walk(node))
        self._note("used", node, name)

    def _note(self, kind: str, node: ast.AST, name: OfTextBrewer | None = None, detail: str = "") -> None:
        text = " ".join(ast.unparse(node).split())
        self._uses.mentions.append(Mention(kind, getattr(node, "lineno", 0), text, name, detail))


def _as_unknown(value: Any, node: ast.AST) -> Unknown:
    if isinstance(value, Unknown):
        return value
    text = ast.unparse(node)
    return Unknown(text, f"`{text}` is {json.dumps(value, default=repr)}, which is no mapping")
