"""Publishing a model: its files with a card that is made from its run, in a folder or on the Hugging Face hub."""
