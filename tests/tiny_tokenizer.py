"""Small tokenizers: byte-level BPE, trained here, and SentencePiece's, in files."""

from __future__ import annotations

import json
import struct

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tiny_model import finish

from adamas_core.llama import load_tokenizer
from adamas_core.llama.tokenizers.byte_level import PATTERNS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Any text, and text that is likely to meet the special cases.
text = st.text() | st.lists(
    st.sampled_from(
        [*" \n\té🙂٣▁Ġ\u00a0\x00", "\r\n", "the", " the", "'ll", "'LL", "2024", "漢字", "!?"]
    )
    | st.sampled_from(["<|im_end|>", "<|im", "<think>", "<s>", "<0x41>"])
).map("".join)
plain = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
CONVERSATION = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "and"},
    {"role": "user", "content": " the dog\n"},
]


def write_tables(path, model, tokens, types, **extra):
    """A GGUF file with a tokenizer and nothing else."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in extra.items():
        getattr(writer, f"add_{name}")(value)
    return finish(writer, path)


# Byte-level BPE

CORPUS = [
    "the cat and the dog, then the bird; that's what they'll say in 2024 or 1999.",
    "    def function(self):\n        return self.value + 12345\n\n\n",
    "Größe, déjà vu, 漢字, it'LL 12345 12345 12345, 123,123,123,123,123,123,123",
]


def byte_level_tables():
    """Vocabulary and merges of a small byte-level BPE, trained here."""
    import tokenizers as library

    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(alphabet), show_progress=False
    )
    trained.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    tokens = names + sorted(model["vocab"], key=model["vocab"].get)
    types = [CONTROL] * 3 + [USER_DEFINED] + [NORMAL] * len(model["vocab"])
    return tokens, types, [" ".join(pair) for pair in model["merges"]]


def load_byte_level(folder):
    """A tokenizer for each name in PATTERNS, all with the same tables."""
    tokens, types, merges = byte_level_tables()

    def load(pre):
        path = write_tables(
            folder / f"{pre}.gguf",
            "gpt2",
            tokens,
            types,
            token_merges=merges,
            tokenizer_pre=pre,
            eos_token_id=2,
            bos_token_id=1,
            chat_template=CHATML,
        )
        return load_tokenizer(path)

    return {pre: load(pre) for pre in PATTERNS}


def byte_level_json():
    """The tables of `load_byte_level` as a tokenizer.json, split as smollm's."""
    import tokenizers as library

    tokens, _, merges = byte_level_tables()
    tokenizer = library.Tokenizer(
        library.models.BPE(
            {token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]
        )
    )
    split = library.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.add_tokens([library.AddedToken(tokens[3], normalized=False)])
    return json.loads(tokenizer.to_str())


# SentencePiece's BPE

PIECES = ["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "▁ab", "cc", "aa", "é", "<tool>", "2", "22"]
SCORES = [-9, -9, -9, -9, -3, -2, -4, -5, -6, -7, -1, -9, 0, -9, -8]


def load_score_bpe(folder):
    """The tokenizer of `write_score_bpe`."""
    return load_tokenizer(write_score_bpe(folder / "x.gguf"))


def write_score_bpe(path):
    """A GGUF file of PIECES and SCORES, after three control tokens and 256 bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(PIECES)
    types[259 + PIECES.index("<tool>")] = USER_DEFINED
    return write_tables(
        path,
        "llama",
        tokens,
        types,
        token_scores=[0.0] * 259 + [float(score) for score in SCORES],
        bos_token_id=1,
        eos_token_id=2,
    )


def write_tokenizer_bin(path):
    """A tokenizer.bin of llama2.c with the tokens of `load_score_bpe`."""
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += [piece.replace("▁", " ") for piece in PIECES]
    with path.open("wb") as file:
        file.write(struct.pack("<i", 7))
        for text, score in zip(texts, [0] * 259 + SCORES, strict=True):
            file.write(struct.pack("<fi", score, len(text.encode())) + text.encode())
    return path


def write_folder(folder):
    """A Hugging Face folder with the tokenizer smollm of `load_byte_level`."""
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_json()))
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHATML}))
    return folder


def write_gemma(path):
    """A GGUF file with the tables of `write_score_bpe` as Gemma has them."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    runs = ["  ", "\n\n"]
    letters = [*PIECES[:12], *"defghijklmnopqrstuvwxyz"]
    tokens = [*names, *runs, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    types = [CONTROL] * len(names) + [USER_DEFINED] * len(runs)
    types += [BYTE] * 256 + [NORMAL] * len(letters)
    scores = [*SCORES[:12], *[-9.0] * 23]
    return write_tables(
        path,
        "llama",
        tokens,
        types,
        token_scores=[0.0] * (len(tokens) - len(letters)) + [float(s) for s in scores],
        bos_token_id=2,
        eos_token_id=1,
        add_bos_token=True,
        add_space_prefix=False,
    )
