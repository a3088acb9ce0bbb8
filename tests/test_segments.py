# SPDX-License-Identifier: Apache-2.0
"""The segment boundary on generated ids, against a reference that counts bytes per token, and the masks."""

import io
import itertools
import math
import random

import pytest
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from verl_p2r.segments import perception_length, segment_masks, visible_lengths
from verl_p2r.template import block_spans, perception_end

CORPUS = [
    "<observation>Based on the question, I need to notice the red ball.</observation>",
    "<think>Based on the observations, the ball moves left , doesn't it ?</think><answer>B</answer>",
    "<observation> 球は赤い, a naïve café </observation>\n<think> so </think>\n<answer> A </answer>",
]
NOTHING = "\u200b\u3164\u00ad"
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|image_pad|>"]
FRAGMENTS = [
    *("<observation>", "</observation>", "<think>", "</think>", "<answer>B</answer>", "red ball", " . ", "doesn't"),
    *(" ", "\n", "é", "球", "🔴", "\u200d", "n't ?", "<", ">", "</obs", "x"),
]


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Without a regex, pieces run over the end of a tag, as ".</" and ">\n" do in real vocabularies.
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=True,
        extra_special_tokens=SPECIALS,
    )


def sentencepiece_unigram():
    """Train SentencePiece with byte fallback and load it as Llama's tokenizer is: leading space stripped."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4), model_writer=stream, model_type="unigram", vocab_size=340,
        character_coverage=0.98, byte_fallback=True, hard_vocab_limit=False, minloglevel=2, num_threads=1,
        max_sentencepiece_length=24, split_by_unicode_script=False,
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto.FromString(stream.getvalue())
    tokenizer = Tokenizer(
        models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], unk_id=0, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=True,
    )  # fmt: skip


class Reader:
    """A tokenizer with the bytes of its tokens, taken from the vocabulary instead of decoding."""

    def __init__(self, tokenizer, metaspace):
        self.tokenizer, self.metaspace = tokenizer, metaspace
        self.special = set(tokenizer.all_special_ids)
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self.byte_of = {chr(byte): byte for byte in printable}
        self.byte_of |= {chr(256 + place): byte for place, byte in enumerate(others)}

    def token_bytes(self, token):
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if token in self.special:
            return b""
        if not self.metaspace:
            return bytes(self.byte_of[letter] for letter in piece)
        if piece.startswith("<0x") and len(piece) == 6:
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def slow_length(self, ids):
        """The definition, byte by byte: a token belongs to P if its first byte lies before the end of P's region."""
        pieces = self.pieces(ids)
        # The region in bytes: the tags are ASCII, so latin-1 decoding keeps their byte positions.
        end = perception_end(b"".join(pieces).decode("latin-1"))
        starts = itertools.accumulate(map(len, pieces[:-1]), initial=0)
        return sum(start < end for start in starts) if pieces else 0

    def slow_visible(self, ids):
        """The definition, byte by byte: the first byte inside a block, and a byte of a visible character."""
        pieces = self.pieces(ids)
        raw = b"".join(pieces)
        # "\x85" and "\xa0" are white space in latin-1: without them, the spans in bytes are those in characters.
        spans = block_spans(raw.translate(bytes.maketrans(b"\x85\xa0", b"xx")).decode("latin-1"))
        seen = []  # for each byte, whether its character is visible
        for character in raw.decode("utf-8", "surrogateescape"):
            size = len(character.encode("utf-8", "surrogateescape"))
            seen += [not (character.isspace() or character in NOTHING or "\udc80" <= character <= "\udcff")] * size
        counts = dict.fromkeys(("observation", "think", "answer"), 0)
        starts = list(itertools.accumulate(map(len, pieces), initial=0))
        for tag, (begin, stop) in spans.items():
            counts[tag] = sum(
                begin <= start < stop and any(seen[start:end]) for start, end in itertools.pairwise(starts)
            )
        return counts["observation"], counts["think"] + counts["answer"]

    def pieces(self, ids):
        pieces = [self.token_bytes(token) for token in ids]
        if self.metaspace:
            # Llama's decoder drops one leading space, of the first token that has bytes.
            first = next((place for place, piece in enumerate(pieces) if piece), None)
            if first is not None and pieces[first].startswith(b" "):
                pieces[first] = pieces[first][1:]
        return pieces


@pytest.fixture(scope="module", params=["byte-level BPE", "SentencePiece"])
def reader(request):
    if request.param == "byte-level BPE":
        return Reader(byte_level_bpe(), metaspace=False)
    return Reader(sentencepiece_unigram(), metaspace=True)


def encode(reader, text):
    return reader.tokenizer.encode(text, add_special_tokens=False)


def sampled(reader, generator):
    """A response as a policy samples it: fragments tokenised apart, with stray ids and special tokens between."""
    ids = []
    for _ in range(generator.randint(0, 9)):
        ids += encode(reader, "".join(generator.choices(FRAGMENTS, k=generator.randint(1, 4))))
        if generator.random() < 0.3:
            ids.append(generator.choice(sorted(reader.special)))
    if generator.random() < 0.5:
        ids = encode(reader, "".join(["<observation>", *generator.choices(FRAGMENTS, k=3), "</observation>"])) + ids
    return ids


def test_perception_length_of_sampled_responses_matches_byte_count(reader):
    generator = random.Random(0)
    inside = 0
    for _ in range(1500):
        ids = sampled(reader, generator)
        length = perception_length(ids, reader.tokenizer)
        assert length == reader.slow_length(ids), reader.tokenizer.convert_ids_to_tokens(ids)
        inside += 0 < length < len(ids)
    assert inside > 300


def test_perception_length_of_random_ids_matches_byte_count(reader):
    """An untrained policy samples ids at random, most of them no text: a boundary planted among them is found."""
    generator = random.Random(1)
    opening, closing, think = (encode(reader, tag) for tag in ("<observation>", "</observation>", "<think>"))
    broken = 0
    for _ in range(1000):
        noise = [generator.choices(range(len(reader.tokenizer)), k=generator.randint(0, 12)) for _ in range(3)]
        ids = noise[0] + opening + noise[1] + generator.choice([closing, think]) + noise[2]
        broken += "\ufffd" in reader.tokenizer.decode(ids)
        assert perception_length(ids, reader.tokenizer) == reader.slow_length(ids)
    assert broken > 500


def test_number_of_decodes_is_logarithmic(reader):
    class Counting:
        decodes = 0

        def decode(self, *args, **kwargs):
            self.decodes += 1
            return reader.tokenizer.decode(*args, **kwargs)

    for words in (1, 10, 100, 1000):
        for middle in ("red ball ", "球", "🔴"):
            ids = encode(reader, "<observation>" + middle * words + "</observation><think>" + middle * words)
            counting = Counting()
            assert perception_length(ids, counting) == reader.slow_length(ids)
            # The whole text, then per halving one decode and up to three steps back to a cut between characters.
            assert counting.decodes <= 1 + 4 * math.ceil(math.log2(len(ids) + 1))


class Pieces:
    """A tokenizer of byte strings chosen by a test, so that the boundary falls where the test needs it."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return b"".join(self.pieces[place] for place in ids).decode("utf-8", errors="replace")


RED, BALL = "é".encode(), "🔴".encode()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # The token ">\n<" straddles the end of P: its first byte is the tag's last, so it is P's.
        ([b"<observation>", b"a", b"</observation", b">\n<", b"think>"], 4),
        # ">" is its own token, so "\n<" begins after P.
        ([b"<observation>", b"a", b"</observation>", b"\n<", b"think>"], 3),
        # One token holds everything.
        ([b"<observation>a</observation><think>"], 1),
        # Special tokens decode to nothing: the one inside is P's, the two at the end are R's.
        ([b"<observation>", b"", b"a</observation>", b"", b"", b"<think>"], 3),
        # A leading special token has the position of P's first byte; if P is empty it belongs to R.
        ([b"", b"<observation>a</observation>"], 2),
        ([b"", b"<answer>"], 0),
        # P ends before <think>, after the two bytes of an "é" in separate tokens: both belong to P.
        ([RED[:1], RED[1:], b"<think>"], 2),
        # Special tokens between the halves do not close the character.
        ([RED[:1], b"", b"", b"", b"", RED[1:], b"<think>"], 6),
        ([b"a", BALL[:2], BALL[2:] + b"<th", b"ink>"], 3),
        # A multi-byte character cut right after P's end changes nothing.
        ([b"<observation>a</observation>", BALL[:1], BALL[1:3], BALL[3:], b"<think>"], 1),
        # P ends in invalid bytes: two of the three bytes of "球", then <think>.
        ([b"\xe7", b"\x90", b"<think>"], 2),
        ([b"\xe7", b"\x90<", b"think>"], 2),
        ([b"\xe7", b"\x90", b"", b"", b"<", b"think>"], 2),
        ([b"\xff", b"\xff", b"\xff", b"\xff", b"\xff", b"<think>"], 5),
        # No boundary, no text, no tokens.
        ([b"It", b" is", b" B"], 0),
        ([b"", b""], 0),
        ([], 0),
    ],
)
def test_perception_boundary_on_hand_made_token_pieces(pieces, expected):
    assert perception_length(range(len(pieces)), Pieces(pieces)) == expected


def blocks(reader, generator):
    """A whole response with padding inside and between its blocks, tokenised in parts as a policy may sample it."""
    ids = []
    for tag in ("observation", "think", "answer"):
        words = generator.choices(["red ball", " . ", "doesn't", "é", "球", "🔴", " ", "\n", "<", *NOTHING], k=6)
        for part in (f"<{tag}>", *words, f"</{tag}>", generator.choice(["", " ", "\n", "\u200b", "x"])):
            ids += encode(reader, part)
            if generator.random() < 0.05:
                ids.append(generator.choice(sorted(reader.special)))
    return ids


def test_visible_lengths_match_byte_count(reader):
    generator = random.Random(3)
    counted = 0
    for _ in range(600):
        ids = blocks(reader, generator)
        lengths = visible_lengths(ids, reader.tokenizer)
        assert lengths == reader.slow_visible(ids), reader.tokenizer.convert_ids_to_tokens(ids)
        counted += sum(lengths)
    assert counted > 3000


@pytest.mark.parametrize("nothing", [" ", "\n", "\u00a0", "\u200b", "\u3164", "\u00ad", "\u2800", "\U000e0041"])
def test_invisible_padding_adds_no_visible_length(reader, nothing):
    """These vocabularies split zero-width characters into bytes, so that no single token reveals them."""
    padding = encode(reader, nothing * 50)
    parts = [
        encode(reader, f"<observation>{'é' if nothing == ' ' else 'a'} red ball"),
        encode(reader, ".</observation>"),
    ]
    parts += [encode(reader, "<think>"), encode(reader, "so it is red</think>")]
    parts += [encode(reader, "<answer>B"), encode(reader, "</answer>")]
    plain = visible_lengths([*itertools.chain(*parts)], reader.tokenizer)
    padded = visible_lengths([*itertools.chain(*(padding + part for part in parts)), *padding], reader.tokenizer)
    assert padded == plain
    assert min(plain) > 0


def test_invalid_utf8_bytes_have_no_visible_length():
    pieces = [b"<observation>", *[b"\xe7"] * 9, b"red", b"\xff" * 3, b"</observation>"]
    assert visible_lengths(range(len(pieces)), Pieces(pieces)) == (1, 0)


def test_a_response_without_blocks_has_no_visible_length(reader):
    assert visible_lengths([], reader.tokenizer) == (0, 0)
    assert visible_lengths(encode(reader, "It is B, since <think> red"), reader.tokenizer) == (0, 0)


def test_boundary_is_found_in_text_made_of_byte_tokens():
    """Byte-fallback decoding invalidates a whole run of byte tokens if its last character is incomplete."""
    reader = Reader(sentencepiece_unigram(), metaspace=True)
    for tail in range(40):
        text = "<observation>" + "球🔴" * 9 + "</observation>" + "球" * tail
        ids = reader.tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text.encode()])
        assert reader.tokenizer.decode(ids) == text
        assert perception_length(ids, reader.tokenizer) == reader.slow_length(ids) == 13 + 9 * 7 + 14


def test_token_ids_may_be_a_tensor(reader):
    ids = encode(reader, "<observation>a</observation><think>")
    assert perception_length(torch.tensor(ids), reader.tokenizer) == reader.slow_length(ids) > 0


def test_segment_masks_match_hand_made_example():
    # Row 0: tokens 0-2 are P's, of which token 1 is a tool's (a gap). Row 1: P is empty. Row 2: P is all, and a
    # length beyond the row changes nothing. Row 3: padding only.
    perception, reasoning = segment_masks(
        torch.tensor([3, 0, 9, 2]),
        torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]),
    )
    assert perception.dtype == reasoning.dtype == torch.bool
    assert perception.int().tolist() == [[1, 0, 1, 0, 0], [0] * 5, [1] * 5, [0] * 5]
    assert reasoning.int().tolist() == [[0, 0, 0, 1, 0], [1, 1, 0, 0, 0], [0] * 5, [0] * 5]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_are_disjoint_and_cover_every_response_mask(dtype):
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        rows, width = torch.randint(0, 7, (2,), generator=generator).tolist()
        mask = (torch.rand(rows, width, generator=generator) < 0.7).to(dtype)
        length = torch.randint(0, width + 2, (rows,), generator=generator)
        perception, reasoning = segment_masks(length, mask)
        assert not (perception & reasoning).any()
        assert torch.equal(perception | reasoning, mask.bool())
        for row in range(rows):
            assert not perception[row, int(length[row]) :].any()
            assert not reasoning[row, : int(length[row])].any()


@pytest.mark.parametrize(("length", "mask"), [((2,), (3, 4)), ((3, 1), (3, 4)), ((), (3, 4)), ((3,), (3,))])
def test_segment_masks_refuse_mismatched_shapes(length, mask):
    with pytest.raises(ValueError, match="expected perception_length of shape"):
        segment_masks(torch.zeros(length, dtype=torch.int64), torch.ones(mask))
