"""The objective: every term of a run's loss, with its weight, schedule, projection and name."""

from brewer_core.objective.balancing import UNBALANCED, Balance, Balancer, balancer_of
from brewer_core.objective.builder import Builder, bind_ref
from brewer_core.objective.correction import Correction, probability_shift
from brewer_core.objective.layer_search import searched, with_pairs
from brewer_core.objective.layers import Pairs
from brewer_core.objective.logit_term import LogitTerm
from brewer_core.objective.match_term import MatchTerm, Source, teacher_meant
from brewer_core.objective.objective import KD_TERM, LABEL_TERM, Objective
from brewer_core.objective.paths import path_problems, places_of
from brewer_core.objective.weight import Weight

__all__ = [
    "KD_TERM",
    "LABEL_TERM",
    "UNBALANCED",
    "Balance",
    "Balancer",
    "Builder",
    "Correction",
    "LogitTerm",
    "MatchTerm",
    "Objective",
    "Pairs",
    "Source",
    "Weight",
    "balancer_of",
    "bind_ref",
    "path_problems",
    "places_of",
    "probability_shift",
    "searched",
    "teacher_meant",
    "with_pairs",
]
