"""Answers, verdicts and references that scorers and judges read, under the names that the documents use."""

from __future__ import annotations

from pathlib import Path

from tests.commands.world import COUNT, NAME, captions, facts, objects, pope_questions, write_json, write_lines


def caption_answers(path: Path) -> None:
    """A caption of every picture, with the pictures' numbers and names."""
    rows = [{"image_id": n, "image": NAME.format(n), "caption": captions(n)[1]} for n in range(COUNT)]
    write_lines(path, rows)


def pope_answers(path: Path) -> None:
    write_lines(path, [{"question_id": row["question_id"], "answer": "Yes"} for row in pope_questions()])


def replies(path: Path) -> None:
    """Replies that a scorer of safety or of creative texts reads."""
    rows = [{"id": n, "scenario": "10-Legal_Opinion", "image_id": n, "image": NAME.format(n)} for n in range(COUNT)]
    write_lines(path, [row | {"response": f"dog, cat, cup, {facts(row['id'])[1]}, car, bird, clock"} for row in rows])


def verdicts(path: Path) -> None:
    """What a judge said on safety and deferral."""
    rows = [{"id": n, "unsafe_probability": n / COUNT, "deferral": bool(n % 2)} for n in range(COUNT)]
    write_lines(path, rows)


def preferences(path: Path) -> None:
    """What a judge said on two replies, in both orders."""
    orders = {"reference_first": "B>A", "candidate_first": "A>>B"}
    write_lines(path, [{"id": n, "order": o, "verdict": v} for n in range(COUNT) for o, v in orders.items()])


def mmhal_answers(path: Path) -> None:
    rows = [{"index": n, "question": "What?", "gt_answer": "a dog", "image_content": ["dog"]} for n in range(96)]
    write_lines(path, [row | {"model_answer": "a dog and a cup"} for row in rows])


def mmhal_reviews(path: Path) -> None:
    write_lines(path, [{"index": n, "review": f"Nothing is invented. Rating: {n % 7}"} for n in range(96)])


def mme_answers(path: Path) -> None:
    rows = [
        {"category": "existence", "question_id": f"{n}.png", "question": f"q{answer}", "answer": answer}
        for n in range(4)
        for answer in ("Yes", "No")
    ]
    write_lines(path, [row | {"prediction": "Yes"} for row in rows])


def sugarcrepe_scores(path: Path) -> None:
    rows = [{"subset": "replace_obj", "index": n, "pos_score": -1.0, "neg_score": -1.0 - n % 2} for n in range(8)]
    write_lines(path, rows)


def amber(folder: Path) -> None:
    """The three files of AMBER, on captions alone."""
    rows = [
        {"id": n + 1, "type": "generative", "truth": objects(n)[:2], "hallu": [objects(n)[2]]} for n in range(COUNT)
    ]
    write_json(folder / "annotations.json", rows)
    write_json(folder / "relation.json", {name: [] for n in range(COUNT) for name in objects(n)})
    folder.joinpath("safe_words.txt").write_text("light\n", encoding="utf-8")


def amber_answers(path: Path) -> None:
    write_json(path, [{"id": n + 1, "response": captions(n)[1]} for n in range(COUNT)])


def amber_nouns(path: Path) -> None:
    write_lines(path, [{"id": n + 1, "nouns": objects(n)} for n in range(COUNT)])


def similarities(path: Path) -> None:
    write_json(path, {"dog|cat": 0.5})


def creation(path: Path) -> None:
    """Prompts that a steered model answers and a judge reads."""
    rows = [{"id": f"q{n}", "prompt": f"what is near the {facts(n)[1]} ?", "image": NAME.format(n)} for n in range(4)]
    write_lines(path, [row | {"question": row["prompt"], "reference": captions(0)[0]} for row in rows])


def run_file(path: Path) -> None:
    """A configuration that leaves all to the command line."""
    path.write_text("train:\n  output_dir: runs/checked\n", encoding="utf-8")
