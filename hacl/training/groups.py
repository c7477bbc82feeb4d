"""Parameter groups of the optimizer: one learning rate per module, no weight decay on vectors."""

from __future__ import annotations

from torch import nn

from hacl.config import LearningRates


def parameter_groups(model, rates: LearningRates, weight_decay: float) -> list[dict]:
    """AdamW groups of what trains in a HaclModel: "vision", "projector", "llm", "heads", each with its learning rate.

    Norm weights, biases and the temperature are one-dimensional and go, undecayed, into "<module>/no_decay". LoRA
    matrices belong to the llm. Raises ValueError for a trainable parameter that no module owns.
    """
    modules: dict[str, list[nn.Module]] = dict(model.adapter.groups())
    if model.heads is not None:
        modules["heads"] = [model.heads]
    owner = {}
    for name, parts in modules.items():
        for part in parts:
            for parameter in part.parameters():
                owner.setdefault(id(parameter), name)
    groups: dict[str, dict] = {}
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module = owner.get(id(parameter))
        if module is None:
            raise ValueError(f"trainable parameter {parameter_name} belongs to no module with a learning rate")
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves a flat stub in place of the tensor
        decays = len(shape) > 1
        group = groups.setdefault(
            module if decays else f"{module}/no_decay",
            {
                "name": module if decays else f"{module}/no_decay",
                "params": [],
                "lr": getattr(rates, module),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError("nothing trains: every model.learning_rate is 0")
    return [groups[name] for name in sorted(groups)]
