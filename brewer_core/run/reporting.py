"""What a run tells whoever watches it."""

from __future__ import annotations

from brewer_core.listeners import Listener


class Reporter:
    """Hears what a run is doing; silent until a subclass says otherwise."""

    def say(self, text: str) -> None:
        """One line about what is being done."""

    def bar(self, title: str) -> Listener:
        """What shows the progress of one training."""
        del title
        return Listener()
