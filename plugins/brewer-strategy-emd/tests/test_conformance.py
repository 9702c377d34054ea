"""emd keeps what every strategy promises."""

from __future__ import annotations

from typing import ClassVar

from brewer_core.testing import StrategyConformance
from brewer_strategy_emd import EMD


class TestEMD(StrategyConformance):
    component = EMD


class TestEMDOfAttention(StrategyConformance):
    component = EMD
    options: ClassVar = {"attention_weight": 0.5, "project": "linear"}


class TestEMDByCost(StrategyConformance):
    component = EMD
    options: ClassVar = {"layer_weights": "cost_attention", "embedding": False}
