"""Tokenizers of a run: read from a folder, or trained on its texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brewer_core.errors import DataError, MissingExtraError, RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_SPECIAL_OF_BYTES = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
_ALPHABET_SIZE = 1000
_NO_TOKENIZER = "holds no tokenizer that can be read; expected one that `save_pretrained` wrote."


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer for single texts and pairs, as BERT's; equal texts give an equal one.

    Its vocabulary has vocab_size entries at most, yet never fewer than the characters of the texts need (twice as many
    as there are of them, and five).
    """
    with _needs_transformers("training a tokenizer"):
        import transformers
        from tokenizers import models
    if not texts:
        raise DataError("there are no texts to train a tokenizer on.")
    tokenizer = _untrained(models.WordPiece(_vocabulary(texts, vocab_size), unk_token="[UNK]"))
    tokenizer.post_processor = _template(tokenizer)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    make: Any = transformers.PreTrainedTokenizerFast  # not typed
    trained: PreTrainedTokenizerFast = make(tokenizer_object=tokenizer, model_input_names=inputs, **_SPECIAL)
    return trained


def train_byte_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of byte pairs for language models, as GPT-2's; equal texts give an equal one, and any text comes back as it was.

    It puts no special tokens around texts, and has one for their end and one for padding. Its vocabulary has vocab_size entries at most,
    yet never fewer than these two and the 256 bytes.
    """
    with _needs_transformers("training a tokenizer"):
        import transformers
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    if not texts:
        raise DataError("there are no texts to train a tokenizer on.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL_OF_BYTES.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    make: Any = transformers.PreTrainedTokenizerFast  # not typed
    inputs = ["input_ids", "attention_mask"]
    trained: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer, model_input_names=inputs, clean_up_tokenization_spaces=False, **_SPECIAL_OF_BYTES
    )
    return trained


def load_tokenizer(folder: Path, pads: bool = True) -> Any:
    """The fast tokenizer that a folder holds. Raises RequestError where it holds none, or one that cannot pad, if it is to."""
    with _needs_transformers("a tokenizer from a folder"):
        from transformers import AutoTokenizer
    if not folder.is_dir():
        raise RequestError(f'tokenizer.from: there is no folder {folder}; give a folder, "teacher" or "train".')
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # files of any age, whatever they raise
        raise RequestError(f"tokenizer.from: {folder} {_NO_TOKENIZER}") from error
    # Where a folder has but a model, transformers makes up a tokenizer that knows its special tokens alone.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise RequestError(f"tokenizer.from: {folder} {_NO_TOKENIZER}")
    if not tokenizer.is_fast or (pads and tokenizer.pad_token is None):
        raise RequestError(
            f"tokenizer.from: the tokenizer in {folder} cannot pad batches; it needs a tokenizer.json and a padding token."
        )
    return tokenizer


def _vocabulary(texts: Sequence[str], vocab_size: int) -> dict[str, int]:
    from tokenizers import models, trainers

    tokenizer = _untrained(models.WordPiece(unk_token="[UNK]"))
    # The trainer numbers characters inside words in the order of a hash map, another in every process, and breaks ties
    # between merges by these numbers. Told them as special tokens it numbers them in this order.
    inside = [f"##{character}" for character in _alphabet(tokenizer, texts)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SPECIAL.values(), *inside],
        limit_alphabet=_ALPHABET_SIZE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return dict(tokenizer.get_vocab())


def _alphabet(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))
    return sorted(character for character, _ in counts.most_common(_ALPHABET_SIZE) if not character.isspace())


def _untrained(model: Any) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _template(tokenizer: Tokenizer) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )


@contextmanager
def _needs_transformers(user: str) -> Iterator[None]:
    """Import transformers inside this; an ImportError becomes a MissingExtraError with the install command."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(f"{user} needs transformers; install it with: pip install 'brewer-core[hf]'") from error
