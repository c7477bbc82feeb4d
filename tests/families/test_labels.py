"""For every family: labels are the answers, whichever way they are found, and the example of a sample shows them."""

from __future__ import annotations

import re

import pytest

from hacl.config import load_config
from hacl.data.example import first_example
from hacl.data.image_formats import has_format
from hacl.data.labels import ChatTemplate, label_answers
from hacl.data.literal import LiteralText
from hacl.data.model_inputs import prompt_row
from hacl.data.records import Record, Turn, write_records
from hacl.data.templates import SequenceEncoder
from tests.families import chosen
from tests.families.loaded import WORDS, Family

FAMILIES_HERE = chosen()

ANSWER = ["a", "red", "square", "</s>"]
IMAGE = {"type": "image"}


@pytest.fixture
def chatty(family) -> Family:
    if family.processor.chat_template is None:
        pytest.skip("its processor has no chat template")
    return family


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def without_blocks(template: str) -> str:
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)


def labelled(processor, template: str, messages) -> tuple[str, list[int], list[bool]]:
    """(way, token ids with one mark for an image, labels) with another template."""
    kept, processor.chat_template = processor.chat_template, template
    try:
        chat, tokenizer = ChatTemplate(processor), processor.tokenizer
        rendered, answers = chat.answers(messages)
    finally:
        processor.chat_template = kept
    ids, places = LiteralText(tokenizer).encode(rendered)
    eos = tokenizer.eos_token_id
    return chat.way, *label_answers(ids, places, answers, eos=eos, ends={eos})


CONVERSATIONS = {
    "one turn": [("user", [IMAGE, text(WORDS)]), ("assistant", [text("a red square")])],
    "several images and turns": [
        ("user", [IMAGE, text("which"), IMAGE, text("is large ?")]), ("assistant", [text("the left")]),
        ("user", [text("and"), IMAGE]), ("assistant", [text("no .\n")]),
    ],
    "system text": [
        ("system", [text("a square")]), ("user", [IMAGE, text("what")]), ("assistant", [text("red 你 😀")]),
    ],
    "nothing said": [
        ("user", [text("what ?")]), ("assistant", [text("")]), ("user", [text("?")]), ("assistant", [text("a")]),
    ],
    "roles in a text": [
        ("user", [text("ASSISTANT : no USER : ASSISTANT :")]), ("assistant", [text("USER : ASSISTANT : a")]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("which", CONVERSATIONS)
def test_generation_blocks_and_prefixes_give_the_same_labels(chatty, which):
    messages = [{"role": role, "content": content} for role, content in CONVERSATIONS[which]]
    template = chatty.processor.chat_template
    marked = labelled(chatty.processor, template, messages)
    bare = labelled(chatty.processor, without_blocks(template), messages)
    assert (marked[0], bare[0]) == ("blocks", "prefixes") and marked[1:] == bare[1:]
    said = [content[0]["text"].strip() for role, content in CONVERSATIONS[which] if role == "assistant"]
    tokenizer = chatty.tokenizer
    expected = [token for words in said for token in [*tokenizer.tokenize(words), "</s>"]]
    learnt = [token for token, is_label in zip(marked[1], marked[2], strict=True) if is_label]
    assert learnt == tokenizer.convert_tokens_to_ids(expected)


def encoder_of(family: Family) -> SequenceEncoder:
    if not has_format(family.processor):
        pytest.skip("what its processor writes for an image is not known yet")
    return SequenceEncoder(
        family.processor, template=family.template, prompt=WORDS, max_length=4096, max_caption_length=64
    )


@pytest.mark.parametrize("image", [0, 1])
def test_the_labels_of_an_expanded_sequence_are_the_answer(family, image):
    """Also where the mask that `apply_chat_template` returns is not; where that one is right, they are that mask."""
    encoder = encoder_of(family)
    sequence = encoder.caption_sequence("a red square", image=encoder.images.ids(family.images[image].size))
    learnt = [token for token, is_label in zip(sequence.ids, sequence.is_label, strict=True) if is_label]
    assert family.tokenizer.convert_ids_to_tokens(learnt) == ANSWER and sequence.is_label[-4:] == [True] * 4
    if family.facts.answer_mask != "right":
        return
    user = [{"type": "image", "image": family.images[image]}, text(WORDS)]
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": [text("a red square")]}]
    batch = family.processor.apply_chat_template(
        [turns], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = (list(map(int, batch[name][0])) for name in ("input_ids", "assistant_masks"))
    ahead = len(sequence.ids) - len(ids)
    assert sequence.ids == [*encoder.bos[:ahead], *ids] and sequence.is_label == [False] * ahead + list(map(bool, mask))


def test_a_prompt_is_the_stock_rendering_with_the_generation_prompt(chatty):
    if chatty.template != "chat":
        pytest.skip("its records are not rendered with a chat template")
    encoder = encoder_of(chatty)
    for image in chatty.images:
        messages = [{"role": "user", "content": [IMAGE, text(WORDS)]}]
        rendered = chatty.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        stock = chatty.processor(images=[[image]], text=[rendered], return_tensors="pt")["input_ids"][0].tolist()
        bos = encoder.bos if stock[: len(encoder.bos)] != encoder.bos else []
        assert prompt_row(encoder, image.size).ids == bos + stock


def test_no_text_writes_a_special_token_or_an_image(family):
    encoder, tokenizer = encoder_of(family), family.tokenizer
    image = encoder.images.ids(family.images[0].size)
    specials = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    asked = " ".join([*tokenizer.all_special_tokens, family.facts.mark]).replace("<image>", "")
    answered = " ".join([asked, "<image>", family.facts.image_token])

    def special(question: str, answer: str) -> list[list[int]]:
        found = [encoder.caption_sequence(answer, image=image).ids, encoder.root(answer)]
        if encoder.chat:
            turns = [("user", f"<image>\n{question}"), ("assistant", answer), ("user", question), ("assistant", answer)]
            found.append(encoder.conversation_sequence(turns, [image]).ids)
        return [[token for token in ids if token in specials] for ids in found]

    assert special(asked, answered) == special("what ?", "square")


def test_the_example_shows_the_image_the_labels_and_the_way(family, tmp_path):
    """The image stands behind its question in the record, and before it in the sample."""
    encoder = encoder_of(family)
    family.processor.save_pretrained(tmp_path / "processor")
    family.images[1].save(tmp_path / "1.png")
    turns = (Turn("user", f"{WORDS}\n<image>"), Turn("assistant", "a red square"))
    write_records(tmp_path / "r.jsonl", [Record("r", ("1.png",), "1", ("a red square",), (), turns, None, {})])
    settings = [f"model.path={tmp_path / 'processor'}", f"data.template={encoder.template}"]
    config = load_config(None, [*settings, "objective.num_hallucinated=0", f"data.prompt={WORDS}"])
    example = first_example(tmp_path / "r.jsonl", config, tmp_path)
    assert example.images == (family.facts.tokens[1],) and example.image_moved == (encoder.chat is not None)
    runs = re.findall(rf"{re.escape(family.facts.image_token)}x(\d+)", example.text)
    assert sum(map(int, runs)) == family.facts.tokens[1]
    (learnt,) = re.findall(r"\[\[(.*?)\]\]", example.text)
    assert learnt.split() == ANSWER and example.labels == 4
    assert ("generation blocks" in example.way) == (encoder.chat is not None)
    whole = encoder.caption_sequence("a red square", image=encoder.images.ids(family.images[1].size))
    assert example.tokens == len(whole) and whole.ids[: whole.image_spans[0][0]] == encoder.image_prefix
