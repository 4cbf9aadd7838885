"""A trained model in use: embeddings, scores of variants, predictions of hidden nucleotides."""
