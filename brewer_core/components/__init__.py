"""Components: named methods that plugins provide, read from their own signatures."""

from brewer_core.components.component import Component, Method, Provenance
from brewer_core.components.facts import component, facts_of
from brewer_core.components.kinds import KINDS, Kind, kind_named

__all__ = ["KINDS", "Component", "Kind", "Method", "Provenance", "component", "facts_of", "kind_named"]
