"""pkd keeps what every match loss promises."""

from __future__ import annotations

from typing import ClassVar

from brewer_core.testing import MatchLossConformance
from brewer_loss_pkd import pkd


class TestPkd(MatchLossConformance):
    component = pkd


class TestPkdWithALargeEps(MatchLossConformance):
    component = pkd
    options: ClassVar = {"eps": 0.1}
