"""tokenizer.json: the ids of the GGUF tables and of transformers, and damaged files."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from tiny_model import peer
from tiny_tokenizer import CHATML, CONVERSATION, plain, text, write_folder

from adamas_core.llama import CheckpointError, load_tokenizer

pytest.importorskip("gguf", reason='needs the extra "llama"')
library = pytest.importorskip("tokenizers", reason='needs the extra "llama"')


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


@given(text)
@plain
def test_a_folder_gives_the_ids_of_the_gguf(byte_level, folder, text):
    ours = load_tokenizer(folder)
    expected = byte_level["smollm"]
    assert ours.encode(text) == expected.encode(text)
    assert ours.encode(text, special=False) == expected.encode(text, special=False)
    assert ours.decode(ours.encode(text)) == expected.decode(expected.encode(text))


def test_a_folder_knows_its_names_and_its_template(byte_level, folder):
    tokenizer = load_tokenizer(folder)
    expected = byte_level["smollm"]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.stop) == (1, 2, {0, 2})
    assert not tokenizer.adds_bos
    assert tokenizer.chat(CONVERSATION) == expected.chat(CONVERSATION)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))
    (folder / "chat_template.jinja").write_text(CHATML)
    assert load_tokenizer(folder).chat(CONVERSATION) == expected.chat(CONVERSATION)


@pytest.mark.peers
@given(text=text)
@plain
def test_a_folder_gives_the_ids_of_transformers(folder, text):
    theirs = peer("transformers").PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json")
    )
    ours = load_tokenizer(folder)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours.decode(ids, special=True) == theirs.decode(ids)


def test_a_tokenizer_json_of_sentencepiece_kind(tmp_path):
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab |= {piece: 259 + i for i, piece in enumerate(["▁", "a", "b", "▁a", "▁ab"])}
    tokenizer = library.Tokenizer(
        library.models.BPE(
            vocab, [("▁", "a"), ("▁a", "b")], byte_fallback=True, fuse_unk=True, unk_token="<unk>"
        )
    )
    normalizers, decoders = library.normalizers, library.decoders
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    ids = ours.encode("ab a 🙂")
    assert ids == tokenizer.encode("ab a 🙂").ids
    assert ids[:3] == [1, 263, 262]
    assert ours.decode(ids) == tokenizer.decode(ids) == "ab a 🙂"
    assert ours.stop == {2}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_json_is_a_clear_error(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(tmp_path)
    assert str(path) in str(error.value)


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        load_tokenizer(tmp_path)


def damaged(folder, change, name="tokenizer.json"):
    """The folder after a change of the object in one of its files."""
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    return folder


def refused(folder, message):
    with pytest.raises(CheckpointError, match=message) as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("number", [2**24, 2**27, 2**32 - 1])
def test_a_damaged_id_is_refused_before_a_table_is_made_for_it(folder, number):
    damaged(folder, lambda spec: spec["model"]["vocab"].update({"zz": number}))
    refused(folder, rf"tokenizer\.json: the id {number} is damaged, expected at most 16777215")


def test_ids_with_gaps_have_no_text(folder):
    damaged(folder, lambda spec: spec["model"]["vocab"].update({"zz": 10**6}))
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer.pieces) == 10**6 + 1
    assert tokenizer.decode([10**6, 10**6 - 1]) == "zz"


def test_a_panic_of_the_library_is_an_error(folder):
    """Its class is no Exception. This one is a retry limit of the regular expressions."""
    split = {"type": "Split", "pattern": {"Regex": "(x*)*y"}, "behavior": "Isolated"}
    damaged(folder, lambda spec: spec.update(pre_tokenizer=split | {"invert": False}))
    tokenizer = load_tokenizer(folder)
    with pytest.raises(CheckpointError, match="cannot encode the text") as error:
        tokenizer.encode("x" * 50 + "z y")
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("prefix", ["x", "x" * 50])
def test_a_prefix_of_subwords_is_refused(folder, prefix):
    damaged(folder, lambda spec: spec["model"].update(continuing_subword_prefix=prefix))
    refused(folder, "model.continuing_subword_prefix is not supported")


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "chat_template"])
@pytest.mark.parametrize("value", [5, 0.5, True, {"content": 5}, {"content": ["a"]}, {}])
def test_a_value_of_another_type_is_named(folder, name, value):
    damaged(folder, lambda config: config.update({name: value}), "tokenizer_config.json")
    refused(folder, rf"tokenizer_config\.json: {name}")


def test_a_template_that_is_no_text_is_named(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    refused(folder, r"chat_template\.jinja: damaged")


@pytest.mark.parametrize("content", ["", "[]", "{" * 100_000, '{"bos_token": "\\ud800"}', "5"])
def test_a_damaged_tokenizer_config_is_named(folder, content):
    (folder / "tokenizer_config.json").write_text(content)
    refused(folder, r"tokenizer_config\.json: ")


def test_a_post_processor_that_adds_many_tokens_is_refused(folder):
    token = {"SpecialToken": {"id": "a", "type_id": 0}}
    ids = {"a": {"id": "a", "ids": list(range(1000)), "tokens": ["a"] * 1000}}
    template = {"type": "TemplateProcessing", "single": [token] * 20_000, "pair": []}
    damaged(folder, lambda spec: spec.update(post_processor=template | {"special_tokens": ids}))
    refused(folder, r"tokenizer\.json: post_processor adds 20000000 tokens")


def test_byte_levels_that_multiply_are_refused(folder, tmp_path):
    """Each step would double the bytes of a text; 900 of them ended the process."""
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text())
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [level] * 900}
    path.write_text(json.dumps(spec))
    with pytest.raises(CheckpointError, match="has 900 byte-level steps, expected at most one"):
        load_tokenizer(folder)
