"""One page that puts the downstream scores of runs side by side and beside the published ones."""
