"""Promises of the data card."""

from __future__ import annotations

import json

import pytest

from bigtrain.config.data_settings import DataSettings
from bigtrain.config.settings import TrainSettings
from bigtrain.data import Dataset, Plan, build_datasets, make_plan, open_datasets, open_packings
from bigtrain.data.provenance.card import Card, card_as_markdown, data_card
from bigtrain.data.provenance.provenance import contents_of
from tests.data.helpers import data_settings, jsonl_source, sentences, write_jsonl


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("card")
    sources = [
        jsonl_source(
            write_jsonl(folder / f"{name}|x.jsonl", sentences(size, seed=size)), name, weight=weight, license=license
        )
        for name, size, weight, license in (("web", 60, 3, None), ("books", 30, 1, "CC-BY-4.0"))
    ]
    settings = data_settings(folder / "data", *sources)
    build_datasets(settings, vocab_size=512, report=lambda line: None)
    return settings


def opened(made: DataSettings) -> tuple[list[Dataset], list[Dataset], Plan]:
    train = open_datasets(made, model_vocab_size=512)
    plan = make_plan(made, TrainSettings(steps=1, global_batch_size=1), open_packings(made, train))
    return train, open_datasets(made, model_vocab_size=512, split="validation"), plan


def card_at(made: DataSettings, samples: int) -> Card:
    train, held_out, plan = opened(made)
    return data_card(made, train, held_out, plan, samples)


@pytest.mark.parametrize("samples", [0, 1, 57, 400])
def test_samples_and_epochs_are_those_that_the_batches_held(made: DataSettings, samples: int) -> None:
    train, _, plan = opened(made)
    card = card_at(made, samples)
    contents = contents_of(plan, open_packings(made, train), range(samples))
    for source, dataset in zip(card["sources"], train, strict=True):
        own = [sample for sample in contents if sample.dataset is dataset]
        assert source["samples"] == len(own)
        assert source["epochs"] == round(len(own) / -(-dataset.tokens // made.sequence_length), 6)
        assert source["share"] == (round(len(own) / samples, 6) if samples else 0)


def test_the_card_names_every_dataset_the_tokenizer_and_the_licences_given(made: DataSettings) -> None:
    train, held_out, plan = opened(made)
    card = json.loads(json.dumps(card_at(made, 100)))
    markdown = card_as_markdown(card)
    for source, seen, unseen in zip(card["sources"], train, held_out, strict=True):
        assert source["train"]["dataset_id"] == seen.dataset_id
        assert source["validation"]["dataset_id"] == unseen.dataset_id
        assert source["train"]["documents"] + source["validation"]["documents"] == {"web": 60, "books": 30}[seen.name]
        for fact in (seen.dataset_id, unseen.dataset_id, f"{seen.tokens:,}", source["kind"]):
            assert fact in markdown
    assert [source["license"] for source in card["sources"]] == [None, "CC-BY-4.0"]
    assert "CC-BY-4.0" in markdown and "not given" in markdown
    assert plan.plan_id in markdown and train[0].manifest.tokenizer in markdown


def test_every_row_of_a_table_has_as_many_cells_as_its_head(made: DataSettings) -> None:
    lines = card_as_markdown(card_at(made, 10)).splitlines()
    tables = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    tables = [table.strip().splitlines() for table in tables if table.strip()]
    assert len(tables) == 2
    for head, *rows in tables:
        assert {row.replace(r"\|", "").count("|") for row in rows} == {head.count("|")}


def test_cleaning_rules_are_listed_with_their_thresholds(made: DataSettings) -> None:
    card = card_at(made, 10)
    assert "No document was filtered" in card_as_markdown(card)
    card["sources"][0]["clean"] = [{"c4": {"min_sentences": 7}}]
    assert '{"c4": {"min_sentences": 7}}' in card_as_markdown(card)


def test_a_licence_may_be_added_after_the_build(made: DataSettings) -> None:
    sources = [source.model_copy(update={"license": "MIT"}) for source in made.sources]
    later = made.model_copy(update={"sources": sources})
    build_datasets(later, vocab_size=512, report=lambda line: None)
    assert [d.dataset_id for d in opened(later)[0]] == [d.dataset_id for d in opened(made)[0]]
    assert [source["license"] for source in card_at(later, 1)["sources"]] == ["MIT", "MIT"]


def test_the_card_says_what_was_left_out_and_how_the_mixture_changed(made: DataSettings) -> None:
    assert "Left out" not in card_as_markdown(card_at(made, 10))
    skip = [
        {"steps": [3, 4], "reason": "a spike"},
        {"source": "web", "files": "*.jsonl", "ids": ["ab" * 16], "from_step": 7, "reason": "spam | ads"},
    ]
    phases = [{"from_tokens": 4000, "weights": {"web": 1, "books": 2.5}}]
    edited = DataSettings.model_validate({**made.model_dump(mode="json"), "skip": skip, "phases": phases}, strict=False)
    train, held_out, plan = opened(made)
    markdown = card_as_markdown(json.loads(json.dumps(data_card(edited, train, held_out, plan, 10))))
    assert "| the batches planned for steps 3 to 4 | a spike |" in markdown
    assert f"web: files like `*.jsonl` and document `{'ab' * 16}`, from step 7 on" in markdown
    assert r"| spam \| ads |" in markdown
    assert "- From 4,000 tokens on mixed web 1, books 2.5.\n- Written" in markdown


def test_the_card_does_not_claim_that_words_of_token_ids_were_compared(made: DataSettings) -> None:
    card = card_at(made, 10)
    card |= {"decontaminate": {"paths": ["x"], "ngram": 13}}
    assert "Token ids" not in card_as_markdown(card)
    card["sources"][0]["kind"] = "megatron"
    assert "Token ids (web) were not looked at." in card_as_markdown(card)
