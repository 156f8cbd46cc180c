"""Small sources of exactly the schemas that are imported, and files of every kind."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq

from prefenv.replay import importers
from prefenv.replay.cleaning import write_pools

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
EMOJI = "naïve 😀 👩‍👩‍👧 \u202eright\u202c e\u0301 \r\n\t ﷽ \"quoted\", 'so'"


def lines(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def arrow(path, records):
    table = pa.Table.from_pylist(records)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def saved(path, records):
    """The records as a file of the kind that the name says."""
    if path.name.endswith(".jsonl"):
        return lines(path, records)
    if path.name.endswith(".jsonl.gz"):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".arrow":
        arrow(path, records)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    return path


def pools(tmp_path, found, main, **settings):
    summary = write_pools(found, tmp_path / "pools.parquet", main, **settings)
    return pq.read_table(summary.path).to_pylist(), summary


def completion(model, response, ratings, overall):
    annotations = {
        aspect: {"Rating": rating, "Rationale": "because", "Rating_type": None}
        for aspect, rating in zip(importers.ASPECTS, ratings, strict=True)
    }
    return {
        "model": model, "principle": "helpfulness", "custom_system_prompt": "…", "response": response,
        "annotations": annotations, "critique": "…", "overall_score": overall, "fine-grained_score": 4.25,
    }  # fmt: skip


ULTRAFEEDBACK = [
    {
        "source": "evol_instruct",
        "instruction": f"Why? {EMOJI}",
        "models": ["alpaca-7b", "gpt-4", "bard"],
        "completions": [
            completion("alpaca-7b", f"Because. {EMOJI}", ["5", "4", "N/A", "3"], 7.5),
            completion("gpt-4", "For a reason.", ["1", "1", "1", "1"], 10.0),
            completion("bard", "", ["1", "1", "1", "1"], 1.0),
        ],
        "correct_answers": ["None"],
    },
    {"source": "flan", "instruction": "When?", "models": [], "completions": []},
]
NESTED = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".arrow")


ACTIVE = [
    {
        "prompt_id": "f0e3",
        "prompt": "Why?",
        "completions": [
            {
                "model": model,
                "response_text": f"{model} says {EMOJI}",
                "annotations": dict.fromkeys(importers.ASPECTS, score),
                "overall_score": score,
            }
            for model, score in [("Qwen/Qwen3-32B", "4.2499"), ("google/gemma-3-4b-it", "3.5"), ("x", ""), ("y", "?")]
        ],
    }
]


def results(folder, preferences, models=("model-a", "model-b"), annotator=ANNOTATOR, flip=False):
    """A folder as AlpacaEval's repository has it; preferences of each model, one for each instruction."""
    for model in models:
        outputs = [
            {"dataset": "helpful_base", "instruction": f"ask {at}", "output": f"{model} {at}", "generator": model}
            for at in range(len(preferences))
        ]
        annotations = [
            {
                "instruction": f"ask {at}", "output_1": f"base {at}", "generator_1": "gpt4", "dataset": "helpful_base",
                "output_2": f"{model} {at}", "generator_2": model, "annotator": annotator, "preference": value,
                "raw_completion": {"logprobs": None},
            }
            for at, value in enumerate(preferences)
        ]  # fmt: skip
        (folder / model / annotator).mkdir(parents=True, exist_ok=True)
        (folder / model / "model_outputs.json").write_text(json.dumps(outputs))
        (folder / model / annotator / "annotations.json").write_text(
            json.dumps(annotations[::-1] if flip else annotations)
        )
    return folder


PLAIN = [
    {
        "question": f"q{at % 3} {EMOJI}",
        "model": f"m{at}",
        "answer": f"{at} {EMOJI}",
        "quality": str(at / 2),
        "id": f"0{at % 3}",
    }
    for at in range(9)
]
NAMES = {"prompt": "question", "response": "answer", "generator": "model", "scores": ["quality"]}
