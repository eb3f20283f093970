"""What a changed table does to sentences: nothing if nothing changed, and the model is put back."""

import pytest
import torch

from book.workbook import sources
from book.workbook.sentences import Sentences, frequency_orders, nearest


@pytest.fixture(scope="module")
def encoder():
    return sources.load_encoder()


@pytest.fixture(scope="module")
def sentences(encoder):
    return Sentences(encoder)


def test_an_untouched_model_moves_nothing(sentences):
    distance, spread, same = sentences.moved()
    assert abs(distance) < 1e-5 and spread < 1e-5
    assert same == 1


def test_a_worse_table_moves_the_vectors_further_and_is_taken_out_again(encoder, sentences):
    table = encoder.model.get_input_embeddings()
    kept, found = table.weight, []
    for share in (0.05, 0.5):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(kept.shape, generator=generator) * kept.detach().std() * share
        with sentences.replaced(table, kept.detach() + noise):
            found.append(sentences.moved())
    assert 0 < found[0].distance < found[1].distance
    assert found[1].same < 1
    assert 0 < found[1].spread < found[1].distance
    with pytest.raises(KeyError), sentences.replaced(table, torch.zeros_like(kept)):
        raise KeyError
    assert table.weight is kept


def test_nearest_is_the_largest_product_with_another():
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1]]), dim=1)
    assert nearest(vectors).tolist() == [1, 0, 1]


def test_orders_hold_each_row_once_and_counted_tokens_come_first(encoder):
    by_id, by_count = frequency_orders(encoder, "train train table")
    for order in (by_id, by_count):
        assert order.sort().values.equal(torch.arange(30522))
    assert encoder.tokenizer.convert_ids_to_tokens(by_count[:2]) == ["train", "table"]
    assert encoder.tokenizer.convert_ids_to_tokens(by_id[-1:])[0].startswith("[unused")


def test_the_text_beside_the_sentences_holds_none_of_them(sentences):
    assert len(sentences) == 95
    assert len(sentences.rest) < len(sources.load_prose())
