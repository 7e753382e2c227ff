import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fiberjax import policy
from fiberjax.policy import log_probs
from fiberjax.policy.attention import LANES

from . import shapes

token_outputs = jax.jit(
    policy.token_outputs, static_argnames=("config", "start", "chunk", "entropy_gradient")
)


def make_inputs(vocabulary):
    """Activations [B, T, D], table [V, D], targets [B, T]."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (3, 7, 5))
    kernel = jax.random.normal(keys[1], (vocabulary, 5))
    return hidden, kernel, jax.random.randint(keys[2], (3, 7), 0, vocabulary)


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(6)


def direct(hidden, kernel, targets, *, temperature):
    log_p = jax.nn.log_softmax(hidden @ kernel.T / temperature)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return policy.TokenOutputs(chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1))


@pytest.mark.parametrize(
    ("vocabulary", "parts"),
    # Blocks of one size; with a smaller one at the end, of the whole or of each part; more than the
    # lanes hold; and a vocabulary that does not split.
    [(6, 1), (7, 1), (14, 2), (12, 3), (1_300, 2), (7, 2)],
)
@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_blocks_equal_direct_in_value_and_gradient(vocabulary, parts, chunk, temperature):
    hidden, kernel, targets = make_inputs(vocabulary)
    weights = jax.random.normal(jax.random.key(9), (2, *targets.shape))

    def run(function, **options):
        def loss(hidden, kernel, temperature):
            out = function(hidden, kernel, targets, temperature=temperature, **options)
            return jnp.sum(weights * jnp.stack(out)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
            hidden, kernel, temperature
        )

    chex.assert_trees_all_close(
        run(policy.chunked_token_outputs, chunk=chunk, parts=parts),
        run(direct),
        rtol=5e-5,
        atol=2e-5,
    )


@pytest.mark.parametrize(
    ("vocabulary", "least"), [(151_936, 5), (151_936, 32), (7, 3), (5, 4), (3, 8), (1, 2), (97, 50)]
)
def test_blocks_are_no_larger_than_asked_and_leave_less_than_another(vocabulary, least):
    count, size = log_probs.blocks(vocabulary, least)
    assert 0 <= vocabulary - count * size < size <= max(1, vocabulary / least)
    assert size % LANES == 0 or vocabulary < least * LANES


def test_by_default_as_many_logits_exist_as_64_mebibytes_hold():
    def loops(columns, parts):
        shapes = (2, columns, 1), (2**17, 1)
        found = jax.make_jaxpr(
            lambda hidden, kernel: policy.chunked_token_outputs(
                *(hidden, kernel, jnp.zeros((2, columns), int)),
                temperature=1.0,
                chunk=0,
                parts=parts,
            )
        )(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
        scans = [e for e in found.eqns if e.primitive.name == "scan"]
        return [scan.params["length"] for scan in scans]

    # 2 rows × 64 columns × 2¹⁷ tokens × 4 bytes are 64 MiB.
    assert loops(64, 1) == [] and loops(65, 1) == [2] and loops(512, 1) == [8]
    assert loops(512, 4) == [2]  # Of each device.


@pytest.mark.parametrize(("rows", "groups"), [(6, 3), (5, 5), (4, 2)])
def test_groups_of_rows_change_nothing(monkeypatch, rows, groups):
    """Where activations are too many, blocks are gone through for some rows after the other."""
    keys = jax.random.split(jax.random.key(5), 4)
    hidden, kernel = jax.random.normal(keys[0], (rows, 7, 5)), jax.random.normal(keys[1], (40, 5))
    targets = jax.random.randint(keys[2], (rows, 7), 0, 40)
    weights = jax.random.normal(keys[3], (2, rows, 7))
    monkeypatch.setattr(log_probs, "_BYTES", 4 * 7 * 5 * rows // groups)
    seen = []
    of_blocks = log_probs._of_blocks

    def watched(hidden, *others):
        seen.append(len(hidden))
        return of_blocks(hidden, *others)

    monkeypatch.setattr(log_probs, "_of_blocks", watched)

    def run(function, **options):
        def loss(hidden, kernel):
            out = function(hidden, kernel, targets, temperature=0.7, **options)
            return jnp.sum(weights * jnp.stack(out)), out

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, kernel)

    chex.assert_trees_all_close(
        run(policy.chunked_token_outputs, chunk=0), run(direct), rtol=2e-5, atol=2e-5
    )
    assert set(seen) == {rows // groups}


def test_the_table_is_read_and_its_gradient_made_a_block_at_a_time():
    """Were the logits of some columns formed at a time, each would add to a whole gradient."""
    hidden, kernel, targets = jnp.zeros((2, 64, 8)), jnp.zeros((512, 8)), jnp.zeros((2, 64), int)

    def loss(hidden, kernel):
        out = policy.chunked_token_outputs(hidden, kernel, targets, temperature=1.0, chunk=4)
        return jnp.sum(out.log_prob)

    loops = [
        equation
        for equation in jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, kernel).eqns
        if equation.primitive.name == "scan"
    ]
    assert [loop.params["length"] for loop in loops] == [16, 16]  # Forward and back.
    for loop in loops:
        shapes = [value.aval.shape for value in loop.params["jaxpr"].jaxpr.invars]
        assert (32, 8) in [shape[-2:] for shape in shapes]
        assert (512, 8) not in [shape[-2:] for shape in shapes]
    # The backward pass forms logits again, and neither their maxima nor their sums.
    forward, backward = (str(loop.params["jaxpr"]) for loop in loops)
    assert "reduce_max" in forward and "reduce_max" not in backward


def test_gradients_over_many_blocks_are_rounded_to_bfloat16_once():
    """Added up in bfloat16, those of 256 blocks would be lost in what is there already."""
    keys = jax.random.split(jax.random.key(3), 2)
    hidden = jax.random.normal(keys[0], (1, 256, 8), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (2048, 8)).astype(jnp.bfloat16)
    targets = jnp.zeros((1, 256), int)

    def gradient(chunk):
        def loss(hidden, kernel):
            out = policy.chunked_token_outputs(
                hidden, kernel, targets, temperature=1.0, chunk=chunk
            )
            return jnp.sum(out.log_prob)

        return jax.grad(loss, (0, 1))(hidden, kernel.astype(jnp.float32))

    for many, once in zip(gradient(1), gradient(256), strict=True):
        many, once = (np.asarray(x, np.float32) for x in (many, once))
        assert np.abs(many - once).max() <= 2**-7 * np.abs(once).max()
        assert np.linalg.norm(many - once) < 2**-8 * np.linalg.norm(once)


@pytest.mark.parametrize("chunk", [2, 7])
def test_forward_mode_is_that_of_the_direct_form(inputs, chunk):
    hidden, kernel, targets = inputs
    tangents = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), inputs[:2])

    def pushed(function, **options):
        run = lambda h, k: function(h, k, targets, temperature=0.7, **options)  # noqa: E731
        return jax.jvp(run, (hidden, kernel), tangents)

    chex.assert_trees_all_close(
        pushed(policy.chunked_token_outputs, chunk=chunk), pushed(direct), rtol=2e-5, atol=2e-5
    )


def test_entropy_gradient_by_differences(inputs):
    with jax.enable_x64(True):
        hidden, kernel, targets = (jnp.asarray(np.asarray(x), None) for x in inputs)
        hidden, kernel = hidden.astype(jnp.float64), kernel.astype(jnp.float64)

        def entropy(hidden):
            return direct(hidden, kernel, targets, temperature=0.7).entropy.sum()

        step = 1e-6 * jax.random.normal(jax.random.key(4), hidden.shape, jnp.float64)
        slope = entropy(hidden + step) - entropy(hidden - step)
        gradient = jax.grad(
            lambda h: policy.chunked_token_outputs(
                h.astype(jnp.float32), kernel, targets, temperature=0.7, chunk=2
            ).entropy.sum()
        )(hidden)
        np.testing.assert_allclose(jnp.sum(gradient * step) * 2, slope, rtol=1e-4)


def test_without_its_gradient_entropy_is_a_constant(inputs):
    """The same values, the same gradient of log-probabilities, none of entropies, less work."""
    hidden, kernel, targets = inputs
    weights = jax.random.normal(jax.random.key(9), (2, *targets.shape))

    def compiled(entropy_gradient):
        def pull(hidden, kernel, temperature, cotangents):
            out, pullback = jax.vjp(
                lambda hidden, kernel, temperature: policy.chunked_token_outputs(
                    *(hidden, kernel, targets),
                    temperature=temperature,
                    chunk=3,
                    entropy_gradient=entropy_gradient,
                ),
                *(hidden, kernel, temperature),
            )
            return out, pullback(policy.TokenOutputs(*cotangents))

        return jax.jit(pull).lower(hidden, kernel, jnp.float32(0.6), weights).compile()

    on, off = compiled(True), compiled(False)
    temperature, zeros = jnp.float32(0.6), jnp.zeros_like(weights[0])
    run = lambda program, *cotangents: program(  # noqa: E731
        hidden, kernel, temperature, jnp.stack(cotangents)
    )
    of_log_prob = run(on, weights[0], zeros)
    chex.assert_trees_all_close(run(off, weights[0], zeros), of_log_prob, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(run(off, *weights), run(off, weights[0], zeros))
    chex.assert_trees_all_equal(
        run(off, zeros, weights[1])[1], jax.tree.map(jnp.zeros_like, of_log_prob[1])
    )
    of_entropy = jax.grad(
        lambda *args: jnp.sum(weights[1] * direct(*args[:2], targets, temperature=args[2]).entropy),
        argnums=(0, 1, 2),
    )(hidden, kernel, temperature)
    chex.assert_trees_all_close(run(on, zeros, weights[1])[1], of_entropy, rtol=2e-5, atol=2e-5)
    flops = [program.cost_analysis()["flops"] for program in (on, off)]
    assert flops[1] < flops[0] - hidden.shape[0] * 3 * kernel.shape[0]  # an operation a logit


def test_the_policy_passes_the_switch_on():
    config, tokens = shapes.config(), shapes.tokens(2, 6)

    def entropy(params, on):
        out = token_outputs(
            *(config, params, tokens, *shapes.whole(tokens)),
            start=2,
            temperature=1.0,
            chunk=2,
            entropy_gradient=on,
        )
        return out.entropy.sum()

    norms = [optax.tree.norm(jax.grad(entropy)(shapes.params(config), on)) for on in (True, False)]
    assert norms[0] > 0.1 and norms[1] == 0


def test_extreme_logits_stay_finite():
    hidden, kernel = jnp.full((1, 2, 1), 300.0), jnp.array([[1.0], [-1.0], [0.0]])
    targets = jnp.array([[0, 1]])

    def loss(hidden):
        out = policy.chunked_token_outputs(hidden, kernel, targets, temperature=0.1, chunk=1)
        return jnp.sum(out.log_prob + out.entropy), out

    (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(hidden)
    np.testing.assert_allclose(out.log_prob, [[0.0, -6000.0]], rtol=1e-6)
    np.testing.assert_allclose(out.entropy, 0.0, atol=1e-3)
    assert np.isfinite(gradient).all()


def test_sequence_probabilities_sum_to_one():
    """Over all continuations of three tokens from a vocabulary of four."""
    config = shapes.config(vocab_size=4)
    rows = jnp.array([(2, *rest) for rest in itertools.product(range(4), repeat=3)])
    out = token_outputs(
        config,
        shapes.params(config),
        rows,
        *shapes.whole(rows),
        start=1,
        temperature=0.8,
        chunk=2,
    )
    log_prob = out.log_prob.sum(axis=1)
    np.testing.assert_allclose(jnp.exp(log_prob).sum(), 1.0, rtol=1e-5)
    # The chain rule of entropy: the expected sum of conditional ones is that of the sequence.
    np.testing.assert_allclose(
        jnp.sum(jnp.exp(log_prob) * out.entropy.sum(axis=1)),
        -jnp.sum(jnp.exp(log_prob) * log_prob),
        rtol=1e-4,
    )


def test_padding_contents_change_no_value_and_no_gradient():
    config = shapes.config()
    params, tokens = shapes.params(config), shapes.tokens(2, 8)
    segments = jnp.array([[0, 0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    mask = segments[:, 3:] > 0

    def loss(params, tokens, positions):
        out = token_outputs(
            config, params, tokens, positions, segments, start=3, temperature=1.0, chunk=2
        )
        return jnp.sum(jnp.where(mask, out.log_prob + out.entropy, 0.0))

    run = jax.jit(jax.value_and_grad(loss))
    expected = run(params, tokens, positions)
    for garbage in (-1, 3, 10**6):
        fill = lambda x: jnp.where(segments > 0, x, garbage)  # noqa: B023, E731
        chex.assert_trees_all_equal(run(params, fill(tokens), fill(positions)), expected)


def test_start_selects_columns():
    config = shapes.config()
    params, tokens = shapes.params(config), shapes.tokens(2, 6)
    run = lambda start: token_outputs(  # noqa: E731
        config, params, tokens, *shapes.whole(tokens), start=start, temperature=1.0, chunk=4
    )
    chex.assert_trees_all_close(
        run(4), jax.tree.map(lambda x: x[:, 3:], run(1)), rtol=1e-5, atol=1e-6
    )


def test_no_array_of_all_logits_is_kept():
    """Temporaries of value and gradient stay near one block of logits, far below all of them."""
    batch, length, width, vocab, chunk = 4, 256, 8, 4096, 4

    def temporaries(function, **options):
        def loss(hidden, kernel):
            targets = jnp.zeros((batch, length), jnp.int32)
            out = function(hidden, kernel, targets, temperature=1.0, **options)
            return jnp.sum(out.log_prob + out.entropy)

        shape = jax.ShapeDtypeStruct
        arguments = shape((batch, length, width), jnp.float32), shape((vocab, width), jnp.float32)
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4 * batch * length * vocab
    assert temporaries(direct) >= whole
    assert temporaries(policy.chunked_token_outputs, chunk=chunk) < whole / 4


def test_bfloat16_log_probs_are_float32():
    config = shapes.config(compute_dtype="bfloat16")
    tokens = shapes.tokens(2, 5)
    out = token_outputs(
        config,
        shapes.params(config),
        tokens,
        *shapes.whole(tokens),
        start=1,
        temperature=1.0,
        chunk=2,
    )
    chex.assert_shape(out, (2, 4))
    chex.assert_type(out, jnp.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(start=0), r"start must be in \[1, 4\], got 0"),
        (dict(start=5), "start must be in"),
        (dict(chunk=-1), "chunk must be at least 0 columns, got -1"),
    ],
)
def test_bad_options_are_refused(options, message):
    config = shapes.config()
    tokens = shapes.tokens(1, 5)
    options = dict(start=1, temperature=1.0, chunk=2) | options
    with pytest.raises(ValueError, match=message):
        token_outputs(config, shapes.params(config), tokens, *shapes.whole(tokens), **options)
