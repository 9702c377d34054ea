"""Augmentations in a run: which tokens they change, what decides the draws, and that evaluation never sees them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from brewer_builtins.augmentations import brewer_augmentations
from brewer_core import KINDS, data_utils
from brewer_core.checkpoints import Checkpoints
from brewer_core.components import Component
from brewer_core.config import parse_run_config
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import ConfigError, DataError
from brewer_core.plugins import build_registry
from brewer_core.processes import Processes
from brewer_core.run import run_config
from brewer_core.run.assembly import Assembly
from brewer_core.run.augmenting import AugmentedText, Augmenter
from brewer_core.run.lessons import supervised_lesson
from brewer_core.run.loading import LengthGroupedBatches, TextLoader
from brewer_core.run.text import TextDataset
from brewer_core.run.tokenizers import train_tokenizer
from fakes import plugin
from runs import (
    bert,
    distill,
    document,
    films,
    labelled,
    read,
    supervised,
    training,
    weights_in,
    write_config,
    write_csv,
)
from tiny import assert_same, weights

transformers = pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")

NAMES = ("deleting", "long_disorder", "masking", "n_gram_sampling", "short_disorder")
WORDS = "the cat sat on a mat and the dog ran"
MASKED = {"name": "masking", "p": 0.5}


@pytest.fixture(scope="module")
def registry():
    return build_registry()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS], 80)


def component(name, **options):
    return Component(KINDS["augmentation"], name, brewer_augmentations()[name]).bind(options)


def passed(function):
    return Component.passed("augmentation", function).bind()


def reverse(tokens):
    return tokens[::-1]


def double(tokens):
    return [token for token in tokens for _ in range(2)]


def rows_of(tokenizer, *rows, max_length=32, **options):
    texts = [{"text": row[0], "other": row[1]} if isinstance(row, tuple) else {"text": row} for row in rows]
    columns = ("text", "other") if isinstance(rows[0], tuple) else "text"
    return TextDataset(
        texts, text=columns, label=None, classes=(), tokenizer=tokenizer, max_length=max_length, **options
    )


def augmented(tokenizer, row, *augmentations, max_length=32, seed=0):
    """A row's tokens, their types and their mask, after these augmentations."""
    augmenter = Augmenter(augmentations, tokenizer, max_length, "data.films.augmentations")
    item = rows_of(tokenizer, row, max_length=max_length)[0]
    made = augmenter(item, np.random.default_rng(seed))
    types = made["token_type_ids"].tolist() if "token_type_ids" in made else None
    return tokenizer.convert_ids_to_tokens(made["input_ids"].tolist()), types, made["attention_mask"].tolist()


# The components


def test_the_hook_gives_exactly_these():
    assert tuple(brewer_augmentations()) == NAMES


@pytest.mark.parametrize(
    ("name", "options", "arguments"),
    [
        ("deleting", {"p": 0.3}, {"p": 0.3}),
        ("long_disorder", {"p": 0.5, "length": 0.4}, {"p": 0.5, "length": 0.4}),
        ("masking", {"p": 0.3, "mask_token": "<mask>"}, {"p": 0.3, "mask": "<mask>"}),
        ("n_gram_sampling", {"p_ng": [0.5, 0.5], "l_ng": [2, 7]}, {"p_ng": [0.5, 0.5], "l_ng": [2, 7]}),
        ("short_disorder", {"p": [0.2] * 5}, {"p": [0.2] * 5}),
    ],
)
def test_a_component_computes_what_the_function_does(name, options, arguments):
    tokens = WORDS.split()
    function = getattr(data_utils, name)
    for seed in range(20):
        drawn, again = np.random.default_rng(seed), np.random.default_rng(seed)
        assert component(name, **options)(tokens, generator=drawn) == function(tokens, generator=again, **arguments)
        assert component(name)(tokens, generator=drawn) == function(tokens, generator=again)


# The tokens of a row


def test_special_tokens_and_token_types_stay_around_each_text(tokenizer):
    assert augmented(tokenizer, "the cat sat", passed(reverse)) == (
        ["[CLS]", "sat", "cat", "the", "[SEP]"],
        [0] * 5,
        [1] * 5,
    )
    assert augmented(tokenizer, ("the cat", "a mat ran"), passed(reverse)) == (
        ["[CLS]", "cat", "the", "[SEP]", "ran", "mat", "a", "[SEP]"],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [1] * 8,
    )


def test_each_text_of_a_pair_is_augmented_by_itself(tokenizer):
    mask = component("masking", p=1)
    tokens, types, _ = augmented(tokenizer, ("cat", "the dog ran"), passed(double), mask)
    assert tokens == ["[CLS]", *["[MASK]"] * 2, "[SEP]", *["[MASK]"] * 6, "[SEP]"]
    assert types == [0] * 4 + [1] * 7
    lengths = []
    augmented(tokenizer, ("cat", "the dog ran"), passed(lambda tokens: lengths.append(len(tokens)) or tokens))
    assert lengths == [1, 3]


def test_augmentations_are_applied_in_order(tokenizer):
    first, last = passed(lambda tokens: tokens[:1]), passed(lambda tokens: tokens[-1:])
    assert augmented(tokenizer, "the cat sat", first, passed(double))[0] == ["[CLS]", "the", "the", "[SEP]"]
    assert augmented(tokenizer, "the cat sat", passed(double), first)[0] == ["[CLS]", "the", "[SEP]"]
    assert augmented(tokenizer, "the cat sat", last, passed(double))[0] == ["[CLS]", "sat", "sat", "[SEP]"]


def test_unknown_words_and_masks_are_part_of_a_text(tokenizer):
    row = "the ß cat [MASK] sat"
    assert augmented(tokenizer, row, passed(reverse))[0] == ["[CLS]", "sat", "[MASK]", "cat", "[UNK]", "the", "[SEP]"]


def test_what_is_too_long_is_cut_at_the_end_of_the_longest_text(tokenizer, monkeypatch):
    assert augmented(tokenizer, "the cat sat on", passed(double), max_length=7)[0] == (
        ["[CLS]", "the", "the", "cat", "cat", "sat", "[SEP]"]
    )
    pair = ("cat", "the dog ran")
    expected = ["[CLS]", "cat", "cat", "[SEP]", "the", "the", "dog", "dog", "[SEP]"]
    assert augmented(tokenizer, pair, passed(double), max_length=9)[:2] == (expected, [0] * 4 + [1] * 5)
    monkeypatch.setattr(tokenizer, "truncation_side", "left")
    assert augmented(tokenizer, "the cat sat on", passed(double), max_length=7)[0] == (
        ["[CLS]", "cat", "sat", "sat", "on", "on", "[SEP]"]
    )


def test_a_text_may_lose_all_its_tokens(tokenizer):
    delete = component("deleting", p=1)
    assert augmented(tokenizer, "the cat", delete) == (["[CLS]", "[SEP]"], [0, 0], [1, 1])
    assert augmented(tokenizer, ("the cat", "dog"), delete)[:2] == (["[CLS]", "[SEP]", "[SEP]"], [0, 0, 1])
    assert augmented(tokenizer, "", passed(double))[0] == ["[CLS]", "[SEP]"]


def other_tokenizer(special=True, mask="<mask>"):
    """One whose special tokens look like RoBERTa's, and that knows no token types; or one without special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", *WORDS.split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", mask_token=mask, cls_token="<s>",
        sep_token="</s>", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def test_special_tokens_are_the_tokenizers_own():
    assert augmented(other_tokenizer(), ("the cat", "a mat ran"), passed(reverse)) == (
        ["<s>", "cat", "the", "</s>", "</s>", "ran", "mat", "a", "</s>"],
        None,
        [1] * 9,
    )


def test_a_row_of_which_nothing_would_be_left_stays_as_it_was():
    tokenizer = other_tokenizer(special=False)
    assert augmented(tokenizer, "the cat", component("deleting", p=1))[0] == ["the", "cat"]
    assert augmented(tokenizer, "the cat", passed(reverse))[0] == ["cat", "the"]


@pytest.mark.parametrize(
    ("augmentation", "mask", "text"),
    [
        (
            component("masking", p=1),
            "<mask>",
            "`masking` gives '[MASK]', which is no token of the run's tokenizer; its own mask token is '<mask>'.",
        ),
        (
            component("masking", p=1),
            None,
            "`masking` gives '[MASK]', which is no token of the run's tokenizer; it has no mask token.",
        ),
        (
            passed(lambda tokens: [len(tokens)]),
            "<mask>",
            "`passed` gives 2, which is no token of the run's tokenizer; its own mask token is '<mask>'.",
        ),
        (passed(lambda tokens: tuple(tokens)), "<mask>", "`passed` gives ('cat', 'the'), which is no list of tokens."),
        (
            component("n_gram_sampling", l_ng=[1]),
            "<mask>",
            "n_gram_sampling: p_ng is [0.2, 0.2, 0.2, 0.2, 0.2]; expected probabilities that sum to 1, 1 of them.",
        ),
    ],
)
def test_a_result_that_is_no_list_of_tokens_is_told_with_its_place(augmentation, mask, text):
    with pytest.raises(DataError) as caught:
        augmented(other_tokenizer(mask=mask), "the cat", passed(reverse), augmentation)
    assert str(caught.value) == f"data.films.augmentations[1]: {text}"


def test_a_rehearsal_finds_a_mask_token_however_rarely_it_is_drawn():
    tokenizer = other_tokenizer()
    rare = component("masking", p=1e-12)
    with pytest.raises(DataError, match="its own mask token is '<mask>'"):
        Augmenter([rare], tokenizer, 16, "data.x.augmentations").rehearse(rows_of(tokenizer, "the cat"))
    own = component("masking", p=1e-12, mask_token="<mask>")
    Augmenter([own], tokenizer, 16, "data.x.augmentations").rehearse(rows_of(tokenizer, "the cat"))


# Passes


@pytest.fixture(scope="module")
def passes(tokenizer):
    """The rows of the first passes over a loader, by their number: `passes(batch_size, count)`."""

    def make(batch_size=4, count=2, seed=5, order=1, first_row=0, augmenter=True):
        rows = rows_of(tokenizer, *(f"{WORDS} {WORDS[i:]}" for i in range(20)), first_row=first_row)
        methods = [component("masking", p=0.3), component("short_disorder")]
        augment = Augmenter(methods, tokenizer, 32, "data.x.augmentations") if augmenter else None
        dataset = AugmentedText(rows, [augment] * len(rows), seed)
        batches = TextLoader(
            dataset, LengthGroupedBatches(dataset.lengths, batch_size, order), Processes(), numbered=True
        )
        return [tokens_by_row(batches) for _ in range(count)]

    return make


def tokens_by_row(batches):
    """The tokens of each row of one pass, padding left out."""
    found = {}
    for batch in batches:
        for row, ids, mask in zip(batch["row"].tolist(), batch["input_ids"], batch["attention_mask"], strict=True):
            assert row not in found
            found[row] = tuple(ids[mask.bool()].tolist())
    return found


def test_every_pass_draws_anew(passes):
    first, second, third = passes(count=3)
    assert sorted(first) == sorted(second) == list(range(20))
    assert all(first[row] != second[row] != third[row] != first[row] for row in range(20))


def test_the_seed_the_pass_and_the_row_alone_decide_what_is_drawn(passes):
    known = passes()
    assert passes() == known
    assert passes(batch_size=7) == known
    assert passes(order=2) == known
    assert passes(seed=6)[0] != known[0]
    moved = passes(first_row=20)[0]
    assert sorted(moved) == list(range(20, 40))
    assert all(moved[row + 20] != known[0][row] for row in range(20))


def test_rows_without_augmentations_stay_as_they_are(passes, tokenizer):
    rows = rows_of(tokenizer, *(f"{WORDS} {WORDS[i:]}" for i in range(20)))
    assert passes(augmenter=False) == [{i: tuple(rows[i]["input_ids"].tolist()) for i in range(20)}] * 2


# Runs


def with_augmentations(*augmentations: Any, **changes: Any) -> dict[str, Any]:
    """The usual config, whose films are augmented."""
    config = document(**changes)
    for data in config["data"].values():
        data["augmentations"] = list(augmentations)
    return config


def assembly_of(folder, config, registry):
    parsed = parse_run_config(config, "config.json", registry)
    return parsed, Assembly(parsed, folder, registry, torch.device("cpu"))


@pytest.fixture
def run(tmp_path, registry):
    """Carries out a config on the usual films; gives the folder."""

    def carry_out(config, name="run", plugins=None, **options):
        if not (tmp_path / "train.csv").exists():
            films(tmp_path)
        known = registry.with_plugin(plugin(**plugins)) if plugins else registry
        run_config(write_config(tmp_path, config, f"{name}.json"), output=tmp_path / name, registry=known, **options)
        return tmp_path / name

    return carry_out


def recording(seen):
    """An augmentation that notes the texts that it is given."""

    def note(tokens):
        seen.append(" ".join(tokens))
        return tokens

    return {"note": note}


def test_a_run_with_every_augmentation(run):
    folder = run(with_augmentations(*NAMES, baselines=["labels_only"]))
    assert [ref["name"] for ref in read(folder / "config.json")["data"]["films"]["augmentations"]] == list(NAMES)
    used = {c["name"] for c in read(folder / "manifest.json")["components"] if c["kind"] == "augmentation"}
    assert used == set(NAMES)
    assert read(folder / "summary.json")["student"]["steps"] == 3


def test_augmentations_change_what_is_learnt_and_the_seed_repeats_it(run):
    first, again, plain = (
        weights_in(run(config, name) / "student")
        for name, config in (("a", with_augmentations(MASKED)), ("b", with_augmentations(MASKED)), ("c", document()))
    )
    assert_same(first, again)
    name = "classifier.weight"
    assert not torch.equal(first[name], plain[name])


def test_augmentations_that_change_nothing_train_the_same_student(run):
    still = with_augmentations({"name": "masking", "p": 0}, {"name": "deleting", "p": 0})
    assert_same(weights_in(run(still, "still") / "student"), weights_in(run(document(), "plain") / "student"))


@pytest.mark.filterwarnings("ignore:teacher cache")  # which tells that they are new in every pass
def test_a_cache_that_is_asked_for_keeps_augmented_rows_as_rows_of_their_own(run, tmp_path):
    long = training(steps=15)  # twice over the rows
    for name, cache in (("live", "off"), ("cached", "here")):
        run(with_augmentations(MASKED, stages=[distill(training=long)], cache=cache), name)
    live, cached = (weights_in(tmp_path / name / "student") for name in ("live", "cached"))
    assert_same(cached, live, atol=1e-5)


def test_labelled_and_unlabelled_rows_are_augmented_and_keep_their_labels(tmp_path, registry):
    config, assembly = assembly_of(films(tmp_path), with_augmentations({"name": "masking", "p": 1}), registry)
    rows = assembly.training_set(config.stages[1], "stages[1]")
    (batch,) = assembly.training_loader(rows, config.stages[1].training.model_copy(update={"batch_size": 28}), "distil")
    assert dict(zip(batch["row"].tolist(), batch["labels"].tolist(), strict=True)) == dict(enumerate(rows.labels))
    text = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], torch.tensor([2, 3]))
    assert set(batch["input_ids"][text].tolist()) == {assembly.tokenizer.mask_token_id}


def test_stages_draw_apart_from_each_other(tmp_path, registry):
    config, assembly = assembly_of(films(tmp_path), with_augmentations(MASKED), registry)
    rows = assembly.training_set(config.stages[0], "stages[0]")
    first, second = (
        tokens_by_row(assembly.training_loader(rows, config.stages[0].training, name)) for name in ("one", "two")
    )
    assert first != second


def test_only_data_that_asks_for_it_is_augmented(tmp_path, registry):
    config = document(evaluation={"data": "plain"})
    config["data"] = {
        "films": {**config["data"]["films"], "augmentations": [{"name": "deleting", "p": 1}]},
        "plain": config["data"]["films"],
    }
    config["stages"] = [supervised(train=["films", "plain"])]
    parsed, assembly = assembly_of(films(tmp_path), config, registry)
    rows = assembly.training_set(parsed.stages[0], "stages[0]")
    seen = tokens_by_row(assembly.training_loader(rows, parsed.stages[0].training, "one"))
    assert [len(seen[row]) for row in range(16)] == [2] * 16
    assert [seen[row] for row in range(16, 32)] == [tuple(rows[row]["input_ids"].tolist()) for row in range(16, 32)]


def test_rows_of_evaluation_are_never_augmented(run, tmp_path):
    write_csv(films(tmp_path) / "eval.csv", [{**row, "text": "story story"} for row in labelled(4)])
    seen: list[str] = []
    config = with_augmentations("note", evaluation={"data": "films", "every_steps": 1})
    run(config, plugins={"brewer_augmentations": recording(seen)})
    assert any("good story" in text for text in seen)
    assert not any("story story" in text for text in seen)


def test_rows_that_are_trained_and_evaluated_on_are_evaluated_as_they_are(tmp_path, registry):
    config = with_augmentations({"name": "deleting", "p": 1}, evaluation={"data": "films.train"})
    parsed, assembly = assembly_of(films(tmp_path), config, registry)
    trained = tokens_by_row(
        assembly.training_loader(
            assembly.training_set(parsed.stages[0], "stages[0]"), parsed.stages[0].training, "teacher"
        )
    )
    evaluated = tokens_by_row(assembly.evaluation_loader("data"))
    assert sorted(trained) == sorted(evaluated)
    assert all(len(trained[row]) == 2 < len(evaluated[row]) for row in trained)


def test_pairs_of_texts_are_augmented(run, tmp_path):
    rows = [{"first": row["text"], "second": "good fun", "same": row["label"] == "p"} for row in labelled(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {"source": {"name": "jsonl", "path": "pairs.jsonl"}, "text": ["first", "second"], "label": "same"}
    config = with_augmentations(
        *NAMES, "note", data={"pairs": pairs}, task={"pair": True}, evaluation={"data": "pairs"}
    )
    config["stages"] = [supervised(train=["pairs"])]
    seen: list[str] = []
    assert weights_in(run(config, plugins={"brewer_augmentations": recording(seen)}) / "student")
    assert len(seen) > 2 * 12


def test_a_training_that_is_taken_up_again_draws_what_it_would_have_drawn(tmp_path, registry):
    still = bert(16, 1, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    config = with_augmentations(MASKED, models={"teacher": still}, stages=[supervised()])
    films(tmp_path)

    def engine(name):
        parsed, assembly = assembly_of(tmp_path, config, registry)
        lesson = supervised_lesson(assembly, parsed.stages[0], "stages[0]", assembly.fresh_model("teacher"), "teacher")
        optimizer = torch.optim.SGD(lesson.learner.student.parameters(), lr=0.1)
        due = Settings(checkpoint_due=lambda step, _epoch: True)
        checkpoints = Checkpoints(tmp_path / name, keep_last=10)
        made = Engine(lesson.learner, optimizer, device=assembly.device, settings=due, checkpoints=checkpoints)
        return made, lesson.loader

    straight, batches = engine("straight")
    straight.train(batches, Duration(steps=10))  # of four to a pass
    resumed, batches = engine("resumed")
    resumed.load_state_dict(Checkpoints(tmp_path / "straight").load(6))
    resumed.train(batches, Duration(steps=10))
    assert_same(weights(resumed.learner), weights(straight.learner))


# What is refused


def refusal(make):
    with pytest.raises(ConfigError) as caught:
        make()
    return list(caught.value.problems)


def test_wrong_options_are_told_with_their_place(registry):
    config = with_augmentations(
        {"name": "masking", "p": 1.5},
        {"name": "short_disorder", "p": [0.5, 0.5]},
        {"name": "n_gram_sampling", "p_ng": [0.9, 0.2, 0, 0, 0]},
        {"name": "n_gram_sampling", "l_ng": [0]},
        {"name": "long_disorder", "length": 0},
        {"name": "deleting", "q": 1},
        "maskin",
        {"name": "masking", "mask_token": ""},
    )
    at = "data.films.augmentations"
    assert refusal(lambda: parse_run_config(config, "config.json", registry)) == [
        f"{at}[0].p: input should be less than or equal to 1, not 1.5",
        f"{at}[1].p: should be five probabilities, not [0.5, 0.5]",
        f"{at}[2].p_ng: should sum to 1, not [0.9, 0.2, 0, 0, 0]",
        f"{at}[3].l_ng[0]: input should be greater than or equal to 1, not 0",
        f"{at}[4].length: input should be greater than 0, not 0",
        f"{at}[5].q: the augmentation `deleting` has no such option",
        f"{at}[6]: no augmentation is called 'maskin'; did you mean 'masking'? Known: {', '.join(NAMES)}",
        f'{at}[7].mask_token: string should have at least 1 character, not ""',
    ]


def test_a_mask_token_that_is_not_the_tokenizers_is_told_before_anything_is_written(run, tmp_path):
    config = with_augmentations("deleting", {"name": "masking", "p": 1e-9, "mask_token": "<mask>"})
    assert refusal(lambda: run(config)) == [
        "data.films.augmentations[1]: `masking` gives '<mask>', which is no token of the run's tokenizer; its own mask "
        "token is '[MASK]'"
    ]
    assert not (tmp_path / "run").exists()


def test_probabilities_that_do_not_belong_to_the_lengths_are_told_before_anything_is_written(run, tmp_path):
    assert refusal(lambda: run(with_augmentations({"name": "n_gram_sampling", "l_ng": [1]}))) == [
        "data.films.augmentations[0]: n_gram_sampling: p_ng is [0.2, 0.2, 0.2, 0.2, 0.2]; expected probabilities that sum "
        "to 1, 1 of them"
    ]
    assert not (tmp_path / "run").exists()
