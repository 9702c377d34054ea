"""Models of which each process holds a part: FSDP2 laid over a model, block by block, and over a learner around it.

What is sharded here works as it did, called by itself or inside its learner. Each call of it, forward or backward, is a
collective: every process makes the same calls in the same order.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from brewer_core.errors import RequestError
from brewer_core.processes import Processes


def device_mesh(device: torch.device) -> DeviceMesh:
    """All processes in a row, on devices of this type. Raises RequestError where there is no process group."""
    if not in_group():
        raise RequestError("sharding is over the processes of a group, and there is none; start with torchrun.")
    return init_device_mesh(device.type, (distributed.get_world_size(),))


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave of each parameter a part on each process, on the mesh's device, as a DTensor.

    The blocks that the model names in `_no_split_modules`, as Hugging Face's do, are gathered one by one as they run; what
    is outside of them, or shared with it, is gathered as a whole. All processes start from the first one's values.

    Raises RequestError for what cannot be sharded.
    """
    _check(model)
    _check_types(model.named_parameters())
    for block in reversed(list(_blocks(model))):  # those inside others first
        if not _shared(block, model):
            _shard_unit(block, mesh)
    _shard_unit(model, mesh)


def shard_learner(learner: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the learner's `student`, then what else the learner trains. Nothing may be added to it afterwards.

    A gradient is the mean over processes. Each backward pass must reach the same parameters on all of them: torch does not
    notice where it does not, and adds up gradients of different parameters.

    Raises RequestError for what cannot be sharded, before anything is.
    """
    student = learner.get_submodule("student")
    _check(learner)
    _check_sharing(learner, student)
    _check_types(student.named_parameters())
    _check_types(each for each in learner.named_parameters() if not each[0].startswith("student."))
    shard(student, mesh)
    _take_over(learner, mesh)
    fully_shard(learner, mesh=mesh, reshard_after_forward=True)
    _make_root(learner)


def shard_teacher(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model that is not trained: its parameters no longer ask for a gradient."""
    shard(model.requires_grad_(False), mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether it, or a module inside it, is sharded."""
    return any(isinstance(inner, FSDPModule) for inner in module.modules())


def regroup(optimizer: torch.optim.Optimizer, before: Mapping[str, nn.Parameter], after: nn.Module) -> None:
    """Put the parameters that a module has after sharding in the place of those that it had before, by name.

    before: its `named_parameters()` from before. Groups keep their order and settings.
    Raises RequestError where the optimizer has stepped already, or holds a parameter that is not among them.
    """
    if optimizer.state:
        raise RequestError(
            f"the {type(optimizer).__name__} has stepped already, and its state belongs to whole parameters; shard before the "
            "first step, and read the state from a checkpoint."
        )
    names, new = {id(parameter): name for name, parameter in before.items()}, dict(after.named_parameters())
    for position, group in enumerate(optimizer.param_groups):
        unknown = [parameter for parameter in group["params"] if id(parameter) not in names]
        if unknown:
            raise RequestError(
                f"the optimizer's group {position} holds a parameter of shape {tuple(unknown[0].shape)} that the module did not "
                "have before it was sharded; build the optimizer over the module's parameters."
            )
    for group in optimizer.param_groups:
        group["params"][:] = [new[names[id(parameter)]] for parameter in group["params"]]


@contextmanager
def no_sync(learner: nn.Module) -> Iterator[None]:
    """Backward passes inside keep their gradients, whole, on each process; the next one outside adds them up.

    It saves communication at the price of memory for whole gradients. Without it gradients accumulate in parts, equally right.
    """
    _set_sync(learner, False)
    try:
        yield
    finally:
        _set_sync(learner, True)


def full_norm(norm: Tensor) -> Tensor:
    """The norm of gradients, as torch's functions return it, as a plain tensor: over all parts. Collective."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def full_state(module: nn.Module) -> dict[str, Any]:
    """The whole state dict, on the CPU of the first process, under the names of the unsharded module; on others empty.

    Collective. One tensor under two names is one in it, too.
    """
    first, whole = Processes.current().first, dict[int, Any]()
    kept = module.state_dict(keep_vars=True)
    for value in kept.values():
        if id(value) not in whole:
            gathered = _gathered(value)
            whole[id(value)] = _on_cpu(gathered) if first else None
    return {name: whole[id(value)] for name, value in kept.items()} if first else {}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state on the CPU; of one that is in parts, in the first process alone. Collective."""
    if is_sharded(model):
        return full_state(model)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def load_full_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Take up a whole state dict, such as `full_state` gave: the first process's holds for all. Collective.

    Raises RuntimeError on every process where names or shapes differ, as `load_state_dict` does.
    """
    if not in_group():
        module.load_state_dict(state)
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, dict(state), options=options)


def in_group() -> bool:
    """Whether this process is one of a group."""
    return distributed.is_available() and distributed.is_initialized()


# What cannot be sharded


def _check(model: nn.Module) -> None:
    if is_sharded(model):
        raise RequestError(f"the {type(model).__name__} is sharded already, in whole or in part; shard it once.")
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise RequestError(
                f"the embedding {name!r} gives sparse gradients, which cannot be sharded; build it with sparse=False."
            )
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise RequestError(f"the parameter {name!r} has no dimension to shard; give it one, of length 1.")


def _check_types(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    types = {parameter.dtype: name for name, parameter in named if parameter.requires_grad}
    if len(types) > 1:
        shown = " and ".join(f"{name!r} in {str(dtype).removeprefix('torch.')}" for dtype, name in types.items())
        raise RequestError(
            f"{shown} are both trained; what is sharded together is trained in one type, so convert it to one."
        )


def _check_sharing(learner: nn.Module, student: nn.Module) -> None:
    shared = _shared(student, learner)
    if shared:
        raise RequestError(
            f"the student's parameter {shared[0]!r} is also one of a projection, a loss or the strategy, and so would be sharded "
            "twice; give that a parameter of its own, or train without sharding."
        )


def _shared(unit: nn.Module, model: nn.Module) -> list[str]:
    """The names of a unit's parameters that the model around it reaches in another way as well."""
    outside = model.named_modules(memo={unit})
    held = {id(parameter) for _, module in outside for parameter in module.parameters(recurse=False)}
    return [name for name, parameter in unit.named_parameters() if id(parameter) in held]


# One unit


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The modules inside it of the classes that it, or a model inside it, names as not to be split."""
    named = [getattr(module, "_no_split_modules", None) or () for module in model.modules()]
    names = set(itertools.chain.from_iterable(named))
    return (module for module in model.modules() if module is not model and type(module).__name__ in names)


def _shard_unit(unit: nn.Module, mesh: DeviceMesh) -> None:
    _take_over(unit, mesh)
    # it warns of views whose gradient would not gather the unit; the hooks below see to that
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    # always: a whole copy that outlives its forward pass, as torch keeps the outermost module's, would be stale after a step
    fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    assert isinstance(unit, FSDPModule)
    for module in set(_own_modules(unit)):
        module.register_forward_hook(_gathering_for_backward(unit))


def _take_over(unit: nn.Module, mesh: DeviceMesh) -> None:
    """Move what is not sharded yet to the device, with the first process's values."""
    tensors = [t for t in itertools.chain(unit.parameters(), unit.buffers()) if not isinstance(t, DTensor)]
    for tensor in tensors:
        whole = tensor.detach().to(mesh.device_type).contiguous()
        if whole.numel():
            distributed.broadcast(whole.view(-1).view(torch.uint8), src=0, group=mesh.get_group())
        tensor.data = whole


def _own_modules(unit: nn.Module) -> Iterator[nn.Module]:
    """The modules inside a unit, without units inside it."""
    for child in unit.children():
        if not isinstance(child, FSDPModule):
            yield child
            yield from _own_modules(child)


def _gathering_for_backward(unit: FSDPModule) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that gathers the unit when a gradient comes to what a module inside it returned.

    torch does so for what the unit itself returns. A match of attention maps, or of modules inside a model, reads others.
    """

    def gather(gradient: Tensor) -> None:
        del gradient
        unit.unshard()

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        if torch.is_grad_enabled():
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(gather)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return hook


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def _make_root(learner: nn.Module) -> None:
    """Let the learner be the outermost module whichever is called first: torch decides it at the first forward pass.

    A method that does nothing is made a forward pass for one call.
    """
    assert isinstance(learner, FSDPModule)
    register_fsdp_forward_method(learner, "extra_repr")
    learner.extra_repr()
    del learner.extra_repr


def _set_sync(learner: nn.Module, sync: bool) -> None:
    if isinstance(learner, FSDPModule):
        learner.set_requires_gradient_sync(sync)


# One piece


def _gathered(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
