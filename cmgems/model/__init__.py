"""The network: BERT over k-mers, its initial weights, its layers on CPUs, and the cost of a step."""
