"""Genomes to windows to k-mer ids."""
