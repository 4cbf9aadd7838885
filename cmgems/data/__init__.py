"""Genomes become windows, a corpus, and batches of k-mer ids in an order that is a function of the step."""
