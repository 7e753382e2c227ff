import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fiberjax import policy
from fiberjax.policy import drawing, sampler

from . import shapes

PROMPT, NEW, EOS, PAD = 5, 9, 3, 0

token_outputs = jax.jit(policy.token_outputs, static_argnames=("config", "start", "chunk"))


def long(**options):
    """Options of a test that is run when it is asked for."""
    return pytest.param(options, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def config():
    return shapes.config()


@pytest.fixture(scope="module")
def params(config):
    return shapes.params(config)


def prompts(batch):
    """Prompts of lengths 1 to `PROMPT`, padded on the left."""
    lengths = 1 + jnp.arange(batch) % PROMPT
    return shapes.tokens(batch, PROMPT), jnp.arange(PROMPT) >= PROMPT - lengths[:, None]


def draw(config, params, batch=12, seed=7, **options):
    options = dict(max_new_tokens=NEW, eos_id=EOS, pad_id=PAD) | options
    keys = jax.random.split(jax.random.key(seed), batch)
    return policy.sample(config, params, *prompts(batch), keys, **options)


def recomputed(config, params, samples, temperature):
    """Log-probabilities of the completions by a forward pass over whole rows."""
    tokens, mask = prompts(len(samples.length))
    completion = jnp.arange(samples.tokens.shape[1]) < samples.length[:, None]
    segments = jnp.concatenate([mask, completion], axis=1).astype(jnp.int32)
    out = token_outputs(
        config,
        params,
        jnp.concatenate([tokens, samples.tokens], axis=1),
        jnp.cumsum(segments, axis=1) - 1,
        segments,
        start=PROMPT,
        temperature=temperature,
        chunk=4,
    )
    return jnp.where(completion, out.log_prob, 0.0)


def logits_of(config, params, samples):
    """Logits that each token of the completions was drawn from, [B, C, V], and which are real."""
    tokens, mask = prompts(len(samples.length))
    completion = jnp.arange(samples.tokens.shape[1]) < samples.length[:, None]
    segments = jnp.concatenate([mask, completion], axis=1).astype(jnp.int32)
    rows = jnp.concatenate([tokens, samples.tokens], axis=1)
    model = policy.bind(config, params)
    hidden = nnx.jit(lambda m: m.hidden(rows, jnp.cumsum(segments, axis=1) - 1, segments))(model)
    return model.unembed(hidden[:, PROMPT - 1 : -1]), completion


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_agree_with_the_forward_pass(config, params, temperature):
    samples = draw(config, params, temperature=temperature)
    np.testing.assert_allclose(
        samples.log_prob, recomputed(config, params, samples, temperature), atol=1e-5
    )
    assert samples.length.min() < NEW and samples.length.max() == NEW  # both ends exercised


@pytest.mark.parametrize("pad", [PAD, EOS])
def test_end_of_completions(config, params, pad):
    samples = jax.tree.map(np.asarray, draw(config, params, batch=24, pad_id=pad))
    other = jax.tree.map(np.asarray, draw(config, params, batch=24, pad_id=9))
    np.testing.assert_array_equal(samples.length, other.length)  # padding decides nothing
    for tokens, log_prob, _, length, finished, _ in zip(*samples, strict=True):
        assert (tokens[length:] == pad).all() and (log_prob[length:] == 0).all()
        assert EOS not in tokens[: length - 1] and (log_prob[:length] < 0).all()
        assert finished == (tokens[length - 1] == EOS)
        assert finished or length == NEW
    assert samples.finished.any() and not samples.finished.all()


def test_any_of_several_tokens_ends_a_completion(config, params):
    ends = (EOS, 5, 8)
    samples = jax.tree.map(np.asarray, draw(config, params, batch=24, eos_id=ends))
    one = jax.tree.map(np.asarray, draw(config, params, batch=24))
    for row, (tokens, length) in enumerate(zip(samples.tokens, samples.length, strict=True)):
        assert samples.finished[row] == (tokens[length - 1] in ends)
        assert not set(tokens[: length - 1]) & set(ends)
        np.testing.assert_array_equal(tokens[:length], one.tokens[row, :length])
    assert {int(t[n - 1]) for t, n in zip(samples.tokens, samples.length, strict=True)} >= set(ends)
    with pytest.raises(ValueError, match="at least one token that ends a completion"):
        draw(config, params, eos_id=())


def test_rows_are_their_own(config, params):
    """Permuting rows permutes completions; the rest of the batch does not matter."""
    tokens, mask = prompts(8)
    keys = jax.random.split(jax.random.key(1), 8)
    options = dict(max_new_tokens=NEW, eos_id=EOS, pad_id=PAD)
    run = lambda rows: policy.sample(  # noqa: E731
        config, params, tokens[rows], mask[rows], keys[rows], **options
    )
    expected = run(jnp.arange(8))
    for rows in (jnp.array([5, 2, 7, 0, 1, 6, 3, 4]), jnp.array([6, 1])):
        got, want = run(rows), jax.tree.map(lambda x: x[rows], expected)  # noqa: B023
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_array_equal(got.length, want.length)
        np.testing.assert_allclose(got.log_prob, want.log_prob, atol=1e-5)


@pytest.mark.parametrize(
    "stage", [2, *(pytest.param(of, marks=pytest.mark.long) for of in (1, 4, 8))]
)
def test_stages_draw_the_same_and_read_what_they_need(config, params, stage, monkeypatch):
    expected = draw(config, params)
    read = []
    decode = policy.Transformer.decode
    monkeypatch.setattr(
        policy.Transformer,
        "decode",
        lambda *args, columns: read.append(columns) or decode(*args, columns=columns),
    )
    found = draw(config, params, stage=stage)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.finished, expected.finished)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=1e-5)
    # Each stage is traced once; the last reads all there is, each one before a stage less.
    assert sorted(set(read)) == [PROMPT + end - 1 for end in drawing.stage_ends(NEW, stage)]
    assert max(read) == PROMPT + NEW - 1


def test_stages_are_short_enough_and_complete():
    for length in (1, 7, 512, 513, 3072):
        for stage in (0, 1, 3, 512, 4096):
            ends = (0, *drawing.stage_ends(length, stage))
            assert ends[-1] == length
            assert all(0 < b - a <= (stage or 512) for a, b in itertools.pairwise(ends))
    # Left to itself: four of an answer of any length between, and none too short to be worth it.
    assert [len(drawing.stage_ends(n)) for n in (32, 33, 64, 128, 2048, 2560)] == [1, 2, 2, 4, 4, 5]
    assert [len(drawing.stage_ends(n)) for n in (8192, 9000, 32768)] == [16] * 3
    with pytest.raises(ValueError, match="stage must be 0 or positive, got -1"):
        draw(shapes.config(), shapes.params(shapes.config()), stage=-1)


def test_greedy_takes_the_likeliest(config, params):
    samples = draw(config, params, greedy=True, temperature=0.0)
    np.testing.assert_allclose(
        samples.log_prob, recomputed(config, params, samples, 1.0), atol=1e-5
    )
    z, completion = logits_of(config, params, samples)
    likeliest = jnp.argmax(z, axis=-1)
    np.testing.assert_array_equal(samples.tokens, jnp.where(completion, likeliest, PAD))


def enumerated(z, *, temperature=1.0, top_k=0, top_p=1.0):
    """The sampled distribution of one row of logits, by sorting in NumPy float64."""
    z = np.asarray(z, np.float64) / temperature
    p = np.exp(z - z.max())
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    keep = np.cumsum(p[order]) - p[order] < top_p
    p[order[~keep]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        long(temperature=0.5),
        long(top_k=3),
        long(top_p=0.7),
        dict(temperature=1.7, top_k=6, top_p=0.8),
        dict(top_k=1),
        dict(top_p=1e-6),
    ],
    ids=str,
)
def test_sampled_distribution(config, params, options):
    """Frequencies of the first token over many keys, and its reported log-probability."""
    count = 4000
    prompt = jnp.tile(jnp.array([[2, 5]]), (count, 1))
    samples = policy.sample(
        config,
        params,
        prompt,
        jnp.ones_like(prompt, bool),
        jax.random.split(jax.random.key(5), count),
        max_new_tokens=1,
        eos_id=EOS,
        pad_id=PAD,
        **options,
    )
    model = policy.bind(config, params)
    z = model.unembed(model.hidden(prompt[:1], *shapes.whole(prompt[:1]))[0, -1])
    expected = enumerated(z, **options)
    tokens = np.asarray(samples.tokens[:, 0])
    np.testing.assert_allclose(np.exp(samples.log_prob[:, 0]), expected[tokens], rtol=1e-4)
    counts = np.bincount(tokens, minlength=config.vocab_size)
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    chi2 = np.sum((counts - count * expected)[kept] ** 2 / (count * expected[kept]))
    freedom = max(kept.sum() - 1, 1)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)  # about one in ten thousand, seed fixed


@pytest.mark.parametrize(
    "options",
    [
        {},
        long(temperature=0.7),
        long(top_k=3),
        dict(temperature=0.7, top_p=0.4),
        long(temperature=1.7, top_k=6, top_p=0.8),
        dict(top_k=11),
        dict(greedy=True, top_k=3, top_p=0.4),
    ],
    ids=str,
)
def test_mass_kept_by_truncation(config, params, options):
    """Against a softmax in float64; with it, log-probabilities are those before truncation."""
    samples = draw(config, params, **options)
    z, completion = logits_of(config, params, samples)
    truncation = {} if "greedy" in options else options
    temperature = truncation.get("temperature", 1.0)
    expected = np.zeros(completion.shape)
    for at in zip(*np.nonzero(completion), strict=True):
        whole = enumerated(z[at], temperature=temperature)
        expected[at] = np.log(whole[enumerated(z[at], **truncation) > 0].sum())
    np.testing.assert_allclose(samples.log_kept, expected, atol=1e-5)
    np.testing.assert_allclose(
        samples.log_prob + samples.log_kept,
        recomputed(config, params, samples, temperature),
        atol=1e-5,
    )
    assert (samples.log_kept <= 0).all() and (samples.length < NEW).any()
    truncates = truncation.get("top_k", 11) < 11 or "top_p" in truncation
    assert (np.asarray(samples.log_kept) < -0.01).any() == truncates
    assert truncates or (samples.log_kept == 0).all()


@pytest.mark.parametrize("top_k", [0, 6])
def test_the_last_token_that_is_kept_stays_however_a_program_rounds(top_k):
    """A compiled program computes some logits twice, and not always alike."""
    z = jax.random.normal(jax.random.key(3), (2000, 11))
    noise = jax.random.normal(jax.random.key(4), z.shape)

    def kept(z, noise, temperature, top_p):
        tempered = (z + 0.2 * noise) / temperature
        return drawing.truncated_logits(tempered, top_k=top_k, top_p=top_p) > -jnp.inf

    given = (z, noise, 1.3, 0.8)
    np.testing.assert_array_equal(jax.jit(kept)(*given), kept(*given))


def test_stops_when_every_row_has_ended(config, params, monkeypatch):
    """With logits that always end, one token is drawn and the loop never runs."""
    steps = []

    def unembed(self, hidden):
        jax.debug.callback(lambda: steps.append(1))
        return jnp.where(jnp.arange(config.vocab_size) == EOS, 50.0, 0.0) * jnp.ones(
            (*hidden.shape[:-1], 1)
        )

    monkeypatch.setattr(policy.Transformer, "unembed", unembed)
    samples = draw(config, params, batch=3, max_new_tokens=33)
    jax.block_until_ready(samples)
    jax.effects_barrier()
    assert len(steps) == 1
    np.testing.assert_array_equal(samples.length, 1)
    assert samples.finished.all()


def test_options_do_not_recompile(config, params):
    """Temperature and a nucleus below one are traced."""
    draw(config, params, temperature=0.9, top_p=0.9)
    before = sampler._sample._cache_size()
    draw(config, params, temperature=0.8, top_p=0.8, seed=2)
    assert sampler._sample._cache_size() == before


def test_inside_jit(config, params):
    tokens, mask = prompts(4)
    keys = jax.random.split(jax.random.key(0), 4)
    options = dict(max_new_tokens=3, eos_id=EOS, pad_id=PAD, top_k=4)
    run = lambda t, p: policy.sample(  # noqa: E731
        config, params, tokens, mask, keys, temperature=t, top_p=p, **options
    )
    chex.assert_trees_all_close(jax.jit(run)(0.9, 0.8), run(0.9, 0.8), atol=1e-5)


def test_bfloat16_cache(config, params):
    half = shapes.config(compute_dtype="bfloat16")
    assert policy.init_cache(half, 2, 4).key.dtype == jnp.bfloat16
    samples = draw(half, params)
    np.testing.assert_allclose(samples.log_prob, recomputed(half, params, samples, 1.0), atol=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=0.0), "temperature must be positive, got 0.0; pass greedy=True"),
        (dict(temperature=-1.0), "temperature must be positive"),
        (dict(temperature=float("nan")), "temperature must be positive"),
        (dict(top_k=-1), "top_k must be in"),
        (dict(top_k=12), r"top_k must be in \[0, 11\]"),
        (dict(top_p=0.0), r"top_p must be in \(0, 1\]"),
        (dict(top_p=1.1), "top_p must be in"),
        (dict(max_new_tokens=0), "max_new_tokens must be at least 1"),
        (dict(eos_id=11), r"eos_id must be in \[0, 11\), got 11"),
        (dict(pad_id=-1), "pad_id must be in"),
    ],
)
def test_bad_options_are_refused(config, params, options, message):
    with pytest.raises(ValueError, match=message):
        draw(config, params, **options)


def test_bad_prompts_are_refused(config, params):
    tokens, mask = prompts(3)
    keys = jax.random.split(jax.random.key(0), 3)
    run = lambda *args: policy.sample(  # noqa: E731
        config, params, *args, max_new_tokens=2, eos_id=EOS, pad_id=PAD
    )
    with pytest.raises(ValueError, match="padded on the left and not empty; row 0"):
        run(tokens, mask[:, ::-1], keys)
    with pytest.raises(ValueError, match="row 1"):
        run(tokens, mask.at[1].set(False), keys)
    with pytest.raises(ValueError, match="must both be"):
        run(tokens, mask[:2], keys)
    with pytest.raises(ValueError, match="one typed PRNG key a row"):
        run(tokens, mask, keys[:2])
    with pytest.raises(ValueError, match="one typed PRNG key a row"):
        run(tokens, mask, jax.random.key_data(keys)[:, 0])
    with pytest.raises(ValueError, match="prompt_mask must be bool"):
        run(tokens, mask.astype(jnp.int32), keys)
