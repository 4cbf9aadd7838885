"""What every process needs around its work: files and signals."""
