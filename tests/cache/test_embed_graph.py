"""sidecar.cache.embed.graph, bert and make: another BERT than the default one, and what is none."""

import json

import msgspec
import numpy as np
import pytest
import tokenizers

from sidecar.cache.embed import bert, graph, make, model
from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.local import LocalEmbedder
from tests.cache import bert_rig

TEXTS = ["what is the capital of france?", "", "word", "a b c " * 3, "how 42 xyz!", "the " * 100]


def built(folder, *, quantised=True):
    known = bert.read(folder)
    made = graph.build(known, bert.weights(folder), quantised=quantised)
    return LocalEmbedder(made, (folder / "tokenizer.json").read_bytes(), known.tokens, "")


def found(embedder):
    return np.array([one.vector for one in embedder.embed(TEXTS)])


def wanted(tokens=bert_rig.POSITIONS, pooling="mean", named=None):
    tokenizer = tokenizers.Tokenizer.from_str(bert_rig.tokenizer())
    tokenizer.enable_truncation(tokens)
    named = named or bert_rig.tensors()
    return np.array([bert_rig.forward(named, tokenizer.encode(text).ids, pooling) for text in TEXTS])


def test_the_graph_is_the_model(tmp_path):
    folder = bert_rig.folder(tmp_path / "m")
    assert np.allclose(found(built(folder, quantised=False)), wanted(), atol=1e-5)
    assert (found(built(folder)) * wanted()).sum(1).min() > 0.98


@pytest.mark.parametrize(
    ("files", "tokens", "pooling"),
    [
        ({}, 40, "mean"),
        ({"sentence_bert_config.json": {"max_seq_length": 12}}, 12, "mean"),
        ({"sentence_bert_config.json": {"max_seq_length": 4096}}, 40, "mean"),
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, 40, "cls"),
        (
            {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}},
            40,
            "mean",
        ),
        (
            {"modules.json": [{"type": "a.Transformer"}, {"type": "a.Pooling"}, {"type": "a.Normalize"}]},
            40,
            "mean",
        ),
    ],
)
def test_what_the_folder_says_goes(tmp_path, files, tokens, pooling):
    folder = bert_rig.folder(tmp_path / "m")
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    assert np.allclose(found(built(folder, quantised=False)), wanted(tokens, pooling), atol=1e-5)


def test_names_may_have_a_prefix(tmp_path):
    folder = bert_rig.folder(tmp_path / "m", prefix="bert.")
    assert np.allclose(found(built(folder, quantised=False)), wanted(), atol=1e-5)


@pytest.mark.parametrize(("kind", "off"), [("F32", 1e-5), ("F16", 5e-3), ("BF16", 5e-2)])
def test_kinds_of_numbers(tmp_path, kind, off):
    folder = bert_rig.folder(tmp_path / "m", weights=bert_rig.safetensors(bert_rig.tensors(), kind))
    assert np.allclose(found(built(folder, quantised=False)), wanted(), atol=off)


def test_the_same_files_make_the_same_graph(tmp_path):
    folder = bert_rig.folder(tmp_path / "m")
    one, other = make.make(folder, own=False), make.make(folder, own=False)
    assert one == other
    assert one.built.tokens == 40
    assert one.built.origin == str(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", json.dumps(bert_rig.CONFIG | {"layer_norm_eps": 1e-5})),
        ("tokenizer.json", bert_rig.tokenizer().replace('"word":18', '"zord":18')),
        ("model.safetensors", bert_rig.safetensors(bert_rig.tensors(2))),
        ("sentence_bert_config.json", '{"max_seq_length": 30}'),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true}'),
    ],
)
def test_whatever_changes_vectors_changes_the_source(tmp_path, name, content):
    folder = bert_rig.folder(tmp_path / "m")
    before = make.make(folder, own=False).built
    (folder / name).parent.mkdir(exist_ok=True)
    assert not (folder / name).exists() or (folder / name).read_bytes() != content
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    after = make.make(folder, own=False).built
    assert after.source != before.source
    assert after.space != before.space
    assert after.stamps != before.stamps


def test_a_graph_that_is_not_the_model_is_refused(tmp_path, monkeypatch):
    """As one would be whose quantisation goes wrong with some weights."""
    real = graph.build

    def wrong(known, weights, *, quantised=True):
        other = msgspec.structs.replace(known, heads=known.heads // 2) if quantised else known
        return real(other, weights, quantised=quantised)

    monkeypatch.setattr(graph, "build", wrong)
    with pytest.raises(EmbedError, match="the quantised model is not the model"):
        make.make(bert_rig.folder(tmp_path / "m"), own=False)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "roberta"}, "is a roberta; only BERT"),
        ({"model_type": "mpnet"}, "is a mpnet; only BERT"),
        ({"model_type": None}, "only BERT"),
        ({"hidden_act": "gelu_new"}, "only gelu"),
        ({"position_embedding_type": "relative_key"}, "not absolute"),
        ({"layer_norm_eps": "1"}, "layer_norm_eps"),
        ({"num_attention_heads": 5}, "no BERT that there could be"),
        ({"num_hidden_layers": 1000}, "no BERT that there could be"),
        ({"num_hidden_layers": 0}, "no sensible num_hidden_layers"),
        ({"num_hidden_layers": True}, "no sensible num_hidden_layers"),
        ({"num_hidden_layers": 3}, "encoder.layer.2"),
        ({"hidden_size": 128}, "in another shape"),
        ({"hidden_size": "64"}, "no sensible hidden_size"),
        ({"max_position_embeddings": 1000}, "positions for 40 tokens"),
    ],
)
def test_what_is_no_such_bert_is_named(tmp_path, config, said):
    folder = bert_rig.folder(tmp_path / "m", **config)
    with pytest.raises(EmbedError, match=said) as raised:
        make.make(folder, own=False)
    assert "\n" not in str(raised.value)


def without(folder, name):
    (folder / name).unlink()


def saying(folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "has no model.safetensors",
        ),
        (lambda folder: without(folder, "tokenizer.json"), "has no tokenizer.json"),
        (lambda folder: without(folder, "config.json"), "cannot be read"),
        (lambda folder: saying(folder, "config.json", b"[]"), "not the JSON"),
        (lambda folder: saying(folder, "config.json", b"[" * 100_000), "not the JSON"),
        (lambda folder: saying(folder, "tokenizer.json", b"{}"), "cannot be loaded"),
        (lambda folder: saying(folder, "model.safetensors", b""), "no safetensors"),
        (
            lambda folder: saying(folder, "1_Pooling/config.json", b'{"pooling_mode_max_tokens": true}'),
            "max_tokens",
        ),
        (lambda folder: saying(folder, "1_Pooling/config.json", b"{}"), "pools its tokens"),
        (lambda folder: saying(folder, "modules.json", b'[{"type": "st.models.Dense"}]'), "'Dense'"),
        (lambda folder: saying(folder, "modules.json", b"{}"), "not the JSON"),
    ],
)
def test_a_folder_that_lacks_something_is_named(tmp_path, change, said):
    folder = bert_rig.folder(tmp_path / "m")
    change(folder)
    with pytest.raises(EmbedError, match=said) as raised:
        make.make(folder, own=False)
    assert "\n" not in str(raised.value)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    named = bert_rig.tensors()
    named["encoder.layer.1.output.dense.bias"][3] = np.inf
    folder = bert_rig.folder(tmp_path / "m", weights=bert_rig.safetensors(named))
    with pytest.raises(EmbedError, match=r"encoder.layer.1.output.dense.bias"):
        make.make(folder, own=False)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path):
    folder = bert_rig.folder(tmp_path / "m")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"x":39', '"x":4200'))
    assert (folder / "tokenizer.json").read_text() != text
    with pytest.raises(EmbedError, match="belong together"):
        make.make(folder, own=False)


def test_a_token_of_nothing_but_zeros(tmp_path):
    """Nothing is divided by zero."""
    named = {name: np.zeros_like(values) for name, values in bert_rig.tensors().items()}
    named["encoder.layer.1.output.LayerNorm.bias"] += 1
    folder = bert_rig.folder(tmp_path / "m", weights=bert_rig.safetensors(named))
    assert np.allclose(found(built(folder)), 1 / 8, atol=1e-4)


def test_the_known_files_of_the_default_model():
    assert {file.name for file in model.PINNED} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in model.PINNED)
