"""python -m tests.inputs: how many inputs of the table have which outcome."""

from tests.inputs import genomes, models, sequences, settings, tables

READ, REFUSED, NAMED = "read", "refused", "passed over by name"
COUNTS = {
    "genomes": {
        READ: len(genomes.READ),
        REFUSED: len(genomes.REFUSED) + len(genomes.NOT_FILES),
        NAMED: len(genomes.SAID),
    },
    "transcripts": {READ: len(sequences.READ), REFUSED: len(sequences.REFUSED)},
    "counts tables": {READ: len(tables.READ), REFUSED: len(tables.REFUSED)},
    "recipes": {REFUSED: len(settings.RECIPES)},
    "command lines": {REFUSED: len(settings.COMMANDS)},
    "models": {REFUSED: len(models.FAULTS)},
}

for kind, outcomes in COUNTS.items():
    print(f"{kind}: " + ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()))
print(f"{sum(sum(outcomes.values()) for outcomes in COUNTS.values())} inputs")
