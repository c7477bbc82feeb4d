"""Token sequences carry the right labels, spans and ends."""

import pytest
from PIL import Image
from transformers import AutoProcessor

from hacl.data.templates import SequenceEncoder


def encoder(folder, **settings):
    defaults = dict(template="plain", prompt="describe the image", max_length=256, max_caption_length=64)
    return SequenceEncoder(AutoProcessor.from_pretrained(folder), **{**defaults, **settings})


def labelled_text(encoder, sequence):
    return encoder.tokenizer.decode([i for i, flag in zip(sequence.ids, sequence.is_label, strict=True) if flag])


def test_plain_sequence_is_bos_image_prompt_caption_eos_with_the_caption_as_label(tiny_model):
    plain = encoder(tiny_model)
    sequence = plain.caption_sequence("a red square")
    assert sequence.ids[0] == plain.tokenizer.bos_token_id and sequence.ids[-1] == plain.tokenizer.eos_token_id
    assert sequence.image_spans == [(1, 1 + plain.num_image_tokens)]
    assert set(sequence.ids[1 : 1 + plain.num_image_tokens]) == {plain.image_token_id}
    assert labelled_text(plain, sequence) == "a red square </s>"


def test_chat_sequence_equals_what_the_processor_itself_makes(tiny_model):
    chat = encoder(tiny_model, template="chat")
    sequence = chat.caption_sequence("a red square")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe the image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a red square"}]},
    ]
    text = chat.processor.apply_chat_template(messages)
    expected = chat.processor(text=text.rstrip(), images=Image.new("RGB", (48, 48)), add_special_tokens=False)
    expected = expected["input_ids"][0]
    bos = [chat.tokenizer.bos_token_id]
    assert sequence.ids == bos + list(expected)
    assert labelled_text(chat, sequence) == "a red square </s>"


def test_every_assistant_turn_is_a_label_and_no_user_turn_is(tiny_model):
    chat = encoder(tiny_model, template="chat")
    turns = [("user", "what colour ?"), ("assistant", "red"), ("user", "where is it ?"), ("assistant", "left")]
    assert labelled_text(chat, chat.conversation_sequence(turns)) == "red </s> left </s>"


def test_text_cut_by_the_length_limit_loses_its_end_but_an_image_is_never_cut(tiny_model):
    long = encoder(tiny_model, max_length=24)
    assert len(long.caption_sequence("a red square " * 20)) == 24
    short = encoder(tiny_model, max_length=3)
    with pytest.raises(ValueError, match="max_length=3 would cut an image"):
        short.caption_sequence("a red square")


def test_a_root_keeps_its_eos_when_cut_and_knows_its_text_span(tiny_model):
    cut = encoder(tiny_model, max_caption_length=6)
    ids = cut.root("a red square on the left")
    assert len(ids) == 6 and ids[-1] == cut.tokenizer.eos_token_id and ids[0] == cut.tokenizer.bos_token_id
    assert cut.root_span(ids, "last") == (5, 6)
    assert cut.root_span(ids, "mean") == (1, 5)


def test_the_strict_image_root_has_no_bos_and_ends_with_eos(tiny_model):
    strict = encoder(tiny_model).strict_image_root()
    assert len(strict) == strict.image_spans[0][1] + 1 and strict.image_spans[0][0] == 0


def test_a_sequence_without_an_answer_has_no_labels(tiny_model):
    for template in ("plain", "chat"):
        sequence = encoder(tiny_model, template=template).caption_sequence("a red square", answer=False)
        assert not any(sequence.is_label) and sequence.image_spans


# LLaVA-1.5's template as its transformers checkpoints have it, reduced: a blank after every answer and no EOS.
LLAVA15_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] + ' ' }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def byte_level(tiny_llava, tmp_path_factory):
    """The tiny processor with a byte-level BPE tokenizer, whose tokens carry their leading blank."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<image>"]
    corpus = ["USER: what colour ? ASSISTANT: a red square USER: where is it ? ASSISTANT: left "] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    stock = AutoProcessor.from_pretrained(tiny_llava)
    return LlavaProcessor(
        image_processor=stock.image_processor,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA15_TEMPLATE,
    )


def test_a_template_without_eos_gets_one_after_every_answer_and_labels_stop_there(byte_level):
    chat = SequenceEncoder(byte_level, template="chat", prompt="", max_length=256, max_caption_length=64)
    turns = [
        ("user", "<image>\nwhat colour ?"),
        ("assistant", "a red square"),
        ("user", "where is it ?"),
        ("assistant", "left"),
    ]
    sequence = chat.conversation_sequence(turns)
    assert labelled_text(chat, sequence) == " a red square</s> left</s>"
    text = chat.tokenizer.decode(sequence.ids)
    assert "a red square</s> USER: where" in text and text.endswith("left</s>")


def test_an_unknown_last_word_is_not_taken_for_the_end_of_an_answer(tiny_llava):
    """The unknown token is special too, and so are BOS and padding, but no template ends a turn with them."""
    processor = AutoProcessor.from_pretrained(tiny_llava)
    processor.chat_template = LLAVA15_TEMPLATE
    chat = SequenceEncoder(processor, template="chat", prompt="", max_length=256, max_caption_length=64)
    sequence = chat.conversation_sequence([("user", "what ?"), ("assistant", "a xylophone")])
    assert labelled_text(chat, sequence).split() == ["a", "<unk>", "</s>"]


def test_a_prompt_of_the_plain_template_is_apart_from_the_caption(byte_level):
    plain = SequenceEncoder(byte_level, template="plain", prompt="what is it", max_length=256, max_caption_length=64)
    assert "what is it\na red square</s>" in plain.tokenizer.decode(plain.caption_sequence("a red square").ids)
