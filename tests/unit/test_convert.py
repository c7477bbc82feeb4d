"""Promises of conversion: other projects' files become records and back, foreign archives are not trusted."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from hacl.data.convert import convert, tell
from hacl.data.convert_back import WRITERS
from hacl.data.records import RecordError, parse_record, read_records, write_records
from hacl.data.sources import open_source
from hacl.data.webdataset import read_shards, write_shards

ROOT = Path(__file__).parents[2]
CAPTIONS = {
    "info": {}, "licenses": [],
    "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 42, "file_name": "42.jpg"}, {"id": 7, "file_name": "7.jpg"}],
    "annotations": [{"id": 1, "image_id": 42, "caption": "a dog"}, {"id": 2, "image_id": 9, "caption": "a bus "},
                    {"id": 3, "image_id": 42, "caption": "two dogs"}, {"id": 4, "image_id": 7, "caption": "sky"}],
}  # fmt: skip
INSTANCES = {
    "images": [{"id": 42}, {"id": 9}],
    "annotations": [{"image_id": 42, "category_id": 18, "iscrowd": 0}, {"image_id": 42, "category_id": 18},
                    {"image_id": 42, "category_id": 1, "iscrowd": 1}],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
}  # fmt: skip
KARPATHY = {
    "images": [{"filename": "1.jpg", "imgid": 0, "split": "test", "sentences": [{"raw": "a man", "tokens": []}]},
               {"filename": "C_2.jpg", "filepath": "val2014", "cocoid": 2, "sentences": [{"raw": "x"}, {"raw": "y"}]}],
    "dataset": "flickr30k",
}  # fmt: skip
REGIONS = [{"id": 5, "regions": [{"region_id": 1, "image_id": 5, "phrase": "A red  bus"},
                                 {"region_id": 2, "image_id": 5, "phrase": "a red bus"},
                                 {"region_id": 3, "image_id": 5, "phrase": "the sky"}]}]  # fmt: skip
OBJECTS = [{"image_id": 5, "objects": [{"names": ["Bus"]}, {"names": ["bus"]}, {"names": []}, {"names": ["sky"]}]}]
QAS = [{"id": 5, "qas": [{"question": "What?", "answer": "A bus."}, {"question": "Where?", "answer": "Here."}]}]
GQA = {"q1": {"imageId": "77", "question": "Is it?", "answer": "yes"},
       "q2": {"imageId": "77", "question": "What?", "answer": "dog"},
       "q3": {"imageId": "8", "question": "Who?", "answer": "man"}}  # fmt: skip
SCENES = {"77": {"objects": {"1": {"name": "dog"}, "2": {"name": "dog"}}}}


def save(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_coco_captions_are_joined_with_instances(tmp_path):
    path, instances = save(tmp_path, "c.json", CAPTIONS), save(tmp_path, "i.json", INSTANCES)
    assert tell(path) == "coco"
    bus, dogs, sky = convert(path, instances=instances)
    assert (dogs.id, dogs.images, dogs.captions) == ("42", ("42.jpg",), ("a dog", "two dogs"))
    assert dogs.objects == {"dog": 2, "person": 1} and dogs.extra == {"crowds": ["person"]}
    assert bus.objects == {}, "looked at, and nothing there"
    assert sky.objects is None, "not looked at"
    assert [record.objects for record in convert(path)] == [None] * 3


def test_annotations_may_come_before_the_images_they_are_of(tmp_path):
    turned = {key: CAPTIONS[key] for key in ("annotations", "images")}
    assert convert(save(tmp_path, "a.json", turned)) == convert(save(tmp_path, "b.json", CAPTIONS))
    turned["images"] = turned["images"][:1]
    with pytest.raises(RecordError, match="42.*does not list"):
        convert(save(tmp_path, "c.json", turned), "coco")


def test_karpathy_files_and_token_files_become_records(tmp_path):
    path = save(tmp_path, "k.json", KARPATHY)
    assert tell(path) == "karpathy"
    man, coco = convert(path)
    assert (man.id, man.images, man.captions, man.extra) == ("1", ("1.jpg",), ("a man",), {"split": "test"})
    assert (coco.id, coco.images, coco.captions) == ("2", ("val2014/C_2.jpg",), ("x", "y"))
    path = save(tmp_path, "results.token", "1.jpg#0\ta dog\r\n1.jpg#1\tzwei Hunde — 犬\r\n\r\n2.jpg#0\tx\r\n")
    assert tell(path) == "flickr-token"
    assert [(r.id, r.captions) for r in convert(path)] == [("1", ("a dog", "zwei Hunde — 犬")), ("2", ("x",))]
    with pytest.raises(RecordError, match=r"bad\.token:2"):
        convert(save(tmp_path, "bad.token", "1.jpg#0\ta\nno tab\n"))


def test_visual_genome_and_gqa_become_records(tmp_path):
    regions, objects = save(tmp_path, "r.json", REGIONS), save(tmp_path, "o.json", OBJECTS)
    assert tell(regions) == "visual-genome"
    (record,) = convert(regions, instances=objects)
    assert (record.id, record.images, record.captions) == ("5", ("5.jpg",), ("a red bus", "the sky"))
    assert record.objects == {"bus": 2, "sky": 1}
    path = save(tmp_path, "q.json", QAS)
    assert tell(path) == "visual-genome-qa"
    (record,) = convert(path)
    assert [turn.text for turn in record.conversation] == ["<image>\nWhat?", "A bus.", "Where?", "Here."]
    path = save(tmp_path, "g.json", GQA)
    assert tell(path) == "gqa"
    first, second = convert(path, instances=save(tmp_path, "s.json", SCENES))
    assert (first.id, first.images, first.objects) == ("q1", ("77.jpg",), {"dog": 2})
    assert (len(first.conversation), second.id, second.objects) == (4, "q3", None)


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [("c.json", {"images": [{"id": 1}], "annotations": []}, "coco"), ("k.json", {"images": [{"filename": "x"}]},
     "karpathy"), ("r.json", [{"id": 1}], "visual-genome"), ("g.json", {"q": {"question": "?"}}, "gqa")],
)  # fmt: skip
def test_a_missing_key_is_named_with_its_file(tmp_path, name, content, form):
    with pytest.raises(RecordError, match=rf"{name}.*is missing"):
        convert(save(tmp_path, name, content), form)


def test_annotations_of_another_file_are_refused_where_they_would_be_ignored(tmp_path):
    with pytest.raises(ValueError, match="not llava"):
        convert(save(tmp_path, "x.json", []), "llava", instances=tmp_path / "i.json")


def plain():
    rows = [
        {"id": "1", "image": "a/1.png", "image_id": "1", "captions": ["ein Hund", "a dog"], "split": "val"},
        {"id": "x", "image": "2.jpg", "image_id": "22", "captions": ["a red bus"],
         "hallucinated": [{"text": "a red car", "type": "object", "span": [6, 9], "of": 0}, {"text": "a bike"}]},
    ]  # fmt: skip
    return [parse_record(row, where="f") for row in rows]


@pytest.mark.parametrize("form", ["coco", "karpathy", "flickr-token"])
def test_images_and_captions_survive_the_way_there_and_back(tmp_path, form):
    path = tmp_path / ("x.token" if form == "flickr-token" else "x.json")
    assert WRITERS[form](path, iter(plain())) == 2
    assert tell(path) == form
    assert [(r.images, r.captions) for r in convert(path)] == [(r.images, r.captions) for r in plain()]
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_llava_and_hacl_files_are_read_back_as_they_were_meant(tmp_path):
    WRITERS["llava"](tmp_path / "l.json", plain())
    back = read_records(tmp_path / "l.json")
    assert [(r.captions, r.hallucinated, r.extra) for r in back] == [
        (r.captions, r.hallucinated, r.extra) for r in plain()
    ]
    assert [turn.text for turn in back[0].conversation] == ["<image>", "ein Hund"]
    assert WRITERS["hacl"](tmp_path / "h.json", plain()) == 2
    assert tell(tmp_path / "h.json") == "hacl"
    first, second = convert(tmp_path / "h.json")
    assert (first.captions, first.hallucinated[0].text, second.id) == (("a red bus",), "a red car", "x#2")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(folder / "a/1.png")
    Image.new("RGB", (8, 6), "blue").save(folder / "2.jpg")
    return folder


def test_records_and_images_survive_webdataset_shards(tmp_path, pictures):
    assert write_shards(tmp_path / "s/train.tar", plain(), pictures, per_shard=1) == 2
    shards = sorted((tmp_path / "s").iterdir())
    assert [shard.name for shard in shards] == ["train-000000.tar", "train-000001.tar"]
    assert list(read_shards(shards, tmp_path / "out")) == plain()
    for name in ("a/1.png", "2.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (pictures / name).read_bytes()
    before = [shard.read_bytes() for shard in shards]
    write_shards(tmp_path / "s/train.tar", plain(), pictures, per_shard=1)
    assert [shard.read_bytes() for shard in shards] == before, "equal input gives equal bytes"


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            content = b"" if isinstance(data, tarfile.TarInfo) else data
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards_of_others_give_captions_from_text_or_json(tmp_path, pictures):
    image = (pictures / "2.jpg").read_bytes()
    path = shard(
        tmp_path / "00000.tar",
        [("./007.jpg", image), ("007.txt", b"ein Hund\n"), ("008.JPG", image),
         ("008.json", b'{"caption": "a bus", "url": "http://x", "key": "008", "status": "success"}'), ("009.cls", b"3"),
         ("009.txt", b"text only")],
    )  # fmt: skip
    first, second, third = read_shards([path], tmp_path / "out")
    assert (first.id, first.images, first.captions) == ("00000/007", ("00000/007.jpg",), ("ein Hund",))
    assert (second.id, second.captions, second.extra["url"]) == ("008", ("a bus",), "http://x")
    assert (third.images, third.captions) == ((), ("text only",))
    assert (tmp_path / "out/00000/007.jpg").read_bytes() == image


def linked(kind):
    info = tarfile.TarInfo("1.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../1.jpg", b"x")], "climbs"),
        ([("/1.jpg", b"x")], "absolute"),
        ([("1.jpg", linked(tarfile.SYMTYPE))], "link or a device"),
        ([("1.jpg", linked(tarfile.LNKTYPE))], "link or a device"),
        ([("1.jpg", linked(tarfile.CHRTYPE))], "link or a device"),
        ([("1.txt", b"a"), ("1.jpg", b"<html>")], "web page"),
        ([("1.txt", b"a"), ("1.jpg", b"x"), ("1.json", b'{"image": "../../x.jpg"}')], "climbs"),
        ([("1.txt", b"\xff\xfe")], "not UTF-8"),
        ([("1.json", b"[1]")], "expected a JSON object"),
        ([("1.txt", b"y" * 2000)], "at most"),
    ],
)
def test_a_shard_cannot_write_outside_or_exhaust_memory(tmp_path, monkeypatch, members, message):
    monkeypatch.setattr("hacl.data.webdataset.MAX_MEMBER_BYTES", 1000)
    path = shard(tmp_path / "bad.tar", members)
    with pytest.raises(RecordError, match=message) as caught:
        list(read_shards([path], tmp_path / "in/out"))
    assert "bad.tar" in str(caught.value)
    assert not list(tmp_path.rglob("*.jpg")) and not list(tmp_path.rglob("*.partial"))


def test_a_link_in_the_image_folder_leads_nowhere(tmp_path, pictures):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/00").symlink_to(tmp_path / "elsewhere")
    path = shard(tmp_path / "00.tar", [("1.jpg", (pictures / "2.jpg").read_bytes()), ("1.txt", b"x")])
    with pytest.raises(RecordError, match="leads through a link"):
        list(read_shards([path], tmp_path / "out"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_cut_shard_is_named(tmp_path):
    path = shard(tmp_path / "cut.tar", [("1.txt", b"x" * 900)])
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(RecordError, match=r"cut\.tar: not a complete tar"):
        list(read_shards([path]))


def command(*arguments):
    words = [sys.executable, "data_prep/convert.py", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def test_the_command_goes_there_and_back(tmp_path, pictures):
    source = tmp_path / "in.jsonl"
    write_records(source, plain())
    for to, name in (("parquet", "x.parquet"), ("webdataset", "x.tar")):
        done = command("--input", source, "--to", to, "--images", pictures, "--output", tmp_path / name)
        assert done.returncode == 0 and "2 records" in done.stdout, done.stderr
    assert list(open_source(str(tmp_path / "x.parquet")).records()) == plain()
    for name in ("x.parquet", "x-000000.tar"):
        done = command("--input", tmp_path / name, "--output", tmp_path / "back.jsonl")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "back.jsonl").read_bytes() == source.read_bytes()
    assert command("--input", tmp_path / "none.json", "--output", source).returncode == 1


def test_a_name_says_the_form_that_is_written_and_never_another(tmp_path, pictures):
    source = tmp_path / "in.jsonl"
    write_records(source, plain())
    for name in ("x.parquet", "x.tar"):
        done = command("--input", source, "--images", pictures, "--output", tmp_path / name)
        assert done.returncode == 0 and "2 records" in done.stdout, done.stderr
    assert list(open_source(str(tmp_path / "x.parquet")).records()) == plain()
    assert list(open_source(str(tmp_path / "x-000000.tar")).records())
    for to, name in (("records", "y.parquet"), ("llava", "y.tar"), ("parquet", "y.jsonl"), ("webdataset", "y.parquet")):
        done = command("--input", source, "--to", to, "--images", pictures, "--output", tmp_path / name)
        assert done.returncode == 2 and f"does not fit --to {to}" in done.stderr, done.stderr
        assert not (tmp_path / name).exists()
