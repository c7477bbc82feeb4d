"""Every attention implementation gives the same step, for sequences and trees; none is taken where it cannot run."""

import pytest
import torch
import torch.nn.functional as F
import transformers.modeling_flash_attention_utils as flash
from transformers import CONFIG_MAPPING, AutoProcessor

from hacl.data.packing import merge_prefixes
from hacl.models import attention
from hacl.models.attention_masks import block_mask, bucket_segments, dense_mask, sequence_bounds, subtree_ends
from hacl.models.exactness import check_decoder, obstacle
from hacl.training.objective import text_states
from tests.unit.test_forms import encoder_of, mixed
from tests.unit.test_packed_step import build, gradients

FORMS = {
    "in place": {},
    "strict": {"form": "strict"},
    "branch": {"form": "eos_branch"},
    "shared": {"form": "eos_branch", "share_prefixes": True},
    "shared images": {"share_prefixes": True, "likelihood_margin_weight": 0.5, "contrastive_weight": 0.0},
    "block": {"form": "eos_branch", "share_prefixes": True, "layer": 1},
}


def random_rows(seed, *, trees, rows=3, tokens=41):
    """Segment ids and subtree ends of rows with random sequences or tries and some padding, in odd sizes."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    segments = torch.zeros(rows, tokens, dtype=torch.long)
    ends = torch.arange(1, tokens + 1).repeat(rows, 1)
    for row in range(rows):
        column, segment = draw(0, 2), 0
        while True:
            count = draw(1, 5) if trees else 1
            tree = merge_prefixes([[draw(0, 2) for _ in range(draw(1, 9))] for _ in range(count)])
            if column + len(tree) > tokens - draw(0, 4):
                break
            segment += 1
            span = slice(column, column + len(tree))
            segments[row, span], ends[row, span] = segment, column + torch.tensor(tree.end)
            column += len(tree)
    return segments, ends


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize("slack", [0.0, 0.25, 1.0])
def test_buckets_hold_every_token_once_and_see_what_the_mask_sees(seed, trees, slack):
    segments, ends = random_rows(seed, trees=trees)
    if not trees:
        assert torch.equal(subtree_ends(segments), ends)
    mask = dense_mask(segments, ends if trees else None)[:, 0]
    plan = bucket_segments(segments, ends if trees else None, slack=slack)
    rows, tokens = segments.shape
    seen = torch.zeros(rows * tokens, rows * tokens, dtype=torch.bool)
    queries = torch.cat([bucket.queries.flatten() for bucket in plan.buckets])
    real = (segments > 0).flatten()
    assert torch.equal(queries[plan.slots[real]], real.nonzero().squeeze(-1)), "each output goes to its own token"
    assert len(plan.slots[real].unique()) == real.sum() and bool((plan.slots[~real] == len(queries)).all())
    taken = set(plan.slots[real].tolist())
    used = 0
    for bucket in plan.buckets:
        count, width = bucket.queries.shape
        visible = bucket.mask[:, 0] if bucket.mask is not None else torch.ones(count, width, width).tril().bool()
        for n in range(count):
            for q in range(width):
                if used + n * width + q in taken:
                    seen[bucket.queries[n, q], bucket.keys[n][visible[n, q]]] = True
        used += count * width
    expected = torch.block_diag(*mask).bool() & real[:, None]
    assert torch.equal(seen, expected)
    assert slack > 0.5 or plan.scores <= 4 * mask.sum()


@pytest.mark.parametrize("trees", [False, True])
def test_the_block_mask_sees_what_the_dense_mask_sees(trees):
    segments, ends = random_rows(1, trees=trees, tokens=150)
    found = block_mask(segments, ends if trees else None)
    rows, tokens = segments.shape
    row, query, key = torch.meshgrid(torch.arange(rows), torch.arange(tokens), torch.arange(tokens), indexing="ij")
    assert torch.equal(found.mask_mod(row, 0, query, key), dense_mask(segments, ends if trees else None)[:, 0])


def test_flash_attention_never_takes_trees_for_sequences():
    segments, ends = random_rows(0, trees=True)
    with pytest.raises(ValueError, match="independent sequences only"):
        attention.packed_attention("flash_attention_2", segments, ends, torch.float32)
    with pytest.raises(ValueError, match="packed rows need one of"):
        attention.packed_attention("paged", segments, None, torch.float32)


def test_sequence_bounds_cut_rows_at_sequences_and_padding():
    bounds, longest = sequence_bounds(torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]]))
    assert bounds.tolist() == [0, 2, 5, 6, 10, 12] and bounds.dtype == torch.int32 and longest == 4


def step(folder, images, implementation, dtype=torch.float64, **settings):
    records = mixed(images)
    settings = {"num_hallucinated": 3, "learn_temperature": True, **settings}
    model, _, batch = build(folder, images, records, template="chat", dtype=dtype, **settings)
    attention.set_attention(model.adapter.decoder, implementation)
    return model, batch


def assert_equal_steps(found, expected, rtol):
    (loss, grads), (expected_loss, expected_grads) = found, expected
    assert loss == pytest.approx(expected_loss, rel=rtol)
    scale = max(grad.abs().max() for grad in expected_grads.values())
    assert grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        difference = (grads[name] - grad).norm() / max(grad.norm(), scale * 1e-3)
        assert difference < rtol, f"{name}: relative difference {difference:.2e}"


def taken(model, batch):
    loss = model(**batch).loss
    return loss.item(), gradients(model, loss)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("implementation", "rtol"), [("segments", 1e-9), ("eager", 1e-6)])
def test_implementations_agree_on_every_form_in_loss_and_gradient(
    tiny_llava, tmp_path, monkeypatch, implementation, rtol, form
):
    monkeypatch.setattr(attention, "SHORT_ROW", 0)
    calls = []
    bucketed = attention.bucket_segments
    monkeypatch.setattr(attention, "bucket_segments", lambda *a: calls.append(1) or bucketed(*a))
    expected = taken(*step(tiny_llava, tmp_path, "sdpa", **FORMS[form]))
    model, batch = step(tiny_llava, tmp_path, implementation, **FORMS[form])
    found = taken(model, batch)
    assert calls == [1] * (implementation == "segments"), "eager's softmax is in fp32, segments makes its plan once"
    assert_equal_steps(found, expected, rtol)


def test_segments_recompute_in_the_backward_pass(tiny_llava, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "SHORT_ROW", 0)
    expected = taken(*step(tiny_llava, tmp_path, "sdpa", **FORMS["shared"]))
    model, batch = step(tiny_llava, tmp_path, "segments", **FORMS["shared"])
    model.gradient_checkpointing_enable()
    assert_equal_steps(taken(model, batch), expected, 1e-9)


def test_no_attention_call_of_segments_is_as_wide_as_a_row(tiny_llava, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "SHORT_ROW", 0)
    model, batch = step(tiny_llava, tmp_path, "segments")
    shapes = []
    plain = attention.sdpa_attention_forward

    def watched(module, query, key, value, mask, **options):
        shapes.append((*query.shape[::2], mask is None))
        return plain(module, query, key, value, mask, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    model(**batch)
    rows, tokens = batch["segment_ids"].shape
    assert all(is_causal for *_, is_causal in shapes), "sequences that do not branch need no mask"
    assert sum(n * t * t for n, t, _ in shapes) < model.adapter.num_layers * rows * tokens**2


def test_short_rows_take_one_dense_mask_and_plain_rows_none(tiny_llava, tmp_path):
    model, batch = step(tiny_llava, tmp_path, "segments")
    segments = batch["segment_ids"]
    assert segments.shape[1] <= attention.SHORT_ROW
    found = attention.packed_attention("segments", segments, None, torch.float64)
    assert torch.equal(found["attention_mask"], dense_mask(segments))
    for name in ("sdpa", "eager", "segments", "flex_attention", "flash_attention_2"):
        plain = attention.packed_attention(name, (segments > 0).long(), None, torch.float64)
        assert plain == {"attention_mask": None}


def test_generation_with_segments_is_that_of_sdpa(tiny_llava):
    from transformers import AutoModelForImageTextToText

    processor = AutoProcessor.from_pretrained(tiny_llava)
    inputs = processor.tokenizer(["what colour", "a large red square on the"], return_tensors="pt", padding=True)
    replies = []
    for name in ("sdpa", "segments"):
        model = AutoModelForImageTextToText.from_pretrained(tiny_llava).eval()
        attention.set_attention(model.model.language_model, name)
        replies.append(model.generate(**inputs, max_new_tokens=6, do_sample=False))
    assert torch.equal(*replies), "left padding stays masked"


@pytest.mark.parametrize("form", FORMS)
def test_flex_attention_agrees_on_every_form_in_the_forward_pass(tiny_llava, tmp_path, form):
    losses = []
    for name in ("sdpa", "flex_attention"):
        model, batch = step(tiny_llava, tmp_path, name, **FORMS[form])
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            losses.append(model(**batch).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def sequence_by_sequence(query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
    """The slow twin of a variable-length kernel: (tokens, heads, width) in, every sequence by itself."""
    assert options["causal"] and torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    parts, repeats = [], query.shape[1] // key.shape[1]
    for start, stop in zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:], strict=False):
        states = (query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1))
        one = (states[start:stop].transpose(0, 1)[None] for states in states)
        parts.append(F.scaled_dot_product_attention(*one, is_causal=True, scale=options["softmax_scale"])[0])
    return torch.cat([part.transpose(0, 1) for part in parts])


@pytest.mark.parametrize("form", ["in place", "strict"])
def test_flash_attention_is_given_the_bounds_of_every_sequence(tiny_llava, tmp_path, monkeypatch, form):
    expected = taken(*step(tiny_llava, tmp_path, "sdpa", **FORMS[form]))
    model, batch = step(tiny_llava, tmp_path, "sdpa", **FORMS[form])
    functions = (None, sequence_by_sequence, None, None, None)
    arguments = flash._lazy_define_process_function(sequence_by_sequence_signature)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *a, **k: (functions, (arguments, None)))
    model.adapter.decoder.config._attn_implementation = "flash_attention_2"
    assert_equal_steps(taken(model, batch), expected, 1e-9)


def test_states_of_texts_need_no_flash_kernel_and_leave_the_choice_as_it_was(tiny_llava, tmp_path, monkeypatch):
    """A run in mixed precision keeps fp32 weights, in whose dtype caches are made; flash attention takes none of it."""

    def refuse(*arguments, **options):
        raise ImportError("a flash kernel was asked for")

    model, _ = step(tiny_llava, tmp_path, "sdpa")
    encoder, roots = encoder_of(tiny_llava), [[1, 7, 9, 2], [1, 8, 2]]
    expected = text_states(model, roots, encoder=encoder)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", refuse)
    model.adapter.decoder.config._attn_implementation = "flash_attention_2"
    assert torch.equal(text_states(model, roots, encoder=encoder), expected)
    assert model.adapter.decoder.config._attn_implementation == "flash_attention_2"


def sequence_by_sequence_signature(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal
):
    """The arguments that a flash kernel declares, which is how transformers decides what to hand over."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("implementation", ["segments", "flex_attention", "flash_attention_2"])
def test_implementations_agree_on_a_gpu(tiny_llava, tmp_path, monkeypatch, implementation, form):
    if implementation == "flash_attention_2":
        pytest.importorskip("flash_attn")
    trees = form in ("branch", "shared", "shared images", "block")
    if implementation == "flash_attention_2" and trees:
        pytest.skip("no trees")
    monkeypatch.setattr(attention, "SHORT_ROW", 0)
    dtype, rtol = (torch.bfloat16, 3e-2) if implementation == "flash_attention_2" else (torch.float32, 1e-3)
    results = []
    for name in ("sdpa", implementation):
        model, batch = step(tiny_llava, tmp_path, name, dtype=dtype, **FORMS[form])
        results.append(taken(model.cuda(), {key: value.cuda() for key, value in batch.items()}))
    assert_equal_steps(results[1], results[0], rtol)


def test_auto_chooses_by_device_and_form():
    assert attention.resolve("auto", trees=False, dtype=torch.float32, device="cpu") == "segments"
    assert attention.resolve("auto", trees=True, dtype=torch.bfloat16, device="cuda") == "flex_attention"
    assert attention.resolve("auto", trees=False, dtype=torch.float32, device="cuda") == "sdpa"
    assert attention.resolve("sdpa", trees=True, dtype=torch.float32, device="cuda") == "sdpa"


@pytest.mark.parametrize(
    ("asked", "trees", "device", "reason"),
    [
        ("flash_attention_2", True, "cuda", "objective.form=eos_branch.*model.attn_implementation=flex_attention"),
        ("flash_attention_2", False, "cuda", "pip install flash-attn"),
        ("flash_attention_2", False, "cpu", "needs a CUDA GPU"),
        ("flex_attention", True, "cpu", "no backward pass on a CPU"),
    ],
)
def test_what_cannot_run_is_refused_with_the_fix(asked, trees, device, reason):
    with pytest.raises(ValueError, match=reason):
        attention.resolve(asked, trees=trees, dtype=torch.bfloat16, device=device)


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
FACTORS = {"short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
LONGROPE = {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS}}


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("qwen3_next", {}, "linear_attention layers"),
        ("recurrent_gemma", {}, "carry a state along the row"),
        ("mistral", {"sliding_window": 64}, "data.max_length and data.max_caption_length to 63"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}, "caption_length to 31"),
        ("llama", DYNAMIC | {"max_position_embeddings": 99}, "data.max_length and data.max_caption_length to 98"),
        ("phi3", LONGROPE | {"original_max_position_embeddings": 99}, "rotary frequencies.*caption_length to 98"),
        ("qwen2_5_vl_text", {"rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default"}}, "rotary"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "both directions"),
    ],
)
def test_decoders_for_which_packing_is_not_exact_are_refused(kind, settings, reason):
    config = CONFIG_MAPPING[kind](**settings)
    with pytest.raises(ValueError, match=reason):
        check_decoder(config, longest=100, trees=True)


def test_decoders_for_which_packing_is_exact_are_accepted():
    for kind in ("llama", "qwen2", "qwen3", "mistral", "gemma2", "smollm3"):
        assert obstacle(CONFIG_MAPPING[kind](), longest=2049) is None
    prefixes = CONFIG_MAPPING["gemma"](use_bidirectional_attention=True)
    assert "both directions" in obstacle(prefixes, longest=9) and obstacle(prefixes, longest=9, own_masks=True) is None
    windows = CONFIG_MAPPING["gemma3_text"](sliding_window=8)
    assert "window of 8" in obstacle(windows, longest=9) and obstacle(windows, longest=9, own_masks=True) is None
    chunks = CONFIG_MAPPING["llama4_text"](attention_chunk_size=8)
    assert "window of 8" in obstacle(chunks, longest=9, own_masks=True), "an adapter gives no chunks"
    assert obstacle(CONFIG_MAPPING["mistral"](sliding_window=100), longest=100) is None
    assert obstacle(CONFIG_MAPPING["mistral"](sliding_window=99), longest=100) is not None
    assert obstacle(CONFIG_MAPPING["llama"](**DYNAMIC, max_position_embeddings=100), longest=100) is None
    assert obstacle(CONFIG_MAPPING["phi3"](**LONGROPE, original_max_position_embeddings=100), longest=100) is None
    learnt = CONFIG_MAPPING["opt"](max_position_embeddings=100)
    assert obstacle(learnt, longest=100) is None and "caption_length to 99" in obstacle(learnt, longest=101)
    rounded = obstacle(CONFIG_MAPPING["llama"](**DYNAMIC, max_position_embeddings=100), longest=100, multiple=64)
    assert "caption_length to 63" in rounded, "rows of 64 tokens are within, those of 128 are not"


def test_frequencies_that_depend_on_the_longest_position_are_those_of_a_sequence_by_itself_within_the_limit():
    """Rows are longer than any sequence in them; padding must have no position beyond a sequence's."""
    from transformers import LlamaModel

    config = CONFIG_MAPPING["llama"](
        **DYNAMIC, max_position_embeddings=12, hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=4,
        num_attention_heads=2,
    )  # fmt: skip
    frequencies = LlamaModel(config).rotary_emb
    x = torch.zeros(1, 1, 8)
    alone = frequencies(x, torch.arange(12)[None])[0]
    packed_positions = torch.cat([torch.arange(12), torch.arange(7), torch.full((5,), 11)])[None]
    assert torch.equal(frequencies(x, packed_positions)[0][:, :12], alone)
    assert not torch.equal(frequencies(x, torch.arange(24)[None])[0][:, :12], alone), "what is refused is wrong"


def test_padding_has_no_position_beyond_those_of_sequences(tiny_llava, tmp_path):
    *_, batch = build(tiny_llava, tmp_path, mixed(tmp_path), template="chat")
    segments, positions = batch["segment_ids"], batch["position_ids"]
    longest = int(positions[segments > 0].max())
    assert segments.shape[1] > longest + 1 and bool((segments == 0).any()), "short sequences ride beside long ones"
    assert int(positions.max()) == longest
