"""Each importer on small sources of exactly its schema."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefenv.replay import importers
from prefenv.replay.alpaca_eval import alpaca_eval
from prefenv.replay.conversations import ASSISTANT, preference
from prefenv.replay.sources import Files
from tests.prefenv.replay.written import ACTIVE, ANNOTATOR, EMOJI, NESTED, ULTRAFEEDBACK, lines, pools, results, saved

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.parametrize("kind", NESTED)
def test_ultrafeedback(tmp_path, kind):
    source = Files.at(saved(tmp_path / f"source{kind}", ULTRAFEEDBACK))
    table, summary = pools(tmp_path, importers.ultrafeedback(source), "overall_score")
    first = table[0]
    assert len(table) == 2
    assert (first["prompt"], first["response"]) == (f"Why? {EMOJI}", f"Because. {EMOJI}")
    assert (first["generator"], first["overall_score"], first["fine-grained_score"]) == ("alpaca-7b", 7.5, 4.25)
    assert (first["instruction_following"], first["honesty"], first["helpfulness"]) == (5, 4, 3)
    assert math.isnan(first["truthfulness"])
    assert summary.left_out == {"no response": 2}
    assert {column.name: column.missing for column in summary.columns}["truthfulness"] == 1


@pytest.mark.parametrize("kind", NESTED)
def test_active_ultrafeedback(tmp_path, kind):
    source = Files.at(saved(tmp_path / f"source{kind}", ACTIVE))
    table, summary = pools(tmp_path, importers.active_ultrafeedback(source), "overall_score")
    assert [(row["prompt_id"], row["generator"], row["overall_score"], row["honesty"]) for row in table] == [
        ("f0e3", "Qwen/Qwen3-32B", 4.2499, 4.2499),
        ("f0e3", "google/gemma-3-4b-it", 3.5, 3.5),
    ]
    assert summary.left_out == {"no overall_score": 1, "overall_score is no number": 1}


def test_a_rating_that_the_first_completions_lack_stands_by_its_own_row(tmp_path):
    first, second = ({**completion} for completion in ULTRAFEEDBACK[0]["completions"][:2])
    del first["fine-grained_score"], first["annotations"]
    record = {**ULTRAFEEDBACK[0], "completions": [first, second, "nonsense", None]}
    source = Files.at(lines(tmp_path / "s.jsonl", [record]))
    table, summary = pools(tmp_path, importers.ultrafeedback(source), "overall_score")
    assert [math.isnan(row["fine-grained_score"]) for row in table] == [True, False]
    assert table[1]["honesty"] == 1.0
    assert summary.left_out == {"no response": 2}


def test_one_kind_of_completions_is_not_taken_for_the_other(tmp_path):
    source = Files.at(lines(tmp_path / "s.jsonl", [{**ACTIVE[0], "instruction": "Why?"}]))
    with pytest.raises(ValueError, match="no completion has a 'response'"):
        list(importers.ultrafeedback(source))
    with pytest.raises(ValueError, match=r"unknown column of .* 'instruction'"):
        list(importers.ultrafeedback(Files.at(lines(tmp_path / "s.jsonl", ACTIVE))))


def test_alpaca_eval(tmp_path):
    results(tmp_path / "results", [1.5, 1.9, 1, 2, None, 0], flip=True)
    table, summary = pools(tmp_path, alpaca_eval(tmp_path, [ANNOTATOR]), "score")
    by_prompt = {row["prompt"]: row["score"] for row in table if row["generator"] == "model-b"}
    expected = {"ask 0": 0, "ask 1": math.log(9), "ask 2": -20.7232658, "ask 3": 20.7232658, "ask 5": 0}
    assert by_prompt == pytest.approx(expected)
    assert {row["score"] for row in table if row["generator"] == "gpt4"} == {0.0}
    assert [row["response"] for row in table[:3]] == ["model-a 0", "model-b 0", "base 0"]
    assert summary.left_out == {"no score": 2, "no other candidate of the prompt": 1}
    assert summary.sizes == (3, 3)
    without, _ = pools(tmp_path, alpaca_eval(tmp_path / "results", [ANNOTATOR], baseline=False), "score")
    assert {row["generator"] for row in without} == {"model-a", "model-b"}


def test_the_baselines_own_folder_is_not_a_second_candidate(tmp_path):
    results(tmp_path, [1.2, 1.7])
    own = [{"instruction": f"ask {at}", "output": f"base {at}", "generator": "gpt4"} for at in range(2)]
    (tmp_path / "gpt4").mkdir()
    (tmp_path / "gpt4" / "model_outputs.json").write_text(json.dumps(own))
    for baseline in (True, False):
        table, summary = pools(tmp_path, alpaca_eval(tmp_path, [ANNOTATOR], baseline=baseline), "score")
        assert summary.left_out == {}
        assert sorted(row["score"] for row in table if row["generator"] == "gpt4") == [0.0, 0.0]


def test_a_further_annotator_has_a_column_of_its_own(tmp_path):
    results(tmp_path, [1.2, 1.7])
    results(tmp_path, [1.9, None], annotator="claude")
    table, _ = pools(tmp_path, alpaca_eval(tmp_path, (ANNOTATOR, "claude")), "score")
    assert [row["claude"] for row in table[:3]] == pytest.approx([math.log(9), math.log(9), 0.0])
    with pytest.raises(ValueError, match="did you mean 'claude'"):
        list(alpaca_eval(tmp_path, ("cluade",)))


def test_alpaca_eval_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError, match="results"):
        list(alpaca_eval(tmp_path / "nothing", [ANNOTATOR]))
    with pytest.raises(ValueError, match=r"no model_outputs\.json"):
        list(alpaca_eval(tmp_path, [ANNOTATOR]))
    results(tmp_path, [1.2])
    (tmp_path / "model-a" / "model_outputs.json").write_text('[{"instruction": "as')
    with pytest.raises(ValueError, match=r"model_outputs\.json is no JSON"):
        list(alpaca_eval(tmp_path, [ANNOTATOR]))


def test_an_annotation_of_another_output_gives_no_score(tmp_path):
    results(tmp_path, [1.2, 1.7])
    outputs = json.loads((tmp_path / "model-a" / "model_outputs.json").read_text())
    outputs[0]["output"] = "written anew"
    (tmp_path / "model-a" / "model_outputs.json").write_text(json.dumps(outputs))
    _, summary = pools(tmp_path, alpaca_eval(tmp_path, [ANNOTATOR]), "score")
    assert summary.left_out == {"no score": 1}


def test_an_annotation_of_one_model_is_not_anothers(tmp_path):
    results(tmp_path, [1.2, 1.7], models=("model-a", "model-b", "model-c"))
    outputs = json.loads((tmp_path / "model-a" / "model_outputs.json").read_text())
    outputs[0] |= {"generator": "model-c", "output": "model-b 0"}
    (tmp_path / "model-c" / "model_outputs.json").write_text(json.dumps(outputs))
    (tmp_path / "model-c" / ANNOTATOR / "annotations.json").unlink()
    _, summary = pools(tmp_path, alpaca_eval(tmp_path, [ANNOTATOR]), "score")
    assert summary.left_out == {"no score": 2}


ASK = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def says(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("record", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "Why?", "chosen": "A", "rejected": "B"}, "Why?", "A", "B"),
        ({"prompt": [ASK], "chosen": [says("A")], "rejected": [says("B")]}, "Why?", "A", "B"),
        ({"chosen": [ASK, says("A")], "rejected": [ASK, says("B")]}, "Why?", "A", "B"),
        ({"prompt": "Why?", "chosen": [ASK, says("A")], "rejected": [ASK, says("B")]}, "Why?", "A", "B"),
        ({"prompt": [ASK], "chosen": [ASK, says("A")], "rejected": [ASK, says("B")]}, "Why?", "A", "B"),
        (
            {"chosen": [SYSTEM, ASK, says("A")], "rejected": [SYSTEM, ASK, says("B")]},
            "system: Be brief.\n\nuser: Why?", "A", "B",
        ),
        (
            {"prompt": [ASK, says("So."), ASK], "chosen": [says("A")], "rejected": [says("B")]},
            "user: Why?\n\nassistant: So.\n\nuser: Why?", "A", "B",
        ),
        (
            {"chosen": "\n\nHuman: Why?\n\nAssistant: A", "rejected": "\n\nHuman: Why?\n\nAssistant: B"},
            "\n\nHuman: Why?\n\nAssistant:", " A", " B",
        ),
        (
            {
                "chosen": "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And?\n\nAssistant: Also A",
                "rejected": "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And?\n\nAssistant: Also",
            },
            "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And?\n\nAssistant:", " Also A", " Also",
        ),
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, "The sky is", " blue.", " black."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_preferences(tmp_path, record, prompt, chosen, rejected, kind):
    source = Files.at(saved(tmp_path / f"source{kind}", [record]))
    table, _ = pools(tmp_path, importers.preferences(source), "score")
    assert [(row["prompt"], row["response"], row["score"]) for row in table] == sorted(
        [(prompt, chosen, 1.0), (prompt, rejected, 0.0)]
    )
    assert len({row["generator"] for row in table}) == 1  # neither it nor the order tells which one is chosen
    assert "given_score" not in table[0]


@given(*[st.text("ab \n") for _ in range(3)])
def test_prompt_and_response_put_together_are_what_was_given(prompt, one, two):
    for turn in (ASSISTANT, ""):
        chosen, rejected = f"{prompt}{turn}{one}", f"{prompt}{turn}{two}"
        found, (first, second) = preference(None, chosen, rejected)
        assert (found + first, found + second) == (chosen, rejected)
        if turn:
            assert found.endswith(ASSISTANT)


def test_given_scores_and_ids_of_preferences_are_kept(tmp_path):
    records = [
        {"prompt_id": "a", "prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": 8.5, "score_rejected": "7"},
        {"prompt_id": "b", "prompt": "R", "chosen": "A", "rejected": "A", "score_chosen": 8.5, "score_rejected": 1},
        {"prompt_id": "c", "prompt": "S", "chosen": "A", "rejected": None, "score_chosen": 8.5, "score_rejected": 1},
    ]
    table, summary = pools(tmp_path, importers.preferences(Files.at(lines(tmp_path / "s.jsonl", records))), "score")
    assert [(row["prompt_id"], row["score"], row["given_score"]) for row in table] == [("a", 1.0, 8.5), ("a", 0.0, 7.0)]
    assert summary.left_out == {"no other candidate of the prompt": 2, "duplicate": 1, "no response": 1}


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_real_results_give_the_shared_scores_up_to_their_scale(tmp_path):
    found = alpaca_eval(SHARED / "alpaca_eval_raw", [ANNOTATOR])
    table, summary = pools(tmp_path, found, "score")
    assert summary.kept_prompts == 805
    shared = {
        (row["generator"], row["prompt"]): row["score"]
        for row in pq.read_table(SHARED / "alpaca_eval_pools.parquet").to_pylist()
    }
    pairs = [(row["score"], shared.get((row["generator"], row["prompt"]))) for row in table]
    ours, theirs = np.array([pair for pair in pairs if pair[1] is not None]).T
    assert len(ours) > 700
    np.testing.assert_allclose(ours, theirs * 3.13, atol=1e-4)
