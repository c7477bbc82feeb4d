"""Promises of streamed sources: every record once per epoch, shared by ranks and workers, resumed exactly."""

import json

import pytest

from hacl.data.hub_source import HubSource
from hacl.data.json_stream import iter_json_list, iter_json_members
from hacl.data.parquet import write_parquet
from hacl.data.records import RecordError, parse_record, read_records, write_records
from hacl.data.sources import Limited, open_source
from hacl.data.stream import RecordStream
from hacl.data.webdataset import write_shards

COUNT = 103


def records(count=COUNT):
    rows = []
    for n in range(count):
        row = {"id": f"r{n}", "image": f"{n}.jpg", "image_id": str(n), "captions": [f"größe {n} 犬", "b"], "note": [n]}
        if n % 2:
            row["objects"] = {"dog": n, "red bus": 1}
            row["hallucinated"] = [{"text": "a cat", "type": "object", "span": [2, 5], "of": 0}, {"text": "x"}]
        if n % 3 == 0:
            row["conversations"] = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "a"}]
        rows.append(parse_record(row, where="f"))
    return rows


@pytest.fixture(params=["jsonl", "crlf", "json", "parquet", "two files", "shards"])
def source(request, tmp_path, monkeypatch):
    made = records()
    if request.param == "parquet":
        monkeypatch.setattr("hacl.data.parquet.GROUP", 10)
        assert write_parquet(tmp_path / "x.parquet", made) == COUNT
        return open_source(str(tmp_path / "x.parquet"))
    if request.param == "two files":
        write_records(tmp_path / "a.jsonl", made[:40])
        write_records(tmp_path / "b.json", made[40:])
        return open_source([str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")])
    if request.param == "shards":
        for row in made:
            (tmp_path / row.images[0]).write_bytes(row.id.encode())
        write_shards(tmp_path / "x.tar", made, tmp_path, per_shard=40)
        return open_source(sorted(map(str, tmp_path.glob("x-*.tar"))))
    path = tmp_path / f"x.{'json' if request.param == 'json' else 'jsonl'}"
    write_records(path, made)
    if request.param == "crlf":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    return open_source(str(path))


def test_every_source_gives_all_records_from_any_row_on(source):
    assert list(source.records()) == records()
    for start in (1, 39, 40, 41, 102, 103):
        assert [r.id for r in source.records(start)] == [f"r{n}" for n in range(start, COUNT)]


def stream(source, rank=0, ranks=1, **options):
    return RecordStream(source, **{"batch_size": 4, "seed": 7, "rank": rank, "ranks": ranks, "block": 16, **options})


def ids(batches):
    return [[record.id for record in batch] for batch in batches]


def test_ranks_share_each_global_batch_and_leave_out_only_an_incomplete_last_one(source):
    per_rank = [ids(stream(source, rank, 3).batches()) for rank in range(3)]
    assert {len(part) for part in per_rank} == {COUNT // 12}
    seen = [name for part in per_rank for batch in part for name in batch]
    assert len(seen) == len(set(seen)) == COUNT // 12 * 12
    together = ids(stream(source, batch_size=12).batches())
    assert [sorted(a + b + c) for a, b, c in zip(*per_rank, strict=True)] == [sorted(batch) for batch in together]


@pytest.mark.parametrize("workers", [2, 3, 30])
def test_batches_do_not_depend_on_the_number_of_workers(source, workers):
    alone = ids(stream(source).batches())
    parts = [ids(stream(source).batches(worker, workers)) for worker in range(workers)]
    turns = [parts[n % workers][n // workers] for n in range(len(alone))]
    assert turns == alone


@pytest.mark.parametrize("stop", [0, 1, 4, 9, 25])
def test_a_stream_goes_on_exactly_where_it_was_left(source, stop):
    whole = stream(source)
    expected = ids(whole) + ids(whole)
    first = stream(source)
    taken = []
    batches = iter(first)
    for _ in range(stop):
        taken.append([record.id for record in next(batches)])
    state = json.loads(json.dumps(first.state_dict()))
    second = stream(source)
    second.load_state_dict(state)
    assert taken + ids(second) + ids(second) == expected


def test_workers_go_on_after_the_batch_that_was_left(source):
    whole = ids(stream(source).batches())
    parts = []
    for worker in range(3):
        left = stream(source)
        left.load_state_dict({**left.state_dict(), "start": 5})
        parts.append(ids(left.batches(worker, 3)))
    assert [parts[n % 3][n // 3] for n in range(len(whole) - 5)] == whole[5:]


def test_epochs_differ_in_order_and_hold_the_same(source):
    made = stream(source, batch_size=1)
    first, second = ids(made), ids(made)
    assert first != second and sorted(first) == sorted(second) and made.epoch == 2
    assert ids(stream(source, batch_size=1, seed=None)) == [[f"r{n}"] for n in range(COUNT)]


def test_a_place_in_another_source_or_in_other_batches_is_refused(tmp_path):
    for name in ("a", "b"):
        write_records(tmp_path / f"{name}.jsonl", records(9 if name == "a" else 8))
    state = stream(open_source(str(tmp_path / "a.jsonl"))).state_dict()
    with pytest.raises(ValueError, match="another source"):
        stream(open_source(str(tmp_path / "b.jsonl"))).load_state_dict(state)
    with pytest.raises(ValueError, match="another batch_size"):
        stream(open_source(str(tmp_path / "a.jsonl")), batch_size=3).load_state_dict(state)


def test_fewer_records_than_a_batch_are_one_batch_and_none_are_none(tmp_path):
    write_records(tmp_path / "few.jsonl", records(3))
    (tmp_path / "none.jsonl").write_text("\n\n")
    assert len(ids(stream(open_source(str(tmp_path / "few.jsonl"))).batches())) == 1
    assert ids(stream(open_source(str(tmp_path / "none.jsonl"))).batches()) == []
    with pytest.raises(ValueError, match="3 records cannot be shared by 4"):
        list(stream(open_source(str(tmp_path / "few.jsonl")), 0, 4).batches())


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        open_source(str(tmp_path / "none.jsonl"))
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(RecordError, match=r"x\.parquet"):
        open_source(str(tmp_path / "x.parquet"))
    (tmp_path / "x.jsonl").write_text('{"captions": ["a"]}\n{"cut')
    with pytest.raises(RecordError, match=r"x\.jsonl:2"):
        list(open_source(str(tmp_path / "x.jsonl")).records())
    with pytest.raises(ValueError, match="unknown branch"):
        open_source("hub:a/b?branch=main")
    for name in ("hub:../up", "hub:/etc", "hub:a/b/c", "hub:tests"):
        with pytest.raises(ValueError, match="no name on the Hub"):
            open_source(name)


def test_a_hub_source_is_streamed_from_a_row_on_with_its_columns_renamed(tmp_path, monkeypatch):
    from datasets import IterableDataset

    rows = [{"sentence": f"a dog {n}", "picture": f"{n}.jpg", "objects": None} for n in range(5)]
    asked = []

    def load(name, config, **options):
        asked.append((name, config, options))
        return IterableDataset.from_generator(lambda: iter(rows))

    monkeypatch.setattr("datasets.load_dataset", load)
    source = open_source("hub:someone/captions?split=val&revision=abc&columns=captions:sentence,image:picture")
    assert isinstance(source, HubSource)
    assert [(r.captions, r.images) for r in source.records(3)] == [((f"a dog {n}",), (f"{n}.jpg",)) for n in (3, 4)]
    assert asked == [("someone/captions", None, {"split": "val", "revision": "abc", "streaming": True})]


def test_a_hub_source_gives_the_images_its_table_holds(monkeypatch):
    from datasets import Dataset, Features, Image, Value

    files = [{"bytes": f"image {n}".encode(), "path": None} for n in range(3)]
    table = Dataset.from_dict(
        {"caption": [f"a dog {n}" for n in range(3)], "image": files},
        features=Features({"caption": Value("string"), "image": Image()}),
    )
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: table.to_iterable_dataset())
    source = open_source("hub:someone/pictures")
    rows = [(source.decode(where, row).images, source.pictures(row)) for where, row in source.rows(1)]
    assert rows == [((f"row-{n}",), {f"row-{n}": f"image {n}".encode()}) for n in (1, 2)] and source.holds_images


def test_images_of_two_sources_under_one_name_are_not_confused(tmp_path, tiny_llava):
    from PIL import Image

    from hacl.config import load_config
    from hacl.data.dataset import TrainingDataset
    from hacl.data.stream_dataset import StreamDataset
    from hacl.training.build import build_encoder, load_processor

    row = parse_record({"image": "a.png", "captions": ["a"]}, where="f")
    for name, colour in (("x", "black"), ("y", "white")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / "a.png")
        write_shards(tmp_path / name / "s.tar", [row], tmp_path)
    config = load_config(None, [f"model.path={tiny_llava}"])
    samples = TrainingDataset(
        [],
        build_encoder(load_processor(config.model), config.data),
        image_root=None,
        objective=config.objective,
        seed=0,
    )
    made = stream(open_source([str(tmp_path / name / "s-000000.tar") for name in "xy"]), batch_size=2, seed=None)
    black, white = StreamDataset(made, samples, 1).__getitems__([0])
    assert black.pixels[0]["pixel_values"].max() < 0 < white.pixels[0]["pixel_values"].min()


class Names:
    """Stands for the data set that makes samples: the id of a record alone."""

    def set_epoch(self, epoch):
        pass

    def sample(self, index, record, held):
        return record.id


def test_workers_share_a_hub_source_that_would_divide_itself_among_them(monkeypatch):
    from datasets import Dataset
    from torch.utils.data import DataLoader

    from hacl.data.stream_dataset import StreamDataset

    table = Dataset.from_dict({"id": [str(n) for n in range(COUNT)], "captions": [["a dog"]] * COUNT})
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: table.to_iterable_dataset(num_shards=4))

    def read(workers):
        made = StreamDataset(stream(open_source("hub:someone/captions")), Names(), None)
        return list(DataLoader(made, batch_sampler=[[n] for n in range(60)], num_workers=workers, collate_fn=list))

    alone = read(0)
    assert read(2) == alone
    assert len({name for batch in alone[:25] for name in batch}) == 100, "an epoch, no record twice"


def test_shards_give_the_images_of_each_record_and_are_told_apart(tmp_path):
    made = records(5)
    for row in made:
        (tmp_path / row.images[0]).write_bytes(b"\0" * 3000 + row.id.encode())
    write_shards(tmp_path / "x.tar", made, tmp_path)
    source = open_source(str(tmp_path / "x-000000.tar"))
    found = [source.pictures(row) for _, row in source.rows()]
    assert found == [{row.images[0]: b"\0" * 3000 + row.id.encode()} for row in made] and source.holds_images
    write_shards(tmp_path / "y.tar", made[::-1], tmp_path)
    assert open_source(str(tmp_path / "y-000000.tar")).fingerprint() != source.fingerprint()
    with pytest.raises(FileNotFoundError, match="no such shard"):
        open_source(str(tmp_path / "none.tar"))


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
def test_json_is_read_piece_by_piece_as_a_whole_read_would(tmp_path, monkeypatch, block):
    monkeypatch.setattr("hacl.data.json_stream.BLOCK", block)
    content = [{"a": "ü犬\\u2028]", "b": [1.5e3, None, {}]}, 12, "x,]", [], True, -0.5]
    path = tmp_path / "x.json"
    for indent in (None, 2):
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content, indent=indent, ensure_ascii=False).encode() + b" \n")
        assert list(iter_json_list(path)) == content
    members = {"info": {"n": 1}, "images": content, "none": [], "x": 17}
    path.write_text(json.dumps(members))
    assert list(iter_json_members(path)) == [("info", {"n": 1}), *(("images", item) for item in content), ("x", 17)]
    for broken in ("[1, 2", "[1 2]", "[1,]", "[1] 2", '["\\x"]', ""):
        path.write_text(broken)
        with pytest.raises(json.JSONDecodeError):
            list(iter_json_list(path))


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_samples_depend_on_their_number_alone(tmp_path, tiny_llava, workers, known):
    """Three epochs in a row, two loaders that begin elsewhere, and single batches in any order; captions are drawn per
    epoch as from records in memory."""
    from torch.utils.data import DataLoader

    from hacl.config import load_config
    from hacl.data.dataset import TrainingDataset
    from hacl.data.stream_dataset import StreamDataset
    from hacl.training.build import build_encoder, load_processor
    from tests.tiny import write_tiny_records

    path = write_tiny_records(tmp_path, 22)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["captions"] += [f"{row['captions'][0]} {word}" for word in ("there", "here")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(None, [f"model.path={tiny_llava}"])
    encoder = build_encoder(load_processor(config.model), config.data)

    def samples_of(rows):
        return TrainingDataset(rows, encoder, image_root=tmp_path, objective=config.objective, seed=0)

    def dataset():
        samples = samples_of([])
        made = stream(open_source(str(path)))
        return StreamDataset(made, samples, made.batches_per_epoch() if known else None)

    def read(numbers):
        loader = DataLoader(dataset(), batch_sampler=[[n] for n in numbers], num_workers=workers, collate_fn=list)
        return [
            [(s.record_id, tuple(s.caption_keys), tuple(s.pixels[0]["pixel_values"].shape)) for s in batch]
            for batch in loader
        ]

    whole = read(range(15))
    plain, drawn, memory = stream(open_source(str(path))), set(), samples_of(read_records(path))
    assert [[name for name, *_ in batch] for batch in whole] == ids(plain) + ids(plain) + ids(plain)
    for epoch in range(3):
        memory.set_epoch(epoch)
        drawn |= {(epoch, sample.record_id, tuple(sample.caption_keys)) for sample in memory}
    seen = {(number // 5, name, keys) for number, batch in enumerate(whole) for name, keys, _ in batch}
    assert seen <= drawn and len({(name, keys) for _, name, keys in seen}) > 22
    assert read(range(4, 9)) == whole[4:9] and read(range(11, 15)) == whole[11:]
    assert read([13, 2, 3, 0, 14]) == [whole[n] for n in (13, 2, 3, 0, 14)]


def test_a_source_that_shrinks_while_it_is_read_is_refused(tmp_path):
    from hacl.data.stream_dataset import StreamDataset

    write_records(tmp_path / "a.jsonl", records(9))
    shrunk = StreamDataset(stream(open_source(str(tmp_path / "a.jsonl"))), None, 4)
    with pytest.raises(ValueError, match="ended before batch 4 of 4"):
        shrunk._rows(3)


def test_sources_count_their_rows_where_that_takes_no_download(source, tmp_path):
    assert source.count() == COUNT and len(list(source.rows())) == COUNT
    assert HubSource("hub:someone/captions").count() is None
    limited = Limited(source, 7)
    assert (limited.count(), len(list(limited.rows())), len(list(limited.rows(5)))) == (7, 7, 2)
    assert list(limited.rows(9)) == [] and limited.fingerprint() != source.fingerprint()
