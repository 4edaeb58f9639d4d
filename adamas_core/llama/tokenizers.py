"""Text to token ids and back: a GGUF's own tables, tokenizer.json, llama2.c's tokenizer.bin.

Whatever the source, a tokenizer here is an encoder and a table of the bytes each token stands
for; decoding is joining those bytes. Byte-level BPE (GPT-2's kind) and tokenizer.json are encoded
by the `tokenizers` package. The score-merge BPE of SentencePiece is encoded by `_ScoreBPE`: the
package knows merges in order of rank alone, which differs where several pairs make one token.
"""

from __future__ import annotations

import codecs
import heapq
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoints import CheckpointError, Settings, is_gguf, needs_extra, open_gguf, read_json

SPACE = "\u2581"  # SentencePiece's visible space


@dataclass(frozen=True)
class Tokenizer:
    """Encodes text, decodes ids; `load` makes one.

    Attributes
    ----------
    pieces : list of bytes
        What each id stands for.
    control : frozenset of ints
        Ids that mark structure and hold no text, like BOS or <|im_end|>.
    bos, eos : int or None
    stop : frozenset of ints
        Ids that end a model's turn.
    adds_bos : bool
        Whether the model expects BOS before a text.
    template : str or None
        The chat template that came with the model, in Jinja.
    """

    pieces: list[bytes]
    control: frozenset[int]
    bos: int | None
    eos: int | None
    adds_bos: bool
    template: str | None
    strips_space: bool  # the first token of a text brings a space that is not the text's
    encoder: Callable[[str, bool], list[int]]  # text, whether the names of control tokens count

    @property
    def stop(self) -> frozenset[int]:
        ends = {b"<|im_end|>", b"<|eot_id|>", b"<|endoftext|>", b"<|end_of_text|>"}
        named = {i for i in self.control if self.pieces[i] in ends}
        return frozenset(named if self.eos is None else named | {self.eos})

    def encode(self, text: str, bos: bool | None = None, special: bool = True) -> list[int]:
        """Token ids of a text.

        Parameters
        ----------
        text : str
        bos : bool, optional
            Begin with BOS; by default as the model expects it.
        special : bool
            Whether the name of a control token, like <|im_start|>, is that token. Turn it off
            for text that is not to be trusted.
        """
        ids = self.encoder(text, special)
        if self.adds_bos if bos is None else bos:
            if self.bos is None:
                raise ValueError("this tokenizer has no BOS token")
            ids.insert(0, self.bos)
        return ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of all ids of a sequence; control tokens are left out unless `special`."""
        stream = self.stream(start=True, special=special)
        return "".join([*map(stream.push, ids), stream.end()])

    def stream(self, start: bool = False, special: bool = False) -> Stream:
        """Decode ids one by one; `start` where they begin a text rather than continue one."""
        return Stream(self, start, special)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Parameters
        ----------
        messages : sequence of {"role": ..., "content": ...}
            What they say is encoded as plain text: no message can forge a control token.

        Raises
        ------
        ValueError
            The model's template is not ChatML (SmolLM2, Qwen), the one that is known here.
        """
        ids = {self.pieces[i]: i for i in self.control}
        begin, end = ids.get(b"<|im_start|>"), ids.get(b"<|im_end|>")
        if begin is None or end is None or "<|im_start|>" not in (self.template or ""):
            raise ValueError("this model's chat template is not ChatML; encode its prompt yourself")
        # The system prompt that the template puts first where the conversation has none.
        default = re.search(
            r"<\|im_start\|>system(?:\n|\\n)([^<>{}']+)<\|im_end\|>", self.template or ""
        )
        turns = [(m["role"], m["content"]) for m in messages]
        if default and turns and turns[0][0] != "system":
            turns.insert(0, ("system", default[1]))
        newline = self.encoder("\n", False)
        prompt: list[int] = []
        for role, content in turns:
            prompt += [begin, *self.encoder(f"{role}\n{content}", False), end, *newline]
        return [*prompt, begin, *self.encoder("assistant\n", False)]


class Stream:
    """Text from ids as they come, never half a character."""

    def __init__(self, tokenizer: Tokenizer, start: bool, special: bool) -> None:
        self._tokenizer = tokenizer
        self._strip = start and tokenizer.strips_space
        self._special = special
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes, often more or less than its own."""
        if not 0 <= token < len(self._tokenizer.pieces):
            raise ValueError(f"token id {token} is not in 0 to {len(self._tokenizer.pieces) - 1}")
        if token in self._tokenizer.control:
            return self.end() + (self._piece(token).decode() if self._special else "")
        piece = self._piece(token)
        if self._strip:
            piece = piece.removeprefix(b" ")
            self._strip = False
        return self._characters.decode(piece)

    def end(self) -> str:
        """What is left: a replacement character where the last one never came whole."""
        return self._characters.decode(b"", final=True)

    def _piece(self, token: int) -> bytes:
        return self._tokenizer.pieces[token]


def load(path: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Parameters
    ----------
    path : str or Path
        A GGUF file, a tokenizer.json or the folder that holds it, or a llama2.c tokenizer.bin.

    Raises
    ------
    CheckpointError
        The file is damaged, or of a kind that is not supported.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.suffix == ".json":
        return _load_json(path)
    if is_gguf(path):
        return _load_gguf(path)
    if path.suffix == ".bin":
        return _load_llama2c(path)
    raise CheckpointError(
        f"{path}: not a tokenizer that can be read; "
        "give a GGUF file, a tokenizer.json or a llama2.c tokenizer.bin"
    )


# Byte-level BPE

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How the models split text before they merge bytes: each pattern splits what is left whole.
_PATTERNS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "llama-bpe": [_LLAMA3],
    "qwen2": [_LLAMA3.replace("{1,3}", "")],
}
_PATTERNS |= {"llama3": [_LLAMA3], "llama-v3": [_LLAMA3], "deepseek-r1-qwen": _PATTERNS["qwen2"]}
_TAKES_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")  # before any merge; BOS by default


def _byte_of_letter() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable letter: itself, or one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF_LETTER = _byte_of_letter()


def _from_letters(token: str) -> bytes:
    """The bytes of a byte-level token; one with foreign letters stands for its own text."""
    try:
        return bytes(_BYTE_OF_LETTER[letter] for letter in token)
    except KeyError:
        return token.encode()


def _from_sentencepiece(token: str) -> bytes:
    """The bytes of a SentencePiece token: <0x0A> is a byte, a visible space is a space."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


def _library_encoder(tokenizer: Any) -> Callable[[str, bool], list[int]]:
    """Encode with the `tokenizers` package."""

    def encode(text: str, special: bool) -> list[int]:
        tokenizer.encode_special_tokens = not special
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return encode


# GGUF

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # of tokenizer.ggml.token_type


def _load_gguf(path: Path) -> Tokenizer:
    _, settings = open_gguf(path)
    kind = settings.get("tokenizer.ggml.model", str)
    tokens = settings.get("tokenizer.ggml.tokens", list)
    types = settings.get("tokenizer.ggml.token_type", list, [_NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise CheckpointError(f"{path}: {len(tokens)} tokens but {len(types)} token types")
    control = frozenset(i for i, t in enumerate(types) if t in (_UNKNOWN, _CONTROL))
    atoms = {i for i, t in enumerate(types) if t == _USER_DEFINED} | control
    pre = None
    if kind == "gpt2":
        pre = settings.get("tokenizer.ggml.pre", str)
        encoder = _library_encoder(_byte_level_bpe(settings, pre, tokens, control, atoms))
        from_token, strips = _from_letters, False
    elif kind == "llama":
        strips = settings.get("tokenizer.ggml.add_space_prefix", bool, True)
        scores = settings.get("tokenizer.ggml.scores", list)
        if len(scores) != len(tokens):
            raise CheckpointError(f"{path}: {len(tokens)} tokens but {len(scores)} scores")
        texts = [token.replace(SPACE, " ") for token in tokens]
        encoder = _ScoreBPE(texts, scores, control, atoms - control, strips)
        from_token = _from_sentencepiece
    else:
        raise CheckpointError(f"{path}: tokenizer.ggml.model {kind!r} is not gpt2 or llama")
    return Tokenizer(
        pieces=[t.encode() if i in atoms else from_token(t) for i, t in enumerate(tokens)],
        control=control,
        bos=_token_id(settings, "tokenizer.ggml.bos_token_id", len(tokens)),
        eos=_token_id(settings, "tokenizer.ggml.eos_token_id", len(tokens)),
        adds_bos=settings.get(
            "tokenizer.ggml.add_bos_token", bool, kind == "llama" or pre in _TAKES_WHOLE_WORDS
        ),
        template=settings.lookup("tokenizer.chat_template"),
        strips_space=strips,
        encoder=encoder,
    )


def _token_id(settings: Settings, name: str, vocab: int) -> int | None:
    token = settings.lookup(name)
    if token is not None and not 0 <= token < vocab:
        raise CheckpointError(f"{settings.path}: {name} is {token}, of {vocab} tokens")
    return token if token is None else int(token)


def _byte_level_bpe(
    settings: Settings, pre: str, tokens: list[str], control: Iterable[int], atoms: Iterable[int]
) -> Any:
    """A tokenizer of the `tokenizers` package from GGUF's tables."""
    lib = needs_extra("tokenizers")
    if pre not in _PATTERNS:
        raise CheckpointError(
            f"{settings.path}: pre-tokenizer {pre!r} is not one of {', '.join(_PATTERNS)}"
        )
    merges = [tuple(pair.split(" ")) for pair in settings.get("tokenizer.ggml.merges", list)]
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        model = lib.models.BPE(vocab, merges, ignore_merges=pre in _TAKES_WHOLE_WORDS)
    except Exception as error:  # the package raises bare Exception
        raise CheckpointError(f"{settings.path}: tokenizer.ggml.merges: {error}") from error
    tokenizer = lib.Tokenizer(model)
    if pre == "qwen2":
        tokenizer.normalizer = lib.normalizers.NFC()  # as in the tokenizer.json of these models
    split = lib.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [split.Split(lib.Regex(pattern), "isolated") for pattern in _PATTERNS[pre]]
        + [split.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    special = set(control)
    tokenizer.add_tokens(
        [
            lib.AddedToken(tokens[i], special=i in special, normalized=False)
            for i in sorted(atoms)
            if tokens[i]
        ]
    )
    return tokenizer


# tokenizer.json


def _load_json(path: Path) -> Tokenizer:
    spec = read_json(path)
    lib = needs_extra("tokenizers")
    try:
        tokenizer = lib.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the package raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer.json: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()

    whole = spec.get("decoder") or {}
    decoders = {step.get("type"): step for step in whole.get("decoders", [whole])}
    if "ByteLevel" in decoders:
        from_token, strips = _from_letters, False
    elif "Metaspace" in decoders:
        from_token = _from_sentencepiece
        strips = decoders["Metaspace"].get("prepend_scheme") != "never"
    elif "ByteFallback" in decoders:
        from_token, strips = _from_sentencepiece, "Strip" in decoders
    else:
        raise CheckpointError(f"{path}: its decoder is neither byte-level nor SentencePiece's")
    added = {a["id"]: a for a in spec.get("added_tokens") or []}
    pieces = []
    for i in range(max(tokenizer.get_vocab().values(), default=-1) + 1):
        token = tokenizer.id_to_token(i) or ""  # ids may have gaps
        pieces.append(added[i]["content"].encode() if i in added else from_token(token))

    config_path = path.with_name("tokenizer_config.json")
    config = read_json(config_path) if config_path.is_file() else {}
    jinja = path.with_name("chat_template.jinja")  # where newer folders keep it
    template = jinja.read_text(encoding="utf-8") if jinja.is_file() else config.get("chat_template")
    bos = _named_token(tokenizer, config.get("bos_token"))
    return Tokenizer(
        pieces=pieces,
        control=frozenset(i for i, a in added.items() if a["special"]),
        bos=bos,
        eos=_named_token(tokenizer, config.get("eos_token")),
        adds_bos=bos is not None and tokenizer.encode("").ids[:1] == [bos],
        template=template if isinstance(template, str) else None,
        strips_space=strips,
        encoder=_library_encoder(tokenizer),
    )


def _named_token(tokenizer: Any, token: Any) -> int | None:
    """The id of a token that tokenizer_config.json names, as text or as {"content": text}."""
    name = token.get("content") if isinstance(token, dict) else token
    found: int | None = tokenizer.token_to_id(name) if name else None
    return found


# SentencePiece's BPE: GGUF's "llama" tables and llama2.c


class _ScoreBPE:
    """Merge the two neighbours whose joined text is the token of the highest score, until none is.

    Among equal scores the leftmost pair goes first. A character that no token holds becomes its
    UTF-8 bytes.
    """

    def __init__(
        self,
        texts: list[str],
        scores: list[float],
        control: Iterable[int],
        user_defined: Iterable[int],
        space_prefix: bool,
    ) -> None:
        self._space_prefix = space_prefix
        self._special = {texts[i]: i for i in control if texts[i]}
        self._user_defined = {texts[i]: i for i in user_defined if texts[i]}
        byte_names = {f"<0x{byte:02X}>": byte for byte in range(256)}
        self._byte = {byte_names[t]: i for i, t in enumerate(texts) if t in byte_names}
        apart = {*self._special.values(), *self._user_defined.values(), *self._byte.values()}
        self._token: dict[str, int] = {}
        for i, text in enumerate(texts):
            if i not in apart:
                self._token.setdefault(text, i)
        self._scores = scores

    def __call__(self, text: str, special: bool) -> list[int]:
        atoms = {**self._user_defined, **self._special} if special else self._user_defined
        ids: list[int] = []
        prefix = self._space_prefix  # before a text, and again after each control token
        for part in _split(text, atoms):
            if part in atoms:
                ids.append(atoms[part])
                prefix = self._space_prefix and part in self._special
            else:
                ids += self._merge(f" {part}" if prefix else part)
                prefix = False
        return ids

    def _merge(self, text: str) -> list[int]:
        symbols = list(text)  # a merged symbol stands at its first character's place
        before = list(range(-1, len(symbols) - 1))
        after = list(range(1, len(symbols) + 1))
        candidates: list[tuple[float, int, str]] = []

        def consider(left: int) -> None:
            if left >= 0 and after[left] < len(symbols):
                joined = symbols[left] + symbols[after[left]]
                if joined in self._token:
                    score = self._scores[self._token[joined]]
                    heapq.heappush(candidates, (-score, left, joined))

        for left in range(len(symbols)):
            consider(left)
        while candidates:
            _, left, joined = heapq.heappop(candidates)
            right = after[left]
            # One of the two may have been merged with another neighbour meanwhile.
            if (
                right == len(symbols)
                or not symbols[left]
                or symbols[left] + symbols[right] != joined
            ):
                continue
            symbols[left], symbols[right] = joined, ""
            after[left] = after[right]
            if after[left] < len(symbols):
                before[after[left]] = left
            consider(before[left])
            consider(left)

        ids: list[int] = []
        for symbol in filter(None, symbols):
            ids += self._ids(symbol)
        return ids

    def _ids(self, symbol: str) -> list[int]:
        if symbol in self._token:
            return [self._token[symbol]]
        try:
            return [self._byte[byte] for byte in symbol.encode()]
        except KeyError:
            raise ValueError(f"the tokenizer has no token for {symbol!r}, nor its bytes") from None


def _split(text: str, atoms: Iterable[str]) -> list[str]:
    """Cut a text at every atom, the longest first; the parts join to the text."""
    longest_first = sorted(atoms, key=len, reverse=True)
    if not longest_first:
        return [text] if text else []
    pattern = "|".join(re.escape(atom) for atom in longest_first)
    return [part for part in re.split(f"({pattern})", text) if part]


def _load_llama2c(path: Path) -> Tokenizer:
    """llama2.c's tokenizer.bin: the longest token's length, then score, length, bytes of each."""
    data = path.read_bytes()
    texts: list[str] = []
    scores: list[float] = []
    offset = 4
    try:
        while offset < len(data):
            score, size = struct.unpack_from("<fi", data, offset)
            offset += 8
            if size < 0 or offset + size > len(data):
                raise ValueError(f"token {len(texts)} is {size} bytes long")
            texts.append(data[offset : offset + size].decode())
            scores.append(score)
            offset += size
    except (struct.error, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or cut short: {error}") from error
    if len(texts) < 259:
        raise CheckpointError(f"{path}: {len(texts)} tokens; not even the 256 bytes are there")
    unknown, bos, eos = 0, 1, 2  # by convention; the file does not say
    control = frozenset({unknown, bos, eos})
    return Tokenizer(
        pieces=[_from_sentencepiece(text) for text in texts],
        control=control,
        bos=bos,
        eos=eos,
        adds_bos=True,
        template=None,
        strips_space=True,
        encoder=_ScoreBPE(texts, scores, control, (), space_prefix=True),
    )
