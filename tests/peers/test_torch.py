"""The PyTorch code of docs/elsewhere.md: one coefficient a token, over DLPack.

Needs PyTorch, in an environment of its own:

    python -m venv torch && torch/bin/python -m pip install torch==2.13.0 -e '.[dev]'
    torch/bin/python -m pytest tests/peers/test_torch.py -s
"""

import jax
import numpy as np
import pytest
from peers import batch as common
from peers.guide import run_blocks

import fiberjax as fj

pytestmark = pytest.mark.peer
torch = pytest.importorskip("torch")


class Policy(torch.nn.Module):
    """Log-probabilities of tokens given the token before, over a vocabulary of eight."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(8, 6)
        self.head = torch.nn.Linear(6, 8)

    def forward(self, tokens):
        log_probs = torch.log_softmax(self.head(torch.tanh(self.embed(tokens[:, :-1]))), -1)
        return log_probs.gather(-1, tokens[:, 1:, None])[..., 0]


def problem():
    """A policy in float64, and a batch whose old policy was another one."""
    torch.manual_seed(0)
    policy = Policy().double()
    arrays = common.make()
    data = {name: torch.tensor(x) for name, x in arrays.items()}
    data["tokens"] = torch.randint(8, (common.ROWS, common.LENGTH + 1))
    drift = data.pop("log_prob") - data["old_log_prob"]
    data["old_log_prob"] = policy(data["tokens"]).detach() - drift
    return policy, data | {"group": common.GROUP, "domain": common.DOMAIN}


def gradient(policy):
    return torch.cat([p.grad.ravel() for p in policy.parameters()])


def test_clip_agrees_with_autograd():
    scope = run_blocks("PyTorch")
    scope["gate"] = fj.gate("ppo", clip_low=common.CLIP_LOW, clip_high=common.CLIP_HIGH)
    policy, data = problem()
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    scope["update"](policy, optimizer, data, 1)
    got = gradient(policy)

    optimizer.zero_grad()
    ratio = torch.exp(policy(data["tokens"]) - data["old_log_prob"])
    clipped = ratio.clamp(1 - common.CLIP_LOW, 1 + common.CLIP_HIGH)
    product = torch.minimum(ratio * data["advantage"], clipped * data["advantage"])
    length = data["mask"].sum(1, keepdim=True)
    (-(product * data["mask"] / length).sum() / common.ROWS).backward()
    error = (got - gradient(policy)).abs().max()
    print(f"PPO's clip: gradient up to {got.abs().max():.3f}, off by {error:.1e}")
    assert got.abs().max() > 0.01 and error < 1e-7


def test_fiberpo_agrees_with_finite_differences():
    scope = run_blocks("PyTorch")
    policy, data = problem()
    # A token that has not moved changes its channel there: no difference quotient is a slope.
    still = policy(data["tokens"]).detach() == data["old_log_prob"]
    data["old_log_prob"][still] += 0.01
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    scope["update"](policy, optimizer, data, 1)
    got, gate = gradient(policy), scope["gate"]
    ids = {"group": data["group"], "domain": data["domain"]}
    layout = fj.make_layout(data["mask"].numpy(), ids)
    advantage = data["advantage"].numpy()
    start = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()

    def objective(parameters):
        torch.nn.utils.vector_to_parameters(parameters, policy.parameters())
        log_ratio = policy(data["tokens"]).detach() - data["old_log_prob"]
        with jax.enable_x64(True):
            gated = gate(log_ratio.numpy(), advantage, layout)
            return float(fj.surrogate(gated, advantage, layout).value)

    for seed in range(3):
        towards = torch.randn(len(got), generator=torch.Generator().manual_seed(seed)).double()
        step = 1e-6 * towards
        slope = (objective(start + step) - objective(start - step)) / 2e-6
        error = abs(slope + float(got @ towards))
        print(f"FiberPO-Domain: slope {slope:+.6f}, off by {error:.1e}")
        assert abs(slope) > 0.01 and error < 1e-6


def test_any_number_of_parts_gives_the_same_gradient():
    scope = run_blocks("PyTorch")
    policy, data = problem()
    # Padding that would spoil anything it met: a token that the policy cannot draw, and infinities.
    data["tokens"][data["tokens"] == 7] = 0
    data["tokens"][:, 1:][~data["mask"]] = 7
    with torch.no_grad():
        policy.head.bias[7] = -torch.inf
    data["advantage"][~data["mask"]] = torch.inf
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    found = {}
    for parts in (1, 2, 4, 9):
        scope["update"](policy, optimizer, data, parts)
        found[parts] = gradient(policy)
        assert torch.isfinite(found[parts]).all()
        error = (found[parts] - found[1]).abs().max()
        print(f"{parts} parts: off by {error:.1e}")
        assert error < 1e-15


def test_coefficients_share_memory_and_are_zero_at_padding():
    scope = run_blocks("PyTorch")
    _, data = problem()
    names = ("old_log_prob", "old_log_prob", "advantage", "mask", "group", "domain")
    c = scope["coefficients"](*(data[name] for name in names))
    assert c.dtype == torch.float32 and c.shape == data["mask"].shape
    assert (c[~data["mask"]] == 0).all()
    # On the first update the coefficient is the plain policy gradient's.
    length = data["mask"].sum(1, keepdim=True)
    expected = data["advantage"] * data["mask"] / length / common.ROWS
    np.testing.assert_allclose(c, expected, atol=1e-7)


def on_one_rank(rank, world, address, wanted):
    """One rank of a data-parallel step: its rows, the loss times the ranks, which DDP averages."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    scope = run_blocks("PyTorch")
    policy, data = problem()
    model = torch.nn.parallel.DistributedDataParallel(policy)
    rows = torch.arange(common.ROWS).tensor_split(world)  # Of unlike sizes.
    with torch.no_grad():
        found = [None] * world
        distributed.all_gather_object(found, policy(data["tokens"][rows[rank]]))
    names = ("old_log_prob", "advantage", "mask", "group", "domain")
    c = scope["coefficients"](torch.cat(found), *(data[name] for name in names))
    mine = rows[rank]
    log_prob = torch.where(data["mask"][mine], model(data["tokens"][mine]), 0)
    (-world * c[mine] * log_prob).sum().backward()
    np.testing.assert_allclose(gradient(policy), wanted, rtol=0, atol=1e-15)
    distributed.destroy_process_group()


def test_data_parallel_ranks_give_the_same_gradient(tmp_path):
    scope = run_blocks("PyTorch")
    policy, data = problem()
    scope["update"](policy, torch.optim.SGD(policy.parameters(), 0.0), data, 1)
    address = f"file://{tmp_path}/ranks"
    torch.multiprocessing.spawn(on_one_rank, (2, address, gradient(policy).numpy()), 2)
