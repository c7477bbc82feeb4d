import math
from types import SimpleNamespace

import pytest
import torch

from hacl.models.heads import ContrastiveHeads, Temperature
from hacl.training.temperature import project


def numbers(heads):
    return sum(p.numel() for p in heads.parameters()) - 1


@pytest.mark.parametrize(
    ("kind", "shared", "size", "count"),
    [
        ("none", False, 32, 0),
        ("linear", False, 8, 2 * (32 * 8 + 8)),
        ("linear", True, 8, 32 * 8 + 8),
        ("mlp", False, 8, 2 * (32 * 32 + 32 + 32 * 8 + 8)),
        ("mlp", True, 8, 32 * 32 + 32 + 32 * 8 + 8),
    ],
)
def test_each_kind_has_its_shapes_and_parameters(kind, shared, size, count):
    heads = ContrastiveHeads(32, kind, shared=shared)
    states = torch.randn(3, 2, 32)
    assert heads.project_image(states).shape == heads.project_text(states).shape == (3, 2, size)
    assert heads.projection_size == size
    assert numbers(heads) == count
    same = torch.equal(heads.project_image(states), heads.project_text(states))
    assert same == (shared or kind == "none")


def test_the_released_size_for_a_7b_decoder_is_reproduced():
    assert numbers(ContrastiveHeads(4096)) == 8_390_656
    assert ContrastiveHeads(64, projection_size=5).project_text(torch.zeros(64)).shape == (5,)


def test_initial_weights_depend_on_the_seed_only_and_leave_the_global_state_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ContrastiveHeads(16, "mlp", seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = ContrastiveHeads(16, "mlp", seed=3), ContrastiveHeads(16, "mlp", seed=4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.project_text(torch.ones(16)), other.project_text(torch.ones(16)))


def test_no_two_names_share_memory_so_that_safetensors_can_store_them():
    for shared in (False, True):
        state = ContrastiveHeads(16, shared=shared).state_dict()
        assert len({value.data_ptr() for value in state.values()}) == len(state)


def test_states_are_cast_to_the_dtype_of_the_head():
    states = torch.randn(2, 16, dtype=torch.bfloat16)
    assert ContrastiveHeads(16).project_image(states).dtype == torch.float32
    assert ContrastiveHeads(16).bfloat16().project_image(states.float()).dtype == torch.bfloat16
    assert ContrastiveHeads(16, "none").project_image(states) is states


def test_temperature_is_one_fp32_parameter_of_its_own_module():
    heads = ContrastiveHeads(16, temperature=0.07, learn_temperature=True)
    names = [name for name, _ in heads.named_parameters() if name.startswith("temperature.")]
    assert names == ["temperature.log_inverse"]
    assert heads.temperature.log_inverse.shape == (1,)
    assert torch.exp(-heads.log_inverse_temperature()).item() == pytest.approx(0.07)
    assert heads.bfloat16().log_inverse_temperature().dtype == torch.float32


def test_a_fixed_temperature_has_no_gradient():
    heads = ContrastiveHeads(16, learn_temperature=False)
    assert not heads.log_inverse_temperature().requires_grad
    assert not heads.temperature.log_inverse.requires_grad


BEYOND_AND_AT_THE_BOUNDS = [(0.07, 0.07), (0.001, 0.01), (0.01, 0.01), (0.9, 0.5), (0.5, 0.5)]


def temperature_at(tau):
    temperature = Temperature(0.07, 0.01, 0.5, learn=True)
    temperature.log_inverse.data.fill_(-math.log(tau))
    return temperature


@pytest.mark.parametrize(("tau", "seen"), BEYOND_AND_AT_THE_BOUNDS)
def test_the_bound_holds_and_the_forward_pass_never_edits_the_parameter(tau, seen):
    temperature = temperature_at(tau)
    before = temperature.log_inverse.detach().clone()
    bounded = temperature()
    assert torch.exp(-bounded).item() == pytest.approx(seen, rel=1e-6)
    bounded.sum().backward()
    assert torch.equal(temperature.log_inverse, before)


@pytest.mark.parametrize("parts", [(-2.0,), (1.0, -3.0), (-3.0, 1.0), (0.5, 0.5, -3.0)])
@pytest.mark.parametrize("tau", [tau for tau, _ in BEYOND_AND_AT_THE_BOUNDS])
def test_the_gradient_of_a_step_is_the_sum_of_its_parts_at_a_bound_too(tau, parts):
    """Micro-batches add up in the gradient, ranks in a reduction: either way a part must not decide for the whole."""
    temperature = temperature_at(tau)
    for part in parts:
        (part * temperature()).sum().backward()
    assert temperature.log_inverse.grad.item() == sum(parts) == -2.0


@pytest.mark.parametrize(("tau", "kept"), BEYOND_AND_AT_THE_BOUNDS)
def test_an_update_does_not_carry_the_parameter_beyond_a_bound(tau, kept):
    temperature = temperature_at(tau)
    project(temperature, None)
    assert torch.exp(-temperature.log_inverse).item() == pytest.approx(kept, rel=1e-6)
    for sign in (1.0, -1.0):
        optimizer = torch.optim.Adam(temperature.parameters(), lr=0.5)
        for _ in range(20):
            optimizer.zero_grad()
            (sign * temperature()).sum().backward()
            optimizer.step()
            project(temperature, optimizer)
        assert torch.exp(-temperature.log_inverse).item() == pytest.approx({1.0: 0.5, -1.0: 0.01}[sign], rel=1e-6)
        optimizer.param_groups[0]["betas"] = (0.0, 0.0)  # the first step back, whatever the moments were
        optimizer.zero_grad()
        (-sign * temperature()).sum().backward()
        optimizer.step()
        assert 0.01 < torch.exp(-temperature.log_inverse).item() < 0.5, "no way back that grew with the pushing"


def test_of_a_bf16_copy_only_the_fp32_master_is_projected():
    """As DeepSpeed has it for bf16 without ZeRO, in a wrapper; the next update writes the copy."""
    temperature = temperature_at(0.001).bfloat16()
    working, master = temperature.log_inverse.detach().clone(), temperature.log_inverse.detach().float()
    inner = SimpleNamespace(fp16_groups=[[torch.zeros(2)], [temperature.log_inverse]], fp32_groups=[[None], [master]])
    project(temperature, SimpleNamespace(optimizer=inner))
    assert torch.exp(-master).item() == pytest.approx(0.01, rel=1e-6)
    assert torch.equal(temperature.log_inverse, working)


def test_a_temperature_carried_outside_comes_back():
    temperature = Temperature(0.07, 0.01, 0.5, learn=True)
    temperature.log_inverse.data.fill_(-math.log(0.002))
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        temperature().sum().backward()
        optimizer.step()
    assert 0.01 < torch.exp(-temperature()).item() < 0.5


def test_heads_and_temperature_learn_as_bf16_copies_of_fp32_masters():
    """What DeepSpeed bf16 does: gradients come from bf16 working copies, updates go to fp32 masters."""
    torch.manual_seed(0)
    working = ContrastiveHeads(16, projection_size=8, learn_temperature=True).bfloat16()
    masters = [p.detach().float().clone().requires_grad_() for p in working.parameters()]
    optimizer = torch.optim.Adam(masters, lr=2e-3)
    states = torch.randn(12, 16).bfloat16()
    image, text = states + 0.1 * torch.randn_like(states), states
    losses, temperatures = [], []
    for _ in range(150):
        v = torch.nn.functional.normalize(working.project_image(image).float(), dim=-1)
        t = torch.nn.functional.normalize(working.project_text(text).float(), dim=-1)
        logits = v @ t.T * working.log_inverse_temperature().exp()
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(12))
        working.zero_grad()
        loss.backward()
        for master, copy in zip(masters, working.parameters(), strict=True):
            master.grad = copy.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, copy in zip(masters, working.parameters(), strict=True):
                copy.copy_(master)
        losses.append(loss.item())
        temperatures.append(torch.exp(-working.log_inverse_temperature()).item())
    assert losses[-1] < 0.2 * losses[0]
    assert temperatures[-1] != temperatures[0]
    assert 0.01 <= min(temperatures) <= max(temperatures) <= 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "conv"}, "head is 'conv'; use one of none, linear, mlp"),
        ({"kind": "none", "projection_size": 8}, "projection_size 8 needs a head"),
        ({"kind": "none", "shared": True}, "shared_head needs a head"),
        ({"temperature": 0.9}, "temperature 0.9 must lie within"),
        ({"temperature_min": 0.0}, "above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveHeads(16, **arguments)
