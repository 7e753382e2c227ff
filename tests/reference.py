"""Gates written once more as loops over tokens, in float64, straight from their definitions.

Independent of the library: plain NumPy and Python, no masks, no tables. A problem is flat: token
`i` belongs to trajectory `trajectory[i]`, which belongs to `parents[0][trajectory[i]]`, and so on.
"""

import math

import numpy as np


def cells(trajectory, parents, k):
    """The cell of level `k` that holds each token."""
    ids = np.asarray(trajectory)
    for parent in parents[:k]:
        ids = np.asarray(parent)[ids]
    return ids


def aggregate(x, budget, k):
    if abs(x) <= budget:
        return x
    if abs(x) < (1 + 1 / k) * budget:
        return math.copysign(1, x) * (k + 1) * budget - k * x
    return 0.0


def hold(x, budget, k):
    return min(max(x, -budget), budget)


def clip(x, bound):
    return min(max(x, -bound), bound)


def sign(x):
    return 1 if x >= 0 else -1


def fgh(
    l,
    a,
    trajectory,
    parents,
    *,
    budgets,
    epsilon,
    epsilon_negative=None,
    base_gate="rollback",
    lift="plain",
    signs="token",
    deviation="log",
    alpha=1.0,
    upper_negative=None,
    budget_scale="none",
):
    """The published hierarchy; `budgets` is one pair a level."""
    gate = {"rollback": aggregate, "hold": hold}[base_gate]
    levels, l = len(budgets), np.asarray(l, np.float64)
    if deviation == "ratio":
        l = np.exp(np.clip(l, -20, 20)) - 1
    parents = parents[: levels - 1]
    drift, size = {}, {}
    for y in set(trajectory):
        of = [l[i] for i in range(len(l)) if trajectory[i] == y]
        drift[0, y] = (
            sum(max(x, 0) for x in of) / len(of),
            sum(max(-x, 0) for x in of) / len(of),
        )
        size[0, y] = len(of)
    for k in range(1, levels):
        for z in {parents[k - 1][y] for (j, y) in drift if j == k - 1}:
            of = [d for (j, y), d in drift.items() if j == k - 1 and parents[k - 1][y] == z]
            if signs == "resigned":
                of = [(max(p - m, 0.0), max(m - p, 0.0)) for p, m in of]
            drift[k, z] = tuple(sum(d[c] for d in of) / len(of) for c in (0, 1))
            size[k, z] = len(of)

    def weight(k, y, c):
        """The gated drift of a cell: its own, and what comes down to it."""
        up = parents[k][y] if k + 1 < levels else None
        above = 0.0 if up is None else drift[k + 1, up][c]
        scale = dispersion(a, trajectory, parents, k, y) if budget_scale == "dispersion" else 1.0
        gated = gate(drift[k, y][c] - above, scale * budgets[k][c], size[k, y])
        gated += 0.0 if up is None else weight(k + 1, up, c)
        return min(max(gated, 0.0), drift[k, y][c]) if lift == "bounded" else gated

    out = []
    for i in range(len(l)):
        base = alpha * (weight(0, trajectory[i], 0) - weight(0, trajectory[i], 1))
        s = sign(l[i])
        mine, other = drift[0, trajectory[i]][:: 1 if s > 0 else -1]
        bound = epsilon_negative if epsilon_negative is not None and a[i] < 0 else epsilon
        upper = upper_negative if upper_negative is not None and a[i] < 0 else bound
        u, v = s * l[i] - mine, -other
        gated = base + min(max(s * u, -bound), upper) - min(max(s * v, -bound), upper)
        out.append(1 + gated if deviation == "ratio" else math.exp(gated))
    return np.array(out)


def exact(
    l,
    a,
    trajectory,
    parents,
    *,
    budgets,
    epsilon,
    epsilon_negative=None,
    base_gate="rollback",
    lift="plain",
):
    """The exact bundle: each channel is a tower of its own, counting only what it holds."""
    gate = {"rollback": aggregate, "hold": hold}[base_gate]
    levels, out = len(budgets), []
    for i in range(len(l)):
        s, y = sign(l[i]), trajectory[i]
        c = 0 if s > 0 else 1

        def mean(k, y, s=s):
            if k == 0:
                of = [abs(x) for x, t in zip(l, trajectory, strict=True) if t == y and sign(x) == s]
            else:
                below = {cells(trajectory, parents, k - 1)[j] for j in range(len(l))}
                of = [mean(k - 1, x)[0] for x in below if parents[k - 1][x] == y]
                of = [m for m in of if m is not None]
            return (sum(of) / len(of), len(of)) if of else (None, 0)

        def weight(k, y, c=c, mean=mean):
            m, n = mean(k, y)
            if k + 1 == levels:
                gated = gate(m, budgets[k][c], n)
            else:
                up = parents[k][y]
                gated = gate(m - mean(k + 1, up)[0], budgets[k][c], n) + weight(k + 1, up)
            return min(max(gated, 0.0), m) if lift == "bounded" else gated

        bound = epsilon_negative if epsilon_negative is not None and a[i] < 0 else epsilon
        own = mean(0, y)[0]
        out.append(math.exp(s * weight(0, y) + clip(l[i] - s * own, bound)))
    return np.array(out)


def dispersion(a, trajectory, parents, k, y):
    """The mean size of the advantages of a cell, as the mean of its children's; 1 up to k = 0."""
    if k == 0:
        return 1.0

    def mean(k, y):
        if k == 0:
            of = [abs(x) for x, t in zip(a, trajectory, strict=True) if t == y]
        else:
            below = sorted(set(cells(trajectory, parents, k - 1)))
            of = [mean(k - 1, x) for x in below if parents[k - 1][x] == y]
        return sum(of) / len(of)

    return mean(k, y)


def silent(
    l,
    a,
    trajectory,
    parents,
    *,
    budgets,
    epsilon,
    epsilon_negative=None,
    weight_cap,
    signal="drift",
    budget_scale="none",
    weight="token",
    whole=None,
):
    """The silent hierarchy: the value of every token, open or closed.

    `whole` is the trajectory of each token, where the finest cells are others.
    """
    whole = trajectory if whole is None else whole
    levels = len(budgets)
    at = [cells(trajectory, parents, k) for k in range(levels)]

    def children(k, y):
        if k == 0:
            return [l[i] for i in range(len(l)) if trajectory[i] == y]
        return [drift(k - 1, x) for x in sorted(set(at[k - 1])) if parents[k - 1][x] == y]

    def drift(k, y):
        return sum(children(k, y)) / len(children(k, y))

    out = []
    for i in range(len(l)):
        s = sign(a[i])
        bound = epsilon_negative if epsilon_negative is not None and s < 0 else epsilon
        beyond = [s * l[i] - bound]
        for k in range(levels):
            moved = s * drift(k, at[k][i])
            if signal == "residual" and k + 1 < levels:
                own = moved - s * drift(k + 1, at[k + 1][i])
                moved = min(moved, own) if moved > 0 else 0.0
            budget = budgets[k][0 if s > 0 else 1]
            if budget_scale == "noise":
                budget /= math.sqrt(len(children(k, at[k][i])))
            if budget_scale == "dispersion":
                budget *= dispersion(a, trajectory, parents, k, at[k][i])
            beyond.append(moved - budget)
        own = [l[j] for j in range(len(l)) if whole[j] == whole[i]]
        m = sum(own) / len(own) if weight == "trajectory" else l[i]
        # Back by what is too much, and never past where the token, or its trajectory, began.
        back = min(max(0.0, *beyond), max(s * m, 0.0))
        out.append(min(math.exp(m - s * back), weight_cap))
    return np.array(out)


def importance(l, a, trajectory, parents):
    return np.exp(np.asarray(l, np.float64))


def plain_clip(l, a, trajectory, parents, *, clip_low, clip_high):
    return np.array([min(max(math.exp(x), 1 - clip_low), 1 + clip_high) for x in l])


def ppo(l, a, trajectory, parents, *, clip_low, clip_high):
    out = []
    for x, y in zip(l, a, strict=True):
        r = math.exp(x)
        bounded = min(max(r, 1 - clip_low), 1 + clip_high)
        if y == 0:
            out.append(min(r, 1 + clip_high))
        else:
            out.append(min(r * y, bounded * y) / y)
    return np.array(out)


def sequence_ratio(l, trajectory):
    return [
        math.exp(np.mean([x for x, t in zip(l, trajectory, strict=True) if t == mine]))
        for mine in trajectory
    ]


def gspo(l, a, trajectory, parents, *, clip_low, clip_high):
    out = []
    for s, y in zip(sequence_ratio(l, trajectory), a, strict=True):
        out.append(min(s, 1 + clip_high) if y >= 0 else max(s, 1 - clip_low))
    return np.array(out)


def gmpo(l, a, trajectory, parents, *, clip_low, clip_high):
    bounded = []
    for x, y in zip(l, a, strict=True):
        x = min(x, clip_high) if y > 0 else x
        x = max(x, -clip_low) if y < 0 else x
        bounded.append(x)
    return np.array(sequence_ratio(bounded, trajectory))


def sapo(l, a, trajectory, parents, *, temperature_positive, temperature_negative):
    out = []
    for x, y in zip(l, a, strict=True):
        t = temperature_positive if y > 0 else temperature_negative
        out.append(4 / t / (1 + math.exp(-t * (math.exp(x) - 1))))
    return np.array(out)


def dppo_tv(l, a, trajectory, parents, *, old_log_prob, delta_low, delta_high, weight_cap):
    out = []
    for x, y, old in zip(l, a, old_log_prob, strict=True):
        moved = math.exp(old + x) - math.exp(old)
        keep = moved <= delta_high if y >= 0 else moved >= -delta_low
        out.append(min(math.exp(x), weight_cap) if keep else 0.0)
    return np.array(out)


def dppo_kl(l, a, trajectory, parents, *, old_log_prob, delta, weight_cap):
    out = []
    for x, y, old in zip(l, a, old_log_prob, strict=True):
        p, q = math.exp(old), min(math.exp(old + x), 1.0)
        kl = p * math.log(p / q)
        if p < 1:
            kl += (1 - p) * math.log((1 - p) / (1 - q)) if q < 1 else math.inf
        keep = kl <= delta or (x <= 0 if y >= 0 else x >= 0)
        out.append(min(math.exp(x), weight_cap) if keep else 0.0)
    return np.array(out)


def apc(l, a, trajectory, parents, *, delta, unit, form):
    x = [v if form == "log" else math.exp(v) - 1 for v in l]
    out = []
    for i in range(len(x)):
        mates = [j for j in range(len(x)) if unit[j] == unit[i]]
        left = len(mates) * delta - sum(abs(x[j]) for j in mates if j != i)
        gated = clip(x[i], max(left, 0))
        out.append(math.exp(gated) if form == "log" else 1 + gated)
    return np.array(out)


def mates(trajectory, i):
    """The tokens of token `i`'s trajectory, in order."""
    return [j for j in range(len(trajectory)) if trajectory[j] == trajectory[i]]


def vespo(l, a, trajectory, parents, *, k_positive, lambda_positive, k_negative, lambda_negative):
    out = []
    for i in range(len(l)):
        w = math.prod(math.exp(l[j]) for j in mates(trajectory, i))
        k, lam = (k_positive, lambda_positive) if a[i] >= 0 else (k_negative, lambda_negative)
        out.append(w**k * math.exp(lam * (1 - w)))
    return np.array(out)


def topr(l, a, trajectory, parents, *, weight_cap, form="product"):
    out = []
    for i in range(len(l)):
        of = mates(trajectory, i)
        s = math.prod(math.exp(l[j]) for j in of)
        s = s ** (1 / len(of)) if form == "mean" else s
        out.append(1.0 if a[i] >= 0 else min(s, weight_cap))
    return np.array(out)


def m2po(l, a, trajectory, parents, *, second_moment):
    counted = [i for i in range(len(l)) if (a[i] > 0 and l[i] > 0) or (a[i] < 0 and l[i] < 0)]
    kept = sorted(counted, key=lambda i: l[i] ** 2)
    while kept and sum(l[i] ** 2 for i in kept) / len(kept) > second_moment:
        kept.pop()
    dropped = set(counted) - set(kept)
    return np.array([0.0 if i in dropped else math.exp(l[i]) for i in range(len(l))])


def trm(l, a, trajectory, parents, *, largest, mean):
    out = []
    for i in range(len(l)):
        d = [math.exp(l[j]) - 1 - l[j] for j in mates(trajectory, i)]
        drop = max(d) > largest or sum(d) / len(d) > mean
        out.append(0.0 if drop else math.exp(l[i]))
    return np.array(out)


def opsm(l, a, trajectory, parents, *, delta, clip_low, clip_high):
    out = ppo(l, a, trajectory, parents, clip_low=clip_low, clip_high=clip_high)
    for i in range(len(l)):
        of = mates(trajectory, i)
        if a[i] < 0 and sum(-l[j] for j in of) / len(of) > delta:
            out[i] = 0.0
    return out


def tvpo(l, a, trajectory, parents, *, delta):
    out = []
    for i in range(len(l)):
        of = mates(trajectory, i)
        far = sum(abs(math.exp(l[j]) - 1) for j in of) / len(of) > delta
        out.append(0.0 if far and a[i] * l[i] > 0 else math.exp(l[i]))
    return np.array(out)


def cppo(l, a, trajectory, parents, *, old_log_prob, delta, prefix_delta, last_weight):
    out = np.zeros(len(l))
    for y in set(trajectory):
        of = [i for i in range(len(l)) if trajectory[i] == y]
        spent = weights = 0.0
        for t, i in enumerate(of):
            w = 1 - (1 - last_weight) * t / max(len(of) - 1, 1)
            d = abs(math.exp(old_log_prob[i] + l[i]) - math.exp(old_log_prob[i]))
            within = w * d <= min(delta, delta + prefix_delta * weights - spent)
            out[i] = math.exp(l[i]) if within or a[i] * (math.exp(l[i]) - 1) <= 0 else 0.0
            spent, weights = spent + w * d, weights + w
    return out


def pnpo(l, a, trajectory, parents, *, clip_low, clip_high):
    out = []
    for i in range(len(l)):
        so_far = [l[j] for j in mates(trajectory, i) if j <= i]
        s = math.exp(sum(so_far) / len(so_far))
        out.append(min(s, 1 + clip_high) if a[i] >= 0 else max(s, 1 - clip_low))
    return np.array(out)


def minpro(l, a, trajectory, parents, *, weight_cap):
    out = []
    for i in range(len(l)):
        before = [math.exp(l[j]) for j in mates(trajectory, i) if j < i]
        out.append(min(math.exp(l[i]) * min(before, default=1.0), weight_cap))
    return np.array(out)


def fipo(
    l,
    a,
    trajectory,
    parents,
    *,
    half_life,
    influence_low,
    influence_high,
    ratio_cap,
    ratio_safe,
    clip_low,
    clip_high,
):
    gated = ppo(l, a, trajectory, parents, clip_low=clip_low, clip_high=clip_high)
    for i in range(len(l)):
        rest = [l[j] for j in mates(trajectory, i) if j >= i]
        rest = [x if math.exp(x) <= ratio_cap else 0.0 for x in rest]
        future = sum(2 ** (-t / half_life) * x for t, x in enumerate(rest))
        f = min(max(math.exp(future), influence_low), influence_high)
        if a[i] < 0 and math.exp(l[i]) > ratio_safe:
            f = min(f, 1.0)
        gated[i] *= f
    return gated
