"""Sharding: models of which each process holds a part (FSDP2), their state in one piece, and checkpoints in parts."""

from brewer_core.sharding.modules import (
    device_mesh,
    full_norm,
    full_state,
    is_sharded,
    load_full_state,
    no_sync,
    regroup,
    shard,
    shard_learner,
    shard_teacher,
    weights_of,
)
from brewer_core.sharding.shards import read_shards, write_shards

__all__ = [
    "device_mesh",
    "full_norm",
    "full_state",
    "is_sharded",
    "load_full_state",
    "no_sync",
    "read_shards",
    "regroup",
    "shard",
    "shard_learner",
    "shard_teacher",
    "weights_of",
    "write_shards",
]
