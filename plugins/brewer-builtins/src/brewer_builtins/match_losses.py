"""The built-in losses between intermediate features of student and teacher, by name.

Each is in the file of its idea: attention maps, relations in attention, hidden states, relations of rows, embeddings,
rankings, and losses with parameters of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from brewer_builtins.attention_losses import attention_ce as attention_ce
from brewer_builtins.attention_losses import attention_ce_mean as attention_ce_mean
from brewer_builtins.attention_losses import attention_mse as attention_mse
from brewer_builtins.attention_losses import attention_mse_sum as attention_mse_sum
from brewer_builtins.attention_losses import tinybert_attention as tinybert_attention
from brewer_builtins.attention_relations import minilm as minilm
from brewer_builtins.attention_relations import minilmv2 as minilmv2
from brewer_builtins.embedding_losses import embedding_cos as embedding_cos
from brewer_builtins.embedding_losses import embedding_mse as embedding_mse
from brewer_builtins.embedding_losses import score_matrix_kl as score_matrix_kl
from brewer_builtins.hidden_losses import at as at
from brewer_builtins.hidden_losses import cos as cos
from brewer_builtins.hidden_losses import fsp as fsp
from brewer_builtins.hidden_losses import hidden_mse as hidden_mse
from brewer_builtins.hidden_losses import nst as nst
from brewer_builtins.learned_losses import ContrastiveRepresentation as ContrastiveRepresentation
from brewer_builtins.learned_losses import VariationalInformation as VariationalInformation
from brewer_builtins.ranking_losses import listwise_kl as listwise_kl
from brewer_builtins.ranking_losses import margin_mse as margin_mse
from brewer_builtins.row_relations import cka as cka
from brewer_builtins.row_relations import rkd_angle as rkd_angle
from brewer_builtins.row_relations import rkd_distance as rkd_distance
from brewer_builtins.row_relations import sp as sp
from brewer_core import hookimpl


@hookimpl
def brewer_match_losses() -> dict[str, Callable[..., Any]]:
    """The built-in losses between intermediate features."""
    return {
        "at": at,
        "attention_ce": attention_ce,
        "attention_ce_mean": attention_ce_mean,
        "attention_mse": attention_mse,
        "attention_mse_sum": attention_mse_sum,
        "cka": cka,
        "cos": cos,
        "crd": ContrastiveRepresentation,
        "embedding_cos": embedding_cos,
        "embedding_mse": embedding_mse,
        "fsp": fsp,
        "gram": fsp,
        "hidden_mse": hidden_mse,
        "listwise_kl": listwise_kl,
        "margin_mse": margin_mse,
        "minilm": minilm,
        "minilmv2": minilmv2,
        "mmd": nst,
        "nst": nst,
        "rkd_angle": rkd_angle,
        "rkd_distance": rkd_distance,
        "score_matrix_kl": score_matrix_kl,
        "sp": sp,
        "tinybert_attention": tinybert_attention,
        "vid": VariationalInformation,
    }
