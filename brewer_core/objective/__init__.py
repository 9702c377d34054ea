"""The objective: every term of a run's loss, with its weight, schedule, projection and name."""

from brewer_core.objective.builder import bind_ref
from brewer_core.objective.logit_term import LogitTerm, probability_shift
from brewer_core.objective.match_term import MatchTerm
from brewer_core.objective.objective import KD_TERM, LABEL_TERM, Objective
from brewer_core.objective.weight import Weight

__all__ = ["KD_TERM", "LABEL_TERM", "LogitTerm", "MatchTerm", "Objective", "Weight", "bind_ref", "probability_shift"]
