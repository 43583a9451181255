"""Prompt files: what is read, and that nothing is left out in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fewstep.data.prompts import Prompt, PromptSet, load_captions, load_prompts
from fewstep.errors import DataError, UnknownName

SHARED = Path(__file__).parents[3] / "shared" / "data" / "prompts"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data beside the repository")


def written(tmp_path, name, text, encoding="utf-8"):
    file = tmp_path / name
    file.write_bytes(text.encode(encoding))
    return file


@shared
def test_coco30k():
    prompts = load_prompts(SHARED / "coco_30k.csv")
    assert (prompts.name, len(prompts)) == ("coco_30k", 30_000)
    assert prompts.prompts[0] == Prompt("000000203564", "A bicycle replica with a clock as the front wheel.", 41337)
    assert prompts.seeds(7)[:2] == [41337, 63155]


@shared
def test_parti_prompts():
    prompts = load_prompts(SHARED / "PartiPrompts.tsv")
    assert len(prompts) == 1632
    assert prompts.prompts[0] == Prompt("00000", "bond")
    assert sum('"' in text for text in prompts.texts) > 0
    assert prompts.seeds(5)[:3] == [5, 6, 7]


FORMS = {
    "a.csv": 'id,caption,seed\nx,"a, ""b""",1\ny,"c\nd",2\n',
    "a.tsv": 'ID\tPrompt\tSeed\nx\ta, "b"\t1\ny\tc d\t2\n',
    "a.jsonl": '{"id": "x", "text": "a, \\"b\\"", "seed": 1}\n{"id": "y", "text": "c\\nd", "seed": 2}\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_formats_with_columns(tmp_path, name):
    prompts = load_prompts(written(tmp_path, name, FORMS[name]))
    second = "c d" if name.endswith("tsv") else "c\nd"
    assert prompts.prompts == (Prompt("x", 'a, "b"', 1), Prompt("y", second, 2))
    assert prompts.name == "a"


def test_lines_of_text(tmp_path):
    prompts = load_prompts(written(tmp_path, "a.txt", "one\r\ntwo, \u2028 still two\r\nthree"))
    assert prompts.texts == ["one", "two, \u2028 still two", "three"]
    assert [prompt.id for prompt in prompts.prompts] == ["00000", "00001", "00002"]


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    assert load_prompts(written(tmp_path, "a.csv", "prompt\na\n", "utf-8-sig")).texts == ["a"]


def test_the_hash_names_the_content_not_the_file(tmp_path):
    one, other = (load_prompts(written(tmp_path, name, FORMS[name])) for name in ("a.csv", "a.jsonl"))
    assert one.hash == other.hash
    assert len(one.hash) == 12
    changed = {
        PromptSet("a", one.prompts[::-1]).hash,
        PromptSet("a", (Prompt("x", 'a, "b"', 3), one.prompts[1])).hash,
        PromptSet("a", (Prompt("z", 'a, "b"', 1), one.prompts[1])).hash,
        PromptSet("a", one.prompts[:1]).hash,
    }
    assert len(changed - {one.hash}) == 4
    assert PromptSet("another name", one.prompts).hash == one.hash


REFUSED = {
    "no column of prompts": ("a.csv", "id,title\n1,a\n", r"its columns are id, title"),
    "no rows": ("a.csv", "prompt\n", "no rows"),
    "an empty file": ("a.csv", "", "no rows"),
    "no lines": ("a.txt", "", "no rows"),
    "empty prompts": ("a.txt", "a\n\n \nb\n", "2 prompts of 'a' are empty: 00001, 00002"),
    "an empty cell": ("a.csv", "id,prompt\nx,\ny,b\n", "1 prompts of 'a' are empty: x"),
    "doubled ids": ("a.csv", "id,prompt\nx,a\nx,b\ny,c\n", "1 ids of 'a' are used more than once: x"),
    "missing ids": ("a.csv", "id,prompt\n,a\ny,b\n", "1 rows of .* have no id: row 1"),
    "missing seeds": ("a.jsonl", '{"text": "a", "seed": 1}\n{"text": "b"}\n', "1 rows of .* have no seed: row 2"),
    "too many fields": ("a.csv", "prompt\na\nb, c\n", "2 fields in line 3 and 1 columns"),
    "too few fields": ("a.csv", "id,prompt\nx,a\ny\n", "1 fields in line 3"),
    "an open quote": ("a.csv", 'id,prompt\nx,"a\n', "broken in line"),
    "no JSON": ("a.jsonl", '{"text": "a"}\n{"text": \n', "broken in line 2"),
    "a list": ("a.jsonl", '["a"]\n', "a list in line 1"),
    "a number for a prompt": ("a.jsonl", '{"text": 3}\n', "a int for a prompt in row 1"),
    "a word for a seed": ("a.csv", "prompt,seed\na,b\n", "seed 'b' in row 1"),
    "half a seed": ("a.jsonl", '{"text": "a", "seed": 1.5}\n', "seed 1.5"),
    "a negative seed": ("a.csv", "prompt,seed\na,-1\n", "seed '-1'"),
    "a seed too large": ("a.csv", f"prompt,seed\na,{2**63}\n", "2\\^63"),
    "true for a seed": ("a.jsonl", '{"text": "a", "seed": true}\n', "seed True"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_files(tmp_path, what):
    name, text, message = REFUSED[what]
    with pytest.raises(DataError, match=message):
        load_prompts(written(tmp_path, name, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        load_prompts(tmp_path / "a.csv")
    with pytest.raises(DataError, match="cannot be read"):
        load_prompts((tmp_path / "folder.txt").mkdir() or tmp_path / "folder.txt")
    with pytest.raises(DataError, match="not UTF-8"):
        load_prompts(written(tmp_path, "b.csv", "prompt\ncafé\n", "latin-1"))
    with pytest.raises(UnknownName, match=r"kind of prompt file '\.xlsx'"):
        load_prompts(tmp_path / "a.xlsx")


def test_many_are_counted_and_a_few_named(tmp_path):
    with pytest.raises(DataError, match=r"7 prompts of 'a' are empty: 00000, .*, 00004 and 2 more"):
        load_prompts(written(tmp_path, "a.txt", "\n" * 7))


def captioned(tmp_path, rows, pictures):
    for name in pictures:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    lines = "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows)
    (tmp_path / "metadata.jsonl").write_text(lines)
    return tmp_path


def test_captions_of_a_folder(tmp_path):
    folder = captioned(tmp_path, [("b/b.png", "two"), ("a/a.png", "one")], ["a/a.png", "b/b.png"])
    assert list(load_captions(folder).items()) == [("b/b.png", "two"), ("a/a.png", "one")]


def test_captions_that_do_not_match_the_pictures(tmp_path):
    rows = [("a.png", "one"), ("b.png", "two"), ("c.png", "three")]
    folder = captioned(tmp_path, rows, ["a.png"])
    with pytest.raises(DataError, match=r"2 captions of .*metadata\.jsonl have no picture: b\.png, c\.png"):
        load_captions(folder)
    captioned(tmp_path, rows[:1], ["d.png"])
    with pytest.raises(DataError, match=r"1 pictures of .* have no caption in metadata\.jsonl: d\.png"):
        load_captions(folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.png", "one"), ("a.png", "two")], "1 ids .* more than once: a.png"),
        ([("a.png", " ")], "1 prompts .* are empty: a.png"),
        ([], "lacks file names"),
    ],
)
def test_bad_captions(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_captions(captioned(tmp_path, rows, ["a.png"]))


def test_a_folder_without_captions(tmp_path):
    with pytest.raises(DataError, match=r"metadata\.jsonl cannot be read"):
        load_captions(tmp_path)
